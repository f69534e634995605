"""From image files to mask files: read, segment, resize back to the original, write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segae.data.images import UnreadableImage, read_image
from segae.data.quarantine import Quarantine
from segae.data.resize import resize_image
from segae.errors import SegaeError
from segae.files import write_atomically
from segae.training.colour import overlay
from segae.training.evaluation import CPU, predict_logits, require_batch_size, resize_logits, softmax_winner

JPEG_QUALITY = 92
AT_ONCE = 8
"""Images that are read, and written, at once."""


def predict_files(
    model: nn.Module,
    paths: Sequence[Path],
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    quarantine: Quarantine,
    batch_size: int = 8,
    device: torch.device = CPU,
) -> Iterator[tuple[Path, NDArray[np.uint8], Tensor]]:
    """Segment image files, each at its own resolution; while a batch is computed the next one is read.

    Args:
        model: from normalised images to logits.
        paths: image files.
        image_size: side in pixels of the model's square input.
        mean: what the model's images are normalised with.
        std: the same.
        quarantine: takes the files that cannot be read; they are left out.
        batch_size: images read at once and sent through the model together.
        device: where to compute.

    Yields:
        (path, image, logits): the upright picture uint8 (H, W, 3) and float32 (K, H, W) logits on the device.
    """
    require_batch_size(batch_size)
    with ThreadPoolExecutor(max_workers=min(batch_size, AT_ONCE)) as readers:
        read = partial(readers.map, partial(_read, image_size=image_size))
        ahead = read(paths[:batch_size])
        for start in range(0, len(paths), batch_size):
            chunk = list(zip(paths[start : start + batch_size], ahead, strict=True))
            ahead = read(paths[start + batch_size : start + 2 * batch_size])
            for _, result in chunk:
                if isinstance(result, UnreadableImage):
                    quarantine.add(result.path, result.reason)
            found = [(path, *result) for path, result in chunk if not isinstance(result, UnreadableImage)]
            if not found:
                continue
            small = np.stack([small for _, _, small in found])
            (logits_bkhw,) = predict_logits(model, small, mean, std, batch_size=batch_size, device=device)
            for (path, image, _), logits_khw in zip(found, logits_bkhw, strict=True):
                yield path, image, resize_logits(logits_khw, *image.shape[:2])


def output_stems(paths: Sequence[Path], root: Path) -> dict[Path, Path]:
    """Where each image's results go, below the output folder and without suffix.

    Sub-folders are kept. Images that differ only in their suffix get it as part of the name, so that none
    overwrites another's result; letter case counts as equal, because on some disks it is.

    Args:
        paths: image files below ``root``.
        root: the folder whose structure is kept.

    Example:
        >>> stems = output_stems([Path("in/a.jpg"), Path("in/a.png"), Path("in/b.jpg")], Path("in"))
        >>> [str(stem) for stem in stems.values()]
        ['a_jpg', 'a_png', 'b']
    """
    relative = {path: path.relative_to(root) for path in paths}
    plain = Counter(str(place.with_suffix("")).lower() for place in relative.values())
    stems: dict[Path, Path] = {}
    taken = {stem for stem, uses in plain.items() if uses == 1}
    for path, place in relative.items():
        stem = place.with_suffix("")
        if plain[str(stem).lower()] > 1:
            stem = stem.with_name(f"{stem.name}_{place.suffix[1:]}")
            while str(stem).lower() in taken:
                stem = stem.with_name(f"{stem.name}_")
            taken.add(str(stem).lower())
        stems[path] = stem
    return stems


def output_files(stem: Path, with_overlay: bool, with_probabilities: bool) -> dict[str, Path]:
    """The files that :func:`write_prediction` writes for one image, by kind; the mask is always there."""
    files = {"mask": stem.with_name(f"{stem.name}.png")}
    if with_overlay:
        files["overlay"] = stem.with_name(f"{stem.name}_overlay.jpg")
    if with_probabilities:
        files["probabilities"] = stem.with_name(f"{stem.name}_probabilities.npz")
    return files


def write_prediction(
    files: Mapping[str, Path],
    image: NDArray[np.uint8],
    logits_khw: Tensor,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    submit: Callable[..., object] | None = None,
) -> None:
    """Write the mask of one image and, if asked for, overlay and probabilities.

    Args:
        files: from :func:`output_files`.
        image: uint8 (H, W, 3).
        logits_khw: (K, H, W).
        classes: K names, stored with the probabilities.
        palette: K colours, 0-255.
        submit: given a function and what it is called with, has the files written, as that of
            ``segae.training.background.in_background`` does beside the caller; None writes them here.

    Raises:
        SegaeError: a file cannot be written.
    """
    mask = softmax_winner(logits_khw).to(torch.uint8).cpu().numpy()
    values = logits_khw.float().softmax(dim=0).half().cpu().numpy() if "probabilities" in files else None
    if submit is None:
        _write(files, image, mask, values, classes, palette)
    else:
        submit(_write, files, image, mask, values, classes, palette)


def _write(
    files: Mapping[str, Path],
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    values: NDArray[np.float16] | None,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> None:
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([value for colour in palette for value in colour])
    write_atomically(files["mask"], lambda file: picture.save(file, format="PNG"))
    if "overlay" in files:
        blend = Image.fromarray(overlay(image, mask, palette))
        write_atomically(files["overlay"], lambda file: blend.save(file, format="JPEG", quality=JPEG_QUALITY))
    if values is not None:

        def save(file: BinaryIO) -> None:
            np.savez_compressed(file, probabilities=values, classes=np.array(classes))

        write_atomically(files["probabilities"], save)


def require_apart(source: Path, out: Path, targets: Mapping[Path, Mapping[str, Path]]) -> None:
    """Refuse to write results over images, or where the next prediction would take them for images.

    Args:
        source: the image or the folder that is segmented.
        out: the folder for the results.
        targets: the files that will be written for each image.

    Raises:
        SegaeError: ``out`` is the source folder or inside it, or a result is also an image.
    """
    where = out.resolve()
    inside = source.is_dir() and source.resolve() in (where, *where.parents)
    images = {path.resolve() for path in targets}
    over = [file for files in targets.values() for file in files.values() if file.resolve() in images]
    if inside or over:
        problem = f"{over[0]} would be overwritten" if over else f"{out} is inside {source}"
        raise SegaeError(
            f"The results would mix with the images: {problem}. A folder outside the images' is wanted: "
            "choose another --out, for example --out runs/predict."
        )


def _read(path: Path, image_size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | UnreadableImage:
    """The image and its small square, or the reason why there is none: an exception would end the other readers too."""
    try:
        image = read_image(path)
        return image, resize_image(image, image_size)
    except UnreadableImage as error:
        return error
