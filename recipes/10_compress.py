"""Compress images with an autoencoder, and compare sizes and fidelity with JPEG.

python recipes/10_compress.py [FOLDER] [--epochs 30] [--image-size 64]
"""

import io
from pathlib import Path

import cv2
import numpy as np
import tyro
from PIL import Image

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    image_size: int = 64,
    epochs: int = 30,
    out: Path = Path("runs/recipe-compress"),
) -> None:
    """Print bits per pixel and PSNR of one image at three fidelities."""
    folder = folder or segae.data.drawn_pets() / "unlabeled"
    task = {"encoder": "conv_32_32_8", "method": "reconstruct", "image_size": image_size, "epochs": epochs}
    model = segae.pretrain(folder, out=out, overwrite=True, **task).autoencoder
    image = segae.data.read_image(segae.data.find_images([folder])[0])
    default = cv2.PSNR(image, segae.decompress(segae.compress(image, model), model))
    for psnr in (default - 2, default - 1, default):
        data = segae.compress(image, model, target_psnr=psnr)
        psnr = cv2.PSNR(image, segae.decompress(data, model))
        print(f"autoencoder  {8 * len(data) / image[..., 0].size:.2f} bits per pixel  {psnr:.1f} dB")
    for quality in (5, 25, 75):
        Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=quality)
        psnr = cv2.PSNR(image, np.asarray(Image.open(file)))
        print(f"JPEG {quality:<7} {8 * file.tell() / image[..., 0].size:.2f} bits per pixel  {psnr:.1f} dB")


if __name__ == "__main__":
    tyro.cli(main)
