"""The order of an epoch, its share for each rank, and worker processes."""

from __future__ import annotations

import multiprocessing
import os
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from segae.data.gpu import CropAndFlip, GPUImageDataset
from segae.data.loaders import choose_workers, make_loaders, set_epoch
from segae.data.streaming import open_stream
from segae.data.torch_datasets import CachedImageDataset, CachedPairDataset, LazyImageDataset
from segae.data.transforms import eval_transform, pretrain_transform
from segae.errors import SegaeError
from tests.fabricate import make_shard

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LOOK = (16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Numbers(Dataset):
    """Item i is i; the images are `distinct`, each several times."""

    def __init__(self, count: int, distinct: int | None = None) -> None:
        self.count, self.distinct = count, distinct or count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


def train_batches(train: Dataset, epoch: int = 0, **settings: Any) -> list[list[int]]:
    loader = make_loaders(train, None, **{"device": CPU, "seed": 5, **settings}).train
    set_epoch(loader, epoch)
    batches = [images.tolist() for (images,) in loader]
    assert len(batches) == len(loader)
    return batches


def test_the_order_is_that_of_version_0_1() -> None:
    assert train_batches(Numbers(9), batch_size=4, epoch=3) == [[5, 8, 1, 3], [7, 4, 2, 6]]
    assert train_batches(Numbers(9), batch_size=4, epoch=3, train_indices=range(2, 7)) == [[6, 2, 3, 5]]
    seen = train_batches(Numbers(12, 4), batch_size=3, epoch=1, epoch_images=11)
    assert seen == [[0, 1, 3], [2, 7, 6], [4, 5, 11], [9, 8]]


@pytest.mark.parametrize(("images", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (3, [3]), (1, [1]), (8, [4, 4])])
def test_no_training_batch_is_a_single_image(images: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in train_batches(Numbers(images), batch_size=4)] == sizes


@pytest.mark.parametrize("images", [3, 7, 20, 22])
def test_an_epoch_of_given_images_takes_all_almost_equally_often(images: int) -> None:
    for epoch in (0, 3):
        items = list(chain(*train_batches(Numbers(28, 7), epoch, batch_size=4, epoch_images=images)))
        assert len(set(items)) == len(items) == images
        counts = np.bincount([item % 7 for item in items], minlength=7)
        assert counts.max() - counts.min() <= 1
        once = list(chain(*train_batches(Numbers(7), epoch, batch_size=1)))
        assert items[:7] == once[:images]


@pytest.mark.parametrize(("images", "batch_size", "world"), [(11, 4, 2), (17, 8, 4), (15, 8, 4), (16, 8, 2), (9, 3, 3)])
def test_ranks_take_equal_parts_of_the_same_batches(images: int, batch_size: int, world: int) -> None:
    alone = train_batches(Numbers(images), 2, batch_size=batch_size)
    settings = {"batch_size": batch_size, "world_size": world}
    ranks = [train_batches(Numbers(images), 2, rank=rank, **settings) for rank in range(world)]
    for one, *parts in zip(alone, *ranks, strict=False):
        assert len({len(part) for part in parts}) == 1
        assert len(parts[0]) > 1 or batch_size == world
        joined = list(chain(*parts))
        assert joined == one[: len(joined)]
    seen = list(chain(*chain(*ranks)))
    assert len(set(seen)) == len(seen) >= images - 2 * world + 1


@pytest.mark.parametrize("images", [4, 5, 8, 9, 11])
def test_ranks_share_all_validation_images_in_as_many_steps(images: int) -> None:
    settings = {"batch_size": 4, "device": CPU, "world_size": 2}
    valid = [make_loaders(Numbers(4), Numbers(images), rank=rank, **settings).valid for rank in range(2)]
    ranks = [[batch.tolist() for (batch,) in loader] for loader in valid]
    assert len(ranks[0]) == len(ranks[1])
    assert sorted(chain(*chain(*ranks))) == list(range(images))


def test_batches_are_tuples_on_every_path(tmp_path: Path) -> None:
    images, masks = np.zeros((6, 16, 16, 3), np.uint8), np.zeros((6, 16, 16), np.uint8)
    held = GPUImageDataset(images, masks, None, *LOOK[1:], device=CPU)
    cached = CachedPairDataset(images, masks, eval_transform(*LOOK), 0)
    streamed = open_stream(make_shard(tmp_path / "a.tar", 6), size=16, transform=eval_transform(*LOOK), seed=0)
    dls = make_loaders(cached, held, batch_size=4, device=CPU)
    assert dls.device == CPU
    for batch in (next(iter(dls.train)), next(iter(dls.valid))):
        assert isinstance(batch, tuple)
        assert [part.shape for part in batch] == [(4, 3, 16, 16), (4, 16, 16)]
    (batch,) = make_loaders(streamed, None, batch_size=4, device=CPU, workers=1).train  # whole batches only
    assert [part.shape for part in batch] == [(4, 3, 16, 16)]


def test_the_number_of_workers_follows_data_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda **_: "fork")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    images, transform = np.zeros((1000, 16, 16, 3), np.uint8), pretrain_transform(*LOOK)
    lazy = LazyImageDataset([tmp_path / f"{index}.png" for index in range(1000)], 16, transform, 0)
    cached = CachedImageDataset(images, transform, 0)
    held = GPUImageDataset(images, None, CropAndFlip(), *LOOK[1:], device=CPU)
    assert [choose_workers(data, CPU) for data in (lazy, Subset(lazy, range(900)), cached, held)] == [8, 8, 0, 0]
    assert [choose_workers(data, GPU) for data in (lazy, cached, held, Subset(held, range(9)))] == [8, 8, 0, 0]
    assert [choose_workers(lazy, GPU, count) for count in (0, 31, 32, 100)] == [0, 0, 1, 3]
    assert choose_workers(lazy, CPU, world_size=4) == 4  # they share the cores
    shards = [make_shard(tmp_path / f"{index}.tar", 1) for index in range(3)]
    stream = open_stream(shards, size=16, transform=transform, seed=0, epoch_images=500)
    assert choose_workers(stream, CPU) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert (choose_workers(lazy, CPU), choose_workers(lazy, GPU)) == (0, 1)
    with pytest.raises(SegaeError, match="workers.*4"):
        make_loaders(stream, None, batch_size=4, device=CPU, workers=4)


@pytest.mark.parametrize("lower", [True, False])
def test_a_worker_computes_in_one_thread_and_gives_way_on_a_cpu(lower: bool) -> None:
    class State(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor([cv2.getNumThreads(), torch.get_num_threads(), os.nice(0)])

    own = os.nice(0)
    loader = make_loaders(State(), None, batch_size=2, device=CPU if lower else GPU, workers=1).train
    loader.pin_memory = False  # which needs a GPU
    ((seen,),) = list(loader)
    assert seen.tolist() == [[1, 1, 19 if lower else own]] * 2
    assert os.nice(0) == own


WRONG: list[dict[str, int]] = [{"batch_size": 0}, {"batch_size": 3, "world_size": 2}, {"workers": -1}]


@pytest.mark.parametrize("wrong", [*WRONG, {"epoch_images": 9}, {"epoch_images": 0}])
def test_wrong_numbers_name_their_argument(wrong: dict[str, int]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(SegaeError, match=f"{name}.*{value}"):
        make_loaders(Numbers(8, 4), None, **{"batch_size": 4, "device": CPU, **wrong})
    with pytest.raises(SegaeError, match="train.*0"):
        make_loaders(Numbers(0), None, batch_size=4, device=CPU)
