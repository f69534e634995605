"""Fine-tune a segmenter on labeled images: freeze the encoder for one epoch, then train everything.

python recipes/2_finetune.py [FOLDER] [--weights runs/recipe/encoder.safetensors] [--out runs/recipe/model.safetensors]
"""

from pathlib import Path

import tyro
from torch.utils.data import DataLoader

import segae


def main(
    folder: tyro.conf.Positional[Path | None] = None,
    *,
    weights: str = "pets_pseudo_masks",
    image_size: int = 96,
    epochs: int = 3,
    out: Path = Path("runs/recipe/model.safetensors"),
) -> None:
    """Fine-tune a U-Net that starts from a pretrained encoder and decoder; the test split is not used."""
    segae.training.seed_everything(0)
    device, skipped = segae.training.choose_device("auto"), segae.data.SkippedFiles()

    # Images and masks, decoded once; a tenth of the training images is for validation.
    data = segae.data.open_dataset(folder or segae.data.drawn_pets())
    train, valid = (
        segae.data.cache_pairs(pairs, image_size, data.mask_values, skipped)
        for pairs in segae.data.train_val_split(data.splits["train"], 0.1, seed=0)
    )

    # The model knows its classes and how images are normalized.
    encoder = segae.load_encoder(weights)
    model = segae.create_segmenter(
        encoder,
        num_classes=data.classes,
        decoder_weights=segae.models.decoder_file(weights),  # beside the encoder's file
        palette=data.palette,
        mask_values=data.mask_values,
        image_size=image_size,
    ).to(device)

    # The settings that were best on validation images for this kind of weights.
    best = segae.training.finetune_defaults(encoder.info.weights, "encoder+decoder")
    look = (image_size, encoder.info.mean, encoder.info.std)
    plain, augment = segae.data.eval_transform(*look), segae.data.train_transform(*look)
    if best.lpft_head:  # the head starts fitted to the pretrained features
        clean = segae.data.CachedPairDataset(train.images, train.masks, plain, seed=0)
        segae.training.fit_lpft_head(model, DataLoader(clean, batch_size=16), model.num_classes, device)

    # Train: a fastai Learner, one cycle of the learning rate with the encoder frozen, one with everything.
    loaders = segae.data.make_loaders(
        segae.data.CachedPairDataset(train.images, train.masks, augment, seed=0),
        segae.data.CachedPairDataset(valid.images, valid.masks, plain, seed=0),
        batch_size=16,
        device=device,
    )
    learner = segae.segmentation_learner(loaders, model, bn_mode=best.bn_mode)
    phases = segae.freeze_finetune_phases(1, epochs, lr=best.lr, lr_ratio=best.lr_ratio, warmup=best.warmup)
    segae.fit(learner, phases, report=lambda row: print(segae.training.epoch_line(row)))

    out.parent.mkdir(parents=True, exist_ok=True)
    print("wrote", segae.save_segmenter(model, out))


if __name__ == "__main__":
    tyro.cli(main)
