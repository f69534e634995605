"""Choose the images to label next, and write lists that annotation tools import."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from segae._io import logger, write_atomically, write_json
from segae._settings import takes_settings_of
from segae.applications import collect_features, list_images, open_encoder, select_images
from segae.commands._data import picture_sheet, write_result, write_skipped
from segae.commands.evaluate import load_model, name_model
from segae.config import SuggestConfig
from segae.data import SkippedFiles, find_images, find_layouts, open_dataset, read_resized
from segae.errors import DataError
from segae.evaluation import predict_logits
from segae.models import Segmenter
from segae.training import choose_device, limit_threads, open_result_folder

_FILES = ("suggestions.csv", "files.txt", "label_studio.json", "sheet.png", "skipped.csv")


@takes_settings_of(SuggestConfig)
def suggest(config: SuggestConfig) -> pd.DataFrame:
    """Choose images to label next; all settings are those of ``segae.config.SuggestConfig``.

    Returns:
        A row per image, the best first: ``image``, its path, and with a model ``uncertainty``, the entropy of its
        pixels' class probabilities, mean, from 0 to 1. The folder ``out`` holds it as lists and pictures.

    Raises:
        SegaeError: no readable image, fewer images than asked for, or an argument that cannot be used.

    Example:
        >>> rows = suggest("photos", labeled="pets", count=20)  # doctest: +SKIP
    """
    with limit_threads(config.threads):
        model = None if config.model is None else load_model(config.model, config.device)
        device = choose_device(config.device) if model is None else next(model.parameters()).device
        encoder = open_encoder(config.encoder or ("imagenet" if model is None else model.encoder))
        known, left_out = _labeled(config.labeled)
        pool = [path for path in list_images(config.images) if os.path.realpath(path) not in left_out]
        if len(pool) < config.count:
            raise DataError(f"images must be at least count, {config.count}, without the labeled ones, got {len(pool)}")
        settings = {name: getattr(config, name) for name in ("count", "image_size", "seed")}
        settings |= {name: [*map(str, getattr(config, name))] for name in ("images", "labeled")}
        settings |= {"model": name_model(config.model) if model else "", "encoder": str(encoder.info.weights)}
        out = open_result_folder(Path(config.out), settings, task="suggest", files=_FILES, overwrite=config.overwrite)
        side = config.image_size or (model.info.image_size if model else None)
        skipped = SkippedFiles()
        how: Any = {"image_size": side, "batch_size": config.batch_size, "device": device, "skipped": skipped}
        found = collect_features(encoder, pool, **how)
        covered = collect_features(encoder, known, **how).values if known else None
        doubt = None if model is None else _uncertainty(model, found.names, config.batch_size)
        count = min(config.count, len(found))
        chosen = select_images(found.values, covered, count=count, uncertainty=doubt, seed=config.seed)
        rows = pd.DataFrame({"image": [found.names[place] for place in chosen]})
        if doubt is not None:
            rows["uncertainty"] = doubt[chosen].round(4)
        files = [os.path.realpath(name) for name in rows["image"]]
        tasks = [{"data": {"image": f"/data/local-files/?d={quote(file.lstrip(os.sep))}"}} for file in files]
        write_json(out / "label_studio.json", tasks)
        write_atomically(out / "files.txt", "\n".join([*files, ""]).encode("utf-8", "surrogateescape"))
        write_result(out / "suggestions.csv", rows)
        picture_sheet([*rows["image"]], out / "sheet.png")
        write_skipped(out, skipped)
        logger.info("chose %d of %d images; the lists are in %s", count, len(found), out)
        return rows


def _labeled(roots: Any) -> tuple[list[Path], set[str]]:
    """Images to learn from that are labeled, and the real paths of these and of test images."""
    known: list[Path] = []
    tested: list[Path] = []
    for root in map(Path, roots):
        if find_layouts(root):
            for split, pairs in open_dataset(root).splits.items():
                (tested if split == "test" else known).extend(pairs.images)
        else:
            known += find_images([root])
    return known, {os.path.realpath(path) for path in (*known, *tested)}


def _uncertainty(model: Segmenter, names: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """The entropy of the class probabilities, mean over pixels, as a share of the largest one, of each image."""
    means: list[float] = []
    for start in range(0, len(names), batch_size):
        read = [read_resized(Path(name), model.info.format) for name in names[start : start + batch_size]]
        for logits in predict_logits(model, np.stack(read), batch_size=batch_size):
            entropy = torch.special.entr(logits.softmax(dim=1)).sum(dim=1).mean(dim=(1, 2))
            means += (entropy / np.log(max(model.num_classes, 2))).tolist()
    return np.array(means, np.float32)
