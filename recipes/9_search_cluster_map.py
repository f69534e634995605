"""Search, cluster and map images by the features of a frozen encoder.

python recipes/9_search_cluster_map.py [FOLDER] [--encoder imagenet] [--image-size 128]
"""

from pathlib import Path

import numpy as np
import tyro

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    encoder: str = "imagenet",
    image_size: int = 128,
    clusters: int = 3,
    out: Path = Path("runs/recipe"),
) -> None:
    """Print the nearest images of the first one and the sizes of clusters, and write places on a map."""
    folder = folder or segae.data.drawn_pets() / "unlabeled"

    # An index of all images; the first image finds itself, then others.
    index = segae.ImageIndex.build(folder, encoder, image_size=image_size)
    names, values = index.features.names, index.features.values
    print(index.search(names[0], k=min(4, len(names))).to_string(index=False))

    # Groups of similar images, and two numbers for each image.
    labels = segae.cluster(values, k=clusters)
    places = segae.project(values, how="tsne")
    print("images in each cluster:", np.bincount(labels).tolist())
    out.mkdir(parents=True, exist_ok=True)
    np.savetxt(out / "map.csv", np.column_stack([places, labels]), "%g", ",", header="x,y,cluster", comments="")
    print("wrote", out / "map.csv")


if __name__ == "__main__":
    tyro.cli(main)
