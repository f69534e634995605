"""Compare exported models with segae on the same images: one row per target in results/applications.csv.

python benchmarks/export_parity.py [--model runs/finetune/model.safetensors] [--images FOLDER] [--write]

Takes about two minutes on a CPU, and torchgeo, anomalib and fastai (the extra dev).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
import tyro
from anomalib.models.components import TimmFeatureExtractor
from fastai.vision.learner import create_timm_model
from torch import Tensor
from torchgeo.trainers import SemanticSegmentationTask

import segae
from benchmarks.application_rows import write_rows

Maps = Callable[[Tensor], Any]
IMAGES = 32


def encoder_readers(folder: str, onnx: Path, encoder: segae.Encoder) -> dict[str, Maps]:
    """What each library makes of the folder, from normalized images to maps of which the last four are compared."""
    mean, std = np.array(encoder.info.mean, np.float32), np.array(encoder.info.std, np.float32)

    def run_onnx(images: Tensor) -> list[Tensor]:
        pixels = (images.permute(0, 2, 3, 1).numpy() * std + mean) * 255
        found = segae.OnnxPredictor(onnx).run(pixels.round().astype(np.uint8))
        return [torch.from_numpy(found[f"map_{stride}"]) for stride in (4, 8, 16, 32)]

    extractor = TimmFeatureExtractor(f"local-dir:{folder}", layers=[1, 2, 3, 4])
    task = SemanticSegmentationTask("unet", f"tu-local-dir:{folder}", True, in_channels=3, num_classes=2)
    hub = segae.Encoder.from_pretrained(folder)
    model = timm.create_model(f"local-dir:{folder}", features_only=True, pretrained=True)
    unet = smp.Unet(f"tu-local-dir:{folder}", encoder_weights=True)
    return {
        "timm": model.eval(),
        "smp": unet.encoder.eval(),
        "torchgeo": task.model.encoder.eval(),
        "anomalib": lambda images: [*extractor(images).values()],
        "hub": hub.eval(),
        "onnx": run_onnx,
    }


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Of the last four maps, relative to the largest value of each where that is above 1."""
    pairs = zip(list(found)[-4:], list(expected)[-4:], strict=True)
    return max(float((one - two).abs().max() / max(1.0, float(two.abs().max()))) for one, two in pairs)


@torch.no_grad()
def main(
    *,
    encoder: str = "pets_pseudo_masks",
    whole: str = "imagenet",
    model: Path = Path("runs/finetune/model.safetensors"),
    images: Path | None = None,
    write: bool = False,
) -> None:
    """Export, load again, compare, and print or write the rows.

    Args:
        encoder: a published name or an encoder file.
        whole: the encoder for fastai, which takes whole networks only: imagenet, or the file of another one.
        model: a segmenter.
        images: folder of images. Default: drawn pets.
        write: replace the rows of the study export in results/applications.csv.
    """
    paths = segae.data.find_images([images or segae.data.drawn_pets() / "images"])[:IMAGES]
    source = segae.load_encoder(encoder).eval()
    size, mean, std = source.info.image_size, source.info.mean, source.info.std
    pixels = np.stack([segae.data.read_resized(path, size) for path in paths])
    batch = segae.evaluation.normalize(pixels, mean, std, "cpu")
    rows: list[dict[str, Any]] = []
    dataset = (images.parent if images.name == "images" else images).name if images else "drawn-pets"

    def add(name: str, target: str, metric: str, value: float) -> None:
        row = {"study": "export", "dataset": dataset, "model": f"{name} to {target}", "metric": metric, "value": value}
        note = "classes" if metric == "pixels_agree" else "probabilities" if " " in name else "last feature maps"
        rows.append(row | {"n": len(paths), "note": f"{note} against those of the same model in segae"})
        print(f"{row['model']:<40} {metric:<20} {value:.3g}", flush=True)

    with tempfile.TemporaryDirectory(prefix="segae-") as place:
        root = Path(place)
        folder = segae.export(source, to="timm", out=root / "encoder")
        onnx = segae.export(source, to="onnx", out=root / "encoder-onnx", images=paths)
        for target, maps in encoder_readers(str(folder), onnx, source).items():
            value = largest_difference(maps(batch), source(batch))
            add(encoder, target, "max_abs_difference", value)

        lite = partial(segae.create_encoder, "tf_efficientnet_lite0", weights="imagenet")
        pooled = lite() if whole == "imagenet" else segae.load_encoder(whole)
        folder = segae.export(pooled, to="fastai", out=root / "whole")
        body = create_timm_model(f"local-dir:{folder}", 2)[0][0].eval()
        network = timm.create_model(pooled.info.architecture, num_classes=0).eval()
        network.load_state_dict(segae.models.hub.whole_network(pooled)[0])
        value = largest_difference([body(batch)], [network.forward_features(batch)])
        add(whole, "fastai", "max_abs_difference", value)

        segmenter = segae.load_segmenter(model).eval()
        info = segmenter.info
        pixels = np.stack([segae.data.read_resized(path, info.image_size) for path in paths])
        batch = segae.evaluation.normalize(pixels, info.encoder.mean, info.encoder.std, "cpu")
        expected, name = segmenter(batch), f"{info.encoder.architecture} {info.decoder}"
        found = {"smp": smp.from_pretrained(segae.export(model, to="smp", out=root / "smp")).eval()(batch)}
        found["hub"] = segae.Segmenter.from_pretrained(segae.export(model, to="hub", out=root / "hub")).eval()(batch)
        predictor = segae.OnnxPredictor(segae.export(model, to="onnx", out=root / "onnx", images=paths))
        found["onnx"] = torch.from_numpy(predictor.run(pixels)["logits"])
        for target, logits in found.items():
            value = float((logits.softmax(1) - expected.softmax(1)).abs().max())
            add(name, target, "max_abs_difference", value)
            add(name, target, "pixels_agree", float((logits.argmax(1) == expected.argmax(1)).float().mean()))
        masks = [predictor.predict(segae.data.read_image(path)) for path in paths]
        whole_size = [np.mean(mask == segmenter.predict(path)) for mask, path in zip(masks, paths, strict=True)]
        add(name, "onnx, image's own size", "pixels_agree", float(np.mean(whole_size)))
    if write:
        write_rows(rows)


if __name__ == "__main__":
    tyro.cli(main)
