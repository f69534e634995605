"""Write the same labeled images in every layout that people have: a function each, all with the same arguments."""

import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from tests.fabricate import drawings, write_list

CLASSES = ("background", "box", "disc")
COLORS = ((0, 0, 0), (250, 50, 83), (61, 61, 245))


class Labeled(NamedTuple):
    """An image as the bytes of a JPEG, and its class indices, uint8 (H, W); index 0 is background."""

    name: str
    jpeg: bytes
    mask: np.ndarray

    @property
    def pixels(self) -> Image.Image:
        return Image.open(io.BytesIO(self.jpeg)).convert("RGB")


def draw_labeled(train: int = 6, test: int = 2, size: int = 32) -> tuple[list[Labeled], list[Labeled]]:
    """Drawn images of three classes."""
    made = []
    for place, (image, mask) in enumerate(drawings(train + test, size, 3, 77)):
        stored = io.BytesIO()
        Image.fromarray(image).save(stored, "JPEG", quality=95)
        made.append(Labeled(f"n{place:02d}", stored.getvalue(), mask))
    return made[:train], made[train:]


Writer = Callable[[Path, Sequence[Labeled], Sequence[Labeled], Sequence[str]], Path]


def _write(path: Path, content: bytes | np.ndarray | Image.Image | str | object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    elif isinstance(content, Image.Image):
        content.save(path)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_text(json.dumps(content))


def _names(labeled: Sequence[Labeled]) -> list[str]:
    return [one.name for one in labeled]


def _lists(root: Path, train: Sequence[Labeled], test: Sequence[Labeled]) -> None:
    write_list(root / "train.txt", _names(train))
    write_list(root / "test.txt", _names(test))


def write_folder(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """Nested folders, .jpg and .jpeg, the suffix _mask."""
    for place, one in enumerate((*train, *test)):
        _write(root / "images" / "set" / f"{one.name}.{('jpg', 'jpeg')[place % 2]}", one.jpeg)
        _write(root / "masks" / "set" / f"{one.name}_mask.{('png', 'tif')[place % 2]}", one.mask)
    write_list(root / "classes.txt", classes)
    write_list(root / "train.txt", [f"set/{one.name}.jpg" for one in train])
    write_list(root / "test.txt", [f"set/{one.name}" for one in test])
    return root


def write_split_folders(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """train/ and test/, each with images/ and masks/."""
    for split, members in (("train", train), ("test", test)):
        for one in members:
            _write(root / split / "images" / f"{one.name}.jpg", one.jpeg)
            _write(root / split / "masks" / f"{one.name}.png", one.mask)
    write_list(root / "classes.txt", classes)
    return root


def write_color_folder(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """images/ and color masks, with classes.csv."""
    for one in (*train, *test):
        _write(root / "images" / f"{one.name}.jpg", one.jpeg)
        _write(root / "masks" / f"{one.name}.png", np.array(COLORS, np.uint8)[one.mask])
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(classes, COLORS, strict=True)]
    write_list(root / "classes.csv", ["name,r,g,b", *rows])
    _lists(root, train, test)
    return root


def voc_palette() -> list[int]:
    """The palette of VOC's masks, as its development kit computes it."""
    colors = []
    for index in range(256):
        r = g = b = 0
        for bit in range(8):
            r |= (index & 1) << (7 - bit)
            g |= (index >> 1 & 1) << (7 - bit)
            b |= (index >> 2 & 1) << (7 - bit)
            index >>= 3
        colors += [r, g, b]
    return colors


def write_voc(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """VOCdevkit/VOC2012 with palette PNGs, train.txt, val.txt and an image without a mask."""
    base = root / "VOCdevkit" / "VOC2012"
    for one in (*train, *test):
        _write(base / "JPEGImages" / f"{one.name}.jpg", one.jpeg)
        mask = Image.fromarray(one.mask)
        mask.putpalette(voc_palette())
        _write(base / "SegmentationClass" / f"{one.name}.png", mask)
        _write(base / "SegmentationObject" / f"{one.name}.png", mask)
        _write(base / "Annotations" / f"{one.name}.xml", "<annotation/>")
    _write(base / "JPEGImages" / "without.jpg", train[0].pixels.transpose(Image.Transpose.ROTATE_90))
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, members in (("train", train), ("val", test), ("trainval", (*train, *test))):
        write_list(lists / f"{name}.txt", _names(members))
    if tuple(classes) != ():
        write_list(base / "classes.txt", classes)
    return root


def write_cityscapes(
    root: Path, train: Sequence[Labeled], test: Sequence[Labeled], ids: Sequence[int], ending: str
) -> Path:
    """leftImg8bit/ and gtFine/ with masks of one kind, and test images with the dummy masks of the official set."""
    for split, members in (("train", train), ("val", test), ("test", test[:1])):
        for one in members:
            name = f"{one.name}_{split}" if split == "test" else one.name
            pixels = one.pixels.transpose(Image.Transpose.ROTATE_180) if split == "test" else one.pixels
            _write(root / "leftImg8bit" / split / "bonn" / f"{name}_leftImg8bit.png", pixels)
            mask = np.zeros_like(one.mask) if split == "test" else np.array(ids, np.uint8)[one.mask]
            _write(root / "gtFine" / split / "bonn" / f"{name}_gtFine_{ending}.png", mask)
            _write(root / "gtFine" / split / "bonn" / f"{name}_gtFine_color.png", one.pixels)
    return root


def write_coco(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """annotations/instances_*.json with run lengths, compressed and not, and the images in train2017/ and val2017/."""
    for split, members in (("train2017", train), ("val2017", test)):
        content = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [{"id": 3 * place, "name": name} for place, name in enumerate(classes) if place]
        for number, one in enumerate(members):
            _write(root / split / f"{one.name}.jpg", one.jpeg)
            height, width = one.mask.shape
            content["images"].append({"id": number, "file_name": f"{one.name}.jpg", "height": height, "width": width})
            for index in np.unique(one.mask[one.mask > 0]).tolist():
                packed = coco.encode(np.asfortranarray(one.mask == index))
                flat = (one.mask == index).ravel(order="F").astype(int)
                ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
                counts = np.diff([0, *ends]).tolist()
                plain = {"size": [height, width], "counts": [0, *counts] if flat[0] else counts}
                shape = {**packed, "counts": packed["counts"].decode()} if number % 2 else plain
                found = {"id": len(content["annotations"]), "image_id": number, "category_id": 3 * index, "iscrowd": 0}
                content["annotations"].append({**found, "segmentation": shape, "bbox": [0, 0, width, height]})
        _write(root / "annotations" / f"instances_{split}.json", content)
    return root


def runs(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """The runs of True in each row: row, first column, column after the last."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return [(int(row), int(start), int(end)) for (row, start), (_, end) in zip(starts, ends, strict=True)]


def write_yolo(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """images/train, labels/train and so on, a rectangle for each run of a row, and data.yaml."""
    for split, members in (("train", train), ("val", test)):
        for one in members:
            _write(root / "images" / split / f"{one.name}.jpg", one.jpeg)
            height, width = one.mask.shape
            lines = []
            for index in range(1, len(classes)):
                for row, start, end in runs(one.mask == index):
                    corners = ((start, row), (end, row), (end, row + 1), (start, row + 1))
                    numbers = (f"{x / width:.8f} {y / height:.8f}" for x, y in corners)
                    lines.append(f"{index - 1} {' '.join(numbers)}")
            _write(root / "labels" / split / f"{one.name}.txt", "\n".join(lines))
    names = "".join(f"  {place}: {name}\n" for place, name in enumerate(classes[1:]))
    _write(root / "data.yaml", f"path: ../datasets/shapes\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return root


def write_cvat(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """Segmentation mask 1.1 with images, and lists of one's own beside it."""
    for one in (*train, *test):
        _write(root / "JPEGImages" / f"{one.name}.jpg", one.jpeg)
        _write(root / "SegmentationClass" / f"{one.name}.png", np.array(COLORS, np.uint8)[one.mask])
        _write(root / "SegmentationObject" / f"{one.name}.png", np.array(COLORS, np.uint8)[one.mask])
    rows = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(classes, COLORS, strict=True)]
    write_list(root / "labelmap.txt", ["# label:color_rgb:parts:actions", *rows])
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    write_list(root / "ImageSets" / "Segmentation" / "default.txt", _names([*train, *test]))
    _lists(root, train, test)
    return root


def encode_brush(mask: np.ndarray, color: Sequence[int] = (255, 255, 255, 255)) -> list[int]:
    """Pack a mask as Label Studio's brush does: RGBA of each pixel, runs of equal values and of different ones."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = color
    flat = values.ravel()
    starts = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), len(flat)]
    bits = [f"{len(flat):032b}", f"{7:05b}", f"{2:04b}{3:04b}{7:04b}{15:04b}"]

    def add(start: int, end: int, repeated: bool) -> None:
        for first in range(start, end, 1 << 16):
            last = min(first + (1 << 16), end)
            kind, size = next((kind, size) for kind, size in enumerate((3, 4, 8, 16)) if last - first <= 1 << size)
            bits.append(f"{int(repeated)}{kind:02b}{last - first - 1:0{size}b}")
            bits.extend(f"{value:08b}" for value in flat[first : first + 1 if repeated else last].tolist())

    pending = 0  # from here on values are short runs
    for start, end in itertools.pairwise(starts):
        if end - start > 2:
            add(pending, start, False)
            add(start, end, True)
            pending = end
    add(pending, len(flat), False)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


def _task(number: int, one: Labeled, classes: Sequence[str]) -> dict[str, object]:
    height, width = one.mask.shape
    results = [
        {
            **{"id": f"r{index}", "type": "brushlabels", "from_name": "tag", "to_name": "image"},
            **{"original_width": width, "original_height": height, "image_rotation": 0},
            "value": {"format": "rle", "rle": encode_brush(one.mask == index), "brushlabels": [classes[index]]},
        }
        for index in np.unique(one.mask[one.mask > 0]).tolist()
    ]
    results.append({"id": "c", "type": "choices", "value": {"choices": ["good"]}})
    old = {"id": number, "updated_at": "2024-01-01T00:00:00Z", "was_cancelled": False, "result": []}
    new = {"id": number + 500, "updated_at": "2024-02-01T00:00:00Z", "was_cancelled": False, "result": results}
    data = {"image": f"/data/upload/7/0a1b2c3d-{one.name}.jpg"}
    return {"id": number, "annotations": [new, old], "data": data}


def write_label_studio(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """A json export with brush strokes, the images beside it, and an image whose annotation is missing."""
    members = [*train, *test]
    for one in members:
        _write(root / "images" / f"{one.name}.jpg", one.jpeg)
    _write(root / "project-7.json", [_task(number, one, classes) for number, one in enumerate(members, start=11)])
    _lists(root, train, test)
    return root


def write_label_studio_png(
    root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]
) -> Path:
    """A PNG export in its folder, with the json export for the names of the images."""
    write_label_studio(root, train, test, classes)
    for number, one in enumerate([*train, *test], start=11):
        for index in np.unique(one.mask[one.mask > 0]).tolist():
            name = f"task-{number}-annotation-{number + 500}-by-3-tag-{classes[index]}-0.png"
            _write(root / "export" / name, ((one.mask == index) * 255).astype(np.uint8))
    return root


def write_parquet(root: Path, train: Sequence[Labeled], test: Sequence[Labeled], classes: Sequence[str]) -> Path:
    """Parquet files as a data set of the Hub has them, with columns image and label."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    (root / "data").mkdir(parents=True)
    for split, members in (("train", train), ("test", test)):
        rows = {"image": [], "label": []}
        for one in members:
            stored = io.BytesIO()
            Image.fromarray(one.mask).save(stored, "PNG")
            rows["image"].append({"bytes": one.jpeg, "path": None})
            rows["label"].append({"bytes": stored.getvalue(), "path": None})
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    write_list(root / "classes.txt", classes)
    return root


WRITERS: dict[str, tuple[str, Writer]] = {
    "folder": ("folder", write_folder),
    "split_folders": ("split_folders", write_split_folders),
    "colors": ("folder", write_color_folder),
    "voc": ("voc", write_voc),
    "coco": ("coco", write_coco),
    "yolo": ("yolo", write_yolo),
    "cvat": ("cvat", write_cvat),
    "label_studio": ("label_studio", write_label_studio),
    "label_studio_png": ("label_studio", write_label_studio_png),
    "parquet": ("huggingface", write_parquet),
}
"""By a name for tests: the name of the layout, and the function that writes it."""
