"""Encoders: built, described, saved, and loaded by segae, by plain timm and by plain smp."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from segae import models
from segae.errors import SegaeError

TINY = ("test_resnet", "test_convnext", "test_efficientnet")
METHODS = {"denoise": "sigma", "spark": "patch_size", "pseudo_masks": "source", "reconstruct": None}


def images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


def used(name: str) -> models.Encoder:
    """An encoder with running statistics that no fresh one has."""
    torch.manual_seed(1)
    encoder = models.create_encoder(name)
    encoder.train()(images())
    return encoder.eval()


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_an_encoder_gives_six_maps_down_to_stride_32(name: str) -> None:
    encoder = models.create_encoder(name)
    features = encoder(images())
    assert [one.shape[1] for one in features] == encoder.out_channels
    assert [one.shape[-1] for one in features] == [64, 32, 16, 8, 4, 2]
    assert encoder.output_stride == 32


def test_an_encoder_knows_itself() -> None:
    info = models.create_encoder("tf_efficientnet_lite0").info
    assert (info.mean, info.std, info.image_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    info, config = models.create_encoder("test_resnet").info, timm.get_pretrained_cfg("test_resnet")
    assert (info.mean, info.std, info.image_size) == (config.mean, config.std, config.input_size[-1])
    assert (info.architecture, info.in_channels, info.weights) == ("test_resnet", 3, models.Weights())
    assert not info.weights.pretrained


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels: int) -> None:
    encoder = models.create_encoder("test_resnet", in_channels=channels)
    assert encoder(images(channels))[-1].shape == (2, 96, 2, 2)
    assert encoder.info.in_channels == len(encoder.info.mean) == len(encoder.info.std) == channels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "name must be .*'resnet19'.*resnet18"),
        ({"name": "test_vit"}, "name must be a convolutional network.*'test_vit'"),
        ({"name": "test_coatnet"}, "name must be a convolutional network.*'test_coatnet'"),
        ({"name": None}, "name must be"),
        ({"name": "test_resnet", "in_channels": 0}, "in_channels must be .*, got 0"),
        (
            {"name": "test_resnet", "weights": "imagenette"},
            "weights must be random, imagenet, .*'imagenette'.*imagenet",
        ),
        ({"name": "test_resnet", "weights": "randon"}, "got 'randon'; did you mean random"),
        ({"name": "resnet18", "weights": "pets_pseudo_masks"}, "name must be tf_efficientnet_lite0 .*, got 'resnet18'"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        models.create_encoder(**arguments)


@pytest.mark.parametrize("name", TINY)
def test_a_file_gives_back_the_encoder_without_its_name(tmp_path: Path, name: str) -> None:
    encoder = used(name)
    info = replace(
        encoder.info, weights=models.Weights("imagenet", "denoise", {"sigma": 0.2}), pretraining={"images": 40}
    )
    path = models.save_encoder(encoder, tmp_path / "e.safetensors", info=info)
    assert encoder.info.pretraining == {}
    for loaded in (
        models.load_encoder(path),
        models.create_encoder(weights=path),
        models.create_encoder(name, weights=str(path)),
    ):
        assert loaded.info == info
        assert torch.equal(loaded.eval()(images())[-1], encoder(images())[-1])


@pytest.mark.parametrize("name", [*TINY, "tf_efficientnet_lite0", "convnext_atto", "regnetx_002"])
def test_the_file_loads_into_plain_timm_plain_smp_and_a_segmenter(tmp_path: Path, name: str) -> None:
    encoder = used(name)
    path, expected = models.save_encoder(encoder, tmp_path / "encoder.safetensors"), encoder(images())
    state = safetensors.torch.load_file(path)
    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3)
    model.encoder.load_state_dict(dict(state), strict=True)
    assert same(model.eval().encoder(images()), expected)
    segmenter = models.create_segmenter(path, num_classes=3)
    assert same(segmenter.eval().encoder(images()), expected)
    state = {key.removeprefix("model."): value for key, value in state.items()}
    network = timm.create_model(name, features_only=True, pretrained=False)
    network.load_state_dict(state, strict=True)
    features = network.eval()(images())
    assert same(features, expected[-len(features) :])


def test_a_dilated_copy_has_the_same_weights_and_draws_no_random_number() -> None:
    encoder, state = used("test_resnet"), torch.get_rng_state()
    dilated = encoder.with_stride(8)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(list(dilated.state_dict().values()), list(encoder.state_dict().values()))
    assert dilated(images())[-1].shape[-1] == 8
    assert dilated.info == encoder.info
    assert encoder.with_stride(32) is encoder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("random", models.Weights()),
        ("imagenet", models.Weights("imagenet")),
        ("runs/a.safetensors", models.Weights("runs/a.safetensors")),
        ("random+spark", models.Weights("random", "spark")),
        ("imagenet+denoise:0.2", models.Weights("imagenet", "denoise", {"sigma": 0.2})),
        ("random+spark:32+decoder", models.Weights("random", "spark", {"patch_size": 32}, "encoder+decoder")),
        (
            "imagenet+pseudo_masks:features+decoder",
            models.Weights("imagenet", "pseudo_masks", {"source": "features"}, "encoder+decoder"),
        ),
        ("pets_pseudo_masks+decoder", models.Weights("pets_pseudo_masks", transfer="encoder+decoder")),
        ("imagenet+denoise+spark", models.Weights("imagenet+denoise", "spark")),
    ],
)
def test_weights_are_read_from_text_and_written_as_it(text: str, expected: models.Weights) -> None:
    weights = models.Weights.parse(text, METHODS)
    assert weights == expected
    assert str(weights) == text
    assert weights.pretrained == (text != "random")
    assert weights.from_imagenet == text.startswith("imagenet")
    assert hash(weights) == hash(expected)


def test_a_file_whose_name_looks_like_weights_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a+spark").write_text("")
    assert models.Weights.parse("a+spark", METHODS) == models.Weights("a+spark")
    assert models.Weights.parse("a+spark+decoder", METHODS) == models.Weights("a+spark", transfer="encoder+decoder")
    assert models.Weights.parse("a+spark+denoise", METHODS) == models.Weights("a+spark", "denoise")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random+sparc", "method must be .*'sparc'.*spark"),
        ("spark", r"weights must be .*random\+spark.*'spark'"),
        ("+decoder", r"weights must be .*'\+decoder'"),
        ("+spark", r"weights must be .*random\+spark.*'\+spark'"),
        ("random+reconstruct:3", "no value .*reconstruct"),
    ],
)
def test_weights_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        models.Weights.parse(text, METHODS)


@pytest.mark.parametrize(("size", "choice"), [(100, "96 or 128"), (16, "32"), (0, "32")])
def test_an_image_size_off_the_stride_names_the_next(size: int, choice: str) -> None:
    with pytest.raises(SegaeError, match=f"image_size must be .* 32, got {size}; use {choice}"):
        models.require_image_size(size, 32)
    models.require_image_size(224, 32)


def test_encoders_are_listed_by_pattern() -> None:
    assert "tf_efficientnet_lite0" in models.list_encoders("*lite*")
    assert "vit_base_patch16_224" not in models.list_encoders("*")
    assert any(name.startswith("resnet18.") for name in models.list_encoders("resnet18*", pretrained=True))


def make_segmenter(name: str, decoder: str) -> models.Segmenter:
    torch.manual_seed(0)
    model = models.create_segmenter(name, num_classes=3, decoder=decoder)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0  # saved bytes are compared, and one of the two would keep other masks
    return model.train()


def step(model: nn.Module) -> int:
    """A forward and a backward pass; returns the bytes that were kept between them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(images()).square().mean()
    loss.backward()
    return sum(kept.values())


def assert_same_step(one: nn.Module, other: nn.Module) -> None:
    for (name, ours), (same, theirs) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), (_, theirs) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # running statistics counted once, num_batches_tracked too


@pytest.mark.parametrize("decoder", ["unet", "fpn"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_gradients_and_statistics_stay_and_memory_goes(name: str, decoder: str) -> None:
    plain = make_segmenter(name, decoder)
    thrifty = copy.deepcopy(plain)
    assert models.set_gradient_checkpointing(thrifty) > 4
    kept = [step(model) for model in (plain, thrifty)]
    assert kept[1] < 0.5 * kept[0]
    assert_same_step(thrifty, plain)
    assert models.set_gradient_checkpointing(thrifty) == 0


def test_the_model_can_be_pickled_copied_and_saved(tmp_path) -> None:
    model = make_segmenter("test_resnet", "unet")
    models.set_gradient_checkpointing(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = [torch.load(file, weights_only=False), copy.deepcopy(model)]
    for twin in twins:
        assert models.set_gradient_checkpointing(twin) == 0
        step(twin)
    step(model)
    for twin in twins:
        assert_same_step(twin, model)
    path = models.save_segmenter(model, tmp_path / "s.safetensors")
    assert list(models.load_segmenter(path).state_dict()) == list(model.state_dict())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert model(images()).std() == 0
    assert all(twin(images()).std() > 0 for twin in twins)


def test_models_that_it_does_not_suit_are_refused() -> None:
    with pytest.raises(SegaeError, match="model must have an encoder.*Linear"):
        models.set_gradient_checkpointing(nn.Linear(2, 2))
    with pytest.raises(SegaeError, match="masking must be dense .*, got sparse"):
        models.set_gradient_checkpointing(
            models.build_autoencoder(models.create_encoder("test_resnet"), masking="sparse")
        )
