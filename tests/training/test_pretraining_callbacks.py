"""What each callback of pretraining does to a run, and that the diagnostics do nothing to it."""

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn.functional import avg_pool2d

from segae.errors import SegaeError
from segae.evaluation import feature_std, pooled_features, rankme
from segae.training import fit
from segae.training.pretraining_callbacks import RankMeMonitor
from tests.training.learners import KillAfter, changed, images, is_statistic, phase, pretraining, state


class Watch(Callback):
    """Keeps what the model gets and what the loss gets."""

    order = 5

    def __init__(self) -> None:
        self.train, self.valid, self.skips = [], [], []

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
    watch = watched(epochs=2)
    image, mask, target, mask_again = watch.train[0]
    assert mask is mask_again
    assert 0.5 < mask.mean() < 0.7
    assert torch.equal(image, torch.where(mask > 0, 0.0, target))
    assert torch.equal(watch.valid[0][1], watch.valid[1][1]), "validation always hides the same"
    masks = [mask for _, mask, *_ in watch.train if len(mask) == 8]
    assert not any(torch.equal(one, other) for i, one in enumerate(masks) for other in masks[:i])


def test_a_target_of_the_corruption_reaches_the_loss_and_the_encoder_must_stay_frozen():
    with pytest.raises(SegaeError, match="ddep"):
        fit(pretraining("ddep"), [phase(1)])
    image, mask, noise, _ = watched("ddep").train[0]
    assert mask is None
    assert noise.std() == pytest.approx(1, abs=0.02)
    clean = image * (1 + 0.22**2) ** 0.5 - 0.22 * noise
    assert min((clean[0] - original).abs().max() for original in images(18)) < 1e-4


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


class Blind(nn.Module):
    """Predicts zero everywhere: its error at a place is the brightness there."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)

    def forward(self, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return 0 * self.encoder(images)[:, :3]


def hidden(parts: list[tuple]) -> torch.Tensor:
    """Masks of batches, one value for each patch: (N, patches)."""
    return torch.cat([mask[:, 0, ::16, ::16].flatten(1) for _, mask, *_ in parts])


def test_with_the_whole_share_the_hardest_patches_are_hidden_but_not_at_first_nor_in_validation():
    hard, plain = (watched(epochs=3, model=Blind(), train=32, hard_mask_fraction=share) for share in (1.0, 0.0))
    assert torch.equal(hidden(hard.valid), hidden(plain.valid))
    assert torch.equal(hidden(hard.train[:4]), hidden(plain.train[:4])), "the first epoch is all chance"
    clean = torch.cat([target for _, _, target, _ in hard.train])
    rank = avg_pool2d(clean.square().mean(dim=1), 16).flatten(1).argsort(dim=1, descending=True).argsort(dim=1)
    masks = hidden(hard.train)
    hardest = masks * (rank < masks[0].sum())
    shares = [float(hardest[start:][:32].sum() / masks[start:][:32].sum()) for start in (0, 32, 64)]
    assert shares[0] < shares[1] < shares[2] == 1


def test_a_share_of_the_training_images_has_no_skips_and_validation_has_all():
    drawn = torch.cat(watched("denoise", epochs=2, train=40, decoder="unet", skip_dropout=0.25).skips)
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
            for parameter in self.learn.model.encoder.parameters() if self.learn.epoch_clock.now else ():
                parameter.data.zero_()

    learner = pretraining(valid=10)
    learner.add_cb(Collapse())
    log = fit(learner, [phase(4)])
    assert (log["feature_std"] > 0).tolist() == [True, False, False, False]
    assert len([record for record in caplog.records if "collapsed in epoch 2" in record.message]) == 1


class Linear(nn.Module):
    """The classic linear autoencoder, whose encoder returns one tensor (B, features)."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, features))
        self.decoder = nn.Linear(features, 3 * 28 * 28)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images)).view_as(images)


class OneMap(nn.Module):
    """An autoencoder whose encoder returns one map (B, C, H, W), or a list of maps."""

    def __init__(self, as_list: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 3, 4, 2, 1)
        if as_list:
            convolution = self.encoder.forward
            self.encoder.forward = lambda images: [images, convolution(images)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        code = self.encoder(images)
        return self.decoder(code[-1] if isinstance(code, list) else code)


@pytest.mark.parametrize("model", [Linear(), OneMap(False), OneMap(True)], ids=["linear", "map", "list"])
def test_other_autoencoders_train_and_are_watched(model):
    log = fit(pretraining("reconstruct", model, train=32, valid=8, size=28), [phase(15, lr=3e-3)])
    assert log["train_loss"].iloc[-1] < 0.9 * log["train_loss"][0]
    assert log["rankme"].between(1, 8).all()
    assert log["r2"].iloc[-1] > log["r2"][0]
    assert "bottleneck_ratio" not in log


def noisy_probe(encoder: nn.Module) -> float:
    """As bad a guest as can be: draws numbers, changes modes."""
    encoder.train()
    return float(torch.rand(3).sum())


def test_diagnostics_do_not_disturb_training(tmp_path):
    plain, observed = pretraining("denoise"), pretraining("denoise", probe=noisy_probe, probe_every=2)
    plain.remove_cb(RankMeMonitor)
    before = fit(plain, [phase(5)])
    log = fit(observed, [phase(5)], log_csv=tmp_path / "log.csv")
    assert changed(observed.model, state(plain.model)) == set()
    assert log["train_loss"].tolist() == before["train_loss"].tolist()
    assert [module.training for module in observed.model.modules()] == [m.training for m in plain.model.modules()]
    assert "rankme" not in before
    assert log["probe_miou"].isna().tolist() == [True, False, True, False, False]  # every second epoch, and the last
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "log.csv"), log)


def test_the_diagnostics_are_what_they_say():
    class Again(Callback):
        order = 5

        def after_loss(self) -> None:
            if not self.learn.training:
                model, loss, compare = self.learn.model, self.learn.loss, self.learn.loss_func
                (image, mask), (target, _) = self.learn.xb, self.learn.yb
                *others, deepest = model.encode(image, mask)
                prediction = model.decode([*others, deepest.roll(1, 0)], mask)
                self.ratio = float(compare(prediction, target, mask) / loss)
                self.r2 = float(1 - loss / compare(torch.zeros_like(prediction), target, mask))

    learner, again = pretraining("spark", decoder="hierarchical", valid=8), Again()
    learner.add_cb(again)
    row = fit(learner, [phase(1)]).iloc[-1]
    assert (row["bottleneck_ratio"], row["r2"]) == pytest.approx((again.ratio, again.r2), abs=1e-3)


class Zero(nn.Module):
    def forward(self, prediction: torch.Tensor) -> torch.Tensor:
        return 0 * prediction


def test_what_was_not_trained_is_a_warning_after_the_last_epoch(caplog):
    learner = pretraining("denoise", valid=8)
    learner.model.head = Zero()
    log = fit(learner, [phase(2)])
    assert log["r2"].tolist() == [0, 0]
    assert len([record for record in caplog.records if "r2" in record.message]) == 1


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
def test_training_ends_at_a_plateau_and_a_resume_leaves_it_there(tmp_path, losses, patience, epochs):
    learner, file = pretraining("denoise", train=8, patience=patience), tmp_path / "resume.pt"
    learner.add_cb(GivenLosses(losses))
    log = fit(learner, [phase(4)], resume_file=file)
    assert len(log) == epochs
    resumed = pretraining("denoise", train=8, patience=patience)
    resumed.add_cb(KillAfter(epochs + 1))
    pd.testing.assert_frame_equal(fit(resumed, [phase(4)], resume=True, resume_file=file), log)
    assert changed(resumed.model, state(learner.model)) == set()


def test_a_plateau_of_the_decoder_lets_the_encoder_train():
    learner = pretraining("denoise", train=8, patience=1)
    learner.add_cb(GivenLosses([1.0, 1.0, 1.0, 0.5]))
    log = fit(learner, [phase(5, frozen=True), phase(2)])
    assert log["phase"].tolist() == ["decoder", "decoder", "pretrain", "pretrain"]
