"""Compare ways to start the encoder: the same schedule, data and seeds for all, the test split read once each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segae.errors import SegaeError
from segae.tasks.arms import own_settings, parse_arm, pretraining_of, require_transferable
from segae.tasks.pretrain import run as pretrain
from segae.tasks.rows import (
    add_per_image,
    make_row,
    read_json,
    read_rows,
    require_result_rows,
    summary_table,
    write_rows,
)
from segae.tasks.scoring import VAL_FRACTION, score_test, score_validation
from segae.tasks.segment import Segment
from segae.tasks.segment import run as segment
from segae.tasks.settings import UsedImages, digest, settings_of


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
    arms: tuple[str, ...] = ("random", "imagenet", "ae:layers+decoder")
    """Inits to compare: random, imagenet, ae:<objective>, imagenet+ae:<objective>; the last two with +decoder behind
    them transfer the decoder too. Behind each may stand @frozen (the encoder rests in all epochs), @linear (so too,
    with a linear decoder) or @long (four times the full epochs)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each arm is run once with each seed."""
    encoder: str = "tf_efficientnet_lite0"
    """Name of any convolutional network in timm."""
    decoder: str = "unet"
    """Any decoder of segmentation-models-pytorch, or linear."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed for Pets or when the folder has a classes.txt."""
    merge: tuple[str, ...] = ()
    """Classes to be taken as one, such as foreground=pet+border."""
    image_size: int = 128
    """Side of the square input in pixels while fine-tuning."""
    freeze_epochs: int = 1
    """Epochs with the encoder frozen."""
    epochs: int = 3
    """Epochs after that, with everything training."""
    epoch_images: int | None = None
    """Images per epoch, drawn with repetition where there are fewer; none takes each training image once."""
    batch_size: int = 16
    """Images per fine-tuning step."""
    augment: bool = True
    """Change the training images a little each time."""
    loss: Literal["cross_entropy", "dice"] = "cross_entropy"
    """Cross-entropy of each pixel, or one minus the Dice score of each class over a batch."""
    lr: float | None = None
    """Peak learning rate of the head in the frozen epochs; the full epochs peak at half of it. None takes, here and
    in the next five settings, what was best on validation images for each kind of init (docs/training.md)."""
    lr_ratio: float | None = None
    """Encoder over head learning rate in the full epochs."""
    bn_mode: Literal["strict", "eval", "train"] | None = None
    """Encoder BatchNorm: strict rests while frozen, eval never moves its statistics, train always trains."""
    warmup: float | None = None
    """Share of the full epochs, in (0, 1), in which the learning rate rises."""
    recalibrate: bool | None = None
    """Measure the encoder's BatchNorm statistics on clean training images before fine-tuning."""
    fitted_head: bool | None = None
    """Begin with a linear discriminant of the decoder's features on the training images as head, not a random one."""
    labels: int | None = None
    """Number of labelled training images to use; none takes all."""
    split: Literal["test", "val"] = "test"
    """Images that are scored: test, once; or val, a fifth of the training images kept apart, to choose settings on."""
    pretrain_config: Path | None = None
    """Settings of the pretraining: a JSON file such as recipes/pretrain_cpu.json or the config.json of a run; its data,
    encoder, init, objective and seed are the arms'. What is given below wins over it."""
    pretrain_image_size: int | None = None
    """Side of the square input while pretraining; none takes the file's, or --image-size."""
    pretrain_epochs: int | None = None
    """Epochs of the pretraining."""
    pretrain_batch_size: int | None = None
    """Images per pretraining step."""
    pretrain_lr: float | None = None
    """Peak learning rate of the pretraining."""
    pretrain_decoder: str | None = None
    """Decoder of the pretraining; where it is transferred it is --decoder."""
    pretrain_seed: int | None = None
    """One pretraining, with this seed, for all seeds; none pretrains anew for each."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


def run(config: Compare) -> list[dict[str, str]]:
    """Run every arm with every seed that has no row yet.

    Returns:
        The rows of exactly these settings, arms and seeds.

    Raises:
        SegaeError: an arm is unknown or a run fails; the rows finished before that are on the disk.
    """
    for arm in config.arms:
        require_transferable(parse_arm(arm).transfer, config.decoder)
    if config.split not in ("test", "val"):
        raise SegaeError(f"the split is {config.split!r}; score on test, or choose settings on val: --split val.")
    target = config.rows or config.out / "rows.csv"
    wanted = {(arm, seed): settings_of(config, arm, seed)[1] for seed in config.seeds for arm in config.arms}
    for (arm, seed), settings in wanted.items():
        if settings not in {row["settings"] for row in _rows_of(config, target)}:
            print(f"\n{arm}, seed {seed}")
            row = run_arm(config, arm, seed)
            _keep(config, target, arm, seed, row)
            print(f"{arm}, seed {seed}: {config.split} mIoU {row['miou']:.3f}")
    rows = [row for row in _rows_of(config, target) if row["settings"] in wanted.values()]
    print(f"\n{summary_table(rows)}\n\nrows in {target}")
    return rows


def _rows_of(config: Compare, target: Path) -> list[dict[str, str]]:
    rows = read_rows(target)
    require_result_rows(target, rows)
    return [row for row in rows if row["experiment"] == config.experiment]


def run_arm(config: Compare, arm: str, seed: int) -> dict[str, Any]:
    """Pretrain if the arm asks for it, fine-tune, score once, return the row."""
    parsed = parse_arm(arm)
    own = own_settings(config, parsed)
    init = str(pretrain_arm(config, arm, seed)) if parsed.objective else parsed.start
    folder = segment_folder(config, arm, seed)
    if not (folder / "metrics.json").exists():
        segment(
            Segment(
                data=config.data,
                out=folder,
                workers=0,  # several runs may share the cores
                encoder=config.encoder,
                init=init,
                decoder=own.decoder,
                transfer=parsed.transfer,  # type: ignore[arg-type]
                classes=config.classes,
                merge=config.merge,
                image_size=config.image_size,
                freeze_epochs=own.freeze_epochs,
                epochs=own.epochs,
                epoch_images=config.epoch_images,
                batch_size=config.batch_size,
                loss=config.loss,
                augment=config.augment,
                lr=config.lr,
                lr_ratio=config.lr_ratio,
                bn_mode=own.bn_mode,
                warmup=config.warmup,
                recalibrate=config.recalibrate,
                fitted_head=config.fitted_head,
                labels=config.labels,
                val_fraction=0.0 if config.split == "test" else VAL_FRACTION,
                seed=seed,
                device=config.device,
                resume=True,
            )
        )
    scores = score_test(config, folder) if config.split == "test" else score_validation(config, folder, seed)
    measured = read_json(folder / "metrics.json") | {"settings": settings_of(config, arm, seed)[1]}
    return make_row(experiment=config.experiment, split=config.split, run=measured, scores=scores.as_row())


def _keep(config: Compare, target: Path, arm: str, seed: int, row: dict[str, Any]) -> None:
    """Add the row, and beside the rows the scores of single images: results/per_image/<experiment>.csv.gz."""
    from filelock import FileLock

    from segae.data.fingerprint import default_cache_dir

    default_cache_dir().mkdir(parents=True, exist_ok=True)
    with FileLock(default_cache_dir() / f"rows-{digest(str(target.resolve()))}.lock"):
        if config.split == "test":
            lines = read_rows(segment_folder(config, arm, seed) / "test" / "per_image.csv")
            add_per_image(target.parent / "per_image" / f"{config.experiment}.csv.gz", row, lines)
        # another process may have been faster
        if row["settings"] not in {known["settings"] for known in _rows_of(config, target)}:
            write_rows(target, [*read_rows(target), row])


def pretrain_arm(config: Compare, arm: str, seed: int) -> Path:
    """The encoder file of an autoencoder arm, pretrained now unless it is there already."""
    folder = pretrain_folder(config, arm, seed)
    if folder is None:
        raise SegaeError(f"the arm {arm!r} has no pretraining; wanted one such as ae:mask.")
    if not (folder / "metrics.json").exists():  # written last
        pretrain(replace(pretraining_of(config, parse_arm(arm), seed), out=folder, resume=True))
    return folder / "encoder.safetensors"


def pretrain_folder(config: Compare, arm: str, seed: int, used: UsedImages | None = None) -> Path | None:
    """The run folder of an arm's pretraining; None where there is none; ``used`` as in ``settings_of``."""
    parsed = parse_arm(arm)
    if not parsed.objective:
        return None
    wanted = pretraining_of(config, parsed, seed)
    return config.out / f"pretrain-{_plain(parsed.init)}-{wanted.seed}-{settings_of(config, arm, seed, used)[0]}"


def segment_folder(config: Compare, arm: str, seed: int) -> Path:
    """The run folder of one arm's fine-tuning."""
    return config.out / f"{config.split}-{_plain(arm)}-{seed}-{settings_of(config, arm, seed)[1]}"


def _plain(arm: str) -> str:
    return arm.replace(":", "-").replace("+", "-").replace("@", "-")
