"""Pretrain an encoder on unlabeled images: the steps of `segae pretrain`, to read, copy and change.

python recipes/1_pretrain.py [FOLDER] [--method spark] [--epochs 20] [--out runs/recipe]
"""

from dataclasses import replace
from pathlib import Path

import tyro
from torch.utils.data import DataLoader

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    encoder: str = "tf_efficientnet_lite0",
    method: str = "pseudo_masks",
    image_size: int = 96,
    epochs: int = 5,
    out: Path = Path("runs/recipe"),
) -> None:
    """Pretrain an encoder on the images in a folder (default: the drawn pets)."""
    segae.training.seed_everything(0)
    device, skipped = segae.training.choose_device("auto"), segae.data.SkippedFiles()
    folder = folder or segae.data.drawn_pets()

    # The task and its model: the encoder, and the decoder that suits the task.
    task = segae.create_method(method)
    model = segae.create_autoencoder(segae.create_encoder(encoder), method=task)

    # The images, decoded once; test images of data sets in the folder are left out.
    look = (image_size, model.encoder.info.mean, model.encoder.info.std)
    paths = segae.data.find_pretraining_images([folder]).kept
    images = segae.data.cache_images(paths, image_size, skipped).images
    augment = segae.data.pretrain_transform(*look, crop=not task.crops)
    train = segae.data.CachedImageDataset(images, augment, seed=0)
    clean = segae.data.CachedImageDataset(images, segae.data.eval_transform(*look), seed=0)
    loaders = segae.data.make_loaders(train, None, batch_size=32, device=device)

    # Train: a fastai Learner, one cycle of the learning rate.
    learner = segae.pretraining_learner(loaders, model, task)
    phases = segae.pretraining_phases(epochs, lr=task.lr)
    segae.fit(learner, phases, report=lambda row: print(segae.training.epoch_line(row)))

    # BatchNorm has seen corrupted images only: measure its statistics on clean ones.
    segae.training.recalibrate_batchnorm(model, DataLoader(clean, batch_size=32), device)

    # The encoder's file says what it is; the decoder can start a segmenter together with it.
    weights = segae.Weights("random", task.name)
    info = replace(model.encoder.info, image_size=image_size, weights=weights, source=f"recipe on {folder.name}")
    out.mkdir(parents=True, exist_ok=True)
    print("wrote", segae.save_encoder(model.encoder, out / "encoder.safetensors", info=info))
    segae.models.save_decoder(model, out / "decoder.safetensors", method=task.name)


if __name__ == "__main__":
    tyro.cli(main)
