"""Pretraining on rows of parquet files, as a user types it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from segae.cli import main
from segae.errors import SegaeError
from segae.tasks.pretrain import Pretrain
from segae.tasks.streaming import is_streamed, load_shards

pytest.importorskip("datasets", reason="pip install 'segae[streaming]'")
from pyarrow import parquet, table

PRETRAIN = ["pretrain", "--encoder", "test_resnet", "--image-size", "64", "--batch-size", "4", "--device", "cpu"]


@pytest.fixture(autouse=True)
def private_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library-cache")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two files of six noisy pictures, one of twelve broken."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(2):
        cells = []
        for _ in range(6):
            file = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
            cells.append(file.getvalue())
        cells[3] = b"no picture" if number else cells[3]
        parquet.write_table(table({"picture": cells, "number": [number] * 6}), folder / f"part-{number}.parquet")
    return folder


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_pretrain_and_a_resumed_run_is_the_uninterrupted_one(rows, tmp_path):
    given = ["--data", f"{rows}?column=picture", "--objective", "denoise", "--epoch-images", "8"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main([*PRETRAIN, *given, "--out", str(whole), "--epochs", "3"])
    assert [row["images"] for row in log(whole)] == ["8", "8", "8"]
    described = json.loads((whole / "encoder.json").read_text())["pretraining"]
    assert (described["images"], described["images_seen"]) == (8, 24)
    assert "row-3" in (whole / "quarantine.csv").read_text()

    _interrupt_after(2, [*PRETRAIN, *given, "--out", str(parts), "--epochs", "3"])
    main([*PRETRAIN, *given, "--out", str(parts), "--epochs", "3", "--resume"])
    assert [row["train_loss"] for row in log(parts)] == [row["train_loss"] for row in log(whole)]
    first, second = (safetensors.torch.load_file(run / "encoder.safetensors") for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _interrupt_after(epochs: int, command: list[str]) -> None:
    from segae.training import fit as fit_module

    original = fit_module.SaveResume.after_epoch

    def after_epoch(self) -> None:
        original(self)
        if len(self.learn.epoch_clock.log) == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module.SaveResume, "after_epoch", after_epoch)
        with pytest.raises(SystemExit) as stopped:
            main(command)
    assert stopped.value.code == 130


def test_an_epoch_is_all_rows_where_no_number_is_given(rows, tmp_path):
    from segae.models.encoder import create_encoder

    _, description = create_encoder("test_resnet")
    data = load_shards(Pretrain(data=(rows,), image_size=32, batch_size=4), description)
    assert data.count == 12
    assert len(data.train) == 12
    assert data.shown.shape == (5, 32, 32, 3)
    assert len(data.paths) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data_path": "cache"}, "Leave --data-path out"),
        ({"patience": 3}, "Leave --patience out"),
        ({"data": (Path("hf:/owner/name"), Path("folder"))}, "must be the only one"),
        ({"data": (Path("hf:/owner/name"), Path("a.tar"))}, "tar shards and hf://owner/name"),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused(rows, more, words):
    with pytest.raises(SegaeError, match=words):
        load_shards(Pretrain(**{"data": (rows,), **more}), None)


def test_an_address_survives_being_a_path(tmp_path):
    assert is_streamed([Path("hf://owner/name?split=train&column=image")])
    assert is_streamed([Path("https://place/name-0.tar")])
    assert not is_streamed([tmp_path])
