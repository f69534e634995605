"""Labeled folders, the Pets layout and unlabeled folders, as people really have them; lists that stay small."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segae.data import (
    PETS_CLASSES,
    OxfordPets,
    Pair,
    PairList,
    PathList,
    SegmentationFolder,
    SkippedFiles,
    UnreadableImage,
    cache_pairs,
    check_masks,
    download_pets,
    find_images,
    make_palette,
    map_classes,
    open_dataset,
    open_dataset_like,
    read_image,
    read_mask,
    to_class_indices,
    train_val_split,
)
from segae.errors import DataError
from tests.fabricate import make_folder, make_images, make_pets, save, write_list


def names(data: SegmentationFolder, split: str) -> list[str]:
    return list(data.splits[split].names)


def test_classes_come_from_the_masks_the_file_or_the_argument(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 6, 2, values=(0, 255))
    data = SegmentationFolder(root)
    assert (data.name, data.classes, data.mask_values) == ("set", ("class_0", "class_255"), (0, 255))
    assert len(data.palette) == 2
    cached = cache_pairs(data.splits["train"], 16, data.mask_values, SkippedFiles())
    assert np.unique(cached.masks).tolist() == [0, 1]
    (root / "classes.txt").write_text("background\n\n  nucleus \n", encoding="utf-8-sig")
    assert SegmentationFolder(root).classes == ("background", "nucleus")
    assert SegmentationFolder(root, ("a", "b")).classes == ("a", "b")
    (root / "classes.txt").write_text("chat\nchène\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"classes\.txt"):
        SegmentationFolder(root)


@pytest.mark.parametrize(
    ("found", "expected"), [((0, 1), (0, 1)), ((0, 255), (0, 255)), ((1, 1), (0, 1)), ((7, 300), (7, 300))]
)
def test_names_go_with_the_values_that_are_there(
    tmp_path: Path, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    root = make_folder(tmp_path / "set", values=found, classes=("background", "nucleus"))
    assert SegmentationFolder(root).mask_values == expected


def test_masks_are_looked_at_again_when_they_change(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    assert SegmentationFolder(root).mask_values == (0, 1)
    save(np.full((64, 64), 9, np.uint8), root / "masks" / "n1.png")
    (root / "masks" / "n0.png").write_bytes(b"damaged")
    assert SegmentationFolder(root).mask_values == (0, 1, 9)
    save(np.arange(100, dtype=np.uint8).reshape(10, 10), root / "masks" / "n1.png")
    with pytest.raises(DataError, match="64 values"):
        SegmentationFolder(root)
    Image.new("RGB", (6, 4), "red").save(root / "masks" / "n1.png")
    with pytest.raises(DataError, match=r"n1\.png"):
        SegmentationFolder(root)
    for path in (root / "masks").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="None of the masks"):
        SegmentationFolder(root)


def test_the_hash_split_is_stable_and_disjoint(tmp_path: Path) -> None:
    small = SegmentationFolder(make_folder(tmp_path / "small", 40, 0, size=16, lists=False))
    large = SegmentationFolder(make_folder(tmp_path / "large", 80, 0, size=16, lists=False))
    assert names(small, "test") == [name for name in names(large, "test") if int(name[1:]) < 40]
    assert not set(names(small, "test")) & set(names(small, "train"))
    assert len(names(large, "test") + names(large, "train")) == 80
    assert names(small, "test") != names(SegmentationFolder(small.root, seed=1), "test")
    assert not SegmentationFolder(small.root, test_fraction=0).splits["test"]


@pytest.mark.parametrize("place", [".", "annotations"])
@pytest.mark.parametrize("train_file", ["train.txt", "trainval.txt"])
def test_split_files_decide(tmp_path: Path, place: str, train_file: str, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "set", 10, 0, lists=False)
    for folder in ("images", "masks"):
        (root / folder / "n0.png").rename(root / folder / "slide 1.v2.png")
    (root / place).mkdir(exist_ok=True)
    (root / place / train_file).write_text("n2\nn1.jpg 1 1\n# comment\n\nn3.png\n")
    (root / place / "test.txt").write_text("slide 1.v2\n", encoding="utf-8-sig")
    data = SegmentationFolder(root)
    assert (names(data, "train"), names(data, "test")) == (["n2", "n1", "n3"], ["slide 1.v2"])
    assert "6 labeled images are in no split file" in caplog.text


@pytest.mark.parametrize(
    ("lists", "train", "val", "test"),
    [
        ({"train": "0123", "val": "45", "test": "67"}, "0123", "45", "67"),
        ({"trainval": "012345", "val": "45", "test": "67"}, "0123", "45", "67"),
        ({"train": "0123", "trainval": "012345", "val": "45", "test": "67"}, "0123", "45", "67"),
        ({"train": "0123", "val": "45"}, "0123", "45", "67"),
        ({"val": "45", "test": "67"}, "0123", "45", "67"),
        ({"test": "67"}, "012345", "", "67"),
        ({"val": "45"}, "02367", "45", "1"),  # the rest by a hash
    ],
)
def test_val_txt_is_the_validation_split(
    tmp_path: Path, lists: dict[str, str], train: str, val: str, test: str
) -> None:
    root = make_folder(tmp_path / "set", 8, 0, size=16, lists=False)
    for split, listed in lists.items():
        write_list(root / f"{split}.txt", [f"n{digit}" for digit in listed])
    data = open_dataset(root)
    found = {split: "".join(name[1:] for name in pairs.names) for split, pairs in data.splits.items()}
    assert found == {"train": train, "test": test} | ({"val": val} if val else {})


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train": ["n1", "nobody"]}, "nobody"),
        ({"train": ["n1"], "test": ["n1"]}, "n1"),
        ({"train": ["n1"], "val": ["n1"]}, "n1"),
        ({"val": ["n1"], "test": ["n1"]}, "n1"),
        ({"test": [""]}, "empty"),
    ],
)
def test_wrong_split_files_are_refused(tmp_path: Path, lists: dict[str, list[str]], message: str) -> None:
    root = make_folder(tmp_path / "set", size=16, lists=False)
    for split, listed in lists.items():
        write_list(root / f"{split}.txt", listed)
    with pytest.raises(DataError, match=message):
        SegmentationFolder(root)


def test_images_without_masks_are_counted_and_masks_without_images_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path / "set", lists=False)
    (root / "masks" / "n4.png").unlink()
    data = SegmentationFolder(root)
    assert "1 images have no mask" in caplog.text
    assert "n4" not in names(data, "train") + names(data, "test")
    (root / "images" / "n5.png").unlink()
    with pytest.raises(DataError, match=r"n5\.png"):
        SegmentationFolder(root)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    Image.new("L", (6, 4)).save(root / "images" / "n1.jpg")
    with pytest.raises(DataError, match=r"n1\.jpg and n1\.png"):
        SegmentationFolder(root)
    (root / "images" / "n1.jpg").unlink()
    with pytest.raises(DataError, match="classes"):
        SegmentationFolder(root, ("a", "a"))
    (root / "masks" / "more").mkdir()
    shutil.copy(root / "masks" / "n1.png", root / "masks" / "more" / "n1.png")
    with pytest.raises(DataError, match=r"masks without an image: more/n1\.png"):
        SegmentationFolder(root)
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "images" / ".hidden.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="no image file in"):
        SegmentationFolder(tmp_path / "empty")
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(DataError, match=str(folder)):
            open_dataset(folder)


def test_pets_have_the_official_splits_classes_and_values(tmp_path: Path) -> None:
    root = make_pets(tmp_path / "pets", 3, 2, val=1)
    data = open_dataset(root)
    assert isinstance(data, OxfordPets)
    assert {split: len(pairs) for split, pairs in data.splits.items()} == {"train": 3, "val": 1, "test": 2}
    assert not set(data.splits["train"].names) & set(data.splits["val"].names)
    assert (data.classes, data.missing) == (PETS_CLASSES, 0)
    cached = cache_pairs(data.splits["train"], 64, data.mask_values, SkippedFiles())
    for mask, pair in zip(cached.masks, data.splits["train"], strict=True):
        assert np.array_equal(mask, read_mask(pair.mask) - 1)
    with pytest.raises(DataError, match="classes"):
        open_dataset(root, classes=("a", "b"))


def test_of_a_partial_copy_of_pets_the_rest_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_pets(tmp_path / "pets", 3, 2)
    pairs = OxfordPets(root).splits
    pairs["train"][0].image.unlink()
    pairs["test"][1].mask.unlink()
    data = OxfordPets(root)
    assert ([len(data.splits[split]) for split in ("train", "test")], data.missing) == ([2, 1], 2)
    assert "3 of 5 listed images, 2 missing" in caplog.text


@pytest.mark.parametrize("part", ["images", "annotations/trimaps", "annotations/trainval.txt", "annotations/test.txt"])
def test_what_is_wrong_with_pets_is_named(tmp_path: Path, part: str) -> None:
    root = make_pets(tmp_path / "pets", 2, 1)
    if part.endswith("trainval.txt"):
        for text in ("beagle_1 1\n", "\n"):  # in both lists, or none
            (root / "annotations" / "test.txt").write_text(text)
            with pytest.raises(DataError, match="beagle_1|empty"):
                open_dataset(root)
    shutil.rmtree(root / part) if (root / part).is_dir() else (root / part).unlink()
    with pytest.raises(DataError, match=str(root / part)):
        open_dataset(root)


NAMED = ("sky", "cat", "fur", "dog")


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "animals", 3, 2, values=(0, 7, 3, 250), size=48)


def test_masks_hold_the_merged_classes(animals: Path) -> None:
    """The names belong to the folder's values in ascending order: 0, 3, 7, 250."""
    whole, data = (open_dataset(animals, classes=NAMED, merge=merge) for merge in ((), ("animal=cat+dog",)))
    assert data.classes == ("sky", "animal", "fur")
    assert data.palette == whole.palette[:3]
    assert data.mask_values == (0, (3, 250), 7)
    assert data.splits == whole.splits
    cached = cache_pairs(data.splits["train"], 48, data.mask_values, SkippedFiles())
    for mask, pair in zip(cached.masks, data.splits["train"], strict=True):
        raw = read_mask(pair.mask)
        assert np.array_equal(mask, np.select([np.isin(raw, (3, 250)), raw == 7], [1, 2], 0))
    assert map_classes(whole, ()) is whole
    again = map_classes(data, ("thing=animal+fur",))
    assert (again.classes, again.mask_values) == (("sky", "thing"), (0, (3, 250, 7)))
    assert map_classes(whole, ("cat=cat+dog",)).classes == ("sky", "cat", "fur")


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (("animal=cat+dgo",), "dgo"),
        (("animal",), "'animal'"),
        (("=cat+dog",), "form"),
        (("animal=cat+",), "form"),
        (("a=cat", "a=dog"), "once"),
        (("a=cat+dog", "b=dog"), "once"),
        (("sky=cat+dog",), "sky"),
        (("all=sky+cat+fur+dog",), "two or more"),
    ],
)
def test_what_cannot_be_merged_is_refused(animals: Path, merge: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"merge.*{message}"):
        open_dataset(animals, classes=NAMED, merge=merge)


def test_a_data_set_is_read_with_the_classes_of_a_model(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 4, 2, values=(0, 2), lists=False)  # lacks class 1 of the model
    model = {"model_classes": ("a", "b", "c"), "model_mask_values": (0, 1, 2)}
    assert open_dataset(root, classes=("a", "b", "c")).mask_values == (0, 1, 2)
    two = {"model_classes": ("a", "c"), "model_mask_values": (0, 1)}
    assert open_dataset_like(root, classes=("a", "c"), **two).mask_values == (0, 2)  # another coding
    with pytest.raises(DataError, match="classes"):
        open_dataset_like(root, **model)
    ones = make_folder(tmp_path / "ones", 4, 2, values=(3, 5))
    with pytest.raises(DataError, match="3, 5"):
        open_dataset_like(ones, classes=("a", "b", "c"), **model | {"model_mask_values": (0, 1, 9)})
    swapped = {"model_classes": ("a", "b"), "model_mask_values": [5, 3]}
    assert open_dataset_like(ones, classes=("a", "b"), **swapped).mask_values == (5, 3)
    pets = make_pets(tmp_path / "pets", 2, 1)
    merged = {
        "model_classes": ("fg", "background"),
        "model_mask_values": [[1, 3], 2],
        "model_merge": ("fg=pet+border",),
    }
    for merge in ((), ("fg=border+pet",)):
        assert open_dataset_like(pets, merge=merge, **merged).mask_values == ((1, 3), 2)
    with pytest.raises(DataError, match="merge"):
        open_dataset_like(pets, merge=("fg=pet+background",), **merged)


def test_masks_that_cannot_be_right_are_found_before_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 4, 2, classes=("a", "b"))
    check_masks(open_dataset(root))
    check_masks(open_dataset(make_pets(tmp_path / "pets", 2, 1)))
    good = (root / "masks" / "n5.png").read_bytes()  # of the test split
    save(np.zeros((64, 60), np.uint8), root / "masks" / "n5.png")
    with pytest.raises(DataError, match=r"n5\.png is 60 x 64"):
        check_masks(open_dataset(root))
    save(np.full((64, 64), 7, np.uint8), root / "masks" / "n5.png")
    with pytest.raises(DataError, match=r"n5\.png holds the value 7"):
        check_masks(open_dataset(root))
    (root / "masks" / "n5.png").write_bytes(good)
    for number in range(4):
        save(np.zeros((64, 64), np.uint8), root / "masks" / f"n{number}.png")
    with pytest.raises(DataError, match="one class only"):
        check_masks(open_dataset(root))


def test_palettes_are_distinct_and_grow() -> None:
    assert len(set(make_palette(30))) == 30
    assert make_palette(30)[:5] == make_palette(5)


def test_unlabeled_images_are_found_everywhere_but_among_masks(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set", 2, 1)
    (root / "unlabeled" / "deep").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "unlabeled" / "deep" / "noext", format="png")
    (root / "unlabeled" / "damaged.JPG").write_bytes(b"counts, and is skipped later")
    make_images(root / ".thumbnails", 1)
    found = find_images([root, root / "images"])
    assert [str(path.relative_to(root)) for path in found] == [
        *[f"images/n{number}.png" for number in range(3)],
        "unlabeled/damaged.JPG",
        "unlabeled/deep/noext",
    ]
    assert find_images([found[0]]) == [found[0]]
    assert len(find_images([root / "masks"])) == 3  # asked for by name
    assert found == sorted(found)
    for wrong in (tmp_path / "nowhere", root / ".thumbnails" / "none"):
        with pytest.raises(DataError, match=str(wrong)):
            find_images([wrong])


def test_links_are_followed_and_special_files_do_not_block(tmp_path: Path) -> None:
    root, linked = make_images(tmp_path / "set", 2), tmp_path / "linked"
    linked.mkdir()
    (linked / "there").symlink_to(root)
    (linked / "back").symlink_to(linked)
    assert len(find_images([linked])) == 2
    os.mkfifo(root / "fifo")
    os.mkfifo(root / "fifo.png")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    found = find_images([root])
    assert [path.name for path in found] == ["fifo.png", "loop.jpg", "photo_000.jpg", "photo_001.jpg"]
    for path in found[:2]:
        with pytest.raises(UnreadableImage):
            read_image(path)


def archives(folder: Path) -> dict[str, str]:
    """Pack a fabricated data set as its site does."""
    source = make_pets(folder / "source", 2, 1)
    checksums = {}
    for part in ("images", "annotations"):
        with tarfile.open(folder / f"{part}.tar.gz", "w:gz") as tar:
            tar.add(source / part, part)
        checksums[f"{part}.tar.gz"] = "md5:" + hashlib.md5((folder / f"{part}.tar.gz").read_bytes()).hexdigest()
    return checksums


def test_pets_are_downloaded_checked_and_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, fetched = archives(tmp_path), []

    def retrieve(url: str, known_hash: str, fname: str, path: Path, **_: object) -> str:
        fetched.append(url)
        return shutil.copy(tmp_path / fname, path / fname)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    root = download_pets(tmp_path / "pets", base_url="https://mirror/", archives=listed)
    assert len(open_dataset(root).splits["train"]) == 2
    (root / "images.tar.gz").unlink()  # the user makes room
    download_pets(root, base_url="https://mirror/", archives=listed)
    assert fetched == ["https://mirror/images.tar.gz", "https://mirror/annotations.tar.gz"]


def test_a_download_that_fails_names_the_address_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/images.tar.gz"):
        download_pets(tmp_path / "pets", base_url="http://127.0.0.1:9/", archives={"images.tar.gz": "md5:0"})
    evil = tmp_path / "evil.tar.gz"
    with tarfile.open(evil, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: str(evil))
    with pytest.raises(DataError, match="outside"):
        download_pets(tmp_path / "pets")
    assert not (tmp_path / "outside").exists()


FILES = st.text("aü漢/. ", min_size=1, max_size=12).map(Path)
PAIRS = st.lists(st.builds(Pair, st.text("aü漢 ", max_size=9), FILES, FILES), max_size=8)


@settings(max_examples=50, deadline=None)
@given(pairs=PAIRS, random=st.randoms(use_true_random=False), data=st.data())
def test_packed_lists_are_lists_in_all_but_memory(pairs: list[Pair], random: object, data: st.DataObject) -> None:
    packed = PairList(iter(pairs))
    assert packed == pairs == pickle.loads(pickle.dumps(packed))
    assert packed.names == [pair.name for pair in pairs]
    assert packed.images == tuple(pair.image for pair in pairs)
    places = random.sample(range(len(pairs)), len(pairs))
    assert packed.take(places) == [pairs[place] for place in places]
    cut = data.draw(st.slices(len(pairs)))
    assert packed[cut] == pairs[cut]
    assert [packed[place] for place in range(-len(pairs), len(pairs))] == pairs * 2
    assert PairList.of(packed) is packed
    assert packed != [*pairs, Pair("more", Path(), Path())]
    with pytest.raises(IndexError):
        packed[len(pairs)]
    assert PathList("abc") != "abc"
    assert isinstance(packed.images[:1], PathList)


def test_a_list_of_many_files_takes_little_memory() -> None:
    count, root = 20_000, Path("/data/some/folder")
    pairs = (Pair(f"{n:06d}", root / "images" / f"{n:06d}.jpg", root / "masks" / f"{n:06d}.png") for n in range(count))
    gc.collect()
    tracemalloc.start()
    packed = PairList(pairs)
    parts = train_val_split(packed, 0.2, 0)
    gc.collect()
    ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/segae/data/*")])
    tracemalloc.stop()
    assert len(parts[0]) + len(parts[1]) == count
    held = sum(trace.size for trace in ours.traces)
    assert held < 200 * count  # all, and split in two; objects take 1100 bytes a pair


@pytest.mark.real
def test_real_folders_open(real_data: Path) -> None:
    nuclei = open_dataset(real_data / "nuclei-dsb2018", classes=("background", "nucleus"))
    assert (len(nuclei.splits["train"]), len(nuclei.splits["test"]), nuclei.mask_values) == (459, 205, (0, 1))
    pets = open_dataset(real_data / "oxford-iiit-pet-sample")
    assert (len(pets.splits["train"]), len(pets.splits["test"]), pets.missing) == (300, 298, 0)
    assert len(find_images([pets.root])) == 600
    mask = to_class_indices(read_mask(pets.splits["train"][0].mask), pets.mask_values, Path())
    assert np.unique(mask).tolist() == [0, 1, 2]
