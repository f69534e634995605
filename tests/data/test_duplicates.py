"""Copies of a picture are found whatever was done to them; different pictures are let alone."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from segae.data import duplicates, find_duplicates, open_dataset, read_image
from tests.fabricate import drawings, make_images, save

Picture = Image.Image


def as_jpeg(picture: Picture) -> Picture:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=40)
    return Image.open(stored).convert("RGB")


def without_corner(picture: Picture) -> Picture:
    return picture.crop((round(0.03 * picture.width), round(0.03 * picture.height), picture.width, picture.height))


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "jpeg": as_jpeg,
    "resized": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
    "cropped": without_corner,
    "brighter": lambda picture: picture.point(lambda value: min(255, int(1.3 * value))),
    "darker": lambda picture: picture.point(lambda value: int(0.7 * value)),
    "mirrored": ImageOps.mirror,
    "all of it": lambda picture: as_jpeg(without_corner(ImageOps.mirror(picture))),
}


def changed(path: Path, change: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as picture:
        CHANGES[change](picture).save(target)
    return target


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [save(image, folder / f"{place}.png") for place, (image, _) in enumerate(drawings(40, 128, 2, 0))]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_named(pictures: list[Path], tmp_path: Path, change: str) -> None:
    copy = changed(pictures[3], change, tmp_path / "holiday.png")
    found = find_duplicates([*pictures[20:], copy], pictures[:20])
    assert [(one.image, one.of, one.kind) for one in found] == [(copy, pictures[3], "near")]
    assert not found[0].exact
    assert str(found[0]) == f"{copy} looks like {pictures[3]}"
    assert find_duplicates([copy], pictures, near=False) == []


@pytest.mark.parametrize("change", ["jpeg", "resized", "mirrored"])
def test_dark_pictures_that_are_alike_are_told_apart(tmp_path: Path, change: str) -> None:
    """Faint round spots and noise: nothing but where the spots are tells two of them apart."""
    generator, paths = np.random.default_rng(0), []
    y, x = np.mgrid[:128, :160]
    for index in range(30):
        gray = generator.normal(9, 1.5, (128, 160))
        for _ in range(12):
            at_y, at_x, radius = generator.integers(128), generator.integers(160), generator.uniform(4, 8)
            gray += 25 * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / radius**2)
        paths.append(save(np.repeat(gray.clip(0, 255).astype(np.uint8)[..., None], 3, 2), tmp_path / f"{index}.png"))
    copy = changed(paths[5], change, tmp_path / "other" / "copy.png")
    assert [(one.image, one.of) for one in find_duplicates([*paths[15:], copy], paths[:15])] == [(copy, paths[5])]


def test_where_the_hash_alone_would_err_the_correlation_decides(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_duplicates(pictures[:20], pictures[20:]) == []
    monkeypatch.setattr(duplicates, "_MOST_BITS", 256)  # every pair is a candidate
    assert find_duplicates(pictures[:20], pictures[20:]) == []
    monkeypatch.setattr(duplicates, "_LEAST_CORRELATION", -1)
    assert len(find_duplicates(pictures[:20], pictures[20:])) == 20


def test_equal_files_and_equal_pixels_are_exact(pictures: list[Path], tmp_path: Path) -> None:
    renamed, again = tmp_path / "another_name.jpg", tmp_path / "saved_again.tif"
    shutil.copy(pictures[0], renamed)
    save(read_image(pictures[1]), again)
    found = find_duplicates([renamed, again, pictures[2]], pictures[:10])
    assert [(one.image, one.of, one.kind) for one in found] == [
        (renamed, pictures[0], "file"),
        (again, pictures[1], "pixels"),
        (pictures[2], pictures[2], "file"),
    ]
    assert all(one.exact for one in found)


def test_pictures_of_one_color_are_only_found_where_their_pixels_are_equal(tmp_path: Path) -> None:
    flat = [save(np.full((80, 80, 3), level, np.uint8), tmp_path / f"{level}.png") for level in (0, 1, 200)]
    same = save(np.full((80, 80, 3), 200, np.uint8), tmp_path / "same.bmp")
    assert find_duplicates(flat[:1], flat[1:]) == []
    assert [one.kind for one in find_duplicates([same], flat)] == ["pixels"]


def test_unreadable_files_repeat_nothing(pictures: list[Path], tmp_path: Path) -> None:
    broken = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for number, path in enumerate(broken):
        path.write_bytes(b"\xff\xd8\xff" + bytes([number]))
    gone = tmp_path / "gone.jpg"
    assert find_duplicates([broken[0], gone], [broken[1], tmp_path / "gone_too.jpg", *pictures[:3]]) == []
    assert find_duplicates([], pictures) == find_duplicates(pictures, []) == []


def test_blocks_change_nothing(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = [changed(path, "jpeg", tmp_path / path.name) for path in pictures[:12]]
    whole = find_duplicates(copies, pictures)
    monkeypatch.setattr(duplicates, "_BLOCK", 3 * len(pictures))
    assert find_duplicates(copies, pictures) == whole
    assert [one.of for one in whole] == pictures[:12]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("oxford-iiit-pet-sample", {("Abyssinian_151", "Abyssinian_99"), ("Abyssinian_82", "Abyssinian_66")}),
        ("nuclei-dsb2018", set()),
    ],
)
def test_of_real_images_only_real_copies_are_reported(
    real_data: Path, name: str, expected: set[tuple[str, str]]
) -> None:
    test = list(open_dataset(real_data / name).splits["test"].images)
    others = [path for path in sorted((real_data / name / "images").iterdir()) if path not in set(test)]
    found = find_duplicates(others, test)
    assert {(one.image.stem, one.of.stem) for one in found} == expected
    assert not any(one.exact for one in found)


def test_without_references_images_are_compared_with_those_before_them(tmp_path: Path) -> None:
    first, *others = sorted(make_images(tmp_path / "photos", 4).iterdir())
    copied, mirrored = tmp_path / "photos" / "x_copy.jpg", tmp_path / "photos" / "y_mirror.jpg"
    copied.write_bytes(others[0].read_bytes())
    with Image.open(first) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    (broken := tmp_path / "photos" / "z.jpg").write_bytes(b"no picture")
    found = find_duplicates([first, *others, copied, mirrored, broken])
    assert [(one.image, one.of, one.kind) for one in found] == [
        (copied, others[0], "file"),
        (mirrored, first, "near"),
    ]
    assert find_duplicates([first, *others]) == []
