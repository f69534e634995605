"""Every decoder takes the encoder's weights whole and gives logits per pixel; predictions come at the image's size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models import Segmenter, create_encoder, create_segmenter, list_decoders, load_segmenter, save_segmenter
from tests.fabricate import draw, save


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def build(decoder: str = "unet", encoder: str = "test_resnet", **choices) -> Segmenter:
    torch.manual_seed(0)
    return create_segmenter(encoder, num_classes=3, decoder=decoder, **{"image_size": 64, **choices})


@pytest.mark.parametrize("decoder", list_decoders())
def test_every_decoder_starts_from_the_given_encoder_and_leaves_it(decoder: str) -> None:
    encoder, side = create_encoder("test_resnet"), 128 if decoder == "pan" else 64
    model = create_segmenter(encoder, num_classes=4, decoder=decoder, image_size=side)
    given = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    taken = model.encoder.state_dict()
    assert given.keys() == taken.keys()
    assert all(torch.equal(given[name], taken[name]) for name in given)
    logits = model(images(side))
    assert logits.shape == (2, 4, side, side)
    logits.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert not torch.equal(next(model.encoder.parameters()), next(encoder.parameters()))
    assert all(torch.equal(tensor, given[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext"])
def test_linear_is_one_1x1_convolution_on_all_upsampled_maps(encoder: str) -> None:
    model = build("linear", encoder).eval()
    maps = [one for one in model.encoder(images())[1:] if one.shape[1] > 0]
    stacked = torch.cat([nn.functional.interpolate(one, size=(64, 64), mode="bilinear") for one in maps], dim=1)
    one = nn.Conv2d(stacked.shape[1], 3, 1)
    one.weight.data = torch.cat([head.weight for head in model.heads], dim=1)
    one.bias.data = model.heads[-1].bias.data
    torch.testing.assert_close(model(images()), one(stacked), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder", ["linear", "unet", "deeplabv3plus", "pspnet"])
def test_a_file_gives_back_the_segmenter_and_loads_into_plain_smp(tmp_path: Path, decoder: str) -> None:
    model = build(decoder, palette=[(255, 0, 0), (0, 0, 0), (0, 0, 255)], mask_values=[1, (2, 4), 3])
    model.info = replace(model.info, training={"seed": 3, "lr": 1e-3})
    model.train()(images())  # moves the running statistics
    path = save_segmenter(model, tmp_path / "s.safetensors")
    loaded = load_segmenter(path)
    assert loaded.info == model.info
    expected = model.eval()(images())
    assert torch.equal(loaded.eval()(images()), expected)
    if decoder == "unet":
        plain = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3)
        plain.load_state_dict(safetensors.torch.load_file(path), strict=True)
        assert torch.equal(plain.eval()(images()), expected)


def test_classes_have_names_colors_and_values() -> None:
    info = create_segmenter("test_resnet", num_classes=["ground", "pet"]).info
    assert (info.classes, info.mask_values, len(set(info.palette))) == (("ground", "pet"), (0, 1), 2)
    assert info.image_size == info.encoder.image_size
    model = build()
    assert model.num_classes == len(model.info.classes) == len(set(model.info.classes)) == 3


@pytest.mark.parametrize("decoder", ["unet", "linear"])
def test_a_prediction_has_the_size_of_its_image(tmp_path: Path, decoder: str) -> None:
    model = build(decoder).train()
    arrays = [draw(np.random.default_rng(seed), 96)[0][: 48 + seed, :80] for seed in range(3)]
    masks = model.predict(arrays, batch_size=2)
    assert model.training
    assert [mask.shape for mask in masks] == [array.shape[:2] for array in arrays]
    assert all(mask.dtype == np.uint8 and mask.max() < 3 for mask in masks)
    path = save(arrays[0], tmp_path / "a.png")
    for one in (arrays[0], Image.fromarray(arrays[0]), path, str(path)):
        assert np.array_equal(model.predict(one), masks[0])
    assert np.array_equal(model.predict([path, path])[1], masks[0])
    probabilities = model.predict(arrays[0], return_probabilities=True)
    assert probabilities.shape == (3, 48, 80)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=0), masks[0])


def test_a_prediction_normalizes_as_the_encoder_says() -> None:
    model = build().eval()
    array = draw(np.random.default_rng(0), 64)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.info.encoder.mean, model.info.encoder.std))
    normalized = (torch.from_numpy(array).permute(2, 0, 1) / 255 - mean) / std
    expected = model(normalized[None]).softmax(dim=1)[0].detach().numpy()
    np.testing.assert_allclose(model.predict(array, return_probabilities=True), expected, atol=1e-5)


def test_a_gray_encoder_takes_gray_arrays_and_makes_color_gray(tmp_path: Path) -> None:
    model = build(encoder=create_encoder("test_resnet", in_channels=1)).eval()
    gray = draw(np.random.default_rng(0), 64)[0][:, :, :1]
    color = np.repeat(gray, 3, axis=2)
    for image in (color, save(color, tmp_path / "a.png")):
        assert np.array_equal(model.predict(image), model.predict(gray))
    with pytest.raises(SegaeError, match=r"images must be uint8 \(H, W, 1 or 3\), got uint8 \(8, 8, 2\)"):
        model.predict(np.zeros((8, 8, 2), np.uint8))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(SegaeError, match=r"images must be uint8 \(H, W, 3\), got"):
        build().predict(image)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"decoder": "unte"}, "decoder must be .*'unte'.*unet"),
        ({"decoder": "pan"}, "image_size must be >= 128 .*, got 64"),
        ({"encoder": "nowhere.safetensors"}, "weights must be .*'nowhere.safetensors'"),
        ({"num_classes": 0}, "num_classes must be .*got 0"),
        ({"palette": [(0, 0, 0)]}, "palette must have .*3.*got 1"),
        ({"palette": [(0, 0, 300)] * 3}, "palette must be .*got 300"),
        ({"image_size": 0}, "image_size must be .*got 0"),
    ],
)
def test_choices_are_checked(choices: dict, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        create_segmenter(**{"encoder": "test_resnet", "num_classes": 3, "image_size": 64, **choices})


def test_sizes_off_the_stride_are_refused() -> None:
    with pytest.raises(SegaeError, match="image_size must be .*got 70"):
        build()(torch.zeros(1, 3, 64, 70))
