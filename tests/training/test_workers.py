"""How many processes prepare images, and that results do not depend on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from segae.data.batch_transforms import CropAndFlip
from segae.data.batches import UnlabelledImages
from segae.data.device_images import DeviceImages
from segae.data.live import LiveImages
from segae.data.transforms import pretrain_transform
from segae.errors import SegaeError
from segae.training import workers
from segae.training.distributed import Place
from segae.training.loaders import make_loaders
from segae.training.threads import with_threads
from segae.training.workers import choose_workers, cores_of_process

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LOOK = (32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """So many cores, a way to start processes, and a place among those that a launcher started."""

    def set_up(cores: int = 16, start: str = "fork", world: int = 1, here: int = 1) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setattr(workers.multiprocessing, "get_start_method", lambda **_: start)
        monkeypatch.setattr(workers, "this_place", lambda: Place(0, world, 0))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))

    set_up()
    return set_up


def live(images: int = 1000, folder: Path = Path("nowhere")) -> LiveImages:
    return LiveImages([folder / f"{index}.png" for index in range(images)], 32, pretrain_transform(*LOOK), seed=3)


def cached(images: int = 1000) -> UnlabelledImages:
    return UnlabelledImages(np.zeros((images, 32, 32, 3), np.uint8), pretrain_transform(*LOOK), seed=3)


class Stream(IterableDataset):
    """Has what the choice looks at."""

    def __init__(self, shards: int) -> None:
        self.shards = [f"{shard}.tar" for shard in range(shards)]

    def __len__(self) -> int:
        return 10_000

    def __iter__(self) -> Any:
        return iter(())


def test_what_is_decoded_each_time_gets_a_process_for_each_core_up_to_eight(machine):
    for cores, wanted in ((64, 8), (8, 8), (2, 2)):
        machine(cores)
        assert choose_workers(live(), CPU) == choose_workers(live(), GPU) == choose_workers(Stream(99), CPU) == wanted


def test_cached_images_get_processes_on_a_gpu_alone_and_images_on_the_device_none():
    assert choose_workers(cached(), CPU) == 0
    assert choose_workers(cached(), GPU) == 8
    held = DeviceImages(np.zeros((1000, 32, 32, 3), np.uint8), None, CropAndFlip(), *LOOK[1:], device=CPU)
    assert choose_workers(held, GPU) == 0


def test_the_processes_of_a_machine_share_its_cores(machine):
    machine(cores=16, world=8, here=4)
    assert cores_of_process() == 4
    assert choose_workers(live(), GPU) == 4
    machine(cores=2, world=4, here=4)
    assert cores_of_process() == 1
    machine(cores=16, world=1, here=4)  # a variable that a launcher left behind
    assert cores_of_process() == 16


def test_a_single_core_has_a_worker_only_beside_a_gpu(machine):
    machine(cores=1)
    assert choose_workers(live(), CPU) == 0
    assert choose_workers(live(), GPU) == 1


def test_a_few_images_deserve_no_worker_and_fewer_where_starting_one_is_slow(machine):
    assert [choose_workers(live(), GPU, images) for images in (0, 31, 32, 100, 1000)] == [0, 0, 1, 3, 8]
    machine(start="spawn")
    assert [choose_workers(live(), GPU, images) for images in (31, 500, 1100, 10_000)] == [0, 0, 2, 8]


def test_a_stream_has_no_more_workers_than_shards(machine):
    assert choose_workers(Stream(3), CPU) == 3
    machine(world=2, here=1)
    assert choose_workers(Stream(3), CPU) == 1
    assert choose_workers(Stream(1), CPU) == 0  # the stream itself says that the processes need a shard each


def test_each_loader_chooses_for_itself_and_batches_do_not_depend_on_it(tmp_path, machine):
    generator = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{index}.png")
    machine(cores=2)
    batches = []
    for count in (None, 0, 1):
        images, few = live(64, tmp_path), live(8, tmp_path)
        loaders = make_loaders(images, few, batch_size=16, device=CPU, workers=count, seed=5)
        used = (loaders.train.num_workers, loaders.valid.num_workers)
        assert used == ((2, 0) if count is None else (count, count))
        batches.append(torch.cat([batch for (batch,) in loaders.train]))
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


@pytest.mark.skipif(sys.platform == "win32", reason="a local class cannot be sent to a new interpreter")
def test_a_worker_computes_in_one_thread(tmp_path):
    class Threads(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor([cv2.getNumThreads(), torch.get_num_threads()])

    with with_threads(3):
        loaders = make_loaders(Threads(), None, batch_size=2, device=CPU, workers=1)
        ((seen,),) = list(loaders.train)
        assert seen.tolist() == [[1, 1], [1, 1]]
        assert (cv2.getNumThreads(), torch.get_num_threads()) == (3, 3), "the training process keeps its own"


@pytest.mark.skipif(not hasattr(os, "nice"), reason="Windows has other priorities")
@pytest.mark.parametrize(("device", "lower"), [("cpu", True), ("cuda", False)])
def test_a_worker_gives_way_to_a_training_on_the_same_cores_alone(device, lower):
    class Priority(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.tensor(os.nice(0))

    own = os.nice(0)
    loader = make_loaders(Priority(), None, batch_size=2, device=torch.device(device), workers=1).train
    loader.pin_memory = False  # which needs a GPU
    ((seen,),) = list(loader)
    assert seen.tolist() == [19 if lower else own] * 2
    assert os.nice(0) == own, "the training process keeps its own"


def test_items_can_be_sent_to_a_new_interpreter(tmp_path):
    """As macOS and Windows do it."""
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "0.png")
    items = live(1, tmp_path)
    loaders = make_loaders(items, None, batch_size=1, device=CPU, workers=1)
    loaders.train.multiprocessing_context = "spawn"
    ((sent,),) = list(loaders.train)
    ((here,),) = list(DataLoader(items, batch_size=1, collate_fn=loaders.train.collate_fn))
    assert torch.equal(sent, here)


def test_threads_are_as_many_as_were_asked_for_and_afterwards_as_before():
    before = torch.get_num_threads(), cv2.getNumThreads()
    with with_threads(before[0] + 1):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (before[0] + 1,) * 2
    with with_threads(None):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (before[0],) * 2
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    with pytest.raises(SegaeError, match="threads is 0; 1 or more"), with_threads(0):
        pass
