"""Drawn pets: the official layout, the same bytes for the same seed, a task that colour does not solve."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from segae.data.drawn_pets import draw_pet, draw_pets
from segae.errors import SegaeError
from segae.tasks.data import DataPets, run_pets

SIZE = 48


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "pets"
    return draw_pets(root, train=14, test=9, size=SIZE, seed=3, unlabelled=5, progress=False)


@pytest.fixture(scope="module")
def pictures() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_pet(np.random.default_rng([11, index]), 64) for index in range(160)]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def names(root: Path, split: str) -> list[str]:
    return [line.split()[0] for line in (root / "annotations" / f"{split}.txt").read_text().splitlines()]


def test_same_seed_same_bytes_and_another_seed_other_ones(drawn: Path, tmp_path: Path) -> None:
    again = draw_pets(tmp_path / "again", 14, 9, SIZE, seed=3, unlabelled=5, progress=False)
    assert contents(again) == contents(drawn)
    other = contents(draw_pets(tmp_path / "other", 14, 9, SIZE, seed=4, unlabelled=5, progress=False))
    for name, data in contents(drawn).items():
        assert (other[name] != data) == (not name.endswith(".txt")), name


def test_more_pictures_keep_the_first_ones(drawn: Path, tmp_path: Path) -> None:
    more = contents(draw_pets(tmp_path / "more", 40, 11, SIZE, seed=3, unlabelled=6, progress=False))
    kept = {name: data for name, data in contents(drawn).items() if name.endswith((".jpg", ".png"))}
    assert len(kept) == 2 * (14 + 9) + 5
    assert {name: more[name] for name in kept} == kept


def test_lists_are_official_and_name_what_is_there(drawn: Path) -> None:
    # The official file's own lines for these breeds.
    official = {
        "Abyssinian": "1 1 1", "american_bulldog": "2 2 1", "Bengal": "6 1 2", "Birman": "7 1 3",
        "boxer": "9 2 6", "Persian": "24 1 8", "Sphynx": "34 1 12", "yorkshire_terrier": "37 2 25",
    }  # fmt: skip
    seen = set()
    for line in (drawn / "annotations" / "list.txt").read_text().splitlines():
        name, ids = line.split(" ", 1)
        breed, number = name.rsplit("_", 1)
        class_id, species, breed_id = map(int, ids.split())
        assert number.isdigit()
        assert 1 <= class_id <= 37
        assert 1 <= breed_id <= (12 if species == 1 else 25)
        assert (species == 1) == breed[0].isupper()
        assert official.get(breed, ids) == ids
        assert (drawn / "images" / f"{name}.jpg").is_file()
        assert (drawn / "annotations" / "trimaps" / f"{name}.png").is_file()
        seen.add(species)
    assert seen == {1, 2}
    train, test = names(drawn, "trainval"), names(drawn, "test")
    assert (len(train), len(test)) == (14, 9)
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(names(drawn, "list"))
    assert len(list((drawn / "images").iterdir())) == 23
    assert len(list((drawn / "unlabelled").iterdir())) == 5


def test_official_sample_has_the_same_ids(real_data: Path, tmp_path: Path) -> None:
    root = draw_pets(tmp_path / "pets", 37, 0, 32, progress=False)
    ids: dict[str, str] = {}
    for folder in (root, real_data / "oxford-iiit-pet-sample"):
        for line in (folder / "annotations" / "trainval.txt").read_text().splitlines():
            name, numbers = line.split(" ", 1)
            assert ids.setdefault(name.rsplit("_", 1)[0], numbers) == numbers
    assert len(ids) == 37


def test_no_picture_is_in_two_splits(drawn: Path) -> None:
    images = [*(drawn / "images").iterdir(), *(drawn / "unlabelled").iterdir()]
    pixels = [cv2.imread(str(path)).astype(int).ravel() for path in images]
    for index, first in enumerate(pixels):
        for second in pixels[:index]:
            assert np.abs(first - second).mean() > 5


def test_files_are_what_their_names_say(drawn: Path) -> None:
    for name in names(drawn, "list"):
        assert (drawn / "images" / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
        image = cv2.imread(str(drawn / "images" / f"{name}.jpg"), cv2.IMREAD_UNCHANGED)
        trimap = cv2.imread(str(drawn / "annotations" / "trimaps" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert image.shape == (SIZE, SIZE, 3)
        assert trimap.shape == (SIZE, SIZE)
        assert trimap.dtype == np.uint8
        assert set(np.unique(trimap)) == {1, 2, 3}


def test_pet_covers_a_natural_share(pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for image, trimap in pictures:
        assert image.dtype == trimap.dtype == np.uint8
        assert set(np.unique(trimap)) == {1, 2, 3}
        pet, border = (trimap == 1).mean(), (trimap == 3).mean()
        assert 0.08 < pet < 0.70
        assert pet + border > 0.15
        assert image.std() > 8  # something is to be seen
    shares = [(trimap == 1).mean() for _, trimap in pictures]
    assert np.quantile(shares, 0.9) > 1.8 * np.quantile(shares, 0.1)


def test_border_lies_between_pet_and_background(pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    square = np.ones((3, 3), np.uint8)
    for _, trimap in pictures:
        beside_pet = cv2.dilate((trimap == 1).astype(np.uint8), square) > 0
        assert not (beside_pet & (trimap == 2)).any()
        assert 0.02 < (trimap == 3).mean() < 0.35


@pytest.mark.parametrize("size", [32, 65, 160])
def test_every_size_is_drawn_at_that_size(size: int) -> None:
    image, trimap = draw_pet(np.random.default_rng(2), size)
    assert image.shape == (size, size, 3)
    assert trimap.shape == (size, size)


def test_colour_alone_does_not_find_the_pet(pictures: list[tuple[np.ndarray, np.ndarray]]) -> None:
    fitted, unseen = pictures[:110], pictures[110:]

    def colours(image: np.ndarray) -> np.ndarray:
        return (image // 16).astype(int) @ (256, 16, 1)

    counts = np.ones((2, 4096))
    for image, trimap in fitted:
        for row, value in enumerate((2, 1)):
            counts[row] += np.bincount(colours(image)[trimap == value], minlength=4096)
    share = counts.sum(1, keepdims=True)
    is_pet = (counts / share)[1] > (counts / share)[0]  # balanced: else everything would be background
    confusion = np.zeros((2, 2))
    for image, trimap in unseen:
        for row, value in enumerate((2, 1)):
            guess = is_pet[colours(image)[trimap == value]]
            confusion[row] += (~guess).sum(), guess.sum()
    overlap = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert overlap.mean() < 0.55, overlap  # guessing gives about 0.42; measured 0.42


def test_drawing_again_writes_nothing(drawn: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    draw_pets(drawn, 14, 9, SIZE, seed=3, unlabelled=5, progress=False)
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before


def test_interrupted_drawing_is_taken_up_again(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pets"
    with monkeypatch.context() as patch:
        patch.setattr("segae.data.drawn_pets._write_lists", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            draw_pets(root, 14, 9, SIZE, seed=3, unlabelled=5, progress=False)
    assert not (root / "drawn.json").exists()
    next((root / "images").iterdir()).write_bytes(b"half a picture")
    draw_pets(root, 14, 9, SIZE, seed=3, unlabelled=5, progress=False)
    assert contents(root) == contents(drawn)


@pytest.mark.parametrize("change", [{"train": 15}, {"size": 64}, {"seed": 0}, {"unlabelled": 0}])
def test_other_parameters_do_not_touch_a_drawn_folder(drawn: Path, change: dict[str, int]) -> None:
    before = contents(drawn)
    arguments = {"train": 14, "test": 9, "size": SIZE, "seed": 3, "unlabelled": 5} | change
    with pytest.raises(SegaeError, match="name another folder"):
        draw_pets(drawn, **arguments, progress=False)
    assert contents(drawn) == before


def test_other_content_is_not_drawn_over(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(SegaeError, match="new or empty folder"):
        draw_pets(tmp_path, 2, 1, 32, progress=False)
    with pytest.raises(SegaeError, match="is a file"):
        draw_pets(tmp_path / "diary.txt", 2, 1, 32, progress=False)
    assert contents(tmp_path) == {"diary.txt": b"mine"}


@pytest.mark.parametrize("bad", [{"size": 31}, {"train": -1}, {"test": -1}, {"unlabelled": -2}, {"seed": -1}])
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, bad: dict[str, int]) -> None:
    arguments = {"train": 1, "test": 1, "size": 32} | bad
    with pytest.raises(SegaeError, match=str(next(iter(bad.values())))):
        draw_pets(tmp_path / "pets", **arguments, progress=False)
    assert not (tmp_path / "pets").exists()


def test_real_pets_are_not_unpacked_among_drawn_ones(drawn: Path) -> None:
    before = contents(drawn)
    with pytest.raises(SegaeError, match="holds drawn pets.*segae data pets --root"):
        run_pets(DataPets(drawn))
    assert contents(drawn) == before
