"""The whole story in one command: pretrain, transfer, fine-tune, compare, and a page to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segae.errors import SegaeError
from segae.tasks.compare import Compare, segment_folder
from segae.tasks.compare import run as compare


@dataclass(frozen=True)
class Quickstart:
    """Pretrain an autoencoder, fine-tune from it, from random and from ImageNet weights, and compare.

    Draws pets unless --data is given. Takes a few minutes on two CPU cores and writes index.html into the run folder.
    The same command again reuses the runs that are finished; another --out starts afresh.
    """

    data: Path | None = None
    """Your data set: images/ and masks/ (and, if you have it, unlabelled/), or the Oxford-IIIT Pets layout."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed for Pets or when the folder has a classes.txt."""
    out: Path = Path("runs/quickstart")
    """Folder for everything."""
    objective: str = "layers"
    """What the autoencoder is asked to do, as in segae pretrain; its decoder is taken along where it can segment."""
    encoder: str = "tf_efficientnet_lite0"
    """Name of any convolutional network in timm."""
    image_size: int = 96
    """Side of the square input in pixels."""
    pretrain_images: int = 6400
    """Images that pretraining sees, repetitions counted."""
    labels: int = 240
    """Labelled images to use at most."""
    seed: int = 0
    """Seed of everything."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


def run(config: Quickstart) -> Path:
    """Run everything that is not done yet and write the page.

    Returns:
        The path of index.html.

    Raises:
        SegaeError: see the messages; the same command goes on where it stopped.
    """
    from segae.data.open import open_dataset
    from segae.tasks.page import write_page

    data = config.data or draw(config.out / "drawn-pets", config.seed)
    opened = open_dataset(data, config.classes)
    unlabelled = (data / "unlabelled",) if (data / "unlabelled").is_dir() else ()
    labels = min(config.labels, len(opened.splits["train"]))
    arms, missing = available_arms(config.encoder, config.objective)
    if missing:
        print(missing)
    comparison = Compare(
        data=data,
        unlabelled=unlabelled,
        out=config.out / "runs",
        experiment="quickstart",
        arms=arms,
        seeds=(config.seed,),
        encoder=config.encoder,
        classes=config.classes,
        image_size=config.image_size,
        labels=labels,
        pretrain_epochs=pretraining_epochs((data, *unlabelled), config.pretrain_images),
        device=config.device,
    )
    if finished := finished_arms(comparison):
        names = ", ".join(finished)
        print(f"finished runs are reused: {names}. To start afresh, remove {config.out} or give another --out.")
    rows = compare(comparison)
    page = write_page(config.out / "index.html", comparison, rows, note=missing, drawn=config.data is None)
    print(f"open {page.resolve().as_uri()}")
    return page


def draw(folder: Path, seed: int) -> Path:
    """Drawn pets, unless they are there already."""
    from segae.data.drawn_pets import draw_pets

    draw_pets(folder, train=240, test=120, size=128, seed=seed, unlabelled=560, progress=True)
    return folder


def pretraining_epochs(roots: Sequence[Path], images_seen: int) -> int:
    """Epochs in which pretraining sees about ``images_seen`` images."""
    from segae.data.pretraining import find_pretraining_images

    return max(1, round(images_seen / len(find_pretraining_images(roots))))


def finished_arms(comparison: Compare) -> list[str]:
    """The arms of a comparison that an earlier command has fine-tuned with every seed."""
    return [
        arm
        for arm in comparison.arms
        if all((segment_folder(comparison, arm, seed) / "metrics.json").exists() for seed in comparison.seeds)
    ]


def available_arms(encoder: str, objective: str) -> tuple[tuple[str, ...], str]:
    """The arms to compare, and in words why ImageNet is not among them, if its weights cannot be had."""
    from segae.models.encoder import create_encoder
    from segae.models.segmenter import DECODERS
    from segae.objectives.presets import make_objective

    own = make_objective(objective).decoder
    autoencoder = f"ae:{objective}" + ("+decoder" if own in DECODERS and own != "linear" else "")
    try:
        create_encoder(encoder, "imagenet")
    except SegaeError as error:
        return ("random", autoencoder), f"The ImageNet arm is left out: {error}"
    return ("random", autoencoder, "imagenet"), ""
