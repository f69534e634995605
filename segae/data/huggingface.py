"""Hugging Face data sets of images and masks, on the Hub or in a folder: their rows become files, once."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module  # of the extra, when it is needed: datasets alone takes a second
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from segae._io import cache_dir, require_package
from segae.data.cache import content_hashes
from segae.data.folders import SPLIT_FOLDERS
from segae.errors import DataError

_FORMAT = 1  # to be raised whenever the same rows would give other files
_SETTINGS = ("column", "mask", "config", "revision")
_IMAGE = re.compile(r"Image\(|Value\(.*binary|\{'(bytes|path)'")  # type of a column, as text
_MASK = re.compile(r"mask|label|annotation|target|seg", re.IGNORECASE)


def is_huggingface(root: Path) -> bool:
    """Whether a folder holds parquet files, in it or in data/, or what save_to_disk of `datasets` wrote."""
    saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or bool(_parquet_files(root))


def _parquet_files(root: Path) -> list[Path]:
    return sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])


def is_hub_address(root: str | Path) -> bool:
    """Whether a data set is named by an address such as hf://owner/name; a Path of it has lost a slash."""
    return re.match(r"hf:/", str(root)) is not None


def local_folder(root: str | Path) -> Path:
    """The folder of a data set as files: of Hugging Face rows one in the cache with images/, masks/ and lists.

    A ``root`` is a folder, or an address such as ``hf://owner/name?column=picture&mask=labels``; the part after ? names
    the columns, the config or the revision, and may follow a folder of rows, too. Other folders are returned as they
    are. Rows are written once for each content. DataError if the rows have not one image and one mask column.
    """
    text = re.sub(r"^hf:/+", "hf://", str(root))
    place, _, query = text.partition("?")
    if not is_hub_address(text) and not (Path(place).is_dir() and is_huggingface(Path(place))):
        return Path(root)
    settings = dict(parse_qsl(query))
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise DataError(f"the settings of {place} must be among {', '.join(_SETTINGS)}, got {unknown[0]}")
    require_package("datasets", "streaming")
    if is_hub_address(text):
        splits = _load(text, settings)
        content = [getattr(rows, "_fingerprint", "") for rows in splits.values()]
    else:
        files = [path for path in sorted(Path(place).rglob("*")) if path.suffix in (".parquet", ".arrow", ".json")]
        splits, content = (
            {},
            [str(path.relative_to(place)) + one for path, one in zip(files, content_hashes(files), strict=True)],
        )
    key = hashlib.blake2b(json.dumps([_FORMAT, sorted(settings.items()), content]).encode(), digest_size=8).hexdigest()
    folder = cache_dir() / "datasets" / key / Path(place).resolve().name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent.with_suffix(".lock")):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(dir=folder.parent))
            try:
                _write(partial, splits or _load(place, settings), settings, place)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _load(place: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """The rows of each split."""
    library = import_module("datasets")
    try:
        if is_hub_address(place):
            name = place.partition("?")[0].removeprefix("hf://")
            found = library.load_dataset(name, settings.get("config"), revision=settings.get("revision"))
        elif files := _parquet_files(Path(place)):
            found = library.load_dataset(
                "parquet", data_files=_by_split(files), cache_dir=str(cache_dir() / "huggingface")
            )
        else:
            found = library.load_from_disk(place)
    except Exception as error:  # of any type; all say that there is no such thing to read
        raise DataError(f"{place} cannot be opened: {str(error).strip() or type(error).__name__}") from error
    return dict(found) if isinstance(found, Mapping) else {"train": found}


def _by_split(files: list[Path]) -> dict[str, list[str]]:
    """Parquet files by the split in their names, such as train-00000-of-00001.parquet; of no split: train."""
    splits: dict[str, list[str]] = {}
    for path in files:
        word = re.split(r"[-_.]", path.name.lower())[0]
        splits.setdefault(SPLIT_FOLDERS.get(word, "train"), []).append(os.fspath(path))
    return splits


def _write(folder: Path, splits: Mapping[str, Any], settings: Mapping[str, str], place: str) -> None:
    """Write the rows as images/, masks/ and a list for each split."""
    library = import_module("datasets")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    with tqdm(total=sum(map(len, splits.values())), desc="Writing rows", leave=False, disable=None) as bar:
        for split, rows in splits.items():
            columns = choose_columns(place, rows.features, settings, labeled=True)
            cells = rows.select_columns(columns)
            for column in columns:
                cells = cells.cast_column(column, library.Image(decode=False))
            names = []
            for number, row in enumerate(cells):
                name = f"{split}-{number:06d}"
                for part, column in zip(("images", "masks"), columns, strict=True):
                    content, ending = _content(row[column], f"{place}, row {number} of {split}, {column}")
                    (folder / part / f"{name}{ending}").write_bytes(content)
                names.append(name)
                bar.update()
            listed = SPLIT_FOLDERS.get(split, split)
            with (folder / f"{listed}.txt").open("a") as file:
                file.writelines(f"{name}\n" for name in names)
    known = {SPLIT_FOLDERS.get(split, "") for split in splits}
    if known == {"train"}:  # then segae divides them
        (folder / "train.txt").unlink()
    source = Path(place)
    for name in ("classes.txt", "classes.csv", "classes.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)


def choose_columns(place: str, features: Mapping[str, Any], settings: Mapping[str, str], *, labeled: bool) -> list[str]:
    """The column of images and, where ``labeled``, that of masks: as ``settings`` name them, else the only ones.

    A column of images is one by its type in ``features``, which is None where it is not known; one of masks is called
    like a mask. DataError if a column is not there or there are several.
    """
    images = [name for name, kind in features.items() if kind is None or _IMAGE.match(str(kind))]
    column, mask, known = settings.get("column"), settings.get("mask"), ", ".join(images) or "none"
    masks = [name for name in images if name == mask or (mask is None and name != column and _MASK.search(name))]
    if labeled and len(masks) != 1:
        raise DataError(f"mask must be one of {known}, got {mask}: {place}?column=...&mask=...")
    chosen = [name for name in images if column in (None, name) and not (labeled and name in masks)]
    if len(chosen) != 1:
        raise DataError(f"column must be one of {known}, got {column}: {place}?column=...")
    return chosen + (masks if labeled else [])


def _content(cell: Any, where: str) -> tuple[bytes, str]:
    """The bytes of an image as they are stored, and the extension of their format."""
    content, path = ((cell or {}).get(key) for key in ("bytes", "path"))
    downloads = Path(import_module("datasets").config.HF_CACHE_HOME).resolve()
    if not content and path and Path(path).resolve().is_relative_to(downloads):  # a row might name any file
        content = Path(path).read_bytes()
    if not content:
        raise DataError(f"{where} must have an image, got none")
    try:
        with Image.open(BytesIO(content)) as image:
            return content, f".{(image.format or 'png').lower()}"
    except OSError as error:
        raise DataError(f"{where} must have an image, got {len(content)} bytes of another kind") from error
