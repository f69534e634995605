"""Training to the end, stopping in between, and going on as if nothing had happened."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from segae.errors import CheckpointError, SegaeError
from segae.training import fit, freeze_finetune_phases, limit_threads, pretraining_phases
from segae.training.fit import load_resume_file, save_resume_file
from tests.training.learners import KillAfter, Tiny, changed, phase, pretraining, segmentation, state, without_times

HARD = {"hard_mask_fraction": 0.8, "distance_penalty": 1.0, "accumulate": 2}


@pytest.mark.parametrize(
    ("make", "settings", "epochs"),
    [(segmentation, {}, 1), (segmentation, {}, 3), (segmentation, {}, 4), (pretraining, {}, 2), (pretraining, HARD, 2)],
)
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path, make, settings, epochs):
    phases = freeze_finetune_phases(1, 3) if make is segmentation else pretraining_phases(3, 1e-3)
    files = {"resume_file": tmp_path / "resume.pt", "log_csv": tmp_path / "log.csv"}
    whole, first, second = make(**settings), make(**settings), make(**settings)
    expected = fit(whole, phases)
    first.add_cb(KillAfter(epochs))
    with pytest.raises(KeyboardInterrupt):
        fit(first, phases, **files)
    torch.rand(7)  # a new process would not have this process's random state
    log = fit(second, phases, resume=True, **files)
    assert changed(second.model, state(whole.model)) == set()
    assert without_times(log) == without_times(expected)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "log.csv"), log)


def test_a_killed_process_is_continued_bit_for_bit_by_another(tmp_path):
    file, phases = tmp_path / "resume.pt", pretraining_phases(4, 1e-3)

    def train(resume: bool) -> None:
        learner = pretraining("denoise")
        done = lambda row: (tmp_path / str(row["epoch"])).touch()  # noqa: E731
        fit(learner, phases, resume_file=file, resume=resume, report=done)
        torch.save(learner.model.state_dict(), tmp_path / "state.pt")

    with limit_threads(1):  # what is forked may not have threads
        for resume in (False, True):
            process = multiprocessing.get_context("fork").Process(target=train, args=(resume,))  # imports nothing again
            process.start()
            while not resume and not (tmp_path / "3").exists():  # two epochs are saved, the third is on its way
                time.sleep(0.01)
            if not resume:
                os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            assert process.exitcode == (0 if resume else -signal.SIGKILL)
        whole = pretraining("denoise")
        fit(whole, phases)
    assert changed(whole.model, torch.load(tmp_path / "state.pt")) == set()


def test_training_learns_something_and_the_seed_decides_order_and_corruption():
    log = fit(segmentation(), freeze_finetune_phases(1, 8, lr=1e-2))
    assert log["train_loss"].iloc[-1] < 0.8 * log["train_loss"][0]
    assert log["miou"].iloc[-1] > log["miou"][0]
    learners = [pretraining(seed=seed) for seed in (0, 0, 1)]  # the same weights to begin with
    logs = [fit(learner, pretraining_phases(4, 3e-3)) for learner in learners]
    assert logs[0]["train_loss"].iloc[-1] < 0.95 * logs[0]["train_loss"][0]
    assert changed(learners[0].model, state(learners[1].model)) == set()
    assert changed(learners[0].model, state(learners[2].model))


def test_the_log_has_its_columns():
    log = fit(segmentation(train=17), freeze_finetune_phases(1, 1))
    columns = (
        "epoch phase train_loss lr_encoder lr_head images seconds images_per_second peak_memory_mb valid_loss miou"
    )
    assert list(log) == columns.split()
    assert log["images"].tolist() == [16, 16]
    assert (log["peak_memory_mb"] > 10).all()
    assert not {"valid_loss", "miou"} & set(fit(segmentation(valid=0), freeze_finetune_phases(0, 1)))


@pytest.mark.parametrize(("step", "value"), [(0, float("nan")), (2, float("inf")), (2, float("nan"))])
def test_numbers_that_are_not_finite_stop_and_keep_the_last_good_epoch(tmp_path, step, value):
    class Poison(Callback):
        """Makes weights useless in the second epoch, after its first or its last step."""

        def after_batch(self) -> None:
            if self.learn.training and self.learn.epoch_clock.now == 1 and self.learn.iter == step:
                next(self.learn.model.decoder.parameters()).data[0] = value

    learner = segmentation()
    learner.add_cb(Poison())
    with pytest.raises(SegaeError, match="epoch 2.*lr must be smaller"):
        fit(learner, freeze_finetune_phases(1, 2), log_csv=tmp_path / "log.csv", resume_file=tmp_path / "resume.pt")
    assert load_resume_file(tmp_path / "resume.pt")["epochs_done"] == 1
    assert pd.read_csv(tmp_path / "log.csv")["epoch"].tolist() == [1]


def test_a_full_disk_is_named_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FillDisk(Callback):
        order = 65  # between the log and the resume file

        def after_epoch(self) -> None:
            if self.learn.epoch_clock.now == 1:
                monkeypatch.setattr(os, "fsync", full)

    learner = segmentation()
    learner.add_cb(FillDisk())
    with pytest.raises(SegaeError, match=r"resume\.pt.*disk is full"):
        fit(learner, freeze_finetune_phases(1, 2), resume_file=tmp_path / "resume.pt")
    assert load_resume_file(tmp_path / "resume.pt")["epochs_done"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["resume.pt"]
    with pytest.raises(SegaeError, match=r"log\.csv"):
        fit(segmentation(), freeze_finetune_phases(0, 1), log_csv=tmp_path / "log.csv")


@pytest.fixture(scope="module")
def resume_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("resume") / "resume.pt"
    fit(segmentation(Tiny, size=16), freeze_finetune_phases(0, 1), resume_file=path)
    return path.read_bytes()


@pytest.mark.parametrize("where", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_any_changed_bit_of_a_resume_file_is_refused(tmp_path, resume_file, where):
    path, data = tmp_path / "resume.pt", bytearray(resume_file)
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"resume\.pt"):
        fit(segmentation(Tiny, size=16), freeze_finetune_phases(0, 2), resume_file=path, resume=True)


def test_missing_shortened_foreign_and_dangerous_resume_files_are_refused(tmp_path, resume_file):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path, body = tmp_path / "resume.pt", pickle.dumps({"model": Evil()}, protocol=2)
    dangerous = f"segae-resume-2 {hashlib.blake2b(body, digest_size=16).hexdigest()}\n".encode() + body
    for content in (None, resume_file[:500], b"", b"text\n", dangerous):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"resume\.pt"):
            load_resume_file(path)
    assert not (tmp_path / "ran").exists()
    save_resume_file(path, {"model": {}})
    with pytest.raises(CheckpointError, match=r"resume\.pt"):
        load_resume_file(path)
    path.write_bytes(resume_file)
    with pytest.raises(CheckpointError, match="this model"):
        fit(segmentation(), freeze_finetune_phases(0, 2), resume_file=path, resume=True)


def test_weights_that_are_not_finite_are_neither_saved_nor_resumed(tmp_path, resume_file, monkeypatch):
    path = tmp_path / "resume.pt"
    path.write_bytes(resume_file)
    content = load_resume_file(path)
    content["model"]["head.weight"][0] = float("nan")
    with pytest.raises(CheckpointError, match="finite"):
        save_resume_file(path, content)
    assert path.read_bytes() == resume_file
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[save_resume_file.__module__], "all_finite", lambda values: True)
        save_resume_file(path, content)
    with pytest.raises(CheckpointError, match="finite"):
        load_resume_file(path)


@pytest.mark.parametrize(("max_steps", "epochs", "images", "saved"), [(2, 1, 16, 0), (3, 1, 18, 1), (5, 2, 16, 1)])
def test_max_steps_ends_the_training_cleanly(tmp_path: Path, caplog, max_steps, epochs, images, saved):
    path = tmp_path / "resume.pt"
    with caplog.at_level("INFO", "segae"):
        log = fit(segmentation(max_steps=max_steps), freeze_finetune_phases(1, 3), resume_file=path)
    assert len(log) == epochs
    assert log["images"].iloc[-1] == images
    assert log["miou"].notna().all()
    assert (log["images_per_second"] > 0).all()
    assert f"{max_steps} optimizer steps" in caplog.text
    assert "images/s" in caplog.text
    assert (load_resume_file(path)["epochs_done"] if path.exists() else 0) == saved


def test_a_training_that_max_steps_cut_short_is_continued_as_if_it_was_not(tmp_path):
    whole, phases = pretraining("denoise"), [phase(3)]
    expected = fit(whole, phases)
    fit(pretraining("denoise", max_steps=5), phases, resume_file=tmp_path / "resume.pt")
    second = pretraining("denoise", max_steps=100)
    log = fit(second, phases, resume_file=tmp_path / "resume.pt", resume=True)
    assert second.epoch_clock.steps == 9
    assert without_times(log) == without_times(expected)
    assert changed(second.model, state(whole.model)) == set()
