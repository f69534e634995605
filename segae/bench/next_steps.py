"""Commands to type after a benchmark: more seeds, the best variant's pretraining, fine-tuning, prediction."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from segae.bench.comparison import Section, parse_json
from segae.config import DEFAULT_ENCODER, Config, FinetuneConfig, PretrainConfig, TrainerConfig

SAME_COMMAND = (
    "the same segae bench command with --seeds 3: finished runs are kept, three seeds give intervals and tests"
)
_ENCODER = "runs/pretrain/encoder.safetensors"


def next_steps(section: Section) -> list[tuple[str, str]]:
    """What to do and the command for it; empty for the benchmark's own, of which rows do not hold all settings."""
    here = [one for one in section.variants if one.labels == section.budgets[0]]
    best = max(here, key=lambda one: (not one.kind, one.scores.mean())).first
    start = {"weights": find_weights_file(best) or best["weights"]}
    start |= {} if find_weights_file(best) else {"encoder": best["encoder"]}  # a file knows its encoder
    steps = [(SAME_COMMAND, "")] if section.results["seeds"].min() < 3 else []
    if is_pretrained_here(best):
        images = best["pretrain_dataset"] or "images"
        steps.append((f"Pretrain as the best variant did, on {images}", _pretrain(best, start)))
        start = {"weights": _ENCODER}
    columns = ("transfer", "image_size", "decoder", "freeze_epochs", "epochs", "batch_size", "loss", "augment")
    settings = start | dict(best[list(columns)]) | parse_json(best["finetune_settings"])
    if settings["augment"].startswith("{"):  # a transform of one's own, which is no name
        del settings["augment"]
    finetune = _command("segae finetune DATA", settings, FinetuneConfig)
    steps.append(("Fine-tune with your labels", finetune))
    return [*steps, ("Segment images", "segae predict IMAGES --model runs/finetune/model.safetensors")]


def find_weights_file(row: pd.Series) -> str:
    """The file or published name of the encoder that a variant began with; empty for random and ImageNet weights."""
    return str(row["weights_file"]) or str(row["weights_source"]).partition("published weights ")[2]


def is_pretrained_here(row: pd.Series) -> bool:
    """Whether the benchmark itself pretrained the encoder, perhaps from a file."""
    return bool(row["method"]) and (not find_weights_file(row) or pd.notna(row["pretrain_seconds"]))


def _pretrain(row: pd.Series, start: Mapping[str, Any]) -> str:
    """The command of a variant's pretraining, with what was decided by its method or its start weights."""
    columns = ("image_size", "epochs", "batch_size", "lr", "decoder")
    settings = {**start, **{name: row[f"pretrain_{name}"] for name in columns}}
    further = parse_json(row["pretrain_settings"])
    settings["epochs"] -= further.get("freeze_epochs", 0)  # which the row counts too
    known = {*PretrainConfig.TYPES, *TrainerConfig.TYPES}
    settings |= {name: value for name, value in further.items() if name in known}
    settings |= {f"method_args.{name}": value for name, value in parse_json(row["method_args"]).items()}
    command = f"segae pretrain IMAGES --method {shlex.quote(row['method'])}"
    return _command(command, settings, PretrainConfig)


def _command(command: str, settings: Mapping[str, Any], kind: type[Config]) -> str:
    """The command line of the settings that are known and not the default."""
    usual = {one.name: one.default for one in fields(kind)} | {"encoder": DEFAULT_ENCODER}
    words = [command]
    for name, value in settings.items():
        flag, text = f"--{name.replace('_', '-')}", _text(value)
        if text in ("", "null", "nan") or text == _text(usual.get(name)):
            continue
        if name in kind.TYPES and isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *(shlex.quote(_text(one)) for one in (value if isinstance(value, list) else [value]))]
    return " ".join(words)


def _text(value: Any) -> str:
    """A value as it is typed: numbers without needless decimals, None as null."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return value if isinstance(value, str) else json.dumps(value, default=str)
