"""Every layout of labeled data: recognized, read pixel for pixel, converted once, kept out of pretraining, refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segae
from segae.data import (
    check_masks,
    find_images,
    find_layouts,
    find_pretraining_images,
    open_dataset,
    read_image,
    read_mask,
    to_class_indices,
)
from segae.data.annotations import decode_brush
from segae.errors import DataError
from tests.fabricate import make_pets, write_list
from tests.fabricate_formats import (
    CLASSES,
    COLORS,
    WRITERS,
    Labeled,
    draw_labeled,
    encode_brush,
    write_cityscapes,
    write_coco,
    write_color_folder,
    write_cvat,
    write_folder,
    write_label_studio,
    write_label_studio_png,
    write_parquet,
    write_split_folders,
    write_voc,
    write_yolo,
)

QUICK = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "device": "cpu", "epochs": 1, "val_fraction": 0.0}


@pytest.fixture(scope="module")
def drawn() -> tuple[list[Labeled], list[Labeled]]:
    return draw_labeled()


def indices(dataset: segae.data.SegmentationDataset, split: str) -> list[np.ndarray]:
    coding = dataset.mask_values, Path(), dataset.ignore_values
    return [to_class_indices(read_mask(mask), *coding) for mask in dataset.splits[split].masks]


@pytest.mark.parametrize("name", WRITERS)
def test_each_layout_is_recognized_and_gives_the_same_pixels(tmp_path: Path, drawn, name: str, monkeypatch) -> None:
    layout, write = WRITERS[name]
    root = write(tmp_path / "shapes", *drawn, CLASSES)
    assert find_layouts(root) == [layout]
    dataset = open_dataset(root)
    check_masks(dataset)
    assert (dataset.name, dataset.classes) == ("shapes", CLASSES)
    assert set(dataset.splits) == {"train", "test"}
    for split, members in zip(("train", "test"), drawn, strict=True):
        for pair, found, one in zip(dataset.splits[split], indices(dataset, split), members, strict=True):
            assert np.array_equal(found, one.mask)
            assert np.array_equal(read_image(pair.image), np.array(one.pixels))
    turned = open_dataset(root, classes=("disc", "background", "box")) if dataset.converted else None
    if turned:
        assert all(
            (np.array((1, 2, 0))[one.mask] == found).all()
            for one, found in zip(drawn[1], indices(turned, "test"), strict=True)
        )

    def refuse(*_: object) -> None:
        raise AssertionError("converted twice")

    for function in ("draw", "color_indices"):
        monkeypatch.setattr(f"segae.data.annotations.{function}", refuse)
    assert open_dataset(root).splits == dataset.splits


@pytest.mark.parametrize(
    ("ids", "ending", "values"), [((0, 1, 2), "labelTrainIds", (0, 1, 2)), ((7, 8, 11), "labelIds", (7, 8, 11))]
)
def test_cityscapes_has_train_ids_or_the_ids_of_all_labels(tmp_path: Path, drawn, ids, ending, values, caplog) -> None:
    root = write_cityscapes(tmp_path / "city", *drawn, ids, ending)
    if ending == "labelTrainIds":  # then the others are not looked at
        for path in root.glob("gtFine/*/*/*_labelTrainIds.png"):
            shutil.copy(path, path.with_name(path.name.replace("TrainIds", "Ids")))
            if "test" in path.parts:
                path.unlink()
    dataset = open_dataset(root)
    assert find_layouts(root) == ["cityscapes"]
    assert (len(dataset.classes), dataset.classes[:2], dataset.mask_values[:3]) == (19, ("road", "sidewalk"), values)
    assert all((one.mask == found).all() for one, found in zip(drawn[1], indices(dataset, "test"), strict=True))
    assert "1 images have no mask" in caplog.text  # the dummy one of the official test
    assert {255, *range(4)} <= {*dataset.ignore_values, *(range(4) if ending == "labelTrainIds" else ())}
    kept = find_pretraining_images([root / "leftImg8bit"]).kept
    assert {path.parent.parent.name for path in kept} == {"train"}


def test_voc_has_its_own_classes_and_ignores_255(tmp_path: Path, drawn) -> None:
    train = [one._replace(mask=np.where(one.mask == 2, 255, one.mask).astype(np.uint8)) for one in drawn[0]]
    root = write_voc(tmp_path, train, drawn[1], ())
    for place in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        dataset = open_dataset(place)
        assert (len(dataset.classes), dataset.classes[20], dataset.ignore_values) == (21, "tvmonitor", (255,))
        assert dataset.palette[1] == (128, 0, 0)
        assert all((one.mask == found).all() for one, found in zip(train, indices(dataset, "train"), strict=True))
    base = root / "VOCdevkit" / "VOC2012"
    for path in (base / "SegmentationClass").iterdir():  # as some tools export it
        Image.open(path).convert("RGB").save(path)
    colored = open_dataset(root)
    assert all((one.mask == found).all() for one, found in zip(train, indices(colored, "train"), strict=True))
    (base / "JPEGImages" / "n00.jpg").unlink()
    with pytest.raises(DataError, match=r"masks without an image: n00\.png"):
        open_dataset(root)
    shutil.copytree(base, base.with_name("VOC2007"))
    with pytest.raises(DataError, match="several PASCAL VOC data sets: .*VOC2007"):
        open_dataset(root)


def test_small_objects_lie_on_large_ones_and_crowds_below_all(tmp_path: Path, drawn) -> None:
    root = write_coco(tmp_path / "set", *drawn, CLASSES)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    boxes = {"small": (10, 10, 4, 4, 3, 0), "large": (4, 4, 20, 12, 6, 0), "crowd": (0, 0, 32, 8, 3, 1)}
    content["annotations"] = [
        {
            **{"id": name, "image_id": 0, "category_id": category, "iscrowd": crowd},
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h], [1, 1, 2, 2]],
        }
        for name, (x, y, w, h, category, crowd) in boxes.items()
    ]
    path.write_text(json.dumps(content))
    expected = np.zeros((32, 32), np.uint8)
    expected[0:8] = 255
    expected[4:16, 4:24] = 2
    expected[10:14, 10:14] = 1
    first, second = indices(open_dataset(root), "test")
    assert np.array_equal(first, expected)
    assert not second.any()  # an image without objects


def test_a_changed_annotation_is_converted_again_and_no_other(tmp_path: Path, drawn, private_cache: Path) -> None:
    root = write_yolo(tmp_path / "set", *drawn, CLASSES)
    before = open_dataset(root)
    made = sorted(private_cache.glob("masks/*/*.png"))
    (root / "labels" / "train" / "n00.txt").write_text("1 0 0 0.5 0 0.5 1 0 1")
    after = open_dataset(root)
    assert len(set(private_cache.glob("masks/*/*.png")) - set(made)) == 1
    assert after.splits["train"][1:] == before.splits["train"][1:]
    assert (indices(after, "train")[0][:, :16] == 2).all()
    make = "import sys; from segae.data import open_dataset; print(*open_dataset(sys.argv[1]).splits['train'].masks)"
    shutil.rmtree(private_cache / "masks")
    command, env = [sys.executable, "-c", make, str(root)], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    assert [one.communicate()[0].split() for one in both] == [[*map(str, after.splits["train"].masks)]] * 2
    assert not list(private_cache.glob("masks/*/.*"))


@pytest.mark.parametrize("name", [*WRITERS, "pets"])
def test_no_test_image_of_any_layout_is_pretrained_on_and_no_mask(tmp_path: Path, drawn, name: str) -> None:
    if name == "parquet":
        pytest.skip("rows are no image files")
    write = make_pets if name == "pets" else WRITERS[name][1]
    root = write(tmp_path / "up" / "set") if name == "pets" else write(tmp_path / "up" / "set", *drawn, CLASSES)
    dataset = open_dataset(root)
    test, train = (set(dataset.splits[split].images) for split in ("test", "train"))
    for place in (root, root.parent):
        found = set(find_images([place]))
        assert found >= test | train
        assert len(found - test - train) == (name == "voc")  # one image without a mask, and no mask
        report = find_pretraining_images([place], near_duplicates=False)
        assert {path for path, _ in report.excluded} == test
    if name == "split_folders":
        for place in (root / "test", root / "test" / "images"):
            with pytest.raises(DataError, match="All 2 images"):
                find_pretraining_images([place])
        assert len(find_pretraining_images([root / "train"]).kept) == 6


def test_three_layouts_train_and_score_the_same(tmp_path: Path, drawn) -> None:
    rows = []
    for name in ("split_folders", "coco", "cvat"):
        root = WRITERS[name][1](tmp_path / name / "shapes", *drawn, CLASSES)
        path = segae.finetune(root, out=tmp_path / name / "run", **QUICK).path
        rows.append(segae.evaluate(path, root).as_row())
    assert rows[0] == rows[1] == rows[2]
    assert rows[0]["miou"] > 0


def test_a_model_of_color_masks_reads_others_and_index_masks(tmp_path: Path, drawn) -> None:
    root = write_color_folder(tmp_path / "shapes", *drawn, CLASSES)
    (root / "classes.csv").unlink()
    with pytest.raises(DataError, match="colors"):
        open_dataset(root)
    colors = [f"{name}={','.join(map(str, color))}" for name, color in zip(CLASSES, COLORS, strict=True)]
    colors[2] = "disc=#3d3df5"
    result = segae.finetune(root, out=tmp_path / "run", colors=colors, **QUICK)
    scores = segae.evaluate(result.path, root, out=tmp_path / "one")
    plain = write_folder(tmp_path / "plain", *drawn, CLASSES)
    assert segae.evaluate(result.path, plain, out=tmp_path / "two").as_row() == scores.as_row()


def test_rows_of_hugging_face_become_files_once(tmp_path: Path, drawn, private_cache: Path) -> None:
    import datasets

    root = write_parquet(tmp_path / "rows", *drawn, CLASSES)
    folder = open_dataset(root).root
    stamp = (folder / "images").stat().st_mtime_ns
    assert open_dataset(root).root == folder
    assert (folder / "images").stat().st_mtime_ns == stamp
    rows = datasets.load_dataset("parquet", data_files=str(root / "data" / "train*"), cache_dir=str(tmp_path / "hf"))
    rows["train"].rename_column("label", "other").save_to_disk(str(tmp_path / "saved"))
    assert find_layouts(tmp_path / "saved") == ["huggingface"]
    with pytest.raises(DataError, match=r"mask must be one of image, other, got None: .*\?column=\.\.\.&mask="):
        open_dataset(tmp_path / "saved")
    dataset = open_dataset(f"{tmp_path / 'saved'}?mask=other", classes=CLASSES)
    assert {split: len(pairs) for split, pairs in dataset.splits.items()} == {"train": 4, "test": 2}  # by a hash
    with pytest.raises(DataError, match="must be among column, mask, config, revision, got colour"):
        open_dataset(f"{tmp_path / 'saved'}?colour=other")


def test_folders_in_images_and_masks_may_be_the_splits(tmp_path: Path, drawn) -> None:
    for split, members in zip(("training", "validation"), drawn, strict=True):
        write_folder(tmp_path / split, members, (), CLASSES)
    root = tmp_path / "set"
    for split in ("training", "validation"):
        for part in ("images", "masks"):
            shutil.copytree(tmp_path / split / part / "set", root / part / split)
    assert {split: len(pairs) for split, pairs in open_dataset(root).splits.items()} == {"train": 6, "test": 2}
    shutil.copy(root / "masks" / "training" / "n00_mask.png", root / "masks" / "training" / "n00_labelIds.png")
    with pytest.raises(DataError, match="n00"):
        open_dataset(root)


def test_two_layouts_at_once_are_an_error_that_setting_layout_ends(tmp_path: Path, drawn) -> None:
    root = write_coco(write_split_folders(tmp_path / "set", *drawn, CLASSES), *drawn, ("background", "cat", "dog"))
    with pytest.raises(DataError, match=r"layout must .*2 ways: split_folders \(train/.*; coco \(a COCO json"):
        open_dataset(root)
    assert open_dataset(root, layout="coco").classes == ("background", "cat", "dog")
    assert open_dataset(root, layout="split_folders").classes == CLASSES
    with pytest.raises(DataError, match="layout must be auto or what .* looks like, .*, got voc"):
        open_dataset(root, layout="voc")
    with pytest.raises(segae.SegaeError, match="layout must be one of auto, folder.*got 'vocc'"):
        open_dataset(root, layout="vocc")
    with pytest.raises(segae.SegaeError, match="layout must be one of"):
        segae.finetune(root, layout="vocc")
    write_list(root / "classes.json", ['{"background": "#000000"}'])
    with pytest.raises(DataError, match=r"classes\.json and classes\.txt"):
        open_dataset(root, layout="split_folders")


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def with_segmentation(shape: object) -> Callable[[Path], None]:
    path = Path("annotations") / "instances_train2017.json"
    return lambda root: edit_json(root / path, lambda content: content["annotations"][0].update(segmentation=shape))


def with_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(text)


def nameless(root: Path) -> None:
    path = root / "annotations" / "instances_train2017.json"
    edit_json(path, lambda content: content["categories"][0].pop("name"))


def other_color(root: Path) -> None:
    mask = np.array(Image.open(root / "masks" / "n00.png"))
    mask[:3, :3] = (245, 50, 80)
    Image.fromarray(mask).save(root / "masks" / "n00.png")


@pytest.mark.parametrize(
    ("write", "spoil", "message"),
    [
        (
            write_coco,
            with_segmentation([[0, 0, 90, 0, 90, 9]]),
            r"A polygon leaves the image .*n00\.jpg of 32 x 32.*90, 0",
        ),
        (
            write_coco,
            with_segmentation({"size": [9, 8], "counts": [72]}),
            r"n00\.jpg is 8 x 9 pixels, and the image is 32",
        ),
        (write_coco, with_segmentation([]), "must have polygons or run lengths, and annotation 0 has a box"),
        (write_coco, nameless, "must name each category, and that with the id 3 has no name"),
        (write_yolo, with_file("labels/train/n00.txt", "0 0 0 1.5 0 1.5 1"), r"A polygon leaves the image .*n00\.jpg"),
        (write_yolo, with_file("labels/train/n00.txt", "0 0 0 1 0 nan 1"), r"A polygon leaves the image .*n00\.jpg"),
        (
            write_yolo,
            with_file("labels/train/n00.txt", "0 0.5 0.5 0.2 0.2"),
            "polygons of 3 or more points, got a box in line 1",
        ),
        (
            write_yolo,
            with_file("labels/train/n00.txt", "7 0 0 1 0 1 1"),
            "classes that data.yaml names, got 7 in line 1",
        ),
        (
            write_yolo,
            with_file("labels/train/n00.txt", "box 0 0"),
            r"n00\.txt must hold a class and a polygon in line 1",
        ),
        (write_yolo, with_file("data.yaml", "train: images/train\nnames: [box, '']"), "must name each class in names"),
        (write_yolo, with_file("data.yaml", "train: images/no\nnames: [a]"), "names images/no, which is not there"),
        (write_color_folder, other_color, r"245,50,80 in 9 pixels.*nearest is box, 250,50,83, at a distance of 6\b"),
        (
            write_color_folder,
            with_file("classes.csv", "box,1,2,3\ndisc,1,2,3"),
            "different names and colors, got box and disc",
        ),
        (write_color_folder, with_file("classes.csv", "box,1,2,300"), "color such as 255,0,0.*got box '1,2,300'"),
        (
            write_color_folder,
            with_file("classes.csv", "box,1,2,3\ndisc"),
            "a color for each class or for none, got 1 of 2",
        ),
        (write_cvat, lambda root: shutil.rmtree(root / "JPEGImages"), "has no images, as a CVAT export without them"),
        (write_cvat, with_file("train.txt", "# none\n"), "is empty"),
        (write_voc, lambda root: write_list(root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", ["no"]), "no"),
        (write_label_studio_png, lambda root: shutil.rmtree(root / "images"), "lacks the images of task 11"),
        (write_label_studio_png, lambda root: (root / "project-7.json").unlink(), "lacks the images of task 11"),
        (write_split_folders, lambda root: [*map(Path.unlink, (root / "train/masks").iterdir())], "no image file in"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, drawn, write, spoil, message: str) -> None:
    root = write(tmp_path / "set", *drawn, CLASSES)
    spoil(root)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


def test_masks_that_do_not_fit_are_named_before_training(tmp_path: Path, drawn) -> None:
    root = write_voc(tmp_path / "voc", *drawn, CLASSES)
    path = root / "VOCdevkit/VOC2012/SegmentationClass/n03.png"
    for mask, message in (
        (np.full((32, 32), 9), r"n03\.png holds the value 9"),
        (np.zeros((32, 30)), "30 x 32 pixels"),
    ):
        Image.fromarray(mask.astype(np.uint8)).save(path)
        with pytest.raises(DataError, match=message):
            check_masks(open_dataset(root))
    for one in path.parent.iterdir():
        if one.stem < "n06":
            one.unlink()
    with pytest.raises(DataError, match="no training image with a mask: its split train is empty"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colors": ["box"]}, "colors must be of the form"),
        ({"colors": ["box=1,2"]}, "colors must have a name and a color such as 255,0,0 or #ff0000, got box '1,2'"),
        ({"colors": ["box=1,2,3", "box=1,2,4"]}, "colors must have different names and colors"),
        ({"colors": ["box=1,2,3"]}, "colors must be empty where labelmap.txt has them"),
        ({"classes": ["a", "b", "c"]}, "classes must be empty or those of .*, background, box, disc, in any order"),
    ],
)
def test_settings_that_do_not_fit_a_layout_are_refused(tmp_path: Path, drawn, settings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(write_cvat(tmp_path / "set", *drawn, CLASSES), **settings)


def test_a_brush_stroke_is_read_bit_by_bit() -> None:
    """The bytes of label-studio-sdk's own encode_rle for a mask of 3 x 4 pixels."""
    mask = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 1, 1]], bool)
    assert np.array_equal(decode_brush(OFFICIAL, 3, 4), mask)
    for size, color in ((1, (255, 90, 30, 255)), (60, (255, 90, 30, 255)), (200, (255, 255, 255, 255))):
        large = mask.repeat(size, axis=0).repeat(size, axis=1)
        assert np.array_equal(decode_brush(encode_brush(large, color), 3 * size, 4 * size), large)
    with pytest.raises(DataError, match="4 values for each of 5 x 4 pixels, got 48"):
        decode_brush(OFFICIAL, 4, 5)
    with pytest.raises(DataError, match="must not end within a run"):
        decode_brush(OFFICIAL[:-4], 3, 4)


OFFICIAL = [
    0,
    0,
    0,
    48,
    57,
    27,
    252,
    96,
    0,
    127,
    128,
    180,
    0,
    244,
    63,
    224,
    45,
    0,
    60,
    7,
    253,
    176,
    0,
    63,
    192,
    90,
    0,
    120,
    15,
    248,
    192,
    0,
    255,
    1,
    104,
    1,
    232,
    127,
    192,
    90,
    0,
    122,
    31,
    240,
    22,
    128,
    30,
    135,
    252,
    5,
    160,
    7,
    128,
    255,
    0,
]


def test_without_a_json_images_are_called_like_their_tasks(tmp_path: Path, drawn) -> None:
    root = write_label_studio_png(tmp_path / "set", *drawn, CLASSES)
    (root / "project-7.json").unlink()
    for name in ("train.txt", "test.txt"):
        (root / name).unlink()
    for number, path in enumerate(sorted((root / "images").iterdir()), start=11):
        path.rename(path.with_name(f"task-{number}.jpg"))
    dataset = open_dataset(root)
    masks = dict(zip(dataset.splits["train"].names, indices(dataset, "train"), strict=True))
    for number, one in enumerate((*drawn[0], *drawn[1]), start=11):
        assert np.array_equal(masks.get(f"task-{number}", one.mask), one.mask)
    assert len(masks) > 4


def test_an_export_of_label_studio_may_have_polygons_and_more_labels(tmp_path: Path, drawn) -> None:
    root = write_label_studio(tmp_path / "set", *drawn, CLASSES)
    content = json.loads((root / "project-7.json").read_text())
    value = {"points": [[0, 0], [50, 0], [50, 100], [0, 100]], "polygonlabels": ["disc"], "closed": True}
    content[0]["annotations"][0]["result"] = [
        {"type": "polygonlabels", "original_width": 32, "original_height": 32, "value": value}
    ]
    content[1]["annotations"] = []
    (root / "project-7.json").write_text(json.dumps(content))
    write_list(root / "train.txt", ["n00", "n02", "n03"])
    dataset = open_dataset(root, classes=("background", "disc", "tree", "box"))
    assert dataset.splits["train"].names == ["n00", "n02", "n03"]
    assert (indices(dataset, "train")[0] == np.repeat([[1] * 16 + [0] * 16], 32, axis=0)).all()


def real_pets(root: Path, train: int, test: int) -> tuple[list[Labeled], list[Labeled]]:
    """Real images with their trimaps as class indices of background, border and pet."""
    pets, parts = open_dataset(root), []
    order = np.array([2, 0, 1], np.uint8)
    for split, count in (("train", train), ("test", test)):
        chosen = sorted(pets.splits[split], key=lambda pair: pair.name)[:: len(pets.splits[split]) // count][:count]
        masks = (to_class_indices(read_mask(pair.mask), pets.mask_values, pair.mask) for pair in chosen)
        found = zip(chosen, masks, strict=True)
        parts.append([Labeled(pair.name, pair.image.read_bytes(), order[mask]) for pair, mask in found])
    return parts[0], parts[1]


@pytest.mark.real
@pytest.mark.slow
def test_forty_real_images_are_the_same_in_every_layout(tmp_path: Path, real_data: Path) -> None:
    train, test = real_pets(real_data / "oxford-iiit-pet-sample", 30, 10)
    rows = {}
    for name, (layout, write) in WRITERS.items():
        root = write(tmp_path / name / "pets", train, test, ("background", "border", "pet"))
        dataset = open_dataset(root)
        assert (dataset.classes, find_layouts(root)) == (("background", "border", "pet"), [layout])
        for split, members in (("train", train), ("test", test)):
            for found, one in zip(indices(dataset, split), members, strict=True):
                assert np.array_equal(found, one.mask)
        if name not in ("parquet", "folder"):  # whose names are others, so the order is another
            path = segae.finetune(root, out=tmp_path / name / "run", **QUICK).path
            rows[name] = segae.evaluate(path, root).as_row()
    assert len(rows) == 8
    assert all(row == rows["coco"] for row in rows.values())
