"""Use a frozen encoder without training: search, a picture of what it sees, and the images to label next.

python recipes/6_features.py [FOLDER] [--encoder runs/recipe/encoder.safetensors] [--image-size 96]
"""

from pathlib import Path

import numpy as np
import tyro
from PIL import Image

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    encoder: str = "pets_pseudo_masks",
    image_size: int = 96,
    out: Path = Path("runs/recipe"),
) -> None:
    """Print the nearest neighbor of the first image, and write pictures of features and a list to label."""
    folder = folder or segae.data.drawn_pets() / "unlabeled"

    # One vector per image; rows of equal direction belong to similar images.
    features = segae.extract_features(folder, encoder, image_size=image_size)
    vectors = features.values - features.values.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = np.argsort(vectors @ vectors[0])[-2]
    print(f"nearest to {features.names[0]}: {features.names[nearest]}")

    # Dense maps: three principal components as colors, below the photographs.
    shown = [Path(name) for name in features.names[:8]]
    maps = segae.extract_features(shown, encoder, layer=3, pool="none", image_size=256)
    photos = [np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in shown]
    colors = [np.asarray(Image.fromarray(one).resize((128, 128))) for one in segae.pca_colors(maps.values)]
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack([np.hstack(photos), np.hstack(colors)])).save(out / "maps.png")

    # The images that stand for most others.
    chosen = segae.select_images(features.values, count=min(10, len(features)))
    (out / "to_label.txt").write_text("\n".join(features.names[place] for place in chosen))
    print("wrote", out / "maps.png", "and", out / "to_label.txt")


if __name__ == "__main__":
    tyro.cli(main)
