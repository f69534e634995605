"""What each callback of pretraining does to a run, and that the diagnostics do nothing to it."""

from __future__ import annotations

import logging

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from segae.data import make_loaders
from segae.errors import SegaeError
from segae.evaluation.probe import feature_std, pooled_features, rankme
from segae.methods import create_method
from segae.training import fit, pretraining_learner, seed_everything
from segae.training.pretraining_callbacks import RankMeMonitor
from tests.training.learners import CPU, Items, KillAfter, changed, images, is_statistic, phase, pretraining, state


class Watch(Callback):
    """Keeps what the model gets and what the loss gets."""

    order = 5

    def __init__(self) -> None:
        self.train: list[tuple] = []
        self.valid: list[tuple] = []
        self.skips: list[torch.Tensor] = []

    def before_batch(self) -> None:
        (self.train if self.learn.training else self.valid).append((*self.learn.xb, *self.learn.yb))
        if "drop_skips" in self.learn.model_kwargs:
            self.skips.append(self.learn.model_kwargs["drop_skips"])


def watched(method: str = "inpaint", epochs: int = 1, **settings) -> Watch:
    learner, watch = pretraining(method, **settings), Watch()
    learner.add_cb(watch)
    fit(learner, [phase(epochs, frozen=learner.corrupt_input.method.frozen_encoder)])
    return watch


def test_the_model_gets_the_mask_and_the_loss_the_clean_image():
    image, mask, target, mask_again = watched().train[0]
    assert mask is mask_again
    assert 0.5 < mask.mean() < 0.7
    assert torch.equal(image, torch.where(mask > 0, 0.0, target))


def test_a_target_of_the_corruption_reaches_the_loss_and_the_encoder_stays_frozen():
    with pytest.raises(SegaeError, match="ddep"):
        fit(pretraining("ddep"), [phase(1)])
    image, mask, noise, _ = watched("ddep").train[0]
    assert mask is None
    assert noise.std() == pytest.approx(1, abs=0.02)
    clean = image * (1 + 0.22**2) ** 0.5 - 0.22 * noise
    assert min((clean[0] - original).abs().max() for original in images(18)) < 1e-4


def test_validation_always_hides_the_same_and_training_never():
    watch = watched(epochs=2)
    assert torch.equal(watch.valid[0][1], watch.valid[1][1])
    masks = [mask for _, mask, *_ in watch.train if len(mask) == 8]
    assert not any(torch.equal(one, other) for i, one in enumerate(masks) for other in masks[:i])


@pytest.mark.parametrize(("method", "bn_mode"), [("inpaint", "train"), ("inpaint", "eval"), ("spark", "train")])
def test_a_frozen_encoder_does_not_change_by_a_bit(method, bn_mode):
    learner = pretraining(method, bn_mode=bn_mode, distance_penalty=0.1)
    encoder, decoder = state(learner.model.encoder), state(learner.model.decoder)
    fit(learner, [phase(2, frozen=True)])
    assert changed(learner.model.encoder, encoder) == set()
    assert any(is_statistic(name) for name in changed(learner.model.decoder, decoder))
    fit(learner, [phase(1)])
    after = changed(learner.model.encoder, encoder)
    assert any(not is_statistic(name) for name in after)
    assert any(is_statistic(name) for name in after) == (bn_mode == "train")


def distance(learner, start: dict[str, torch.Tensor]) -> float:
    values = learner.model.encoder.state_dict().items()
    return sum(float((value - start[name]).square().sum()) for name, value in values if not is_statistic(name))


def test_the_encoder_can_have_a_lower_rate():
    learners = {ratio: pretraining() for ratio in (1.0, 0.1)}
    start = state(learners[1.0].model.encoder)
    logs = {ratio: fit(learner, [phase(2, ratio=ratio)]) for ratio, learner in learners.items()}
    assert logs[0.1]["lr_encoder"][0] == pytest.approx(0.1 * logs[0.1]["lr_head"][0])
    assert distance(learners[0.1], start) < 0.1 * distance(learners[1.0], start)


def test_the_distance_penalty_adds_exactly_its_gradient():
    class Gradients(Callback):
        order = 20  # after the penalty

        def after_backward(self) -> None:
            self.learn.noted = [p.grad.clone() for p in self.learn.model.encoder.parameters()]
            raise KeyboardInterrupt

    found = []
    for weight in (0.0, 0.3):
        learner = pretraining(distance_penalty=weight)
        generator = torch.Generator().manual_seed(5)
        moves = [0.1 * torch.randn(p.shape, generator=generator) for p in learner.model.encoder.parameters()]
        with torch.no_grad():
            for parameter, move in zip(learner.model.encoder.parameters(), moves, strict=True):
                parameter.add_(move)
        learner.add_cb(Gradients())
        with pytest.raises(KeyboardInterrupt):
            fit(learner, [phase(1)])
        found.append(learner.noted)
    for plain, penalized, move in zip(*found, moves, strict=True):
        assert torch.allclose(penalized - plain, 0.3 * move, atol=1e-5)


def test_the_distance_penalty_keeps_the_encoder_near_its_start():
    free, held = pretraining(), pretraining(distance_penalty=10.0)
    start = state(free.model.encoder)
    fit(free, [phase(3)])
    fit(held, [phase(3)])
    assert 0 < distance(held, start) < 0.5 * distance(free, start)


class Blind(nn.Module):
    """Predicts zero everywhere: its error at a place is the brightness there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return 0 * self.encoder(images)[:, :3]


def plain_learner(model: nn.Module, method: str, size: int = 64, **settings):
    """A learner for a model of its own."""
    seed_everything(0)
    items = [Items([(image,) for image in images(count, size)]) for count in (32, 8)]
    loaders = make_loaders(*items, batch_size=8, device=CPU)
    more = {"patch_size": 16} if method == "inpaint" else {}
    return pretraining_learner(loaders, model, create_method(method, **more), **settings)


def grids(parts: list[tuple]) -> torch.Tensor:
    """Masks of batches, one value for each patch: (N, patches)."""
    return torch.cat([mask[:, 0, ::16, ::16].flatten(1) for _, mask, *_ in parts])


def test_with_the_whole_share_the_hardest_patches_are_hidden_but_not_at_first_nor_in_validation():
    watches = []
    for fraction in (1.0, 0.0):
        learner, watch = plain_learner(Blind(), "inpaint", hard_mask_fraction=fraction), Watch()
        learner.add_cb(watch)
        fit(learner, [phase(3)])
        watches.append(watch)
    hard, plain = watches
    assert torch.equal(grids(hard.valid), grids(plain.valid))
    assert torch.equal(grids(hard.train[:4]), grids(plain.train[:4])), "the first epoch is all chance"
    found, clean = grids(hard.train[8:]), torch.cat([target for _, _, target, _ in hard.train[8:]])
    error = nn.functional.avg_pool2d(clean.square().mean(dim=1, keepdim=True), 16).flatten(1)
    count = int(found[0].sum())
    assert torch.equal(found > 0, error >= error.sort(dim=1, descending=True).values[:, count - 1 : count])
    between = grids(hard.train[4:8])
    assert 0.5 < float((between * (error_rank(hard.train[4:8]) < count)).sum() / between.sum()) < 1


def error_rank(parts: list[tuple]) -> torch.Tensor:
    clean = torch.cat([target for _, _, target, _ in parts])
    error = nn.functional.avg_pool2d(clean.square().mean(dim=1, keepdim=True), 16).flatten(1)
    return error.argsort(dim=1, descending=True).argsort(dim=1)


def test_measuring_difficulty_leaves_statistics_and_modes_alone():
    learner, modes = pretraining("spark", hard_mask_fraction=1.0, bn_mode="eval"), []
    norms = [module for module in learner.model.modules() if isinstance(module, nn.BatchNorm2d)]
    inside = {id(module) for module in learner.model.encoder.modules()}

    class Modes(Callback):
        order = 5

        def before_batch(self) -> None:
            if self.learn.training:
                modes.append(all(module.training == (id(module) not in inside) for module in norms))

    learner.add_cb(Modes())
    fit(learner, [phase(2)])
    assert modes == [True] * 6
    assert {int(norm.num_batches_tracked) for norm in norms if id(norm) not in inside} <= {6}  # one per batch
    assert {int(norm.num_batches_tracked) for norm in norms if id(norm) in inside} == {0}


def test_a_share_of_the_training_images_has_no_skips_and_validation_has_all():
    watch = watched("denoise", epochs=2, train=40, decoder="unet", skip_dropout=0.25)
    drawn = torch.cat(watch.skips)
    assert drawn.dtype == torch.bool
    assert len(drawn) == 2 * 40  # none in validation
    assert 0.1 < drawn.float().mean() < 0.4
    assert not torch.equal(drawn[:40], drawn[40:])  # other ones in the next epoch


def test_rankme_is_of_clean_validation_images_and_the_dense_encoder():
    learner = pretraining("spark", valid=12)
    row = fit(learner, [phase(1)]).iloc[-1]
    learner.model.encoder.eval()
    with torch.no_grad():
        features = pooled_features(learner.model.encoder, torch.stack(images(12)))
    assert row["rankme"] == pytest.approx(rankme(features), abs=1e-3)
    assert row["feature_std"] == pytest.approx(feature_std(features), rel=1e-3)


def test_a_collapse_is_reported_once(caplog):
    class Collapse(Callback):
        def after_train(self) -> None:
            if self.learn.epoch_clock.now >= 1:
                for parameter in self.learn.model.encoder.parameters():
                    parameter.data.zero_()

    learner = pretraining(valid=10)
    learner.add_cb(Collapse())
    with caplog.at_level(logging.WARNING, "segae"):
        log = fit(learner, [phase(4)])
    assert (log["feature_std"] > 0).tolist() == [True, False, False, False]
    assert len([record for record in caplog.records if "collapsed in epoch 2" in record.message]) == 1


class Linear(nn.Module):
    """The classic linear autoencoder of small gray images, whose encoder returns one tensor (B, features)."""

    def __init__(self, pixels: int = 28 * 28, features: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, features))
        self.decoder = nn.Linear(features, pixels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images)).view_as(images)


class OneMap(nn.Module):
    """An autoencoder whose encoder returns one map (B, C, H, W), and a list of maps if asked."""

    def __init__(self, as_list: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.decoder, self.as_list = nn.ConvTranspose2d(8, 3, 4, 2, 1), as_list
        if as_list:
            convolutions = self.encoder.forward
            self.encoder.forward = lambda images: [images, convolutions(images)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        code = self.encoder(images)
        return self.decoder(code[-1] if self.as_list else code)


@pytest.mark.parametrize("model", [Linear(3 * 28 * 28), OneMap(False), OneMap(True)], ids=["linear", "map", "list"])
def test_other_autoencoders_train_and_are_watched(model):
    log = fit(plain_learner(model, "reconstruct", size=28), [phase(15, lr=3e-3)])
    assert log["train_loss"].iloc[-1] < 0.9 * log["train_loss"][0]
    assert log["rankme"].between(1, 8).all()
    assert log["r2"].iloc[-1] > log["r2"][0]
    assert "bottleneck_ratio" not in log


def noisy_probe(encoder: nn.Module) -> float:
    """As bad a guest as can be: draws numbers, changes modes."""
    encoder.train()
    return float(torch.rand(3).sum())


def test_diagnostics_do_not_disturb_training(tmp_path):
    plain, observed = pretraining(), pretraining(probe=noisy_probe, probe_every=2)
    plain.remove_cb(RankMeMonitor)
    before = fit(plain, [phase(5)], resume_file=tmp_path / "a.pt")
    log = fit(observed, [phase(5)], resume_file=tmp_path / "b.pt", log_csv=tmp_path / "log.csv")
    assert changed(observed.model, state(plain.model)) == set()
    assert log["train_loss"].tolist() == before["train_loss"].tolist()
    assert [module.training for module in observed.model.modules()] == [m.training for m in plain.model.modules()]
    assert "rankme" not in before
    table = pd.read_csv(tmp_path / "log.csv")
    assert table["probe_miou"].isna().tolist() == [True, False, True, False, False]  # every second epoch, and the last
    pd.testing.assert_frame_equal(table, log)


@pytest.mark.slow
def test_with_skip_dropout_the_decoder_comes_to_need_the_deepest_map():
    settings = {"train": 16, "valid": 8, "decoder": "unet"}
    logs = [fit(pretraining("denoise", skip_dropout=p, **settings), [phase(12, lr=3e-3)]) for p in (0.0, 1.0)]
    without, with_dropout = (log["bottleneck_ratio"].iloc[-1] for log in logs)
    assert without < 1.1
    assert with_dropout > without + 0.02


def test_the_diagnostics_are_what_they_say():
    learner = pretraining("spark", decoder="hierarchical", valid=8)
    fit(learner, [phase(1)])

    class Again(Callback):
        order = 5

        def after_loss(self) -> None:
            if not self.learn.training:
                (image, mask), (target, _) = self.learn.xb, self.learn.yb
                *others, deepest = self.learn.model.encode(image, mask)
                prediction = self.learn.model.decode([*others, deepest.roll(1, 0)], mask)
                loss, compare = self.learn.loss, self.learn.loss_func
                self.ratio = float(compare(prediction, target, mask) / loss)
                self.r2 = float(1 - loss / compare(torch.zeros_like(prediction), target, mask))

    again = Again()
    learner.add_cb(again)
    row = fit(learner, [phase(1)]).iloc[-1]
    assert row["bottleneck_ratio"] == pytest.approx(again.ratio, abs=1e-3)
    assert row["r2"] == pytest.approx(again.r2, abs=1e-3)


class Zero(nn.Module):
    def forward(self, prediction: torch.Tensor) -> torch.Tensor:
        return 0 * prediction


@pytest.mark.parametrize(("blind", "word"), [("prediction", "r2"), ("decoder", "ratio")])
def test_what_was_not_trained_is_a_warning_after_the_last_epoch(caplog, blind, word):
    learner = pretraining("denoise", decoder="plain" if blind == "prediction" else "unet", valid=8)
    if blind == "prediction":
        learner.model.head = Zero()
    else:
        encode = learner.model.encode
        learner.model.encode = lambda *inputs: [*(maps := encode(*inputs))[:-1], 0 * maps[-1]]
        learner.model.head[0].bias.data += 1
        learner.loss_func = lambda prediction, target, mask: (prediction - 5).square().mean()
    with caplog.at_level(logging.WARNING, "segae"):
        log = fit(learner, [phase(2, lr=1e-9)])
    column, value = ("r2", 0) if blind == "prediction" else ("bottleneck_ratio", 1)
    assert log[column].iloc[-1] == pytest.approx(value, abs=1e-3)
    assert len([record for record in caplog.records if word in record.message]) == 1


class GivenLosses(Callback):
    """Replaces the validation losses of the log."""

    order = 61  # right after the log

    def __init__(self, chosen: list[float]) -> None:
        self.chosen = chosen

    def after_epoch(self) -> None:
        log = self.learn.epoch_clock.log
        log[-1]["valid_loss"] = self.chosen[len(log) - 1]


@pytest.mark.parametrize(
    ("losses", "patience", "epochs"),
    [
        ([1.0, 0.9, 0.8, 0.7], 1, 4),
        ([1.0, 0.9, 0.9, 0.1], 1, 3),
        ([1.0, 0.9995, 0.9991, 0.1], 2, 3),  # too little at each step
        ([1.0, 0.9995, 0.998, 0.1], 2, 4),
        ([1.0, 1.2, 1.1, 1.05], 3, 4),
    ],
)
def test_training_ends_when_the_validation_loss_no_longer_falls_and_a_resume_leaves_it_there(
    tmp_path, losses, patience, epochs
):
    learner, files = pretraining("denoise", train=8, patience=patience), {"resume_file": tmp_path / "resume.pt"}
    learner.add_cb(GivenLosses(losses))
    log = fit(learner, [phase(4)], **files)
    assert len(log) == epochs
    resumed = pretraining("denoise", train=8, patience=patience)
    resumed.add_cb(KillAfter(epochs + 1))
    again = fit(resumed, [phase(4)], resume=True, **files)
    pd.testing.assert_frame_equal(again, log)
    assert changed(resumed.model, state(learner.model)) == set()


def test_a_plateau_of_the_decoder_lets_the_encoder_train():
    learner = pretraining("denoise", train=8, patience=1)
    learner.add_cb(GivenLosses([1.0, 1.0, 1.0, 0.5]))
    start = state(learner.model.encoder)
    log = fit(learner, [phase(5, frozen=True), phase(2)])
    assert log["phase"].tolist() == ["decoder", "decoder", "pretrain", "pretrain"]
    assert changed(learner.model.encoder, start)
