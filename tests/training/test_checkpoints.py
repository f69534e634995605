"""The best epochs are kept, plateaus and time limits end a training, and a resumed one knows all of it."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file, save_file

import segae
from segae._io import parse_duration, read_json
from segae.errors import SegaeError
from segae.training import KeepBest, fit, freeze_finetune_phases, open_run_folder, stopping
from segae.training.checkpoints import best_epochs
from segae.training.fit import load_resume_file
from tests.fabricate import make_images, make_pets
from tests.training.learners import KillAfter, Tiny, changed, phase, pretraining, segmentation, state, without_times

PHASES = freeze_finetune_phases(1, 3)
SMALL = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "device": "cpu", "threads": 1}


class GivenScores(Callback):
    """Puts these values into the log, and keeps the weights of each epoch."""

    order = 61  # right after EpochLog

    def __init__(self, scores: list[float], monitor: str = "miou") -> None:
        self.scores, self.monitor, self.states = scores, monitor, dict[int, dict[str, torch.Tensor]]()

    def after_epoch(self) -> None:
        log = self.learn.epoch_clock.log
        log[-1][self.monitor] = self.scores[len(log) - 1]
        self.states[len(log)] = state(self.learn.model)


class KillBetween(KillAfter):
    """Ends the process after the resume file was written, before the best epoch is."""

    order = 71


def keeping(folder: Path, scores: list[float], top_k: int = 1, monitor: str = "miou", **more: Any) -> Any:
    """A learner that keeps its best epochs, and the callback that knows their weights."""
    learner, given = segmentation(Tiny, **({"size": 16, "train": 8, "valid": 2} | more)), GivenScores(scores, monitor)

    def save(path: Path) -> None:
        save_file({name: one.contiguous() for name, one in state(learner.model).items()}, path)

    learner.add_cbs([given, KeepBest(folder / "best.safetensors", save, monitor, top_k)])
    return learner, given


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in folder.glob("*.safetensors")}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensors in found.items():
        torch.testing.assert_close(tensors, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("monitor", "scores", "best"),
    [
        ("miou", [0.1, 0.4, 0.4, 0.2], [2, 3, 4]),  # of equal ones the earliest
        ("accuracy", [float("nan"), 0.4, 0.5, 0.6], [4, 3, 2]),
        ("valid_loss", [0.1, 0.4, 0.05, 0.2], [3, 1, 4]),
        ("probe_miou", [0.1, 0.4, 0.05, 0.2], [2, 4, 1]),
    ],
)
def test_the_best_epochs_are_those_of_the_metric_in_its_direction(monitor, scores, best):
    rows = [{"epoch": place + 1, monitor: score} for place, score in enumerate(scores)] + [{"epoch": 9}]
    assert [row["epoch"] for row in best_epochs(rows, monitor)][:3] == best
    with pytest.raises(SegaeError, match="monitor must be one of .*train_loss"):
        best_epochs(rows, "train_loss")


@pytest.mark.parametrize(
    ("scores", "top_k", "files"),
    [
        ([0.3, 0.1, 0.5, 0.4], 0, {}),
        ([0.3, 0.1, 0.5, 0.4], 1, {"best": 3}),
        ([0.3, 0.1, 0.5, 0.4], 2, {"best": 3, "top_3": 3, "top_4": 4}),
        ([0.3, 0.1, 0.2, 0.2], 3, {"best": 1, "top_1": 1, "top_3": 3, "top_4": 4}),
    ],
)
def test_files_have_the_weights_of_the_best_epochs_and_training_is_as_without(tmp_path, scores, top_k, files):
    plain = segmentation(Tiny, size=16, train=8, valid=2)
    expected = fit(plain, PHASES)
    learner, given = keeping(tmp_path, scores, top_k)
    log = fit(learner, PHASES)
    assert log["train_loss"].tolist() == expected["train_loss"].tolist()
    assert changed(learner.model, state(plain.model)) == set()
    assert_same(weights(tmp_path), {f"{name}.safetensors": given.states[epoch] for name, epoch in files.items()})
    found = learner.keep_best.finish()
    assert found == {"monitor": "miou", "best_epoch": 1 + scores.index(max(scores)), "best_value": max(scores)}


@pytest.mark.parametrize(("kill", "epochs"), [(KillAfter, 2), (KillBetween, 1), (KillBetween, 2), (KillBetween, 4)])
def test_a_killed_training_keeps_the_same_files(tmp_path, kill, epochs):
    scores, folders = [0.3, 0.5, 0.4, 0.6], [tmp_path / "whole", tmp_path / "resumed"]
    for folder in folders:
        folder.mkdir()
    fit(keeping(folders[0], scores, 2)[0], PHASES)
    first, file = keeping(folders[1], scores, 2)[0], tmp_path / "resume.pt"
    first.add_cb(kill(epochs))
    with pytest.raises(KeyboardInterrupt):
        fit(first, PHASES, resume_file=file)
    second = keeping(folders[1], scores, 2)[0]
    fit(second, PHASES, resume_file=file, resume=True)
    second.keep_best.finish()
    assert_same(weights(folders[1]), weights(folders[0]))


def test_an_epoch_that_was_cut_short_is_never_the_best(tmp_path):
    learner, given = keeping(tmp_path, [0.3, 0.2, 0.9], train=18, max_steps=8)  # three steps to an epoch
    assert len(fit(learner, PHASES)) == 3
    assert learner.keep_best.finish()["best_epoch"] == 1
    assert_same(weights(tmp_path), {"best.safetensors": given.states[1]})


def test_a_full_disk_keeps_the_resume_file(tmp_path):
    def full(path: Path) -> None:
        raise SegaeError(f"{path} could not be written: the disk is full")

    learner = segmentation(Tiny, size=16)
    learner.add_cb(KeepBest(tmp_path / "best.safetensors", full, "miou"))
    with pytest.raises(SegaeError, match="the disk is full"):
        fit(learner, PHASES, resume_file=tmp_path / "resume.pt")
    assert load_resume_file(tmp_path / "resume.pt")["epochs_done"] == 1


@pytest.mark.parametrize(
    ("monitor", "scores", "patience", "epochs"),
    [
        ("miou", [0.9, 0.9, 0.9, 0.2, 0.5, 0.5, 0.5], 2, 7),  # three frozen epochs: their plateau ends nothing
        ("miou", [0.1, 0.1, 0.1, 0.5, 0.5, 0.4, 0.9], 2, 6),
        ("miou", [0.1, 0.1, 0.1, 0.5, 0.4, 0.3, 0.2], 1, 5),
        ("valid_loss", [9.0, 9.0, 9.0, 5.0, 4.0, 4.5, 5.0], 1, 6),
        ("valid_loss", [1.0, 1.0, 1.0, 5.0, 4.0, 3.0, 2.0], 1, 7),
    ],
)
def test_patience_ends_the_full_phase_alone_and_a_resume_leaves_it_there(tmp_path, monitor, scores, patience, epochs):
    phases, file = freeze_finetune_phases(3, 4), tmp_path / "resume.pt"
    learner = keeping(tmp_path, scores, monitor=monitor, patience=patience)[0]
    # the learner counts the metric that it is given
    learner.early_stopping.monitor = monitor
    log = fit(learner, phases, resume_file=file)
    assert len(log) == epochs
    resumed = keeping(tmp_path, scores, monitor=monitor, patience=patience)[0]
    resumed.early_stopping.monitor = monitor
    resumed.add_cb(KillAfter(epochs + 1))
    assert len(fit(resumed, phases, resume=True, resume_file=file)) == epochs
    assert changed(resumed.model, state(learner.model)) == set()


def test_learners_refuse_metrics_that_they_do_not_have():
    for make, more, word in (
        (segmentation, {"monitor": "accuracy"}, "monitor must be one of miou, valid_loss, got 'accuracy'"),
        (pretraining, {"monitor": "probe_miou"}, "monitor must be one of valid_loss, got 'probe_miou'"),
        (segmentation, {"patience": 2, "valid": 0}, "patience must be None without validation images, got 2"),
        (segmentation, {"patience": 0}, "patience must be an integer"),
    ):
        with pytest.raises(SegaeError, match=word):
            make(**more)
    probed = pretraining("denoise", train=8, patience=1, monitor="probe_miou", probe=lambda encoder: 0.5)
    assert len(fit(probed, [phase(5)])) == 2


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1m1s", 61)])
def test_durations(text, seconds):
    assert parse_duration("max_time", text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0m", "-5m", "m", "1.5h", "30m1h", "1 h", "ten minutes", "1h\n", None, 30])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(SegaeError, match=r"max_time must be a time such as 30m, 2h, 90s or 1h30m, got"):
        parse_duration("max_time", text)


class Tick(Callback):
    """Each training step takes ten seconds."""

    order, run_valid = 150, False

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def after_batch(self) -> None:
        self.clock.now += 10


@pytest.mark.parametrize(
    ("max_time", "epochs", "images", "saved"),
    [
        ("15s", 1, 16, 0),  # within the first epoch, of three steps
        ("45s", 1, 18, 1),  # a second epoch would take until 60 s
        ("1m1s", 2, 18, 2),
        ("1h", 4, 18, 4),
    ],
)
def test_max_time_ends_the_training_cleanly_and_more_time_continues_it(
    tmp_path, caplog, monkeypatch, max_time, epochs, images, saved
):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: clock.now))
    file = tmp_path / "resume.pt"

    def learner(max_time: str | None) -> Any:
        made = segmentation(Tiny, size=16, max_time=max_time)
        made.add_cb(Tick(clock))
        return made

    with caplog.at_level("INFO", "segae"):
        log = fit(learner(max_time), PHASES, resume_file=file)
    assert (len(log), log["images"].iloc[-1]) == (epochs, images)
    assert log["miou"].notna().all()
    assert (f"max_time {max_time}" in caplog.text) == (epochs < 4)
    assert (load_resume_file(file)["epochs_done"] if file.exists() else 0) == saved
    if 0 < saved < 4:
        whole, rest = learner(None), learner("1h")
        expected = fit(whole, PHASES)
        assert without_times(fit(rest, PHASES, resume_file=file, resume=True)) == without_times(expected)
        assert changed(rest.model, state(whole.model)) == set()


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 10, 2, size=32)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, sheet in (("finetune", "segmentation_sheet"), ("pretrain", "reconstruction_sheet")):
        for name in ("draw_curves", sheet):
            monkeypatch.setattr(importlib.import_module(f"segae.commands.{verb}"), name, lambda *_, **__: None)


def test_finetune_writes_the_best_epoch_by_its_metric_and_says_so(pets, tmp_path, no_pictures):
    settings = SMALL | {"epochs": 2, "freeze_epochs": 0, "val_fraction": 0.3, "reconstruction_weight": 0.1}
    plain = segae.finetune(pets, out=tmp_path / "plain", save_top_k=0, **settings)
    assert plain.best_path is None
    assert not [path.name for path in (tmp_path / "plain").iterdir() if path.name.startswith(("best", "top"))]
    result = segae.finetune(pets, out=tmp_path / "run", save_top_k=2, monitor="valid_loss", **settings)
    assert changed(result.model, state(plain.model)) == set()
    losses = result.log["valid_loss"]
    metrics = read_json(tmp_path / "run" / "metrics.json")
    assert (metrics["monitor"], metrics["best_epoch"]) == ("valid_loss", 1 + int(losses.argmin()))
    assert metrics["best_value"] == losses.min()
    assert metrics["last_epoch"]["epoch"] == 2
    for epoch in (1, 2):
        kept = segae.load_segmenter(tmp_path / "run" / f"top_{epoch}.safetensors")
        assert kept.info.training["epoch"] == epoch
        assert (changed(kept, state(result.model)) == set()) == (epoch == 2)
    best = segae.load_segmenter(result.best_path)
    assert best.info.training["epoch"] == metrics["best_epoch"]
    assert best.predict(next((pets / "images").iterdir())).shape == (32, 32)
    open_run_folder(tmp_path / "run", {}, task="finetune", overwrite=True).close()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", ".lock"}


def test_pretrain_writes_the_best_encoder_with_statistics_of_clean_images(tmp_path, no_pictures):
    photos = make_images(tmp_path / "photos", 10, size=32)
    settings = SMALL | {"method": "denoise", "epochs": 2, "val_fraction": 0.3, "near_duplicates": False}
    result = segae.pretrain(photos, out=tmp_path / "run", **settings)
    metrics, losses = read_json(tmp_path / "run" / "metrics.json"), result.log["valid_loss"]
    assert (metrics["best_epoch"], metrics["best_value"]) == (1 + int(losses.argmin()), losses.min())
    best = segae.load_encoder(result.best_path)
    assert best.info.pretraining["epochs"] == metrics["best_epoch"]
    assert metrics["best_epoch"] == 2  # so that it is the last one, too
    torch.testing.assert_close(state(best), state(segae.load_encoder(result.path)), rtol=1e-4, atol=1e-5)


def test_without_validation_images_there_is_no_best_epoch(pets, tmp_path, no_pictures, caplog):
    settings = SMALL | {"epochs": 1, "freeze_epochs": 0, "val_fraction": 0.0}
    for name, value in {"monitor": "miou", "save_top_k": 2, "patience": 3}.items():
        with pytest.raises(SegaeError, match=rf"{name} must be .* validation images, got {value}"):
            segae.finetune(pets, out=tmp_path / "run", **settings, **{name: value})
    with pytest.raises(SegaeError, match="patience must be None where epochs is 0, got 3"):
        segae.finetune(pets, out=tmp_path / "run", **{**settings, "epochs": 0, "freeze_epochs": 1}, patience=3)
    assert not (tmp_path / "run").exists()
    with caplog.at_level("INFO", "segae"):
        result = segae.finetune(pets, out=tmp_path / "run", **settings)
    assert result.best_path is None
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert "best.safetensors is not written" in caplog.text
    assert "best_epoch" not in read_json(tmp_path / "run" / "metrics.json")
