"""``segae.export --to onnx``: the file alone predicts what PyTorch does, at any number and size, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import segae
from segae.exporters import onnx as module
from tests.fabricate import draw, make_images, make_pets

SIZES = ((48, 80), (150, 64), (64, 64))
SHAPES = ((1, 64, 64), (3, 96, 160))


def segmenter(encoder: str = "test_resnet", decoder: str = "unet", size: int = 64) -> segae.Segmenter:
    torch.manual_seed(1)
    model = segae.create_segmenter(encoder, num_classes=["ground", "pet", "edge"], decoder=decoder, image_size=size)
    model.train()(torch.randn(4, 3, size, size))  # running statistics that no fresh model has
    with torch.no_grad():
        for parameter in model.segmentation_head.parameters():
            parameter.mul_(20)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> segae.Segmenter:
    return segmenter()


@pytest.fixture(scope="module")
def folder(model: segae.Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segae.export(model, to="onnx", out=tmp_path_factory.mktemp("onnx") / "folder")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    encoder = segae.create_encoder("test_resnet")
    segae.save_encoder(encoder, path := tmp_path_factory.mktemp("features") / "encoder.safetensors")
    photos = make_images(path.parent / "photos", 3)
    return segae.export(path, to="onnx", out=path.parent / "folder", images=photos)


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [np.asarray(Image.fromarray(draw(generator)[0]).resize(size)) for size in SIZES]


def test_masks_are_those_of_pytorch_at_the_images_own_size(model: segae.Segmenter, folder: Path) -> None:
    predictor = segae.OnnxPredictor(folder)
    for image in pictures():
        expected = model.predict(image, return_probabilities=True)
        found = predictor.predict(Image.fromarray(image), return_probabilities=True)
        assert found.shape == (3, *image.shape[:2])
        assert np.abs(found - expected).max() < 1e-4
        assert np.mean(predictor.predict(image) == model.predict(image)) > 0.999
        assert len(np.unique(predictor.predict(image))) > 1


def test_number_and_size_of_images_are_free(model: segae.Segmenter, folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.info.encoder.mean, model.info.encoder.std))
    for shape in SHAPES:
        images = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
        found = session.run(["probabilities"], {"images": images})[0]
        with torch.no_grad():
            expected = model((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std).softmax(1).numpy()
        assert np.abs(found - expected).max() < 1e-4


def test_the_file_alone_says_everything(model: segae.Segmenter, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.onnx").write_bytes((folder / "model.onnx").read_bytes())
    about = segae.OnnxPredictor(tmp_path / "alone.onnx").metadata
    assert about == json.loads((folder / "metadata.json").read_text())
    assert (about["classes"], about["image_size"], about["stride"]) == (["ground", "pet", "edge"], 64, 32)
    assert about["palette"] == [list(color) for color in model.info.palette]
    assert tuple(about["info"]["encoder"]["mean"]) == model.info.encoder.mean
    assert about["info"]["encoder"]["weights"]["start"] == "random"
    assert about["compared"]["images"] == 8
    assert about["compared"]["max_difference"] < 1e-4
    assert set(about["versions"]) == {"segae", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert "OnnxPredictor" in (folder / "README.md").read_text()


@pytest.mark.parametrize("settings", [{}, {"tta": True}, {"tile": 64}])
def test_the_command_predicts_with_the_file(
    model: segae.Segmenter, folder: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    (tmp_path / "in").mkdir()
    for number, pixels in enumerate(pictures()):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    how = {"device": "cpu", "threads": 1, "confidence": True, **settings}
    found = segae.predict(folder / "model.onnx", tmp_path / "in", out=tmp_path / "onnx", **how)
    expected = segae.predict(model, tmp_path / "in", out=tmp_path / "torch", **how)
    for one, other in zip(found, expected, strict=True):
        assert (np.asarray(Image.open(one)) == np.asarray(Image.open(other))).mean() > 0.999
        assert Image.open(one).getpalette() == Image.open(other).getpalette()


def test_the_command_names_what_is_wrong(features: Path, folder: Path, tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", 1)
    with pytest.raises(segae.SegaeError, match="model must be a segmenter.* for features"):
        segae.predict(features / "model.onnx", photos, out=tmp_path / "out")
    with pytest.raises(segae.SegaeError, match="out must be a folder"):
        segae.predict(folder / "model.onnx", photos)
    with pytest.raises(segae.CheckpointError, match="model must be a .safetensors file.*predict alone"):
        segae.evaluate(folder / "model.onnx", make_pets(tmp_path / "pets", 4, 2))


def test_an_encoder_gives_pooled_features_and_maps(features: Path) -> None:
    encoder = segae.load_encoder(features.parent / "encoder.safetensors").eval()
    predictor = segae.OnnxPredictor(features)
    image = np.asarray(Image.fromarray(pictures()[2]).resize((160, 160)))
    expected = segae.extract_features(image, encoder, image_size=encoder.info.image_size, device="cpu").values[0]
    assert np.abs(predictor.predict(image) - expected).max() < 1e-4
    maps = predictor.run(image[None])
    assert list(maps) == ["features", "map_2", "map_4", "map_8", "map_16", "map_32"]
    assert maps["map_8"].shape == (1, encoder.out_channels[3], 20, 20)


@pytest.mark.parametrize(("layer", "pool"), [(-1, "avg"), (3, "none")])
def test_features_are_computed_with_the_file(features: Path, tmp_path: Path, layer: int, pool: str) -> None:
    photos, encoder = make_images(tmp_path / "photos", 3), features.parent / "encoder.safetensors"
    how = {"layer": layer, "pool": pool, "image_size": 96, "device": "cpu", "threads": 1}
    found = segae.Features.load(segae.extract_features(photos, features / "model.onnx", out=tmp_path / "f.npz", **how))
    expected = segae.extract_features(photos, encoder, **how)
    assert found.names == expected.names
    np.testing.assert_allclose(found.values, expected.values, atol=1e-4 * np.abs(expected.values).max())
    with pytest.raises(segae.SegaeError, match="image_size"):
        segae.extract_features(photos, features / "model.onnx", image_size=50)


def test_features_need_an_exported_encoder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(segae.SegaeError, match="encoder must be an exported encoder, .* for segmentation"):
        segae.extract_features(make_images(tmp_path / "photos", 1), folder / "model.onnx")


def test_predicting_needs_no_torch(folder: Path) -> None:
    code = """if True:
        import sys, numpy, segae
        mask = segae.OnnxPredictor(sys.argv[1]).predict(numpy.zeros((40, 50, 3), numpy.uint8))
        print(mask.shape, sorted({"torch", "timm", "onnx"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(40, 50) []"


def test_bad_files_and_images_are_named(folder: Path, tmp_path: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"damaged")
    with pytest.raises(segae.CheckpointError, match=r"source must have the metadata of segae, got .*bare\.onnx"):
        segae.OnnxPredictor(tmp_path / "bare.onnx")
    for source in (tmp_path / "damaged.onnx", tmp_path / "missing.onnx", tmp_path):
        with pytest.raises(segae.CheckpointError, match="source must be (ONNX|an existing .onnx file) or its folder"):
            segae.OnnxPredictor(source)
    others = [np.zeros(shape, np.uint8) for shape in ((4, 4), (0, 4, 3), (4, 4, 1), (4, 4, 4))]
    for image in (np.zeros((4, 4, 3)), *others):
        with pytest.raises(segae.SegaeError, match="image must be uint8"):
            segae.OnnxPredictor(folder).predict(image)


@pytest.mark.parametrize(("shift", "message"), [(2e-4, r"up to 2\.0e-04 \(limit 0\.0001\)"), (np.nan, "nan")])
def test_other_results_than_those_of_pytorch_are_refused(
    model: segae.Segmenter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, message: str
) -> None:
    proto, run = onnx.load(folder / "model.onnx"), module.OnnxPredictor.run

    def run_badly(self: segae.OnnxPredictor, images: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values + np.float32(shift * (name != "logits")) for name, values in run(self, images).items()}

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=proto))
    monkeypatch.setattr(module.OnnxPredictor, "run", run_badly)
    with pytest.raises(segae.SegaeError, match=message):
        segae.export(model, to="onnx", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_few_pixels_of_another_class_are_enough_to_refuse(
    model: segae.Segmenter, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(folder / "model.onnx")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=proto))
    monkeypatch.setattr(module, "MAX_DIFFERENCE", 2.0)
    run = module.OnnxPredictor.run

    def run_badly(self: segae.OnnxPredictor, images: np.ndarray) -> dict[str, np.ndarray]:
        found = run(self, images)
        found["probabilities"][:, :, :1] = np.roll(found["probabilities"][:, :, :1], 1, axis=1)
        return found

    monkeypatch.setattr(module.OnnxPredictor, "run", run_badly)
    with pytest.raises(segae.SegaeError, match=r"9\d\.\d\d% of the pixels alike \(limit 99\.9%\)"):
        segae.export(model, to="onnx", out=tmp_path / "new")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxscript"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(segae.SegaeError, match=r"\(pip install 'segae\[onnx\]'\), got .*onnxscript"):
        segae.export("pets_pseudo_masks", to="onnx", out=tmp_path / "new")


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(segae.SegaeError, match="model must export to ONNX .*, got no such operator"):
        segae.export("pets_pseudo_masks", to="onnx", out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", segae.list_decoders())
def test_every_decoder_can_be_exported(decoder: str, tmp_path: Path) -> None:
    model = segae.create_segmenter("test_resnet", num_classes=2, decoder=decoder, image_size=128).eval()
    folder = segae.export(model, to="onnx", out=tmp_path / "folder")
    assert (segae.OnnxPredictor(folder).metadata["stride"] == 0) == (decoder in ("pspnet", "upernet"))
    image = pictures()[0]
    assert np.mean(segae.OnnxPredictor(folder).predict(image) == model.predict(image)) > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["test_convnext", "tf_efficientnet_lite0", "regnety_002", "resnetv2_18"])
def test_other_encoders_can_be_exported(encoder: str, tmp_path: Path) -> None:
    folder = segae.export(segae.create_segmenter(encoder, num_classes=2, image_size=64), to="onnx", out=tmp_path / "a")
    assert segae.OnnxPredictor(folder).metadata["compared"]["pixels_agree"] >= 0.999


@pytest.mark.real
def test_real_photographs(real_data: Path, model: segae.Segmenter, folder: Path) -> None:
    for path in sorted((real_data / "oxford-iiit-pet-sample" / "images").glob("Bengal_1*.jpg"))[:5]:
        image = segae.data.read_image(path)
        assert np.mean(segae.OnnxPredictor(folder).predict(image) == model.predict(image)) > 0.999
