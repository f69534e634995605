"""Activation checkpointing: less is kept, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.models.pretrainer import create_pretrainer
from segae.models.recompute import recompute_activations
from segae.models.segmenter import create_segmenter


def make_segmenter(name: str, decoder: str) -> nn.Module:
    torch.manual_seed(0)
    model = create_segmenter(create_encoder(name)[0], name, decoder, 3)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # saved bytes are compared, and one of the two would keep other masks
    return model.train()


def step(model: nn.Module, *inputs: torch.Tensor) -> int:
    """A forward and a backward pass; returns the bytes that were kept between them."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(*inputs).square().mean()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("decoder", ["unet", "fpn"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_gradients_and_statistics_stay_and_memory_goes(name: str, decoder: str):
    plain = make_segmenter(name, decoder)
    thrifty = copy.deepcopy(plain)
    assert recompute_activations(thrifty) > 4
    image_bchw = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = [step(model, image_bchw) for model in (plain, thrifty)]
    assert kept[1] < 0.5 * kept[0]
    for (key, ours), (same, theirs) in zip(thrifty.named_parameters(), plain.named_parameters(), strict=True):
        assert key == same
        assert torch.equal(ours.grad, theirs.grad), key
    for (key, ours), (_, theirs) in zip(thrifty.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), key  # running statistics counted once, num_batches_tracked too


def test_names_are_the_plain_model_s_and_load_strictly():
    plain, thrifty = make_segmenter("test_resnet", "unet"), make_segmenter("test_resnet", "unet")
    recompute_activations(thrifty)
    assert list(thrifty.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(thrifty.state_dict(), strict=True)


def test_a_copy_computes_with_its_own_weights():
    model = make_segmenter("test_resnet", "unet")
    recompute_activations(model)
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    image_bchw = torch.randn(2, 3, 64, 64)
    assert model(image_bchw).std() == 0
    assert twin(image_bchw).std() > 0


def test_a_second_call_changes_nothing_more():
    model = make_segmenter("test_resnet", "unet")
    assert recompute_activations(model) > 0
    assert recompute_activations(model) == 0


def test_without_gradients_nothing_is_recomputed():
    model = make_segmenter("test_resnet", "unet")
    recompute_activations(model)
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    block = next(module for module in model.encoder.modules() if type(module).__name__ == "BasicBlock")
    block.conv1.register_forward_hook(lambda *_: calls.append(2))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert calls == [2, 1]
    model(torch.randn(2, 3, 64, 64)).mean().backward()
    assert calls == [2, 1, 2, 1, 2]


def test_a_pretraining_model_is_changed_too():
    model = create_pretrainer(create_encoder("test_resnet")[0], "test_resnet", masking="dense", decoder="plain")
    twin = copy.deepcopy(model)
    recompute_activations(twin)
    image_bchw = torch.randn(2, 3, 64, 64)
    kept = [step(each.train(), image_bchw, None) for each in (model, twin)]
    assert kept[1] < 0.7 * kept[0]
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(SegaeError, match="has no encoder"):
        recompute_activations(nn.Linear(2, 2))
