"""Tiny data sets and runs that the tests of the verbs share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import segae
import segae.commands
from tests.fabricate import make_pets
from tests.pictures import draw_nothing

SMALL = {"encoder": "test_resnet", "image_size": 64, "batch_size": 8, "epochs": 1, "device": "cpu", "threads": 1}


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Settings of a training that takes a second."""
    return SMALL


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what the tests share, with a cache of its own."""
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(root / "cache"))
        yield root


@pytest.fixture(scope="session")
def pets(shared: Path) -> Path:
    """14 training, 4 test and 6 unlabeled images."""
    return make_pets(shared / "pets", 14, 4, unlabeled=6)


@pytest.fixture(scope="session")
def denoised(pets: Path) -> segae.PretrainResult:
    """A pretraining with a decoder that cannot segment."""
    return segae.pretrain(pets, out=pets.parent / "denoised", method="denoise", **(SMALL | {"epochs": 2}))


@pytest.fixture(scope="session")
def masked(pets: Path) -> segae.PretrainResult:
    """The pretraining of the defaults, whose decoder a segmenter can take over."""
    return segae.pretrain(pets, out=pets.parent / "masked", **SMALL)


@pytest.fixture(scope="session")
def finetuned(pets: Path, denoised: segae.PretrainResult) -> segae.FinetuneResult:
    """A fine-tuning that starts from ``denoised``."""
    settings = {name: value for name, value in SMALL.items() if name not in ("encoder", "image_size")}
    return segae.finetune(pets, out=pets.parent / "finetuned", weights=denoised.path, val_fraction=0.2, **settings)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture
def make_segmenter(tmp_path: Path) -> Callable[..., Path]:
    """Write an untrained segmenter for 64 px images that predicts every class somewhere; give its path."""

    def make(classes: tuple[str, ...] = ("pet", "background", "border"), **training: Any) -> Path:
        torch.manual_seed(0)
        model = segae.create_segmenter("test_resnet", num_classes=classes, image_size=64).eval()
        head = model.segmentation_head[0]
        with torch.no_grad():  # logits of each class with mean 0, so that no class wins everywhere
            head.weight *= 20
            head.bias -= model(torch.randn(4, 3, 64, 64)).mean(dim=(0, 2, 3))
        palette = tuple((40 * index, 200 - 30 * index, 90) for index in range(len(classes)))
        model.info = replace(model.info, palette=palette, training=training)
        return segae.save_segmenter(model, tmp_path / "model" / "model.safetensors")

    return make


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Give a function: the next training stops before it saves this epoch, as if Ctrl-C was pressed."""

    def set_up(epoch: int) -> None:
        def stop(row: dict[str, Any]) -> str:
            if row["epoch"] == epoch:
                monkeypatch.undo()
                raise KeyboardInterrupt
            return ""

        monkeypatch.setattr(sys.modules["segae.training.fit"], "epoch_line", stop)

    return set_up
