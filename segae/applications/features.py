"""Features of images from a frozen encoder: a vector or a dense map per image, in order, at constant memory."""

import hashlib
import importlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import lazy_loader
import numpy as np
import safetensors
import safetensors.numpy
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from segae._io import check_range, read_json, require_package, write_atomically, write_json
from segae.data import PathList, SkippedFiles, UnreadableImage, find_images, read_resized, resize_image
from segae.data.cache import read_ahead
from segae.data.image_io import as_image
from segae.errors import DataError, SegaeError, argument_named
from segae.evaluation import normalize
from segae.image_format import Size
from segae.models import Encoder, create_encoder, evaluation_mode, fingerprint, load, require_image_size
from segae.models.classic import is_classic

pyarrow = lazy_loader.load("pyarrow")  # an extra, for Parquet

FORMATS = (".npz", ".parquet", ".safetensors", ".npy")
_DEFAULT = "tf_efficientnet_lite0"
_GEM_POWER = 3.0
_FEW = 32  # channels, below which a mean over positions says little
_ROWS = 4096  # that are copied at a time
_DAMAGED = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, safetensors.SafetensorError)
_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda maps: maps.mean(dim=(2, 3)),
    "max": lambda maps: maps.amax(dim=(2, 3)),
    "gem": lambda maps: maps.clamp(min=1e-6).pow(_GEM_POWER).mean(dim=(2, 3)).pow(1 / _GEM_POWER),
    "flatten": lambda maps: maps.flatten(1),
    "none": lambda maps: maps,
}


@dataclass(frozen=True, eq=False)
class Features:
    """``values`` of N images, (N, C) or without pooling (N, C, H, W), and their N ``names``."""

    values: NDArray[Any]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a file that ``load`` reads: .npz, .parquet (vectors only), .safetensors or .npy, else a SegaeError."""
        file = Path(path)
        check_format(file, "path", dense=self.values.ndim != 2)
        _write(file, self.values, list(self.names))
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what ``extract_features`` wrote, else a DataError; the values of a .npy file are a memory map."""
        file = Path(path)
        check_format(file, "path")
        try:
            if file.suffix == ".npz":
                with np.load(file) as arrays:
                    return cls(arrays["values"], tuple(arrays["names"].tolist()))
            if file.suffix == ".npy":
                names = json.loads(file.with_name(f"{file.name}.names.json").read_text(encoding="utf-8"))
                return cls(np.load(file, mmap_mode="r"), tuple(names))
            if file.suffix == ".safetensors":
                with safetensors.safe_open(file, "np") as content:
                    return cls(content.get_tensor("values"), tuple(json.loads(content.metadata()["names"])))
            table = importlib.import_module("pyarrow.parquet").read_table(file)
            values = table["values"].combine_chunks()
            return cls(np.stack(values.to_numpy(zero_copy_only=False)), tuple(table["name"].to_pylist()))
        except _DAMAGED as error:
            raise DataError(f"path must be a file of extract_features, got {file}: {error}") from error


def open_encoder(source: Encoder | str | os.PathLike[str]) -> Encoder:
    """Return a frozen encoder: an object, or the one of a model file of segae, a published name or ``timm:NAME``.

    ``timm:NAME`` has ImageNet weights; ``imagenet`` is the default network with them. SegaeError if there is no such
    encoder, or its weights cannot be had.
    """
    if isinstance(source, Encoder):
        return source
    text = os.fspath(source)
    if text == "imagenet" or text.startswith("timm:"):
        with argument_named("encoder", instead_of="name"):
            return create_encoder(_DEFAULT if text == "imagenet" else text.removeprefix("timm:"), weights="imagenet")
    with argument_named("encoder", instead_of="weights"):
        model = load(text)
    return model if isinstance(model, Encoder) else model.encoder


class _Batch(NamedTuple):
    values: NDArray[np.float32]
    places: list[int]  # of the images that could be read
    done: int  # how many images were tried so far


def check_format(file: Path, argument: str = "out", *, dense: bool = False) -> None:
    """Refuse a file whose name has none of the endings of ``FORMATS``, or of a kind that cannot be written here."""
    if file.suffix not in FORMATS:
        raise SegaeError(f"{argument} must end with {', '.join(FORMATS)}, got {file}")
    if file.suffix == ".parquet":
        require_package("pyarrow", "features")
        if dense:
            raise SegaeError(f"{argument} must not be .parquet for dense maps (pool none), got {file}")


def require_layer(encoder: Encoder, layer: int) -> int:
    """Return how many channels a feature map has; refuse one that the encoder does not have."""
    check_range("layer", layer, low=-5, high=5, integer=True)
    known = [place for place, channels in enumerate(encoder.out_channels) if place and channels]
    if layer % len(encoder.out_channels) not in known or layer >= len(encoder.out_channels):
        raise SegaeError(f"layer must be one of {', '.join(map(str, known))} or -1, got {layer}")
    return encoder.out_channels[layer]


def list_images(images: Any) -> Sequence[Any]:
    """Return the files of images and folders, or files or arrays in the given order; one or several."""
    alone = isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 3)
    listed: Any = [images] if alone else images
    arrays = [image for image in listed if isinstance(image, np.ndarray)]
    if arrays and len(arrays) < len(listed):
        raise SegaeError(f"images must be all files or all arrays, got {len(arrays)} arrays of {len(listed)}")
    if arrays or all(Path(path).is_file() for path in listed):
        return arrays or [Path(path) for path in listed]
    return find_images([Path(root) for root in listed])


def compute_features(
    encoder: Encoder,
    images: Sequence[Path | NDArray[np.uint8]],
    *,
    layer: int = -1,
    pool: str = "auto",
    image_size: Size | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    start: int = 0,
    skipped: SkippedFiles | None = None,
) -> Generator[_Batch, None, None]:
    """Yield the features of images batch by batch; while one batch is computed the next ones are read.

    The encoder is moved to the device, in channels_last layout, and runs in evaluation mode. ``images`` are files, or
    arrays uint8 (H, W, 3), or numbers for an encoder of other images, from place ``start`` on; each is
    resized as the encoder takes it. Layer (1 of stride 2 to 5 of stride
    32, or -1), pool and the other settings are those of `segae.extract_features`; gem has power 3 (arXiv 1711.02512),
    and auto is flatten for small networks and maps of few channels, where position matters, else avg. ``skipped``
    receives the files that cannot be read. SegaeError: the encoder has no such map, a number is out of range, or none
    of the images can be read.
    """
    form = encoder.info.format if image_size is None else encoder.info.format.resized(image_size)
    require_image_size(form.size, encoder.output_stride)
    check_range("batch_size", batch_size, low=1, integer=True)
    few = require_layer(encoder, layer) < _FEW or is_classic(encoder.info.architecture)
    if pool == "auto":
        pool = "flatten" if few else "avg"
    if not len(images):
        raise DataError("images must be one or more, got none")
    if pool not in _POOLS:
        raise SegaeError(f"pool must be one of auto, {', '.join(_POOLS)}, got {pool}")

    def load(place: int) -> tuple[int, NDArray[np.uint8] | UnreadableImage]:
        image = images[place]
        if isinstance(image, np.ndarray):
            if form.is_rgb and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
                raise SegaeError(f"images must be uint8 arrays (H, W, 3), got {image.dtype} {image.shape}")
            return place, resize_image(as_image(image, form), form)
        try:
            return place, read_resized(Path(image), form)
        except UnreadableImage as error:
            return place, error

    encoder.to(device, memory_format=torch.channels_last)  # 1.6 times faster on a CPU
    lost = SkippedFiles() if skipped is None else skipped
    before = len(lost)  # of earlier calls
    with tqdm(total=len(images), initial=start, unit="image", leave=False, disable=None) as bar:
        for batch in read_ahead(load, range(start, len(images)), batch_size):
            lost.extend((one.path, one.reason) for _, one in batch if isinstance(one, UnreadableImage))
            read = {place: one for place, one in batch if isinstance(one, np.ndarray)}
            values = np.empty(0, np.float32)
            if read:
                squares = np.stack(list(read.values()))
                with evaluation_mode(encoder), torch.inference_mode():
                    about, as_bytes = encoder.info, getattr(encoder, "takes_bytes", False)  # as ONNX files do
                    maps = encoder(squares if as_bytes else normalize(squares, about.mean, about.std, device))[layer]
                    values = _POOLS[pool](maps.float()).cpu().numpy()
            yield _Batch(values, list(read), batch[-1][0] + 1)
            bar.update(len(batch))
    if not start and len(lost) - before == len(images):
        first_ones = "; ".join(f"{path} ({reason})" for path, reason in lost.files[-3:])
        raise DataError(f"images must be readable, got {len(images)} of which none is: {first_ones}")


def collect_features(
    encoder: Encoder, images: Sequence[Path | NDArray[np.uint8]], *, dtype: str = "float32", **how: Any
) -> Features:
    """Compute features in memory; arguments as in ``compute_features``, names of arrays are their places."""
    batches = list(compute_features(encoder, images, **how))
    places = [place for batch in batches for place in batch.places]
    values = np.concatenate([batch.values for batch in batches if batch.places]).astype(dtype, copy=False)
    names = (place if isinstance(images[place], np.ndarray) else images[place] for place in places)
    return Features(values, tuple(map(str, names)))


def write_features(
    encoder: Encoder, paths: PathList, out: Path, *, dtype: str = "float32", skipped: SkippedFiles, **how: Any
) -> Path:
    """Write the features of image files and their names; a call that was interrupted continues where it stopped.

    Memory does not grow with the number of images. Until the file is whole, everything is in a folder beside it,
    ``<out>.partial``. ``out`` is an .npz, .parquet or .safetensors file, or .npy, a memory map, with the names in
    ``<out>.names.json``; ``dtype`` is float32 or float16. Images that cannot be read have no row and are added to
    ``skipped``; ``how`` are settings of ``compute_features``.
    SegaeError if ``out`` has another ending, no image can be read, or the disk is full.
    """
    check_format(out, dense=how.get("pool") == "none")
    partial = out.with_name(f"{out.name}.partial")
    recipe = _recipe(encoder, paths, dtype, how)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.with_name(f"{out.name}.lock"), timeout=0) as lock:
            known: Any = read_json(partial / "progress.json")
            started = isinstance(known, dict) and known.get("recipe") == recipe
            if not (started and (partial / "values.npy").exists()):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                known = {"recipe": recipe, "done": 0, "kept": 0, "skipped": []}
            skipped.extend((path, reason) for path, reason in known["skipped"])
            kept = known["kept"]
            with closing(compute_features(encoder, paths, start=known["done"], skipped=skipped, **how)) as batches:
                for batch in batches:
                    if batch.places:
                        file, count = partial / "values.npy", len(batch.places)
                        if not file.exists():
                            np.lib.format.open_memmap(file, "w+", dtype, (len(paths), *batch.values.shape[1:])).flush()
                        # opened for each batch: what a map has written would else count as memory of this process
                        rows = np.load(file, mmap_mode="r+")
                        rows[kept : kept + count] = batch.values
                        rows.flush()
                        kept += count
                    lost = [(str(path), reason) for path, reason in skipped.files]
                    write_json(partial / "progress.json", {**known, "done": batch.done, "kept": kept, "skipped": lost})
            without = {str(path) for path, _ in skipped.files}
            names = [name for name in map(str, paths) if name not in without]
            _write(out, np.load(partial / "values.npy", mmap_mode="r")[:kept], names)
            shutil.rmtree(partial)
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise SegaeError(f"out must not be in use, got {out}, which another process is writing") from error
    except OSError as error:
        raise SegaeError(f"out must be a place with room for the features, got {out}: {error}") from error
    return out


def _recipe(encoder: Encoder, paths: PathList, dtype: str, how: dict[str, Any]) -> str:
    """Hash what the features depend on: weights, settings, and names, sizes and times of the files."""
    settings = {name: value for name, value in how.items() if name not in ("batch_size", "device")}
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([fingerprint(encoder.state_dict()), dtype, settings], sort_keys=True).encode())
    for path in paths:
        digest.update(os.fsencode(path))
        if path.exists():
            status = path.stat()
            digest.update(f" {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _write(out: Path, values: NDArray[Any], names: list[str]) -> None:
    """Put the rows and names together in one file, part by part; values may be a memory map."""
    safe = [name.encode("utf-8", "backslashreplace").decode() for name in names]  # a file name may be no text
    listed = json.dumps(safe).encode()
    if out.suffix == ".npz":
        # a string array that is not made of objects, so that reading it runs no code
        write_atomically(out, lambda file: np.savez(file, values=values, names=np.array(safe, np.str_)))
    elif out.suffix == ".npy":
        write_atomically(out.with_name(f"{out.name}.names.json"), listed)
        write_atomically(out, lambda file: np.lib.format.write_array(file, values, allow_pickle=False))
    elif out.suffix == ".safetensors":
        part = out.with_name(f".{os.getpid()}-features.segae-part")  # the library wants a path, and copies nothing
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            safetensors.numpy.save_file({"values": np.ascontiguousarray(values)}, part, {"names": listed.decode()})
            part.replace(out)
        except (OSError, safetensors.SafetensorError) as error:
            raise SegaeError(f"{out} could not be written: {error}") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    else:
        kind = pyarrow.list_(pyarrow.from_numpy_dtype(values.dtype), values.shape[1])
        schema = pyarrow.schema([("name", pyarrow.string()), ("values", kind)])

        def write_rows(file: Any) -> None:
            with importlib.import_module("pyarrow.parquet").ParquetWriter(file, schema) as writer:
                for start in range(0, len(values), _ROWS):
                    part = pyarrow.array(values[start : start + _ROWS].ravel())
                    columns = [safe[start : start + _ROWS], pyarrow.FixedSizeListArray.from_arrays(part, type=kind)]
                    writer.write_table(pyarrow.table(columns, schema=schema))

        write_atomically(out, write_rows)
