"""``segae.create_detector``: the encoder is frozen, and a detector learns boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import segae


def squares(count: int) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A bright square in noise in each image, and its box."""
    images, targets = [], []
    for place in range(count):
        generator = np.random.default_rng(place)
        x, y = generator.integers(4, 60, 2)
        image = torch.from_numpy(generator.random((3, 96, 96), np.float32)) * 0.3
        image[:, y : y + 32, x : x + 32] += 0.6
        images.append(image)
        targets.append({"boxes": torch.tensor([[x, y, x + 32, y + 32]]).float(), "labels": torch.tensor([1])})
    return images, targets


def test_a_detector_finds_squares_and_never_changes_its_encoder() -> None:
    torch.manual_seed(0)
    model = segae.create_detector(segae.create_encoder("test_resnet"), image_size=96).train()
    before = {name: value.clone() for name, value in model.backbone.encoder.state_dict().items()}
    images, targets = squares(16)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 2e-3)
    losses = []
    for _ in range(8):
        for start in range(0, 16, 8):
            loss = sum(model(images[start : start + 8], targets[start : start + 8]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in model.backbone.encoder.state_dict().items())
    with torch.inference_mode():
        found = model.eval()(images)
    overlaps = [
        float(box_iou(one["boxes"][:1], target["boxes"]).detach())
        for one, target in zip(found, targets, strict=True)
        if len(one["boxes"])
    ]
    assert np.mean(overlaps) > 0.3


@pytest.mark.parametrize(
    ("encoder", "settings", "message"),
    [
        ("conv_8_4", {}, "encoder must .*got conv_8_4"),
        ("test_resnet", {"num_classes": 1}, "num_classes must be an integer >= 2, got 1"),
        ("test_resnet", {"image_size": 100}, "image_size must be a multiple of the stride 32, got 100"),
    ],
)
def test_what_cannot_be_a_detector_is_refused(encoder: str, settings: dict[str, int], message: str) -> None:
    with pytest.raises(segae.SegaeError, match=message):
        segae.create_detector(segae.create_encoder(encoder), **settings)
