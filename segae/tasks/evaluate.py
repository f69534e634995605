"""Score a trained segmenter on a split of a labelled data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segae.errors import SegaeError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from segae.data.cache import CachedPairs
    from segae.data.dataset import Pair, SegmentationData
    from segae.models.segmenter import SegmenterDescription
    from segae.training.metrics import SegmentationScores

_WRITTEN = ("metrics.json", "per_image.csv", "confusion.png", "sheet.png", "quarantine.csv")
_DECISIVE = ("model", "data", "split", "resolution", "classes", "merge")
SHEET_ROWS = 8  # at most: evenly spaced ranks from the worst image to the best


@dataclass(frozen=True)
class Evaluate:
    """Score a trained segmenter on a split of a labelled data set.

    Writes metrics.json, per_image.csv, confusion.png and sheet.png (image, truth, prediction; from the worst
    image to the best).
    """

    model: Path
    """The model.safetensors that segae segment wrote."""
    data: Path
    """A data set: the official Oxford-IIIT Pets layout, or a folder with images/ and masks/."""
    split: str = "test"
    """test or train."""
    out: Path | None = None
    """Folder for the results; none takes evaluate-<split> beside the model, with -original and the data set's name
    where these are not the model's."""
    resolution: Literal["model", "original"] = "model"
    """Where masks are compared: at the model's input size, or at each mask's own size."""
    batch_size: int = 16
    """Images per forward pass; no score depends on it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads that compute; none takes OMP_NUM_THREADS, or one for each core."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed for Pets or with a classes.txt."""
    merge: tuple[str, ...] = ()
    """Classes to be taken as one, such as foreground=pet+border; none takes what the model was trained with."""
    overwrite: bool = False
    """Write into a folder that holds the scores of another model, data set or split."""


def run(config: Evaluate) -> SegmentationScores:
    """Evaluate as configured.

    Raises:
        SegaeError: an unknown or empty split, classes that are not the model's, no readable image, or a bad
            model file.
    """
    from segae.training.threads import with_threads

    with with_threads(config.threads):
        return _evaluate(config)


def _evaluate(config: Evaluate) -> SegmentationScores:
    from segae.data.cache import cache_pairs
    from segae.data.quarantine import Quarantine
    from segae.models.segmenter import load_segmenter
    from segae.tasks.readings import note_reading
    from segae.tasks.same_classes import open_as_trained
    from segae.training.device import choose_device, prepare_device
    from segae.training.evaluation import evaluate_at_mask_size, evaluate_model
    from segae.training.run import open_result_folder

    device = choose_device(config.device)
    prepare_device(device)
    model, description = load_segmenter(config.model)
    data = open_as_trained(config.data, config.classes, config.merge, description)
    pairs = choose_split(data, config.split)
    out = config.out or config.model.parent / _folder_name(config, data, description)
    written = [out / name for name in _WRITTEN]
    # beside the model it is the same one wherever its folder was moved
    moved = out.resolve().parent == config.model.resolve().parent
    decisive = [name for name in _DECISIVE if not (moved and name == "model")]
    open_result_folder(out, config, decisive, written, overwrite=config.overwrite)
    quarantine = Quarantine()
    cached = cache_pairs(pairs, description.image_size, data.mask_values, quarantine)
    how: dict[str, Any] = {"classes": description.classes, "mean": description.mean, "std": description.std}
    how |= {"batch_size": config.batch_size, "device": device}
    if config.split == "test":
        names = [pair.name for pair in cached.pairs]
        note_reading(config.model, model, data.name, names, how["mean"], how["std"], out)
    if config.resolution == "original":
        scores = evaluate_at_mask_size(model, cached.images, _masks(cached.pairs, data.mask_values), **how)
    else:
        scores = evaluate_model(model, cached.images, cached.masks, **how)
    _write_numbers(config, out, scores, description, data, cached.pairs, device)
    _write_pictures(out, scores, model, description, cached, device)
    quarantine.report()
    quarantine.write(out, anew=True)
    print(describe_scores(scores))
    print(f"wrote {out / 'metrics.json'}")
    return scores


def _folder_name(config: Evaluate, data: SegmentationData, description: SegmenterDescription) -> str:
    parts = ["evaluate", config.split]
    if config.resolution != "model":
        parts.append(config.resolution)
    if data.name != description.details.get("dataset", data.name):
        parts.append(data.name)
    return "-".join(parts)


def choose_split(data: SegmentationData, split: str) -> Sequence[Pair]:
    """The labelled images of a split.

    Raises:
        SegaeError: there is no such split, or nothing is in it.
    """
    pairs = data.splits.get(split, ())
    if not pairs:
        sizes = ", ".join(f"{name} ({len(members)} images)" for name, members in data.splits.items())
        raise SegaeError(
            f"The split {split!r} of {data.root} has no image; this data set has {sizes}. "
            "Choose one of them with --split."
        )
    return pairs


def describe_scores(scores: SegmentationScores) -> str:
    """The scores as lines for a terminal, in [0, 1] as in every table."""
    rows = {name.replace("_", " "): value for name, value in scores.as_row().items()}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value:.3f}" for name, value in rows.items())


def _masks(pairs: Sequence[Pair], mask_values: Sequence[int | tuple[int, ...]]) -> Iterator[np.ndarray]:
    """Class indices of each mask file at its own size, read when asked for."""
    from segae.data.images import read_mask
    from segae.data.resize import to_class_indices

    for pair in pairs:
        yield to_class_indices(read_mask(pair.mask), mask_values, pair.mask)


def _write_numbers(
    config: Evaluate,
    out: Path,
    scores: SegmentationScores,
    description: SegmenterDescription,
    data: SegmentationData,
    pairs: Sequence[Pair],
    device: torch.device,
) -> None:
    import hashlib
    import math

    import pandas as pd

    from segae.data.dataset import split_hash
    from segae.files import write_atomically, write_json
    from segae.training.provenance import provenance

    names = [pair.name for pair in pairs]
    content = {
        # JSON has no NaN: the score of a class that is nowhere is null
        **{name: None if math.isnan(value) else value for name, value in scores.as_row().items()},
        "classes": scores.classes,
        "confusion": scores.confusion.tolist(),
        "dataset": data.name,
        "split": config.split,
        "images": len(names),
        "split_hash": split_hash(names),
        "resolution": config.resolution,
        "model": str(config.model),
        "model_sha256": hashlib.sha256(config.model.read_bytes()).hexdigest(),
        "encoder": description.encoder,
        "decoder": description.decoder,
        "image_size": description.image_size,
        "training": description.details,
        **provenance(device),
    }
    write_json(out / "metrics.json", content)
    pixels = {"intersection": scores.per_image_intersection, "union": scores.per_image_union}
    counts = {
        f"{kind}_{name}": count_nk[:, index]
        for kind, count_nk in pixels.items()
        for index, name in enumerate(scores.classes)
    }
    table = pd.DataFrame({"name": names, "miou": scores.per_image, **counts}).to_csv(index=False)
    write_atomically(out / "per_image.csv", lambda file: file.write(table.encode("utf-8", "backslashreplace")))


def _write_pictures(
    out: Path,
    scores: SegmentationScores,
    model: nn.Module,
    description: SegmenterDescription,
    cached: CachedPairs,
    device: torch.device,
) -> None:
    import numpy as np

    from segae.training.colour import colour_mask
    from segae.training.evaluation import predict_masks
    from segae.training.figures import confusion_figure, contact_sheet

    confusion_figure(scores.confusion, scores.classes, out / "confusion.png")
    count = len(scores.per_image)
    ranks = np.unique(np.linspace(0, count - 1, min(SHEET_ROWS, count)).round().astype(int))
    shown = np.argsort(scores.per_image, kind="stable")[ranks]
    images = cached.images[shown]
    predictions = predict_masks(model, images, description.mean, description.std, device=device)
    palette = description.palette
    contact_sheet(
        {
            "image": list(images),
            "truth": [colour_mask(mask, palette) for mask in cached.masks[shown]],
            "prediction": [colour_mask(mask, palette) for mask in predictions],
        },
        out / "sheet.png",
        row_labels=[_row_label(rank, count, scores.per_image[index]) for rank, index in zip(ranks, shown, strict=True)],
        legend=dict(zip(description.classes, palette, strict=True)),
    )


def _row_label(rank: int, count: int, miou: float) -> str:
    place = "worst" if rank == 0 else "best" if rank == count - 1 else f"{rank + 1} of {count}"
    return f"{place}\nmIoU {miou:.3f}"
