"""Prediction and evaluation on arrays: what the model knows is taken from it, and it is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.evaluation import evaluate_at_mask_size, evaluate_model, predict_logits, predict_masks, resize_logits
from segae.models import Segmenter, create_encoder, create_segmenter
from tests.fabricate import draw

CLASSES, MEAN, STD = ("background", "pet", "border"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    drawn = [draw(np.random.default_rng(index), 64, 3) for index in range(5)]
    return np.stack([image for image, _ in drawn]), np.stack([mask for _, mask in drawn])


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return create_segmenter(create_encoder("test_resnet"), num_classes=CLASSES, image_size=64)


class Painter(nn.Module):
    """Logits that are the normalized channels: the brightest one is the class."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_masks_are_those_of_a_plain_loop_for_any_batch_size(model, pairs, batch_size):
    images, _ = pairs
    model.eval()
    info = model.info.encoder
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (info.mean, info.std))
    with torch.no_grad():
        normalized = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = torch.cat([model(image[None]) for image in normalized])
    logits = torch.cat(list(predict_logits(model, images, batch_size=batch_size)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert np.mean(predict_masks(model, images, batch_size=batch_size) == expected.argmax(1).numpy()) > 0.999


def test_statistics_that_are_given_take_the_place_of_the_model_s(pairs):
    expected = (pairs[0] / 255 - np.array(MEAN)) / np.array(STD)
    assert (predict_masks(Painter(), pairs[0], mean=MEAN, std=STD) == expected.argmax(-1)).mean() > 0.999


def test_every_module_keeps_its_mode_and_no_gradient_is_kept(model, pairs):
    model.train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = predict_logits(model, pairs[0], batch_size=2)
    assert not next(batches).requires_grad
    assert [module.training for module in model.modules()] == modes  # also between two batches
    assert len(list(batches)) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_have_the_classes_of_the_model_and_the_names_of_the_images(model, pairs):
    images, masks = pairs
    names = [f"image_{index}" for index in range(5)]
    scores = evaluate_model(model, images, masks, batch_size=2, names=names)
    assert scores.classes == CLASSES
    assert scores.per_image["name"].tolist() == names
    assert scores.pixel_accuracy == pytest.approx(np.mean(predict_masks(model, images) == masks))
    assert predict_masks(model, images[:0]).shape == (0, 64, 64)
    renamed = evaluate_model(model, images, masks, classes=("a", "b", "c"), batch_size=5)
    assert renamed.iou == dict(zip("abc", scores.iou.values(), strict=True))


def test_at_the_size_of_each_mask_logits_are_resized_and_not_labels(model, pairs):
    images, masks = pairs
    sizes = [(64, 64), (50, 30), (40, 100), (128, 64), (7, 7)]
    resized = [np.array(Image.fromarray(mask).resize(size)) for mask, size in zip(masks, sizes, strict=True)]
    scores = evaluate_at_mask_size(model, images, iter(resized), batch_size=2, names="abcde")
    logits = torch.cat(list(predict_logits(model, images)))
    large = [resize_logits(one, *mask.shape).argmax(0).numpy() for one, mask in zip(logits, resized, strict=True)]
    right = np.concatenate([(one == mask).ravel() for one, mask in zip(large, resized, strict=True)])
    assert scores.pixel_accuracy == pytest.approx(right.mean())
    assert scores.per_image["name"].tolist() == list("abcde")


WRONG = [
    ({"images": np.zeros((5, 64, 64, 3), np.float32)}, "images .*float32"),
    ({"images": np.zeros((5, 64, 64, 4), np.uint8)}, "images .*3 channels.*4"),
    ({"images": np.zeros((64, 64, 3), np.uint8), "masks": np.zeros((64, 64))}, "images"),
    ({"masks": np.zeros((3, 64, 64), np.uint8)}, r"masks .*5.*3"),
    ({"masks": np.full((5, 64, 64), 9, np.uint8)}, "truth .*9"),
    ({"masks": np.zeros((5, 32, 32), np.uint8)}, r"prediction .*\(5, 32, 32\)"),
    ({"images": np.zeros((0, 64, 64, 3), np.uint8), "masks": np.zeros((0, 64, 64), np.uint8)}, "images .*0"),
    ({"batch_size": 0}, "batch_size .*0"),
    ({"model": Painter(), "classes": CLASSES}, "mean and std .*Painter"),
    ({"model": Painter(), "mean": MEAN, "std": STD}, "classes .*Painter"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_cannot_be_scored_is_an_error_that_names_the_argument(model, pairs, change, message):
    arguments = {"model": model, "images": pairs[0], "masks": pairs[1]} | change
    with pytest.raises(SegaeError, match=message):
        evaluate_model(**arguments)
