"""Between the first and the last batch of an epoch nothing waits for the device: no number is read back.

On a GPU torch says so itself. A CPU never waits, so there every way of reading a tensor's values is made an error:
those that the dispatcher sees, and those that Python has beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from fastai.callback.schedule import ParamScheduler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

import segae
from segae.data.batch_transforms import CropAndFlip, MildChange
from segae.data.batches import LabelledImages, UnlabelledImages
from segae.data.device_images import DeviceImages
from segae.data.transforms import pretrain_transform, train_transform
from segae.training.callbacks import Callback

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is here")
TASKS = ("segment", "denoise", "sparse_mask", "mask")
SIZE, BATCH, BATCHES = 64, 2, 24  # more batches than StopOnNaN lets pass between two looks

# what the host waits for on a GPU: a value itself, or a result whose shape depends on values
READS = {
    torch.ops.aten._local_scalar_dense,  # item, bool, float, int, an index
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten.bincount,
    torch.ops.aten._unique2,
    torch.ops.aten.unique_dim,
    torch.ops.aten.unique_consecutive,
}
COPIES = ("tolist", "numpy", "cpu", "__array__")  # which the dispatcher does not see on a CPU


class Waited(Exception):
    """Something asked for a value."""


class NoReads(TorchDispatchMode):
    """Inside, reading a tensor's values is an error; in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        for name in COPIES:
            self.patch.setattr(Tensor, name, self._refuse(name))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.undo()

    @staticmethod
    def _refuse(name: str) -> Callable:
        def refused(*_: Any, **__: Any) -> None:
            raise Waited(name)

        return refused

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if func.overloadpacket in READS or by_mask:
            raise Waited(str(func))
        return func(*args, **(kwargs or {}))


class Guard:
    """Makes waiting an error while it is on: through torch on a GPU, through ``NoReads`` on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.mode = NoReads() if device.type == "cpu" else None
        self.is_on = False

    def switch(self, wanted: bool) -> None:
        if wanted == self.is_on:
            return
        self.is_on = wanted
        if self.mode is None:
            torch.cuda.set_sync_debug_mode("error" if wanted else "default")
        elif wanted:
            self.mode.__enter__()
        else:
            self.mode.__exit__(None, None, None)

    def lifted(self, work: Callable) -> Callable:
        """The work without the guard: the deliberate look for NaN, and what a GPU has no part in."""

        def free(*args: Any) -> Any:
            before = self.is_on
            self.switch(False)
            try:
                return work(*args)
            finally:
                self.switch(before)

        return free


class Watched(Callback):
    """From the beginning of the second batch to that of the last one: whole steps, and the fetches between them."""

    order = -100  # before every other callback

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def before_batch(self) -> None:
        if self.learn.training:
            self.guard.switch(0 < self.learn.iter < self.learn.n_iter - 1)


class OnHost(Dataset):
    """Items that are made on the host, where a number may be read from a tensor."""

    def __init__(self, data: Dataset, guard: Guard) -> None:
        self.data, self.get = data, guard.lifted(data.__getitem__)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.get(index)


def make_learner(task: str, path: str, device: torch.device, guard: Guard, **more: Any) -> Any:
    segae.seed_everything(0)
    encoder, about = segae.create_encoder("test_resnet")
    generator, labelled = torch.Generator().manual_seed(0), task == "segment"
    drawn = torch.randint(0, 256, (BATCH * BATCHES, SIZE, SIZE, 4), dtype=torch.uint8, generator=generator).numpy()
    images, masks = drawn[..., :3], drawn[..., 3] % 2
    data: Any
    if path == "device":
        change = MildChange() if labelled else CropAndFlip()
        data = DeviceImages(images, masks if labelled else None, change, about.mean, about.std, device=device)
    elif labelled:
        data = OnHost(LabelledImages(images, masks, train_transform(SIZE, about.mean, about.std), 0), guard)
    else:
        data = OnHost(UnlabelledImages(images, pretrain_transform(SIZE, about.mean, about.std), 0), guard)
    loaders = segae.make_loaders(data, None, batch_size=BATCH, device=device)
    if labelled:
        return segae.segmentation_learner(
            loaders, segae.create_segmenter(encoder, "test_resnet", "unet", 2), classes=2, **more
        )
    objective = segae.make_objective(task, patch=32 if task == "sparse_mask" else 16, mask_ratio=0.6)
    model = segae.create_pretrainer(
        encoder, "test_resnet", masking=objective.masking, decoder=objective.decoder if task != "mask" else "plain"
    )
    return segae.pretraining_learner(loaders, model, objective, **more)


@contextmanager
def watched(learner: Any, guard: Guard) -> Iterator[list[int]]:
    """Inside, the loop may not wait but where StopOnNaN looks; gives the steps at which it does."""
    looks: list[int] = []
    look = learner.stop_on_na_n._look
    with pytest.MonkeyPatch.context() as patch, learner.added_cbs([Watched(guard)]):
        patch.setattr(
            learner.stop_on_na_n, "_look", guard.lifted(lambda: (looks.append(learner.stop_on_na_n.steps), look()))
        )
        if guard.mode is not None:  # fastai's schedule computes with tensors, which always lie on the host
            patch.setattr(ParamScheduler, "_update_val", guard.lifted(ParamScheduler._update_val))
        try:
            yield looks
        finally:
            guard.switch(False)


def train_guarded(task: str, path: str, device: torch.device, **more: Any) -> Any:
    """One epoch that is watched, on a GPU after one that sets things up; gives the Learner."""
    guard = Guard(device)
    learner = make_learner(task, path, device, guard, **more)
    phases = segae.make_phases(0, 1, lr=1e-3) if task == "segment" else segae.make_pretraining_phases(1, 1e-3)
    if device.type == "cuda":
        segae.fit(learner, phases)
    learner.stop_on_na_n.every = 20
    with watched(learner, guard) as looks:
        segae.fit(learner, phases)
    assert looks == [20, BATCHES], "the deliberate look, and that at the end of the epoch"
    return learner


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("path", ["device", "cache"])
def test_the_loop_does_not_wait_for_the_gpu(task: str, path: str) -> None:
    train_guarded(task, path, torch.device("cuda"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("path", ["device", "cache"])
def test_the_loop_reads_no_number_back(task: str, path: str) -> None:
    learner = train_guarded(task, path, CPU)
    assert learner.epoch_clock.log[-1]["images"] == BATCH * BATCHES


def test_nor_do_masks_that_follow_the_loss_a_penalty_and_steps_of_several_batches() -> None:
    more = {"hard_mask_share": 0.5, "distance_penalty": 0.1, "accumulate": 2, "skip_dropout": 0.5}
    train_guarded("sparse_mask", "device", CPU, **more)


class Curious(Callback):
    """Reads a number where it must not; or after a batch, where another callback might."""

    def __init__(self, where: str) -> None:
        setattr(self, where, lambda: float(self.learn.xb[0].mean()))


@pytest.mark.parametrize("where", ["after_pred", "after_loss", "after_backward", "after_step", "after_batch"])
def test_a_wait_anywhere_in_a_batch_is_noticed(where: str) -> None:
    guard = Guard(CPU)
    learner = make_learner("denoise", "device", CPU, guard)
    with pytest.raises(Waited), watched(learner, guard), learner.added_cbs([Curious(where)]):
        segae.fit(learner, segae.make_pretraining_phases(1, 1e-3))


def test_a_wait_in_the_fetch_of_the_next_batch_is_noticed() -> None:
    guard = Guard(CPU)
    learner = make_learner("denoise", "device", CPU, guard)
    data = learner.dls.train.dataset
    get = data.__getitems__
    data.__class__ = type(
        "Curious", (DeviceImages,), {"__getitems__": lambda _, at: tuple(part for part in get(at) if part.max() > 0)}
    )
    with pytest.raises(Waited), watched(learner, guard):
        segae.fit(learner, segae.make_pretraining_phases(1, 1e-3))


@pytest.mark.parametrize(
    "read",
    [
        lambda value: value.sum().item(),
        lambda value: bool(value.any()),
        lambda value: float(value.max()),
        lambda value: range(int(value.argmax())),
        lambda value: value.tolist(),
        lambda value: value.cpu(),
        lambda value: value.numpy(),
        lambda value: value[value > 0],
        lambda value: value.nonzero(),
        lambda value: value.unique(),
        lambda value: torch.equal(value, value),
        lambda value: torch.bincount(value.long()),
        lambda value: nn.utils.clip_grad_norm_([nn.Parameter(value)], 1.0, error_if_nonfinite=True).item(),
    ],
)
def test_every_way_of_reading_is_noticed(read: Callable) -> None:
    value = torch.rand(5)
    with suppress(Waited), NoReads():
        read(value)
        pytest.fail("nothing was noticed")
    assert read(value) is not None
