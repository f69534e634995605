"""Classify images: freeze the encoder for one epoch, then train everything; score the test images.

python recipes/13_classify.py FOLDER [--weights runs/recipe/encoder.safetensors] [--labels 100]

FOLDER has train/ and test/ with a folder of images per class, or a folder of images per class.
"""

from pathlib import Path

import tyro

import segae


def main(
    folder: tyro.conf.Positional[Path],
    *,
    weights: str = "imagenet",
    labels: int | None = None,
    image_size: int = 128,
    epochs: int = 3,
    out: Path = Path("runs/recipe/classify"),
) -> None:
    """Fine-tune a classifier, print its accuracy by class, and name the class of one image."""
    settings = {"weights": weights, "labels": labels, "image_size": image_size, "epochs": epochs}
    model = segae.finetune(folder, task="classify", out=out, overwrite=True, **settings).path

    scores = segae.evaluate(model, folder)
    for name, value in scores.as_row().items():
        print(f"{name}  {value:.3f}")

    image = next(pair.image for pair in segae.data.ClassFolders(folder).splits["test"])
    print(image, "is", segae.load(model).predict(image))


if __name__ == "__main__":
    tyro.cli(main)
