"""Segment or classify images: arrays of masks, or mask files at the images' own sizes."""

import functools
import importlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import lazy_loader
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter
from tqdm.auto import tqdm

from segae._io import logger, require_package, show_messages, write_atomically
from segae._settings import PathLike, make_config
from segae.applications.trust import FLAGGED_BELOW, TrustScore
from segae.commands._data import write_skipped
from segae.commands.evaluate import load_model, name_model
from segae.config import PredictConfig
from segae.data import ImageFormat, SkippedFiles, UnreadableImage, find_images, read_formatted, resize_image
from segae.data.cache import read_ahead
from segae.data.video import VIDEO_SUFFIXES, read_frames, write_video
from segae.errors import DataError, SegaeError
from segae.evaluation import overlay
from segae.exporters.predictor import OnnxPredictor
from segae.models import Classifier, Segmenter, SegmenterInfo, inference
from segae.training import limit_threads, open_result_folder

rasterio = lazy_loader.load("rasterio")  # an extra, for GeoTIFF

_JPEG_QUALITY = 92
_NO_OBJECT = "background"  # the class of pixels that COCO has no annotation for
_AT_ONCE = 8  # images that are written at the same time

Files = dict[str, Path]
Prediction = inference.Prediction


class _Loaded(NamedTuple):
    path: Path
    image: Any = None  # (H, W, C) of the model's format; None where it cannot be read
    square: Any = None
    reason: str = ""


class _Result(NamedTuple):
    row: dict[str, Any]  # of predictions.csv
    height: int
    width: int
    regions: list[dict[str, Any]]  # of coco.json


def predict(
    model: Segmenter | Classifier | PathLike,
    images: Any,
    *,
    out: PathLike | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    tta: bool = False,
    overlay: bool = True,
    probabilities: bool = False,
    confidence: bool = False,
    coco: str = "none",
    geotiff: bool = False,
    batch_size: int = 8,
    max_pixels: int = 100_000_000,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
) -> Any:
    """Segment or classify images with a model, a file or one in memory; the settings are those of `PredictConfig`.

    ``images`` are an image, a folder or a video, or several; without ``out`` images, also as arrays uint8 (H, W, 3), or
    numbers for a model of other images. ``overlap`` is a share of the side ``tile`` in pixels. Settings about files
    have no effect without ``out``.

    Returns:
        Paths of the mask files, index PNGs at the images' own sizes; without ``out`` uint8 (H, W) class indices, with
        ``probabilities`` float32 (K, H, W), a list of them for several images. With a classifier the path of
        predictions.csv; without ``out`` what `Classifier.predict` gives.

    Raises:
        SegaeError: no readable image, results that would overwrite an image or other files, or a bad model file.

    Example:
        >>> mask = predict("runs/finetune/model.safetensors", "cat.jpg")  # doctest: +SKIP
    """
    if out is None and str(model).endswith(".onnx"):
        raise SegaeError(f"out must be a folder for the ONNX file {model}, got None; segae.OnnxPredictor gives arrays")
    if out is None:
        with limit_threads(threads):
            how: dict[str, Any] = {"tile": tile, "overlap": overlap, "tta": tta, "batch_size": batch_size}
            found = load_model(model, device, Segmenter | Classifier)
            how = {"batch_size": batch_size} if isinstance(found, Classifier) else how
            return found.predict(images, return_probabilities=probabilities, **how)
    settings = {name: value for name, value in locals().items() if name in PredictConfig.__dataclass_fields__}
    with show_messages(), limit_threads(threads):
        return _predict_files(make_config(PredictConfig, **settings))


def describe_prediction(found: Prediction, info: SegmenterInfo, trust: float | None = None) -> dict[str, float]:
    """Compute what tables and pages say about an image: mean confidence, share of each class, trust if it is known."""
    counts = Image.fromarray(found.mask).histogram()
    shares = {f"share_{name}": counts[index] / found.mask.size for index, name in enumerate(info.classes)}
    return {"mean_confidence": found.mean_confidence, **({} if trust is None else {"trust": trust}), **shares}


def color_mask(mask: NDArray[np.uint8], info: SegmenterInfo) -> Image.Image:
    """Make a palette image of class indices (H, W)."""
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([value for color in info.palette for value in color])
    return picture


def _classify_files(config: PredictConfig, model: Classifier) -> list[Path]:
    """Write the class of each image, and its probability, into predictions.csv."""
    for name in ("tile", "tta", "probabilities", "confidence", "coco", "geotiff"):
        if (value := getattr(config, name)) != getattr(PredictConfig, name):
            raise SegaeError(f"{name} must be left out for a classifier, got {value}")
    roots, skipped, rows = [Path(root) for root in config.images], SkippedFiles(), []  # type: ignore[union-attr]
    paths, settings = find_images(roots), {"model": name_model(config.model), "images": [str(root) for root in roots]}
    how: dict[str, Any] = {"files": ["predictions.csv"], "inputs": "images", "overwrite": config.overwrite}
    out = open_result_folder(Path(config.out), settings, task="predict", **how)
    for batch in _read_images(config, paths, model.info.format):
        skipped.extend((one.path, one.reason) for one in batch if one.image is None)
        read = [one for one in batch if one.image is not None]
        found = inference.predict_probabilities(model, np.array([one.square for one in read])).max(dim=1)
        for one, place, probability in zip(read, found.indices, found.values.tolist(), strict=True):
            rows.append({"image": one.path, "class": model.info.classes[place], "probability": round(probability, 4)})
    _write_csv(out, rows)
    _require_results(out, rows, skipped, len(paths))
    logger.info("wrote %s", out / "predictions.csv")
    return [out / "predictions.csv"]


def _predict_files(config: PredictConfig) -> list[Path]:
    if isinstance(opened := _open_model(config), Classifier):
        return _classify_files(config, opened)
    network, info, watching = opened
    roots = [Path(path) for path in config.images]  # type: ignore[union-attr]
    videos = [root for root in roots if root.suffix.lower() in VIDEO_SUFFIXES and root.is_file()]
    extras = {("av", "video"): videos, ("pycocotools", "coco"): config.coco != "none"}
    for (package, extra), used in (extras | {("rasterio", "geo"): config.geotiff}).items():
        if used:
            require_package(package, extra)
    paths, out = find_images([root for root in roots if root not in videos]), Path(config.out)
    targets = _name_outputs([*videos, *paths], roots, out, config)
    _require_separate(roots, out, targets)
    written = [os.path.relpath(file, out) for files in targets.values() for file in files.values()]
    written += [] if (out / "config.json").exists() else ["predictions.csv", "coco.json"]  # each call makes them again
    settings = {"model": name_model(config.model), "images": [str(root) for root in roots]}
    settings |= {name: getattr(config, name) for name in ("tile", "overlap", "tta")}
    open_result_folder(out, settings, task="predict", files=written, inputs="images", overwrite=config.overwrite)
    skipped = SkippedFiles()
    network = inference.augment_network(network) if config.tta else network
    how: dict[str, Any] = {name: getattr(config, name) for name in ("tile", "overlap", "batch_size", "confidence")}
    how |= {"image_size": info.format, "probabilities": torch.float16 if config.probabilities else None}
    masks: list[Path] = []
    running: deque[Future[_Result]] = deque()
    results: list[_Result] = []

    def segment(batches: Iterable[list[_Loaded]], folder: Path | None = None) -> Iterator[tuple[Any, Any]]:
        """Have the results of images, or of a video's frames, written, and yield images and masks."""
        for batch in batches:
            skipped.extend((one.path, one.reason) for one in batch if one.image is None)
            read = [one for one in batch if one.image is not None]
            images, squares = [one.image for one in read], [one.square for one in read]
            for place, found in enumerate(inference.predict_images(network, images, squares=squares, **how)):
                if not place and judge:
                    scores = judge(np.stack(squares))
                one, score = read[place], float(scores[place]) if judge else None
                files = _name_files(folder / one.path.name, one.path, config) if folder else targets[one.path]
                if len(running) == (1 if config.tile else _AT_ONCE):  # what waits must not fill the memory
                    results.append(running.popleft().result())
                running.append(pool.submit(_write, one, found, score, files, info, config))
                masks.append(files["mask"])
                bar.update(len(masks) + len(skipped) - bar.n)
                yield one.image, found.mask

    bar = tqdm(total=None if videos else len(paths), desc="predict", unit="image", leave=False, disable=None)
    try:
        with bar, ThreadPoolExecutor(_AT_ONCE) as pool, watching as judge:
            deque(segment(_read_images(config, paths, info.format)), maxlen=0)
            for video in videos:
                read = _read_video(video, info.format, config.max_pixels)
                batches = iter(lambda read=read: list(islice(read, config.batch_size)), [])  # type: ignore[misc]
                frames = segment(batches, targets[video]["mask"])
                if config.overlay:
                    write_video(targets[video]["overlay"], (overlay(*one, info.palette) for one in frames), like=video)
                deque(frames, maxlen=0)
            while running:
                results.append(running.popleft().result())
    finally:
        _write_tables(out, results, info.classes, coco=config.coco != "none")
    _require_results(out, masks, skipped, len(paths) + len(videos))
    logger.info("wrote %d mask%s to %s", len(masks), "" if len(masks) == 1 else "s", out)
    if doubtful := sum(one.row.get("trust", 1) < FLAGGED_BELOW for one in results):
        few = f"{doubtful} of {len(masks)} images are unlike the training images, trust below {FLAGGED_BELOW}"
        logger.warning("%s: do not trust their masks; predictions.csv lists them", few)
    return masks


def _write_tables(out: Path, results: Sequence[_Result], classes: Sequence[str], *, coco: bool) -> None:
    """Write predictions.csv and, if asked for, coco.json; a coco.json of an earlier call goes."""
    _write_csv(out, [one.row for one in results])
    (out / "coco.json").unlink(missing_ok=True)
    if coco:
        categories = [{"id": index, "name": name} for index, name in enumerate(classes) if name.lower() != _NO_OBJECT]
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        known = {one["id"] for one in categories}
        for number, one in enumerate(results):
            name = Path(one.row["mask"]).with_name(Path(one.row["image"]).name).as_posix()
            about = {"id": number, "file_name": name, "height": one.height, "width": one.width}
            content["images"].append(about)
            for region in (region for region in one.regions if region["category_id"] in known):
                content["annotations"].append({"id": len(content["annotations"]) + 1, "image_id": number, **region})
        write_atomically(out / "coco.json", json.dumps(content).encode())


def _write_csv(out: Path, rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows).to_csv(index=False)
    write_atomically(out / "predictions.csv", table.encode("utf-8", "backslashreplace"))


def _require_results(out: Path, results: Sequence[Any], skipped: SkippedFiles, count: int) -> None:
    """List what was skipped; refuse to go on where that is everything."""
    write_skipped(out, skipped)
    if not results:
        raise DataError(f"images must be readable, got {count} of which none is: {out / 'skipped.csv'} says why")


def _open_model(config: PredictConfig) -> tuple[inference.Network, SegmenterInfo, Any] | Classifier:
    """A classifier; else the network of a model, its info, and a context that gives a function for trust, or None."""
    if str(config.model).endswith(".onnx"):
        predictor = OnnxPredictor(config.model, threads=config.threads or 0)
        if predictor.metadata["task"] != "segmentation" or (config.tta and not predictor.metadata["stride"]):
            what = "a segmenter, without tta where its size is fixed"
            raise SegaeError(f"model must be {what}, got {config.model} for {predictor.metadata['task']}")
        info = TypeAdapter(SegmenterInfo).validate_python(predictor.metadata["info"])
        return lambda images: torch.from_numpy(predictor.run(images)["logits"]), info, nullcontext()
    model = load_model(config.model, config.device, Segmenter | Classifier)
    if isinstance(model, Classifier):
        return model
    trust = TrustScore.find(config.model, model)
    return inference.make_network(model), model.info, trust.watch(model) if trust else nullcontext()


def _read_images(config: PredictConfig, paths: Sequence[Path], form: ImageFormat) -> Iterator[list[_Loaded]]:
    """Yield images and their squares in batches, of one image with tiles."""
    load = functools.partial(_load, form=form, max_pixels=config.max_pixels)
    return read_ahead(load, paths, 1 if config.tile else config.batch_size)


def _read_video(video: Path, form: ImageFormat, max_pixels: int) -> Iterator[_Loaded]:
    """Yield frames and their squares; where the video breaks off, the reason comes last."""
    try:
        for number, frame in enumerate(read_frames(video, max_pixels=max_pixels)):
            yield _Loaded(video / f"{number:06}", frame, resize_image(frame, form))
    except UnreadableImage as error:
        yield _Loaded(video, reason=error.reason)


def _load(path: Path, form: ImageFormat, max_pixels: int) -> _Loaded:
    """An image and its small square, or why there is none: an exception would end the other readers too."""
    try:
        image = read_formatted(path, form, max_pixels=max_pixels)
        return _Loaded(path, image, resize_image(image, form))
    except UnreadableImage as error:
        return _Loaded(path, reason=error.reason)


def _name_outputs(paths: Sequence[Path], roots: Sequence[Path], out: Path, config: PredictConfig) -> dict[Path, Files]:
    """Where the results of each image go: below ``out`` as the image lies below its root.

    Images that differ only in their suffix, or lie at the same place below different roots, get more in their names, so
    that none overwrites another's result; letter case counts as equal, because on some disks it is.
    """
    folders = [root if root.is_dir() else root.parent for root in roots]
    places = {path: path.relative_to(next(one for one in folders if path.is_relative_to(one))) for path in paths}
    plain = Counter(str(place.with_suffix("")).lower() for place in places.values())
    taken = {stem for stem, uses in plain.items() if uses == 1}
    named: dict[Path, Files] = {}
    for path, place in places.items():
        stem = place.with_suffix("")
        if plain[str(stem).lower()] > 1:
            stem = stem.with_name(f"{stem.name}_{place.suffix[1:]}")
            while str(stem).lower() in taken:
                stem = stem.with_name(f"{stem.name}_")
            taken.add(str(stem).lower())
        named[path] = _name_files(out / stem, path, config)
        if path.suffix.lower() in VIDEO_SUFFIXES:  # a folder for the results of its frames
            named[path] = {"mask": out / stem, "overlay": out / stem.with_name(f"{stem.name}_overlay.mp4")}
    return named


def _name_files(stem: Path, source: Path, config: PredictConfig) -> Files:
    """The files of an image's results, by what the settings call them."""
    endings = {"overlay": "_overlay.jpg", "probabilities": "_probabilities.npz", "confidence": "_confidence.png"}
    if source.suffix.lower() in (".tif", ".tiff"):
        endings["geotiff"] = ".tif"
    if source.parent.suffix.lower() in VIDEO_SUFFIXES:  # a frame, which the video's overlay shows
        del endings["overlay"]
    chosen = {"mask": ".png"} | {name: ending for name, ending in endings.items() if getattr(config, name)}
    return {name: stem.with_name(f"{stem.name}{ending}") for name, ending in chosen.items()}


def _require_separate(roots: Sequence[Path], out: Path, targets: Mapping[Path, Files]) -> None:
    """Refuse to write results over images, or where the next prediction would take them for images."""
    place, sources = out.resolve(), {path.resolve() for path in targets}
    inside = [root for root in roots if root.is_dir() and root.resolve() in (place, *place.parents)]
    over = [file for files in targets.values() for file in files.values() if file.resolve() in sources]
    if inside or over:
        problem = f"{over[0]} would be overwritten" if over else f"it is inside {inside[0]}"
        raise SegaeError(f"out must be a folder apart from the images, got {out}: {problem}")


def _write(
    one: _Loaded, found: Prediction, trust: float | None, files: Files, info: SegmenterInfo, config: PredictConfig
) -> _Result:
    """Write the results of an image; return what the tables say about it."""
    pictures = {"mask": (color_mask(found.mask, info), "PNG")}
    if "overlay" in files:
        pictures["overlay"] = (Image.fromarray(overlay(one.image, found.mask, info.palette)), "JPEG")
    if found.confidence is not None:
        pictures["confidence"] = (Image.fromarray(found.confidence), "PNG")
    for name, (picture, kind) in pictures.items():
        write_atomically(files[name], functools.partial(picture.save, format=kind, quality=_JPEG_QUALITY))
    if found.probabilities is not None:
        save: Any = functools.partial(np.savez_compressed, probabilities=found.probabilities, classes=info.classes)
        write_atomically(files["probabilities"], save)
    if "geotiff" in files:
        _write_geotiff(files["geotiff"], found.mask, info, one.path)
    mask = files["mask"].relative_to(config.out)
    row = {"image": str(one.path), "mask": str(mask), **describe_prediction(found, info, trust)}
    regions = [] if config.coco == "none" else _encode_regions(found.mask, polygons=config.coco == "polygons")
    return _Result(row, len(found.mask), found.mask.shape[1], regions)


def _write_geotiff(path: Path, mask: NDArray[np.uint8], info: SegmenterInfo, image: Path) -> None:
    """Write class indices with their colors and the georeference of the image."""
    with rasterio.open(image, driver="GTiff") as source:
        about = {"crs": source.crs, "transform": source.transform, "height": len(mask), "width": mask.shape[1]}
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, dtype="uint8", compress="deflate", **about) as target:
            target.write(mask, 1)
            target.write_colormap(1, dict(enumerate(info.palette)))
        write_atomically(path, memory.getbuffer())


def _encode_regions(mask: NDArray[np.uint8], *, polygons: bool) -> list[dict[str, Any]]:
    """Make the COCO annotation of each class in a mask, run-length encoded or as the outlines of its parts."""
    coder, regions = importlib.import_module("pycocotools.mask"), []
    for index in np.flatnonzero(Image.fromarray(mask).histogram()):
        code = coder.encode(np.asfortranarray(mask == index, np.uint8))
        about = {"category_id": int(index), "area": int(coder.area(code)), "bbox": coder.toBbox(code).tolist()}
        shape: Any = {**code, "counts": code["counts"].decode()}
        if polygons:
            # cv2 goes through the centers of pixels, which would make regions smaller by half a pixel: of four in place
            # of each one the outer ones lead to the edges
            double = cv2.resize((mask == index).astype(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            shape = [((outline + 1) // 2).ravel().tolist() for outline in outlines]
        regions += [{**about, "segmentation": shape, "iscrowd": 0}] if shape else []
    return regions
