from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segae.data.images import UnreadableImage, read_image
from segae.data.quarantine import Quarantine
from segae.data.resize import resize_image
from segae.data.transforms import eval_transform
from segae.errors import SegaeError
from segae.models.segmenter import load_segmenter
from segae.tasks.predict import Predict, run
from segae.training import prediction
from segae.training.evaluation import predict_logits, resize_logits
from segae.training.prediction import output_stems

MakeSegmenter = Callable[..., Path]


def draw(path: Path, width: int = 90, height: int = 60, seed: int = 0, **save: object) -> Path:
    """A smooth random picture, so that a resized one still looks like it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, **save)
    return path


def expected_probabilities(model_file: Path, image_file: Path) -> NDArray[np.float32]:
    """The same by the shortest way: one image, albumentations' normalisation, no batches, no library code."""
    model, description = load_segmenter(model_file)
    image = read_image(image_file)
    transform = eval_transform(64, description.mean, description.std)
    image_chw = transform(image=resize_image(image, 64))["image"]
    with torch.no_grad():
        logits = model.eval()(image_chw[None])
        logits = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")
    return logits.softmax(dim=1)[0].numpy()


def assert_is_winner(mask: NDArray, probabilities_khw: NDArray) -> None:
    """Equal to the argmax but for pixels where two classes tie to rounding."""
    won = np.take_along_axis(probabilities_khw, mask[None].astype(int), axis=0)[0]
    assert (won >= probabilities_khw.max(axis=0) - 1e-4).all()


def test_masks_are_the_softmax_winners_at_the_original_size(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model = make_segmenter()
    images = [draw(tmp_path / "in" / f"{i}.png", 90 + 7 * i, 61 + 30 * i, seed=i) for i in range(3)]
    masks = run(Predict(model, tmp_path / "in", tmp_path / "out", batch_size=2, device="cpu"))
    assert masks == tuple(tmp_path / "out" / f"{i}.png" for i in range(3))
    seen = set()
    for image, path in zip(images, masks, strict=True):
        with Image.open(path) as mask, Image.open(image) as original:
            assert mask.mode == "P"
            assert mask.size == original.size
            values = np.asarray(mask)
            assert mask.getpalette()[:9] == [0, 200, 90, 40, 170, 90, 80, 140, 90]
        assert_is_winner(values, expected_probabilities(model, image))
        seen |= set(np.unique(values))
    assert seen == {0, 1, 2}  # a model that says the same everywhere would prove nothing


def test_probabilities_and_overlay_agree_with_the_mask(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image = make_segmenter(), draw(tmp_path / "cat.png")
    out = tmp_path / "out"
    (mask_file,) = run(Predict(model, image, out, probabilities=True, device="cpu"))
    mask = np.asarray(Image.open(mask_file))
    with np.load(out / "cat_probabilities.npz") as stored:
        probabilities = stored["probabilities"]
        assert stored["classes"].tolist() == ["pet", "background", "border"]
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (3, 60, 90)
    assert probabilities.astype(float).sum(axis=0) == pytest.approx(1, abs=2e-3)
    assert probabilities == pytest.approx(expected_probabilities(model, image), abs=2e-3)
    palette = np.array([(0, 200, 90), (40, 170, 90), (80, 140, 90)])
    expected = (read_image(image) + palette[mask]) / 2
    overlay = np.asarray(Image.open(out / "cat_overlay.jpg"))
    assert np.abs(overlay - expected).mean() < 4  # JPEG


def test_only_what_was_asked_for_is_written(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    run(Predict(make_segmenter(), draw(tmp_path / "cat.png"), tmp_path / "out", overlay=False, device="cpu"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cat.png", "config.json"}


def test_a_turned_photograph_gives_an_upright_mask(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    turned = draw(tmp_path / "turned.jpg", 90, 60, exif=exif)
    model = make_segmenter()
    (mask_file,) = run(Predict(model, turned, tmp_path / "out", device="cpu"))
    with Image.open(mask_file) as mask:
        assert mask.size == (60, 90)
        assert_is_winner(np.asarray(mask), expected_probabilities(model, turned))


def test_the_batch_size_does_not_matter(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model = make_segmenter()
    for index in range(3):
        draw(tmp_path / "in" / f"{index}.png", seed=index)
    outputs = []
    for size in (1, 3):
        masks = run(Predict(model, tmp_path / "in", tmp_path / f"out{size}", batch_size=size, device="cpu"))
        outputs.append(np.stack([np.asarray(Image.open(mask)) for mask in masks]))
    assert (outputs[0] == outputs[1]).mean() > 0.999


def test_folders_are_kept_and_equal_stems_do_not_overwrite_each_other(
    make_segmenter: MakeSegmenter, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    for index, name in enumerate(["a.jpg", "a.png", "b.png", "deep/er/a.png"]):
        draw(source / name, 40 + index, 30)
    masks = run(Predict(make_segmenter(), source, tmp_path / "out", device="cpu"))
    sizes = {mask.relative_to(tmp_path / "out").as_posix(): Image.open(mask).size[0] for mask in masks}
    assert sizes == {"a_jpg.png": 40, "a_png.png": 41, "b.png": 42, "deep/er/a.png": 43}


def test_files_of_others_are_not_overwritten_and_ones_own_are(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image = make_segmenter(), draw(tmp_path / "images" / "a.jpg")
    truth = draw(tmp_path / "masks" / "a.png")
    before = truth.read_bytes()
    with pytest.raises(SegaeError, match=r"would be overwritten, the first of them .*a\.png"):
        run(Predict(model, tmp_path / "images", tmp_path / "masks", device="cpu"))
    assert truth.read_bytes() == before
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["a.png"]
    for _ in range(2):
        assert run(Predict(model, image, tmp_path / "out", device="cpu")) == (tmp_path / "out" / "a.png",)


def test_a_configuration_of_others_is_not_overwritten_either(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image = make_segmenter(), draw(tmp_path / "images" / "a.jpg")
    mine = tmp_path / "project" / "config.json"
    mine.parent.mkdir()
    mine.write_text('{"mine": 1}')
    with pytest.raises(SegaeError, match=r"the first of them .*config\.json, and .* holds no earlier results"):
        run(Predict(model, image, mine.parent, device="cpu"))
    assert mine.read_text() == '{"mine": 1}'


def test_predictions_of_two_inputs_are_not_mixed_unasked_for(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, first, second = make_segmenter(), draw(tmp_path / "1" / "a.jpg"), draw(tmp_path / "2" / "a.jpg", 41)
    out = tmp_path / "out"
    run(Predict(model, first, out, device="cpu"))
    before = (out / "a.png").read_bytes()
    with pytest.raises(SegaeError, match=r"input was .*1/a\.jpg.*, now .*2/a\.jpg.*--overwrite"):
        run(Predict(model, second, out, device="cpu"))
    assert (out / "a.png").read_bytes() == before
    run(Predict(model, second, out, device="cpu", overwrite=True))
    assert (out / "a.png").read_bytes() != before


def test_names_stay_apart_even_when_the_longer_one_is_taken() -> None:
    names = ["a.jpg", "A.png", "a_jpg.bmp", "a_jpg.gif", "c", "c.tar.png"]
    stems = output_stems([Path("in", name) for name in names], Path("in"))
    lowered = [str(stem).lower() for stem in stems.values()]
    assert len(set(lowered)) == len(names)
    assert str(stems[Path("in/c.tar.png")]) == "c.tar"


def test_unreadable_images_are_left_out_and_listed(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    masks = run(Predict(make_segmenter(), tmp_path / "in", tmp_path / "out", device="cpu"))
    assert [mask.name for mask in masks] == ["good.png"]
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["path"].endswith("broken.jpg")
    assert row["reason"]


def test_nothing_readable_is_an_error_that_names_the_list(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(SegaeError, match=r"None of the 1 image.*quarantine\.csv"):
        run(Predict(make_segmenter(), broken, tmp_path / "out", device="cpu"))
    assert (tmp_path / "out" / "quarantine.csv").exists()


@pytest.mark.parametrize("out", ["in", "in/masks", "."])
def test_results_never_land_among_the_images(make_segmenter: MakeSegmenter, tmp_path: Path, out: str) -> None:
    image = draw(tmp_path / "in" / "cat.png")
    source = tmp_path / "in" if out != "." else draw(tmp_path / "lone.png")
    before = image.read_bytes()
    with pytest.raises(SegaeError, match="would mix with the images"):
        run(Predict(make_segmenter(), source, tmp_path / out, device="cpu"))
    assert image.read_bytes() == before


def test_bad_values_are_errors(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image = make_segmenter(), draw(tmp_path / "cat.png")
    with pytest.raises(SegaeError, match="batch size is 0"):
        run(Predict(model, image, tmp_path / "out", batch_size=0, device="cpu"))
    with pytest.raises(SegaeError, match=r"There is no .*nowhere\. An image or a folder of images is wanted"):
        run(Predict(model, tmp_path / "nowhere", tmp_path / "out", device="cpu"))
    with pytest.raises(SegaeError, match=r"weight file .*nowhere"):
        run(Predict(tmp_path / "nowhere.safetensors", image, tmp_path / "out", device="cpu"))


def one_after_the_other(model_file: Path, images: list[Path], batch_size: int) -> list[NDArray[np.uint8]]:
    """Masks in the same batches, without threads; files that cannot be read are left out of theirs."""
    model, description = load_segmenter(model_file)
    masks: list[NDArray[np.uint8]] = []
    for start in range(0, len(images), batch_size):
        read = []
        for path in images[start : start + batch_size]:
            with contextlib.suppress(UnreadableImage):
                read.append(read_image(path))
        small = np.stack([resize_image(image, 64) for image in read])
        (logits,) = predict_logits(model, small, description.mean, description.std, batch_size=batch_size)
        resized = (resize_logits(one, *image.shape[:2]) for one, image in zip(logits, read, strict=True))
        masks += [one.argmax(dim=0).numpy().astype(np.uint8) for one in resized]
    return masks


def test_reading_ahead_and_writing_beside_change_no_bit_and_no_report(make_segmenter: MakeSegmenter, tmp_path: Path):
    model = make_segmenter()
    images = [draw(tmp_path / "in" / f"{index:02}.png", 50 + index, 40, seed=index) for index in range(11)]
    for broken in (4, 9):
        images[broken].write_bytes(b"no picture")
    masks = run(Predict(model, tmp_path / "in", tmp_path / "out", batch_size=3, device="cpu"))
    assert [mask.stem for mask in masks] == [f"{index:02}" for index in range(11) if index not in (4, 9)]
    for mask, expected in zip(masks, one_after_the_other(model, images, 3), strict=True):
        assert np.array_equal(np.asarray(Image.open(mask)), expected)
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["04.png", "09.png"]


def test_no_more_than_one_batch_is_read_ahead(make_segmenter: MakeSegmenter, tmp_path: Path, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(prediction, "read_image", lambda path: read.append(path) or read_image(path))
    images = [draw(tmp_path / f"{index:02}.png", seed=index) for index in range(12)]
    model, description = load_segmenter(make_segmenter())
    normalisation = {"mean": description.mean, "std": description.std}
    predicted = prediction.predict_files(
        model, images, image_size=64, **normalisation, quarantine=Quarantine(), batch_size=2
    )
    for done, _ in enumerate(predicted, start=1):
        assert len(read) <= (-(-done // 2) + 1) * 2
    assert sorted(read) == images


def test_a_mask_that_cannot_be_written_ends_the_command(make_segmenter: MakeSegmenter, tmp_path: Path, monkeypatch):
    write = prediction.write_atomically

    def full_at_the_second(path: Path, save: Callable[..., object]) -> None:
        if path.name == "1.png":
            raise SegaeError("the disk is full")
        write(path, save)

    monkeypatch.setattr(prediction, "write_atomically", full_at_the_second)
    for index in range(4):
        draw(tmp_path / "in" / f"{index}.png", seed=index)
    with pytest.raises(SegaeError, match="the disk is full"):
        run(Predict(make_segmenter(), tmp_path / "in", tmp_path / "out", batch_size=2, device="cpu"))
    assert (tmp_path / "out" / "0.png").exists()
