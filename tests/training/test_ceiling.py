"""The step without a loop is the learner's own step, and the timed loader's clock adds up."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch

from segae.errors import SegaeError
from segae.training.ceiling import PHASES, TrainingStep, measure_ceiling, measure_phases
from segae.training.fit import fit
from segae.training.pace import TimedLoader
from segae.training.schedule import Phase, make_phases

CPU = torch.device("cpu")


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


@pytest.mark.parametrize("kind", ["segmentation", "pretraining"])
def test_the_step_learns_its_batch(kind, request):
    learner = request.getfixturevalue(kind)()
    step = TrainingStep(learner, next(iter(learner.dls.train)))
    before = state(learner.model)
    losses = [float(step()) for _ in range(15)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    moved = changed(before, learner.model)
    assert any(name.startswith("encoder.") for name in moved)
    assert any(not name.startswith("encoder.") for name in moved)


def test_the_step_is_the_one_that_fit_takes(segmentation):
    """One batch, one step, the same rate: weights equal to those of the loop."""
    loop, alone = segmentation(bn_mode="train"), segmentation(bn_mode="train")
    batch = next(iter(loop.dls.train))
    for learner in (loop, alone):
        learner.dls.loaders[1] = []
    loop.dls.loaders[0] = Only([batch], loop.dls.train)
    rate = 1e-3
    fit(loop, [Phase("full", 1, rate, rate, 0.5, 1.0, train_encoder=True)])  # one step at its peak
    alone.create_opt()
    alone.lr = rate
    TrainingStep(alone, batch)()
    for name, value in loop.model.state_dict().items():
        assert torch.allclose(value.float(), alone.model.state_dict()[name].float(), atol=1e-6), name


class Only:
    """A loader of a few given batches."""

    def __init__(self, batches: list, like: torch.utils.data.DataLoader) -> None:
        self.batches, self.dataset = batches, like.dataset

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def test_a_frozen_encoder_rests(segmentation):
    learner = segmentation()
    learner.freeze()
    before = state(learner.model)
    TrainingStep(learner, next(iter(learner.dls.train)))()
    moved = changed(before, learner.model)
    assert moved
    assert not any(name.startswith("encoder.") for name in moved)


def test_each_step_corrupts_anew_and_the_seed_decides_how(pretraining):
    learner = pretraining("mask")
    batch = next(iter(learner.dls.train))
    step, again = (TrainingStep(learner, batch, seed=3) for _ in range(2))
    (first, _), (second, _) = step.show(), step.show()
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[0], again.show()[0][0])


def test_autocast_is_the_learners(segmentation):
    seen = []
    learner = segmentation(precision="bfloat16")
    learner.loss_func = lambda logits, mask: seen.append(logits.dtype) or logits.float().mean()
    TrainingStep(learner, next(iter(learner.dls.train)))()
    assert seen == [torch.bfloat16]


def test_the_distance_penalty_is_part_of_the_step(pretraining):
    plain, held = pretraining(distance_penalty=0.0), pretraining(distance_penalty=10.0)
    batch = next(iter(plain.dls.train))
    gradients = []
    for learner in (plain, held):
        with torch.no_grad():
            for parameter in learner.model.encoder.parameters():
                parameter.add_(0.01)
        step = TrainingStep(learner, batch)
        step.backward(step.forward(*step.show()))
        gradients.append([p.grad.clone() for p in learner.model.encoder.parameters() if p.grad is not None])
    assert all(torch.allclose(b - a, torch.full_like(a, 0.1), atol=1e-3) for a, b in zip(*gradients, strict=True))


class Sleeper:
    """A step of a known length."""

    images, device = 4, CPU

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        time.sleep(0.002)


def test_the_ceiling_counts_images_of_timed_steps():
    step = Sleeper()
    rate = measure_ceiling(step, warm_up=2, steps=5, repeats=3)
    assert step.calls == 2 + 3 * 5
    assert 0 < rate <= 4 / 0.002


def test_the_ceiling_takes_the_middle_repeat(monkeypatch):
    ends = iter([0.0, 1.0, 0.0, 100.0, 0.0, 2.0])
    monkeypatch.setattr("segae.training.ceiling.time.perf_counter", lambda: next(ends))
    assert measure_ceiling(lambda: None, 8, CPU, warm_up=0, steps=10, repeats=3) == 40


def test_the_ceiling_refuses_no_steps():
    with pytest.raises(SegaeError, match="steps=40"):
        measure_ceiling(Sleeper(), steps=0)


def test_the_phases_are_those_of_a_step(pretraining):
    learner = pretraining()
    step = TrainingStep(learner, next(iter(learner.dls.train)))
    before = state(learner.model)
    times = measure_phases(step, warm_up=0, steps=2)
    assert tuple(times) == PHASES
    assert all(value > 0 for value in times.values())
    assert times["forward"] + times["backward"] > times["corruption"]
    assert changed(before, learner.model)


def test_the_timed_loader_tells_waiting_from_working():
    def slow():
        for _ in range(4):
            time.sleep(0.02)
            yield (torch.zeros(3, 1),)

    timed = TimedLoader(slow(), CPU)
    for _ in timed:
        time.sleep(0.005)
    assert timed.images == timed.total_images == 12
    assert timed.waited_s >= 0.08
    assert timed.worked_s >= 0.02
    assert timed.wait_share == pytest.approx(timed.waited_s / timed.seconds)
    assert timed.wait_share > 0.4
    assert timed.total_s == pytest.approx(timed.seconds, abs=0.02)


def test_the_timed_loader_skips_and_stops():
    batches = [(torch.zeros(2, 1),) for _ in range(10)]
    timed = TimedLoader(batches, CPU, skip=3, limit_s=0.0)
    assert math.isnan(timed.images_per_second)
    assert len(list(timed)) == 1  # an epoch always has a batch
    timed = TimedLoader(batches, CPU, skip=3)
    assert len(list(timed)) == len(timed) == 10
    assert (timed.images, timed.total_images) == (14, 20)


def test_a_timed_training_is_the_same_training(segmentation):
    plain, timed = segmentation(), segmentation()
    loaders = timed.dls.loaders
    loaders[:] = [TimedLoader(loader, CPU) for loader in copy.copy(loaders)]
    logs = [fit(learner, make_phases(freeze_epochs=1, epochs=1)) for learner in (plain, timed)]
    for one, other in zip(*logs, strict=True):
        assert {**one, "seconds": 0, "images_per_second": 0} == {**other, "seconds": 0, "images_per_second": 0}
    assert loaders[0].images == 2 * 18
    assert loaders[1].images == 2 * 4
