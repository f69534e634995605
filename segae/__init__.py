"""segae: pretrain encoders on unlabeled images, fine-tune segmenters with them, and measure what it gains.

Public names are loaded when they are first used, so ``import segae`` is fast; ``segae/__init__.pyi`` lists them.
"""

from importlib import metadata

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = metadata.version("segae")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
