"""``segae.predict``: masks at the images' own sizes, under names that overwrite nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import segae
from segae.data import eval_transform, read_image, resize_image

MakeSegmenter = Callable[..., Path]


def draw(path: Path, width: int = 90, height: int = 60, seed: int = 0, **save: object) -> Path:
    """A smooth random picture, so that a resized one still looks like it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **save)
    return path


def expected_probabilities(model_file: Path, image_file: Path) -> NDArray[np.float32]:
    """The same by the shortest way: one image, albumentations' normalization, no batches."""
    model, image = segae.load_segmenter(model_file).eval(), read_image(image_file)
    transform = eval_transform(64, model.info.encoder.mean, model.info.encoder.std)
    with torch.no_grad():
        logits = model(transform(image=resize_image(image, 64))["image"][None])
        logits = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")
    return logits.softmax(dim=1)[0].numpy()


def assert_is_winner(mask: NDArray, probabilities: NDArray) -> None:
    """Equal to the argmax but for pixels where two classes tie to rounding."""
    won = np.take_along_axis(probabilities, mask[None].astype(int), axis=0)[0]
    assert (won >= probabilities.max(axis=0) - 1e-4).all()


def test_masks_are_the_softmax_winners_at_the_original_size(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, seen = make_segmenter(), set()
    images = [draw(tmp_path / "in" / f"{i}.png", 90 + 7 * i, 61 + 30 * i, seed=i) for i in range(3)]
    (tmp_path / "in" / "1b.jpg").write_bytes(b"\xff\xd8\xff no picture")
    os.mkfifo(tmp_path / "in" / "2b.jpg")  # a file that is none
    masks = segae.predict(model, tmp_path / "in", out=tmp_path / "out", batch_size=2, device="cpu")
    assert masks == [tmp_path / "out" / f"{i}.png" for i in range(3)]
    for image, path in zip(images, masks, strict=True):
        with Image.open(path) as mask, Image.open(image) as original:
            assert (mask.mode, mask.size) == ("P", original.size)
            assert mask.getpalette()[:9] == [0, 200, 90, 40, 170, 90, 80, 140, 90]
            values = np.asarray(mask)
        assert_is_winner(values, expected_probabilities(model, image))
        seen |= set(np.unique(values))
    assert seen == {0, 1, 2}  # a model that says the same everywhere would prove nothing
    with (tmp_path / "out" / "skipped.csv").open() as file:
        rows = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert rows["1b.jpg"]
    assert set(rows) <= {"1b.jpg", "2b.jpg"}


def test_probabilities_and_overlay_agree_with_the_mask(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image, out = make_segmenter(), draw(tmp_path / "cat.png"), tmp_path / "out"
    (mask_file,) = segae.predict(model, image, out=out, probabilities=True, device="cpu")
    mask = np.asarray(Image.open(mask_file))
    with np.load(out / "cat_probabilities.npz") as stored:
        probabilities = stored["probabilities"]
        assert stored["classes"].tolist() == ["pet", "background", "border"]
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (3, 60, 90))
    assert probabilities == pytest.approx(expected_probabilities(model, image), abs=2e-3)
    palette = np.array([(0, 200, 90), (40, 170, 90), (80, 140, 90)])
    blend = (read_image(image) + palette[mask]) / 2
    assert np.abs(np.asarray(Image.open(out / "cat_overlay.jpg")) - blend).mean() < 4  # JPEG


def test_without_a_folder_arrays_come_back(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    path, image = make_segmenter(), draw(tmp_path / "cat.png")
    model = segae.load_segmenter(path)
    mask = segae.predict(model, image)
    assert (mask.dtype, mask.shape) == (np.uint8, (60, 90))
    assert_is_winner(mask, expected_probabilities(path, image))
    several = segae.predict(path, [read_image(image), read_image(image)[:40]], probabilities=True, device="cpu")
    assert [part.shape for part in several] == [(3, 60, 90), (3, 40, 90)]
    assert sorted(child.name for child in tmp_path.iterdir()) == ["cat.png", "model"]
    (mask_file,) = segae.predict(model, image, out=tmp_path / "out", overlay=False)
    assert np.array_equal(np.asarray(Image.open(mask_file)), mask)
    assert {child.name for child in (tmp_path / "out").iterdir()} == {"cat.png", "config.json", "predictions.csv"}


def test_a_turned_photograph_gives_an_upright_mask(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    turned = draw(tmp_path / "turned.jpg", 90, 60, exif=exif)
    (mask_file,) = segae.predict(make_segmenter(), turned, out=tmp_path / "out", device="cpu")
    assert Image.open(mask_file).size == (60, 90)


def test_equal_names_do_not_overwrite_each_other(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    files = [one / "a.jpg", one / "a.png", one / "A_jpg.bmp", one / "b.png", one / "deep/er/a.png", two / "b.png"]
    for index, path in enumerate(files):
        draw(path, 40 + index, 30)
    masks = segae.predict(make_segmenter(), [one, two], out=tmp_path / "out", overlay=False, device="cpu")
    sizes = {mask.relative_to(tmp_path / "out").as_posix(): Image.open(mask).size[0] for mask in masks}
    assert sorted(sizes.values()) == [40, 41, 42, 43, 44, 45]
    assert sizes["a_png.png"] == 41
    assert sizes["deep/er/a.png"] == 44
    assert len({name.lower() for name in sizes}) == 6  # on some disks letter case does not tell files apart


def test_files_of_others_are_not_overwritten_and_ones_own_are(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image = make_segmenter(), draw(tmp_path / "images" / "a.jpg")
    truth, mine = draw(tmp_path / "masks" / "a.png"), tmp_path / "project" / "config.json"
    mine.parent.mkdir()
    mine.write_text('{"mine": 1}')
    before = truth.read_bytes()
    for folder in (truth.parent, mine.parent):
        with pytest.raises(segae.SegaeError, match="out must be a folder for the results of predict"):
            segae.predict(model, tmp_path / "images", out=folder, device="cpu")
    assert (truth.read_bytes(), mine.read_text()) == (before, '{"mine": 1}')
    for _ in range(2):
        assert segae.predict(model, image, out=tmp_path / "out", device="cpu") == [tmp_path / "out" / "a.png"]
    other = draw(tmp_path / "2" / "a.jpg", 41)
    with pytest.raises(segae.SegaeError, match="images was"):
        segae.predict(model, other, out=tmp_path / "out", device="cpu")
    segae.predict(model, other, out=tmp_path / "out", device="cpu", overwrite=True)
    assert Image.open(tmp_path / "out" / "a.png").size == (41, 60)


def test_further_images_go_into_the_same_folder(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model = make_segmenter()
    for images in ("cat.jpg", "more", "cat.jpg"):
        source = draw(tmp_path / (f"{images}/dog.jpg" if images == "more" else images))
        segae.predict(model, tmp_path / images, out=tmp_path / "out", device="cpu")
        assert (tmp_path / "out" / f"{source.stem}.png").is_file()
    listed = json.loads((tmp_path / "out" / "config.json").read_text())["images"]
    assert listed == [str(tmp_path / "cat.jpg"), str(tmp_path / "more")]
    shutil.copy(model, tmp_path / "other.safetensors")
    with pytest.raises(segae.SegaeError, match="model was"):
        segae.predict(tmp_path / "other.safetensors", draw(tmp_path / "bird.jpg"), out=tmp_path / "out", device="cpu")


@pytest.mark.parametrize("out", ["in", "in/masks", "."])
def test_results_never_land_among_the_images(make_segmenter: MakeSegmenter, tmp_path: Path, out: str) -> None:
    image = draw(tmp_path / "in" / "cat.png")
    source = tmp_path / "in" if out != "." else draw(tmp_path / "lone.png")
    before = image.read_bytes()
    with pytest.raises(segae.SegaeError, match="out must be a folder apart from the images"):
        segae.predict(make_segmenter(), source, out=tmp_path / out, device="cpu")
    assert image.read_bytes() == before


def test_what_cannot_be_predicted_is_an_error_that_names_the_argument(
    make_segmenter: MakeSegmenter, tmp_path: Path
) -> None:
    model, image = make_segmenter(), draw(tmp_path / "cat.png")
    for settings, message in (
        ({"batch_size": 0}, "batch_size must be"),
        ({"images": tmp_path / "nowhere"}, "images must be .*nowhere"),
        ({"model": tmp_path / "nowhere.safetensors"}, "model must be an existing file, got .*nowhere"),
        ({"max_pixels": 5000}, "images must be readable, got 1 of which none is.*skipped.csv"),
    ):
        with pytest.raises(segae.SegaeError, match=message):
            segae.predict(**({"model": model, "images": image, "out": tmp_path / "out", "device": "cpu"} | settings))
    assert "max_pixels" in (tmp_path / "out" / "skipped.csv").read_text()


def test_a_mask_that_cannot_be_written_ends_the_command(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    for index in range(3):
        draw(tmp_path / "in" / f"{index}.png", seed=index)
    (tmp_path / "out" / "1.png").mkdir(parents=True)  # in the way
    with pytest.raises(segae.SegaeError):
        segae.predict(make_segmenter(), tmp_path / "in", out=tmp_path / "out", batch_size=2, device="cpu")
