"""Check a folder before training, or download a data set; nothing else downloads one."""

import os
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from segae import data
from segae._io import logger, write_json
from segae._settings import takes_settings_of
from segae.commands._data import picture_sheet
from segae.config import CheckDataConfig, DownloadConfig
from segae.data import DataReport, download_fashion_mnist, download_pets, find_layouts, open_dataset
from segae.data.folders import walk_folders
from segae.data.report import UNKNOWN, UNLABELED
from segae.errors import DataError
from segae.evaluation import contact_sheet, overlay
from segae.evaluation.plots import colorize
from segae.training import open_result_folder

_FILES = ("report.json", "sheet.png")
_SHEET_ROWS = 6
_PICTURES = 24  # of a sheet without masks
_DATASETS = 3  # that are named to be checked
_SIDE = 320  # pixels of the longer side of a picture in the sheet


@takes_settings_of(CheckDataConfig)
def check_data(config: CheckDataConfig) -> DataReport:
    """Look at a folder before training; all settings are those of ``segae.config.CheckDataConfig``.

    Problems do not end it: they are ``problems`` of the report, and ``accepted`` says whether a training would run.

    Raises:
        SegaeError: the folder is missing or holds no image, or a file cannot be written.

    Example:
        >>> report = check_data("pets")  # doctest: +SKIP
    """
    report = data.check_folder(Path(config.data), **config.reading)
    report = replace(report, commands=tuple(_next_commands(config, report)))
    if config.out is not None:
        out = open_result_folder(Path(config.out), vars(config), task="data check", files=_FILES, overwrite=True)
        write_json(out / "report.json", report.as_json())
        _draw(report, out / "sheet.png")
    logger.info("%s", report)
    return report


def _next_commands(config: CheckDataConfig, report: DataReport) -> Iterator[str]:
    """What to type next: the training, or the check again where a training would refuse the folder."""
    root = os.fspath(config.data)
    if report.layout == UNLABELED:
        for one in report.datasets[:_DATASETS]:
            yield shlex.join(["segae", "data", "check", os.fspath(one)])
        yield shlex.join(["segae", "pretrain", root])
        folders = [
            one for one in Path(root).iterdir() if one.is_dir() and any(files for *_, files in walk_folders(one))
        ]
        if len(folders) > 1 and not report.datasets:
            yield f"{shlex.join(['segae', 'finetune', root])} --task classify  # if each folder is a class"
        return
    given = {name: [value] if isinstance(value, str) else [*value] for name, value in config.reading.items()}
    if report.dataset is not None and report.dataset.values_inferred and report.ignored and not given["ignore"]:
        given["ignore"] = [*map(str, report.dataset.ignore_values)]
    layouts = find_layouts(Path(root)) if report.layout == UNKNOWN else [given.pop("layout")[0]]
    flags = [word for name, values in given.items() if values not in ([], ["auto"]) for word in (f"--{name}", *values)]
    balance = ["--balance-classes"] if report.unbalanced and report.accepted else []  # which the check does not have
    verb = ["finetune"] if report.accepted else ["data", "check"]
    for layout in layouts:
        chosen = [] if layout == "auto" else ["--layout", layout]
        yield shlex.join(["segae", *verb, root, *balance, *flags, *chosen])


def _draw(report: DataReport, path: Path) -> None:
    """Draw some images, with their masks where they have classes."""
    dataset = report.dataset
    if dataset is None:
        lost, images = {report.root / name for name in report.unreadable["file"]}, data.find_images([report.root])
        if readable := [image for image in images if image not in lost]:
            picture_sheet(readable[:: -(-len(readable) // _PICTURES)], path)
        return
    pairs = next(filter(None, (dataset.splits.get(split) for split in ("train", "val", "test"))), data.PairList())
    columns: dict[str, list[np.ndarray]] = {"image": [], "mask": [], "overlay": []}
    names: list[str] = []
    for pair in pairs[:: max(1, len(pairs) // _SHEET_ROWS)]:
        try:
            image, values = data.read_picture(pair.image), data.read_mask(pair.mask)
            mask = data.to_class_indices(values, dataset.mask_values, pair.mask, dataset.ignore_values)
        except DataError:  # which the report names
            continue
        if image.shape[:2] == mask.shape and len(names) < _SHEET_ROWS:
            scale = min(1.0, _SIDE / max(mask.shape))
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            painted, blended = colorize(mask, dataset.palette), overlay(image, mask, dataset.palette)
            for part, picture in zip(columns.values(), (image, painted, blended), strict=True):
                part.append(picture)
            names.append(textwrap.fill(pair.name[-36:], 12))
    if names:
        legend = dict(zip(dataset.classes, dataset.palette, strict=True))
        legend |= {"does not count": (255, 255, 255)} if dataset.ignore_values else {}
        contact_sheet(columns, path, row_labels=names, legend=legend)


@takes_settings_of(DownloadConfig)
def download(config: DownloadConfig) -> Path:
    """Download and unpack a data set and return its folder; what is there already is not downloaded again.

    Raises:
        SegaeError: no connection, a wrong checksum, or a full disk. Archives that arrived whole are kept.

    Example:
        >>> pets = download("pets", root="data/pets")  # doctest: +SKIP
    """
    root = Path(config.root or f"data/{config.name}")
    if config.name == "fashion_mnist":
        folder = download_fashion_mnist(root)
        logger.info("%s: 60,000 images in train, 10,000 in test, a folder per class", folder)
        return folder
    folder = download_pets(root)
    splits = open_dataset(folder).splits
    logger.info("%s: %s", folder, ", ".join(f"{len(pairs)} {split} images" for split, pairs in splits.items()))
    return folder
