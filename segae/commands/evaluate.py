"""Score a trained segmenter or classifier on a split of a labeled data set."""

import hashlib
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segae import data, evaluation
from segae._io import logger, write_atomically, write_json
from segae._settings import takes_settings_of
from segae.commands._data import write_skipped
from segae.config import EvaluateConfig
from segae.errors import CheckpointError, DataError
from segae.evaluation import ClassificationScores, SegmentationScores, confusion_figure, segmentation_sheet
from segae.models import Classifier, Segmenter, fingerprint, load
from segae.training import choose_device, limit_threads, open_result_folder, provenance

_FILES = ("metrics.json", "per_image.csv", "confusion.csv", "confusion.png", "sheet.png", "skipped.csv")
_SHEET_ROWS = 8  # at most: evenly spaced ranks from the worst image to the best


@takes_settings_of(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> SegmentationScores | ClassificationScores:
    """Score a segmenter or classifier, a file or one in memory; all settings are those of ``EvaluateConfig``.

    Results of a model file are written beside it unless ``out`` names a folder; those of a model in memory only if it
    does. Returns ``SegmentationScores`` or ``ClassificationScores``.

    Raises:
        SegaeError: an unknown or empty split, classes that are not the model's, no readable image, or a bad model file.

    Example:
        >>> scores = evaluate("runs/finetune/model.safetensors", "pets", split="test")  # doctest: +SKIP
    """
    with limit_threads(config.threads):
        model = load_model(config.model, config.device, Segmenter | Classifier)
        info, classify = model.info, isinstance(model, Classifier)
        dataset: Any
        if classify:
            dataset = data.ClassFolders(Path(config.data))
        else:
            known = {"model_classes": info.classes, "model_mask_values": info.mask_values}
            known |= {f"model_{name}": info.training.get(name, ()) for name in ("merge", "ignore", "colors")}
            dataset = data.open_dataset_like(os.fspath(config.data), **known, **config.reading)
        if classify and (dataset.classes != info.classes or config.resolution != "model"):
            raise DataError(f"data must have the classes {info.classes} at resolution model, got {dataset.classes}")
        if not (pairs := dataset.splits.get(config.split)):
            sizes = ", ".join(f"{name} ({len(members)} images)" for name, members in dataset.splits.items())
            raise DataError(f"split must be one with images, of {dataset.root} {sizes}, got {config.split!r}")
        out = _open_folder(config, model, dataset)
        skipped = data.SkippedFiles()
        coding: dict[str, Any] = {"mask_values": dataset.mask_values, "ignore_values": dataset.ignore_values}
        cached = data.cache_pairs(pairs, info.format, skipped=skipped, **coding)
        score: Any = evaluation.evaluate_classifier if classify else evaluation.evaluate_model
        masks: Any = cached.masks
        if config.resolution == "original":
            files = (pair.mask for pair in cached.pairs)
            masks = (data.to_class_indices(data.read_mask(file), path=file, **coding) for file in files)
            score = evaluation.evaluate_at_mask_size
        score = score if classify else partial(score, classes=dataset.classes)
        names = [pair.name for pair in cached.pairs]
        scores: Any = score(model, cached.images, masks, names=names, batch_size=config.batch_size)
        if out is not None:
            _write_numbers(config, out, scores, model, dataset)
            _write_pictures(out, scores, model, cached)
            write_skipped(out, skipped)
            logger.info("wrote %s", out / "metrics.json")
    size = "x".join(map(str, cached.images.shape[1:3])) + " px"
    at = "the size of the masks" if config.resolution == "original" else size
    logger.info("%d images of the split %s, scored at %s", len(cached.pairs), config.split, at)
    rows = {name.replace("_", " "): value for name, value in scores.as_row().items()}
    width = max(map(len, rows))
    logger.info("%s", "\n".join(f"{name:<{width}}  {value:.3f}" for name, value in rows.items()))
    return scores


def load_model(model: Any, device: str, kinds: Any = Segmenter) -> Any:
    """A model on its device: a file on the chosen one, a model in memory where it is, unless one is named."""
    if isinstance(model, kinds) and device == "auto":
        return model
    if str(model).endswith(".onnx"):
        raise CheckpointError(f"model must be a .safetensors file, got {model}, which segae predict alone takes")
    found = load(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(found, kinds):
        allowed = " or ".join(kind.__name__.lower() for kind in getattr(kinds, "__args__", (kinds,)))
        other = type(found).__name__.lower()
        raise CheckpointError(f"model must be a {allowed}, got {model}, which is of kind {other}")
    return found.to(choose_device(device))


def name_model(model: Any) -> str:
    """The path of a model, or a text that identifies a model in memory by its weights."""
    return f"weights {fingerprint(model.state_dict())}" if hasattr(model, "state_dict") else os.fspath(model)


def _open_folder(config: EvaluateConfig, model: Any, dataset: data.SegmentationDataset) -> Path | None:
    if config.out is None and hasattr(config.model, "state_dict"):
        return None
    parts = ["evaluate", config.split]
    parts += [config.resolution] if config.resolution != "model" else []
    parts += [dataset.name] if dataset.name != model.info.training.get("dataset", dataset.name) else []
    out = Path(config.out) if config.out is not None else Path(config.model).parent / "-".join(parts)
    settings = {name: getattr(config, name) for name in ("data", "split", "resolution")} | config.reading
    settings["model"] = name_model(config.model)
    return open_result_folder(out, settings, task="evaluate", files=_FILES, overwrite=config.overwrite)


def _write_numbers(
    config: EvaluateConfig, out: Path, scores: Any, model: Any, dataset: data.SegmentationDataset
) -> None:
    info, in_memory = model.info, hasattr(config.model, "state_dict")
    names = list(scores.per_image["name"])
    content = {
        # JSON has no NaN: the score of a class that is nowhere is null
        **{name: None if math.isnan(value) else value for name, value in scores.as_row().items()},
        **{"classes": scores.classes, "confusion": scores.confusion.tolist()},
        **{"dataset": dataset.name, "split": config.split, "resolution": config.resolution},
        **{"images": len(names), "split_hash": data.split_hash(names)},
        "model": name_model(config.model),
        "model_sha256": "" if in_memory else hashlib.sha256(Path(config.model).read_bytes()).hexdigest(),
        **{"encoder": info.encoder.architecture, "image_size": info.image_size},
        "decoder": getattr(info, "decoder", ""),
        "training": info.training,
        **provenance(next(model.parameters()).device),
    }
    write_json(out / "metrics.json", content)
    confusion = pd.DataFrame(scores.confusion, scores.classes, scores.classes).rename_axis("truth")
    per_image = scores.per_image.to_csv(index=False)
    for name, text in {"per_image.csv": per_image, "confusion.csv": confusion.to_csv()}.items():
        write_atomically(out / name, text.encode("utf-8", "backslashreplace"))


def _write_pictures(out: Path, scores: Any, model: Any, cached: data.CachedPairs) -> None:
    confusion_figure(scores.confusion, scores.classes, out / "confusion.png")
    if isinstance(model, Classifier):
        return
    miou = scores.per_image["miou"].to_numpy()
    ranks = np.unique(np.linspace(0, len(miou) - 1, min(_SHEET_ROWS, len(miou))).round().astype(int))
    shown = np.argsort(miou, kind="stable")[ranks]
    ends = {0: "worst", len(miou) - 1: "best"}
    places = [ends.get(rank, f"{rank + 1} of {len(miou)}") for rank in ranks]
    labels = [f"{place}\nmIoU {value:.3f}" for place, value in zip(places, miou[shown], strict=True)]
    indices = np.full(256, data.IGNORE_INDEX, np.uint8)  # of the scored classes among those of the model
    indices[: len(scores.classes)] = [model.info.classes.index(name) for name in scores.classes]
    images, truths = list(cached.images[shown]), list(indices[cached.masks[shown]])
    masks = list(evaluation.predict_masks(model, cached.images[shown]))
    look: dict[str, Any] = {"classes": model.info.classes, "palette": model.info.palette, "row_labels": labels}
    segmentation_sheet(images, truths, masks, out / "sheet.png", **look)
