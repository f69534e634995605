"""What each callback of pretraining does to a run, and that the diagnostics do nothing to it."""

from __future__ import annotations

import logging

import pandas as pd
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
from segae.training.plateau import at_plateau
from segae.training.pretraining_watch import FeatureRank
from segae.training.rank import effective_rank, feature_spread, pooled_features
from segae.training.run import seed_everything
from segae.training.schedule import Phase

CPU = torch.device("cpu")


def phase(
    epochs: int, lr: float = 1e-3, ratio: float = 1.0, train_encoder: bool = True, name: str = "pretrain"
) -> Phase:
    return Phase(name, epochs, lr * ratio, lr, 0.1, 25.0, train_encoder=train_encoder)


def batches(count: int) -> list:
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [(image,) for image in nn.functional.interpolate(coarse, size=64, mode="bilinear")]


def make(name: str = "mask", valid: int = 4, masking: str | None = None, **more):
    """A learner that is the same at every call; the pretrainer's forward takes the mask."""
    seed_everything(0)
    encoder, _ = create_encoder("test_resnet")
    objective = make_objective(name, patch=32 if name == "sparse_mask" else 16)
    channels = objective.reconstruction.out_channels(3)
    decoder = create_pretrainer(encoder, "test_resnet", out_channels=channels, masking=masking or objective.masking)
    loaders = make_loaders(batches(18), batches(valid), batch_size=8, device=CPU)
    return pretraining_learner(loaders, decoder, objective, **more)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def is_statistic(name: str) -> bool:
    return "running" in name or "num_batches" in name


class Watch(Callback):
    """Notes what the model gets and what the loss gets."""

    order = 5

    def __init__(self) -> None:
        self.seen: list = []

    def before_batch(self) -> None:
        self.seen.append((self.learn.training, *self.learn.xb, *self.learn.yb))


def test_the_model_gets_the_mask_and_the_loss_the_clean_image():
    learner, watch = make("mask"), Watch()
    learner.add_cb(watch)
    fit(learner, [phase(1)])
    _, image, hidden, target, hidden_again = watch.seen[0]
    assert hidden is hidden_again
    assert 0.5 < hidden.mean() < 0.7
    assert torch.equal(image, torch.where(hidden > 0, 0.0, target))


def test_a_target_of_the_corruption_reaches_the_loss():
    learner, watch = make("decoder_denoise"), Watch()
    learner.add_cb(watch)
    with pytest.raises(SegaeError, match="trains the decoder alone"):
        fit(learner, [phase(1)])
    fit(learner, [phase(1, train_encoder=False)])
    _, image, hidden, noise, _ = watch.seen[0]
    assert hidden is None
    assert noise.std() == pytest.approx(1, abs=0.02)
    clean = image * (1 + 0.22**2) ** 0.5 - 0.22 * noise
    originals = torch.stack([item for (item,) in batches(18)])
    assert min((clean[0] - original).abs().max() for original in originals) < 1e-4


def test_validation_always_hides_the_same_and_training_never():
    learner, watch = make("mask"), Watch()
    learner.add_cb(watch)
    fit(learner, [phase(2)])
    first, again = [hidden for training, _, hidden, *_ in watch.seen if not training]
    assert torch.equal(first, again)
    masks = [hidden for training, _, hidden, *_ in watch.seen if training and len(hidden) == 8]
    assert not any(torch.equal(one, other) for i, one in enumerate(masks) for other in masks[:i])


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["mask", "sparse_mask"])
def test_a_frozen_encoder_does_not_change_by_a_bit(name, bn_mode):
    learner = make(name, bn_mode=bn_mode, distance_penalty=0.1)
    encoder, decoder = state(learner.model.encoder), state(learner.model.decoder)
    fit(learner, [phase(2, train_encoder=False, name="decoder")])
    assert changed(learner.model.encoder, encoder) == set()
    assert any(is_statistic(name) for name in changed(learner.model.decoder, decoder))
    fit(learner, [phase(1)])
    assert changed(learner.model.encoder, encoder)


def test_statistics_move_in_mode_train_and_rest_in_mode_eval():
    for bn_mode, moves in (("train", True), ("eval", False)):
        learner = make(bn_mode=bn_mode)
        before = state(learner.model.encoder)
        fit(learner, [phase(1)])
        moved = changed(learner.model.encoder, before)
        assert any(is_statistic(name) for name in moved) == moves
        assert any(not is_statistic(name) for name in moved)


def distance(learner, start: dict[str, torch.Tensor]) -> float:
    return sum(
        float((value - start[name]).square().sum())
        for name, value in learner.model.encoder.state_dict().items()
        if not is_statistic(name)
    )


def test_the_encoder_can_have_a_gentler_rate():
    learners = {ratio: make() for ratio in (1.0, 0.1)}
    start = state(learners[1.0].model.encoder)
    logs = {ratio: fit(learner, [phase(2, ratio=ratio)]) for ratio, learner in learners.items()}
    assert logs[0.1][0]["lr_encoder"] == pytest.approx(0.1 * logs[0.1][0]["lr_head"])
    assert distance(learners[0.1], start) < 0.1 * distance(learners[1.0], start)


def test_distance_penalty_adds_exactly_its_gradient():
    class Gradients(Callback):
        order = 20  # after the penalty

        def after_backward(self) -> None:
            self.learn.noted = [p.grad.clone() for p in self.learn.model.encoder.parameters()]
            raise KeyboardInterrupt

    found = []
    for weight in (0.0, 0.3):
        learner = make(distance_penalty=weight)
        generator = torch.Generator().manual_seed(5)
        moves = [0.1 * torch.randn(p.shape, generator=generator) for p in learner.model.encoder.parameters()]
        with torch.no_grad():
            for parameter, move in zip(learner.model.encoder.parameters(), moves, strict=True):
                parameter.add_(move)
        learner.add_cb(Gradients())
        with pytest.raises(KeyboardInterrupt):
            fit(learner, [phase(1)])
        found.append(learner.noted)
    for plain, penalised, move in zip(*found, moves, strict=True):
        assert torch.allclose(penalised - plain, 0.3 * move, atol=1e-5)


def test_distance_penalty_keeps_the_encoder_near_and_survives_a_resume(tmp_path):
    class Kill(Callback):
        order = 79

        def after_epoch(self) -> None:
            if len(self.learn.epoch_clock.log) == 2:
                raise KeyboardInterrupt

    free, held = make(), make(distance_penalty=10.0)
    start = state(free.model.encoder)
    fit(free, [phase(4)])
    fit(held, [phase(4)])
    assert 0 < distance(held, start) < 0.5 * distance(free, start)
    first, second = make(distance_penalty=10.0), make(distance_penalty=10.0)
    first.add_cb(Kill())
    with pytest.raises(KeyboardInterrupt):
        fit(first, [phase(4)], resume_file=tmp_path / "resume.pt")
    fit(second, [phase(4)], resume_file=tmp_path / "resume.pt", resume=True)
    assert changed(second.model, state(held.model)) == set()


def test_rank_columns_are_of_clean_validation_images_and_the_dense_encoder():
    learner = make("sparse_mask", valid=12)
    row = fit(learner, [phase(1)])[-1]
    encoder = learner.model.encoder.eval()
    with torch.no_grad():
        features = pooled_features(encoder, torch.stack([image for (image,) in batches(12)]))
    assert row["feature_rank"] == pytest.approx(effective_rank(features), abs=1e-3)
    assert row["feature_std"] == pytest.approx(feature_spread(features), rel=1e-3)


def test_a_collapse_is_told_once(caplog):
    class Collapse(Callback):
        def after_train(self) -> None:
            if self.learn.epoch_clock.now >= 1:
                with torch.no_grad():
                    for parameter in self.learn.model.encoder.parameters():
                        parameter.zero_()

    learner = make(valid=10)
    learner.add_cb(Collapse())
    with caplog.at_level(logging.WARNING, "segae"):
        log = fit(learner, [phase(4)])
    assert [row["feature_std"] > 0 for row in log] == [True, False, False, False]
    assert len([record for record in caplog.records if "collapsed" in record.message]) == 1
    assert "collapsed in epoch 2" in caplog.text


def noisy_probe(encoder: nn.Module) -> float:
    """As bad a guest as can be: draws numbers, changes modes."""
    encoder.train()
    with torch.no_grad():
        return float(torch.rand(3).sum())


def test_diagnostics_do_not_disturb_training(tmp_path):
    plain, watched = make(), make(probe=noisy_probe, probe_every=2)
    plain.remove_cb(FeatureRank)
    before = fit(plain, [phase(5)], resume_file=tmp_path / "a.pt")
    log = fit(watched, [phase(5)], resume_file=tmp_path / "b.pt", log_csv=tmp_path / "log.csv")
    assert changed(watched.model, state(plain.model)) == set()
    assert [row["train_loss"] for row in log] == [row["train_loss"] for row in before]
    assert [module.training for module in watched.model.modules()] == [m.training for m in plain.model.modules()]
    assert "feature_rank" not in before[0]
    assert ["probe_miou" in row for row in log] == [False, True, False, True, True]  # every second epoch, and the last
    table = pd.read_csv(tmp_path / "log.csv")
    assert table["probe_miou"].isna().tolist() == [True, False, True, False, False]
    assert table["feature_rank"].tolist() == [row["feature_rank"] for row in log]


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 1, False),
        ([1.0, 0.9, 0.8], 1, False),
        ([1.0, 0.9, 0.9], 1, True),
        ([1.0, 0.9995, 0.9991], 2, True),  # too little at each step
        ([1.0, 0.9995, 0.998], 2, False),
        ([1.0, 1.2, 1.1, 1.05], 3, True),
        ([float("nan"), float("nan")], 2, False),
        ([1.0, float("nan"), float("nan")], 2, True),
    ],
)
def test_plateau(losses, patience, expected):
    assert at_plateau(losses, patience, 1e-3) is expected


def test_training_ends_at_a_plateau_and_a_resume_leaves_it_there(tmp_path, caplog):
    files = {"resume_file": tmp_path / "resume.pt", "log_csv": tmp_path / "log.csv"}
    still = phase(9, lr=1e-12)
    learner = make(patience=2, bn_mode="eval")
    for module in learner.model.decoder.modules():  # or their statistics would move the loss
        module.momentum = 0.0
    with caplog.at_level(logging.INFO, "segae"):
        log = fit(learner, [still], **files)
    assert len(log) == 3
    assert "ends after epoch 3" in caplog.text

    class NoEpoch(Callback):
        def before_epoch(self) -> None:
            raise AssertionError("a finished training went on")

    resumed = make(patience=2, bn_mode="eval")
    resumed.add_cb(NoEpoch())
    again = fit(resumed, [still], resume=True, **files)
    assert again == log
    assert changed(resumed.model, state(learner.model)) == set()
    assert pd.read_csv(tmp_path / "log.csv")["epoch"].tolist() == [1, 2, 3]


def test_a_plateau_of_the_decoder_lets_the_encoder_train(tmp_path):
    learner = make(patience=1)
    for module in learner.model.decoder.modules():
        module.momentum = 0.0
    start = state(learner.model.encoder)
    phases = [phase(5, lr=1e-12, train_encoder=False, name="decoder"), phase(2)]
    log = fit(learner, phases, resume_file=tmp_path / "resume.pt")
    assert [row["phase"] for row in log][:3] == ["decoder", "decoder", "pretrain"]
    assert changed(learner.model.encoder, start)


def test_refusals():
    class Headless(nn.Module):
        pass

    with pytest.raises(SegaeError, match="Headless has no attribute 'encoder'"):
        pretraining_learner(make().dls, Headless(), make_objective("mask"))
    for settings, message in (
        ({"bn_mode": "strict"}, "bn_mode is 'strict'"),
        ({"distance_penalty": -1.0}, "distance_penalty is -1"),
        ({"patience": 3, "valid": 0}, "no validation images"),
        ({"patience": 0}, "patience is 0"),
        ({"probe": noisy_probe, "probe_every": 0}, "probe_every is 0"),
    ):
        with pytest.raises(SegaeError, match=message):
            make(**settings)


def test_an_objective_in_a_model_that_hides_nothing_from_the_encoder_is_refused():
    encoder, _ = create_encoder("test_resnet")
    loaders = make_loaders(batches(8), batches(4), batch_size=4, device=CPU)
    with pytest.raises(SegaeError, match='asks for sparse masking.*masking="sparse"'):
        pretraining_learner(loaders, create_pretrainer(encoder, "test_resnet"), make_objective("sparse_mask"))
