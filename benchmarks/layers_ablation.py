"""What each part of `layers` and `feature_layers` is worth: it is left out or changed in turn, at equal budget.

    python benchmarks/layers_ablation.py --data PETS_SAMPLE --unlabelled FOLDER ... [--variants NAME ...]
        [--transfers encoder encoder+decoder] [--init random | imagenet] [--write]

Every variant is pretrained once, label-free, on the training images and the unlabelled ones, and fine-tuned with
several seeds on four fifths of the training images; the mean IoU is that of the other fifth. ``no pretraining`` is
the init as it is. The test images stay closed. ``--write`` puts the rows into results/layers_ablation.csv; rows that
are there are not computed again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from segae.objectives.corruption import Identity, ScaledNoise
from segae.objectives.degradation import ColourRemoval, LightChange
from segae.objectives.layer_cut import LayerCut
from segae.objectives.layers import split_layers
from segae.objectives.mixture import Mixture
from segae.objectives.object_crop import CropOfLayers, LayersAndPixels
from segae.objectives.presets import Objective, make_objective
from segae.tasks import pretrain, segment
from segae.tasks.rows import read_rows, write_rows
from segae.training.provenance import provenance

TABLE = Path(__file__).resolve().parent.parent / "results" / "layers_ablation.csv"
KEY = ("encoder", "variant", "init", "transfer", "seed", "pretrain_epochs", "pretrain_image_size", "epochs")
NOISY = Mixture((LightChange(), ColourRemoval(0.3), ScaledNoise(0.22, "image")))
CUT = LayerCut()  # its answers serve all variants


def split(image_bchw: Tensor) -> Tensor:
    """The layers by their palettes, without the cut."""
    return (split_layers(image_bchw) > 0.5).float()


def middle(image_bchw: Tensor) -> Tensor:
    """An ellipse in the middle of every image, whatever it shows: the prior alone."""
    return (split_layers(torch.zeros_like(image_bchw)) > 0.5).float()


def of(area: tuple[float, float] = (0.5, 1.0), then: Any = None, find: Any = CUT, pixels: float = 0.1) -> Objective:
    """The objective `layers` with some of its parts exchanged."""
    corruption = CropOfLayers(area, LightChange() if then is None else then, find)
    return replace(make_objective("layers"), corruption=corruption, reconstruction=LayersAndPixels(pixels))


VARIANTS: dict[str, Callable[[], Objective] | None] = {
    "no pretraining": None,
    "layers": of,
    "without pixels": lambda: of(pixels=0.0),
    "pixels as much as layers": lambda: of(pixels=1.0),
    "with noise and lost colour": lambda: of(then=NOISY),
    "without changed light": lambda: of(then=Identity()),
    "without the crop": lambda: of(area=(1.0, 1.0)),
    "with a layer of the boundary": lambda: replace(of(), reconstruction=LayersAndPixels(boundary=1 / 48)),
    "feature_layers": lambda: make_objective("feature_layers"),  # from ImageNet weights
    "feature_layers without the boundary": lambda: replace(
        make_objective("feature_layers"), reconstruction=LayersAndPixels()
    ),
    "without the cut": lambda: of(find=split),
    "without colours: an ellipse": lambda: of(find=middle),
}


def measure(name: str, options: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """A row for each fine-tuning of a variant that has none yet."""
    make = VARIANTS[name]
    size, epochs = options.pretrain_image_size, options.pretrain_epochs
    wanted = [
        {"encoder": options.encoder, "variant": name, "init": options.init, "transfer": transfer, "seed": seed,
         "pretrain_epochs": epochs, "pretrain_image_size": size, "epochs": options.epochs}
        for transfer in (options.transfers if make else ["encoder"]) for seed in options.seeds
    ]  # fmt: skip
    wanted = [row for row in wanted if tuple(str(row[part]) for part in KEY) not in done]
    if not wanted:
        return
    with TemporaryDirectory() as folder:
        start, alike = Path(folder) / "start", {"encoder": options.encoder, "device": "cpu", "threads": 1, "workers": 0}
        images = {"data": (options.data, *options.unlabelled), "image_size": size, "epochs": epochs, "lr": options.lr}
        encoder: Path | str = options.init
        if make is not None:
            with patch("segae.tasks.prepare.objective_of", lambda _: make()):
                encoder = pretrain.run(
                    pretrain.Pretrain(out=start, init=options.init, objective="layers", **images, **alike)
                )
        for row in wanted:
            out = Path(folder) / f"{row['transfer']}-{row['seed']}"
            tuned = {"init": str(encoder), "transfer": row["transfer"], "seed": row["seed"], "epochs": row["epochs"]}
            held_out = {"val_fraction": 0.2, "image_size": options.image_size, "epoch_images": options.epoch_images}
            segment.run(segment.Segment(data=options.data, out=out, **tuned, **held_out, **alike))
            with (out / "log.csv").open(newline="") as file:
                score = list(csv.DictReader(file))[-1]["miou"]
            print(f"{name}, {row['transfer']}, seed {row['seed']}: {float(score):.3f}")
            yield {**row, "pretrain_lr": options.lr, "miou": score, **provenance(torch.device("cpu"))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--unlabelled", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=[name for name in VARIANTS if "feature" not in name]
    )
    parser.add_argument("--transfers", nargs="+", default=["encoder", "encoder+decoder"])
    parser.add_argument("--init", choices=("random", "imagenet"), default="random")
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128, help="of the fine-tuning")
    parser.add_argument("--epoch-images", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pretrain-epochs", type=int, default=10)
    parser.add_argument("--pretrain-image-size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the pretraining")
    parser.add_argument("--rows", type=Path, default=TABLE)
    parser.add_argument("--write", action="store_true", help="keep the rows")
    options = parser.parse_args(arguments)
    for name in options.variants:
        kept = read_rows(options.rows) if options.rows.exists() else []
        for row in measure(name, options, {tuple(row[part] for part in KEY) for row in kept}):
            if options.write:
                kept = [*kept, {part: str(value) for part, value in row.items()}]
                write_rows(options.rows, kept)


if __name__ == "__main__":
    main()
