"""Weight decay is for matrices and kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segae.models.hierarchical import MaskTokens
from segae.training.optimizer import AdamW, decays_in


def test_matrices_and_kernels_move_as_with_torch_and_vectors_as_without_decay():
    torch.manual_seed(0)
    start = [torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(2, 5), torch.randn(1, 4, 1, 1)]
    results = {}
    for name, optimizer, decay in (("ours", AdamW, 0.5), ("torch", torch.optim.AdamW, 0.5), ("none", AdamW, 0.0)):
        parameters = [nn.Parameter(value.clone()) for value in start]
        steps = optimizer(parameters, lr=0.01, weight_decay=decay)
        for turn in range(5):
            for index, parameter in enumerate(parameters):
                generator = torch.Generator().manual_seed(10 * turn + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            steps.step()
        results[name] = [parameter.detach() for parameter in parameters]
        assert steps.param_groups[0]["weight_decay"] == decay
    for index, kind in enumerate(["torch", "none", "torch", "none"]):
        torch.testing.assert_close(results["ours"][index], results[kind][index])
        other = {"torch": "none", "none": "torch"}[kind]
        assert not torch.allclose(results["ours"][index], results[other][index], atol=1e-3)


def test_what_has_no_gradient_does_not_shrink():
    parameter = nn.Parameter(torch.ones(2, 2))
    AdamW([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(parameter, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("parameter", "decays"),
    [
        (nn.Conv2d(8, 8, 3, groups=8).weight, True),
        (nn.Conv2d(8, 4, 1).weight, True),
        (nn.Linear(3, 2).weight, True),
        (nn.Linear(3, 2).bias, False),
        (nn.BatchNorm2d(3).weight, False),
        (MaskTokens([3]).tokens_1c11[0], False),
        (nn.Parameter(torch.ones(())), False),
    ],
)
def test_vectors_do_not_decay(parameter, decays):
    assert decays_in(parameter) == decays
