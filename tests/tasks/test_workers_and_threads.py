"""How many processes and threads a command takes, as a user asks for them or leaves them open."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from pathlib import Path

import cv2
import pytest
import safetensors.torch
import torch

from segae.cli import main
from segae.training import workers

PRETRAIN = ["pretrain", "--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--device", "cpu"]
SEGMENT = ["segment", "--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "12", "--test", "2", "--unlabelled", "8", "--size", "64"])
    return root


@pytest.fixture
def cores(monkeypatch):
    """So many cores, and processes that are worth starting for four images."""
    monkeypatch.setattr(workers, "_IMAGES_EACH", {"fork": 4})
    monkeypatch.setattr(workers, "_IMAGES_EACH_OTHERWISE", 4)

    def set_up(count: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)), raising=False)

    return set_up


def losses(folder: Path) -> list[str]:
    with (folder / "log.csv").open() as file:
        return [row["train_loss"] for row in csv.DictReader(file)]


def used(folder: Path) -> tuple[int | None, int]:
    """The number in the configuration, and the one that was taken."""
    return tuple(json.loads((folder / name).read_text())["workers"] for name in ("config.json", "metrics.json"))


def interrupt_after_first_epoch(command: list[str]) -> None:
    from segae.training import fit as fit_module

    original = fit_module.SaveResume.after_epoch

    def after_epoch(self) -> None:
        original(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module.SaveResume, "after_epoch", after_epoch)
        with pytest.raises(SystemExit):
            main(command)


def assert_same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    first, second = (safetensors.torch.load_file(run / "encoder.safetensors") for run in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_live_decoding_takes_the_cores_and_the_result_does_not_depend_on_them(pets, tmp_path, cores):
    given = [*PRETRAIN, "--objective", "denoise", "--data", str(pets), "--data-path", "live", "--epochs", "2"]
    cores(2)
    main([*given, "--out", str(tmp_path / "two")])
    assert used(tmp_path / "two") == (None, 2)
    main([*given, "--out", str(tmp_path / "none"), "--workers", "0"])
    assert used(tmp_path / "none") == (0, 0)
    assert_same(tmp_path / "two", tmp_path / "none")

    interrupt_after_first_epoch([*given, "--out", str(tmp_path / "parts")])
    cores(1)
    main([*given, "--out", str(tmp_path / "parts"), "--resume"])
    assert used(tmp_path / "parts") == (None, 0)
    assert_same(tmp_path / "two", tmp_path / "parts")


def test_a_stream_goes_on_with_the_number_that_it_began_with(pets, tmp_path, cores):
    pytest.importorskip("webdataset", reason="the extra 'streaming' is not installed")
    pictures = sorted(path for path in (pets / "unlabelled").rglob("*") if path.is_file())
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for path in pictures[shard::2]:
                tar.add(path, path.name)
    shards = [str(tmp_path / f"{shard}.tar") for shard in range(2)]
    given = [*PRETRAIN, "--objective", "denoise", "--epoch-images", "8", "--epochs", "2", "--data", *shards]
    cores(2)
    main([*given, "--out", str(tmp_path / "whole")])
    assert used(tmp_path / "whole") == (2, 2)
    interrupt_after_first_epoch([*given, "--out", str(tmp_path / "parts")])
    cores(1)  # where a run that begins would take none
    main([*given, "--out", str(tmp_path / "parts"), "--resume"])
    assert used(tmp_path / "parts") == (2, 2)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_every_command_computes_with_the_threads_asked_for_and_prepares_the_device(pets, tmp_path, monkeypatch):
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "segae.training.device.keep_freed_memory",
        lambda: seen.append((torch.get_num_threads(), cv2.getNumThreads())),
    )
    before = torch.get_num_threads(), cv2.getNumThreads()
    run, model = str(tmp_path / "run"), str(tmp_path / "run" / "model.safetensors")
    short, masks = ["--data", str(pets), "--epochs", "1"], str(tmp_path / "masks")
    for command in (
        [*PRETRAIN, *short, "--out", str(tmp_path / "pretrain")],
        [*SEGMENT, *short, "--out", run],
        ["evaluate", "--model", model, "--data", str(pets), "--device", "cpu"],
        ["predict", "--model", model, "--input", str(pets / "images"), "--out", masks, "--device", "cpu"],
    ):
        seen.clear()
        main([*command, "--threads", str(before[0] + 1)])
        assert set(seen) == {(before[0] + 1,) * 2}, command[0]
        assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    assert used(tmp_path / "run") == (None, 0), "cached images on a CPU want no process"
    with pytest.raises(SystemExit):
        main([*SEGMENT, *short, "--out", str(tmp_path / "none"), "--threads", "0"])
    assert not (tmp_path / "none").exists()
