"""Segment images: arrays of masks, or mask files at the images' own sizes."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from segae._io import show_messages, write_atomically
from segae._settings import PathLike, make_config
from segae.commands._data import write_skipped
from segae.commands.evaluate import load_model, name_model
from segae.config import PredictConfig
from segae.data import SkippedFiles, UnreadableImage, find_images, read_image, resize_image
from segae.errors import DataError, SegaeError
from segae.evaluation import argmax_classes, overlay, predict_logits, resize_logits
from segae.models import Segmenter, SegmenterInfo
from segae.training import limit_threads, open_result_folder

logger = logging.getLogger("segae")

_JPEG_QUALITY = 92
_AT_ONCE = 8  # images that are read, and written, at the same time

Files = dict[str, Path]


class _Loaded(NamedTuple):
    path: Path
    image: NDArray[np.uint8] | None
    small: NDArray[np.uint8] | None
    reason: str = ""


def predict(
    model: Segmenter | PathLike,
    images: Any,
    *,
    out: PathLike | None = None,
    overlay: bool = True,
    probabilities: bool = False,
    batch_size: int = 8,
    max_pixels: int = 100_000_000,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> Any:
    """Segment images with a trained model.

    Args:
        model: a segmenter, or its file.
        images: an image or a folder, or several; without ``out`` also arrays uint8 (H, W, 3).
        out: folder for the masks; None returns arrays.
        overlay: also write <name>_overlay.jpg, the image with its mask laid over.
        probabilities: also write <name>_probabilities.npz, softmax as float16 (classes, H, W); without ``out`` return
            float32 (classes, H, W) in place of masks.
        batch_size: images that are read and segmented together.
        max_pixels: images with more are skipped, because they would fill the memory.
        device: auto, cpu, cuda, cuda:1 or mps.
        threads: CPU threads.
        overwrite: replace predictions of another model, or of other images with the same names, in the folder.

    Returns:
        Paths of the mask files, index PNGs at the images' own sizes; without ``out`` uint8 (H, W) class indices, a list
        of them for several images.

    Raises:
        SegaeError: no readable image, results that would overwrite an image or other files, or a bad model file.

    Example:
        >>> mask = predict("runs/finetune/model.safetensors", "cat.jpg")  # doctest: +SKIP
    """
    if out is None:
        with limit_threads(threads):
            segmenter, _ = load_model(model, device)
            return segmenter.predict(images, return_probabilities=probabilities, batch_size=batch_size)
    settings = {name: value for name, value in locals().items() if name in PredictConfig.__dataclass_fields__}
    config = make_config(PredictConfig, **settings)
    with show_messages(), limit_threads(config.threads):
        return _predict_files(config)


def _predict_files(config: PredictConfig) -> list[Path]:
    model, device = load_model(config.model, config.device)
    roots = [Path(path) for path in config.images]  # type: ignore[union-attr]
    paths = find_images(roots)
    out = Path(config.out)
    targets = _name_outputs(paths, roots, out, config)
    _require_separate(roots, out, targets)
    written = [os.path.relpath(file, out) for files in targets.values() for file in files.values()]
    settings = {"model": name_model(config.model), "images": [str(root) for root in roots]}
    open_result_folder(out, settings, task="predict", files=written, inputs="images", overwrite=config.overwrite)
    skipped, masks = SkippedFiles(), []
    running: deque[Future[None]] = deque()
    bar = tqdm(total=len(paths), desc="predict", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(_AT_ONCE) as writers:
        for path, image, logits in _segment(config, model, paths, skipped, device):
            mask = argmax_classes(logits).to(torch.uint8).cpu().numpy()
            values = logits.float().softmax(dim=0).half().cpu().numpy() if config.probabilities else None
            if len(running) == _AT_ONCE:  # what waits to be written must not fill the memory
                running.popleft().result()
            running.append(writers.submit(_write, targets[path], image, mask, values, model.info))
            masks.append(targets[path]["mask"])
            bar.update(len(masks) + len(skipped) - bar.n)
        for future in running:
            future.result()
    (out / "skipped.csv").unlink(missing_ok=True)
    write_skipped(out, skipped)
    if not masks:
        raise DataError(f"images must be readable, got {len(paths)} of which none is: {out / 'skipped.csv'} says why")
    logger.info("wrote %d mask%s to %s", len(masks), "" if len(masks) == 1 else "s", out)
    return masks


def _segment(
    config: PredictConfig, model: Segmenter, paths: Sequence[Path], skipped: SkippedFiles, device: torch.device
) -> Iterator[tuple[Path, NDArray[np.uint8], Tensor]]:
    """Yield path, image (H, W, 3) and logits (K, H, W); while a batch is computed the next one is read."""
    size = config.batch_size
    load = functools.partial(_load, image_size=model.info.image_size, max_pixels=config.max_pixels)
    with ThreadPoolExecutor(min(size, _AT_ONCE)) as readers:
        ahead = readers.map(load, paths[:size])
        for start in range(0, len(paths), size):
            batch = list(ahead)
            ahead = readers.map(load, paths[start + size : start + 2 * size])
            skipped.extend((one.path, one.reason) for one in batch if one.image is None)
            found = [
                (one.path, one.image, one.small) for one in batch if one.image is not None and one.small is not None
            ]
            if not found:
                continue
            small = np.stack([one for _, _, one in found])
            (logits,) = predict_logits(model, small, batch_size=size, device=device)
            for (path, image, _), one in zip(found, logits, strict=True):
                yield path, image, resize_logits(one, *image.shape[:2])


def _load(path: Path, image_size: int, max_pixels: int) -> _Loaded:
    """An image and its small square, or why there is none: an exception would end the other readers too."""
    try:
        image = read_image(path, max_pixels=max_pixels)
        return _Loaded(path, image, resize_image(image, image_size))
    except UnreadableImage as error:
        return _Loaded(path, None, None, error.reason)


def _name_outputs(paths: Sequence[Path], roots: Sequence[Path], out: Path, config: PredictConfig) -> dict[Path, Files]:
    """Where the results of each image go: below ``out`` as the image lies below its root.

    Images that differ only in their suffix, or lie at the same place below different roots, get more in their names, so
    that none overwrites another's result; letter case counts as equal, because on some disks it is.
    """
    folders = [root if root.is_dir() else root.parent for root in roots]
    places = {path: path.relative_to(next(one for one in folders if path.is_relative_to(one))) for path in paths}
    plain = Counter(str(place.with_suffix("")).lower() for place in places.values())
    taken = {stem for stem, uses in plain.items() if uses == 1}
    named: dict[Path, Files] = {}
    for path, place in places.items():
        stem = place.with_suffix("")
        if plain[str(stem).lower()] > 1:
            stem = stem.with_name(f"{stem.name}_{place.suffix[1:]}")
            while str(stem).lower() in taken:
                stem = stem.with_name(f"{stem.name}_")
            taken.add(str(stem).lower())
        whole = out / stem
        named[path] = {"mask": whole.with_name(f"{whole.name}.png")}
        if config.overlay:
            named[path]["overlay"] = whole.with_name(f"{whole.name}_overlay.jpg")
        if config.probabilities:
            named[path]["probabilities"] = whole.with_name(f"{whole.name}_probabilities.npz")
    return named


def _require_separate(roots: Sequence[Path], out: Path, targets: Mapping[Path, Files]) -> None:
    """Refuse to write results over images, or where the next prediction would take them for images."""
    place, sources = out.resolve(), {path.resolve() for path in targets}
    inside = [root for root in roots if root.is_dir() and root.resolve() in (place, *place.parents)]
    over = [file for files in targets.values() for file in files.values() if file.resolve() in sources]
    if inside or over:
        problem = f"{over[0]} would be overwritten" if over else f"it is inside {inside[0]}"
        raise SegaeError(f"out must be a folder apart from the images, got {out}: {problem}")


def _write(
    files: Files,
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    values: NDArray[np.float16] | None,
    info: SegmenterInfo,
) -> None:
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([value for color in info.palette for value in color])
    write_atomically(files["mask"], lambda file: picture.save(file, format="PNG"))
    if "overlay" in files:
        blend = Image.fromarray(overlay(image, mask, info.palette))
        write_atomically(files["overlay"], lambda file: blend.save(file, format="JPEG", quality=_JPEG_QUALITY))
    if values is not None:

        def save(file: BinaryIO) -> None:
            np.savez_compressed(file, probabilities=values, classes=np.array(info.classes))

        write_atomically(files["probabilities"], save)
