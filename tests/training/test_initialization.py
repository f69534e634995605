"""Clean BatchNorm statistics replace those of corrupted images; an LP-FT head is a linear discriminant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models import create_encoder, create_segmenter
from segae.training.initialization import fit_lpft_head, recalibrate_batchnorm

CPU = torch.device("cpu")


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_recalibrated_statistics_are_those_of_the_clean_images():
    torch.manual_seed(0)
    encoder = create_encoder("test_resnet")
    first, images, inputs = norms(encoder)[0], torch.randn(12, 3, 64, 64) * 3 + 1, []
    with torch.no_grad():
        encoder.train()
        for _ in range(5):  # masked pretraining leaves such statistics behind
            encoder(torch.zeros(4, 3, 64, 64))
    assert first.running_var.max() < 0.7
    first.register_forward_pre_hook(lambda layer, given: inputs.append(given[0].detach()))
    recalibrate_batchnorm(encoder, images.split(4), CPU)
    assert sum(map(len, inputs)) == 12
    variance = torch.stack([batch.var((0, 2, 3), unbiased=True) for batch in inputs]).mean(0)
    torch.testing.assert_close(first.running_mean, torch.cat(inputs).mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first.running_var, variance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("through", [False, True])
def test_recalibration_changes_statistics_of_the_module_alone_and_restores_modes(through):
    torch.manual_seed(0)
    model = create_segmenter("test_resnet", num_classes=2, image_size=64).train()
    model.encoder.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, momenta = [module.training for module in model.modules()], [layer.momentum for layer in norms(model)]
    images = [torch.randn(4, 3, 64, 64)]
    recalibrate_batchnorm(model.encoder, images, CPU, through=model if through else None)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in model.named_buffers() if name.startswith("encoder.")}
    with pytest.raises(ZeroDivisionError):
        recalibrate_batchnorm(model.encoder, (1 // 0 for _ in images), CPU)
    assert [module.training for module in model.modules()] == modes
    assert [layer.momentum for layer in norms(model)] == momenta
    recalibrate_batchnorm(create_encoder("test_convnext"), (1 // 0 for _ in images), CPU)  # no BatchNorm, no pass


def batches() -> list[tuple[Tensor, Tensor]]:
    """Images whose coarse brightness is their class, of three, in noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 3, (8, 1, 4, 4), generator=generator).float()
    mask = nn.functional.interpolate(coarse, size=64, mode="nearest")
    image = mask.expand(-1, 3, -1, -1) + 0.3 * torch.randn(8, 3, 64, 64, generator=generator)
    return [(image[:4], mask[:4, 0].long()), (image[4:], mask[4:, 0].long())]


def segmenter(decoder: str = "unet", classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter(create_encoder("test_resnet"), num_classes=classes, decoder=decoder, image_size=64).train()


LABELS = torch.cat([mask for _, mask in batches()])


def predictions(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(image).argmax(1) for image, _ in batches()])


@pytest.mark.parametrize("decoder", ["unet", "fpn"])  # fpn's head enlarges
def test_the_head_alone_is_changed_and_tells_the_classes_apart(decoder):
    model = segmenter(decoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    fit_lpft_head(model, batches(), 3, CPU)
    assert [module.training for module in model.modules()] == modes
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert (predictions(model) == LABELS).float().mean() > 0.5


def test_the_head_predicts_as_the_linear_discriminant_of_scikit_learn():
    model, features = segmenter(), []
    fit_lpft_head(model, batches(), 3, CPU)
    model.segmentation_head.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    mine = predictions(model).flatten().numpy()
    rows = torch.cat(features).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, LABELS.flatten().numpy()).predict(rows)
    assert np.mean(mine == theirs) > 0.97


def test_unseen_classes_and_pixels_of_no_class_do_no_harm_and_a_segmenter_without_such_a_head_is_refused():
    model = segmenter(classes=4)
    fit_lpft_head(model, [(image, mask.masked_fill(mask == 2, 255)) for image, mask in batches()], 4, CPU)
    assert set(predictions(model).unique().tolist()) == {0, 1}  # neither the ignored class nor an unseen one
    with pytest.raises(SegaeError, match="model .*head"):
        fit_lpft_head(segmenter("linear"), batches(), 3, CPU)
