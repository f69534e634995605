"""No hidden pixel reaches anything, visible ones are treated as a dense encoder treats them, and it stays one."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from timm.layers import SqueezeExcite
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.models import create_encoder
from segae.models.spark import VisiblePositions, encode_visible, find_spatial_modules

FAMILIES = ("test_resnet", "test_convnext", "test_efficientnet")
OTHERS = ("test_efficientnet_gn", "test_nfnet", "test_mambaout")  # GroupNorm; excitation, scaled weights; gates
BatchNorm = nn.modules.batchnorm._BatchNorm


@functools.cache
def build_once(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return create_encoder(architecture)


def build(architecture: str) -> nn.Module:
    return copy.deepcopy(build_once(architecture))


def encode(encoder: nn.Module, images: Tensor, hidden: Tensor) -> list[Tensor]:
    return encode_visible(encoder, find_spatial_modules(encoder), images, hidden)


def image(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


def mask(patch: int = 32) -> Tensor:
    """Two images of 64 x 96 px with four of six blocks hidden, other ones in each."""
    grid = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 1, 1], [1, 0, 1]]])[:, None].float()
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def shrink(hidden: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(hidden, size=like.shape[-2:], mode="nearest") > 0


@pytest.mark.parametrize("architecture", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_change_nothing_and_leave_zeros(architecture: str, training: bool) -> None:
    encoder = build(architecture).train(training)
    torch.manual_seed(1)
    expected = encode(encoder, image(), mask())
    for other in (torch.full_like(image(), torch.nan), image(seed=5) * 100):
        torch.manual_seed(1)
        features = encode(encoder, torch.where(mask() > 0, other, image()), mask())
        assert all(torch.equal(one, two) for one, two in zip(features, expected, strict=True))
    for one in (one for one in expected if one.shape[1]):
        assert torch.equal((one == 0).all(dim=1, keepdim=True), shrink(mask(), one))


@pytest.mark.parametrize("architecture", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("training", [True, False])
def test_with_nothing_hidden_it_is_the_dense_encoder(architecture: str, training: bool) -> None:
    dense = build(architecture).train(training)
    sparse = copy.deepcopy(dense)
    torch.manual_seed(1)
    expected = dense(image())
    torch.manual_seed(1)
    features = encode(sparse, image(), torch.zeros(2, 1, 64, 96))
    for one, two in zip(features, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    after = sparse.state_dict()
    for name, tensor in dense.state_dict().items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


def masked_everywhere(encoder: nn.Module, shown: Tensor, hidden: Tensor) -> list[Tensor]:
    """The reference: hidden positions zeroed after every layer, BatchNorm over the others, by boolean indices."""

    def after(module, args, output):
        if output.shape[-1] == 1:
            return output
        visible = ~shrink(hidden, output)
        if isinstance(module, BatchNorm):
            values = args[0].permute(0, 2, 3, 1)[visible[:, 0]]
            mean, variance = values.mean(0), values.var(0, unbiased=False)
            module.seen_mean = mean.detach()
            normed = (args[0] - mean[:, None, None]) / (variance[:, None, None] + module.eps).sqrt()
            output = normed * module.weight[:, None, None] + module.bias[:, None, None]
            output = module.act(output) if hasattr(module, "act") else output
        return output * visible

    for module in encoder.modules():
        if isinstance(module, BatchNorm) or not list(module.children()):
            module.register_forward_hook(after)
    features = encoder(shown * (hidden == 0))
    return [one * ~shrink(hidden, one) for one in features]


@pytest.mark.parametrize("architecture", ["test_resnet", "tf_efficientnet_lite0"])
def test_a_naive_implementation_agrees(architecture: str) -> None:
    sparse = build(architecture).double()
    reference, before = copy.deepcopy(sparse), copy.deepcopy(sparse.state_dict())
    features = encode(sparse, image().double(), mask())
    expected = masked_everywhere(reference, image().double(), mask())
    for one, two in zip(features, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    weights = torch.randn(features[-1].shape, generator=torch.Generator().manual_seed(3))
    (features[-1] * weights).sum().backward()
    (expected[-1] * weights).sum().backward()
    weight, other = next(sparse.parameters()), next(reference.parameters())
    torch.testing.assert_close(weight.grad, other.grad, rtol=1e-6, atol=1e-9)
    assert other.grad.abs().max() > 1e-3
    norms = [(name, module) for name, module in reference.named_modules() if hasattr(module, "seen_mean")]
    assert len(norms) > 5
    for name, module in norms:
        running = before[f"{name}.running_mean"] * (1 - module.momentum) + module.seen_mean * module.momentum
        torch.testing.assert_close(sparse.get_submodule(name).running_mean, running, rtol=1e-9, atol=1e-9)


class Patches(nn.Module):
    """An encoder of one vector per 32 px block, then a layer with statistics over positions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer = nn.Conv2d(3, 8, 32, stride=32), layer
        self.output_stride, self.out_channels, self._in_channels = 32, [3, 8], 3

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, self.layer(self.embed(images))]


def test_statistics_are_those_of_visible_positions() -> None:
    torch.manual_seed(0)
    response = GlobalResponseNorm(8, channels_last=False)
    encoder = Patches(nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(2, 8), SqueezeExcite(8, rd_channels=4), response))
    for parameter in encoder.layer.parameters():
        nn.init.normal_(parameter)
    feature = encode(copy.deepcopy(encoder), image(), mask())[-1]
    embedded = encoder.embed(image())
    visible = ~shrink(mask(), embedded)[:, 0]
    expected = encoder.layer(torch.stack([embedded[i][:, visible[i]] for i in range(2)])[..., None])
    for i in range(2):
        torch.testing.assert_close(feature[i][:, visible[i]], expected[i, ..., 0], rtol=1e-4, atol=1e-5)


def test_making_it_draws_no_random_number_and_a_failed_pass_leaves_no_hook() -> None:
    encoder = build("test_efficientnet")
    before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    find_spatial_modules(encoder)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="channels"):
        encode(encoder, torch.randn(2, 5, 64, 96), mask())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
    assert encoder(image())[-1].shape[-2:] == (2, 3)


class Blurred(Patches):
    """Mixes neighbors where no hook can see it."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, functional.avg_pool2d(super().forward(images)[1], 3, 1, 1)]


def test_an_encoder_that_cannot_be_made_sparse_is_refused() -> None:
    with pytest.raises(SegaeError, match="encoder must mix positions inside of its layers"):
        find_spatial_modules(Blurred(nn.Identity()))
    positions = VisiblePositions(mask(), 32)
    with pytest.raises(SegaeError, match=r"encoder must make maps .*got \(2, 4, 5, 6\)"):
        positions.gather(torch.zeros(2, 4, 5, 6))
    with pytest.raises(SegaeError, match=r"encoder must keep lists .*got \(2, 4, 7, 1\)"):
        positions.scatter(torch.zeros(2, 4, 7, 1))


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (mask(16), r"mask must be .*\(2, 3, 64, 96\), got \(2, 1, 32, 48\)"),
        (functional.pad(mask()[:, :, 16:, :], (0, 0, 0, 16)), "patch_size must be a multiple of 32"),
        (torch.cat([mask()[:1], torch.zeros(1, 1, 64, 96)]), "mask must show .*got 2 to 6"),
        (torch.ones(2, 1, 64, 96), "mask must show .*got 0 to 0"),
    ],
)
def test_masks_are_checked(hidden: Tensor, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        encode(build("test_resnet"), image(), hidden)
