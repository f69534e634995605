"""Choose fine-tuning settings on validation images, with the same candidates for every variant."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from segae.bench.grid import Run, count_labels, make_runs
from segae.config import BenchConfig
from segae.data import SegmentationDataset
from segae.errors import SegaeError

_FLAGS = {"true": True, "false": False}
_WORDS: dict[str, dict[str, Any]] = {
    "bn_mode": {name: name for name in ("strict", "eval", "train")},
    "recalibrate": _FLAGS,
    "lpft_head": _FLAGS,
}
_TUNABLE = ("lr", "lr_ratio", "warmup", *_WORDS)


def tune(
    config: BenchConfig,
    dataset: SegmentationDataset,
    texts: Sequence[str],
    seeds: int,
    score: Callable[[Sequence[Run]], Mapping[str, float]],
) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Choose the settings with the best mean validation mIoU for every encoder, decoder and variant.

    Candidates are tried with the largest label budget and the first schedule.

    Args:
        config: of the search: its split is ``val``.
        dataset: the labeled images.
        texts: candidates, such as ``lr=0.002,0.004``.
        seeds: per candidate.
        score: runs what is missing and returns the validation mIoU by run id.
    """
    candidates = read_candidates(texts)
    available = len(dataset.splits["train"])
    largest = max(config.labels, key=lambda budget: count_labels(budget, available) or available)
    config = replace(config, labels=(largest,), schedules=config.schedules[:1], seeds=seeds, preset="own")
    trials: dict[tuple[str, str, str], dict[tuple[Any, ...], list[Run]]] = {}
    for values in itertools.product(*candidates.values()):
        tried = dict(zip(candidates, values, strict=True))
        places = {run.place: tried for run in make_runs(config, dataset)}
        for run in make_runs(config, dataset, places):
            trials.setdefault(run.place, {}).setdefault(values, []).append(run)
    scores = score([run for one in trials.values() for runs in one.values() for run in runs])
    chosen = {}
    for place, one in trials.items():
        best = max(one, key=lambda values: statistics.fmean(scores[run.run_id] for run in one[values]))
        chosen[place] = dict(zip(candidates, best, strict=True))
    return chosen


def read_candidates(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read candidates such as ``lr=0.002,0.004`` and ``bn_mode=strict,train``.

    Raises:
        SegaeError: a setting is unknown, is given twice or has a value that cannot be read.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        try:
            if name not in _TUNABLE or name in found:
                raise ValueError
            parts = [value.strip().lower() for value in values.split(",")]
            found[name] = tuple(_WORDS[name][part] if name in _WORDS else float(part) for part in parts)
        except (ValueError, KeyError):
            known = ", ".join(_TUNABLE)
            raise SegaeError(f"tune must be SETTING=VALUE,VALUE, each once, of {known}; got {text!r}") from None
    return found
