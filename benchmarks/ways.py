"""The two ways of each switch of the compute path: as segae has it switched on, and without."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from scene import CLASSES, Scene, kept_mb
from torch import Tensor
from turns import time_pairs

import segae
from segae.training.ceiling import TrainingStep
from segae.training.evaluation import predict_logits
from segae.training.optimizer import AdamW

Metrics = list[tuple[str, float | Sequence[float]]]


class Absent(Exception):
    """A switch that does not exist here; the message says why."""


@dataclass(frozen=True)
class Ways:
    """A switch, ready to be timed.

    Attributes:
        on: one step with it.
        off: one step without it.
        task: what a step is: "segment" trains, "evaluate" predicts.
        more: measures what else is to be known, once the steps are timed.
    """

    on: Callable[[], Any]
    off: Callable[[], Any]
    task: str = "segment"
    more: Callable[[], Metrics] = field(default=list)


def channels_last(scene: Scene) -> Ways:
    """Weights and images with their channels innermost in memory."""
    on, off = scene.step(), scene.step()
    off.model.to(memory_format=torch.contiguous_format)
    off.batch = tuple(part.contiguous() for part in off.batch)
    return Ways(on, off)


def fused_adamw(scene: Scene, foreach: bool) -> Ways:
    """One pass over all weights in the optimizer, against torch's two other kinds."""
    on, learner = scene.step(), scene.learner()
    learner.opt_func = partial(OptimWrapper, opt=partial(AdamW, foreach=foreach))
    off = TrainingStep(learner, scene.batch())

    def optimizer_alone() -> Metrics:
        for step in (on, off):
            step.backward(step.forward(*step.show()))
        times = time_pairs(on.optimizer.step, off.optimizer.step, scene.pairs, scene.device)
        parts = {"ms_on": times.on_s, "ms_off": times.off_s}
        milliseconds = [(f"optimizer_{name}", [1000 * one for one in taken]) for name, taken in parts.items()]
        return [("optimizer_on_over_off", times.ratios), *milliseconds]

    return Ways(on, off, more=optimizer_alone)


def bfloat16_training(scene: Scene) -> Ways:
    """Forward and loss under autocast."""
    return Ways(scene.step(precision="bfloat16"), scene.step(precision="float32"))


def bfloat16_evaluation(scene: Scene) -> Ways:
    """Prediction under autocast, which segae leaves off."""
    off = _prediction(scene)

    def on() -> None:
        with torch.autocast(scene.device.type, torch.bfloat16):
            off()

    return Ways(on, off, "evaluate")


def inference_mode(scene: Scene) -> Ways:
    """Prediction whose tensors can never have gradients, against one that only records none."""
    on = _prediction(scene)

    def off() -> None:
        with patch.object(torch, "inference_mode", torch.no_grad):
            on()

    return Ways(on, off, "evaluate")


def activation_checkpointing(scene: Scene) -> Ways:
    """Activations computed a second time instead of kept."""
    on, off = scene.step(activation_checkpointing=True), scene.step()
    return Ways(on, off, more=lambda: _kept_of(on, off, on.batch))


def micro_batch(scene: Scene) -> Ways:
    """Half of the batch at once, twice."""
    if scene.batch_size % 2 or scene.batch_size < 4:
        raise Absent(f"a batch of {scene.batch_size} has no halves of two images or more")
    on, off = scene.step(), scene.step()
    halves = list(zip(*(part.chunk(2) for part in on.batch), strict=True))

    def in_halves() -> None:
        for image_bchw, mask_bhw in halves:
            on.backward(on.forward((image_bchw,), (mask_bhw,)) * 0.5)
        on.update()

    return Ways(in_halves, off, more=lambda: _kept_of(on, off, halves[0]))


def compiled(scene: Scene) -> Ways:
    """The model through torch.compile, whose time to compile stands beside it."""
    on, off = scene.step(compile=True), scene.step()
    started = time.perf_counter()
    on()
    seconds = time.perf_counter() - started
    return Ways(on, off, more=lambda: [("first_step_s", seconds)])


def all_threads(scene: Scene) -> Ways:
    """As many threads as there are, against one."""
    step, threads = scene.step(), torch.get_num_threads()
    if scene.device.type != "cpu" or threads == 1:
        raise Absent(f"of {threads} thread(s) on {scene.device.type}")

    def alone() -> None:
        torch.set_num_threads(1)
        try:
            step()
        finally:
            torch.set_num_threads(threads)

    return Ways(step, alone)


def cudnn_autotuning(scene: Scene) -> Ways:
    """cuDNN's trial of its algorithms on each new size of input."""
    _require_cuda(scene)
    on, off = scene.step(), scene.step()

    def chosen_by_rule() -> None:
        torch.backends.cudnn.benchmark = False
        try:
            off()
        finally:
            torch.backends.cudnn.benchmark = True

    return Ways(on, chosen_by_rule)


def pinned_memory(scene: Scene) -> Ways:
    """A batch copied from pinned memory while the device computes, against a copy that is waited for."""
    _require_cuda(scene)
    learner = scene.learner()
    step = TrainingStep(learner, scene.batch())
    pageable = scene.batch()
    pinned = tuple(part.pin_memory() for part in pageable)

    def copied(copy: Callable[[Any], Any], batch: tuple[Tensor, ...]) -> None:
        image_bchw, mask_bhw = copy(batch)
        step.batch = (image_bchw.contiguous(memory_format=torch.channels_last), mask_bhw)
        step()

    return Ways(
        partial(copied, learner._set_device, pinned), partial(copied, partial(Learner._set_device, learner), pageable)
    )


def require_glibc() -> None:
    """Raise Absent where freed memory cannot be kept."""
    if platform.libc_ver()[0] != "glibc" or os.name != "posix":
        raise Absent("it is a setting of glibc")


SWITCHES: dict[str, Callable[[Scene], Ways]] = {
    "channels_last": channels_last,
    "fused_adamw_not_foreach": partial(fused_adamw, foreach=True),
    "fused_adamw_not_loop": partial(fused_adamw, foreach=False),
    "bfloat16_training": bfloat16_training,
    "bfloat16_evaluation": bfloat16_evaluation,
    "inference_mode": inference_mode,
    "activation_checkpointing": activation_checkpointing,
    "micro_batch": micro_batch,
    "all_threads": all_threads,
    "cudnn_autotuning": cudnn_autotuning,
    "pinned_memory": pinned_memory,
    "compile": compiled,
}
"""Those that one process can have both on and off."""


def _require_cuda(scene: Scene) -> None:
    if scene.device.type != "cuda":
        raise Absent("it is for CUDA")


def _prediction(scene: Scene) -> Callable[[], None]:
    """One pass of ``segae evaluate`` over a batch, without its scores."""
    encoder, about = segae.create_encoder(scene.encoder)
    model = segae.create_segmenter(encoder, scene.encoder, "unet", classes=CLASSES)
    image_bhwc = torch.randint(256, (scene.batch_size, scene.size, scene.size, 3), dtype=torch.uint8).numpy()
    how: dict[str, Any] = {"batch_size": scene.batch_size, "device": scene.device}

    def predict() -> None:
        for _ in predict_logits(model, image_bhwc, about.mean, about.std, **how):
            pass

    return predict


def _kept_of(on: TrainingStep, off: TrainingStep, batch_on: tuple[Tensor, ...]) -> Metrics:
    return [("kept_mb_on", kept_mb(on, batch_on)), ("kept_mb_off", kept_mb(off, off.batch))]
