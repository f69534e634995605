"""Fine-tuning settings chosen on validation images: the same candidates for every arm, before test images are read."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segae.bench.grid import Cell, make_cell
from segae.errors import SegaeError
from segae.tasks.compare import Compare

_WORDS: dict[str, dict[str, Any]] = {
    "bn_mode": {"strict": "strict", "eval": "eval", "train": "train"},
    "recalibrate": {"true": True, "false": False},
    "fitted_head": {"true": True, "false": False},
}
_KNOWN = ("lr", "lr_ratio", "warmup", *_WORDS)


@dataclass(frozen=True)
class Tuning:
    """What is tried for each arm, and with which seeds.

    Attributes:
        candidates: settings of ``Compare``, each with its values.
        seeds: each candidate is scored with each of them.
    """

    candidates: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]

    def cells(self, untuned: Sequence[Cell]) -> list[Cell]:
        """The validation runs that settle these cells, at their largest label budget and first schedule.

        Every arm of every encoder and decoder gets the same candidates, so none is tuned better than another.
        """
        result = []
        for cell in self._points(untuned).values():
            for values in itertools.product(*self.candidates.values()):
                tried = replace(cell.config, **dict(zip(self.candidates, values, strict=True)))
                result += [make_cell(tried, cell.arm, seed, cell.used) for seed in self.seeds]
        return result

    def chosen(self, untuned: Sequence[Cell], rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, str, str], dict]:
        """The settings with the best mean validation mIoU, by (encoder, decoder, arm); the first of equals.

        Raises:
            SegaeError: a run of the search is missing.
        """
        scores = {row["settings"]: float(row["miou"]) for row in rows}
        result = {}
        for place, cell in self._points(untuned).items():
            means: list[tuple[float, dict[str, Any]]] = []
            for values in itertools.product(*self.candidates.values()):
                tried = dict(zip(self.candidates, values, strict=True))
                trials = [make_cell(replace(cell.config, **tried), cell.arm, seed, cell.used) for seed in self.seeds]
                runs = [trial.settings for trial in trials]
                if any(run not in scores for run in runs):
                    raise SegaeError(
                        f"the search for {cell.arm}'s settings misses the run with {tried}; repeat the command."
                    )
                means.append((statistics.fmean(scores[run] for run in runs), tried))
            result[place] = max(means, key=lambda entry: entry[0])[1]
        return result

    def settle(self, untuned: Sequence[Cell], chosen: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> list[Cell]:
        """The cells with the settings chosen for them."""
        return [
            make_cell(replace(cell.config, **chosen[_place(cell)]), cell.arm, cell.seed, cell.used) for cell in untuned
        ]

    def _points(self, untuned: Sequence[Cell]) -> dict[tuple[str, str, str], Cell]:
        """For each (encoder, decoder, arm) a cell in whose configuration candidates are tried."""
        points: dict[tuple[str, str, str], Cell] = {}
        for cell in untuned:
            first = points.get(_place(cell), cell)
            widest = max(first.config, cell.config, key=_labels)
            named = f"{cell.config.experiment}_validation"
            config = replace(first.config, labels=widest.labels, epoch_images=widest.epoch_images)
            points[_place(cell)] = replace(first, config=replace(config, split="val", experiment=named))
        return points


def read_candidates(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Candidates written as ``lr=0.002,0.004`` and ``lr_ratio=1,0.1``.

    Raises:
        SegaeError: a setting is unknown, is given twice or has a value that cannot be read.
    """
    result: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        try:
            if name not in _KNOWN or name in result:
                raise ValueError
            result[name] = tuple(_value(name, value.strip()) for value in values.split(","))
        except ValueError:
            raise SegaeError(
                f"the candidates {text!r} cannot be read; wanted, once each, {', '.join(_KNOWN)} with its values, such "
                f"as --tune lr=0.002,0.004,0.008 lr_ratio=1,0.3,0.1."
            ) from None
    return result


def _value(name: str, text: str) -> Any:
    """The value that a text stands for; ValueError where it is none of the setting's."""
    if name not in _WORDS:
        return float(text)
    if text.lower() not in _WORDS[name]:
        raise ValueError(text)
    return _WORDS[name][text.lower()]


def _labels(config: Compare) -> float:
    return float("inf") if config.labels is None else config.labels


def _place(cell: Cell) -> tuple[str, str, str]:
    return (cell.config.encoder, cell.config.decoder, cell.arm)
