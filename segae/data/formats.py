"""The layouts of labeled data sets: how each is recognized, and readers of those whose masks are files.

A reader finds images, masks and classes and reads no pixels. What it finds becomes a data set in `datasets`.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from segae.data.annotations import index_colors
from segae.data.cache import remember_facts
from segae.data.color_tables import ColorTable, find_class_table, read_class_table, read_labelmap, voc_color
from segae.data.file_lists import PathList
from segae.data.folders import BRUSH_MASK, SPLIT_FOLDERS, images_by_name, match_masks
from segae.data.found_labels import ALL, FoundLabels, Sample
from segae.data.huggingface import is_huggingface
from segae.data.image_io import few, has_colors, values_in
from segae.data.object_formats import is_coco, is_label_studio, is_yolo, read_coco, read_label_studio, read_yolo
from segae.data.split_files import find_lists, read_list, read_lists
from segae.errors import DataError
from segae.image_format import IGNORE_INDEX

logger = logging.getLogger("segae")

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CITYSCAPES_IDS = {  # of cityscapesScripts, helpers/labels.py: name, id and color of each of the 19 train ids
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
_CITYSCAPES_VOID = tuple(value for value in range(34) if value not in {one for one, _ in CITYSCAPES_IDS.values()})


@dataclass(frozen=True)
class Layout:
    """A layout: what a folder of it holds, whether a folder looks like it, and its reader, if `datasets` has none.

    A reader takes the folder, class names and a color table, of which the last two may be empty.
    """

    about: str
    recognize: Callable[[Path], bool]
    read: Callable[[Path, Sequence[str], ColorTable], FoundLabels] | None = None


def find_layouts(root: Path) -> list[str]:
    """The names of the layouts that a folder looks like; of a file none."""
    return [name for name, layout in LAYOUTS.items() if layout.recognize(root)] if root.is_dir() else []


def read_labels(root: Path, layout: str, classes: Sequence[str] = (), colors: ColorTable | None = None) -> FoundLabels:
    """Find the images, masks and classes of a folder of this layout; DataError if something is wrong with it."""
    read = LAYOUTS[layout].read
    if read is None:
        raise DataError(f"layout must be one with a reader, got {layout}")
    return read(root, classes, colors or {})


def read_folder_samples(root: Path) -> dict[str, list[Sample]]:
    """Images and masks of images/ + masks/, undivided, or of such folders in train/, val/ and test/."""
    if not (parts := _split_parts(root) if root.is_dir() else []):
        return {ALL: [Sample(name, *files) for name, files in match_masks(root / "images", root / "masks").items()]}
    splits: dict[str, list[Sample]] = {}
    for part in parts:
        if (part / "masks").is_dir():
            found = match_masks(part / "images", part / "masks")
        else:
            images = images_by_name(part / "images")
            found = {name: (part / "images" / file, None) for name, file in images.items()}
        samples = [Sample(name, *files) for name, files in found.items()]
        splits.setdefault(SPLIT_FOLDERS[part.name.lower()], []).extend(samples)
    return splits


def _split_parts(root: Path) -> list[Path]:
    """The folders train, val and test with images/ in them, where the one for training also has masks/."""
    if (root / "masks").is_dir():
        return []
    children = sorted(child for child in root.iterdir() if child.name.lower() in SPLIT_FOLDERS)
    parts = [child for child in children if (child / "images").is_dir()]
    training = (part for part in parts if SPLIT_FOLDERS[part.name.lower()] == "train")
    return parts if any((part / "masks").is_dir() for part in training) else []


def _is_folder(root: Path) -> bool:
    masks = root / "masks"
    return masks.is_dir() and not any(BRUSH_MASK.fullmatch(path.name) for path in masks.iterdir())


def _is_pets(root: Path) -> bool:
    lists = (root / "annotations" / f"{name}.txt" for name in ("list", "trainval", "test"))
    return (root / "annotations" / "trimaps").is_dir() or (
        not (root / "masks").is_dir() and any(path.exists() for path in lists)
    )


def voc_roots(root: Path) -> list[Path]:
    """The folder itself, or those of the years in it or in its VOCdevkit."""
    found = [root, *(child for top in (root, root / "VOCdevkit") if top.is_dir() for child in sorted(top.glob("VOC*")))]
    return [one for one in found if (one / "SegmentationClass").is_dir() and not (one / "labelmap.txt").is_file()]


def _read_voc(root: Path, classes: Sequence[str], colors: ColorTable) -> FoundLabels:
    roots = voc_roots(root)
    if len(roots) > 1:
        raise DataError(f"{root} holds several PASCAL VOC data sets: {few(roots)}. Name one of them.")
    base = roots[0]
    splits, origin = _listed_samples(base, base / "JPEGImages")
    listed, table = read_class_table(base)
    names = tuple(colors or classes or listed or VOC_CLASSES)
    masks = PathList(one.label for samples in splits.values() for one in samples if one.label is not None)
    palette = tuple((colors or table).values()) or tuple(map(voc_color, range(len(names))))
    found = FoundLabels(splits, names, tuple(range(len(names))), (IGNORE_INDEX,), palette, origin=origin)
    if colors or table or any(remember_facts("has_colors", masks, has_colors, lambda _: False)):
        coded = {**dict(zip(names, palette, strict=True)), "void": voc_color(IGNORE_INDEX)}
        return _with_colors(found, coded, _advise_colors(base, colors, table))
    return found


def _read_cvat(root: Path, classes: Sequence[str], colors: ColorTable) -> FoundLabels:  # noqa: ARG001
    _refuse_colors(colors, "labelmap.txt")
    table = read_labelmap(root / "labelmap.txt")
    images = next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), None)
    if images is None:
        raise DataError(f"{root} has no images, as a CVAT export without them. Put them into {root / 'JPEGImages'}.")
    splits, origin = _listed_samples(root, images)
    found = FoundLabels(splits, tuple(table), tuple(range(len(table))), (), tuple(table.values()), origin=origin)
    return _with_colors(found, table, f"give the color to a class in {root / 'labelmap.txt'}")


def color_labels(found: FoundLabels, root: Path, colors: ColorTable, table: ColorTable) -> FoundLabels:
    """Let masks be read by the colors of classes: those that were given, else those of the table of the folder."""
    coded = colors or table
    found = replace(found, classes=tuple(coded), values=tuple(range(len(coded))), palette=tuple(coded.values()))
    return _with_colors(found, coded, _advise_colors(root, colors, table))


def _advise_colors(root: Path, colors: ColorTable, table: ColorTable) -> str:
    """Where to give a color to a class."""
    if colors or table:
        return f"give the color to a class in {'colors' if colors else find_class_table(root)}"
    where = f"in {root / 'labelmap.txt'} or {root / 'classes.csv'}"
    return f"name the classes with their colors {where}; without, {root} is read as voc, with the colors of PASCAL VOC"


def _with_colors(found: FoundLabels, table: ColorTable, advice: str) -> FoundLabels:
    """Let masks be read by their colors; a color of no class in ``found`` does not count."""
    values = dict(zip(found.classes, found.values, strict=True))
    codes = {color: values.get(name, IGNORE_INDEX) for name, color in table.items()}
    convert = partial(index_colors, colors=codes, names={color: name for name, color in table.items()}, advice=advice)
    return replace(found, convert=convert)


def _listed_samples(root: Path, images: Path) -> tuple[dict[str, list[Sample]], str]:
    """Images with their masks in SegmentationClass/, divided as the files in ImageSets/Segmentation say, and which."""
    masks, lists = root / "SegmentationClass", root / "ImageSets" / "Segmentation"
    named, labels = images_by_name(images), images_by_name(masks)
    if orphans := [labels[name] for name in sorted(labels.keys() - named.keys())]:
        raise DataError(f"{masks} has masks without an image: {few(orphans)}. Add the images or remove them.")
    listed = read_lists(lists, named) or {ALL: read_list(lists, "default", named) or sorted(labels)}
    samples = {
        split: [Sample(name, images / named[name], masks / labels[name] if name in labels else None) for name in names]
        for split, names in listed.items()
    }
    return samples, ", ".join(str(file.relative_to(root)) for file in find_lists(lists))


def _read_cityscapes(root: Path, classes: Sequence[str], colors: ColorTable) -> FoundLabels:  # noqa: ARG001
    """Train ids if each labeled image has them, else the ids of all labels; dummy masks of the test are no labels."""
    _refuse_colors(colors, "Cityscapes' own table")
    kinds = ("_gtFine_labelTrainIds", "_gtFine_labelIds")
    found: dict[str, dict[str, list[Sample]]] = {kind: {"train": [], "val": [], "test": []} for kind in kinds}
    for split in ("train", "val", "test"):
        images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.*"))
        for ending, splits in found.items():
            for image in images:
                name = image.stem.removesuffix("_leftImg8bit")
                mask = root / "gtFine" / split / image.parent.name / f"{name}{ending}.png"
                splits[split].append(Sample(name, image, mask if mask.is_file() else None))
    first, second = (sum(one.label is not None for one in (*part["train"], *part["val"])) for part in found.values())
    complete = first >= second
    ids, palette = zip(*CITYSCAPES_IDS.values(), strict=True)
    values = tuple(range(len(ids))) if complete else ids
    ignored = (IGNORE_INDEX,) if complete else (*_CITYSCAPES_VOID, IGNORE_INDEX)
    splits = found["_gtFine_labelTrainIds" if complete else "_gtFine_labelIds"]
    if test := [one for one in splits.get("test", ()) if one.label is not None]:
        facts = remember_facts("mask_values", PathList(one.label for one in test), values_in, lambda _: ())
        dummy = {one.name for one, inside in zip(test, facts, strict=True) if not {*inside} & {*values}}
        splits["test"] = [one._replace(label=None) if one.name in dummy else one for one in splits["test"]]
    return FoundLabels(splits, tuple(CITYSCAPES_IDS), values, ignored, palette, origin="folders in leftImg8bit")


def _refuse_colors(colors: ColorTable, where: str) -> None:
    if colors:
        raise DataError(f"colors must be empty where {where} has them, got {', '.join(colors)}")


def describe_layouts(names: Iterable[str]) -> str:
    """Names of layouts, each with what a folder of it holds."""
    return "; ".join(f"{name} ({LAYOUTS[name].about})" for name in names)


LAYOUTS: dict[str, Layout] = {
    "folder": Layout("images/ and masks/ with files of equal names", _is_folder),
    "split_folders": Layout(
        "train/, val/ and test/, each with images/ and masks/", lambda root: bool(_split_parts(root))
    ),
    "pets": Layout("images/, annotations/trimaps/, trainval.txt and test.txt, Oxford-IIIT Pets", _is_pets),
    "voc": Layout("JPEGImages/ and SegmentationClass/, PASCAL VOC", lambda root: bool(voc_roots(root)), _read_voc),
    "cityscapes": Layout(
        "leftImg8bit/ and gtFine/, Cityscapes",
        lambda root: (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir(),
        _read_cityscapes,
    ),
    "coco": Layout("a COCO json in annotations/ or beside the images", is_coco, read_coco),
    "yolo": Layout("data.yaml, images/ and labels/ with polygons, YOLO", is_yolo, read_yolo),
    "cvat": Layout(
        "labelmap.txt and SegmentationClass/, CVAT's Segmentation mask 1.1",
        lambda root: (root / "labelmap.txt").is_file() and (root / "SegmentationClass").is_dir(),
        _read_cvat,
    ),
    "label_studio": Layout("a json or PNG export of Label Studio", is_label_studio, read_label_studio),
    "huggingface": Layout("parquet files or a saved data set of Hugging Face datasets", is_huggingface),
}
"""Every layout by its name."""
