"""Train one encoder with a decoder for each of two folders, and decode images of one with the decoder of the other.

python recipes/12_two_domains.py FOLDER FOLDER [--epochs 30] [--image-size 64]
"""

from pathlib import Path

import numpy as np
import torch
import tyro

import segae


def main(
    folders: tyro.conf.Positional[tuple[Path, Path]],
    *,
    image_size: int = 64,
    epochs: int = 30,
    out: Path = Path("runs/recipe-domains"),
) -> None:
    """Print the error of both decoders on images of both folders; reconstructions.png shows them."""
    task = {"encoder": "conv_32_32_16", "method": "reconstruct", "image_size": image_size, "epochs": epochs}
    model = segae.pretrain(folders, domain_decoders=True, out=out, overwrite=True, **task).autoencoder
    for folder in folders:
        files = segae.data.find_images([folder])[:64]
        pixels = np.stack([segae.data.read_resized(file, image_size) for file in files])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255  # what this encoder takes
        errors = [(model.reconstruct(images, domain=place) - images).square().mean() for place in (0, 1)]
        print(f"{folder.name}: mean squared error {errors[0]:.4f} and {errors[1]:.4f}")
    print("wrote", out / "reconstructions.png")


if __name__ == "__main__":
    tyro.cli(main)
