"""Frozen means frozen, checked by its effects; and each kind of weights has its own fine-tuning settings."""

import pytest
from fastai.callback.core import Callback
from torch import nn

from segae.errors import SegaeError
from segae.models import Weights
from segae.training import finetune_defaults, fit, freeze_finetune_phases, pretraining_phases
from segae.training.schedule import parameter_groups
from tests.training.learners import changed, is_statistic, segmentation, state

NAN = float("nan")


class Snapshots(Callback):
    """Copies the model's state before the training and after each epoch."""

    order = 95

    def before_fit(self) -> None:
        self.states = getattr(self, "states", [state(self.learn.model)])

    def after_epoch(self) -> None:
        self.states.append(state(self.learn.model))


def snapshots(learner, run) -> list[dict]:
    learner.add_cb(Snapshots())
    with learner.no_bar(), learner.no_logging():
        run(learner)
    return learner.snapshots.states


@pytest.mark.parametrize(
    ("bn_mode", "run"),
    [
        ("strict", lambda learner: fit(learner, freeze_finetune_phases(1, 1))),
        ("strict", lambda learner: learner.fine_tune(1, 1e-3, freeze_epochs=1, lr_mult=2)),  # fastai's own
        ("eval", lambda learner: fit(learner, freeze_finetune_phases(1, 1))),
    ],
)
def test_a_frozen_epoch_leaves_every_bit_of_the_encoder_and_the_next_one_does_not(bn_mode, run):
    start, frozen, full = snapshots(segmentation(bn_mode=bn_mode), run)
    assert changed(frozen, start, "encoder.") == set()
    assert changed(frozen, start, "decoder.")
    after = changed(full, frozen, "encoder.")
    assert any(is_statistic(name) for name in after) == (bn_mode == "strict")
    assert {name for name in start if name.startswith("encoder.") and not is_statistic(name)} <= after


def test_mode_train_moves_batchnorm_of_a_frozen_encoder_and_nothing_else():
    learner = segmentation(bn_mode="train")
    start = state(learner.model)
    log = fit(learner, freeze_finetune_phases(1, 0, lr_ratio=0.25))
    layers = {
        f"encoder.{name}" for name, one in learner.model.encoder.named_modules() if isinstance(one, nn.BatchNorm2d)
    }
    after = changed(learner.model, start, "encoder.")
    assert {is_statistic(name) for name in after} == {True, False}
    assert {name.rpartition(".")[0] for name in after} <= layers
    assert log["lr_encoder"][0] == pytest.approx(0.25 * log["lr_head"][0]) != 0
    learner = segmentation(bn_mode="train", architecture="test_convnext")  # has LayerNorm
    start = state(learner.model)
    fit(learner, freeze_finetune_phases(1, 0, lr=0.1))
    assert changed(learner.model, start, "encoder.") == set()


def test_a_second_fit_goes_on_counting_and_rates_reach_the_optimizer_in_their_ratio():
    seen: list[tuple[str, float, float]] = []

    class Rates(Callback):
        def before_step(self) -> None:
            seen.append((self.learn.epoch_clock.phase, *(float(one["lr"]) for one in self.learn.opt.opt.param_groups)))

    learner = segmentation()
    learner.add_cb(Rates())
    fit(learner, freeze_finetune_phases(1, 0, lr=4e-3))
    log = fit(learner, freeze_finetune_phases(0, 2, lr=4e-3, lr_ratio=0.25))
    assert log["epoch"].tolist() == [1, 2, 3]
    assert log["phase"].tolist() == ["frozen", "full", "full"]
    assert log["lr_encoder"][0] == 0
    assert all(encoder == pytest.approx(0.25 * head) for name, encoder, head in seen if name == "full")
    peaks = [max(head for name, _, head in seen if name == phase) for phase in ("frozen", "full")]
    assert peaks == [pytest.approx(4e-3, rel=0.3), pytest.approx(2e-3, rel=0.1)]


def test_every_parameter_is_in_exactly_one_group_and_a_model_without_encoder_is_refused():
    model = segmentation().model
    groups = [{id(parameter) for parameter in group} for group in parameter_groups(model)]
    assert groups[0] == {id(parameter) for parameter in model.encoder.parameters()}
    assert groups[0] | groups[1] == {id(parameter) for parameter in model.parameters()}
    assert not groups[0] & groups[1]
    with pytest.raises(SegaeError, match="encoder"):
        parameter_groups(nn.Sequential(nn.Conv2d(3, 2, 1)))


COLOR, BRIGHTNESS, WHOLE = {"source": "color"}, {"source": "brightness"}, {"transfer": "encoder+decoder"}


@pytest.mark.parametrize(
    ("weights", "lr", "ratio", "bn_mode", "lpft_head"),
    [
        (Weights(), 4e-3, 1.0, "train", False),
        (Weights("imagenet"), 4e-3, 1.0, "strict", False),
        (Weights("somebody"), 4e-3, 1.0, "strict", False),
        (Weights("random", "spark"), 4e-3, 0.1, "strict", False),
        (Weights("random", "spark", **WHOLE), 4e-3, 1.0, "strict", False),
        (Weights("random", "pseudo_masks", COLOR), 4e-3, 0.1, "strict", False),
        (Weights("random", "pseudo_masks", COLOR, **WHOLE), 4e-3, 1.0, "strict", True),
        (Weights("random", "pseudo_masks", BRIGHTNESS, **WHOLE), 4e-3, 1.0, "strict", False),
        (Weights("imagenet", "spark"), 4e-3, 0.3, "strict", False),
        (Weights("imagenet+spark", "a2mim"), 4e-3, 0.3, "strict", False),
        (Weights("imagenet", "ddep", **WHOLE), 8e-3, 0.3, "strict", False),
        (Weights("imagenet", "pseudo_masks", BRIGHTNESS, **WHOLE), 4e-3, 0.3, "strict", True),
    ],
)
def test_each_kind_of_weights_has_its_fine_tuning_settings(weights, lr, ratio, bn_mode, lpft_head):
    found = finetune_defaults(weights)
    assert (found.lr, found.lr_ratio, found.bn_mode, found.lpft_head) == (lr, ratio, bn_mode, lpft_head)
    assert finetune_defaults(Weights(weights.start, weights.method, weights.method_args), weights.transfer) == found


def test_the_decoder_can_train_before_the_encoder_or_alone():
    decoder, both = pretraining_phases(3, 1e-3, freeze_epochs=2, encoder_lr_ratio=0.1)
    assert (decoder.epochs, decoder.train_encoder, both.epochs, both.train_encoder) == (2, False, 3, True)
    assert both.lr_encoder == pytest.approx(1e-4)
    (alone,) = pretraining_phases(3, 1e-3, freeze_epochs=2, frozen_encoder=True)
    assert (alone.epochs, alone.train_encoder) == (5, False)


@pytest.mark.parametrize("value", [-1, NAN, float("inf"), "1", 0])
@pytest.mark.parametrize("argument", ["epochs", "freeze_epochs", "lr", "lr_ratio", "warmup"])
def test_impossible_schedules_are_refused(argument, value):
    if (argument, value) == ("freeze_epochs", 0):
        return
    with pytest.raises(SegaeError, match=argument):
        freeze_finetune_phases(**{"freeze_epochs": 0, argument: value})
    argument = argument.replace("lr_ratio", "encoder_lr_ratio")
    with pytest.raises(SegaeError, match=argument):
        pretraining_phases(**{"epochs": 2, "lr": 1e-3, argument: value})
