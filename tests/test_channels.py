"""Images that are not 8-bit RGB, through every command; and how sizes other than the model's are fitted to it."""

import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import segae
from segae import data
from segae.data import ImageFormat, measure_normalization, read_array, read_formatted, resize_image
from segae.errors import DataError, SegaeError
from segae.evaluation import normalize
from segae.models import save_encoder, save_segmenter
from tests import fabricate

TINY = {"encoder": "test_resnet", "epochs": 1, "batch_size": 4, "trainer": segae.TrainerConfig(threads=1, device="cpu")}


def make_set(root: Path, kind: str, count: int = 12) -> Path:
    """An images/ + masks/ folder of ``five`` 16-bit channels (TIFF), ``gray`` 16-bit or ``rgb`` 8-bit PNG images."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for place, (image, mask) in enumerate(fabricate.drawings(count, 48, 2, 3)):
        Image.fromarray(mask).save(root / "masks" / f"{place}.png")
        if kind == "rgb":
            Image.fromarray(image).save(root / "images" / f"{place}.png")
        elif kind == "gray":
            cv2.imwrite(str(root / "images" / f"{place}.png"), image[..., 0].astype(np.uint16) * 7)
        else:
            bands = np.dstack([image, image[..., :2][..., ::-1]]).astype(np.uint16) * 12 + 400
            planar = place % 2 == 1
            tifffile.imwrite(
                root / "images" / f"{place}.tif", bands.transpose(2, 0, 1) if planar else bands,
                photometric="minisblack", planarconfig="separate" if planar else "contig", compression="deflate",
            )  # fmt: skip
    return root


@pytest.mark.parametrize(("kind", "channels"), [("five", 5), ("gray", 1)])
def test_other_channels_go_through_every_command(tmp_path: Path, kind: str, channels: int) -> None:
    root = make_set(tmp_path / kind, kind)
    first = segae.pretrain(root / "images", out=tmp_path / "pre", method="denoise", image_size=32, **TINY)
    about = segae.load(first.path).info
    assert about.in_channels == len(about.value_range) == len(about.mean) == channels
    assert about.value_range[0][1] < 0.2  # of 65535: dark images fill the range of the input
    tuned = segae.finetune(
        root,
        out=tmp_path / "fine",
        weights=first.path,
        freeze_epochs=0,
        val_fraction=0.3,
        decoder="linear",  # which is exported in half the time
        **{**TINY, "encoder": None, "batch_size": 16},
    )
    assert tuned.model.info.encoder.value_range == about.value_range
    scores = segae.evaluate(tuned.path, root, split="test", device="cpu")
    assert np.isfinite(scores.miou)
    files = sorted((root / "images").iterdir())
    written = segae.predict(tuned.path, root / "images", out=tmp_path / "masks", device="cpu")
    assert [np.asarray(Image.open(path)).shape for path in written] == [(48, 48)] * 12
    from_array = tuned.model.predict(read_array(files[0]))
    assert np.array_equal(from_array, np.asarray(Image.open(written[0])))
    features = segae.extract_features(root / "images", tuned.path, device="cpu")
    assert len(features) == 12
    assert np.isfinite(features.values).all()
    if kind == "five":  # the test of exported gray models is below
        folder = segae.export(tuned.path, to="onnx", out=tmp_path / "onnx", images=root / "images")
        assert np.mean(segae.OnnxPredictor(folder).predict(read_array(files[0])) == from_array) > 0.99


def test_an_exported_gray_model_takes_gray_and_color_files(tmp_path: Path) -> None:
    color = fabricate.draw(np.random.default_rng(0), 40)[0]
    torch.manual_seed(0)
    encoder = segae.create_encoder("test_resnet", in_channels=1, image_size=32)
    model = segae.create_segmenter(encoder, num_classes=2).eval()
    head = model.segmentation_head[0]
    with torch.no_grad():  # logits of each class with mean 0, so that no class wins everywhere
        head.weight *= 20
        seen = normalize(resize_image(color, 32)[None], encoder.info.mean, encoder.info.std, "cpu")
        head.bias -= model(seen).mean(dim=(0, 2, 3))
    weights = save_segmenter(model, tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    Image.fromarray(color[..., 0]).save(tmp_path / "images" / "a.png")
    Image.fromarray(color).save(tmp_path / "images" / "b.png")
    folder = segae.export(weights, to="onnx", out=tmp_path / "onnx", images=tmp_path / "images")
    exported = segae.predict(folder / "model.onnx", tmp_path / "images", out=tmp_path / "exported", device="cpu")
    masks = segae.predict(weights, tmp_path / "images", out=tmp_path / "masks", device="cpu")
    predictor = segae.OnnxPredictor(folder)
    from_arrays = predictor.predict(color[..., :1]), predictor.predict(color)
    for pair in zip(masks, exported, from_arrays, strict=True):
        first, *others = (np.asarray(Image.open(one) if isinstance(one, Path) else one) for one in pair)
        assert 0.1 < first.mean() < 0.9
        assert all(np.mean(first == one) > 0.99 for one in others)


def test_a_16_bit_image_is_the_model_input_of_its_8_bit_copy(tmp_path: Path) -> None:
    image = fabricate.draw(np.random.default_rng(0), 40)[0]
    np.save(tmp_path / "a.npy", image)
    tifffile.imwrite(tmp_path / "b.tif", image.astype(np.uint16) * 257, photometric="rgb")
    cv2.imwrite(str(tmp_path / "c.png"), image[..., ::-1].astype(np.uint16) * 257)
    found = measure_normalization([tmp_path / "b.tif"], 3)
    for form in (ImageFormat(32, 3, found.value_range), ImageFormat(32)):
        inputs = [
            normalize(resize_image(read_formatted(path, form), form)[None], found.mean, found.std, "cpu")
            for path in (tmp_path / "a.npy", tmp_path / "b.tif", tmp_path / "c.png")
        ]
        assert torch.equal(inputs[0], inputs[1])
        assert torch.equal(inputs[0], inputs[2])


def test_arrays_of_every_layout_are_read_as_they_are(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 60_000, (12, 20, 5)).astype(np.uint16)
    planes = image.transpose(2, 0, 1)
    plain = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "contig.tif", image, planarconfig="contig", **plain)
    tifffile.imwrite(tmp_path / "planar.tif", planes, planarconfig="separate", **plain)
    tifffile.imwrite(tmp_path / "big.tif", image, planarconfig="contig", bigtiff=True, compression="lzw", **plain)
    tifffile.imwrite(tmp_path / "imagej.tif", planes, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "endian.tif", image, planarconfig="contig", byteorder=">", **plain)
    np.save(tmp_path / "array.npy", image)
    for path in data.find_images([tmp_path]):
        read = read_array(path)
        assert (path.name, read.dtype) == (path.name, np.uint16)
        assert np.array_equal(read, image), path
        assert data.image_io.image_header(path) == (12, 20, 5, "uint16")
    four = np.dstack([image[..., :3] // 256, image[..., 3] // 256]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "four.tif", four, photometric="rgb", extrasamples=["unassalpha"])  # as GDAL writes it
    assert read_array(tmp_path / "four.tif").shape == (12, 20, 3)
    assert np.array_equal(read_array(tmp_path / "four.tif", channels=4), four)
    assert len(measure_normalization([tmp_path / "four.tif"], 4).mean) == 4


def test_bad_images_are_named(tmp_path: Path) -> None:
    bad = np.zeros((8, 8, 4), np.float32)
    bad[0, 0] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    with pytest.raises(DataError, match=r"nan\.npy .*NaN"):
        read_array(tmp_path / "nan.npy")
    np.save(tmp_path / "four.npy", np.zeros((8, 8, 4), np.float32))
    np.save(tmp_path / "many.npy", np.zeros((8, 8, 17), np.uint8))
    np.save(tmp_path / "object.npy", np.zeros((8, 8), object), allow_pickle=True)
    for name in ("many", "object"):
        with pytest.raises(DataError, match=rf"{name}\.npy cannot be read"):
            read_array(tmp_path / f"{name}.npy")
    with pytest.raises(DataError, match=r"four\.npy has 4 channels, and the model takes 3"):
        read_formatted(tmp_path / "four.npy", ImageFormat(8))
    with pytest.raises(DataError, match=r"max_pixels"):
        read_array(tmp_path / "four.npy", max_pixels=10)
    five = make_set(tmp_path / "five", "five", 2)
    with pytest.raises(DataError, match=r"four\.npy has 4 channels, and .* has 5"):
        data.find_kind([*(five / "images").iterdir(), tmp_path / "four.npy"])
    with pytest.raises(SegaeError, match="in_channels must be 3 .*colorize.*, got 5"):
        segae.pretrain(five / "images", out=tmp_path / "run", method="colorize", image_size=32, **TINY)
    with pytest.raises(SegaeError, match=r"tif has 5 channels, and the model takes 4"):
        segae.pretrain(five / "images", out=tmp_path / "run", method="denoise", image_size=32, in_channels=4, **TINY)


def test_weights_for_rgb_are_adapted(tmp_path: Path) -> None:
    encoder = segae.create_encoder("test_resnet")
    path = save_encoder(encoder, tmp_path / "encoder.safetensors")
    adapted = segae.create_encoder(weights=path, in_channels=6)
    name = next(name for name, tensor in encoder.state_dict().items() if tensor.ndim == 4)
    own, wide = encoder.state_dict()[name], adapted.state_dict()[name]
    assert torch.allclose(wide, torch.cat([own, own], dim=1) / 2)
    gray = segae.create_encoder(weights=path, in_channels=1).state_dict()[name]
    assert torch.allclose(gray, own.sum(dim=1, keepdim=True))
    with pytest.raises(SegaeError, match="in_channels must be 6"):
        segae.create_encoder(weights=save_encoder(adapted, tmp_path / "six.safetensors"), in_channels=3)


def test_gray_files_make_a_gray_model_and_color_among_them_does_not(tmp_path: Path) -> None:
    gray = fabricate.draw(np.random.default_rng(0), 40)[0]
    Image.fromarray(gray[..., 0]).save(tmp_path / "a.png")
    assert data.find_kind([tmp_path / "a.png"]) == (1, True)
    Image.fromarray(gray).save(tmp_path / "b.jpg")
    assert data.find_kind([tmp_path / "a.png", tmp_path / "b.jpg"]) == (3, True)


@pytest.mark.parametrize(("resize", "size"), [("squash", (32, 64)), ("letterbox", (32, 64)), ("crop", 32)])
def test_shapes_and_fits(tmp_path: Path, resize: str, size: int | tuple[int, int]) -> None:
    root = make_set(tmp_path / "set", "rgb", 8)
    for place in range(8):  # 48 x 36: neither the model's size nor its aspect ratio
        for folder, suffix in (("images", "png"), ("masks", "png")):
            path = root / folder / f"{place}.{suffix}"
            Image.fromarray(np.asarray(Image.open(path))[:, 6:42]).save(path)
    result = segae.finetune(
        root, out=tmp_path / "fine", image_size=size, resize=resize, freeze_epochs=0, val_fraction=0.3, **TINY
    )
    info = segae.load(result.path).info
    assert (info.image_size, info.resize) == (size, resize)
    image = np.asarray(Image.open(root / "images" / "0.png"))
    mask = result.model.predict(image)
    assert mask.shape == (48, 36)
    written = segae.predict(result.path, root / "images", out=tmp_path / "masks", device="cpu")
    assert np.array_equal(np.asarray(Image.open(written[0])), mask)
    scores = segae.evaluate(result.path, root, split="test", resolution="original", device="cpu", out=tmp_path / "e")
    # by hand: fit the image, take the logits of the part it fills, enlarge them, and count in the part that was seen
    height, width = ImageFormat(size).shape
    if resize == "squash":
        seen, place, shape = np.s_[:, :], np.s_[:, :], (height, width)
    elif resize == "letterbox":  # 36 / 48 of the height
        seen, place, shape = np.s_[:, :], np.s_[:, (width - 24) // 2 : (width - 24) // 2 + 24], (32, 24)
    else:
        seen, place, shape = np.s_[6:42, :], np.s_[:, :], (32, 32)
    hits, pixels = 0, 0
    for pair in data.open_dataset(root).splits["test"]:
        picture, truth = np.asarray(Image.open(pair.image)), np.asarray(Image.open(pair.mask))[seen]
        fitted = np.zeros((height, width, 3), np.uint8)
        fitted[place] = data.resize_image(np.ascontiguousarray(picture[seen]), shape)
        batch = normalize(fitted[None], info.encoder.mean, info.encoder.std, "cpu")
        with torch.inference_mode():
            logits = result.model.eval()(batch)[0][:, place[0], place[1]]
        large = torch.nn.functional.interpolate(logits[None], truth.shape, mode="bilinear")[0].argmax(dim=0).numpy()
        hits, pixels = hits + int((large == truth).sum()), pixels + truth.size
    assert scores.confusion.sum() == pixels
    assert np.trace(scores.confusion) == hits


def test_padding_counts_nowhere_and_random_crops_differ(tmp_path: Path) -> None:
    mask = np.ones((10, 20), np.uint8)
    padded = data.resize_mask(mask, ImageFormat(32, resize="letterbox"))
    assert (padded[8:24] == 1).all()
    assert (padded[:8] == data.IGNORE_INDEX).all()
    assert (padded[24:] == data.IGNORE_INDEX).all()
    root = make_set(tmp_path / "set", "rgb", 6)
    form = ImageFormat((16, 48), resize="cover")
    assert data.read_resized(root / "images" / "0.png", form).shape == (48, 48, 3)
    look = ((16, 48), (0.5,) * 3, (0.5,) * 3)
    pairs = data.open_dataset(root).splits["train"]
    whole = data.LazyPairDataset(pairs, form, (0, 1), data.train_transform(*look, random_crop=True), 0, 8)
    assert {tuple(image.shape) for image, _ in whole} == {(3, 16, 48)}
    assert len({image.numpy().tobytes() for image, _ in whole}) > 4
    with pytest.raises(SegaeError, match="cache must be none"):
        segae.finetune(root, out=tmp_path / "no", image_size=32, resize="crop", cache="disk", encoder="test_resnet")


@pytest.mark.parametrize("augment", ["default", "strong"])
def test_random_resized_crops_show_details_of_large_images(tmp_path: Path, augment: str) -> None:
    fine = (np.indices((192, 192)) // 4).sum(axis=0) % 2  # squares that are gray where the whole image is made 32 px
    Image.fromarray((fine * 255).astype(np.uint8)).convert("RGB").save(tmp_path / "fine.png")
    form, change = ImageFormat(32, resize="crop"), data.pretraining_changes(crop=True)[augment]
    transform = data.pretrain_transform(form, (0.5,) * 3, (0.5,) * 3, augment=augment, random_crop=True)
    paths, contrast = data.find_images([tmp_path]), []
    for seen in (data.before_random_crops(form, None), data.before_random_crops(form, change)):
        images = data.LazyImageDataset(paths, seen, transform, seed=0, repeats=8)
        contrast.append(np.mean([image.std().item() for image in images]))
    assert contrast[1] > 1.2 * contrast[0]


def test_pretraining_and_features_keep_size_and_fit(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", "rgb")
    for resize in ("letterbox", "crop"):
        how = {"image_size": "32x64", "resize": resize, "method": "spark", **TINY}
        found = segae.pretrain(root / "images", out=tmp_path / resize, **how)
        info = segae.load(found.path).info
        assert (info.image_size, info.resize) == ((32, 64), resize)
        features = segae.extract_features(root / "images", found.path, pool="none", device="cpu")
        assert features.values.shape[2:] == (1, 2)
    with pytest.raises(SegaeError, match="image_size must be a multiple of the stride 32, got 40"):
        segae.pretrain(root / "images", out=tmp_path / "x", image_size=(40, 64), method="denoise", **TINY)
    with pytest.raises(SegaeError, match="image_size must be a side"):
        segae.pretrain(root / "images", out=tmp_path / "x", image_size="64xwide", **TINY)


def test_labeled_shards_are_pictures_that_are_not_cropped(tmp_path: Path) -> None:
    root, shard = make_set(tmp_path / "set", "rgb", 6), tmp_path / "labeled.tar"
    with tarfile.open(shard, "w") as archive:
        for place in range(6):
            archive.add(root / "images" / f"{place}.png", f"{place}.png")
            archive.add(root / "masks" / f"{place}.png", f"{place}.mask.png")
    encoder = segae.create_encoder("test_resnet", in_channels=5)
    weights = save_encoder(encoder, tmp_path / "five.safetensors")
    how = {**TINY, "freeze_epochs": 0, "image_size": (32, 64), "out": tmp_path / "run"}
    for given, message in (
        ({"resize": "crop"}, "resize must be squash or letterbox for a stream, got crop"),
        ({"in_channels": 5}, "in_channels must be 1 or 3 for a stream, got 5"),
        ({"weights": weights, "encoder": None}, "in_channels must be 1 or 3 for a stream, got 5"),
    ):
        with pytest.raises(SegaeError, match=message):
            segae.finetune(shard, **{**how, **given})
    info = segae.finetune(shard, resize="letterbox", **how).model.info
    assert (info.image_size, info.resize) == ((32, 64), "letterbox")


def test_skipped_where_the_extra_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_set(tmp_path / "five", "five", 1)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SegaeError, match=r"tifffile must be installed: pip install 'segae\[tiff\]'"):
        read_array(root / "images" / "0.tif")
    shutil.rmtree(root)
