"""The learners: what constructing one changes, losses, the optimizer, and a loop that never waits for the device.

On a GPU torch reports waits itself. A CPU never waits, so there every way of reading a tensor's values is an error:
those that the dispatcher sees, and those that Python has beside it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import AvgLoss, AvgSmoothLoss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segae.data import GPUImageDataset, make_loaders
from segae.data.gpu import CropAndFlip, MildChange
from segae.errors import SegaeError
from segae.methods import create_autoencoder, create_method
from segae.models import create_segmenter
from segae.training import (
    fit,
    freeze_finetune_phases,
    pretraining_learner,
    pretraining_phases,
    seed_everything,
    segmentation_learner,
)
from segae.training.learner import SoftDice, _AdamW, _SmoothLoss
from tests.training.learners import CPU, Items, Tiny, pairs, segmentation


def test_constructing_a_learner_changes_nothing_in_the_process(monkeypatch):
    called: list[str] = []
    for owner, name in ((torch, "set_num_threads"), (cv2, "setNumThreads"), (ctypes, "CDLL")):
        monkeypatch.setattr(owner, name, lambda *_, name=name: called.append(name))
    model, loaders = Tiny(), make_loaders(Items(pairs(4, 16)), None, batch_size=2, device=CPU)
    chosen = create_method("denoise")
    autoencoder = create_autoencoder("test_resnet", method=chosen)

    def process() -> tuple:
        flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision()
        return *flags, torch.get_num_threads(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = process()
    segmentation_learner(loaders, model, num_classes=2)
    pretraining_learner(loaders, autoencoder, chosen)
    assert process() == before
    assert called == []


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("weight_decay", bad) for bad in (-0.1, float("nan"))],
        *[("distance_penalty", bad) for bad in (-1.0, float("nan"), float("inf"))],
        *[("hard_mask_fraction", bad) for bad in (1.5, float("nan"))],
        *[("skip_dropout", bad) for bad in (-0.1, float("nan"), 0.5)],  # the plain decoder has no skip connections
        *[("patience", bad) for bad in (0, 1.5)],
        *[("accumulate", bad) for bad in (0, 2.0)],
        *[("max_steps", bad) for bad in (0, float("nan"))],
        *[("seed", bad) for bad in (-1, 10**20, 0.5)],
        *[("bn_mode", "strict"), ("precision", "float16"), ("probe_every", 0)],
    ],
)
def test_pretraining_refuses_values_out_of_range(argument, value):
    more = {"probe": lambda encoder: 0.0} if argument == "probe_every" else {}
    loaders = make_loaders(Items(pairs(4)), Items(pairs(2)), batch_size=2, device=CPU)
    model, method = create_autoencoder("test_resnet"), create_method("inpaint", patch_size=16)
    with pytest.raises(SegaeError, match=argument):
        pretraining_learner(loaders, model, method, **{argument: value}, **more)


@pytest.mark.parametrize(
    ("argument", "value"), [("bn_mode", "frozen"), ("loss", "focal"), ("weight_decay", float("inf")), ("max_steps", -1)]
)
def test_fine_tuning_refuses_values_out_of_range(argument, value):
    with pytest.raises(SegaeError, match=argument):
        segmentation(Tiny, size=16, **{argument: value})


def test_models_and_methods_that_do_not_fit_are_refused():
    loaders = make_loaders(Items(pairs(4, 16)), None, batch_size=2, device=CPU)
    with pytest.raises(SegaeError, match="encoder"):
        pretraining_learner(loaders, nn.Conv2d(3, 3, 1), create_method("denoise"))
    with pytest.raises(SegaeError, match="sparse"):
        pretraining_learner(loaders, create_autoencoder("test_resnet"), create_method("spark"))
    with pytest.raises(SegaeError, match="patience"):
        pretraining_learner(loaders, Tiny(), create_method("denoise"), patience=2)
    with pytest.raises(SegaeError, match="hard_mask_fraction"):
        pretraining_learner(loaders, Tiny(), create_method("denoise"), hard_mask_fraction=0.5)
    with pytest.raises(SegaeError, match="num_classes"):
        segmentation_learner(loaders, Tiny())


def test_the_number_of_classes_is_the_models_own():
    loaders = make_loaders(Items(pairs(4)), Items(pairs(2)), batch_size=2, device=CPU)
    learner = segmentation_learner(loaders, create_segmenter("test_resnet", num_classes=5))
    assert learner.recorder.metrics[0].num_classes == 5


def test_bfloat16_reaches_the_model_and_weights_stay_float32():
    kinds: list[torch.dtype] = []
    learner = segmentation(precision="bfloat16")
    learner.model.segmentation_head.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    log = fit(learner, freeze_finetune_phases(0, 1))
    assert set(kinds) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in learner.model.parameters())
    expected = fit(segmentation(), freeze_finetune_phases(0, 1))
    assert log["train_loss"][0] == pytest.approx(expected["train_loss"][0], rel=0.1)
    learner.add_cb(Curious("after_pred", KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(learner, freeze_finetune_phases(0, 1))
    assert not torch.is_autocast_enabled("cpu")


def dice_by_hand(logits: Tensor, mask: Tensor) -> float:
    probability, losses = logits.softmax(dim=1), []
    for index in range(logits.shape[1]):
        true = (mask == index).float()
        score = 2 * (probability[:, index] * true).sum() / (probability[:, index].sum() + true.sum())
        losses += [1 - float(score)] if true.any() else []
    return sum(losses) / len(losses)


@pytest.mark.parametrize("highest", [2, 3])  # with 2 the third class is nowhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dice_is_over_all_pixels_of_the_batch_and_in_float32(highest, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 33, 31, generator=generator).to(dtype)
    mask = torch.randint(highest, (4, 33, 31), generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = SoftDice()(logits, mask)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(dice_by_hand(logits.float(), mask), abs=1e-5)


def test_weight_decay_is_for_matrices_and_kernels_only():
    torch.manual_seed(0)
    start = [torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(2, 5), torch.randn(1, 4, 1, 1)]
    results: dict[str, list[Tensor]] = {}
    for name, kind, decay in (("ours", _AdamW, 0.5), ("torch", torch.optim.AdamW, 0.5), ("none", _AdamW, 0.0)):
        parameters = [nn.Parameter(value.clone()) for value in start]
        unused = nn.Parameter(torch.ones(2, 2))
        optimizer = kind([*parameters, unused], lr=0.01, weight_decay=decay)
        for turn in range(5):
            for index, parameter in enumerate(parameters):
                generator = torch.Generator().manual_seed(10 * turn + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        results[name] = [parameter.detach() for parameter in parameters]
        assert optimizer.param_groups[0]["weight_decay"] == decay
        assert torch.equal(unused, torch.ones(2, 2))
    for index, kind in enumerate(["torch", "none", "torch", "none"]):
        torch.testing.assert_close(results["ours"][index], results[kind][index])
        other = {"torch": "none", "none": "torch"}[kind]
        assert not torch.allclose(results["ours"][index], results[other][index], atol=1e-3)


class Step:
    def __init__(self, loss: float) -> None:
        self.loss = torch.tensor(loss, requires_grad=True)


def test_the_smooth_training_loss_is_fastais_and_what_was_kept_does_not_change():
    ours, theirs = _SmoothLoss(beta=0.9), AvgSmoothLoss(beta=0.9)
    for _ in range(2):  # and again after a reset
        ours.reset()
        theirs.reset()
        kept = []
        for value in torch.rand(2100, generator=torch.Generator().manual_seed(0)).tolist():
            ours.accumulate(Step(value))
            theirs.accumulate(Step(value))
            kept.append((ours.value, float(theirs.value)))
        assert [float(one) for one, _ in kept] == pytest.approx([other for _, other in kept], rel=1e-4)


def test_the_validation_loss_is_fastais_and_lr_find_works():
    learner, found = segmentation(Tiny, valid=11, size=16), []
    for metric in (learner.recorder.loss, AvgLoss()):
        vars(learner.recorder)["loss"] = metric  # an assignment would warn
        found.append(learner.validate()[0])
    assert found[0] == found[1] > 0
    learner.lr_find(num_it=5, show_plot=False)
    assert len(learner.recorder.losses) >= 5


# what the host waits for on a GPU: a value itself, or a result whose shape depends on values
_VALUES = ("_local_scalar_dense", "equal", "nonzero", "masked_select")
_SHAPES = ("bincount", "_unique2", "unique_dim", "unique_consecutive")
READS = {getattr(torch.ops.aten, name) for name in _VALUES + _SHAPES}
COPIES = ("tolist", "numpy", "cpu", "__array__")  # which the dispatcher does not see on a CPU
BATCH, BATCHES = 2, 24  # more batches than StopOnNaN lets pass between two looks


class Waited(Exception):
    """Something asked for a value."""


class NoReads(TorchDispatchMode):
    """Inside, reading a tensor's values is an error; in the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise Waited

        for name in COPIES:
            self.patch.setattr(Tensor, name, refuse)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.undo()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if func.overloadpacket in READS or by_mask:
            raise Waited(str(func))
        return func(*args, **(kwargs or {}))


class Guard(Callback):
    """Makes waiting an error from the beginning of the second batch to that of the last one."""

    order = -100  # before every other callback

    def __init__(self, device: torch.device) -> None:
        self.mode = NoReads() if device.type == "cpu" else None
        self.is_on = False

    def before_batch(self) -> None:
        if self.learn.training:
            self.switch(0 < self.learn.iter < self.learn.n_iter - 1)

    def switch(self, on: bool) -> None:
        if on == self.is_on:
            return
        self.is_on = on
        if self.mode is None:
            torch.cuda.set_sync_debug_mode("error" if on else "default")
        elif on:
            self.mode.__enter__()
        else:
            self.mode.__exit__(None, None, None)

    def lifted(self, work: Callable) -> Callable:
        """The work without the guard: the deliberate look for NaN, and fastai's schedule on the host."""

        def free(*args: Any) -> Any:
            before = self.is_on
            self.switch(False)
            try:
                return work(*args)
            finally:
                self.switch(before)

        return free


@contextmanager
def watched(learner: Any) -> Iterator[list[int]]:
    """Inside, the loop may not wait except where StopOnNaN looks; yields the steps at which it does."""
    looks: list[int] = []
    stop = learner.stop_on_na_n
    stop.every, look, guard = 20, stop._look, Guard(learner.dls.device)
    with pytest.MonkeyPatch.context() as patch, learner.added_cbs([guard]):
        patch.setattr(stop, "_look", guard.lifted(lambda: (looks.append(stop.batches), look())))
        if guard.mode is not None:
            patch.setattr(ParamScheduler, "_update_val", guard.lifted(ParamScheduler._update_val))
        try:
            yield looks
        finally:
            guard.switch(False)


def make(task: str, device: torch.device = CPU, **more: Any) -> Any:
    """A learner whose images are on the device."""
    seed_everything(0)
    drawn = torch.randint(0, 256, (BATCH * BATCHES, 64, 64, 4), dtype=torch.uint8).numpy()
    masks, change = (drawn[..., 3] % 2, MildChange()) if task == "segment" else (None, CropAndFlip())
    data = GPUImageDataset(drawn[..., :3], masks, change, (0.5,) * 3, (0.5,) * 3, device=device, seed=0)
    loaders = make_loaders(data, None, batch_size=BATCH, device=device)
    if task == "segment":
        return segmentation_learner(loaders, create_segmenter("test_resnet", num_classes=2), **more)
    method = create_method(task, **({"patch_size": 16} if task == "inpaint" else {}))
    return pretraining_learner(loaders, create_autoencoder("test_resnet", method=method), method, **more)


def phases(task: str) -> tuple:
    return freeze_finetune_phases(0, 1, lr=1e-3) if task == "segment" else pretraining_phases(1, 1e-3)


HARD = {"hard_mask_fraction": 0.5, "distance_penalty": 0.1, "accumulate": 2, "skip_dropout": 0.5, "max_steps": 500}


@pytest.mark.parametrize(
    ("task", "settings"), [("segment", {}), ("denoise", {"precision": "bfloat16"}), ("inpaint", {}), ("spark", HARD)]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_loop_does_not_wait_for_the_device(task, settings, device):
    learner = make(task, torch.device(device), **settings)
    if device == "cuda":
        fit(learner, phases(task))  # sets things up
    with watched(learner) as looks:
        log = fit(learner, phases(task))
    assert looks == [20, BATCHES], "the deliberate look, and that at the end of the epoch"
    assert log["images"].iloc[-1] == BATCH * BATCHES


class Curious(Callback):
    """Reads a number where it must not, or raises there."""

    def __init__(self, where: str, error: type[BaseException] | None = None) -> None:
        def look() -> None:
            if error is not None:
                raise error
            float(self.learn.xb[0].mean())

        setattr(self, where, look)


@pytest.mark.parametrize("where", ["after_pred", "after_loss", "after_backward", "after_step", "after_batch"])
def test_a_wait_anywhere_in_a_batch_is_noticed(where):
    learner = make("denoise")
    with pytest.raises(Waited), watched(learner), learner.added_cbs([Curious(where)]):
        fit(learner, phases("denoise"))


def test_every_way_of_reading_is_noticed():
    value = torch.rand(5)
    reads: list[Callable[[Tensor], Any]] = [
        *(lambda v: v.sum().item(), lambda v: bool(v.any()), lambda v: range(int(v.argmax())), lambda v: v.tolist()),
        *(lambda v: v.cpu(), lambda v: v.numpy(), lambda v: v[v > 0], lambda v: v.nonzero(), lambda v: v.unique()),
        *(lambda v: torch.equal(v, v), lambda v: torch.bincount(v.long())),
    ]
    for read in reads:
        with pytest.raises(Waited), NoReads():
            read(value)
        assert read(value) is not None
