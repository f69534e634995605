"""Score a segmenter on the test split.

python recipes/3_evaluate.py [FOLDER] [--model runs/recipe/model.safetensors]
"""

from pathlib import Path

import tyro

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None, *, model: Path = Path("runs/recipe/model.safetensors")
) -> None:
    """Print the scores of a segmenter."""
    segmenter = segae.load_segmenter(model).to(segae.training.choose_device("auto"))
    info = segmenter.info

    # The test images at the model's size.
    data = segae.data.open_dataset(folder or segae.data.drawn_pets())
    test = segae.data.cache_pairs(data.splits["test"], info.image_size, data.mask_values, segae.data.SkippedFiles())

    # One confusion matrix over all pixels of all test images; nearly all scores follow from it.
    names = [pair.name for pair in test.pairs]
    scores = segae.evaluate_model(segmenter, test.images, test.masks, names=names)
    for name, value in scores.as_row().items():
        print(f"{name:>16}  {value:.3f}")
    worst = scores.per_image.sort_values("miou").iloc[0]
    print(f"worst of {len(names)} images: {worst['name']}, mIoU {worst['miou']:.3f}")


if __name__ == "__main__":
    tyro.cli(main)
