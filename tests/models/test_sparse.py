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
from segae.models.encoder import build_encoder
from segae.models.sparse import SparseEncoder
from segae.models.visible import VisiblePositions

FAMILIES = ("test_resnet", "test_convnext", "test_efficientnet")
OTHERS = ("test_efficientnet_gn", "test_nfnet", "test_mambaout")  # GroupNorm; excitation, scaled weights; gates
BatchNorm = nn.modules.batchnorm._BatchNorm


@functools.cache
def build_once(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(architecture)


def build(architecture: str) -> nn.Module:
    return copy.deepcopy(build_once(architecture))


def image(count: int = 2, height: int = 64, width: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def mask(patch: int = 32) -> Tensor:
    """Two images of 64 x 96 px with four of six blocks hidden, other ones in each."""
    grid = torch.tensor([[[1, 0, 1], [1, 1, 0]], [[0, 1, 1], [1, 0, 1]]])[:, None].float()
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def shrink(hidden: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(hidden, size=like.shape[-2:], mode="nearest") > 0


@pytest.mark.parametrize("architecture", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("training", [True, False])
def test_hidden_pixels_change_nothing(architecture: str, training: bool) -> None:
    sparse = SparseEncoder(build(architecture)).train(training)
    shown, hidden = image(), mask()
    torch.manual_seed(1)
    expected = sparse(shown, hidden)
    for other in (torch.full_like(shown, torch.nan), image(seed=5) * 100):
        torch.manual_seed(1)
        features = sparse(torch.where(hidden > 0, other, shown), hidden)
        assert all(torch.equal(one, two) for one, two in zip(features, expected, strict=True))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_features_are_zero_where_hidden_and_nowhere_else(architecture: str) -> None:
    encoder = build(architecture)
    features = SparseEncoder(encoder)(image(), mask())
    dense = encoder(image())
    assert [map_bchw.shape for map_bchw in features] == [map_bchw.shape for map_bchw in dense]
    for map_bchw in features:
        if map_bchw.shape[1]:
            zero = (map_bchw == 0).all(dim=1, keepdim=True)
            assert torch.equal(zero, shrink(mask(), map_bchw))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_gradient_of_hidden_pixels_is_exactly_zero(architecture: str) -> None:
    shown = image().requires_grad_()
    features = SparseEncoder(build(architecture))(shown, mask())
    (features[-1].square().sum() + features[-2].square().sum()).backward()
    hidden = mask().expand_as(shown) > 0
    assert (shown.grad[hidden] == 0).all()
    assert shown.grad[~hidden].abs().sum() > 0


def is_spatial(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return max(*module.kernel_size, *module.stride) > 1
    return isinstance(module, (nn.MaxPool2d, nn.AvgPool2d))


@pytest.mark.parametrize("architecture", [*FAMILIES, *OTHERS])
def test_every_spatial_operation_reads_zeros_where_hidden(architecture: str) -> None:
    encoder = build(architecture)
    sparse = SparseEncoder(encoder)
    inputs: list[Tensor] = []

    def record(module, args, output):
        inputs.append(args[0])

    spatial = [module for module in encoder.modules() if is_spatial(module)]
    for module in spatial:
        module.register_forward_hook(record)
    sparse(image(), mask())
    assert len(inputs) == len(spatial) > 5
    for read in inputs:
        hidden = shrink(mask(), read).expand_as(read)
        assert read.shape[-2] * 96 == read.shape[-1] * 64
        assert (read[hidden] == 0).all()
        assert read[~hidden].abs().sum() > 0


@pytest.mark.parametrize("architecture", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("training", [True, False])
def test_with_nothing_hidden_it_is_the_dense_encoder(architecture: str, training: bool) -> None:
    dense = build(architecture).train(training)
    sparse = SparseEncoder(copy.deepcopy(dense))
    torch.manual_seed(1)
    expected = dense(image())
    torch.manual_seed(1)
    features = sparse(image(), torch.zeros(2, 1, 64, 96))
    for one, two in zip(features, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    after, wanted = sparse.encoder.state_dict(), dense.state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)


def test_gradients_are_the_dense_ones_with_nothing_hidden() -> None:
    dense = build("test_efficientnet").double()
    sparse = SparseEncoder(copy.deepcopy(dense))
    shown = image().double()
    weights = torch.randn(2, 64, 2, 3, generator=torch.Generator().manual_seed(3))
    (dense(shown)[-1] * weights).sum().backward()
    (sparse(shown, torch.zeros(2, 1, 64, 96))[-1] * weights).sum().backward()
    for one, two in zip(sparse.encoder.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-9)
    assert next(dense.parameters()).grad.abs().max() > 1e-3


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
    return [map_bchw * ~shrink(hidden, map_bchw) for map_bchw in features]


@pytest.mark.parametrize("architecture", ["test_resnet", "tf_efficientnet_lite0"])
def test_a_naive_implementation_agrees(architecture: str) -> None:
    sparse = SparseEncoder(build(architecture).double())
    reference = copy.deepcopy(sparse.encoder)
    before = copy.deepcopy(sparse.encoder.state_dict())
    features = sparse(image().double(), mask())
    expected = masked_everywhere(reference, image().double(), mask())
    for one, two in zip(features, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    weights = torch.randn(features[-1].shape, generator=torch.Generator().manual_seed(3))
    (features[-1] * weights).sum().backward()
    (expected[-1] * weights).sum().backward()
    weight, wanted = next(sparse.encoder.parameters()), next(reference.parameters())
    torch.testing.assert_close(weight.grad, wanted.grad, rtol=1e-6, atol=1e-9)
    assert wanted.grad.abs().max() > 1e-3
    checked = 0
    for name, module in reference.named_modules():
        if isinstance(module, BatchNorm) and hasattr(module, "seen_mean"):
            momentum = module.momentum
            running = before[f"{name}.running_mean"] * (1 - momentum) + module.seen_mean * momentum
            torch.testing.assert_close(sparse.encoder.get_submodule(name).running_mean, running, rtol=1e-9, atol=1e-9)
            checked += 1
    assert checked > 5


class Patches(nn.Module):
    """A stand-in for an encoder: one vector per 32 px block, then a layer with statistics over positions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer = nn.Conv2d(3, 8, 32, stride=32), layer
        self.output_stride, self.out_channels, self._in_channels = 32, [3, 8], 3

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        return [image_bchw, self.layer(self.embed(image_bchw))]


STATISTICS = {
    "batch": lambda: nn.BatchNorm2d(8),
    "group": lambda: nn.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm2d(8),
    "excitation": lambda: SqueezeExcite(8, rd_channels=4),
    "response": lambda: GlobalResponseNorm(8, channels_last=False),
}


@pytest.mark.parametrize("kind", STATISTICS)
def test_statistics_are_those_of_visible_positions(kind: str) -> None:
    torch.manual_seed(0)
    encoder = Patches(STATISTICS[kind]())
    for parameter in encoder.layer.parameters():
        nn.init.normal_(parameter)
    feature = SparseEncoder(copy.deepcopy(encoder))(image(), mask())[-1]
    embedded = encoder.embed(image())
    visible = ~shrink(mask(), embedded)[:, 0]
    only = torch.stack([embedded[index][:, visible[index]] for index in range(2)])[..., None]
    expected = encoder.layer(only)
    for index in range(2):
        torch.testing.assert_close(feature[index][:, visible[index]], expected[index, ..., 0], rtol=1e-4, atol=1e-5)
    over_all = encoder.layer(embedded) * visible[:, None]
    assert not torch.allclose(feature, over_all, atol=1e-3)


def test_response_normalisation_in_a_real_network() -> None:
    """ConvNeXt V2 keeps its channels last, and its response normalisation starts as the identity."""
    encoder = build("convnextv2_atto")
    layers = [module for module in encoder.modules() if isinstance(module, GlobalResponseNorm)]
    for layer in layers:
        nn.init.normal_(layer.weight)
    sparse, shown, hidden = SparseEncoder(encoder), image(), mask()
    expected = sparse(shown, hidden)[-1]
    assert torch.equal(sparse(torch.where(hidden > 0, torch.nan, shown), hidden)[-1], expected)
    torch.testing.assert_close(sparse(shown, hidden * 0)[-1], encoder(shown)[-1], rtol=1e-3, atol=1e-4)
    assert len(layers) > 5


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_encoder_is_plain_before_and_after(architecture: str) -> None:
    encoder = build(architecture)
    kind, keys, modes = type(encoder), list(encoder.state_dict()), [module.training for module in encoder.modules()]
    sparse = SparseEncoder(encoder)
    assert sparse.encoder is encoder
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    sparse(image(), mask())[-1].square().mean().backward()
    optimizer.step()
    assert type(encoder) is kind
    assert list(encoder.state_dict()) == keys
    assert [module.training for module in encoder.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
    fresh = build(architecture)
    fresh.load_state_dict(encoder.state_dict(), strict=True)
    twin = copy.deepcopy(encoder)
    for other in (fresh, twin):
        assert torch.equal(other.eval()(image())[-1], encoder.eval()(image())[-1])


def test_hooks_are_removed_when_a_pass_fails() -> None:
    encoder = build("test_resnet")
    sparse = SparseEncoder(encoder)
    with pytest.raises(RuntimeError, match="channels"):
        sparse(torch.randn(2, 5, 64, 96), mask())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())
    assert encoder(image())[-1].shape[-2:] == (2, 3)


def test_making_it_changes_no_weight_and_draws_no_random_number() -> None:
    encoder = build("test_efficientnet")
    before, state = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    SparseEncoder(encoder)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Blurred(Patches):
    """Mixes neighbours where no hook can see it."""

    def forward(self, image_bchw: Tensor) -> list[Tensor]:
        return [image_bchw, functional.avg_pool2d(super().forward(image_bchw)[1], 3, 1, 1)]


def test_an_encoder_that_cannot_be_made_sparse_is_refused() -> None:
    with pytest.raises(SegaeError, match="mixes positions outside of its layers.*Use objective mask or a2mim"):
        SparseEncoder(Blurred(nn.Identity()))


def test_a_map_off_the_blocks_is_refused() -> None:
    positions = VisiblePositions(mask(), 32)
    with pytest.raises(SegaeError, match="a map of 5 x 6"):
        positions.gather(torch.zeros(2, 4, 5, 6))
    with pytest.raises(SegaeError, match="not a list"):
        positions.scatter(torch.zeros(2, 4, 7, 1))


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (mask(16), r"a mask of shape \(2, 1, 32, 48\) does not fit images"),
        (functional.pad(mask()[:, :, 16:, :], (0, 0, 0, 16)), "not made of blocks of 32 px.*Use --patch 32"),
        (torch.cat([mask()[:1], torch.zeros(1, 1, 64, 96)]), "one image shows 2 blocks of 32 px and another 6"),
        (torch.ones(2, 1, 64, 96), "hides every pixel"),
    ],
)
def test_masks_are_checked(hidden: Tensor, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        SparseEncoder(build("test_resnet"))(image(), hidden)
    with pytest.raises(SegaeError, match="does not fit an encoder of stride 32"):
        VisiblePositions(mask(24), 32)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_number_of_blocks_that_is_known_changes_no_bit(architecture: str) -> None:
    counted, told = (SparseEncoder(build(architecture)) for _ in range(2))
    losses = [
        sum(map_bchw.square().sum() for map_bchw in features)
        for features in (
            counted(image(), mask()),
            told(image(), mask(), 2),
        )
    ]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for one, other in zip(counted.parameters(), told.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(counted.buffers(), told.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("channels_last", [True, False])
def test_lists_and_maps_are_each_others_inverse(channels_last: bool) -> None:
    positions = VisiblePositions(mask(), 32)
    map_bchw = torch.randn(2, 5, 16, 24, dtype=torch.float64)
    map_bchw = map_bchw.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    listed = positions.gather(map_bchw)
    assert listed.shape == (2, 5, 2 * 8 * 8, 1)
    assert torch.equal(positions.scatter(listed), map_bchw * ~shrink(mask(), map_bchw))
    listed.requires_grad_()
    small = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: positions.scatter(positions.gather(value)), (small,))
