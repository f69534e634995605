"""Skip dropout, and the columns that say whether the decoder needs the encoder's end and has learnt anything."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.models.pretrainer import create_pretrainer
from segae.objectives.presets import make_objective
from segae.training.callbacks import Callback
from segae.training.fit import fit
from segae.training.learner import pretraining_learner
from segae.training.loaders import make_loaders
from segae.training.pretraining_watch import WhatIsUsed
from segae.training.run import seed_everything
from segae.training.schedule import make_pretraining_phases

CPU = torch.device("cpu")


def pictures(count: int) -> list:
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return [(image,) for image in nn.functional.interpolate(coarse, size=64, mode="bilinear")]


def make(decoder: str = "unet", name: str = "denoise", train: int = 16, valid: int = 8, **more):
    seed_everything(0)
    encoder, _ = create_encoder("test_resnet")
    objective = make_objective(name)
    model = create_pretrainer(encoder, "test_resnet", masking=objective.masking, decoder=decoder)
    loaders = make_loaders(pictures(train), pictures(valid), batch_size=8, device=CPU)
    return pretraining_learner(loaders, model, objective, **more)


class Cuts(Callback):
    """Keeps which images had to do without skip connections."""

    order = 5

    def __init__(self) -> None:
        self.train: list[torch.Tensor] = []
        self.valid: list[tuple] = []

    def before_batch(self) -> None:
        if self.learn.training:
            self.train.append(self.learn.xb[2])
        else:
            self.valid.append(self.learn.xb)


def test_a_share_of_the_training_images_has_no_skips_and_validation_has_all():
    learner, cuts = make(train=64, skip_dropout=0.25), Cuts()
    learner.add_cb(cuts)
    fit(learner, make_pretraining_phases(4, 1e-3))
    drawn = torch.cat(cuts.train)
    assert drawn.dtype == torch.bool
    assert len(drawn) == 4 * 64
    assert 0.15 < drawn.float().mean() < 0.35
    epochs = drawn.view(4, 64)
    assert not torch.equal(epochs[0], epochs[1])  # other ones in the next epoch
    assert all(len(inputs) == 2 for inputs in cuts.valid)


def test_with_skip_dropout_the_decoder_comes_to_need_the_deepest_map():
    logs = {}
    for share in (0.0, 1.0):
        logs[share] = fit(make(skip_dropout=share), make_pretraining_phases(12, 3e-3))
    assert logs[0.0][-1]["deepest_use"] < 1.1
    assert logs[1.0][-1]["deepest_use"] > logs[0.0][-1]["deepest_use"] + 0.02


def test_a_decoder_without_skips_needs_the_deepest_map():
    learner = make("plain")
    log = fit(learner, make_pretraining_phases(12, 3e-3))
    assert log[-1]["deepest_use"] > 1.05
    assert log[-1]["skill"] > log[0]["skill"]


def test_the_columns_are_what_they_say():
    learner = make("hierarchical", "sparse_mask")
    log = fit(learner, make_pretraining_phases(1, 1e-3))

    class Again(Callback):
        order = 5

        def after_loss(self) -> None:
            if not self.learn.training:
                (image, hidden, *_), (target, _) = self.learn.xb, self.learn.yb
                *others, deepest = self.learn.model.encode(image, hidden)
                answer = self.learn.model.decode([*others, deepest.roll(1, 0)], hidden)
                loss, judge = self.learn.loss, self.learn.loss_func
                self.use = float(judge(answer, target, hidden) / loss)
                self.skill = float(1 - loss / judge(torch.zeros_like(answer), target, hidden))

    again = Again()
    learner.add_cb(again)
    log = fit(learner, make_pretraining_phases(1, 1e-3))
    assert log[-1]["deepest_use"] == pytest.approx(again.use, abs=1e-3)
    assert log[-1]["skill"] == pytest.approx(again.skill, abs=1e-3)


def test_an_answer_of_zeros_has_no_skill_and_the_last_epoch_says_so(caplog):
    caplog.set_level(logging.WARNING, logger="segae")
    learner = make("plain")
    learner.model.head = Zero()
    log = fit(learner, make_pretraining_phases(2, 1e-9))
    assert [row["skill"] for row in log] == [0, 0]
    assert [
        record.message.startswith("the decoder's answers are no better than zeros") for record in caplog.records
    ] == [True]


class Zero(nn.Module):
    """The decoder is asked and not listened to."""

    def forward(self, answer_bchw):
        return 0 * answer_bchw


def test_a_decoder_that_is_blind_to_the_deepest_map_has_no_use_for_it():
    learner = make("unet", train=8)
    deepest = learner.model.encoder.out_channels[-1]
    with torch.no_grad():
        for module in learner.model.decoder.modules():  # blind to the deepest map, which comes up first
            if isinstance(module, nn.Conv2d) and module.in_channels > deepest:
                module.weight[:, :deepest] = 0
                break
    log = fit(learner, make_pretraining_phases(1, 1e-9))
    assert log[-1]["deepest_use"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("skill", "use", "told"),
    [
        (0.5, 1.3, None),
        (0.5, None, None),
        (0.5, 1.001, "Try --skip-dropout 0.5, or --decoder plain"),
        (0.01, 1.3, "no better than zeros"),
    ],
)
def test_the_last_epoch_warns_of_what_was_not_trained(caplog, skill, use, told):
    found = {"skill": skill} if use is None else {"skill": skill, "deepest_use": use}
    with caplog.at_level(logging.WARNING, logger="segae"):
        WhatIsUsed._warn(found)
    assert [told in record.message for record in caplog.records] == ([] if told is None else [True])


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_impossible_shares_are_refused(share):
    with pytest.raises(SegaeError, match=f"skip_dropout is {share}; a share in"):
        make(skip_dropout=share)


def test_nothing_to_cut_is_refused():
    with pytest.raises(SegaeError, match="no skip connections to cut"):
        make("plain", skip_dropout=0.5)
