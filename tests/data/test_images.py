"""Every kind of file that people have, and every kind of file that is broken."""

from __future__ import annotations

import csv
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segae.data.images import UnreadableImage, read_image, read_mask
from segae.data.quarantine import Quarantine
from segae.errors import SegaeError

anywhere = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def random_bytes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@anywhere
@given(size=sizes, seed=st.integers(0, 99), extension=st.sampled_from(["png", "tiff", "bmp", "jpg.png"]))
def test_rgb_and_grey_come_back_unchanged(tmp_path: Path, size: tuple[int, int], seed: int, extension: str) -> None:
    colour, grey = random_bytes((*size, 3), seed), random_bytes(size, seed)
    assert np.array_equal(read_image(save(tmp_path / f"c.{extension}", colour)), colour)
    as_rgb = read_image(save(tmp_path / f"g.{extension}", grey))
    assert as_rgb.dtype == np.uint8
    assert np.array_equal(as_rgb, np.repeat(grey[..., None], 3, 2))


@anywhere
@given(size=sizes, seed=st.integers(0, 99))
def test_16_bit_grey_is_scaled_by_its_range_and_kept_in_masks(tmp_path: Path, size: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 65536, size, dtype=np.uint16)
    for extension in ("png", "tiff"):
        path = save(tmp_path / f"deep.{extension}", values)
        assert np.array_equal(read_image(path)[..., 1], np.round(values / 257))
        assert np.array_equal(read_mask(path), values)


@anywhere
@given(size=sizes, seed=st.integers(0, 99), colours=st.integers(2, 256))
def test_palette_images_give_colours_and_palette_masks_give_indices(
    tmp_path: Path, size: tuple[int, int], seed: int, colours: int
) -> None:
    indices = np.random.default_rng(seed).integers(0, colours, size, dtype=np.uint8)
    palette = random_bytes((256, 3), seed)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_mask(tmp_path / "p.png"), indices)
    assert np.array_equal(read_image(tmp_path / "p.png"), palette[indices])


@anywhere
@given(size=sizes, seed=st.integers(0, 99))
def test_transparency_lies_over_white(tmp_path: Path, size: tuple[int, int], seed: int) -> None:
    rgba = random_bytes((*size, 4), seed)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_image(save(tmp_path / "a.png", rgba)) - expected).max() <= 1
    grey_alpha = np.stack([rgba[..., 0], rgba[..., 3]], -1)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "la.png")
    assert np.abs(read_image(tmp_path / "la.png")[..., 2] - expected[..., 0]).max() <= 1


def test_transparent_colours_of_a_palette_and_of_grey_are_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.uint8([[0, 1]]))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[255] * 3, [0, 100, 0]]]
    save(tmp_path / "l.png", np.uint8([[7, 9]]), transparency=7)
    assert read_image(tmp_path / "l.png")[0, :, 0].tolist() == [255, 9]


def test_one_bit_images_are_black_and_white_and_masks_zero_and_one(tmp_path: Path) -> None:
    save(tmp_path / "b.png", np.array([[True, False]]))
    assert read_image(tmp_path / "b.png")[0, :, 0].tolist() == [255, 0]
    assert read_mask(tmp_path / "b.png").tolist() == [[1, 0]]
    assert read_mask(tmp_path / "b.png").dtype == np.int32


def test_cmyk_is_turned_to_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (200, 30, 20)).convert("CMYK")
    red.save(tmp_path / "c.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "c.jpg").mean((0, 1)) - (200, 30, 20)).max() < 6


@pytest.mark.parametrize(
    ("top", "stored"), [(1.0, [0.0, 0.5, 1.0]), (255.0, [0.0, 127.5, 255.0]), (65535.0, [0, 32767.5, 65535])]
)
def test_float_tiff_is_scaled_by_the_range_that_holds_it(tmp_path: Path, top: float, stored: list[float]) -> None:
    path = save(tmp_path / f"{top}.tiff", np.float32([stored]))
    assert read_image(path)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[np.nan, 0], [-1, 0], [0, 1e6], [np.inf, 0]])
def test_float_values_without_a_known_range_are_refused(tmp_path: Path, values: list[float]) -> None:
    path = save(tmp_path / "odd.tiff", np.float32([values]))
    with pytest.raises(UnreadableImage, match=r"not finite|values run from"):
        read_image(path)


def test_16_bit_tiff_of_either_byte_order(tmp_path: Path) -> None:
    big = np.array([[0, 257 * 9, 65535]], dtype=">u2")
    Image.frombytes("I;16B", (3, 1), big.tobytes()).save(tmp_path / "big.tiff")
    assert read_image(tmp_path / "big.tiff")[0, :, 0].tolist() == [0, 9, 255]
    assert read_mask(tmp_path / "big.tiff").tolist() == [[0, 2313, 65535]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_exif_orientation_turns_image_and_mask(tmp_path: Path, orientation: int, extension: str) -> None:
    upright = np.arange(1, 7, dtype=np.uint8).reshape(2, 3) * 40
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.T, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"o.{extension}"
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(path, exif=exif)
    assert np.array_equal(read_image(path)[..., 0], upright)
    assert np.array_equal(read_mask(path), upright)


def test_damaged_exif_does_not_stop_the_image(tmp_path: Path) -> None:
    path = save(tmp_path / "e.jpg", np.full((8, 8, 3), 90, np.uint8), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert read_image(path).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "BMP", "TIFF", "WEBP"])
def test_the_extension_is_not_believed(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "x.jpg", format=kind)
    assert np.abs(read_image(tmp_path / "x.jpg").astype(int) - (255, 0, 0)).max() < 8


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "two.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not an image at all", "no known image format"), (None, "No such file")],
)
def test_broken_files_say_why(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(UnreadableImage, match=reason) as caught:
            read(path)
        assert caught.value.path == path
        assert str(path) in str(caught.value)


@anywhere
@given(cut=st.floats(0.02, 0.9), extension=st.sampled_from(["png", "jpg", "gif", "tiff", "bmp"]))
def test_truncated_files_are_unreadable_and_never_another_error(tmp_path: Path, cut: float, extension: str) -> None:
    path = save(tmp_path / f"t.{extension}", random_bytes((40, 40, 3), 0))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(UnreadableImage):
        read_image(path)


@anywhere
@given(seed=st.integers(0, 10_000), extension=st.sampled_from(["png", "jpg", "gif", "tiff", "webp"]))
def test_damaged_bytes_give_an_image_or_unreadable(tmp_path: Path, seed: int, extension: str) -> None:
    path = save(tmp_path / f"d.{extension}", random_bytes((12, 12, 3), 0))
    generator = np.random.default_rng(seed)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[generator.integers(0, len(data), 6)] = generator.integers(0, 256, 6)
    path.write_bytes(data.tobytes())
    try:
        image = read_image(path)
    except UnreadableImage:
        return
    assert image.ndim == 3
    assert image.dtype == np.uint8


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage(Path("a.jpg"), "because")))
    assert (error.path, error.reason) == (Path("a.jpg"), "because")


def test_grey_saved_as_colour_is_a_mask(tmp_path: Path) -> None:
    values = np.uint8([[0, 1], [2, 1]])
    rgb = np.repeat(values[..., None], 3, 2)
    assert np.array_equal(read_mask(save(tmp_path / "rgb.png", rgb)), values)
    rgba = np.dstack([rgb, np.full((2, 2), 255, np.uint8)])
    assert np.array_equal(read_mask(save(tmp_path / "rgba.png", rgba)), values)
    assert np.array_equal(read_mask(save(tmp_path / "whole.tiff", values.astype(np.float32))), values)


def test_pictures_are_no_masks(tmp_path: Path) -> None:
    colours = save(tmp_path / "colours.png", np.uint8([[[1, 2, 3]]]))
    halves = save(tmp_path / "halves.tiff", np.float32([[0.5]]))
    nan = save(tmp_path / "nan.tiff", np.float32([[np.nan]]))
    clear = save(tmp_path / "clear.png", np.uint8([[[1, 1, 1, 9]]]))
    for path, what in ((colours, "colours"), (halves, "whole"), (nan, "whole"), (clear, "transparent")):
        with pytest.raises(SegaeError, match=what) as caught:
            read_mask(path)
        assert not isinstance(caught.value, UnreadableImage)


def test_a_16_bit_colour_mask_is_refused_because_half_of_it_is_lost(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((2, 2, 3), 5, np.uint16))
    with pytest.raises(SegaeError, match="16 bits"):
        read_mask(tmp_path / "deep.png")
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((2, 2, 3), 257 * 70, np.uint16))
    assert (read_image(tmp_path / "deep.png") == 70).all()


def test_quarantine_is_reported_once_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quarantine = Quarantine()
    assert quarantine.write(tmp_path) is None
    for number in range(5):
        quarantine.add(Path(f"{number}.jpg"), "truncated, sadly")
    quarantine.add(Path("0.jpg"), "another reason")
    assert len(quarantine) == 5
    with caplog.at_level(logging.WARNING, "segae"):
        quarantine.report()
        quarantine.report()
    assert len(caplog.records) == 1
    assert "5 unreadable" in caplog.text
    assert "truncated" in caplog.text
    assert "2 more" in caplog.text
    path = quarantine.write(tmp_path)
    assert path is not None
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["path", "reason"], ["0.jpg", "truncated, sadly"]]
    assert len(rows) == 6
    Quarantine().write(tmp_path)
    assert path.exists()
    Quarantine().write(tmp_path, anew=True)
    assert not path.exists()


@pytest.mark.real
def test_pets_that_are_not_what_their_names_say(real_data: Path) -> None:
    folder = real_data / "oxford-iiit-pet-sample" / "images"
    for name, kind in (("Abyssinian_34", "GIF"), ("Abyssinian_5", "PNG")):
        path = folder / f"{name}.jpg"
        with Image.open(path) as image:
            assert image.format == kind
            height_width = image.size[::-1]
        array = read_image(path)
        assert array.shape == (*height_width, 3)
        assert array.std() > 20
