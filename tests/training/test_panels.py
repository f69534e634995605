"""Reconstruction sheets show images, whatever the objective asks of the network; curves show the scores of a log."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from segae.models.autoencoder import Autoencoder
from segae.models.encoder import create_encoder
from segae.objectives.corruption import draw_normal
from segae.objectives.presets import make_objective
from segae.objectives.reconstruction import normalise_patches
from segae.training import panels
from segae.training.evaluation import normalise
from segae.training.figures import training_curves
from segae.training.panels import reconstruction_sheet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
CLEAN = normalise(IMAGES, MEAN, STD, torch.device("cpu"))


class Oracle(nn.Module):
    """Gives a fixed answer, and keeps what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer)

    def forward(self, image_bchw, hidden_b1hw):
        assert not self.training
        self.hidden = hidden_b1hw
        return self.answer


@pytest.fixture
def sheet(monkeypatch, tmp_path):
    """Draw a sheet; returns its columns."""

    def draw(model: nn.Module, name: str, **more) -> dict[str, np.ndarray]:
        kept: dict[str, np.ndarray] = {}
        contact_sheet = panels.contact_sheet

        def keep(columns, path):
            kept.update({title: np.stack(pictures) for title, pictures in columns.items()})
            contact_sheet(columns, path)

        monkeypatch.setattr(panels, "contact_sheet", keep)
        reconstruction_sheet(model.train(), make_objective(name, **more), IMAGES, MEAN, STD, tmp_path / "sheet.png")
        assert model.training
        assert Image.open(tmp_path / "sheet.png").size[0] > 100
        return kept

    return draw


def near(one: np.ndarray, other: np.ndarray) -> bool:
    return np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_a_right_answer_in_normalised_patches_shows_the_image(sheet):
    model = Oracle(normalise_patches(CLEAN, 32))
    columns = sheet(model, "sparse_mask")
    assert list(columns) == ["image", "input", "reconstruction", "with holes filled"]
    assert near(columns["image"], IMAGES)
    assert near(columns["reconstruction"], IMAGES)
    assert model.hidden.mean() == 0.5
    assert not near(columns["input"], IMAGES)


def test_a_right_answer_of_the_noise_shows_the_image(sheet):
    noise = draw_normal(CLEAN, torch.Generator().manual_seed(0))
    columns = sheet(Oracle(noise), "decoder_denoise")
    assert list(columns) == ["image", "input", "reconstruction"]
    noisy = (CLEAN + 0.22 * noise) / math.sqrt(1 + 0.22**2)
    assert near(columns["input"], np.stack([panels.denormalise(image, MEAN, STD) for image in noisy]))
    assert near(columns["reconstruction"], IMAGES)


def test_channels_beside_the_image_are_not_shown(sheet):
    columns = sheet(Oracle(torch.cat([CLEAN, torch.full((2, 9, 64, 64), 9.0)], dim=1)), "mixture")
    assert near(columns["reconstruction"], IMAGES)


def test_the_object_that_is_said_is_cut_out_of_the_input(sheet):
    left = torch.zeros(2, 1, 64, 64)
    left[..., :32] = 1
    columns = sheet(Oracle(torch.cat([CLEAN, 50 * (1 - left), 50 * left, 0 * left], dim=1)), "layers")
    assert list(columns) == ["image", "input", "reconstruction", "object sought", "object said"]
    assert near(columns["reconstruction"], IMAGES)
    assert near(columns["object said"][:, :, :32], columns["input"][:, :, :32])
    assert columns["object said"][:, :, 33:].std(axis=(1, 2)).max() < 1
    assert columns["input"][:, :, 33:].std(axis=(1, 2)).min() > 20
    assert (columns["object sought"] != columns["object said"]).mean() > 0.2


def test_the_last_column_keeps_what_was_visible(sheet):
    model = Oracle(torch.zeros_like(CLEAN))
    columns = sheet(model, "mask")
    hidden = model.hidden[:, 0].numpy() > 0
    assert near(columns["with holes filled"][~hidden], IMAGES[~hidden])
    assert near(columns["with holes filled"][hidden], columns["reconstruction"][hidden])


def test_an_autoencoder_that_takes_the_image_alone_is_shown_too(sheet):
    torch.manual_seed(0)
    encoder, _ = create_encoder("test_resnet")
    model = Autoencoder(encoder, MEAN, STD)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    columns = sheet(model, "mask")
    assert columns["reconstruction"].shape == IMAGES.shape
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_curves_give_every_score_a_panel_of_its_own(tmp_path):
    log = pd.DataFrame(
        {"epoch": [1, 2, 3], "phase": ["decoder", "pretrain", "pretrain"], "train_loss": [3.0, 2.0, 1.0]}
    )
    scores = {"probe_miou": [np.nan, 0.3, np.nan], "feature_rank": [9.0, 12.0, 30.0]}
    purple, orange, grey = (204, 121, 167), (230, 159, 0), (138, 138, 138)

    def drawn(table: pd.DataFrame) -> tuple[int, list[int]]:
        training_curves(table, tmp_path / "curves.png")
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
        return pixels.shape[1], [int((pixels == colour).all(axis=-1).sum()) for colour in (purple, orange, grey)]

    width, counts = drawn(log)
    assert counts[:2] == [0, 0]
    assert counts[2] > 100  # where the encoder was unfrozen
    wider, (probe, rank, _) = drawn(log.assign(**scores))
    assert wider > 1.8 * width
    assert min(probe, rank) > 20
