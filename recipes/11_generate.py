"""Train a variational autoencoder, and look at samples and at the way from one image to another.

python recipes/11_generate.py [FOLDER] [--epochs 30] [--image-size 28]
"""

from pathlib import Path

import numpy as np
import tyro
from PIL import Image

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    image_size: int = 28,
    epochs: int = 30,
    out: Path = Path("runs/recipe-generate"),
) -> None:
    """Write samples.png and interpolation.png."""
    folder = folder or segae.data.drawn_pets() / "unlabeled"
    criterion = {"criterion": "binary_cross_entropy"}  # minus the evidence lower bound of Bernoulli pixels
    task = {"method": "variational", "method_args": criterion, "image_size": image_size, "epochs": epochs}
    model = segae.pretrain(folder, encoder="dense_256_32", out=out, overwrite=True, **task).autoencoder

    # Random codes of a standard normal distribution.
    samples = segae.sample(model, 16, seed=0)
    Image.fromarray(np.vstack([np.hstack(samples[:8]), np.hstack(samples[8:])])).save(out / "samples.png")

    # Codes on the line between two images.
    first, *_, last = segae.data.find_images([folder])
    Image.fromarray(np.hstack(segae.interpolate(model, first, last, steps=8))).save(out / "interpolation.png")
    print("wrote", out / "samples.png", "and", out / "interpolation.png")


if __name__ == "__main__":
    tyro.cli(main)
