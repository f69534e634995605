"""A memory that is full in the middle of a run: nothing finished is lost, and the next line to type is said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from segmentation_models_pytorch.base import SegmentationModel

from segae.cli import main
from segae.errors import SegaeError
from segae.training.callbacks import Callback
from segae.training.checkpoint import load_resume_file
from segae.training.evaluation import predict_masks
from segae.training.fit import fit
from segae.training.memory import full_memory
from segae.training.schedule import make_phases

ON_CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
ON_CPU = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B"


def fill_memory(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    """Every segmenter's forward raises the error from this training step on, counted from 1."""
    forward, steps = SegmentationModel.forward, []

    def full(self, image_bchw):
        if self.training and torch.is_grad_enabled():
            steps.append(None)
            if len(steps) >= step:
                raise error
        return forward(self, image_bchw)

    monkeypatch.setattr(SegmentationModel, "forward", full)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(ON_CUDA), RuntimeError(ON_CPU)])
def test_finished_epochs_stay_and_the_message_names_the_flags(segmentation, tmp_path, monkeypatch, error):
    (tmp_path / "config.json").write_text(json.dumps({"task": "Segment"}))
    resume = tmp_path / "resume.pt"
    fill_memory(monkeypatch, 5, error)  # 18 images make 3 batches of 8 at most: the second epoch
    with pytest.raises(SegaeError) as stopped:
        fit(segmentation(), make_phases(1, 2), resume_file=resume)
    said = str(stopped.value)
    assert "in epoch 2: 8 images at once, in batches of 8" in said
    assert str(error).splitlines()[0] in said
    assert f"segae segment --config {tmp_path / 'config.json'} --resume --micro-batch 4 " in said
    assert "--activation-checkpointing" in said
    assert load_resume_file(resume)["epochs_done"] == 1
    monkeypatch.undo()
    log = fit(segmentation(accumulate=2), make_phases(1, 2), resume_file=resume, resume=True)
    assert [row["epoch"] for row in log] == [1, 2, 3]


def test_images_of_accumulated_batches_are_counted_too(segmentation, monkeypatch):
    fill_memory(monkeypatch, 1, torch.OutOfMemoryError(ON_CUDA))
    with pytest.raises(SegaeError, match=r"epoch 1: 8 images at once, in batches of 16.*Train with --micro-batch 4 or"):
        fit(segmentation(accumulate=2), make_phases(1, 1))


def test_a_callback_may_run_out_of_memory_as_well(segmentation):
    class Greedy(Callback):
        def before_batch(self) -> None:
            raise torch.OutOfMemoryError(ON_CUDA)

    learner = segmentation()
    learner.add_cb(Greedy())
    with pytest.raises(SegaeError, match=r"\(CUDA out of memory"):
        fit(learner, make_phases(1, 1))


def test_other_errors_pass_as_they_are(segmentation, monkeypatch):
    fill_memory(monkeypatch, 2, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        fit(segmentation(), make_phases(1, 1))


def test_a_prediction_names_the_smaller_batch():
    class Full(torch.nn.Module):
        def forward(self, image_bchw):
            raise torch.OutOfMemoryError(ON_CUDA)

    images, mean = np.zeros((6, 8, 8, 3), np.uint8), (0.5,) * 3
    with pytest.raises(SegaeError, match=r"4 image\(s\) at once.*--batch-size 2 .*--device cpu"):
        predict_masks(Full(), images, mean, mean, batch_size=4)
    with pytest.raises(SegaeError, match=r"1 image\(s\) at once.*Repeat the command with --device cpu"):
        predict_masks(Full(), images, mean, mean, batch_size=1)


def test_what_is_a_full_memory():
    assert full_memory(torch.cuda.OutOfMemoryError(ON_CUDA)) == ON_CUDA
    assert full_memory(MemoryError("Unable to allocate 9 GiB for an array")) == "Unable to allocate 9 GiB for an array"
    assert full_memory(MemoryError()) == "MemoryError"
    assert full_memory(RuntimeError(f"a note\n{ON_CPU}\nC++ frames")) == ON_CPU
    assert full_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")) is not None
    assert full_memory(RuntimeError("shapes cannot be multiplied")) is None
    assert full_memory(OSError(f"{ON_CPU}")) is None


def test_the_command_leaves_with_2_and_goes_on_in_smaller_batches(tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "pets", tmp_path / "run"
    main(["data", "drawn", "--root", str(data), "--train", "8", "--test", "1", "--unlabelled", "0", "--size", "64"])
    given = ["--data", str(data), "--out", str(out), "--encoder", "test_resnet", "--image-size", "64"]
    given += ["--batch-size", "4", "--epochs", "1", "--val-fraction", "0", "--device", "cpu"]
    with monkeypatch.context() as patch:
        fill_memory(patch, 3, torch.OutOfMemoryError(ON_CUDA))
        with pytest.raises(SystemExit) as stopped:
            main(["segment", *given])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "unexpected" not in said
    line = said.rpartition("Type segae ")[2].partition(" (or")[0]  # as it would be copied
    main(line.split())
    with (out / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert json.loads(Path(out, "config.json").read_text())["micro_batch"] == 2
