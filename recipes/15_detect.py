"""Detect objects with a frozen encoder: train FCOS on Pascal VOC boxes and score it; needs segae[detection].

python recipes/15_detect.py FOLDER [--weights imagenet]

FOLDER has images/ and annotations/xmls/, as Oxford-IIIT Pets do; a fifth of the files is for the test.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
import tyro
from torchmetrics.detection import MeanAveragePrecision

import segae

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(file: Path, images: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Read an image, float (3, H, W) in [0, 1], and its boxes; all objects are of class 1."""
    boxes = [[float(box.findtext(side)) for side in SIDES] for box in ElementTree.parse(file).iter("bndbox")]
    image = segae.data.read_image(images / f"{file.stem}.jpg")
    labels = torch.ones(len(boxes), dtype=torch.int64)
    return torch.from_numpy(image).permute(2, 0, 1) / 255, {"boxes": torch.tensor(boxes), "labels": labels}


def main(
    folder: tyro.conf.Positional[Path],
    *,
    weights: str = "imagenet",
    encoder: str | None = None,
    image_size: int = 160,
    epochs: int = 10,
    batch_size: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
) -> dict[str, float]:
    """Train the pyramid and the heads on a frozen encoder, and print the average precision of the test images."""
    files = sorted((folder / "annotations" / "xmls").glob("*.xml"))
    train, test = segae.data.train_val_split([segae.data.Pair(f.stem, f, f) for f in files], 0.2, seed=0)
    torch.manual_seed(seed)
    encoder = encoder or ("tf_efficientnet_lite0" if weights in ("imagenet", "random") else None)
    model = segae.create_detector(segae.create_encoder(encoder, weights=weights), image_size=image_size).train()

    # A loop as for any detector of torchvision; images are mirrored half of the time.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, batches = torch.optim.AdamW(trained, lr), -(-len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches)
    for epoch in range(epochs):
        for places in np.array_split(np.random.default_rng((seed, epoch)).permutation(len(train)), batches):
            images, targets = zip(*(read(train[place].image, folder / "images") for place in places), strict=True)
            if mirror := torch.rand(1) < 0.5:
                for image, target in zip(images, targets, strict=True):
                    target["boxes"][:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
            losses = model([image.flip(-1) if mirror else image for image in images], list(targets))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {float(sum(losses.values()).detach()):.3f}")

    metric = MeanAveragePrecision()
    model.eval()
    with torch.inference_mode():
        for pair in test:
            image, target = read(pair.image, folder / "images")
            metric.update(model([image]), [target])
    scores = {name: float(value) for name, value in metric.compute().items() if name in ("map", "map_50")}
    print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return scores


if __name__ == "__main__":
    tyro.cli(main)
