"""What the rows of results/throughput_<device>.csv must reach on each kind of device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A bound on the value (the median of the rounds) of some rows.

    Attributes:
        benchmark: script that writes them.
        metric: their metric.
        least: None where there is only a most.
        most: None where there is only a least.
        only: columns that narrow the rows down, with the values that count.
    """

    benchmark: str
    metric: str
    least: float | None = None
    most: float | None = None
    only: Sequence[tuple[str, tuple[str, ...]]] = ()

    def applies(self, row: Mapping[str, str]) -> bool:
        """Whether a row is one of them."""
        named = (row["benchmark"], row["metric"]) == (self.benchmark, self.metric)
        return named and all(row[column] in values for column, values in self.only)


def _training(memory: float, live: float, plain_loop: float) -> list[Target]:
    decoded = (("data_path", ("cache", "device")),)
    return [
        Target("throughput", "rate_over_ceiling", least=memory, only=decoded),
        Target("throughput", "rate_over_ceiling", least=live, only=(("data_path", ("live",)),)),
        Target("throughput", "data_wait", most=0.05, only=decoded),
        Target("throughput", "ratio_to_plain_loop", least=plain_loop, only=(("task", ("segment",)),)),
        Target("sparse_step", "sparse_over_dense", most=1.25),
        Target("memory", "peak_over_smaller", most=1.10),
        Target("plan_check", "seconds_over_plan", least=0.85, most=1.15),
        Target("plan_check", "peak_memory_mb_over_plan", least=0.85, most=1.15),
        Target("plan_check", "training_energy_wh_over_plan", least=0.85, most=1.15),
    ]


TARGETS: dict[str, list[Target]] = {
    "cpu": [
        *_training(memory=0.95, live=0.85, plain_loop=1.0),
        Target("throughput", "ratio_to_plain_loop", least=1.0, only=(("task", ("pretrain",)),)),
        Target("finetune_epoch", "time_over_plain_loop", most=1.0),
        Target("startup", "startup_seconds", most=1.0, only=(("task", ("help",)),)),
        Target("startup", "startup_seconds", most=8.0, only=(("task", ("predict",)),)),
    ],
    "cuda": [
        *_training(memory=0.90, live=0.80, plain_loop=1.3),
        Target("throughput", "ratio_to_fastai_unet_learner", least=3.0, only=(("image_size", ("224",)),)),
    ],
}
"""By type of device: two CPU cores; a data-centre GPU with 16 cores."""


def shortfalls(rows: Iterable[Mapping[str, str]], targets: Sequence[Target]) -> list[str]:
    """What misses its mark, a sentence for each.

    Args:
        rows: of results/throughput_<device>.csv.
        targets: those of that device.
    """
    found = []
    for row in rows:
        for target in targets:
            value = float(row["value"])
            below = target.least is not None and value < target.least
            above = target.most is not None and value > target.most
            if target.applies(row) and (below or above):
                bound = f"at least {target.least}" if below else f"at most {target.most}"
                where = f"{row['benchmark']}: {row['task']} {row['encoder']} {row['image_size']} px, {row['data_path']}"
                found.append(f"{where}: {row['metric']} of {row['system']} is {value:.3f}, wanted {bound}")
    return found


def unmet(rows: Sequence[Mapping[str, str]], targets: Sequence[Target]) -> list[str]:
    """Targets that no row speaks of, but for energy, which many devices do not report."""
    missing = [target for target in targets if not any(target.applies(row) for row in rows)]
    return [f"{target.benchmark}: {target.metric}" for target in missing if "energy" not in target.metric]
