"""The learners: what constructing one changes, losses, the optimizer, and a loop that never waits for the device.

On a GPU torch reports waits itself. A CPU never waits, so there every way of reading a tensor's values is an error:
those that the dispatcher sees, and those that Python has beside it.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.data.core import DataLoaders
from fastai.learner import AvgLoss, AvgSmoothLoss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segae.data import GPUImageDataset, make_loaders
from segae.data.gpu import CropAndFlip, MildChange
from segae.errors import SegaeError
from segae.methods import create_autoencoder, create_method
from segae.models import create_segmenter
from segae.training import fit, freeze_finetune_phases, pretraining_learner, pretraining_phases, segmentation_learner
from segae.training.learner import _AdamW, _SmoothLoss
from segae.training.losses import SupervisedLoss
from tests.training.learners import CPU, Items, Tiny, pairs, segmentation

NAN = float("nan")


def test_constructing_a_learner_changes_nothing_in_the_process(monkeypatch):
    called: list[str] = []
    for owner, name in ((torch, "set_num_threads"), (cv2, "setNumThreads"), (ctypes, "CDLL")):
        monkeypatch.setattr(owner, name, lambda *_, name=name: called.append(name))
    loaders = make_loaders(Items(pairs(4, 16)), None, batch_size=2, device=CPU)
    method, autoencoder, segmenter = create_method("denoise"), create_autoencoder("test_resnet"), Tiny()

    def process() -> tuple:
        flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision()
        return *flags, torch.get_num_threads(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = process()
    segmentation_learner(loaders, segmenter, num_classes=2)
    pretraining_learner(loaders, autoencoder, method)
    assert process() == before
    assert called == []


OUT_OF_RANGE = {
    **{"weight_decay": [-0.1, NAN], "distance_penalty": [-1.0, NAN, float("inf")], "hard_mask_fraction": [1.5, NAN]},
    **{"skip_dropout": [-0.1, NAN, 0.5], "patience": [0, 1.5], "accumulate": [0, 2.0], "max_steps": [0, NAN]},
    **{"seed": [-1, 10**20, 0.5], "bn_mode": ["strict"], "precision": ["float16"], "probe_every": [0]},
}  # the plain decoder has no skip connections


@pytest.mark.parametrize(
    ("argument", "value"), [(name, one) for name, values in OUT_OF_RANGE.items() for one in values]
)
def test_values_out_of_range_are_refused(argument, value):
    loaders = make_loaders(Items(pairs(4)), Items(pairs(2)), batch_size=2, device=CPU)
    more = {"probe": lambda encoder: 0.0} if argument == "probe_every" else {}
    with pytest.raises(SegaeError, match=argument):
        pretraining_learner(
            loaders, create_autoencoder("test_resnet"), create_method("inpaint"), **{argument: value}, **more
        )


def test_models_methods_and_choices_that_do_not_fit_are_refused():
    loaders = make_loaders(Items(pairs(4, 16)), None, batch_size=2, device=CPU)
    denoise = create_method("denoise")
    for model, method, settings, word in (
        (nn.Conv2d(3, 3, 1), denoise, {}, "encoder"),
        (create_autoencoder("test_resnet"), create_method("spark"), {}, "sparse"),
        (Tiny(), denoise, {"patience": 2}, "patience"),
        (Tiny(), denoise, {"hard_mask_fraction": 0.5}, "hard_mask_fraction"),
    ):
        with pytest.raises(SegaeError, match=word):
            pretraining_learner(loaders, model, method, **settings)
    for settings in ({"bn_mode": "frozen"}, {"loss": "hinge"}, {"num_classes": None}):
        with pytest.raises(SegaeError, match=next(iter(settings))):
            segmentation_learner(loaders, Tiny(), **{"num_classes": 2, **settings})


def test_bfloat16_reaches_the_model_and_weights_stay_float32():
    kinds: list[torch.dtype] = []
    learner = segmentation(precision="bfloat16")
    learner.model.segmentation_head.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    loss = fit(learner, freeze_finetune_phases(0, 1))["train_loss"][0]
    assert set(kinds) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in learner.model.parameters())
    assert loss == pytest.approx(fit(segmentation(), freeze_finetune_phases(0, 1))["train_loss"][0], rel=0.1)


@pytest.mark.parametrize("highest", [2, 3])  # with 2 the third class is nowhere
def test_dice_is_over_all_pixels_of_the_batch_and_in_float32(highest):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 33, 31, generator=generator).bfloat16()
    mask = torch.randint(highest, (4, 33, 31), generator=generator)
    share, true = logits.float().softmax(dim=1), nn.functional.one_hot(mask, 3).permute(0, 3, 1, 2)
    losses = 1 - 2 * (share * true).sum(dim=(0, 2, 3)) / (share + true).sum(dim=(0, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        loss = SupervisedLoss("dice", num_classes=logits.shape[1])(logits, mask)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(losses[:highest].mean()), abs=1e-5)


def test_weight_decay_is_for_matrices_and_kernels_only():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 3, 3), (4,), (2, 5), (1, 4, 1, 1)]
    start, gradients = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))
    results: dict[str, list[Tensor]] = {}
    for name, kind, decay in (("ours", _AdamW, 0.5), ("torch", torch.optim.AdamW, 0.5), ("none", _AdamW, 0.0)):
        parameters, unused = [nn.Parameter(value.clone()) for value in start], nn.Parameter(torch.ones(2, 2))
        optimizer = kind([*parameters, unused], lr=0.01, weight_decay=decay)
        for _ in range(5):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        results[name] = [parameter.detach() for parameter in parameters]
        assert torch.equal(unused, torch.ones(2, 2))
    for index, (kind, other) in enumerate([("torch", "none"), ("none", "torch")] * 2):
        torch.testing.assert_close(results["ours"][index], results[kind][index])
        assert not torch.allclose(results["ours"][index], results[other][index], atol=1e-3)


def test_the_recorded_losses_are_fastais_and_lr_find_works(tmp_path):
    ours, theirs, kept = _SmoothLoss(beta=0.9), AvgSmoothLoss(beta=0.9), []
    ours.reset()
    theirs.reset()
    for value in torch.rand(2100, generator=torch.Generator().manual_seed(0)).tolist():
        for metric in (ours, theirs):
            metric.accumulate(SimpleNamespace(loss=torch.tensor(value)))
        kept.append((ours.value, float(theirs.value)))
    assert [float(one) for one, _ in kept] == pytest.approx([other for _, other in kept], rel=1e-4)
    learner = segmentation(Tiny, valid=11, size=16)
    found = learner.validate()[0]
    vars(learner.recorder)["loss"] = AvgLoss()  # an assignment would warn
    assert found == learner.validate()[0] > 0
    learner.path = tmp_path  # lr_find keeps the weights in a file meanwhile
    learner.lr_find(num_it=5, show_plot=False)
    assert len(learner.recorder.losses) >= 5


def test_fastais_own_data_loaders_and_fine_tune_work():
    dls = DataLoaders.from_dsets(pairs(8, 32), pairs(4, 32), bs=4, device=CPU)
    learner = segmentation_learner(dls, Tiny(), num_classes=2)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1, freeze_epochs=1)
    assert len(learner.recorder.losses) == 2


def test_a_class_of_weight_zero_teaches_nothing_and_impossible_weights_are_refused():
    loaders = make_loaders(Items(pairs(4, 16)), None, batch_size=2, device=CPU)
    logits, mask = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randint(0, 3, (2, 8, 8))
    loss = segmentation_learner(loaders, Tiny(), num_classes=3, class_weights=(1, 0, 2)).loss_func
    loss(logits, mask).backward()
    assert (logits.grad.abs().sum(1)[mask == 1] == 0).all()
    assert (logits.grad.abs().sum(1)[mask != 1] > 0).all()
    for settings in (
        {"class_weights": (1, 2, 3)},
        {"class_weights": (1, 1), "loss": "dice"},
        {"class_weights": (0, 0)},
    ):
        with pytest.raises(SegaeError, match="class_weights"):
            segmentation_learner(loaders, Tiny(), num_classes=2, **settings)


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

    def __enter__(self) -> Any:
        def refuse(*_: Any, **__: Any) -> None:
            raise Waited

        self.patch = pytest.MonkeyPatch()
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
        self.mode, self.is_on = NoReads() if device.type == "cpu" else None, False

    def before_batch(self) -> None:
        if self.learn.training:
            self.switch(0 < self.learn.iter < self.learn.n_iter - 1)

    def switch(self, on: bool) -> None:
        if on != self.is_on and self.mode is None:
            torch.cuda.set_sync_debug_mode("error" if on else "default")
        elif on != self.is_on:
            self.mode.__enter__() if on else self.mode.__exit__(None, None, None)
        self.is_on = on

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
    looks, stop, guard = [], learner.stop_on_na_n, Guard(learner.dls.device)
    stop.every, look = 20, stop._look
    with pytest.MonkeyPatch.context() as patch, learner.added_cbs([guard]):
        patch.setattr(stop, "_look", guard.lifted(lambda: (looks.append(stop.batches), look())))
        if guard.mode is not None:
            patch.setattr(ParamScheduler, "_update_val", guard.lifted(ParamScheduler._update_val))
        try:
            yield looks
        finally:
            guard.switch(False)


def make(task: str, device: str = "cpu", **more: Any) -> Any:
    """A learner whose images are on the device, and one epoch for it."""
    drawn = torch.randint(0, 256, (BATCH * BATCHES, 64, 64, 4), dtype=torch.uint8).numpy()
    masks, change = (drawn[..., 3] % 2, MildChange()) if task == "segment" else (None, CropAndFlip())
    where = torch.device(device)
    data = GPUImageDataset(drawn[..., :3], masks, change, (0.5,) * 3, (0.5,) * 3, device=where, seed=0)
    loaders = make_loaders(data, None, batch_size=BATCH, device=where)
    if task == "segment":
        model = create_segmenter("test_resnet", num_classes=2)
        return segmentation_learner(loaders, model, **more), freeze_finetune_phases(0, 1, lr=1e-3)
    method = create_method(task)
    model = create_autoencoder("test_resnet", method=method)
    return pretraining_learner(loaders, model, method, **more), pretraining_phases(1, 1e-3)


HARD = {"hard_mask_fraction": 0.5, "distance_penalty": 0.1, "accumulate": 2, "skip_dropout": 0.5, "max_steps": 500}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("task", "settings"), [("segment", {}), ("denoise", {"precision": "bfloat16"}), ("inpaint", {}), ("spark", HARD)]
)
def test_the_loop_does_not_wait_for_the_device(task, settings, device):
    learner, phases = make(task, device, **settings)
    if device == "cuda":
        fit(learner, phases)  # sets things up
    with watched(learner) as looks:
        log = fit(learner, phases)
    assert looks == [20, BATCHES], "the deliberate look, and that at the end of the epoch"
    assert log["images"].iloc[-1] == BATCH * BATCHES


@pytest.mark.parametrize("where", ["after_pred", "after_loss", "after_backward", "after_step", "after_batch"])
def test_a_wait_anywhere_in_a_batch_is_noticed(where):
    class Curious(Callback):
        """Reads a number where it must not."""

    setattr(Curious, where, lambda self: float(self.learn.xb[0].mean()))
    learner, phases = make("denoise")
    with pytest.raises(Waited), watched(learner), learner.added_cbs([Curious()]):
        fit(learner, phases)
