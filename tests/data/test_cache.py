"""The cache: right content, built once, never half, never stale, never damaged."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from segae.data import (
    Pair,
    SkippedFiles,
    cache,
    cache_images,
    cache_pairs,
    content_hashes,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from segae.data.cache import remember_facts
from segae.errors import DataError, SegaeError


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    generator, made = np.random.default_rng(0), []
    for number in range(12):
        height, width = generator.integers(20, 60, 2)
        pair = Pair(str(number), tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png")
        Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).save(pair.image)
        Image.fromarray(generator.choice(np.uint8([1, 2, 3]), (height, width))).save(pair.mask)
        made.append(pair)
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files that were really decoded."""
    seen: list[Path] = []
    for name in ("read_resized", "read_pair"):
        read = getattr(cache, name)
        monkeypatch.setattr(
            cache, name, lambda path, *args, read=read, **kw: seen.append(path) or read(path, *args, **kw)
        )
    return seen


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count files of a moment ago as old ones, so that facts about them are remembered."""
    monkeypatch.setattr(cache, "_SETTLED_NS", -(10**12))


def images_of(pairs: list[Pair]) -> np.ndarray:
    return cache_images([pair.image for pair in pairs], 16, SkippedFiles()).images


def test_arrays_equal_reading_directly_and_are_read_only(pairs: list[Pair]) -> None:
    cached = cache_pairs(pairs, 16, (1, 2, 3), SkippedFiles())
    assert (cached.images.shape, cached.masks.shape) == ((12, 16, 16, 3), (12, 16, 16))
    assert cached.pairs == tuple(pairs)
    for image, mask, pair in zip(cached.images, cached.masks, pairs, strict=True):
        assert np.array_equal(image, resize_image(read_image(pair.image), 16))
        assert np.array_equal(mask, resize_mask((read_mask(pair.mask) - 1).astype(np.uint8), 16))
    assert np.array_equal(cached.images, images_of(pairs))
    with pytest.raises(ValueError, match="read-only"):
        cached.images[0] = 0
    assert cache_pairs([], 16, (0, 1), SkippedFiles()).images.shape == (0, 16, 16, 3)


def test_each_image_is_decoded_once_also_when_it_was_moved(
    pairs: list[Pair], decoded: list[Path], tmp_path: Path
) -> None:
    first = images_of(pairs)
    assert sorted(decoded) == sorted(pair.image for pair in pairs)
    assert np.array_equal(images_of(pairs), first)
    moved = [pair.image.rename(tmp_path / f"moved_{pair.name}.png") for pair in pairs]
    assert cache_images(moved, 16, SkippedFiles()).paths == tuple(moved)
    assert len(decoded) == len(pairs)


def test_parameters_and_order_make_other_entries(pairs: list[Pair]) -> None:
    assert np.array_equal(images_of(pairs)[::-1], images_of(pairs[::-1]))
    assert cache_images([pairs[0].image], 24, SkippedFiles()).images.shape == (1, 24, 24, 3)
    one, other = (cache_pairs(pairs, 16, values, SkippedFiles()) for values in ((1, 2, 3), (3, 2, 1)))
    assert np.array_equal(one.masks, 2 - other.masks)


@pytest.mark.parametrize("in_place", [True, False])
def test_an_image_replaced_by_one_of_the_same_size_and_time_is_noticed(
    tmp_path: Path, in_place: bool, settled: None
) -> None:
    path, other = tmp_path / "a.bmp", tmp_path / "b.bmp"
    for target, level in ((path, 10), (other, 200)):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(target)
        os.utime(target, ns=(10**18, 10**18))
    assert cache_images([path], 8, SkippedFiles()).images[0, 0, 0, 0] == 10
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    os.utime(path, ns=(10**18, 10**18))
    assert path.stat().st_mtime_ns == 10**18
    assert cache_images([path], 8, SkippedFiles()).images[0, 0, 0, 0] == 200


def test_files_that_did_not_change_are_not_hashed_again(
    pairs: list[Pair], settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = images_of(pairs)
    monkeypatch.setattr(cache, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert np.array_equal(images_of(pairs), first)


def test_a_file_of_a_moment_ago_is_not_remembered(pairs: list[Pair]) -> None:
    calls: list[Path] = []
    for _ in range(2):
        assert list(remember_facts("x", [pairs[0].image], lambda path: calls.append(path) or "fact")) == ["fact"]
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "info", "index"])
def test_damaged_entries_and_indexes_are_made_again(
    pairs: list[Pair], private_cache: Path, damage: str, caplog: pytest.LogCaptureFixture, settled: None
) -> None:
    first = cache_pairs(pairs, 16, (1, 2, 3), SkippedFiles())
    expected = first.images.copy(), first.masks.copy()
    entry = next(private_cache.rglob("entry.json")).parent
    if damage == "info":
        (entry / "entry.json").write_text("[]")
    elif damage == "index":
        (private_cache / "facts.sqlite").write_bytes(b"no database" * 1000)
    else:
        for name in ("images", "masks"):
            data = bytearray((entry / name).read_bytes())
            data[len(data) // 2] ^= 1
            (entry / name).write_bytes(data[:-1] if damage == "cut" else data)
    again = cache_pairs(pairs, 16, (1, 2, 3), SkippedFiles())
    assert np.array_equal(again.images, expected[0])
    assert np.array_equal(again.masks, expected[1])
    assert ("damaged" in caplog.text) == (damage == "flip")
    assert content_hashes([pairs[0].image]) == content_hashes([pairs[0].image])


def test_unreadable_files_are_skipped_also_on_the_second_use(pairs: list[Pair], decoded: list[Path]) -> None:
    pairs[2].image.write_bytes(b"no image")
    pairs[5].mask.write_bytes(b"")
    pairs[7].mask.unlink()
    for _ in range(2):
        skipped = SkippedFiles()
        cached = cache_pairs(pairs, 16, (1, 2, 3), skipped)
        assert [pair.name for pair in cached.pairs] == ["0", "1", "3", "4", "6", "8", "9", "10", "11"]
        assert len(cached.images) == len(cached.masks) == 9
        assert np.array_equal(cached.images[2], resize_image(read_image(pairs[3].image), 16))
        reasons = dict(skipped.files)
        assert list(reasons) == [pairs[2].image, pairs[5].image, pairs[7].image]
        assert "5_mask.png" in reasons[pairs[5].image]
    assert len(decoded) == 12
    Image.fromarray(read_image(pairs[7].image)[..., 0] // 255 + 1).save(pairs[7].mask)  # mended
    assert len(cache_pairs(pairs, 16, (1, 2, 3), SkippedFiles()).pairs) == 10


def test_a_disk_that_fails_once_takes_no_image_away(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    read_bytes, failing = Path.read_bytes, pairs[3].image

    def fail(path: Path) -> bytes:
        if path == failing:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(path)

    content_hashes([pair.image for pair in pairs])  # remembered
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert len(images_of(pairs)) == 11
    assert len(images_of(pairs)) == 12


def test_nothing_readable_is_an_error_each_time_unless_it_is_allowed(pairs: list[Pair]) -> None:
    for pair in pairs:
        pair.image.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match="None of the 12 images"):
            images_of(pairs)
    cached = cache_pairs(pairs, 16, (1, 2, 3), SkippedFiles(), allow_empty=True)
    assert (len(cached.images), cached.pairs) == (0, ())


def test_masks_that_cannot_be_right_stop_the_run(pairs: list[Pair], private_cache: Path) -> None:
    with pytest.raises(DataError, match=r"_mask\.png holds the value 3"):
        cache_pairs(pairs, 16, (1, 2), SkippedFiles())
    Image.fromarray(np.ones((5, 9), np.uint8)).save(pairs[4].mask)
    with pytest.raises(DataError, match=r"4_mask\.png is 9 x 5"):
        cache_pairs(pairs, 16, (1, 2, 3), SkippedFiles())
    with pytest.raises(DataError, match="mask_values"):
        cache_pairs(pairs, 16, range(300), SkippedFiles())
    assert not list(private_cache.glob("*.partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_and_leaves_nothing(
    pairs: list[Pair], private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = Path.open

    def onto_full_disk(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        full = path.parent.name.endswith(".partial") and mode == "wb"
        return real_open(Path("/dev/full") if full else path, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", onto_full_disk)
        with pytest.raises(SegaeError, match=r"No space left.*SEGAE_CACHE"):
            images_of(pairs)
    assert not list(private_cache.glob("*.partial"))
    assert len(images_of(pairs)) == 12


def test_a_cache_that_is_no_folder_is_an_error(pairs: list[Pair], private_cache: Path) -> None:
    private_cache.write_text("")
    with pytest.raises(SegaeError, match=str(private_cache)):
        images_of(pairs)


def test_what_a_killed_process_left_is_replaced(pairs: list[Pair], private_cache: Path) -> None:
    images_of(pairs)
    entry = next(private_cache.rglob("entry.json")).parent
    entry.rename(entry.with_suffix(".partial"))
    (entry.with_suffix(".partial") / "images").write_bytes(b"half")
    assert len(images_of(pairs)) == 12
    assert not list(private_cache.glob("*.partial"))


def test_a_second_builder_waits_and_finds_the_entry(
    pairs: list[Pair], private_cache: Path, decoded: list[Path]
) -> None:
    expected = images_of(pairs).copy()
    entry = next(private_cache.rglob("entry.json")).parent
    hidden = entry.rename(private_cache / "hidden")
    with FileLock(entry.with_suffix(".lock")):  # as if another process were building
        found: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: found.append(images_of(pairs)))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        hidden.rename(entry)
    thread.join(30)
    assert np.array_equal(found[0], expected)
    assert len(decoded) == len(pairs)
