"""Is a finished run what its row says: the last epoch's weights, one normalisation, the test split read once?"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segae.errors import SegaeError
from segae.tasks.readings import LEDGER, Reading, as_text, read_readings
from segae.tasks.rows import read_json, read_rows

Row = Mapping[str, Any]

_SAME_IN_RUN = {  # column of a row: name in the run's metrics.json
    **{name: name for name in ("encoder", "decoder", "init", "transfer", "image_size", "labels", "seed")},
    **{name: name for name in ("freeze_epochs", "epochs", "epoch_images", "batch_size")},
    "label_subset": "split_hash",
}


def require_same_normalisation(segmenter: Path, encoder: Path | None = None, readings: Sequence[Reading] = ()) -> None:
    """Check that images were normalised alike in pretraining, in fine-tuning and when they were scored.

    Args:
        segmenter: a model.safetensors.
        encoder: the encoder.safetensors it started from; None for random or ImageNet weights, whose normalisation is
            that of the architecture.
        readings: what the segmenter's folder says of its scorings.

    Raises:
        SegaeError: mean or std changed on the way, or a file cannot be read.
    """
    from segae.models.encoder import create_encoder, load_encoder
    from segae.models.segmenter import load_segmenter

    _, model = load_segmenter(segmenter)
    if encoder is None:
        _, start = create_encoder(model.encoder, "random", in_channels=model.in_channels)
        origin = f"the weights of {model.encoder}"
    else:
        _, start = load_encoder(encoder)
        origin = str(encoder)
    stages = [(origin, as_text(start.mean), as_text(start.std))]
    stages.append((str(segmenter), as_text(model.mean), as_text(model.std)))
    stages += [(f"the scoring in {reading.out}", reading.mean, reading.std) for reading in readings]
    for before, after in itertools.pairwise(stages):
        if before[1:] != after[1:]:
            raise SegaeError(
                f"images are normalised with mean {after[1]} and std {after[2]} by {after[0]}, and with mean "
                f"{before[1]} and std {before[2]} by {before[0]}: the network sees other colours than it has learned. "
                "Wanted one normalisation from pretraining to scores. Remove the run and its row, and repeat the "
                "command that made it, from the encoder file as it was written."
            )


def require_sound_run(folder: Path, row: Row) -> None:
    """Check one finished run: the last epoch's weights, scored on test once, are what the row tells of.

    Args:
        folder: of the fine-tuning; a run scored on test has its scores in the folder ``test``.
        row: its result row.

    Raises:
        SegaeError: a file is missing, or one of them tells another story; which one, and what to do.
    """
    from segae.training.run import TYPED_IN

    needed = ["config.json", "metrics.json", "log.csv", "model.safetensors"]
    needed += ["test/metrics.json", LEDGER] if row["split"] == "test" else []
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise SegaeError(
            f"{folder} holds no complete run: {', '.join(missing)} missing. {_again(folder)} An older segae kept no "
            f"{LEDGER}."
        )
    config, metrics = read_json(folder / "config.json"), read_json(folder / "metrics.json")
    _require_row_of_run(folder, row, metrics)
    _require_blind_training(folder, config)
    weights = _require_last_epoch(folder, config, metrics)
    readings = read_readings(folder)
    if row["split"] == "test":
        _require_read_once(folder, weights, readings)
        _require_scores_of_file(folder, row)
    elif readings:
        raise SegaeError(
            f"{folder} was scored on validation images to choose settings, and its test split was read on "
            f"{readings[0].date} too: the choice was not blind. {_again(folder)}"
        )
    start = Path(config.get(TYPED_IN, ".")) / str(config["init"])  # random and imagenet are no files
    require_same_normalisation(folder / "model.safetensors", start if start.is_file() else None, readings)


def _again(folder: Path) -> str:
    return f"Remove {folder} and its row, and repeat the command that made it."


def _require_row_of_run(folder: Path, row: Row, metrics: Mapping[str, Any]) -> None:
    for column, name in _SAME_IN_RUN.items():
        if name in metrics and str(row.get(column, "")) != str(metrics[name]):
            raise SegaeError(
                f"the row says {column} {row.get(column, '')!r}, and the run in {folder} had {metrics[name]!r}: it is "
                f"another run's row. {_again(folder)}"
            )


def _require_blind_training(folder: Path, config: Mapping[str, Any]) -> None:
    """A log that holds scores of images that are no training images has seen what it should not."""
    log = read_rows(folder / "log.csv")
    scored = {name for line in log for name, value in line.items() if value and name.split("_")[0] in ("test", "valid")}
    scored |= {name for line in log for name in ("miou",) if line.get(name)}
    wrong = {name for name in scored if name.startswith("test") or not config.get("val_fraction")}
    if wrong:
        kept = f"with {config.get('val_fraction', 0)} of the training images kept apart for validation"
        raise SegaeError(
            f"{folder / 'log.csv'} has {', '.join(sorted(wrong))} of each epoch, {kept}: the test images were "
            f"looked at while training. {_again(folder)}"
        )


def _require_last_epoch(folder: Path, config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Check that the model is that of the schedule's end, and not of its best epoch; return its fingerprint."""
    from segae.models.weights import fingerprint, read_weights
    from segae.training.checkpoint import load_resume_file
    from segae.training.run import RESUME_FILE

    wanted = int(config["freeze_epochs"]) + int(config["epochs"])
    seen = {
        "log.csv": [int(line["epoch"]) for line in read_rows(folder / "log.csv")][-1:],
        "metrics.json": [int(metrics["last_epoch"]["epoch"])],
    }
    weights = fingerprint(read_weights(folder / "model.safetensors")[0])
    at_the_end = weights
    if (folder / RESUME_FILE).is_file():
        state = load_resume_file(folder / RESUME_FILE)
        seen[RESUME_FILE], at_the_end = [int(state["epochs_done"])], fingerprint(state["model"])
    for name, epochs in seen.items():
        if epochs != [wanted]:
            raise SegaeError(
                f"{folder / name} ends with epoch {epochs[0] if epochs else 'none'}, and the schedule has {wanted}: "
                f"these are not the weights of the last epoch. {_again(folder)}"
            )
    if weights != at_the_end:
        raise SegaeError(
            f"{folder / 'model.safetensors'} is not the model of the last epoch, which {RESUME_FILE} holds: an epoch "
            f"chosen afterwards is no fair result. {_again(folder)}"
        )
    return weights


def _require_read_once(folder: Path, weights: str, readings: Sequence[Reading]) -> None:
    """Reading again with the same weights shows nothing new, and happens when a benchmark was killed."""
    read = list(dict.fromkeys(reading.weights for reading in readings))
    if len(read) > 1:
        raise SegaeError(
            f"the test split was read with {len(read)} sets of weights in {folder} ({LEDGER}, {readings[0].date} to "
            f"{readings[-1].date}): whoever sees several test scores can choose the best. Wanted one reading, at the "
            f"end. {_again(folder)}"
        )
    if read != [weights]:
        raise SegaeError(
            f"{folder / LEDGER} has no reading of the test split with the weights in model.safetensors: they were "
            f"changed after the scoring. {_again(folder)}"
        )


def _require_scores_of_file(folder: Path, row: Row) -> None:
    scores = read_json(folder / "test" / "metrics.json")
    if scores["model_sha256"] != (found := hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()):
        raise SegaeError(
            f"the scores in {folder / 'test'} are of a model with SHA-256 {scores['model_sha256'][:12]}, and "
            f"model.safetensors has {found[:12]}. {_again(folder)}"
        )
    if abs(float(row["miou"]) - float(scores["miou"])) > 1e-6:
        raise SegaeError(
            f"the row's mIoU is {float(row['miou']):.6f}, and {folder / 'test' / 'metrics.json'} has "
            f"{scores['miou']:.6f}. {_again(folder)}"
        )
