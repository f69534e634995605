"""Reconstruction as a second task of a fine-tuning, and the scores of validation images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import segae
from segae.data import CachedPairDataset, eval_transform, make_loaders
from segae.models import Encoder
from segae.training.callbacks import Accuracy

CPU = torch.device("cpu")


def make_learner(kind: str, encoder: Encoder, **settings: Any) -> Any:
    """A Learner of eight images of noise for a segmenter or a classifier."""
    generator, side = np.random.default_rng(0), encoder.info.image_size
    images = generator.integers(0, 256, (8, side, side, 3), np.uint8)
    masks = generator.integers(0, 2, 8 if kind == "classifier" else (8, side, side))
    about = eval_transform(side, encoder.info.mean, encoder.info.std)
    data = CachedPairDataset(images, masks.astype(np.int64 if masks.ndim == 1 else np.uint8), about, seed=0)
    build = segae.create_classifier if kind == "classifier" else segae.create_segmenter
    torch.manual_seed(0)
    model = build(encoder, num_classes=2)
    return segae.segmentation_learner(make_loaders(data, data, batch_size=4, device=CPU), model, **settings)


def small_encoder(name: str) -> Encoder:
    encoder = segae.create_encoder(name)
    encoder.info = replace(encoder.info, image_size=28 if name.startswith("conv") else 32)
    return encoder


@pytest.mark.parametrize(
    ("kind", "name"), [("segmenter", "test_resnet"), ("classifier", "test_resnet"), ("classifier", "conv_8_4")]
)
def test_the_head_is_trained_and_gone_afterwards(kind: str, name: str) -> None:
    encoder = small_encoder(name)
    alone = make_learner(kind, encoder)
    joint = make_learner(kind, encoder, reconstruction_weight=0.5)
    names, head = set(alone.model.state_dict()), joint.model.reconstruction
    before = [parameter.clone() for parameter in head.parameters()]
    logs = [
        segae.fit(learner, segae.freeze_finetune_phases(1, 2), report=lambda row: None) for learner in (alone, joint)
    ]
    assert any(not torch.equal(old, new) for old, new in zip(before, head.parameters(), strict=True))
    assert set(joint.model.state_dict()) == names
    assert logs[1]["train_loss"].iloc[0] > logs[0]["train_loss"].iloc[0] + 0.1  # half the error of the images
    assert logs[1]["valid_loss"].iloc[0] < logs[1]["train_loss"].iloc[0]  # without the reconstruction
    joint.model(torch.zeros(1, 3, encoder.info.image_size, encoder.info.image_size))  # no hook is left


def test_an_interrupted_multi_task_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    encoder, weights = small_encoder("test_resnet"), []
    for parts in ((3,), (1, 3)):
        for epochs in parts:
            learner = make_learner("segmenter", encoder, reconstruction_weight=0.1, max_steps=2 * epochs)
            file = tmp_path / f"{len(parts)}.pt"
            segae.fit(learner, segae.freeze_finetune_phases(1, 2), resume_file=file, resume=file.exists())
        weights.append(learner.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_accuracy_is_over_all_batches() -> None:
    metric, learn = Accuracy(3), type("Learn", (), {})()
    for logits, truth in (([[9, 0, 0], [0, 9, 0]], [0, 1]), ([[0, 0, 9]], [0])):
        learn.pred, learn.yb = torch.tensor(logits).float(), (torch.tensor(truth),)
        metric.accumulate(learn)
    assert metric.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"reconstruction_weight": -1}, "reconstruction_weight must be .*got -1"), ({"loss": "dice"}, "loss.*'dice'")],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(segae.SegaeError, match=message):
        make_learner("classifier", small_encoder("conv_8_4"), **settings)


def test_a_linear_decoder_has_nothing_to_reconstruct_from(tmp_path: Path) -> None:
    model = segae.create_segmenter(small_encoder("test_resnet"), num_classes=2, decoder="linear")
    dls = make_learner("segmenter", small_encoder("test_resnet")).dls
    with pytest.raises(segae.SegaeError, match="decoder must be .*got linear"):
        segae.segmentation_learner(dls, model, reconstruction_weight=0.1)


def test_the_file_of_a_multi_task_run_is_that_of_any_segmenter(tmp_path: Path) -> None:
    data = segae.data.drawn_pets()
    settings = {"encoder": "test_resnet", "image_size": 32, "device": "cpu", "threads": 1, "labels": 8}
    result = segae.finetune(data, out=tmp_path / "run", reconstruction_weight=0.1, max_steps=1, **settings)
    model = segae.load_segmenter(result.path)
    assert set(model.state_dict()) == set(safetensors.torch.load_file(result.path))
