"""Segment and reconstruct in one network: does the second task help when there are few masks?

python recipes/14_multitask.py [FOLDER] [--labels 30] [--weight 0.1]
"""

from pathlib import Path

import tyro

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    labels: int = 30,
    weight: float = 0.1,
    weights: str = "pets_pseudo_masks",
    image_size: int = 96,
    epochs: int = 3,
    out: Path = Path("runs/recipe/multitask"),
) -> None:
    """Fine-tune with the task alone and with both tasks, on the same images and seed, and print the mIoU of each."""
    folder = folder or segae.data.drawn_pets()
    for name, share in (("alone", 0.0), ("joint", weight)):
        # A head reconstructs the image from the decoder's output; it is gone when the model is saved.
        how = {"weights": weights, "labels": labels, "image_size": image_size, "epochs": epochs}
        model = segae.finetune(folder, out=out / name, reconstruction_weight=share, overwrite=True, **how).path
        print(f"{name}: mIoU {segae.evaluate(model, folder).miou:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
