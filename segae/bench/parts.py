"""The table of the ablation: what an objective is worth with each of its parts changed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from segae.bench.tables import as_table, interval_of

Row = Mapping[str, str]


def parts_table(rows: Sequence[Row]) -> str:
    """What an objective is worth with each of its parts changed, against the whole of it, as a Markdown table.

    Args:
        rows: of benchmarks/layers_ablation.py. The whole is `layers` from random weights, `feature_layers` from others,
            with the decoder, as long and on images as large; of several that with as much of a boundary, and with a
            fitted head where the variant has one. These themselves are compared with the one that has both.
    """
    groups: dict[_Part, dict[tuple[str, str], float]] = {}
    for row in rows:
        values = (row[name] for name in _Part._fields)
        groups.setdefault(_Part(*values), {})[row["pretrain_seed"], row["seed"]] = float(row["miou"])
    table = []
    for part in sorted(groups, key=lambda part: (*part.place, -statistics.fmean(groups[part].values()))):
        scores, whole = groups[part], part.whole_of(groups)
        mean = f"{statistics.fmean(scores.values()):.3f}"
        spread = f" ± {statistics.stdev(scores.values()):.3f}" if len(scores) > 1 else ""
        of_whole = groups[whole] if whole is not None else {}
        gains = [scores[seed] - of_whole[seed] for seed in scores if seed in of_whole]
        bare = part.variant == "no pretraining"
        start = [part.encoder, part.init, part.variant, "" if bare else part.transfer.replace("+", " + ")]
        start += ["" if bare else "yes" if float(part.boundary) else "no", "yes" if part.fitted_head == "1" else "no"]
        start += ["" if bare else f"{part.pretrain_epochs} at {part.pretrain_image_size} px", f"1 + {part.epochs}"]
        table.append([*start, str(len(scores)), mean + spread, interval_of(gains)])
    heads = ("encoder", "from", "variant", "transferred", "boundary", "fitted head", "passes", "schedule")
    return as_table((*heads, "seeds", "mIoU", "above the whole"), table)


class _Part(NamedTuple):
    """What rows of the ablation agree in that are seeds of one thing."""

    encoder: str
    init: str
    pretrain_epochs: str
    pretrain_image_size: str
    pretrain_batch_size: str
    epochs: str
    variant: str
    transfer: str
    boundary: str
    fitted_head: str

    @property
    def place(self) -> tuple[str | int, ...]:
        """Where it stands in the table: what was pretrained as long stands together."""
        return self.encoder, self.init, *(int(value) for value in self[2:6])

    def whole_of(self, parts: Iterable[_Part]) -> _Part | None:
        """What it is compared with; None for the whole itself, and where there is none."""
        name = "layers" if self.init == "random" else "feature_layers"
        wholes = [
            one for one in parts if (one.variant, one.transfer) == (name, "encoder+decoder") and one.place == self.place
        ]
        if self in wholes:
            best = max(wholes, key=lambda one: (float(one.boundary), one.fitted_head))
            return None if best == self else best

        def likeness(one: _Part) -> tuple[bool, bool, str]:
            return one.boundary == self.boundary, one.fitted_head == self.fitted_head, one.fitted_head

        return max(wholes, key=likeness, default=None)
