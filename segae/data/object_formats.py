"""Readers of data sets whose masks are drawn from objects: COCO json, YOLO polygons, exports of Label Studio."""

import json
import mmap
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import yaml

from segae.data.annotations import Drawing, Region, draw_masks
from segae.data.cache import remember_facts
from segae.data.color_tables import ColorTable
from segae.data.file_lists import PathList
from segae.data.folders import (
    BRUSH_MASK,
    SPLIT_FOLDERS,
    images_by_name,
    is_image,
    read_lines,
    read_text,
    walk_folders,
)
from segae.data.found_labels import ALL, FoundLabels, Sample
from segae.data.image_io import few, image_size
from segae.errors import DataError
from segae.image_format import IGNORE_INDEX

BACKGROUND = "background"
"""The class of the pixels of no object, the first one."""


def is_coco(root: Path) -> bool:
    """Whether a folder has a COCO json with categories."""
    return bool(_coco_files(root))


def _coco_files(root: Path) -> list[Path]:
    """The COCO files of a folder, in annotations/, or beside the images, in it or in its train/, val/ and test/."""
    if root.name == "annotations":  # of the folder above
        return []
    places = [root / "annotations", root, *(one for one in sorted(root.iterdir()) if one.name.lower() in SPLIT_FOLDERS)]
    files = [path for place in places if place.is_dir() for path in sorted(place.glob("*.json"))]
    instances = [path for path in files if path.name.startswith("instances")]
    return [path for path in instances or files if _holds(path, b"{", b'"images"', b'"annotations"', b'"categories"')]


def _holds(path: Path, start: bytes, *keys: bytes) -> bool:
    """Whether a JSON file begins so and holds these texts; it may be large, and is not parsed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[:64].lstrip(b"\xef\xbb\xbf \r\n\t").startswith(start) and all(
                content.find(key) >= 0 for key in keys
            )
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}. Export it again.") from error


def read_coco(root: Path, classes: Sequence[str], colors: ColorTable) -> FoundLabels:  # noqa: ARG001
    """COCO's instances: polygons and run lengths; crowds do not count; other pixels are the first class, background.

    An image without objects is background. Larger objects are below smaller ones; see `annotations.draw_masks`.
    """
    _refuse_colors(colors, "coco")
    files = _coco_files(root)
    categories: dict[Any, str] = {}
    contents = {path: _read_json(path) for path in files}
    for path, content in contents.items():
        for one in content["categories"]:
            name = str(one.get("name") or "").strip()
            if not name:
                raise DataError(f"{path} must name each category, and that with the id {one.get('id')} has no name")
            if categories.setdefault(one["id"], name) != name:
                raise DataError(
                    f"{root} must have one name for the category {one['id']}, got {categories[one['id']]}, {name}"
                )
    names = _class_names([categories[key] for key in sorted(categories)], root)
    values = {key: names.index(_as_background(name)) for key, name in categories.items()}
    splits: dict[str, list[Sample]] = {}
    missing = 0
    for path, content in contents.items():
        split = _split_of(path) if len(files) > 1 else _split_of(path) or ALL
        if not split:
            raise DataError(f"{root} has {few(one.name for one in files)}, and {path.name} names no split. Remove it.")
        samples = _read_coco_file(root, path, content, values, split)
        missing += len(content["images"]) - len(samples)
        splits.setdefault(split, []).extend(samples)
    return _found(root, splits, names, few(path.relative_to(root) for path in files), missing)


def _split_of(path: Path) -> str:
    """The split in the name of a COCO file, such as instances_train2017.json, or of its folder; else nothing."""
    words = [*re.findall(r"[a-z]+", path.stem.lower()), path.parent.name.lower()]
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), "")


def _read_coco_file(
    root: Path, path: Path, content: Mapping[str, Any], values: Mapping[Any, int], split: str
) -> list[Sample]:
    tag = path.stem.removeprefix("instances_")
    parts = [one for name in (tag, split) for one in (root / name, root / "images" / name)]
    folders = [one for one in (*parts, root / "images", path.parent, root) if one.is_dir()]
    regions: dict[Any, list[Region]] = defaultdict(list)
    for one in content["annotations"]:
        if one.get("category_id") not in values:
            raise DataError(
                f"{path} must define each category, and annotation {one.get('id')} has {one.get('category_id')}"
            )
        shape = one.get("segmentation")
        if not shape:
            raise DataError(f"{path} must have polygons or run lengths, and annotation {one.get('id')} has a box alone")
        value = IGNORE_INDEX if one.get("iscrowd") else values[one["category_id"]]
        # a line or a point has no area
        shape = [polygon for polygon in shape if len(polygon) >= 6] if isinstance(shape, list) else shape
        if shape:
            regions[one["image_id"]].append(Region(value, "polygons" if isinstance(shape, list) else "rle", shape))
    samples = []
    for one in content["images"]:
        name = str(one["file_name"])
        image = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if image is None:
            continue
        drawing = Drawing(image, (int(one["height"]), int(one["width"])), tuple(regions[one["id"]]))
        samples.append(Sample(name.removesuffix(Path(name).suffix), image, drawing))
    if not samples:
        first = next((str(one["file_name"]) for one in content["images"]), "")
        near = [folder / Path(first).name for folder in folders if (folder / Path(first).name).is_file()]
        advice = f"{near[0]} is there: correct the file_name of each image." if near else "Add them."
        places, number = few(dict.fromkeys(map(str, folders))), len(content["images"])
        raise DataError(f"{path} lists {number} images, the first is {first!r}, and none is in {places}. {advice}")
    return samples


def is_yolo(root: Path) -> bool:
    """Whether a folder has a data.yaml with names and a split."""
    return bool(_yolo_file(root))


def _yolo_file(root: Path) -> tuple[Path, Mapping[str, Any]] | None:
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = yaml.safe_load(read_text(path))
        except (yaml.YAMLError, DataError):
            continue
        if isinstance(content, Mapping) and {"names", "nc"} & {*content} and {"train", "val"} & {*content}:
            return path, content
    return None


def read_yolo(root: Path, classes: Sequence[str], colors: ColorTable) -> FoundLabels:  # noqa: ARG001
    """YOLO's polygons, as shares of width and height; an image without a file of labels is background."""
    _refuse_colors(colors, "yolo")
    path, content = _yolo_file(root) or (root, {})
    listed = content.get("names") or []
    named = dict(enumerate(listed)) if isinstance(listed, list) else {int(key): name for key, name in listed.items()}
    if not named or not all(str(name or "").strip() for name in named.values()):
        raise DataError(f"{path} must name each class in names, got {listed}")
    names = _class_names([str(named[key]).strip() for key in sorted(named)], root)
    values = {key: names.index(_as_background(str(name).strip())) for key, name in named.items()}
    splits: dict[str, list[Sample]] = {}
    for split in ("train", "val", "test"):
        given = content.get(split) or []
        for place in [given] if isinstance(given, str) else given:
            images = _yolo_images(root, content, place)
            sizes = remember_facts("size", PathList(images.values()), image_size, lambda _: ())
            found = (one for one in zip(images.items(), sizes, strict=True) if one[1])  # others cannot be read
            splits.setdefault(split, []).extend(_yolo_sample(*named, size, values) for named, size in found)
    return _found(root, splits, names, path.name)


def _yolo_images(root: Path, content: Mapping[str, Any], place: str) -> dict[str, Path]:
    """The images of a split by name, in a folder or a text file of paths, from ``path`` or from data.yaml on."""
    bare = re.sub(r"^(\.\./)+", "", place)  # Roboflow's exports begin at a folder that is not there
    base = str(content.get("path") or "")
    tried = [root / place, root / base / place, root / bare, root.parent / base / place]
    found = next((one for one in tried if one.exists()), None)
    if found is None:
        raise DataError(f"data.yaml of {root} names {place}, which is not there. Correct the path.")
    if found.is_file():
        listed = [(found.parent / line, root / line) for line in read_lines(found)]
        images = {one.stem: next((path for path in (one, other) if path.is_file()), one) for one, other in listed}
        if len(images) < len(listed):
            raise DataError(f"{found} must list images of different names, got {len(listed) - len(images)} twice")
    else:
        images = {name: found / file for name, file in images_by_name(found).items()}
    return images


def _yolo_sample(name: str, image: Path, size: Sequence[int], values: Mapping[int, int]) -> Sample:
    height, width = size
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    label, regions = Path(*parts).with_suffix(".txt"), []
    for number, line in enumerate(read_text(label).splitlines() if label.is_file() else (), start=1):
        try:
            index, *numbers = map(float, line.split())
        except ValueError as error:
            raise DataError(f"{label} must hold a class and a polygon in line {number}, got {line[:60]!r}") from error
        if len(numbers) < 6 or len(numbers) % 2:
            kind = "a box" if len(numbers) == 4 else f"{len(numbers)} numbers"
            raise DataError(f"{label} must hold polygons of 3 or more points, got {kind} in line {number}")
        if index not in values:
            raise DataError(f"{label} must hold classes that data.yaml names, got {index:g} in line {number}")
        points = (np.array(numbers).reshape(-1, 2) * (width, height)).ravel().tolist()
        regions.append(Region(values[int(index)], "polygons", [points]))
    return Sample(name, image, Drawing(image, (height, width), tuple(regions)))


def is_label_studio(root: Path) -> bool:
    """Whether a folder has masks or a json that Label Studio exported."""
    return bool(_brush_masks(root) or _label_studio_files(root))


def _label_studio_files(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*.json")) if _holds(path, b"[", b'"annotations"', b'"result"')]


def _brush_masks(root: Path) -> list[Path]:
    """Masks of a PNG export, in the folder or in one below it."""
    return sorted(
        path for path in (*root.glob("task-*.png"), *root.glob("*/task-*.png")) if BRUSH_MASK.fullmatch(path.name)
    )


def read_label_studio(root: Path, classes: Sequence[str], colors: ColorTable) -> FoundLabels:
    """Label Studio: a json export with brush strokes or polygons, or a PNG export with that json for the images' names.

    Without a json the image of task 7 is a file called 7 or task-7. Of several annotations of a task the last counts.
    """
    _refuse_colors(colors, "label_studio")
    tasks = {task["id"]: task for path in _label_studio_files(root) for task in _read_json(path)}
    images = [folder / name for folder, _, files in walk_folders(root) for name in files if is_image(folder / name)]
    masks = _brush_masks(root)
    parts = _png_parts(masks) if masks else {key: _json_parts(task) for key, task in tasks.items()}
    labels = sorted({label for found in parts.values() for label, _, _ in found or ()})
    # an export has only the labels that were used, so further ones may be given
    names = _class_names(classes if {*labels} <= {*classes} else labels, root)
    samples, missing = [], []
    for key in sorted(tasks.keys() | parts.keys()):
        image = _task_image(key, tasks.get(key), images)
        if image is None:
            missing.append(f"task {key}")
            continue
        found, drawing = parts.get(key), None
        if found:
            size = next((one for _, _, one in found if one), None) or image_size(image)
            regions = tuple(Region(names.index(_as_background(label)), *content) for label, content, _ in found)
            drawing = Drawing(image, size, regions)
        samples.append(Sample(image.stem, image, drawing))
    if missing:
        raise DataError(
            f"{root} lacks the images of {few(missing)}. Put them into {root / 'images'}, and the json export of Label "
            "Studio, which has their names, beside them."
        )
    return _found(root, {ALL: samples}, names, "")


def _png_parts(masks: Iterable[Path]) -> dict[int, list[tuple[str, tuple[str, Any], Any]]]:
    """Label and file of each mask of the last annotation of each task."""
    found: dict[int, dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for path in masks:
        named = BRUSH_MASK.fullmatch(path.name)
        if named:
            found[int(named["task"])][int(named["annotation"])].append((named["label"], ("file", str(path)), None))
    return {task: annotations[max(annotations)] for task, annotations in found.items()}


def _json_parts(task: Mapping[str, Any]) -> list[tuple[str, tuple[str, Any], Any]] | None:
    """Label, content and (height, width) of each region of the last annotation of a task; None if it has none."""
    given = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
    if not given:
        return None
    parts = []
    for one in max(given, key=lambda one: (str(one.get("updated_at") or ""), one.get("id") or 0))["result"]:
        value = one.get("value", {})
        labels = value.get("brushlabels") or value.get("polygonlabels") or ("rle" in value and value.get("labels"))
        if not labels:
            if one.get("type") in ("brushlabels", "polygonlabels"):
                raise DataError(
                    f"task {task['id']} of Label Studio must have a label for each region, got none for one"
                )
            continue  # a choice, a text, a rating
        size = int(one["original_height"]), int(one["original_width"])
        if "points" in value:
            scaled = np.array(value["points"], float) * (size[1] / 100, size[0] / 100)
            parts.append((labels[0], ("polygons", [scaled.ravel().tolist()]), size))
        elif value.get("format") == "rle":
            parts.append((labels[0], ("brush", value["rle"]), size))
    return parts


def _task_image(key: int, task: Mapping[str, Any] | None, images: Sequence[Path]) -> Path | None:
    """The image of a task by the name in its data, with or without the eight letters that an upload puts before it."""
    if task is None:
        return next((path for path in images if path.stem in (str(key), f"task-{key}")), None)
    for value in task.get("data", {}).values():
        parts = urlsplit(str(value))
        name = Path(unquote(parts.query.partition("d=")[2] or parts.path)).name
        allowed = {name, re.sub(r"^[0-9a-f]{8}-", "", name)}
        if found := next((path for path in images if path.name in allowed), None):
            return found
    return None


def _class_names(names: Sequence[str], root: Path) -> tuple[str, ...]:
    """Background first, then the objects; one that is called background is no other class."""
    found = (BACKGROUND, *(name for name in map(_as_background, names) if name != BACKGROUND))
    if len(set(found)) < len(found) or not 1 < len(found) <= IGNORE_INDEX:
        raise DataError(
            f"{root} must have 1 to {IGNORE_INDEX - 1} classes of different names, got {few(names) or 'none'}"
        )
    return found


def _as_background(name: str) -> str:
    return BACKGROUND if name.lower() == BACKGROUND else name


def _found(
    root: Path, splits: Mapping[str, Sequence[Sample]], names: tuple[str, ...], origin: str, missing: int = 0
) -> FoundLabels:
    if not any(splits.values()):
        raise DataError(f"{root} has no image with an annotation. Correct its paths.")
    how: dict[str, Any] = {"convert": draw_masks, "missing": missing, "origin": origin}
    return FoundLabels(splits, names, tuple(range(len(names))), (IGNORE_INDEX,), **how)


def _refuse_colors(colors: ColorTable, layout: str) -> None:
    if colors:
        raise DataError(f"colors must be empty for the layout {layout}, whose masks have none, got {', '.join(colors)}")
