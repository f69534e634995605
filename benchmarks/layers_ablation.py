"""What each part of `layers` and `feature_layers` is worth: it is left out or changed in turn, at equal budget.

    python benchmarks/layers_ablation.py --data PETS_SAMPLE --unlabelled FOLDER ... [--variants NAME ...]
        [--transfers encoder encoder+decoder] [--init random | imagenet] [--write]

Every variant is pretrained once, label-free, on the training images and the unlabelled ones, and fine-tuned with
several seeds on four fifths of the training images; the mean IoU is that of the other fifth. ``no pretraining`` is
the init as it is. The test images stay closed. ``--write`` puts the rows into results/layers_ablation.csv; rows that
are there are not computed again.

``second round`` is pretrained twice: first as `layers`, then a fresh network is asked for the objects that the first
one finds in the whole images. On a GPU: ``--device cuda --pretrain-batch-size 64``, several variants at once, each with
``--rows`` of its own.
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

from segae.objectives.catalogue import DEFAULTS
from segae.objectives.corruption import Identity, ScaledNoise
from segae.objectives.degradation import ColourRemoval, LightChange
from segae.objectives.layer_cut import LayerCut
from segae.objectives.layers import split_layers
from segae.objectives.mixture import Mixture
from segae.objectives.object_crop import CropOfLayers, LayersAndPixels
from segae.objectives.presets import Objective, make_objective
from segae.tasks import pretrain, segment
from segae.tasks.rows import read_rows, write_rows
from segae.training.checkpoint import load_resume_file
from segae.training.device import choose_device
from segae.training.provenance import provenance
from segae.training.run import RESUME_FILE
from segae.training.schedule import protocol_of

TABLE = Path(__file__).resolve().parent.parent / "results" / "layers_ablation.csv"
KEY = (
    "encoder",
    "variant",
    "init",
    "transfer",
    "seed",
    "pretrain_epochs",
    "pretrain_image_size",
    "pretrain_seed",
    "epochs",
    "pretrain_batch_size",
    "boundary",
    "fitted_head",
)
EPOCHS = 20  # at least: what has more passes goes through the images several times in an epoch, which costs less
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
    judge = LayersAndPixels(pixels, DEFAULTS["layers"]["boundary"])
    return replace(make_objective("layers"), corruption=corruption, reconstruction=judge)


SECOND = "second round"
VARIANTS: dict[str, Callable[[], Objective] | None] = {
    "no pretraining": None,
    "layers": of,
    "without pixels": lambda: of(pixels=0.0),
    "pixels as much as layers": lambda: of(pixels=1.0),
    "with noise and lost colour": lambda: of(then=NOISY),
    "without changed light": lambda: of(then=Identity()),
    "without the crop": lambda: of(area=(1.0, 1.0)),
    "feature_layers": lambda: make_objective("feature_layers"),  # from ImageNet weights
    "without the cut": lambda: of(find=split),
    "with changed colours": lambda: of(then=Mixture((LightChange(), ColourRemoval(0.3)))),
    "smaller crops": lambda: of(area=(0.2, 1.0)),
    SECOND: of,
    "without colours: an ellipse": lambda: of(find=middle),
}


class Answer:
    """Where a pretrained network says that the object of whole images is: the mean of an image and its mirror image.

    Args:
        model: Gives the image, in so many channels, then the layers' logits, ground before object.
        channels: 0 if it gives no image.
    """

    def __init__(self, model: torch.nn.Module, channels: int = 3) -> None:
        self._model, self._channels = model.eval().requires_grad_(False), channels

    @torch.no_grad()
    def __call__(self, image_bchw: Tensor) -> Tensor:
        """Probability of the object, float32 (B, 1, H, W), for normalised images (B, C, H, W)."""
        with torch.autocast(image_bchw.device.type, enabled=False):
            logit_bhw = self._odds(image_bchw.float()) + self._odds(image_bchw.float().flip(3)).flip(2)
        return torch.sigmoid(logit_bhw / 2).unsqueeze(1)

    def _odds(self, image_bchw: Tensor) -> Tensor:
        where = next(self._model.parameters()).device
        said_bchw = self._model(image_bchw.to(where))[:, self._channels :]
        return (said_bchw[:, 1] - said_bchw[:, 0]).to(image_bchw.device)


def pretrain_with(make: Callable[[], Objective], out: Path, **settings: Any) -> Path:
    """Pretrain with an objective of this script's own; return the encoder's file."""
    with patch("segae.tasks.prepare.objective_of", lambda _: make()):
        return pretrain.run(pretrain.Pretrain(out=out, objective="layers", **settings))


def answer_of(make: Callable[[], Objective], out: Path, **settings: Any) -> Answer:
    """The network of a finished pretraining, to be asked."""
    config, device = pretrain.Pretrain(out=out, objective="layers", **settings), choose_device(settings["device"])
    with patch("segae.tasks.prepare.objective_of", lambda _: make()):
        _, model, *_ = pretrain.begin(config, device)
    model.load_state_dict(load_resume_file(out / RESUME_FILE)["model"])
    return Answer(model)


def fits_head(options: argparse.Namespace, transfer: str) -> bool:
    """Whether the head is fitted before fine-tuning: as asked for, or as the protocol of what is transferred has it."""
    if options.fitted_head is not None:
        return bool(options.fitted_head)
    start = "" if options.init == "random" else f"{options.init}+"
    return protocol_of(f"{start}ae:layers" if transfer else options.init, transfer).fitted_head


def turns_of(passes: int) -> int:
    """How many passes make an epoch, so that there are `EPOCHS` or more and no pass is lost."""
    return max(turns for turns in range(1, max(passes // EPOCHS, 1) + 1) if passes % turns == 0)


def with_boundary(make: Callable[[], Objective], reach: float) -> Callable[[], Objective]:
    """The same with another layer of the boundary, or none."""

    def made() -> Objective:
        objective = make()
        return replace(objective, reconstruction=replace(objective.reconstruction, boundary=reach))  # type: ignore

    return made


def measure(name: str, options: argparse.Namespace, done: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """A row for each fine-tuning of a variant that has none yet."""
    own = VARIANTS[name]
    make = None if own is None else with_boundary(own, options.boundary)
    size, passes, batch = options.pretrain_image_size, options.pretrain_epochs, options.pretrain_batch_size
    wanted = [
        {"encoder": options.encoder, "variant": name, "init": options.init, "transfer": transfer, "seed": seed,
         "pretrain_epochs": passes, "pretrain_image_size": size, "pretrain_seed": options.pretrain_seed,
         "epochs": options.epochs,
         "pretrain_batch_size": batch, "boundary": round(options.boundary, 6) if make else "",
         "fitted_head": int(fits_head(options, transfer if make else ""))}
        for transfer in (options.transfers if make else ["encoder"]) for seed in options.seeds
    ]  # fmt: skip
    wanted = [row for row in wanted if tuple(str(row[part]) for part in KEY) not in done]
    if not wanted:
        return
    repeats = turns_of(passes)
    with TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        alike = {"encoder": options.encoder, "device": options.device, "threads": options.threads, "workers": 0}
        images = {"data": (options.data, *options.unlabelled), "image_size": size, "batch_size": batch}
        length = {"epochs": passes // repeats, "repeats": repeats, "lr": options.lr, "seed": options.pretrain_seed}
        encoder: Path | str = options.init
        if make is not None:
            settings = {"init": options.init, **images, **length, **alike}
            encoder = pretrain_with(make, start, **settings)
            if name == SECOND:
                found = LayerCut(answer_of(make, start, **settings))
                again = with_boundary(lambda: of(find=found), options.boundary)
                encoder = pretrain_with(again, Path(folder) / "second", **settings)
        for row in wanted:
            out = Path(folder) / f"{row['transfer']}-{row['seed']}"
            tuned = {"init": str(encoder), "transfer": row["transfer"], "seed": row["seed"], "epochs": row["epochs"]}
            tuned |= {"fitted_head": bool(row["fitted_head"])}
            held_out = {"val_fraction": 0.2, "image_size": options.image_size, "epoch_images": options.epoch_images}
            segment.run(segment.Segment(data=options.data, out=out, **tuned, **held_out, **alike))
            with (out / "log.csv").open(newline="") as file:
                score = list(csv.DictReader(file))[-1]["miou"]
            print(f"{name}, {row['transfer']}, seed {row['seed']}: {float(score):.3f}")
            yield {**row, "pretrain_lr": options.lr, "miou": score, **provenance(choose_device(options.device))}


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
    parser.add_argument("--pretrain-batch-size", type=int, default=32)
    parser.add_argument("--pretrain-seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the pretraining")
    parser.add_argument("--boundary", type=float, default=DEFAULTS["layers"]["boundary"], help="its reach; 0: none")
    parser.add_argument("--fitted-head", action=argparse.BooleanOptionalAction, help="the protocol's, if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
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
