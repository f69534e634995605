"""images/ + masks/ folders and unlabelled folders, as people really have them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segae.data.cache import cache_pairs
from segae.data.folder import FolderData, find_images, make_palette
from segae.data.open import open_dataset
from segae.data.oxford_pets import OxfordPets
from segae.data.quarantine import Quarantine
from segae.errors import SegaeError

Maker = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Make a folder of `count` pairs whose masks hold the given values."""

    def make(values: tuple[int, ...] = (0, 1), count: int = 10, name: str = "set") -> Path:
        root = tmp_path / name
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            mask = np.resize(np.array(values, np.uint16 if max(values) > 255 else np.uint8), (4, 30))
            Image.fromarray(np.full((4, 30, 3), number, np.uint8)).save(root / "images" / f"n{number}.jpg")
            Image.fromarray(mask).save(root / "masks" / f"n{number}.png")
        return root

    return make


def name_set(data: FolderData, split: str) -> set[str]:
    return {pair.name for pair in data.splits[split]}


def test_classes_are_inferred_from_the_masks(make: Maker) -> None:
    data = FolderData(make((0, 255)))
    assert data.classes == ("class_0", "class_255")
    assert data.mask_values == (0, 255)
    assert len(data.palette) == 2
    cached = cache_pairs(data.splits["test"], 4, data.mask_values, Quarantine(), progress=False)
    assert np.unique(cached.masks).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("found", "expected"), [((0, 1), (0, 1)), ((0, 255), (0, 255)), ((1,), (0, 1)), ((7, 300), (7, 300))]
)
def test_names_go_with_the_values_that_are_there(
    make: Maker, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    root = make(found)
    assert FolderData(root, ("background", "nucleus")).mask_values == expected
    (root / "classes.txt").write_text("background\n\n  nucleus \n")
    assert FolderData(root).classes == ("background", "nucleus")
    assert FolderData(root).mask_values == expected
    assert FolderData(root, ("a", "b")).classes == ("a", "b")


def test_a_value_without_a_name_is_an_error_when_the_mask_is_read(make: Maker) -> None:
    data = FolderData(make((0, 1, 2)), ("background", "nucleus"))
    with pytest.raises(SegaeError, match=r"n\d\.png holds the value 2,.*Wanted only 0, 1"):
        cache_pairs(data.splits["train"], 4, data.mask_values, Quarantine(), progress=False)


def test_photographs_are_no_masks(make: Maker) -> None:
    with pytest.raises(SegaeError, match="more than 64 different values"):
        FolderData(make(tuple(range(100)), count=12))
    root = make((0, 1), name="coloured")
    Image.new("RGB", (6, 4), "red").save(root / "masks" / "n3.png")
    with pytest.raises(SegaeError, match=r"n3\.png is no class mask: it holds colours"):
        FolderData(root)


def test_the_hash_split_is_stable_and_disjoint(make: Maker) -> None:
    small, large = FolderData(make(count=40)), FolderData(make(count=80, name="larger"))
    assert name_set(small, "test") == name_set(large, "test") & {f"n{number}" for number in range(40)}
    assert not name_set(small, "test") & name_set(small, "train")
    assert len(name_set(large, "test") | name_set(large, "train")) == 80
    assert name_set(small, "test") != name_set(FolderData(small.root, seed=1), "test")
    assert not FolderData(small.root, test_fraction=0).splits["test"]


@pytest.mark.parametrize("place", [".", "annotations"])
@pytest.mark.parametrize("train_file", ["train.txt", "trainval.txt"])
def test_split_files_decide(make: Maker, place: str, train_file: str, caplog: pytest.LogCaptureFixture) -> None:
    root = make()
    (root / place).mkdir(exist_ok=True)
    (root / place / train_file).write_text("n2\nn1.jpg 1 1\n# comment\n\nn3.png\n")
    (root / place / "test.txt").write_text("n7\n")
    with caplog.at_level(logging.WARNING, "segae"):
        data = FolderData(root)
    assert [pair.name for pair in data.splits["train"]] == ["n2", "n1", "n3"]
    assert [pair.name for pair in data.splits["test"]] == ["n7"]
    assert "6 labelled images are in no split file" in caplog.text


def test_one_split_file_leaves_the_rest_to_the_other(make: Maker) -> None:
    root = make()
    (root / "test.txt").write_text("n1\nn2\n")
    data = FolderData(root)
    assert name_set(data, "test") == {"n1", "n2"}
    assert len(name_set(data, "train")) == 8


def test_lists_of_other_editors_are_read_or_refused_in_words(make: Maker) -> None:
    root = make(count=4)
    (root / "classes.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    (root / "test.txt").write_text("n1\nn2\n", encoding="utf-8-sig")
    data = open_dataset(root)
    assert data.classes == ("cat", "dog")
    assert name_set(data, "test") == {"n1", "n2"}
    (root / "classes.txt").write_text("chat\nchène\n", encoding="latin-1")
    with pytest.raises(SegaeError, match=r"classes.txt is no text in UTF-8"):
        open_dataset(root)


def test_names_with_dots_and_spaces_are_found(make: Maker) -> None:
    root = make(count=3)
    for folder, extension in (("images", "jpg"), ("masks", "png")):
        (root / folder / f"n0.{extension}").rename(root / folder / f"slide 1.v2.{extension}")
    (root / "test.txt").write_text("slide 1.v2\n")
    assert name_set(FolderData(root), "test") == {"slide 1.v2"}


def test_wrong_split_files_are_refused(make: Maker) -> None:
    root = make()
    (root / "train.txt").write_text("n1\nnobody\n")
    with pytest.raises(SegaeError, match=r"train\.txt lists 1 name.*nobody"):
        FolderData(root)
    (root / "train.txt").write_text("n1\n")
    (root / "test.txt").write_text("n1\n")
    with pytest.raises(SegaeError, match="n1 for training and for test"):
        FolderData(root)
    (root / "test.txt").write_text("\n")
    with pytest.raises(SegaeError, match="empty"):
        FolderData(root)


def test_images_without_masks_are_counted_and_masks_without_images_refused(
    make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    root = make()
    (root / "masks" / "n4.png").unlink()
    with caplog.at_level(logging.WARNING, "segae"):
        data = FolderData(root)
    assert "1 of 10 images have no mask" in caplog.text
    assert "n4" not in name_set(data, "train") | name_set(data, "test")
    (root / "images" / "n5.jpg").unlink()
    with pytest.raises(SegaeError, match=r"1 mask.*no image: n5\.png"):
        FolderData(root)


def test_broken_folders_are_named(make: Maker, tmp_path: Path) -> None:
    root = make()
    Image.new("L", (6, 4)).save(root / "images" / "n1.png")
    with pytest.raises(SegaeError, match=r"n1\.jpg and n1\.png"):
        FolderData(root)
    (root / "images" / "n1.png").unlink()
    (root / "masks" / "more").mkdir()
    with pytest.raises(SegaeError, match="subfolders: more"):
        FolderData(root)
    with pytest.raises(SegaeError, match=r"no folder .*images"):
        FolderData(tmp_path / "nowhere")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "images" / ".hidden.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SegaeError, match="no image file in"):
        FolderData(tmp_path / "empty")
    with pytest.raises(SegaeError, match="not all different"):
        FolderData(make(name="twins"), ("a", "a"))
    with pytest.raises(SegaeError, match="two or more"):
        FolderData(make(count=1, name="lonely"))


def test_an_unreadable_mask_does_not_stop_the_opening(make: Maker) -> None:
    root = make()
    (root / "masks" / "n0.png").write_bytes(b"damaged")
    assert FolderData(root).mask_values == (0, 1)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(SegaeError, match="None of the masks"):
        FolderData(root)


def test_the_scan_sees_a_changed_mask(make: Maker) -> None:
    root = make()
    assert FolderData(root).mask_values == (0, 1)
    Image.fromarray(np.full((4, 30), 9, np.uint8)).save(root / "masks" / "n1.png")
    assert FolderData(root).mask_values == (0, 1, 9)


def test_palettes_are_distinct_and_grow() -> None:
    assert len(set(make_palette(30))) == 30
    assert make_palette(30)[:5] == make_palette(5)
    assert all(0 <= value <= 255 for colour in make_palette(64) for value in colour)


def test_unlabelled_images_are_found_everywhere_but_among_masks(make: Maker) -> None:
    root = make(count=3)
    (root / "unlabelled" / "deep").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "unlabelled" / "deep" / "noext", format="png")
    (root / "unlabelled" / "damaged.JPG").write_bytes(b"counts, and is quarantined later")
    (root / "unlabelled" / "readme.txt").write_text("no image")
    (root / ".thumbnails").mkdir()
    Image.new("RGB", (4, 4)).save(root / ".thumbnails" / "t.png")
    found = find_images([root, root / "images"])
    assert [str(path.relative_to(root)) for path in found] == [
        *[f"images/n{number}.jpg" for number in range(3)],
        "unlabelled/damaged.JPG",
        "unlabelled/deep/noext",
    ]
    assert find_images([found[0]]) == [found[0]]
    assert len(find_images([root / "masks"])) == 3  # asked for by name


def test_links_are_followed_and_circles_end(make: Maker, tmp_path: Path) -> None:
    root = make(count=2)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "there").symlink_to(root / "images")
    (tmp_path / "linked" / "back").symlink_to(tmp_path / "linked")
    assert len(find_images([tmp_path / "linked"])) == 2


def test_missing_and_empty_image_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SegaeError, match=r"no folder .*nowhere"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SegaeError, match=r"no image in .*empty"):
        find_images([tmp_path / "empty"])


def test_open_dataset_tells_the_layouts_apart(make: Maker, tmp_path: Path) -> None:
    root = make()
    (root / "annotations").mkdir()
    (root / "annotations" / "test.txt").write_text("n1\n")
    assert isinstance(open_dataset(root, ("a", "b")), FolderData)
    with pytest.raises(SegaeError, match=r"There is no folder .*segae data pets --root"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(SegaeError, match="no labelled data set: it holds nothing"):
        open_dataset(tmp_path / "other")
    (tmp_path / "half" / "annotations").mkdir(parents=True)
    (tmp_path / "half" / "annotations" / "trainval.txt").write_text("a 1 1 1\n")
    with pytest.raises(SegaeError, match="no Oxford-IIIT Pet data set"):
        open_dataset(tmp_path / "half")


@pytest.mark.real
def test_real_folders_open(real_data: Path) -> None:
    nuclei = open_dataset(real_data / "nuclei-dsb2018", ("background", "nucleus"))
    assert (len(nuclei.splits["train"]), len(nuclei.splits["test"])) == (459, 205)
    assert nuclei.mask_values == (0, 1)
    assert isinstance(open_dataset(real_data / "oxford-iiit-pet-sample"), OxfordPets)
    with pytest.raises(SegaeError, match="classes are pet, background, border"):
        open_dataset(real_data / "oxford-iiit-pet-sample", ("a", "b"))
    pets = find_images([real_data / "oxford-iiit-pet-sample"])
    assert len(pets) == 600
    assert {path.parent.name for path in pets} == {"images"}
