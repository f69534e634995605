"""Compare ways to start the encoder: the same schedule, data and seeds for all, the test split read once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segae.errors import SegaeError
from segae.tasks.pretrain import Pretrain
from segae.tasks.pretrain import run as pretrain
from segae.tasks.rows import make_row, read_json, read_rows, write_rows
from segae.tasks.segment import Segment
from segae.tasks.segment import run as segment

_KEY = ("experiment", "init", "seed", "freeze_epochs", "epochs", "labels")


@dataclass(frozen=True)
class Compare:
    """Fine-tune from several inits with the same schedule and seeds, and write one row for each.

    Autoencoder inits are pretrained first, on the training images of the data set and on --unlabelled. A run that
    is finished is not repeated, so the same command goes on after an interruption.
    """

    data: Path
    """A data set: the official Oxford-IIIT Pets layout, or a folder with images/ and masks/."""
    unlabelled: tuple[Path, ...] = ()
    """Further folders of images for pretraining."""
    out: Path = Path("runs/compare")
    """Folder for the runs and for rows.csv."""
    rows: Path | None = None
    """CSV file that the rows are added to; none writes rows.csv in the run folder."""
    experiment: str = "compare"
    """Name of the study in the rows."""
    arms: tuple[str, ...] = ("random", "imagenet", "ae:mask")
    """Inits to compare: random, imagenet, ae:<objective>, imagenet+ae:<objective>."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each arm is run once with each seed."""
    encoder: str = "tf_efficientnet_lite0"
    """Name of any convolutional network in timm."""
    decoder: str = "unet"
    """Any decoder of segmentation-models-pytorch, or linear."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed for Pets or when the folder has a classes.txt."""
    image_size: int = 128
    """Side of the square input in pixels while fine-tuning."""
    pretrain_image_size: int | None = None
    """The same while pretraining; none takes --image-size."""
    freeze_epochs: int = 1
    """Epochs with the encoder frozen."""
    epochs: int = 3
    """Epochs after that, with everything training."""
    batch_size: int = 16
    """Images per fine-tuning step."""
    lr: float = 4e-3
    """Peak learning rate of the head in the frozen epochs; the full epochs peak at half of it."""
    labels: int | None = None
    """Number of labelled training images to use; none takes all."""
    pretrain_epochs: int = 20
    """Passes over the unlabelled images."""
    pretrain_batch_size: int = 32
    """Images per pretraining step."""
    pretrain_lr: float = 1e-3
    """Peak learning rate of the pretraining."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


def run(config: Compare) -> list[dict[str, str]]:
    """Run every arm with every seed that has no row yet.

    Returns:
        The rows of this experiment.

    Raises:
        SegaeError: an arm is unknown or a run fails; the rows finished before that are on the disk.
    """
    for arm in config.arms:
        check_arm(arm)
    target = config.rows or config.out / "rows.csv"
    for seed in config.seeds:
        for arm in config.arms:
            if not _is_done(read_rows(target), config, arm, seed):
                print(f"\n{arm}, seed {seed}")
                row = run_arm(config, arm, seed)
                write_rows(target, [*read_rows(target), row])
                print(f"{arm}, seed {seed}: test mIoU {row['miou']:.3f}")
    rows = [row for row in read_rows(target) if row["experiment"] == config.experiment]
    print(f"\n{summary_table(rows)}\n\nrows in {target}")
    return rows


def check_arm(arm: str) -> None:
    """Raise SegaeError unless ``arm`` is random, imagenet, ae:<objective> or imagenet+ae:<objective>."""
    start, _, objective = arm.rpartition("ae:")
    if arm not in ("random", "imagenet") and (start not in ("", "imagenet+") or not objective):
        raise SegaeError(
            f"the arm {arm!r} is unknown; use random, imagenet, ae:<objective> or imagenet+ae:<objective>, "
            f"for example --arms random imagenet ae:mask."
        )


def _is_done(rows: Sequence[dict[str, str]], config: Compare, arm: str, seed: int) -> bool:
    wanted = {"init": arm, "seed": seed} | {
        name: getattr(config, name) for name in ("experiment", "freeze_epochs", "epochs")
    }
    return any(
        all(row[name] == str(value) for name, value in wanted.items())
        and (config.labels is None or row["labels"] == str(config.labels))
        for row in rows
    )


def run_arm(config: Compare, arm: str, seed: int) -> dict[str, Any]:
    """Pretrain if the arm asks for it, fine-tune, read the test split once, return the row."""
    from segae.models.encoder import create_encoder
    from segae.tasks.evaluate import Evaluate
    from segae.tasks.evaluate import run as evaluate

    init = str(pretrain_arm(config, arm, seed)) if "ae:" in arm else arm
    folder = segment_folder(config, arm, seed)
    if not (folder / "metrics.json").exists():
        segment(
            Segment(
                data=config.data,
                out=folder,
                encoder=config.encoder,
                init=init,
                decoder=config.decoder,
                classes=config.classes,
                image_size=config.image_size,
                freeze_epochs=config.freeze_epochs,
                epochs=config.epochs,
                batch_size=config.batch_size,
                lr=config.lr,
                labels=config.labels,
                val_fraction=0.0,
                seed=seed,
                device=config.device,
                resume=True,
            )
        )
    scores = evaluate(
        Evaluate(
            model=folder / "model.safetensors",
            data=config.data,
            split="test",
            out=folder / "test",
            classes=config.classes,
            device=config.device,
        )
    )
    pretraining = create_encoder(config.encoder, init)[1].pretraining if "ae:" in arm else {}
    measured = read_json(folder / "metrics.json")
    return make_row(
        experiment=config.experiment, split="test", run=measured, scores=scores.as_row(), pretraining=pretraining
    )


def pretrain_arm(config: Compare, arm: str, seed: int) -> Path:
    """The encoder file of an autoencoder arm, pretrained now unless it is there already."""
    start, _, objective = arm.rpartition("ae:")
    folder = config.out / f"pretrain-{_plain(arm)}-{config.pretrain_epochs}-{seed}"
    if not (folder / "encoder.safetensors").exists():
        pretrain(
            Pretrain(
                data=(config.data, *config.unlabelled),
                out=folder,
                encoder=config.encoder,
                init=start.rstrip("+") or "random",
                objective=objective,
                image_size=config.pretrain_image_size or config.image_size,
                epochs=config.pretrain_epochs,
                batch_size=config.pretrain_batch_size,
                lr=config.pretrain_lr,
                seed=seed,
                device=config.device,
                resume=True,
            )
        )
    return folder / "encoder.safetensors"


def segment_folder(config: Compare, arm: str, seed: int) -> Path:
    """The run folder of one arm's fine-tuning."""
    schedule = f"{config.freeze_epochs}+{config.epochs}"
    return config.out / f"segment-{_plain(arm)}-{schedule}-{config.labels or 'all'}-{seed}"


def _plain(arm: str) -> str:
    return arm.replace(":", "-")


def summary_table(rows: Sequence[dict[str, str]]) -> str:
    """Mean over seeds of each init and schedule, best first, as text columns."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["init"], f"{row['freeze_epochs']} + {row['epochs']}"), []).append(row)
    classes = sorted({name for row in rows for name in row if name.startswith("iou_") and row[name]})
    header = ["init", "epochs", "seeds", "mIoU", *(name.removeprefix("iou_") for name in classes)]
    table = [
        [
            init,
            schedule,
            str(len(members)),
            *(f"{sum(float(row[name]) for row in members) / len(members):.3f}" for name in ("miou", *classes)),
        ]
        for (init, schedule), members in groups.items()
    ]
    table.sort(key=lambda line: -float(line[3]))
    widths = [max(len(line[column]) for line in [header, *table]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [header, *table]
    )
