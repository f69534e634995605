"""Augmentation depends on (seed, epoch, index) alone; unreadable files are replaced and listed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from segae.data.cache import cache_images, cache_pairs
from segae.data.file_lists import Pair
from segae.data.image_io import SkippedFiles
from segae.data.torch_datasets import CachedImageDataset, CachedPairDataset, LazyImageDataset, LazyPairDataset
from segae.data.transforms import eval_transform, pretrain_transform, train_transform
from segae.errors import SegaeError
from tests.fabricate import make_folder, make_images

HALF = (0.5, 0.5, 0.5)
SIZE = 16


def arrays(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    images.flags.writeable = False
    return images, generator.integers(0, 3, (count, SIZE, SIZE), dtype=np.uint8)


def labeled(seed: int = 0) -> CachedPairDataset:
    return CachedPairDataset(*arrays(), train_transform(SIZE, HALF, HALF), seed)


def pairs_of(folder: Path, count: int) -> list[Pair]:
    make_folder(folder, count, 0, values=(0, 1, 2))
    return [Pair(mask.stem, folder / "images" / mask.name, mask) for mask in sorted((folder / "masks").iterdir())]


def photographs(folder: Path, count: int, extension: str = "jpg") -> list[Path]:
    return sorted(make_images(folder, count, extension=extension).iterdir())


def lazy(paths: list[Path], *, random_crop: bool = False, repeats: int = 1) -> LazyImageDataset:
    transform = (pretrain_transform if random_crop else eval_transform)(SIZE, HALF, HALF)
    return LazyImageDataset(paths, SIZE, transform, 7, repeats)


def collect(data: Dataset, workers: int, persistent: bool = False) -> torch.Tensor:
    loader = DataLoader(data, batch_size=3, num_workers=workers, persistent_workers=persistent)
    seen = []
    for epoch in range(2):
        data.set_epoch(epoch)  # type: ignore[attr-defined]
        seen.append(torch.cat([batch[0] if isinstance(batch, list) else batch for batch in loader]))
    return torch.stack(seen)


def test_items_are_tensors_of_the_documented_kind() -> None:
    image, mask = labeled()[0]
    assert (image.dtype, image.shape) == (torch.float32, (3, SIZE, SIZE))
    assert (mask.dtype, mask.shape) == (torch.int64, (SIZE, SIZE))
    unlabeled = CachedImageDataset(arrays()[0], pretrain_transform(SIZE, HALF, HALF), 0, repeats=2)
    assert unlabeled[7].shape == (3, SIZE, SIZE)
    assert len(list(unlabeled)) == len(unlabeled) == 2 * unlabeled.distinct == 16
    assert (unlabeled.failures, unlabeled.decodes, LazyImageDataset.decodes) == ([], False, True)


def test_the_randomness_is_that_of_seed_epoch_and_index() -> None:
    images, masks = arrays()
    data = CachedPairDataset(images, masks, train_transform(SIZE, HALF, HALF), 3, repeats=2)
    data.set_epoch(5)
    transform = train_transform(SIZE, HALF, HALF)
    for index in (0, 6, 13):
        run = 3 << 32 | 5
        philox = np.random.Philox(key=np.array([run, index], np.uint64))
        transform.set_random_state(np.random.Generator(philox), random.Random(run << 64 | index))
        expected = transform(image=images[index % 8].copy(), mask=masks[index % 8])
        assert torch.equal(data[index][0], expected["image"])
        assert torch.equal(data[index][1], expected["mask"].long())


@pytest.mark.parametrize(("workers", "persistent"), [(1, False), (2, True)])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, workers: int, persistent: bool) -> None:
    for data in (labeled(), lazy(photographs(tmp_path / "images", 5), random_crop=True)):
        alone = collect(data, 0)
        assert torch.equal(collect(data, workers, persistent=persistent), alone)
        assert not torch.equal(alone[0], alone[1])


def test_the_cache_is_never_written_to() -> None:
    images, masks = arrays()
    before = images.copy(), masks.copy()
    masks.flags.writeable = False
    for image, mask in CachedPairDataset(images, masks, eval_transform(SIZE, HALF, HALF), 0):
        image.zero_()
        mask.zero_()
    assert np.array_equal(images, before[0])
    assert np.array_equal(masks, before[1])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    images, masks = arrays()
    with pytest.raises(ValueError, match="masks"):
        CachedPairDataset(images, masks[:7], eval_transform(SIZE, HALF, HALF), 0)
    with pytest.raises(SegaeError, match="repeats.*0"):
        CachedImageDataset(images, eval_transform(SIZE, HALF, HALF), 0, repeats=0)
    with pytest.raises(SegaeError, match="paths"):
        lazy([])
    for index in (8, -9):
        with pytest.raises(IndexError):
            labeled()[index]


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_lazy_images_are_the_cached_ones(tmp_path: Path, extension: str) -> None:
    paths = photographs(tmp_path / "images", 3, extension)
    transform = pretrain_transform(SIZE, HALF, HALF)
    cached = CachedImageDataset(cache_images(paths, SIZE, SkippedFiles()).images, transform, 7, 2)
    data = lazy(paths, random_crop=True, repeats=2)
    for epoch in (0, 3):
        data.set_epoch(epoch)
        cached.set_epoch(epoch)
        for one, other in zip(data, cached, strict=True):
            # in gray levels, a JPEG decoded at a quarter of its size; another crop would be tens of them away
            assert (one - other).abs().mean() * 127.5 < (1.5 if extension == "jpg" else 1e-9)


def test_lazy_pairs_are_the_cached_ones(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", 3)
    cached = cache_pairs(pairs, SIZE, (0, 1, 2), SkippedFiles())
    transform = train_transform(SIZE, HALF, HALF)
    data = LazyPairDataset(pairs, SIZE, (0, 1, 2), transform, 1)
    for one, other in zip(data, CachedPairDataset(cached.images, cached.masks, transform, 1), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_file_is_replaced_by_its_neighbor_and_listed(tmp_path: Path, workers: int) -> None:
    paths = photographs(tmp_path / "images", 6)
    for broken in (2, 3, 5):
        paths[broken].write_bytes(paths[broken].read_bytes()[:400])
    data, skipped = lazy(paths), SkippedFiles()
    for seen in collect(data, workers):
        for replaced, neighbor in ((2, 4), (3, 4), (5, 0)):
            assert torch.equal(seen[replaced], seen[neighbor])
        assert len({float(image.mean()) for image in seen[[0, 1, 4]]}) == 3
    skipped.extend(data.failures)
    assert sorted(path for path, _ in skipped.files) == [paths[2], paths[3], paths[5]]
    assert all(reason for _, reason in skipped.files)


def test_a_file_that_failed_is_not_read_again(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 3)
    good = paths[1].read_bytes()
    paths[1].write_bytes(b"")
    data = lazy(paths)
    before = data[1]
    paths[1].write_bytes(good)
    assert torch.equal(data[1], before)  # an epoch must not depend on when a file was repaired


def test_more_failures_than_there_is_room_for_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / ("long name " * 20)
    missing = [folder / f"{index}.jpg" for index in range(90)]
    data = lazy([*missing, *photographs(tmp_path / "images", 1)])
    data[0]
    *named, (_, reason) = data.failures
    assert 10 < len(named) < 90
    assert reason.startswith(f"{90 - len(named)} more")


def test_a_pair_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path / "pairs", 5)
    pairs[0].mask.write_bytes(b"no mask")
    pairs[1].image.write_bytes(b"")
    data = LazyPairDataset(pairs, SIZE, (0, 1, 2), eval_transform(SIZE, HALF, HALF), 0)
    assert all(torch.equal(data[index][1], data[2][1]) for index in range(2))
    reasons = dict(data.failures)
    assert set(reasons) == {pairs[0].image, pairs[1].image}
    assert pairs[0].mask.name in reasons[pairs[0].image]


@pytest.mark.parametrize(("size", "value"), [((9, 9), 1), ((64, 64), 77)])
def test_a_mask_that_cannot_be_right_stops_the_run(tmp_path: Path, size: tuple[int, int], value: int) -> None:
    pairs = pairs_of(tmp_path / "pairs", 3)
    Image.new("L", size, value).save(pairs[1].mask)
    data = LazyPairDataset(pairs, SIZE, (0, 1, 2), eval_transform(SIZE, HALF, HALF), 0)
    with pytest.raises(SegaeError, match=pairs[1].mask.name):
        list(data)


def test_nothing_but_unreadable_files_is_an_error(tmp_path: Path) -> None:
    paths = photographs(tmp_path / "images", 2)
    for path in paths:
        path.write_bytes(b"no picture")
    data = lazy(paths)
    for _ in range(2):
        with pytest.raises(SegaeError, match=paths[0].name):
            data[0]


@pytest.mark.slow
def test_items_can_be_sent_to_a_new_interpreter(tmp_path: Path) -> None:
    data = lazy(photographs(tmp_path / "images", 2))
    loader = DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(next(iter(loader)), torch.stack(list(data)))
