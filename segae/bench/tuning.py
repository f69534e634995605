"""Choose fine-tuning settings on validation images, with the same candidates for every variant."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from segae._io import logger
from segae.bench.grid import Contents, Run, make_runs
from segae.config import BenchConfig
from segae.data import SegmentationDataset
from segae.errors import SegaeError

Place = tuple[str, str, str]

_WORDS: dict[str, dict[str, Any]] = {
    "bn_mode": {name: name for name in ("strict", "eval", "train")},
    **{name: {"true": True, "false": False} for name in ("recalibrate", "lpft_head")},
}
_TUNABLE = ("lr", "lr_ratio", "warmup", *_WORDS)


def tune(
    config: BenchConfig,
    dataset: SegmentationDataset,
    contents: Contents,
    candidates: Mapping[str, Sequence[Any]],
    score: Callable[[Sequence[Run]], Mapping[str, float]],
) -> dict[Place, dict[str, Any]]:
    """Choose the settings with the best mean validation mIoU for every encoder, decoder and variant.

    Candidates are tried with the largest label budget and the first schedule of each; of equals the first is taken.
    The split of ``config`` is ``val``; ``score`` runs what is missing and returns the validation mIoU by run id.
    """
    trials: dict[Place, dict[tuple[Any, ...], list[Run]]] = defaultdict(dict)
    for values in itertools.product(*candidates.values()):
        finetune = replace(config.finetune, **dict(zip(candidates, values, strict=True)))
        tried = replace(config, finetune=finetune, seeds=config.tune_seeds)
        for place, runs in _deciding_runs(make_runs(tried, dataset, contents)).items():
            trials[place][values] = runs
    scores = score([run for one in trials.values() for runs in one.values() for run in runs])
    chosen = {}
    for place, one in trials.items():
        best = max(one, key=lambda values: statistics.fmean(scores[run.run_id] for run in one[values]))
        chosen[place] = dict(zip(candidates, best, strict=True))
        logger.info("%s: %s", ", ".join(place), ", ".join(f"{name} {value}" for name, value in chosen[place].items()))
    return chosen


def _deciding_runs(runs: Sequence[Run]) -> dict[Place, list[Run]]:
    """Of each place the runs with its first schedule and its largest label budget, one per seed."""
    found = {}
    for place in dict.fromkeys(run.place for run in runs):
        mine = [run for run in runs if run.place == place]
        labels = {run.run_id: run.finetune["labels"] or math.inf for run in mine if run.schedule == mine[0].schedule}
        found[place] = [run for run in mine if labels.get(run.run_id) == max(labels.values())]
    return found


def read_candidates(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read candidates such as ``lr=0.002,0.004``; one unknown, given twice or with an odd value is a SegaeError."""
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
