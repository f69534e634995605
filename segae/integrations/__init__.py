"""segae within other libraries: a module each, imported when it is used."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["fastai", "sklearn"])
