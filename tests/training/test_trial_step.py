"""A step that only asks for memory leaves no trace."""

from __future__ import annotations

import torch

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
