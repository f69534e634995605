"""A step that only asks for memory leaves no trace."""

from __future__ import annotations

import gc

import pytest
import torch

from segae.training.ceiling import TrainingStep
from segae.training.fit import fit
from segae.training.schedule import make_phases, make_pretraining_phases
from segae.training.trial_step import trial_step


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_a_segmentation_goes_on_as_if_nothing_had_been_tried(segmentation):
    tried, plain = segmentation(bn_mode="train"), segmentation(bn_mode="train")
    torch.manual_seed(5)
    trial_step(tried, 6, 64, 2)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert same(tried.model, plain.model)
    assert all(parameter.grad is None for parameter in tried.model.parameters())
    for learner in (tried, plain):
        fit(learner, make_phases(1, 1))
    assert same(tried.model, plain.model)


def test_a_pretraining_goes_on_as_if_nothing_had_been_tried(pretraining):
    tried, plain = pretraining(), pretraining()
    trial_step(tried, 6, 64, None)
    for learner in (tried, plain):
        fit(learner, make_pretraining_phases(1, 1e-3))
    assert same(tried.model, plain.model)


def storage_bytes() -> int:
    """Of all tensors that Python holds, each storage once."""
    gc.collect()
    storages = [thing.untyped_storage() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_the_optimizer_s_moments_have_their_room_during_a_trial_and_not_after_it(segmentation, monkeypatch):
    learner, held = segmentation(), []
    forward = TrainingStep.forward

    def weighed(self, inputs, targets):
        held.append(storage_bytes() - sum(part.nbytes for part in self.batch))
        return forward(self, inputs, targets)

    monkeypatch.setattr(TrainingStep, "forward", weighed)
    before = storage_bytes()
    trial_step(learner, 2, 64, 2)
    weights = sum(parameter.nbytes for parameter in learner.model.parameters())
    buffers = sum(buffer.nbytes for buffer in learner.model.buffers())
    assert held[0] - before == pytest.approx(2 * weights + buffers, rel=0.01)
    assert storage_bytes() == pytest.approx(before, rel=0.01)
