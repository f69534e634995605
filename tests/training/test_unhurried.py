"""The Learner's own record of the loss."""

from __future__ import annotations

import pytest
import torch
from fastai.learner import AvgLoss, AvgSmoothLoss

from segae.training.unhurried import MeanLoss, SmoothLoss


class Step:
    def __init__(self, loss: float) -> None:
        self.loss = torch.tensor(loss, requires_grad=True)


def test_the_smooth_loss_is_fastai_s():
    ours, theirs = SmoothLoss(beta=0.9), AvgSmoothLoss(beta=0.9)
    values = [float(value) for value in torch.rand(40, generator=torch.Generator().manual_seed(0))]
    kept = []
    for _ in range(2):  # and again after a reset
        ours.reset()
        theirs.reset()
        kept = []
        for value in values:
            for metric in (ours, theirs):
                metric.accumulate(Step(value))
            kept.append((ours.value, float(theirs.value)))
    # what was kept at a step does not change afterwards
    assert [float(one) for one, _ in kept] == pytest.approx([other for _, other in kept], rel=1e-5)


def test_the_validation_loss_is_fastai_s(segmentation):
    """Of 11 images in batches of 8 and 3, which count by their images."""
    learner, found = segmentation(valid=11), []
    assert type(learner.recorder.loss) is MeanLoss
    for metric in (learner.recorder.loss, AvgLoss()):
        vars(learner.recorder)["loss"] = metric  # an assignment would warn
        found.append(learner.validate()[0])
    assert found[0] == found[1] > 0


def test_more_steps_than_a_chunk_holds():
    metric = SmoothLoss()
    metric.reset()
    kept = []
    for step in range(2500):
        metric.accumulate(Step(float(step)))
        kept.append(metric.value)
    rising = torch.stack(kept)
    assert (rising[1:] > rising[:-1]).all()


def test_lr_find_still_works_and_the_loss_is_recorded(segmentation):
    learner = segmentation()
    learner.fit(1)
    assert len(learner.recorder.losses) == 3
    assert all(float(loss) > 0 for loss in learner.recorder.losses)
    learner.lr_find(num_it=5, show_plot=False)
    assert len(learner.recorder.losses) >= 5


@pytest.mark.parametrize(("architecture", "moves"), [("test_resnet", True), ("test_convnext", False)])
def test_of_a_frozen_encoder_batchnorm_alone_trains(segmentation, architecture, moves):
    learner = segmentation(bn_mode="train", architecture=architecture)
    before = {name: value.clone() for name, value in learner.model.encoder.named_parameters()}
    learner.freeze()
    learner.fit(1, lr=0.1)
    changed = {name for name, value in learner.model.encoder.named_parameters() if not torch.equal(value, before[name])}
    assert bool(changed) == moves
    assert all(before[name].ndim == 1 for name in changed)
