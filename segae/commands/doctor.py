"""What of segae works on this machine, and the command that mends the rest."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import huggingface_hub
import pandas as pd
import torch
from huggingface_hub.utils import get_session
from packaging.requirements import Requirement

from segae._io import cache_dir, logger, package_data
from segae._settings import takes_settings_of
from segae.config import DoctorConfig
from segae.errors import SegaeError
from segae.models import published_weights
from segae.models.imagenet import PACKAGES

_INSTALL = "pip install 'segae[{}]'"
_SECONDS = 5.0


class _Finding(NamedTuple):
    part: str
    found: str
    mend: str = ""  # what to type; empty where all is well
    optional: bool = False

    @property
    def state(self) -> str:
        return "ok" if not self.mend else "missing" if self.optional else "problem"


@takes_settings_of(DoctorConfig)
def doctor(config: DoctorConfig) -> pd.DataFrame:
    """Look at versions, devices, data and weights; all settings are those of ``segae.config.DoctorConfig``.

    Returns:
        A row per part: ``part``, ``state`` (ok, missing for something optional, or problem), ``found``, and ``mend``,
        what to type.

    Raises:
        SegaeError: something that segae needs does not work; everything was printed before.

    Example:
        >>> rows = doctor()  # doctest: +SKIP
    """
    found = [*_versions(), *_devices(), *_files(), *([_hub()] if config.online else ())]
    rows = pd.DataFrame({"part": one.part, "state": one.state, "found": one.found, "mend": one.mend} for one in found)
    width = max(map(len, rows["part"]))
    for one in found:
        logger.info("%-7s  %-*s  %s%s", one.state, width, one.part, one.found, f"  ->  {one.mend}" if one.mend else "")
    if broken := ", ".join(rows["part"][rows["state"] == "problem"]):
        raise SegaeError(f"parts must work, got a problem with {broken}; the list above says what to type")
    return rows


def _versions() -> Iterator[_Finding]:
    yield _Finding("segae", f"{metadata.version('segae')}, python {platform.python_version()}, {sys.executable}")
    extras: dict[str, list[str]] = {}
    for text in metadata.requires("segae") or ():
        needed = Requirement(text)
        extra = str(needed.marker).partition("extra == ")[2].strip("\"'") if needed.marker else ""
        try:
            version = metadata.version(needed.name)
            fits = needed.specifier.contains(version, prereleases=True)
        except metadata.PackageNotFoundError:
            version, fits = "not installed", False
        if extra:
            extras.setdefault(extra, []).extend([] if fits else [needed.name])
        else:
            mend = "" if fits else f"pip install '{needed.name}{needed.specifier}'"
            yield _Finding(needed.name, version, mend)
    for extra, absent in extras.items():
        if extra != "dev":
            found, mend = (f"without {', '.join(absent)}", _INSTALL.format(extra)) if absent else ("installed", "")
            yield _Finding(f"[{extra}]", found, mend, optional=True)
    if not hasattr(torch.ops.torchvision, "nms"):
        mend = "pip install --force-reinstall torch torchvision, both from one index"
        yield _Finding("torchvision", "does not fit torch", mend)


def _devices() -> Iterator[_Finding]:
    yield _Finding("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for torch")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield _Finding(f"cuda:{number}", f"{about.name}, {about.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        yield _Finding("mps", platform.processor())
    elif not torch.cuda.is_available():
        mend = "pip install a CUDA build of torch that fits the driver" if shutil.which("nvidia-smi") else ""
        yield _Finding("gpu", "none that torch can use: trainings run on the CPU", mend)


def _files() -> Iterator[_Finding]:
    for name, found in {"drawn-pets": "a small data set", "weights": ", ".join(published_weights())}.items():
        mend = "" if package_data(name).is_dir() else "pip install --force-reinstall --no-deps segae"
        yield _Finding(name, f"{found} in {package_data(name)}", mend)
    packages = [name for name, (module, _) in PACKAGES.items() if importlib.util.find_spec(module)]
    mend = "" if packages else _INSTALL.format("imagenet")
    yield _Finding("imagenet", ", ".join([*packages, "others from the model hub"]), mend, optional=True)
    folder = cache_dir()
    above = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(above).free / 1e9
    works = os.access(above, os.W_OK) and free > 1
    mend = "" if works else "set SEGAE_CACHE to a folder with room that can be written"
    yield _Finding("cache", f"{folder}, {free:.0f} GB free", mend)


def _hub() -> _Finding:
    address = huggingface_hub.constants.ENDPOINT
    try:
        get_session().head(address, timeout=_SECONDS)
    except Exception as error:  # network errors come in many unrelated classes
        return _Finding("model hub", f"{address}: {type(error).__name__}", "connect this machine", optional=True)
    return _Finding("model hub", address)
