"""Train every member of the family of autoencoders, and draw what each makes of the same eight images.

python recipes/16_family.py [FOLDER] [--epochs 20] [--image-size 64]
"""

from pathlib import Path

import numpy as np
import tyro

import segae
from segae.evaluation import contact_sheet, denormalize, normalize

MEMBERS = {
    "linear": {"encoder": "linear_64", "method": "reconstruct"},
    "convolutional": {"encoder": "conv_32_32_16_8", "method": "reconstruct"},
    "sparse": {"encoder": "conv_32_32_16_8", "method": "sparse"},
    "contractive": {"encoder": "conv_32_32_16_8", "method": "contractive", "method_args": {"weight": 1e-4}},
    "variational": {"encoder": "conv_32_32_16_8", "method": "variational", "method_args": {"beta": 0.01}},
    "denoising": {"encoder": "conv_32_32_16_8", "method": "denoise", "method_args": {"sigma": 0.4}},
}


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    image_size: int = 64,
    epochs: int = 20,
    out: Path = Path("runs/recipe-family"),
) -> None:
    """Print the error of each member; family.png shows all of them."""
    folder = folder or segae.data.drawn_pets() / "unlabeled"
    files = segae.data.find_images([folder])[:8]
    images = np.stack([segae.data.read_resized(file, image_size) for file in files])
    columns = {"image": list(images)}
    for name, member in MEMBERS.items():
        task = {"image_size": image_size, "epochs": epochs, "decoder": "plain", "augment": False, **member}
        model = segae.pretrain(folder, out=out / name, overwrite=True, **task).autoencoder
        info = model.encoder.info
        made = model.reconstruct(normalize(images, info.mean, info.std, "cpu"))
        columns[name] = [denormalize(image, info.mean, info.std) for image in made]
        error = np.square(np.stack(columns[name]) / 255 - images / 255).mean()
        print(f"{name}: mean squared error {error:.4f}")
    contact_sheet(columns, out / "family.png")
    print("wrote", out / "family.png")


if __name__ == "__main__":
    tyro.cli(main)
