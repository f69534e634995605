"""The cache: right content, built once, never half, never stale."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segae.data import cache, cache_store
from segae.data.cache import cache_images, cache_pairs, default_cache_dir
from segae.data.dataset import Pair
from segae.data.images import read_image, read_mask
from segae.data.quarantine import Quarantine
from segae.data.resize import resize_image, resize_mask
from segae.errors import SegaeError


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    generator = np.random.default_rng(0)
    made = []
    for number in range(12):
        height, width = generator.integers(20, 60, 2)
        pair = Pair(str(number), tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png")
        image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(pair.image)
        Image.fromarray(generator.choice(np.uint8([1, 2, 3]), (height, width))).save(pair.mask)
        made.append(pair)
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files that were really decoded."""
    seen: list[Path] = []

    def spy(path: Path) -> np.ndarray:
        seen.append(path)
        return read_image(path)

    monkeypatch.setattr(cache, "read_image", spy)
    return seen


def images_of(pairs: list[Pair], **options: object) -> np.ndarray:
    return cache_images([pair.image for pair in pairs], 16, Quarantine(), progress=False, **options).images


def leftovers() -> list[str]:
    return [path.name for path in default_cache_dir().rglob("*.partial")]


def test_arrays_equal_reading_directly_and_are_read_only(pairs: list[Pair]) -> None:
    cached = cache_pairs(pairs, 16, (1, 2, 3), Quarantine(), progress=False)
    assert cached.images.shape == (12, 16, 16, 3)
    assert cached.masks.shape == (12, 16, 16)
    assert cached.pairs == tuple(pairs)
    for image, mask, pair in zip(cached.images, cached.masks, pairs, strict=True):
        assert np.array_equal(image, resize_image(read_image(pair.image), 16))
        assert np.array_equal(mask, resize_mask((read_mask(pair.mask) - 1).astype(np.uint8), 16))
    assert np.array_equal(cached.images, images_of(pairs))
    assert isinstance(cached.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        cached.images[0] = 0


def test_the_second_call_decodes_nothing(
    pairs: list[Pair],
    decoded: list[Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # bars are for people who watch
    paths = [pair.image for pair in pairs]
    first = cache_images(paths, 16, Quarantine())
    assert "Decoding images" in capsys.readouterr().err
    assert sorted(decoded) == sorted(paths)
    second = cache_images(paths, 16, Quarantine())
    assert len(decoded) == len(paths)
    assert capsys.readouterr().err == ""
    assert np.array_equal(first.images, second.images)


def test_parameters_and_order_make_other_entries(pairs: list[Pair]) -> None:
    assert np.array_equal(images_of(pairs)[::-1], images_of(pairs[::-1]))
    assert cache_images([pairs[0].image], 24, Quarantine(), progress=False).images.shape == (1, 24, 24, 3)
    one = cache_pairs(pairs, 16, (1, 2, 3), Quarantine(), progress=False)
    other = cache_pairs(pairs, 16, (3, 2, 1), Quarantine(), progress=False)
    assert np.array_equal(one.masks, 2 - other.masks)


@pytest.mark.parametrize("age_s", [0, 3600])
def test_a_changed_file_gives_new_content(pairs: list[Pair], age_s: int) -> None:
    path = pairs[3].image
    past = time.time() - age_s
    os.utime(path, (past, past))
    before = images_of(pairs).copy()
    Image.fromarray(255 - read_image(path)).save(path)
    after = images_of(pairs)
    assert np.array_equal(after[3], resize_image(read_image(path), 16))
    assert not np.array_equal(after[3], before[3])
    assert np.array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))


def test_the_same_content_under_another_name_is_not_decoded_again(
    pairs: list[Pair], decoded: list[Path], tmp_path: Path
) -> None:
    images_of(pairs)
    moved = [pair.image.rename(tmp_path / f"moved_{pair.name}.png") for pair in pairs]
    count = len(decoded)
    assert cache_images(moved, 16, Quarantine(), progress=False).paths == tuple(moved)
    assert len(decoded) == count


def test_settled_files_are_not_hashed_again(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    for pair in pairs:
        os.utime(pair.image, (1e9, 1e9))
    first = images_of(pairs)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    assert np.array_equal(images_of(pairs), first)


def test_a_damaged_index_or_entry_is_made_anew(pairs: list[Pair]) -> None:
    first = images_of(pairs).copy()
    for path in default_cache_dir().rglob("*"):
        if path.name == "images":
            path.write_bytes(path.read_bytes()[:-1])
        elif path.suffix == ".json" and path.parent.name == "index":
            path.write_text("{")
    assert np.array_equal(images_of(pairs), first)
    for path in default_cache_dir().rglob("entry.json"):
        path.write_text("[]")
    assert np.array_equal(images_of(pairs), first)


def test_unreadable_files_are_quarantined_and_again_on_the_second_use(pairs: list[Pair], decoded: list[Path]) -> None:
    pairs[2].image.write_bytes(b"no image")
    pairs[5].mask.write_bytes(b"")
    pairs[7].mask.unlink()
    for _ in range(2):
        quarantine = Quarantine()
        cached = cache_pairs(pairs, 16, (1, 2, 3), quarantine, progress=False)
        assert [pair.name for pair in cached.pairs] == ["0", "1", "3", "4", "6", "8", "9", "10", "11"]
        assert len(cached.images) == len(cached.masks) == 9
        assert np.array_equal(cached.images[2], resize_image(read_image(pairs[3].image), 16))
        reasons = dict(quarantine.items)
        assert list(reasons) == [pairs[2].image, pairs[5].image, pairs[7].image]
        assert "no known image format" in reasons[pairs[2].image]
        assert "its mask 5_mask.png: the file is empty" in reasons[pairs[5].image]
        assert "No such file" in reasons[pairs[7].image]
    # what a file holds is decided once; a file that was not to be had may be there the next time
    assert len(decoded) == 24


def test_a_disk_that_fails_once_takes_no_image_away(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes, failing = Path.read_bytes, pairs[3].image

    def fail(path: Path) -> bytes:
        if path == failing:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(path)

    images_of(pairs[:1])  # the index knows the contents
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert len(images_of(pairs)) == 11
    assert len(images_of(pairs)) == 12


def test_a_file_that_was_mended_comes_back(pairs: list[Pair]) -> None:
    content = pairs[0].image.read_bytes()
    pairs[0].image.unlink()
    assert len(images_of(pairs)) == 11
    pairs[0].image.write_bytes(content)
    assert len(images_of(pairs)) == 12


def test_nothing_readable_is_an_error_each_time(pairs: list[Pair]) -> None:
    for pair in pairs:
        pair.image.write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(SegaeError, match="None of the 12 images can be read"):
            images_of(pairs)


def test_a_part_that_may_be_empty_is_no_error(pairs: list[Pair]) -> None:
    pairs[0].image.write_bytes(b"no image")
    cached = cache_pairs(pairs[:1], 16, (1, 2, 3), Quarantine(), progress=False, none_is_fine=True)
    assert (len(cached.images), cached.pairs) == (0, ())


def test_no_images_give_empty_arrays() -> None:
    assert cache_pairs([], 16, (0, 1), Quarantine()).images.shape == (0, 16, 16, 3)


def test_masks_that_cannot_be_right_stop_the_run(pairs: list[Pair]) -> None:
    with pytest.raises(SegaeError, match=r"_mask\.png holds the value 3, .*Wanted only 1, 2"):
        cache_pairs(pairs, 16, (1, 2), Quarantine(), progress=False)
    Image.fromarray(np.ones((5, 9), np.uint8)).save(pairs[4].mask)
    width, height = Image.open(pairs[4].image).size
    with pytest.raises(SegaeError, match=rf"4_mask\.png is 9 x 5 .* {width} x\s+{height}"):
        cache_pairs(pairs, 16, (1, 2, 3), Quarantine(), progress=False)
    with pytest.raises(SegaeError, match="300 classes"):
        cache_pairs(pairs, 16, range(300), Quarantine(), progress=False)
    assert leftovers() == []


def test_a_full_disk_is_an_error_and_leaves_nothing(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_store, "_flush", no_space)
    with pytest.raises(SegaeError, match=r"No space left.*SEGAE_CACHE"):
        images_of(pairs)
    assert leftovers() == []
    monkeypatch.undo()
    assert len(images_of(pairs)) == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_write_that_the_kernel_refuses_is_an_error(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    real_open: Callable[..., object] = Path.open

    def onto_full_disk(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        full = path.parent.name.endswith(".partial") and mode == "wb"
        return real_open(Path("/dev/full") if full else path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", onto_full_disk)
    with pytest.raises(SegaeError, match="No space left"):
        images_of(pairs)
    assert leftovers() == []


def test_a_place_that_is_no_folder_is_an_error(pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SegaeError, match="cannot be stored in"):
        images_of(pairs, cache_dir=tmp_path / "file")


def test_what_a_killed_process_left_is_replaced(pairs: list[Pair]) -> None:
    images_of(pairs)
    entry = next(default_cache_dir().rglob("entry.json")).parent
    entry.rename(entry.with_suffix(".partial"))
    (entry.with_suffix(".partial") / "images").write_bytes(b"half")
    assert len(images_of(pairs)) == 12
    assert leftovers() == []


WORKER = """
import sys, time
from pathlib import Path
from segae.data import cache
from segae.data.images import read_image
from segae.data.quarantine import Quarantine

folder, log = Path(sys.argv[1]), Path(sys.argv[2])

def slow(path):
    with log.open("a") as file:
        file.write(path.name + "\\n")
    time.sleep(0.05)
    return read_image(path)

cache.read_image = slow
log.with_suffix("." + sys.argv[3]).touch()
while len(list(log.parent.glob("log.ready*"))) < 2:
    time.sleep(0.01)
paths = sorted(path for path in folder.glob("*.png") if "mask" not in path.name)
print(int(cache.cache_images(paths, 16, Quarantine(), progress=False).images.astype("int64").sum()))
"""


def test_two_processes_build_an_entry_once(pairs: list[Pair], tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = [sys.executable, "-c", WORKER, str(tmp_path), str(log)]
    started = [
        subprocess.Popen([*arguments, f"ready{number}"], stdout=subprocess.PIPE, text=True) for number in range(2)
    ]
    sums = [int(process.communicate(timeout=120)[0]) for process in started]
    expected = images_of(sorted(pairs, key=lambda pair: pair.image)).astype(np.int64).sum()
    assert sums == [expected, expected]
    assert sorted(log.read_text().split()) == sorted(pair.image.name for pair in pairs)
    assert leftovers() == []


def test_waiting_for_the_other_process_is_said(
    pairs: list[Pair], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import threading

    with caplog.at_level(logging.INFO, "segae"):
        with cache_store._only_builder(tmp_path, "x"):
            entered = threading.Event()

            def second() -> None:
                with cache_store._only_builder(tmp_path, "x"):
                    entered.set()

            thread = threading.Thread(target=second)
            thread.start()
            assert not entered.wait(0.2)
        thread.join(10)
    assert entered.is_set()
    assert "waiting" in caplog.text
    assert pairs


def test_the_default_place_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGAE_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("SEGAE_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "segae"
