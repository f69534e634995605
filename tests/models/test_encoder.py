"""The contract between the stages, and its way into other libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import safe_open
from torch import nn

from segae.errors import SegaeError
from segae.models.encoder import (
    EncoderDescription,
    create_encoder,
    load_encoder,
    require_size,
    save_encoder,
)
from segae.models.segmenter import create_segmenter

TINY = ("test_resnet", "test_convnext", "test_efficientnet")


def image(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def changed(encoder: nn.Module) -> nn.Module:
    """Running statistics and weights that no fresh encoder has."""
    torch.manual_seed(1)
    encoder.train()(image())
    return encoder.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module, EncoderDescription]:
    encoder, description = create_encoder("test_resnet")
    description = replace(
        description, init="ae:denoise", pretraining={"objective": "denoise", "images": 40, "final_loss": 0.25}
    )
    save_encoder(tmp_path / "encoder.safetensors", changed(encoder), description)
    return tmp_path / "encoder.safetensors", encoder, description


@pytest.mark.parametrize("architecture", TINY)
def test_an_encoder_gives_six_maps_down_to_stride_32(architecture: str) -> None:
    encoder, description = create_encoder(architecture)
    features = encoder(image())
    assert [map_.shape[1] for map_ in features] == encoder.out_channels
    assert [map_.shape[-1] for map_ in features] == [64, 32, 16, 8, 4, 2]
    assert encoder.output_stride == 32
    assert description.init == "random"


def test_description_carries_timms_normalisation() -> None:
    _, lite = create_encoder("tf_efficientnet_lite0")
    assert (lite.mean, lite.std, lite.image_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    _, resnet = create_encoder("test_resnet")
    config = timm.get_pretrained_cfg("test_resnet")
    assert (resnet.mean, resnet.std, resnet.image_size) == (config.mean, config.std, config.input_size[-1])


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    encoder, description = create_encoder("test_resnet", in_channels=channels)
    assert encoder(image(channels))[-1].shape == (2, 96, 2, 2)
    assert len(description.mean) == len(description.std) == channels


def test_random_is_random_and_follows_the_seed() -> None:
    weights = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        weights.append(create_encoder("test_resnet")[0].state_dict()["model.conv1.0.weight"])
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_an_unknown_architecture_names_close_ones() -> None:
    with pytest.raises(SegaeError, match=r'"resnet19".*Did you mean .*resnet18'):
        create_encoder("resnet19")


@pytest.mark.parametrize("architecture", ["test_vit", "test_coatnet"])
def test_a_network_of_one_stride_or_one_size_is_refused(architecture: str) -> None:
    with pytest.raises(SegaeError, match=f'"{architecture}" cannot be an encoder.*convolutional'):
        create_encoder(architecture)


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(SegaeError, match='"imagenette" is no initialisation'):
        create_encoder("test_resnet", "imagenette")


@pytest.mark.parametrize("architecture", TINY)
def test_a_file_gives_back_the_encoder(tmp_path: Path, architecture: str) -> None:
    encoder, description = create_encoder(architecture)
    save_encoder(tmp_path / "e.safetensors", changed(encoder), description)
    loaded, read = load_encoder(tmp_path / "e.safetensors")
    assert read == description
    assert torch.equal(loaded.eval()(image())[-1], encoder(image())[-1])


def test_the_description_is_in_the_header_and_beside(saved) -> None:
    path, _, description = saved
    assert load_encoder(path)[1] == description
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["description"])
    assert header == json.loads(path.with_suffix(".json").read_text())
    assert header["pretraining"]["images"] == 40


def test_a_file_is_an_init(saved) -> None:
    path, encoder, description = saved
    loaded, read = create_encoder("test_resnet", str(path))
    assert read == description
    assert torch.equal(loaded.eval()(image())[-1], encoder(image())[-1])


def test_a_file_of_another_architecture_names_both(saved) -> None:
    with pytest.raises(SegaeError, match=r"architecture test_resnet, but test_convnext was asked"):
        create_encoder("test_convnext", str(saved[0]))


def test_a_file_of_other_channels_names_both(saved) -> None:
    with pytest.raises(SegaeError, match=r"in_channels 3, but 1 was asked"):
        create_encoder("test_resnet", str(saved[0]), in_channels=1)


def leave(_: dict) -> None: ...


def rewrite(path: Path, change_state=leave, change_metadata=leave) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    state = safetensors.torch.load_file(path)
    change_state(state)
    change_metadata(metadata)
    safetensors.torch.save_file(state, path, metadata=metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("model.layer4.0.conv1.weight"),
        lambda state: state.update({"model.extra": torch.zeros(1)}),
        lambda state: state.update({"model.conv1.0.weight": torch.zeros(1, 3, 3, 3)}),
        lambda state: state.update({"model.conv1.0.weigth": state.pop("model.conv1.0.weight")}),
    ],
    ids=["missing", "extra", "shape", "misspelt"],
)
def test_one_damaged_key_is_an_error(saved, change) -> None:
    rewrite(saved[0], change_state=change)
    with pytest.raises(SegaeError, match=r"encoder.safetensors does not fit"):
        load_encoder(saved[0])


def edit_description(**changes) -> object:
    def change(metadata: dict[str, str]) -> None:
        metadata["description"] = json.dumps({**json.loads(metadata["description"]), **changes})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata: metadata.clear(), "its header has no description"),
        (lambda metadata: metadata.update(kind="segmenter"), "its kind is segmenter"),
        (lambda metadata: metadata.update(description="{"), "description in the header of .* cannot be read"),
        (edit_description(colour="red"), "fields missing or unknown: colour"),
        (edit_description(architecture="resnet19"), "no network called"),
    ],
)
def test_a_file_without_a_usable_description_is_refused(saved, change, message: str) -> None:
    rewrite(saved[0], change_metadata=change)
    with pytest.raises(SegaeError, match=message):
        load_encoder(saved[0])


@pytest.fixture(params=["test_resnet", "test_convnext", "test_efficientnet", "tf_efficientnet_lite0", "convnext_atto"])
def file_of(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, list[torch.Tensor]]:
    encoder, description = create_encoder(request.param)
    save_encoder(tmp_path / "encoder.safetensors", changed(encoder), description)
    return request.param, tmp_path / "encoder.safetensors", encoder(image())


def test_five_lines_into_plain_timm(file_of) -> None:
    name, path, expected = file_of
    state = safetensors.torch.load_file(path)
    state = {key.removeprefix("model."): value for key, value in state.items()}
    model = timm.create_model(name, features_only=True, pretrained=False)
    model.load_state_dict(state, strict=True)
    features = model.eval()(image())
    assert all(torch.equal(*pair) for pair in zip(features, expected[-len(features) :], strict=True))


def test_five_lines_into_smp(file_of) -> None:
    name, path, expected = file_of
    state = safetensors.torch.load_file(path)
    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3)
    model.encoder.load_state_dict(state, strict=True)
    assert all(torch.equal(*pair) for pair in zip(model.eval().encoder(image()), expected, strict=True))


def test_five_lines_into_the_segmenter(file_of) -> None:
    _, path, expected = file_of
    encoder, description = load_encoder(path)
    model = create_segmenter(encoder, description.architecture, "unet", classes=3)
    assert all(torch.equal(*pair) for pair in zip(model.eval().encoder(image()), expected, strict=True))
    assert model(image()).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("size", "choice"), [(100, "Use 96 or 128."), (16, "Use 32."), (0, "Use 32.")])
def test_an_image_size_off_the_stride_names_the_next(size: int, choice: str) -> None:
    with pytest.raises(SegaeError, match=f"image size {size} .*stride 32.*{choice}"):
        require_size(size, 32)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_multiples_of_the_stride_pass(size: int) -> None:
    require_size(size, 32)
