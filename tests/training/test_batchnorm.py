"""Trap 9: statistics of corrupted images are replaced by those of clean ones."""

from __future__ import annotations

import torch

from segae.models.encoder import create_encoder
from segae.training.batchnorm import recalibrate_batchnorm

CPU = torch.device("cpu")


def test_recalibrated_statistics_are_those_of_the_clean_images():
    encoder, _ = create_encoder("test_resnet")
    first = next(layer for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    images = torch.randn(12, 3, 64, 64) * 3 + 1
    inputs: list[torch.Tensor] = []
    with torch.no_grad():
        encoder.train()
        for _ in range(5):  # what masked pretraining leaves behind
            encoder(torch.zeros(4, 3, 64, 64))
    assert first.running_var.max() < 0.7
    hook = first.register_forward_pre_hook(lambda layer, args: inputs.append(args[0].detach()))
    seen = recalibrate_batchnorm(encoder, images.split(4), CPU)
    hook.remove()
    assert seen == 12
    per_batch = [batch.var((0, 2, 3), unbiased=True) for batch in inputs]
    torch.testing.assert_close(first.running_mean, torch.cat(inputs).mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(first.running_var, torch.stack(per_batch).mean(0), rtol=1e-3, atol=1e-5)


def test_recalibration_changes_statistics_only_and_restores_modes():
    encoder, _ = create_encoder("test_resnet")
    encoder.train()
    weights = {name: value.clone() for name, value in encoder.named_parameters()}
    momenta = [layer.momentum for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    recalibrate_batchnorm(encoder, [torch.randn(4, 3, 64, 64)], CPU)
    assert all(torch.equal(value, weights[name]) for name, value in encoder.named_parameters())
    assert all(module.training for module in encoder.modules())
    assert momenta == [layer.momentum for layer in encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def test_an_encoder_without_batchnorm_is_left_alone():
    encoder, _ = create_encoder("test_convnext")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert recalibrate_batchnorm(encoder, [torch.randn(2, 3, 64, 64)], CPU) == 0
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
