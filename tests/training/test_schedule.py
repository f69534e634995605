"""Frozen means frozen: traps 2, 3, 4 and 8, checked by their effects."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segae.errors import SegaeError
from segae.training.callbacks import Callback
from segae.training.fit import fit
from segae.training.schedule import PROTOCOLS, make_phases, make_pretraining_phases, parameter_groups, protocol_of


class Snapshots(Callback):
    """Copies the model's state after each epoch."""

    order = 90

    def before_fit(self) -> None:
        if not hasattr(self, "states"):
            self.states = [self.copy()]

    def copy(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.learn.model.state_dict().items()}

    def after_epoch(self) -> None:
        self.states.append(self.copy())


def changed(before: dict, after: dict, part: str) -> list[str]:
    return [name for name in before if name.startswith(part) and not torch.equal(before[name], after[name])]


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_frozen_epoch_leaves_every_bit_of_the_encoder_and_the_next_one_does_not(segmentation):
    learner = segmentation("strict")
    learner.add_cb(Snapshots())
    fit(learner, make_phases(1, 1))
    start, frozen, full = learner.snapshots.states
    assert changed(start, frozen, "encoder.") == []
    assert changed(start, frozen, "decoder.")
    after = changed(frozen, full, "encoder.")
    assert any(is_statistic(name) for name in after)
    weights = [name for name in start if name.startswith("encoder.") and not is_statistic(name)]
    assert set(weights) <= set(after), "a weight of the encoder did not move once it was unfrozen"


def test_eval_mode_never_moves_statistics_but_trains_the_affine_parameters(segmentation):
    learner = segmentation("eval")
    learner.add_cb(Snapshots())
    fit(learner, make_phases(1, 1))
    start, frozen, full = learner.snapshots.states
    assert changed(start, frozen, "encoder.") == []
    moved = changed(start, full, "encoder.")
    assert moved
    assert not any(is_statistic(name) for name in moved)


def test_train_mode_moves_batchnorm_of_a_frozen_encoder_and_nothing_else(segmentation):
    """Trap 4: this is what fastai calls frozen."""
    learner = segmentation("train")
    batchnorm = {
        f"encoder.{name}." for name, layer in learner.model.encoder.named_modules() if isinstance(layer, nn.BatchNorm2d)
    }
    learner.add_cb(Snapshots())
    fit(learner, make_phases(1, 0))
    start, frozen = learner.snapshots.states
    moved = changed(start, frozen, "encoder.")
    assert any(is_statistic(name) for name in moved)
    assert any(name.endswith(".weight") for name in moved)
    assert all(name.rpartition(".")[0] + "." in batchnorm for name in moved)


def test_fastais_own_fine_tune_freezes_and_unfreezes_too(segmentation):
    """Traps 2 and 3: with our splitter freezing freezes, and the optimizer has the encoder afterwards."""
    learner = segmentation()
    learner.add_cb(Snapshots())
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1, 1e-3, freeze_epochs=1, lr_mult=2)
    start, frozen, full = learner.snapshots.states
    assert changed(start, frozen, "encoder.") == []
    assert changed(start, frozen, "decoder.")
    after = changed(frozen, full, "encoder.")
    assert any(is_statistic(name) for name in after)
    assert any(name.endswith("conv1.weight") for name in after)


def test_a_second_fit_goes_on_counting_and_trains_what_it_says(segmentation):
    learner = segmentation()
    fit(learner, make_phases(1, 0))
    learner.add_cb(Snapshots())
    log = fit(learner, make_phases(0, 1))
    assert [row["epoch"] for row in log] == [1, 2]
    before, after = learner.snapshots.states
    assert any(is_statistic(name) for name in changed(before, after, "encoder."))


def test_a_model_without_encoder_is_refused_because_freezing_would_do_nothing():
    with pytest.raises(SegaeError, match="nothing to freeze"):
        parameter_groups(nn.Sequential(nn.Conv2d(3, 2, 1)))


def test_every_parameter_is_in_exactly_one_group(segmentation):
    model = segmentation().model
    groups = parameter_groups(model)
    ids = [id(parameter) for group in groups for parameter in group]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    assert {id(parameter) for parameter in model.encoder.parameters()} == {id(p) for p in groups[0]}


def test_learning_rates_reach_the_optimizer_in_the_ratio_asked_for(segmentation):
    """Trap 8: fastai's fine_tune would give the encoder a hundredth."""
    seen: list[tuple[str, float, float]] = []

    class Rates(Callback):
        def before_step(self) -> None:
            encoder, head = (group["lr"] for group in self.learn.opt.opt.param_groups)
            seen.append((self.learn.epoch_clock.phase, float(encoder), float(head)))

    learner = segmentation()
    learner.add_cb(Rates())
    log = fit(learner, make_phases(1, 2, lr=4e-3, lr_ratio=0.25))
    full = [(encoder, head) for phase, encoder, head in seen if phase == "full"]
    assert all(encoder == pytest.approx(0.25 * head) for encoder, head in full)
    assert max(head for _, head in full) == pytest.approx(2e-3, rel=0.1)
    assert max(head for phase, _, head in seen if phase == "frozen") <= 4e-3
    assert [row["phase"] for row in log] == ["frozen", "full", "full"]
    assert log[0]["lr_encoder"] == 0


def test_the_log_says_at_which_rate_batchnorm_moves_in_a_frozen_epoch(segmentation):
    learner = segmentation(bn_mode="train")
    log = fit(learner, make_phases(1, 1, lr=4e-3, lr_ratio=0.25))
    assert log[0]["lr_encoder"] == pytest.approx(0.25 * log[0]["lr_head"]) != 0


def test_an_autoencoder_is_not_starved_by_default():
    assert PROTOCOLS["autoencoder"].lr_ratio >= 0.1  # ten times what fastai would give its first layer


@pytest.mark.parametrize("bad", [{"epochs": -1}, {"freeze_epochs": 0, "epochs": 0}, {"lr": 0.0}, {"lr_ratio": -1.0}])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(SegaeError):
        make_phases(**bad)


def test_impossible_pretraining_is_refused():
    with pytest.raises(SegaeError, match="epochs is 0"):
        make_pretraining_phases(0, 1e-3)


def test_unknown_batchnorm_mode_is_refused(segmentation):
    with pytest.raises(SegaeError, match="strict, eval, train"):
        segmentation("frozen")


def test_weights_of_another_origin_are_fine_tuned_like_imagenets():
    assert protocol_of("somebody's") == protocol_of("imagenet")
