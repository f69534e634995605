"""Train with fastai's own schedule and callbacks: segae brings the data, the model and the Learner.

python recipes/5_fastai.py [FOLDER] [--weights runs/recipe/encoder.safetensors] [--epochs 3]
"""

from pathlib import Path

import tyro
from fastai.callback.tracker import SaveModelCallback

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    weights: str = "pets_pseudo_masks",
    image_size: int = 96,
    epochs: int = 3,
    out: Path = Path("runs/recipe/fastai.safetensors"),
) -> None:
    """Find a learning rate, fine-tune a segmenter, and keep its best epoch."""
    data = segae.data.open_dataset(folder or segae.data.drawn_pets())
    encoder = segae.load_encoder(weights)
    model = segae.create_segmenter(encoder, num_classes=data.classes, palette=data.palette, image_size=image_size)

    # fastai DataLoaders; images are decoded when they are needed.
    look = (image_size, encoder.info.mean, encoder.info.std)
    train, valid = segae.data.train_val_split(data.splits["train"], 0.1, seed=0)
    augment, plain = segae.data.train_transform(*look), segae.data.eval_transform(*look)
    loaders = segae.data.make_loaders(
        segae.data.LazyPairDataset(train, image_size, data.mask_values, augment, seed=0),
        segae.data.LazyPairDataset(valid, image_size, data.mask_values, plain, seed=0),
        batch_size=16,
        device=segae.training.choose_device("auto"),
    )

    # An ordinary Learner: freeze() freezes exactly the encoder, and miou is a metric.
    learner = segae.segmentation_learner(loaders, model)
    learner.path = out.parent
    found = learner.lr_find(num_it=30, show_plot=False)
    print(f"learning rate {found.valley:.2g}")
    learner.fine_tune(epochs, base_lr=found.valley, cbs=SaveModelCallback(monitor="miou", fname="best"))
    print("wrote", segae.save_segmenter(model, out))


if __name__ == "__main__":
    tyro.cli(main)
