"""Decoding while training gives the cache's items, and no file ends a training."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from segae.data.batches import LabelledImages, UnlabelledImages
from segae.data.cache import cache_images, cache_pairs
from segae.data.dataset import Pair
from segae.data.images import read_image
from segae.data.live import LiveImages, LivePairs
from segae.data.quarantine import Quarantine
from segae.data.reduced import decode_reduced, read_resized, squash
from segae.data.resize import resize_image
from segae.data.transforms import eval_transform, pretrain_transform, train_transform
from segae.errors import SegaeError

HALF = (0.5, 0.5, 0.5)
SIZE = 32
# in grey levels of 255; measured: 0.7 to 0.8 on the drawn pictures below, 0.7 on photographs for an input of 128
MOST_DIFFERENCE = 1.2


def draw(seed: int, height: int = 150, width: int = 210) -> np.ndarray:
    """Soft shapes with some grain, as a photograph has."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(picture + generator.integers(-8, 9, picture.shape), 0, 255).astype(np.uint8)


def photographs(folder: Path, count: int, suffix: str = ".jpg") -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03d}{suffix}" for index in range(count)]
    for seed, path in enumerate(paths):
        Image.fromarray(draw(seed)).save(path, **({"quality": 90} if suffix == ".jpg" else {}))
    return paths


def pairs_of(folder: Path, count: int) -> list[Pair]:
    pairs = []
    for index, image in enumerate(photographs(folder, count)):
        mask = folder / f"{index:03d}-mask.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 3, (150, 210), dtype=np.uint8)).save(mask)
        pairs.append(Pair(image.stem, image, mask))
    return pairs


def grey_levels(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().mean()) * 127.5  # mean 0.5, standard deviation 0.5


def test_live_images_are_the_cached_ones_within_a_few_grey_levels(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 4)
    cached = cache_images(paths, SIZE, Quarantine(), progress=False)
    transform = pretrain_transform(SIZE, HALF, HALF)
    live, wanted = (LiveImages(paths, SIZE, transform, 7, 2), UnlabelledImages(cached.images, transform, 7, 2))
    assert len(live) == len(wanted) == 8
    for epoch in (0, 3):
        live.set_epoch(epoch)
        wanted.set_epoch(epoch)
        for index in (0, 3, 5, -1):
            assert live[index].dtype == wanted[index].dtype
            # the same crop and flip: another one would be tens of levels away
            assert grey_levels(live[index], wanted[index]) < MOST_DIFFERENCE
    assert not torch.equal(live[1], live[5])
    with pytest.raises(IndexError):
        live[8]


def test_lossless_files_give_exactly_the_cached_items(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 3, ".png")
    cached = cache_images(paths, SIZE, Quarantine(), progress=False)
    transform = pretrain_transform(SIZE, HALF, HALF)
    live, wanted = LiveImages(paths, SIZE, transform, 0), UnlabelledImages(cached.images, transform, 0)
    assert all(torch.equal(one, other) for one, other in zip(live, wanted, strict=True))


def test_live_pairs_are_the_cached_ones(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", 4)
    cached = cache_pairs(pairs, SIZE, (0, 1, 2), Quarantine(), progress=False)
    transform = train_transform(SIZE, HALF, HALF)
    live = LivePairs(pairs, SIZE, (0, 1, 2), transform, 1)
    wanted = LabelledImages(cached.images, cached.masks, transform, 1)
    assert len(live) == 4
    for one, other in zip(live, wanted, strict=True):
        assert grey_levels(one[0], other[0]) < MOST_DIFFERENCE
        assert one[1].dtype == torch.int64
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_photograph_stands_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(draw(0)).save(path, exif=exif, quality=90)
    whole = read_image(path)
    reduced = decode_reduced(path.read_bytes(), path, SIZE)
    assert reduced.pixels.shape == (38, 53, 3)
    assert reduced.upright_size == whole.shape[:2]
    difference = squash(reduced, SIZE).astype(int) - resize_image(whole, SIZE)
    assert np.abs(difference).mean() < MOST_DIFFERENCE


@pytest.mark.parametrize(
    ("at_least", "height"), [(18, 19), (19, 38), (37, 38), (38, 75), (75, 75), (76, 150), (200, 150)]
)
def test_a_reduced_photograph_is_never_smaller_than_asked(tmp_path: Path, at_least: int, height: int) -> None:
    path = photographs(tmp_path, 1)[0]
    reduced = decode_reduced(path.read_bytes(), path, at_least)
    assert reduced.whole == (150, 210)
    assert reduced.pixels.shape[0] == height
    assert squash(reduced, at_least).shape == (at_least, at_least, 3)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printing_colours_are_reduced_too(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "picture.jpg"
    Image.fromarray(draw(1)).convert(mode).save(path, quality=90)
    wanted = resize_image(read_image(path), SIZE).astype(int)
    assert np.abs(read_resized(path, SIZE) - wanted).mean() < MOST_DIFFERENCE


def test_real_photographs_differ_by_a_few_grey_levels(real_data: Path) -> None:
    paths = sorted((real_data / "oxford-iiit-pet-sample" / "images").iterdir())[:40]
    differences = [
        np.abs(read_resized(path, 128).astype(int) - resize_image(read_image(path), 128)).mean() for path in paths
    ]
    assert np.mean(differences) < MOST_DIFFERENCE
    assert max(differences) < 4
    assert max(differences) > 0  # some were reduced


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_replaced_by_its_neighbour_and_reported(tmp_path: Path, workers: int) -> None:
    paths = photographs(tmp_path / "images", 6)
    for broken in (2, 3, 5):
        paths[broken].write_bytes(paths[broken].read_bytes()[:400])
    data = LiveImages(paths, SIZE, eval_transform(SIZE, HALF, HALF), 0)
    for epoch in range(2):
        data.set_epoch(epoch)
        seen = torch.cat(list(DataLoader(data, batch_size=2, num_workers=workers)))
        assert torch.equal(seen[2], seen[4])
        assert torch.equal(seen[3], seen[4])
        assert torch.equal(seen[5], seen[0])
        assert len({float(image.mean()) for image in seen[[0, 1, 4]]}) == 3
    assert sorted(path for path, _ in data.failures) == [paths[2], paths[3], paths[5]]
    assert all(reason for _, reason in data.failures)
    assert data.failed == 3
    quarantine = Quarantine()
    for path, reason in data.failures:
        quarantine.add(path, reason)
    assert len(quarantine) == 3


def test_a_file_that_failed_is_not_read_again(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 3)
    good = paths[1].read_bytes()
    paths[1].write_bytes(b"")
    data = LiveImages(paths, SIZE, eval_transform(SIZE, HALF, HALF), 0)
    before = data[1]
    paths[1].write_bytes(good)
    assert torch.equal(data[1], before)  # an epoch must not depend on when a file was repaired


def test_a_pair_that_cannot_be_used_is_replaced(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", 5)
    pairs[0].mask.write_bytes(b"no mask")
    pairs[1].image.write_bytes(b"")
    data = LivePairs(pairs, SIZE, (0, 1, 2), eval_transform(SIZE, HALF, HALF), 0)
    assert all(torch.equal(data[index][1], data[2][1]) for index in range(2))
    reasons = dict(data.failures)
    assert "000-mask.png" in reasons[pairs[0].image]
    assert "empty" in reasons[pairs[1].image]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("size", "value", "said"), [((9, 9), 1, "9 x 9"), ((210, 150), 77, "77")])
def test_a_mask_that_cannot_be_right_stops_the_run(
    tmp_path: Path, workers: int, size: tuple[int, int], value: int, said: str
) -> None:
    pairs = pairs_of(tmp_path / "pairs", 3)
    Image.new("L", size, value).save(pairs[1].mask)
    data = LivePairs(pairs, SIZE, (0, 1, 2), eval_transform(SIZE, HALF, HALF), 0)
    with pytest.raises(SegaeError, match=f"001-mask.png.*{said}|{said}.*001-mask.png"):
        list(DataLoader(data, batch_size=3, num_workers=workers))


def test_nothing_but_unreadable_files_is_an_error(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 2)
    for path in paths:
        path.write_bytes(b"no picture")
    data = LiveImages(paths, SIZE, eval_transform(SIZE, HALF, HALF), 0)
    for _ in range(2):
        with pytest.raises(SegaeError, match=r"None of 2 images in a row.*no known image format"):
            data[0]
    with pytest.raises(SegaeError, match="No image was given"):
        LiveImages([], SIZE, eval_transform(SIZE, HALF, HALF), 0)


def test_running_workers_hear_of_the_next_epoch(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 4)
    transform = pretrain_transform(SIZE, HALF, HALF)
    data, alone = LiveImages(paths, SIZE, transform, 0), LiveImages(paths, SIZE, transform, 0)
    loader = DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in range(2):
        data.set_epoch(epoch)
        alone.set_epoch(epoch)
        epochs.append(torch.cat(list(loader)))
        assert torch.equal(epochs[-1], torch.stack(list(alone)))
    assert not torch.equal(*epochs)


def test_a_hundred_thousand_paths_take_their_letters_and_nothing_else(tmp_path: Path) -> None:
    path = photographs(tmp_path, 1)[0]
    tracemalloc.start()
    small = LiveImages([path] * 1_000, SIZE, eval_transform(SIZE, HALF, HALF), 0)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    large = LiveImages((f"{path}" for _ in range(100_000)), SIZE, small._seeded._transform, 0)  # quicker than Paths
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(large) == 100_000
    letters = 100_000 * len(str(path))
    assert large._paths.nbytes == letters + 8 * 100_001
    assert grown < 1.1 * (letters + 8 * 100_001) + 100_000  # a list of strings would take twice as much
    assert torch.equal(large[99_999], small[0])
