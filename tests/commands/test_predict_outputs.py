"""Further results of ``segae.predict``: tables, confidence, COCO, GeoTIFF, videos, and large or broken inputs."""

from __future__ import annotations

import csv
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image
from pycocotools.coco import COCO
from rasterio.transform import from_origin

import segae
from segae.data import read_image
from tests.fabricate import draw, make_images, save

MakeSegmenter = Callable[..., Path]


def read_rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_table_the_maps_and_coco_describe_the_masks(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, photos, out = make_segmenter(), make_images(tmp_path / "photos", 3), tmp_path / "out"
    how = {"confidence": True, "probabilities": True, "coco": "rle", "tile": 40, "device": "cpu"}
    masks = segae.predict(model, photos, out=out, **how)
    rows, coco = read_rows(out), COCO(str(out / "coco.json"))
    assert [out / row["mask"] for row in rows] == masks
    names = [Path(row["image"]).relative_to(photos).as_posix() for row in rows]
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == names
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == ["pet", "border"]
    for number, (row, path) in zip(coco.getImgIds(), zip(rows, masks, strict=True), strict=True):
        mask, stem = np.asarray(Image.open(path)), path.with_suffix("")
        with np.load(f"{stem}_probabilities.npz") as stored:
            largest = stored["probabilities"].astype(np.float32).max(axis=0)
        np.testing.assert_allclose(np.asarray(Image.open(f"{stem}_confidence.png")) / 255, largest, atol=0.003)
        assert float(row["mean_confidence"]) == pytest.approx(largest[::4, ::4].mean(), abs=1e-3)
        for index, name in enumerate(("pet", "background", "border")):
            assert float(row[f"share_{name}"]) == pytest.approx((mask == index).mean())
            found = coco.loadAnns(coco.getAnnIds(imgIds=[number], catIds=[index]))
            assert len(found) == (mask == index).any() * (name != "background")
            for one in found:
                assert np.array_equal(coco.annToMask(one), mask == index)
                assert one["area"] == (mask == index).sum()


def test_outlines_fill_the_regions_that_they_surround(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    photos, out = make_images(tmp_path / "photos", 2, size=96), tmp_path / "out"
    masks = segae.predict(make_segmenter(), photos, out=out, coco="polygons", device="cpu")
    coco = COCO(str(out / "coco.json"))
    assert len(coco.anns) > 2
    for one in coco.anns.values():
        mask = np.asarray(Image.open(masks[one["image_id"]])) == one["category_id"]
        outside = cv2.floodFill(np.pad(mask, 1).astype(np.uint8), None, (0, 0), 2, flags=4)[1] == 2
        without_holes = ~outside[1:-1, 1:-1]
        assert (coco.annToMask(one) == without_holes).mean() > 0.99
        assert coco.annToMask(one).sum() == pytest.approx(without_holes.sum(), rel=0.03)


def test_a_geotiff_mask_lies_where_its_image_lies(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    image, place = draw(np.random.default_rng(0), 96)[0][:70], from_origin(500_000, 5_400_000, 0.5, 0.5)
    (tmp_path / "in").mkdir()
    about = {"driver": "GTiff", "height": 70, "width": 96, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "in" / "field.tif", "w", transform=place, **about) as file:
        file.write(image.transpose(2, 0, 1))
    save(image, tmp_path / "in" / "plain.png")
    masks = segae.predict(make_segmenter(), tmp_path / "in", out=tmp_path / "out", geotiff=True, device="cpu")
    with rasterio.open(tmp_path / "out" / "field.tif") as file:
        assert (file.crs.to_epsg(), file.transform) == (32633, place)
        assert np.array_equal(file.read(1), np.asarray(Image.open(masks[0])))
        assert file.colormap(1)[1][:3] == (40, 170, 90)
    assert not (tmp_path / "out" / "plain.tif").exists()


def film(path: Path, count: int, side: int = 64, **options: str) -> list[np.ndarray]:
    """Write a video at ten frames a second and give its frames as they can be read back."""
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5", "g": "1"})
        stream.width, stream.height, stream.pix_fmt = side, 64, "yuv420p"
        for number in range(count):
            image = draw(np.random.default_rng(number), max(side, 64))[0][:64, :side]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_gives_a_mask_per_frame_and_a_video_of_overlays(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, out = make_segmenter(), tmp_path / "out"
    frames = film(tmp_path / "clip.mp4", 11, 80)
    photo = save(draw(np.random.default_rng(5))[0], tmp_path / "cat.png")
    masks = segae.predict(model, [tmp_path / "clip.mp4", photo], out=out, batch_size=4, device="cpu")
    assert masks == [out / "cat.png", *(out / "clip" / f"{number:06}.png" for number in range(11))]
    expected = segae.predict(model, frames, device="cpu")
    assert all(
        np.array_equal(np.asarray(Image.open(path)), mask) for path, mask in zip(masks[1:], expected, strict=True)
    )
    assert [Path(row["image"]).name for row in read_rows(out)[1:3]] == ["000000", "000001"]
    with av.open(out / "clip_overlay.mp4") as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 10
    palette = np.array(segae.load_segmenter(model).info.palette)
    assert len(shown) == 11
    assert np.abs(shown[7] - (frames[7] + palette[expected[7]]) / 2).mean() < 12  # H.264 and halved colors
    assert not list((out / "clip").glob("*.jpg"))


@pytest.mark.parametrize("damage", ["cut.mkv", "cut.mp4", "text.mp4", "playlist.mp4", "turned.mp4"])
def test_what_can_be_read_of_a_broken_video_is_kept(make_segmenter: MakeSegmenter, tmp_path: Path, damage: str) -> None:
    video, out = tmp_path / damage, tmp_path / "out"
    frames = film(video, 40, 96, **({"movflags": "faststart"} if video.suffix == ".mp4" else {}))
    content = bytearray(video.read_bytes())
    if "cut" in damage:
        del content[len(content) // 2 :]
    elif "turned" in damage:  # a telephone that was held upright, by the matrix of the header
        place = content.index(b"tkhd") + 40 + 4
        content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    else:
        good = tmp_path / "good.mp4"
        good.write_bytes(content)
        content = f"#EXTM3U\n#EXTINF:4,\n{good}\n#EXT-X-ENDLIST\n".encode() if "playlist" in damage else b"no video"
    video.write_bytes(content)
    photo = save(draw(np.random.default_rng(5))[0], tmp_path / "cat.png")
    masks = segae.predict(make_segmenter(), [video, photo], out=out, overlay="cut" in damage, device="cpu")
    assert masks[0] == out / "cat.png"
    kept = len(masks) - 1
    if "turned" in damage:
        assert (kept, Image.open(masks[1]).size, (out / "skipped.csv").exists()) == (40, (64, 96), False)
        return
    assert "text" in damage or "playlist" in damage or 5 < kept < 35
    assert f"after {kept} frames" in (out / "skipped.csv").read_text()
    assert (out / f"{video.stem}_overlay.mp4").exists() == ("cut" in damage)
    assert np.asarray(Image.open(masks[-1])).shape == (frames[0].shape[:2] if kept else (64, 64))


def make_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a large picture."""
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("tile", [None, 48])
def test_bombs_and_damage_in_the_middle_are_skipped(
    make_segmenter: MakeSegmenter, tmp_path: Path, tile: int | None
) -> None:
    photos, out = make_images(tmp_path / "photos", 5), tmp_path / "out"
    names = sorted(path.name for path in photos.iterdir())
    (photos / names[1]).write_bytes(make_png(60_000, 60_000))
    (photos / names[2]).write_bytes(make_png(10_001, 10_000))
    (photos / names[3]).write_bytes((photos / names[3]).read_bytes()[:200])
    masks = segae.predict(make_segmenter(), photos, out=out, tile=tile, tta=True, batch_size=2, device="cpu")
    assert [path.stem for path in masks] == [Path(names[place]).stem for place in (0, 4)]
    reasons = dict(csv.reader((out / "skipped.csv").open()))
    assert "bomb" in reasons[str(photos / names[1])]
    assert "10001 x 10000 pixels are more than max_pixels" in reasons[str(photos / names[2])]
    assert len(reasons) == 4
    expected = segae.predict(
        segae.load_segmenter(tmp_path / "model" / "model.safetensors"), photos / names[4], tile=tile, tta=True
    )
    assert np.array_equal(np.asarray(Image.open(masks[1])), expected)


def test_other_tiles_are_other_results(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    model, image = make_segmenter(), save(draw(np.random.default_rng(0), 160)[0], tmp_path / "a.png")
    masks = [segae.predict(model, read_image(image), tile=tile) for tile in (None, 64)]
    assert (masks[0] != masks[1]).mean() > 0.01
    segae.predict(model, image, out=tmp_path / "out", device="cpu")
    with pytest.raises(segae.SegaeError, match="tile was"):
        segae.predict(model, image, out=tmp_path / "out", tile=64, device="cpu")


@pytest.mark.parametrize(
    ("package", "settings"), [("pycocotools", {"coco": "rle"}), ("rasterio", {"geotiff": True}), ("av", {})]
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    make_segmenter: MakeSegmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, settings: dict
) -> None:
    (tmp_path / "clip.mp4").touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(segae.SegaeError, match=rf"{package} must be installed: pip install 'segae\["):
        segae.predict(make_segmenter(), tmp_path / "clip.mp4", out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_table_of_somebody_else_is_not_replaced(make_segmenter: MakeSegmenter, tmp_path: Path) -> None:
    table = tmp_path / "out" / "predictions.csv"
    table.parent.mkdir()
    table.write_text("mine")
    with pytest.raises(segae.SegaeError, match="out must be .*predictions.csv"):
        segae.predict(make_segmenter(), make_images(tmp_path / "photos", 1), out=tmp_path / "out", device="cpu")
    assert (table.read_text(), json.dumps(sorted(path.name for path in table.parent.iterdir()))) == (
        "mine",
        '["predictions.csv"]',
    )
