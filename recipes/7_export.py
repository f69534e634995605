"""Hand a model to timm, to smp and to ONNX Runtime, and see that all compute the same.

python recipes/7_export.py [IMAGE] [--model pets_pseudo_masks] [--out runs/recipe/export]
"""

from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
import tyro

import segae


def main(
    image: tyro.conf.Positional[Path | None] = None,
    *,
    model: str = "pets_pseudo_masks",
    out: Path = Path("runs/recipe/export"),
) -> None:
    """Export an encoder twice and compare its deepest feature map."""
    encoder = segae.load_encoder(model).eval()
    size, mean, std = encoder.info.image_size, encoder.info.mean, encoder.info.std
    pixels = segae.data.read_resized(image or next(segae.data.drawn_pets().glob("images/*")), size)
    images = segae.evaluation.normalize(pixels[None], mean, std, "cpu")

    # A folder that is a model of timm by its name alone, and a backbone of smp.
    folder = segae.export(encoder, to="timm", out=out / "timm", license="apache-2.0", overwrite=True)
    backbone = timm.create_model(f"local-dir:{folder}", features_only=True, pretrained=True).eval()
    unet = smp.Unet(f"tu-local-dir:{folder}", encoder_weights=True, classes=3).eval()

    # ONNX, with the normalization inside.
    predictor = segae.OnnxPredictor(segae.export(encoder, to="onnx", out=out / "onnx", overwrite=True))
    with torch.no_grad():
        expected = encoder(images)[-1]
        found = {"timm": backbone(images)[-1], "smp": unet.encoder(images)[-1]}
    found["onnx"] = torch.from_numpy(predictor.run(pixels[None])["map_32"])
    for library, values in found.items():
        print(f"{library:>4}  differs by {np.abs(values - expected).max():.1e} at most")


if __name__ == "__main__":
    tyro.cli(main)
