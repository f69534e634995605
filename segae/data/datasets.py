"""Labeled data sets of any layout, with their classes and splits; Oxford-IIIT Pets from its site."""

from __future__ import annotations

import colorsys
import copy
import logging
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pooch

from segae._io import package_data
from segae._notebook import ShownInNotebooks, html_classes, list_names
from segae.data.cache import remember_facts
from segae.data.color_tables import ColorTable, parse_colors, read_class_table
from segae.data.dataset_folders import choose_layout
from segae.data.file_lists import Pair, PairList
from segae.data.folders import find_images, is_image, walk_folders
from segae.data.formats import color_labels, find_layouts, read_folder_samples, read_labels, voc_roots
from segae.data.found_labels import FoundLabels, Sample, to_pairs
from segae.data.huggingface import is_hub_address, local_folder
from segae.data.image_io import (
    IGNORE_INDEX,
    UnreadableImage,
    few,
    has_colors,
    image_size,
    read_mask,
    require_same_size,
    to_class_indices,
)
from segae.data.split_files import choose_by_hash, find_lists, read_list, read_lists
from segae.errors import DataError

logger = logging.getLogger("segae")

PETS_CLASSES = ("pet", "background", "border")
PETS_PALETTE = ((230, 85, 13), (49, 54, 80), (255, 221, 87))
_TRIMAP_VALUES = (1, 2, 3)
_PETS_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
_PETS_ARCHIVES = {
    "images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
    "annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
}

_MOST_VALUES = 64
_VALUES_REMEMBERED = 1024  # per mask; a photograph taken for a mask must not fill the index


@dataclass(frozen=True, repr=False)
class SegmentationDataset(ShownInNotebooks):
    """A labeled data set: where the files are, what the classes are called, which image is in which split.

    Attributes:
        name: short name of the data set, for tables.
        root: its folder.
        classes: names, in the order of the class indices.
        palette: one RGB color (0..255) per class.
        mask_values: the raw value in a mask file of each class, or a tuple of them; of class folders the names.
        ignore_values: the raw values in mask files that do not count; their pixels get the class index 255.
        splits: "train", "test" and, where the data set has one, "val": disjoint lists of pairs.
        missing: number of names that a split file lists and that are not on the disk.
        layout: what its folder looks like, a name in `formats.LAYOUTS`.
        converted: whether its mask files lie in the cache, made from colors or objects by the names of the classes.
        split_origin: in words, what divides its images into splits: files of the folder, or a hash of the names.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mask_values: tuple[Any, ...]
    splits: Mapping[str, PairList]
    missing: int = 0
    ignore_values: tuple[int, ...] = ()
    layout: str = "folder"
    converted: bool = False
    split_origin: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", {split: PairList.of(pairs) for split, pairs in self.splits.items()})

    @property
    def values_inferred(self) -> bool:
        """Whether only the masks say which of their values are classes, and which do not count."""
        return self.layout in ("folder", "split_folders") and not self.converted

    def _facts(self) -> dict[str, Any]:
        splits = ", ".join(f"{split} {len(pairs)}" for split, pairs in self.splits.items())
        facts = {"folder": self.root, "layout": self.layout, "images": splits, "classes": list_names(self.classes)}
        return facts | ({"values that do not count": few(self.ignore_values)} if self.ignore_values else {})

    def _pictures(self) -> dict[str, Any]:
        return {"classes": html_classes(self.classes, self.palette)}

    def replace(self, **changes: Any) -> SegmentationDataset:
        """Copy the data set with some attributes changed; the folder is not read again."""
        copied = copy.copy(self)  # keeps the class, which says the layout
        SegmentationDataset.__init__(copied, **{one.name: getattr(self, one.name) for one in fields(self)} | changes)
        return copied


class SegmentationFolder(SegmentationDataset):
    """A data set of ``images/`` and ``masks/``, or of such folders in ``train/``, ``val/`` and ``test/``.

    A mask has the name of its image, without extension, and maybe a suffix that all masks share; see `match_masks`.
    Images without a mask are left out with a warning.

    Class names come from the argument, else from ``classes.txt`` (one per line), classes.csv or classes.json, else they
    are ``class_<value>`` for each value found in the masks. With K names the values 0..K-1 are meant, unless exactly K
    other values are found (such as 0 and 255), which then count in ascending order. ``ignore_values`` do not count;
    None is 255 where the other values are 0 or 1 to the number of classes. With ``colors`` by class, or those of
    classes.csv or classes.json, the masks are read by their colors.

    The splits come from ``train.txt`` or ``trainval.txt``, ``val.txt`` and ``test.txt`` in the folder or in
    ``annotations/``: one name per line, with or without extension; what follows it is ignored. Where the list for
    training or for test is missing, that split is the rest; without both, folders train, val and test in images/ and
    masks/ decide, else a seeded hash of each name, with ``test_fraction`` for the test. Images of ``val.txt`` are in no
    other split; they are the test if nothing else is. DataError if a folder is wrong.
    """

    def __init__(
        self, root: Path, classes: Sequence[str] = (), test_fraction: float = 0.2, seed: int = 0,
        ignore_values: Sequence[int] | None = None, colors: ColorTable | None = None,
    ) -> None:  # fmt: skip
        samples = read_folder_samples(root)
        found = FoundLabels(samples, (), (), origin=f"folders {', '.join(samples)}")
        splits, origin = found.divide(root, test_fraction, seed)
        found.report(root, splits)
        listed, table = read_class_table(root)
        layout = "folder" if (root / "masks").is_dir() else "split_folders"
        if colors or table:
            coded = color_labels(found, root, colors or {}, table).reorder(classes, root)
            known: dict[str, Any] = {"palette": coded.palette, "mask_values": coded.values, "converted": True}
            known["split_origin"] = origin
            super().__init__(
                root.resolve().name, root, coded.classes, splits=_convert(coded, splits), layout=layout, **known
            )
            return
        pairs = _convert(found, splits)
        names, whole = tuple(classes) or listed, PairList(pair for part in pairs.values() for pair in part)
        values, ignored = infer_mask_values(root, names, values_in_masks(whole), ignore_values)
        classes = names or tuple(f"class_{value}" for value in values)
        palette, how = make_palette(len(values)), {"ignore_values": ignored, "layout": layout, "split_origin": origin}
        super().__init__(root.resolve().name, root, classes, palette, values, pairs, **how)  # type: ignore[arg-type]


class OxfordPets(SegmentationDataset):
    """The Oxford-IIIT Pet data set (Parkhi et al., CVPR 2012) in its official layout, whole or in part.

    ``root`` holds images/<name>.jpg, annotations/trimaps/<name>.png, annotations/trainval.txt and annotations/test.txt.
    Of a partial copy the listed files that are there are used; ``missing`` counts the others, with a warning. Images of
    a val.txt are the split "val" and not in "train". What is wrong with a folder is a DataError.
    """

    def __init__(self, root: Path) -> None:
        images, trimaps = root / "images", root / "annotations" / "trimaps"
        for part in (images, trimaps, trimaps.with_name("trainval.txt"), trimaps.with_name("test.txt")):
            if not part.exists():
                raise DataError(f"{root} is no Oxford-IIIT Pet data set: {part} is missing. Download it again.")
        listed, splits = read_lists(root), {}
        for split, names in listed.items():
            pairs = (Pair(name, images / f"{name}.jpg", trimaps / f"{name}.png") for name in names)
            splits[split] = PairList(pair for pair in pairs if pair.image.is_file() and pair.mask.is_file())
        count, there = sum(map(len, listed.values())), sum(map(len, splits.values()))
        if not there:
            raise DataError(f"{root} has none of its {count} listed images with a trimap. Download it again.")
        if there < count:
            logger.warning("%s: using %d of %d listed images, %d missing", root, there, count, count - there)
        name = root.resolve().name
        how = {"layout": "pets", "split_origin": few(str(one.relative_to(root)) for one in find_lists(root))}
        super().__init__(name, root, PETS_CLASSES, PETS_PALETTE, _TRIMAP_VALUES, splits, count - there, **how)  # type: ignore[arg-type]


class ClassFolders(SegmentationDataset):
    """Images in a folder for each class, for classification; the ``mask`` of a pair is its folder.

    ``root`` holds the class folders, of which a hash of the names sets a fifth of the images aside for the test; or
    train/ with class folders in it, and maybe val/ and test/ with some of the same. What is wrong is a DataError.
    """

    def __init__(self, root: Path) -> None:
        given = [split for split in ("train", "val", "test") if (root / split).is_dir()]
        splits = {split: _match_classes(root, root / split) for split in given} or {"train": _match_classes(root, root)}
        found = {split: {folder.name for folder in pairs.masks} for split, pairs in splits.items()}
        classes, pairs = tuple(sorted(found.get("train", ()))), splits.get("train", PairList())
        if len(classes) < 2 or set().union(*found.values()) > set(classes):
            what = "a folder of images for each of 2 or more classes, all of them in train/ if there is one"
            raise DataError(f"{root} must hold {what}, got {few(classes) or 'none'}")
        if not given:
            test = np.isin(pairs.names, list(choose_by_hash(pairs.names, 0.2, 0, "test")))
            splits = {"train": pairs.take(np.flatnonzero(~test)), "test": pairs.take(np.flatnonzero(test))}
        super().__init__(root.resolve().name, root, classes, make_palette(len(classes)), classes, splits)


def _match_classes(root: Path, place: Path) -> PairList:
    """The images in each folder at a place, named by their paths below ``root``."""
    folders = [one for one in sorted(place.iterdir()) if any(files for _, _, files in walk_folders(one))]
    found = ((path, folder) for folder in folders for path in find_images([folder]))
    return PairList(Pair(path.relative_to(root).as_posix(), path, folder) for path, folder in found)


def locate_dataset(root: str | Path, layout: str = "auto") -> tuple[Path, str]:
    """The folder of a data set and its layout; of Hugging Face rows the folder in the cache to which they are written.

    ``root`` is a folder or an address such as ``hf://owner/name``; see `local_folder`. DataError as in `choose_layout`.
    """
    folder = Path(str(root).partition("?")[0]) if not Path(root).exists() else Path(root)
    found = "huggingface" if is_hub_address(root) else choose_layout(folder, layout)
    return (local_folder(root), "folder") if found == "huggingface" else (folder, found)


def open_dataset(
    root: str | Path,
    *,
    classes: Sequence[str] = (),
    merge: Sequence[str] = (),
    ignore: Sequence[str | int] = (),
    layout: str = "auto",
    colors: Sequence[str] = (),
) -> SegmentationDataset:
    """Detect the format of a labeled data set and load its index; docs/data.md lists the layouts.

    Masks with one number per pixel are used where they lie; others are converted to such files in the cache, once.
    ``classes`` name those of masks without names, or order those that the data set names; left empty, its own order,
    or the masks decide. ``merge`` takes several as one; see `map_classes`. ``ignore`` are classes or mask values that
    do not count, such as ``["border"]`` or ``[255]``; empty is 255 where the masks have it beside the values of the
    classes, and ``["none"]`` counts that, too. ``layout`` says how to read a folder that looks like several layouts.
    ``colors`` are those of the classes in color masks, such as ``["pet=255,0,0", "sky=#0000ff"]``. ``root`` may be an
    address on the Hugging Face Hub, ``hf://owner/name``.

    An image is then ``open_dataset("pets").splits["test"][0].image``. DataError if the folder is missing or has no
    layout or several, its files are wrong, or a setting is.
    """
    folder, layout = locate_dataset(root, layout)
    table = parse_colors(colors)
    values, names = parse_ignore(ignore)
    if layout in ("folder", "split_folders"):
        dataset: SegmentationDataset = SegmentationFolder(folder, classes, ignore_values=values, colors=table)
    else:
        dataset = (
            _open_pets(folder, classes, table) if layout == "pets" else _open_found(folder, layout, classes, table)
        )
        coded = dict(zip(dataset.mask_values, dataset.classes, strict=True))
        names += [coded[value] for value in values or () if value in coded]
    return ignore_classes(map_classes(dataset, merge), names)


def _open_pets(root: Path, classes: Sequence[str], colors: ColorTable) -> OxfordPets:
    for name, given, expected in (("classes", classes, PETS_CLASSES), ("colors", colors, ())):
        if given and tuple(given) != expected:
            known = f"empty or {', '.join(expected)}" if expected else "empty"
            raise DataError(f"{name} must be {known} for {root}, got {', '.join(given)}")
    return OxfordPets(root)


def _open_found(root: Path, layout: str, classes: Sequence[str], colors: ColorTable) -> SegmentationDataset:
    """Open a data set of a layout that has a reader in `formats`."""
    found = read_labels(root, layout, classes, colors).reorder(classes, root)
    splits, origin = found.divide(root)
    found.report(root, splits)
    palette = found.palette or make_palette(len(found.classes))
    pairs, converted = _convert(found, splits), found.convert is not None
    parts = (found.classes, palette, found.values, pairs, found.missing, found.ignored, layout, converted, origin)
    return SegmentationDataset(root.resolve().name, root, *parts)


def _convert(found: FoundLabels, splits: Mapping[str, Sequence[Sample]]) -> dict[str, PairList]:
    """The pairs of each split, with masks that are files."""
    convert = found.convert or list
    masks = iter(convert([one.label for samples in splits.values() for one in samples]))
    return {split: to_pairs(samples, [next(masks) for _ in samples]) for split, samples in splits.items()}


def open_dataset_like(
    root: str | Path,
    *,
    classes: Sequence[str] = (),
    merge: Sequence[str] = (),
    model_classes: Sequence[str],
    model_mask_values: Sequence[int | Sequence[int]],
    model_merge: Sequence[str] = (),
    ignore: Sequence[str | int] = (),
    model_ignore: Sequence[str | int] = (),
    layout: str = "auto",
    colors: Sequence[str] = (),
    model_colors: Sequence[str] = (),
) -> SegmentationDataset:
    """Open a data set so that its classes are those of a trained model.

    Its mask values are read as the model's were: which value is which class is inferred where only names are given, so
    a data set that lacks a class might be read another way. Without ``merge`` that of the model is taken, if the data
    set needs it; without ``ignore`` that of the model; without ``colors`` the model's, if the masks have colors. The
    classes may be fewer than the model's if ``ignore`` names the others. The rest is as in `open_dataset`. DataError
    also if (merged) classes or values are not the model's.
    """
    if merge and model_merge and parse_merge(merge) != parse_merge(model_merge):
        raise DataError(f"merge must be empty or {list(model_merge)}, as the model was trained, got {list(merge)}")
    colors = colors or (model_colors if model_colors and _lacks_colors(root, layout) else ())
    how: dict[str, Any] = {"layout": layout, "colors": colors}
    dataset = open_dataset(root, classes=classes, merge=merge, ignore=ignore or model_ignore, **how)
    if model_merge and not merge and dataset.classes != tuple(model_classes):  # it may have the classes without it
        dataset = map_classes(dataset, model_merge)
    ignored = set(map(str, ignore)) - set(dataset.classes)
    left = [place for place, name in enumerate(model_classes) if name not in ignored]
    if dataset.classes != tuple(model_classes[place] for place in left):
        raise DataError(
            f"classes must be {', '.join(model_classes)}, as the model was trained, got "
            f"{', '.join(dataset.classes)} from {root}. If they mean the same, name the model's."
        )
    chosen = (model_mask_values[place] for place in left)
    model_values = tuple(value if isinstance(value, int) else tuple(value) for value in chosen)
    if model_values == dataset.mask_values or not dataset.values_inferred:
        return dataset
    found = set(values_in_masks(PairList(pair for split in dataset.splits.values() for pair in split)))
    found -= set(dataset.ignore_values)
    if found <= set(_flat(model_values)):
        return dataset.replace(mask_values=model_values)
    if found <= set(_flat(dataset.mask_values)):  # another coding of the same classes, such as 0 and 255 for 0 and 1
        return dataset
    raise DataError(
        f"The masks of {root} hold the values {few(sorted(found))}, and the model was trained with "
        f"{few(_flat(model_values))} for {', '.join(model_classes)}. Correct the masks."
    )


def _lacks_colors(root: str | Path, layout: str) -> bool:
    """Whether masks in a folder are stored as colors, and nothing there says of which classes."""
    folder, layout = locate_dataset(root, layout)
    if layout not in ("folder", "split_folders") or read_class_table(folder)[1]:
        return False
    masks = [one.label for samples in read_folder_samples(folder).values() for one in samples if one.label is not None]
    return any(remember_facts("has_colors", masks, has_colors, lambda _: False))


def map_classes(dataset: SegmentationDataset, merge: Sequence[str]) -> SegmentationDataset:
    """Take several classes as one: ``merge`` are texts such as ``foreground=pet+border``, none changes nothing.

    The new classes are in the order in which the first of their members comes; a merged one has the color of that
    member. DataError if a text or a class is wrong, a new name is that of a class which stays, or one class is left.
    """
    if not merge:
        return dataset
    new_name = {part: name for name, parts in parse_merge(merge).items() for part in parts}
    if unknown := [part for part in new_name if part not in dataset.classes]:
        raise DataError(f"merge must name classes of {dataset.root} ({', '.join(dataset.classes)}), got {few(unknown)}")
    members: dict[str, list[int]] = {}
    for index, name in enumerate(dataset.classes):
        if name in new_name.values() and name not in new_name:
            raise DataError(f"merge makes a class {name}, and {dataset.root} has one that stays; choose another name")
        members.setdefault(new_name.get(name, name), []).append(index)
    if len(members) < 2:
        raise DataError(f"merge must leave two or more classes, got one of {', '.join(dataset.classes)}")
    values = [tuple(_flat(dataset.mask_values[index] for index in indices)) for indices in members.values()]
    return dataset.replace(
        classes=tuple(members),
        palette=tuple(dataset.palette[indices[0]] for indices in members.values()),
        mask_values=tuple(value[0] if len(value) == 1 else value for value in values),
    )


def ignore_classes(dataset: SegmentationDataset, names: Sequence[str]) -> SegmentationDataset:
    """Take classes out of a data set: their pixels do not count. No names return the data set itself."""
    if not names:
        return dataset
    if unknown := [name for name in names if name not in dataset.classes]:
        allowed = f"numbers or classes of {dataset.root}, {', '.join(dataset.classes)}"
        raise DataError(f"ignore must be {allowed}, got {', '.join(unknown)}")
    kept = [place for place, name in enumerate(dataset.classes) if name not in names]
    if not kept:
        raise DataError(f"ignore must leave a class of {', '.join(dataset.classes)}, got {', '.join(names)}")
    gone = (value for name, value in zip(dataset.classes, dataset.mask_values, strict=True) if name in names)
    parts = (dataset.classes, dataset.palette, dataset.mask_values)
    classes, palette, values = (tuple(part[place] for place in kept) for part in parts)
    ignored = (*dataset.ignore_values, *_flat(gone))
    return dataset.replace(classes=classes, palette=palette, mask_values=values, ignore_values=ignored)


def parse_ignore(ignore: Sequence[str | int]) -> tuple[list[int] | None, list[str]]:
    """Sort what does not count into mask values and names of classes; the values are None where none are named.

    ``none`` means no value at all.
    """
    texts = [*map(str, ignore)]
    values = [int(text) for text in texts if text.isdecimal()]
    names = [text for text in texts if not text.isdecimal() and text != "none"]
    return (values if values or "none" in texts else None), names


def parse_merge(merge: Sequence[str]) -> dict[str, frozenset[str]]:
    """Read ``name=class+class`` texts as names and their classes; a wrong form or a repeated class is a DataError."""
    groups: dict[str, frozenset[str]] = {}
    seen: set[str] = set()
    for text in merge:
        name, _, listed = (part.strip() for part in text.partition("="))
        parts = [part.strip() for part in listed.split("+")]
        if not name or not all(parts):
            raise DataError(f"merge must be of the form foreground=pet+border, got {text!r}")
        if name in groups or len(parts) > len(set(parts)) or seen & set(parts):
            raise DataError(f"merge must name each class once, got {', '.join(merge)}")
        groups[name] = frozenset(parts)
        seen |= groups[name]
    return groups


def check_masks(dataset: SegmentationDataset) -> None:
    """Check before training what would fail or mislead at its end, in all splits; unreadable files are passed over.

    DataError if a mask has another size than its image or holds a value that is no class, or if all training masks
    together hold fewer than two classes.
    """
    for pairs in dataset.splits.values():
        sizes = [remember_facts("size", paths, image_size, lambda _: ()) for paths in (pairs.images, pairs.masks)]
        for pair, image, mask, counts in zip(pairs, *sizes, count_values(pairs.masks), strict=True):
            if image and mask:
                require_same_size(pair.image, image, pair.mask, mask)
            to_class_indices(np.array([[*counts]], np.int32), dataset.mask_values, pair.mask, dataset.ignore_values)
    found = values_in_masks(dataset.splits["train"])
    if found and sum(not set(_flat([value])).isdisjoint(found) for value in dataset.mask_values) < 2:
        raise DataError(f"The training masks of {dataset.root} hold one class only, value {few(found)}. Correct them.")


def download_pets(root: Path, *, base_url: str = _PETS_URL, archives: Mapping[str, str] = _PETS_ARCHIVES) -> Path:
    """Download the Oxford-IIIT Pet data set from its official site (about 810 MB), check it and unpack it.

    Returns ``root``. What was fetched before is not fetched again. ``archives`` are file names and checksums,
    ``md5:<hex>`` or ``sha256:<hex>``; they stay in ``root`` and may be deleted. DataError if there is no connection, a
    checksum is wrong, an archive is damaged, or the folder cannot be written to.
    """
    for name, checksum in archives.items():
        done = root / f".{name}.unpacked"
        if done.is_file() and done.read_text() == checksum:
            continue
        try:
            root.mkdir(parents=True, exist_ok=True)
            archive = pooch.retrieve(base_url + name, checksum, fname=name, path=root, progressbar=sys.stderr.isatty())
            with tarfile.open(archive) as tar:
                tar.extractall(root, filter="data")
            done.write_text(checksum)  # last: it says that every member is on the disk
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:  # pooch reports a checksum as ValueError
            advice = "Check the connection and the free space and try again, or put the data set there by other means."
            raise DataError(f"{base_url}{name} could not be downloaded to {root}: {error}. {advice}") from error
    return root


def drawn_pets() -> Path:
    """Folder of the drawn pets that come with segae: a small data set in the Oxford-IIIT Pet layout."""
    return package_data("drawn-pets")


def make_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Make RGB colors (0..255) that are easy to tell apart: a dark first class, then hues a golden angle apart."""
    colors = [(49, 54, 80)]
    for index in range(classes - 1):
        rgb = colorsys.hsv_to_rgb((0.05 + 0.618034 * index) % 1, 0.85 - 0.25 * (index % 2), 0.95)
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return tuple(colors[:classes])


def values_in_masks(pairs: Sequence[Pair]) -> tuple[int, ...]:
    """All values in all masks, ascending. Unreadable masks are passed over."""
    return tuple(sorted({value for counts in count_values(PairList.of(pairs).masks) for value in counts}))


def count_values(
    masks: Sequence[Path], note: Callable[[Path, DataError], object] | None = None
) -> Iterator[dict[int, int]]:
    """Count the pixels of each value in each mask; of a mask that cannot be read there are none.

    ``note`` is called with each file that has no values and the error. Without it a file that is a picture, not a mask,
    is a DataError.
    """

    def count(path: Path) -> list[list[int]]:
        try:
            values, counts = np.unique(read_mask(path), return_counts=True)
        except DataError as error:
            if note is None or isinstance(error, UnreadableImage):
                raise
            raise UnreadableImage(path, "it is no class mask") from error
        return [part[:_VALUES_REMEMBERED].tolist() for part in (values, counts)]

    def skip(error: UnreadableImage) -> tuple[tuple[int, ...], ...]:
        if note is not None:
            note(error.path, error.__cause__ if isinstance(error.__cause__, DataError) else error)
        return (), ()

    for values, counts in remember_facts("mask_counts", masks, count, skip):
        yield dict(zip(values, counts, strict=True))


def held_out_images(root: Path) -> list[Path]:
    """Every image that a folder keeps for testing, whether or not its mask is there; none if it is no data set."""
    found: list[Path] = []
    layouts = find_layouts(root)
    for layout in layouts:
        if layout in ("folder", "split_folders"):
            found += FoundLabels(read_folder_samples(root), (), ()).held_out(root)
        elif layout == "voc":
            found += [image for base in voc_roots(root) for image in read_labels(base, layout).held_out(base)]
        elif layout not in ("pets", "huggingface"):  # rows of the latter are no files
            found += read_labels(root, layout).held_out(root)
    if not layouts and (root / "train").is_dir():  # class folders
        walked = walk_folders(root / "test")
        found += [path for folder, _, files in walked for path in (folder / name for name in files) if is_image(path)]
    elif not layouts or "pets" in layouts:
        images = (root / "images" / f"{name}.jpg" for name in read_list(root, "test"))
        found += [image for image in images if image.is_file()]
    return found


def infer_mask_values(
    root: Path, names: tuple[str, ...], found: tuple[int, ...], ignore: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The value of each class, and the values that do not count, of the values in an images/ + masks/ folder."""
    if len(set(names)) < len(names):
        raise DataError(f"classes must be different names, got {', '.join(names)}")
    others = tuple(value for value in found if value != IGNORE_INDEX)
    if ignore is None and len(others) > 1 and others != found:  # two values, such as 0 and 255, are two classes
        if names and len(found) == len(names) and others[-1] < len(names):
            readings = f"{names[-1]}, or pixels that do not count"
            raise DataError(
                f"{root / 'masks'} holds {few(found)} for {len(names)} classes: {IGNORE_INDEX} may be {readings}. Set "
                f"ignore to none or to {IGNORE_INDEX}."
            )
        if others[-1] < len(names) if names else others in {tuple(range(one, one + len(others))) for one in (0, 1)}:
            logger.info("%s: pixels of value %d do not count; ignore none counts them", root, IGNORE_INDEX)
            ignore = [IGNORE_INDEX]
    ignored = tuple(ignore or ())
    found = tuple(value for value in found if value not in ignored)
    if names:
        expected = tuple(range(len(names)))
        return found if len(found) == len(names) and found != expected else expected, ignored
    if len(found) > _MOST_VALUES:
        raise DataError(
            f"{root / 'masks'} holds more than {_MOST_VALUES} values ({few(found)}), as photographs and JPEG files do. "
            "Convert the masks to PNG with one number per class, or name all classes in classes.txt."
        )
    if not found:
        raise DataError(f"None of the masks in {root / 'masks'} can be read. Replace them by index masks.")
    return found, ignored


def _flat(mask_values: Iterable[int | Sequence[int]]) -> list[int]:
    return [value for values in mask_values for value in ([values] if isinstance(values, int) else values)]
