"""A fitted head says what a linear discriminant of the decoder's features would, and nothing else moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.models.segmenter import create_segmenter
from segae.training.fitted_head import fit_head

CPU = torch.device("cpu")


def batches(classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Images whose coarse brightness is their class, in noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, classes, (8, 1, 4, 4), generator=generator).float()
    mask = nn.functional.interpolate(coarse, size=64, mode="nearest")
    image = mask.expand(-1, 3, -1, -1) + 0.3 * torch.randn(8, 3, 64, 64, generator=generator)
    return [(image[:4], mask[:4, 0].long()), (image[4:], mask[4:, 0].long())]


def segmenter(decoder: str = "unet", classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    encoder, _ = create_encoder("test_resnet", "random")
    return create_segmenter(encoder, "test_resnet", decoder, classes).train()


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float(torch.stack([(model(image).argmax(1) == mask).float().mean() for image, mask in batches()]).mean())


@pytest.mark.parametrize("decoder", ["unet", "fpn"])
def test_the_head_alone_is_changed_and_tells_the_classes(decoder: str) -> None:
    model = segmenter(decoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    at_random = accuracy(model)
    model.train()
    fit_head(model, batches(), 3, CPU)
    assert model.training
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert accuracy(model) > max(at_random, 1 / 3) + 0.15


def test_it_answers_as_scikit_learn_does() -> None:
    model = segmenter()
    fit_head(model, batches(), 3, CPU)
    features: list[Tensor] = []
    model.segmentation_head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    model.eval()
    with torch.no_grad():
        mine = torch.cat([model(image).argmax(1) for image, _ in batches()]).flatten().numpy()
    rows = torch.cat(features).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    labels = torch.cat([mask for _, mask in batches()]).flatten().numpy()
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, labels).predict(rows)
    assert np.mean(mine == theirs) > 0.97


def test_a_class_that_no_image_shows_and_pixels_of_no_class_do_no_harm() -> None:
    model = segmenter(classes=4)
    odd = [(image, mask.masked_fill(mask == 2, 255)) for image, mask in batches()]
    fit_head(model, odd, 4, CPU)
    model.eval()
    with torch.no_grad():
        said = torch.cat([model(image).argmax(1) for image, _ in batches()])
    assert set(said.unique().tolist()) == {0, 1}  # neither the class of the pixels that were left out nor one unseen


def test_a_segmenter_without_such_a_head_is_refused() -> None:
    with pytest.raises(SegaeError, match="Leave --fitted-head out"):
        fit_head(segmenter("linear"), batches(), 3, CPU)
