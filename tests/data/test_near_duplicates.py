"""Copies of a picture are found whatever was done to them; different pictures are let alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segae.data import near_duplicates
from segae.data.drawn_pets import draw_pet
from segae.data.images import read_image
from segae.data.near_duplicates import find_duplicates, without_duplicates

Picture = Image.Image


def as_jpeg(picture: Picture) -> Picture:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=40)
    return Image.open(stored).convert("RGB")


def without_corner(picture: Picture) -> Picture:
    width, height = picture.size
    return picture.crop((round(0.03 * width), round(0.03 * height), width, height))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "jpeg": as_jpeg,
    "resized": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
    "cropped": without_corner,
    "brighter": lambda picture: picture.point(lambda value: min(255, int(1.3 * value))),
    "darker": lambda picture: picture.point(lambda value: int(0.7 * value)),
    "mirrored": lambda picture: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "all of it": lambda picture: as_jpeg(without_corner(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))),
}


def write(picture: Picture | np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty different drawn pets."""
    folder, generator = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    return [write(draw_pet(generator, 128)[0], folder / f"pet_{index}.png") for index in range(40)]


def cells(generator: np.random.Generator) -> np.ndarray:
    """A dark picture with a few faint round spots and noise: nothing but where the spots are tells two apart."""
    y, x = np.mgrid[:128, :160]
    grey = generator.normal(9, 1.5, (128, 160))
    for _ in range(12):
        at_y, at_x, radius = generator.integers(128), generator.integers(160), generator.uniform(4, 8)
        grey += 25 * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / radius**2)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_named(drawn: list[Path], tmp_path: Path, change: str) -> None:
    copy = write(CHANGES[change](Image.open(drawn[3])), tmp_path / "holiday.png")
    found = find_duplicates([*drawn[20:], copy], drawn[:20])
    assert [(one.image, one.of, one.kind) for one in found] == [(copy, drawn[3], "near")]
    assert not found[0].exact
    assert str(found[0]) == f"{copy} looks like {drawn[3]}"


def test_different_pictures_are_no_duplicates(drawn: list[Path]) -> None:
    assert find_duplicates(drawn[:20], drawn[20:]) == []


@pytest.mark.parametrize("change", ["jpeg", "resized", "mirrored"])
def test_dark_pictures_that_are_alike_are_told_apart(tmp_path: Path, change: str) -> None:
    generator = np.random.default_rng(0)
    paths = [write(cells(generator), tmp_path / f"cells_{index}.png") for index in range(30)]
    copy = write(CHANGES[change](Image.open(paths[5])), tmp_path / "other" / "copy.png")
    assert [(one.image, one.of) for one in find_duplicates([*paths[15:], copy], paths[:15])] == [(copy, paths[5])]


def test_where_the_hash_alone_would_err_the_correlation_decides(
    drawn: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "_MOST_BITS", 256)  # every pair is a candidate
    assert find_duplicates(drawn[:20], drawn[20:]) == []
    monkeypatch.setattr(near_duplicates, "_LEAST_CORRELATION", -1)
    assert len(find_duplicates(drawn[:20], drawn[20:])) == 20


def test_equal_files_and_equal_pixels_are_exact(drawn: list[Path], tmp_path: Path) -> None:
    renamed = tmp_path / "another_name.jpg"
    shutil.copy(drawn[0], renamed)
    again = write(Image.open(drawn[1]), tmp_path / "saved_again.tif")
    found = find_duplicates([renamed, again, drawn[2]], drawn[:10])
    assert [(one.image, one.of, one.kind) for one in found] == [
        (renamed, drawn[0], "file"),
        (again, drawn[1], "pixels"),
        (drawn[2], drawn[2], "file"),
    ]
    assert all(one.exact for one in found)


def test_pictures_of_one_colour_are_only_found_where_their_pixels_are_equal(tmp_path: Path) -> None:
    flat = [write(np.full((80, 80, 3), level, np.uint8), tmp_path / f"{level}.png") for level in (0, 1, 200)]
    same = write(np.full((80, 80, 3), 200, np.uint8), tmp_path / "same.bmp")
    assert find_duplicates(flat[:1], flat[1:]) == []
    assert [one.kind for one in find_duplicates([same], flat)] == ["pixels"]


def test_unreadable_files_repeat_nothing(drawn: list[Path], tmp_path: Path) -> None:
    broken = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for number, path in enumerate(broken):
        path.write_bytes(b"\xff\xd8\xff" + bytes([number]))
    gone = tmp_path / "gone.jpg"
    assert find_duplicates([broken[0], gone], [broken[1], tmp_path / "gone_too.jpg", *drawn[:3]]) == []
    assert find_duplicates([], drawn) == find_duplicates(drawn, []) == []


def test_a_file_is_decoded_once_and_again_when_it_has_changed(
    tmp_path: Path, drawn: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    files = [Path(shutil.copy(path, tmp_path / path.name)) for path in drawn[:4]]
    for path in files:
        os.utime(path, (1e9, 1e9))  # a file of a moment ago is not remembered
    decoded: list[Path] = []
    monkeypatch.setattr(near_duplicates, "read_image", lambda path: decoded.append(path) or read_image(path))
    for _ in range(2):
        assert find_duplicates(files[:2], files[2:]) == []
    assert sorted(decoded) == sorted(files)
    write(CHANGES["mirrored"](Image.open(files[2])), files[0])
    os.utime(files[0], (1.1e9, 1.1e9))
    assert [one.of for one in find_duplicates(files[:2], files[2:])] == [files[2]]


def test_blocks_change_nothing(drawn: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [write(as_jpeg(Image.open(path)), tmp_path / path.name) for path in drawn[:12]]
    whole = find_duplicates(copies, drawn)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 3 * len(drawn))
    assert find_duplicates(copies, drawn) == whole
    assert [one.of for one in whole] == drawn[:12]


def test_what_repeats_a_test_image_is_left_out_and_counted(
    drawn: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near = write(as_jpeg(Image.open(drawn[0])), tmp_path / "near.png")
    exact = Path(shutil.copy(drawn[1], tmp_path / "exact.png"))
    assert without_duplicates([*drawn[10:], near, exact], drawn[:10]) == drawn[10:]
    assert "2 of 32 images are left out" in caplog.text
    assert "(1 of them nearly)" in caplog.text


@pytest.mark.real
@pytest.mark.slow
def test_of_real_images_only_real_copies_are_reported(real_data: Path) -> None:
    pets, nuclei = real_data / "oxford-iiit-pet-sample", real_data / "nuclei-dsb2018"
    for root, lists, expected in (
        (pets, pets / "annotations", {("Abyssinian_151", "Abyssinian_99"), ("Abyssinian_82", "Abyssinian_66")}),
        (nuclei, nuclei, set()),
    ):
        test = {Path(line.split()[0]).stem for line in (lists / "test.txt").read_text().splitlines() if line}
        images = sorted((root / "images").iterdir())
        found = find_duplicates(
            [path for path in images if path.stem not in test], [path for path in images if path.stem in test]
        )
        assert {(one.image.stem, one.of.stem) for one in found} == expected
        assert not any(one.exact for one in found)
