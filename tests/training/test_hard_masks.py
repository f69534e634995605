"""Masks that follow the loss: what they hide, what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.models.pretrainer import create_pretrainer
from segae.objectives.corruption import GaussianNoise, PatchMask
from segae.objectives.mixture import Mixture
from segae.objectives.presets import Objective, make_objective
from segae.objectives.reconstruction import MeanSquaredError, PatchNormalisedError
from segae.training.callbacks import Callback
from segae.training.fit import fit
from segae.training.hard_masks import mask_patch, patch_errors, share_at, squared_error
from segae.training.learner import pretraining_learner
from segae.training.loaders import make_loaders
from segae.training.run import seed_everything
from segae.training.schedule import Phase


def phases(epochs: int) -> list[Phase]:
    return [Phase("pretrain", epochs, 1e-3, 1e-3, 0.1, 25.0, train_encoder=True)]


class Blind(nn.Module):
    """Predicts zero everywhere: its error at a place is the brightness there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.encoder.forward = lambda image: [nn.functional.conv2d(image, self.encoder.weight, self.encoder.bias)]

    def forward(self, image_bchw, hidden_b1hw):
        return 0 * self.encoder(image_bchw)[-1][:, :3]


class Masks(Callback):
    """Keeps the masks of every epoch, training and validation apart."""

    order = 5

    def __init__(self) -> None:
        self.train: dict[int, list] = {}
        self.valid: list = []

    def before_batch(self) -> None:
        grid = self.learn.yb[1][:, 0, ::16, ::16].clone()
        if self.learn.training:
            self.train.setdefault(self.learn.epoch_clock.now, []).append(grid)
        else:
            self.valid.append(grid)


def images(count: int) -> list:
    """Faint everywhere, bright in the patch of the first row and second column."""
    generator = torch.Generator().manual_seed(1)
    found = 0.1 * torch.randn(count, 3, 64, 64, generator=generator)
    found[:, :, :16, 16:32] += 3
    return [(image,) for image in found]


def make(model: nn.Module, objective: Objective | None = None, **more):
    loaders = make_loaders(images(32), images(8), batch_size=8, device=torch.device("cpu"))
    learner = pretraining_learner(loaders, model, objective or make_objective("mask"), **more)
    masks = Masks()
    learner.add_cb(masks)
    return learner, masks


def pretrainer() -> nn.Module:
    seed_everything(0)
    return create_pretrainer(create_encoder("test_resnet")[0], "test_resnet")


def test_error_of_a_patch_is_its_mean_and_unknown_where_visible():
    error = torch.arange(2 * 3 * 6 * 5, dtype=torch.float32).view(2, 3, 6, 5)
    hidden = torch.ones(2, 1, 6, 5)
    hidden[0, :, :4, :4] = 0
    found = patch_errors(error, hidden, 4)
    assert found.shape == (2, 2, 2)
    assert math.isnan(found[0, 0, 0])
    assert found[0, 0, 1] == pytest.approx(error[0, :, :4, 4:].mean())
    assert found[1, 1, 1] == pytest.approx(error[1, :, 4:, 4:].mean())


def test_hardness_is_judged_where_the_loss_is():
    target = torch.rand(1, 3, 8, 8)
    assert (
        squared_error(
            MeanSquaredError(),
            target,
            target,
        ).max()
        == 0
    )
    wider = torch.cat([target, torch.ones(1, 9, 8, 8)], dim=1)
    assert squared_error(MeanSquaredError(), wider, target).shape == target.shape
    zero = torch.zeros_like(target)
    assert squared_error(PatchNormalisedError(8), zero, 100 * target).mean() == pytest.approx(1, abs=1e-3)


def test_patch_size_is_found_inside_a_mixture():
    assert mask_patch(PatchMask(8, 0.5)) == 8
    assert mask_patch(Mixture((GaussianNoise(0.1), Mixture((PatchMask(16, 0.5),))))) == 16
    with pytest.raises(SegaeError, match="GaussianNoise hides no patches"):
        mask_patch(GaussianNoise(0.1))
    with pytest.raises(SegaeError, match=r"\[8, 16\] px"):
        mask_patch(Mixture((PatchMask(8, 0.5), PatchMask(16, 0.5))))


def test_share_rises_from_nothing_to_all_that_was_asked():
    assert [share_at(epoch, 5, 0.8) for epoch in range(5)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert share_at(0, 1, 0.8) == 0.8


def test_hard_patches_are_hidden_more_and_more_but_not_in_validation():
    learner, masks = make(Blind(), hard_mask_share=1.0)
    fit(learner, phases(5))
    frequency = {epoch: torch.cat(grids).mean(dim=0) for epoch, grids in masks.train.items()}
    assert frequency[0][0, 1] < 0.9
    assert frequency[4][0, 1] == 1
    assert all(torch.cat(grids).flatten(1).sum(1).unique().tolist() == [10] for grids in masks.train.values())
    plain, others = make(Blind())
    fit(plain, phases(5))
    assert torch.equal(torch.cat(masks.valid), torch.cat(others.valid))
    assert torch.equal(torch.cat(masks.train[0]), torch.cat(others.train[0]))  # the first epoch is all chance
    assert not torch.equal(torch.cat(masks.train[4]), torch.cat(others.train[4]))


def test_measuring_hardness_leaves_statistics_and_modes_alone():
    learner, _ = make(pretrainer(), hard_mask_share=1.0, bn_mode="eval")
    norms = [module for module in learner.model.modules() if isinstance(module, nn.BatchNorm2d)]
    inside = {id(module) for module in learner.model.encoder.modules()}
    modes: list = []

    class Modes(Callback):
        order = 5

        def before_batch(self) -> None:
            if self.learn.training:
                modes.append([module.training == (id(module) not in inside) for module in norms])

    learner.add_cb(Modes())
    fit(learner, phases(2))
    assert all(map(all, modes))
    assert len(modes) == 8
    assert {int(norm.num_batches_tracked) for norm in norms if id(norm) not in inside} == {8}  # one per batch
    assert {int(norm.num_batches_tracked) for norm in norms if id(norm) in inside} == {0}


def test_with_the_whole_share_the_hardest_patches_of_all_are_hidden():
    """Also those that the first trial mask left visible."""
    learner, masks = make(Blind(), hard_mask_share=1.0)
    brightness = {}

    class Brightness(Callback):
        order = 5

        def before_batch(self) -> None:
            if self.learn.training:
                clean = self.learn.yb[0].square().mean(dim=1).unfold(1, 16, 16).unfold(2, 16, 16)
                brightness.setdefault(self.learn.epoch_clock.now, []).append(clean.mean(dim=(3, 4)).flatten(1))

    learner.add_cb(Brightness())
    fit(learner, phases(2))
    found, true = torch.cat(masks.train[1]).flatten(1), torch.cat(brightness[1])
    expected = true >= true.sort(dim=1, descending=True).values[:, 9:10]
    assert torch.equal(found > 0, expected)


def test_a_resumed_run_draws_the_same_hard_masks(tmp_path):
    class Kill(Callback):
        order = 79

        def after_epoch(self) -> None:
            if len(self.learn.epoch_clock.log) == 2:
                raise KeyboardInterrupt

    def fresh():
        seed_everything(0)
        objective = make_objective("mixture")
        channels = objective.reconstruction.out_channels(3)
        model = create_pretrainer(create_encoder("test_resnet")[0], "test_resnet", out_channels=channels)
        return make(model, objective, hard_mask_share=0.8)[0]

    whole, first, second = fresh(), fresh(), fresh()
    fit(whole, phases(3))
    first.add_cb(Kill())
    with pytest.raises(KeyboardInterrupt):
        fit(first, phases(3), resume_file=tmp_path / "resume.pt")
    fit(second, phases(3), resume_file=tmp_path / "resume.pt", resume=True)
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in second.model.state_dict().items())


def test_a_share_out_of_range_or_without_a_mask_is_refused():
    with pytest.raises(SegaeError, match="hard_mask_share is 1.5"):
        make(Blind(), hard_mask_share=1.5)
    with pytest.raises(SegaeError, match="hides no patches"):
        make(Blind(), make_objective("denoise"), hard_mask_share=0.5)
