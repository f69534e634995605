"""Compare the variants of a study: result rows become sections, each with one table of means, gains and tests."""

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from segae.bench import statistics
from segae.bench.results import pixel_counts
from segae.errors import DataError, SegaeError

Key = tuple[Any, ...]

LEVEL = 0.95
LONGER = 4  # times the full epochs: a baseline beside the usual schedule
SETTINGS = (
    *("lr", "lr_ratio", "bn_mode", "warmup", "recalibrate", "lpft_head", "batch_size"),
    *(f"pretrain_{name}" for name in ("dataset", "epochs", "image_size", "batch_size", "lr", "decoder")),
)
_JSON = ("method_args", "pretrain_settings")
_SECTION = ("dataset", "split", "encoder", "image_size", "loss", "augment", "finetune_settings")
_SCHEDULE = ("decoder", "freeze_epochs", "epochs")
_VARIANT = ("weights", "weights_file", "method", "transfer", "finetuning", "labels", *_SCHEDULE, *SETTINGS, *_JSON)
_KINDS = {"": "", "frozen": ", frozen", "linear": ", linear head", "longer": ", {epochs} epochs"}
_LONGEST_VALUE = 22  # characters of a setting in a name
_NUMBERS = ("gain", "gain_low", "gain_high", "p", "effect")


@dataclass(frozen=True, eq=False)
class Variant:
    """All seeds of one way to start and to fine-tune, at one label budget.

    ``kind`` is empty, ``frozen`` (the encoder, in all epochs), ``linear`` (a linear head on it) or ``longer``.
    """

    name: str
    kind: str
    rows: pd.DataFrame

    @cached_property
    def first(self) -> pd.Series:
        """The row of the first seed."""
        return self.rows.iloc[0]

    @cached_property
    def labels(self) -> int:
        """Labeled training images."""
        return int(self.first["labels"])

    @cached_property
    def scores(self) -> pd.Series:
        """Mean IoU by seed."""
        return self.rows.set_index("seed")["miou"]

    @cached_property
    def is_start(self) -> bool:
        """Whether these are plain start weights, with which others are compared."""
        return not self.first["method"] and not self.kind and self.first["finetuning"] == "supervised"

    @cached_property
    def rank(self) -> Key:
        """Order in a table: kind, then random weights, ImageNet weights, others."""
        weights, known = self.first["weights"], ("random", "imagenet")
        return list(_KINDS).index(self.kind), known.index(weights) if weights in known else 2, weights, self.name


@dataclass(frozen=True, eq=False)
class Section:
    """The variants of one data set, encoder, decoder, image size and schedule, and their comparison table.

    Attributes:
        variants: one for each line of ``results``, in the same order.
        results: name, kind, plain, labels, seeds, images, miou, low, high, start (the weights it is compared
            with), gain, gain_low, gain_high, p, effect, clear, worth. With one seed intervals, p and effect are NaN.
        tests: name, other, labels and the same numbers of the comparisons with others than the start.
        without_counts: why intervals rest on seeds alone; empty where all runs have counts of single images.
    """

    variants: tuple[Variant, ...]
    results: pd.DataFrame
    tests: pd.DataFrame
    without_counts: str

    @property
    def budgets(self) -> list[int]:
        """The label budgets, largest first."""
        return sorted(set(self.results["labels"]), reverse=True)

    def at(self, labels: int) -> pd.DataFrame:
        """The results at one label budget."""
        return self.results[self.results["labels"] == labels]


def compare_rows(rows: pd.DataFrame, per_image: pd.DataFrame | None = None) -> list[Section]:
    """Sort the rows of a study into sections and compare the variants of each.

    A frozen encoder, a linear head, and a schedule four times as long stand beside the variants that they vary. The
    section with most label budgets, then most variants, comes first.

    Args:
        rows: as :func:`segae.bench.results.read_rows` gives them.
        per_image: pixel counts of single images, keyed by run_id; without them intervals are over seeds alone.

    Raises:
        SegaeError: two rows of one variant share a seed, or there are two variants of the same start weights.
    """
    resampled = rows["dataset"].isin(rows.loc[rows["epoch_images"].notna(), "dataset"])
    epoch = rows["epoch_images"].fillna(rows["labels"]).where(resampled, 0)
    rows = rows.assign(_epoch=epoch, loss=rows["loss"].replace("", "cross_entropy")).sort_values("seed", kind="stable")
    found = []
    for _, place in rows.groupby([*_SECTION, "_epoch"], sort=False, dropna=False):
        groups: dict[Key, list[pd.DataFrame]] = {}
        for _, group in place.groupby(list(_VARIANT), sort=False, dropna=False):
            if (repeated := group["seed"].duplicated(keep=False)).any():
                runs = ", ".join(group.loc[repeated, "run_id"])
                raise SegaeError(f"seed must differ between the rows of a variant, got the same in the runs {runs}")
            groups.setdefault(tuple(group[list(_SCHEDULE)].iloc[0]), []).append(group)
        bases = {key: {base: kind for base in groups if (kind := _kind(key, base))} for key in groups}
        own = [key for key in groups if not bases[key] or ("longer" in bases[key].values() and len(groups[key]) > 1)]
        for base in own:
            members = [("", group) for group in groups[base]]
            for key in (key for key in groups if base in bases[key]):
                # random weights trained for longer are a baseline, even where all variants have that schedule too
                alone = [one for one in groups[key] if tuple(one.iloc[0][["weights", "method"]]) == ("random", "")]
                members += [(bases[key][base], group) for group in (alone if key in own else groups[key])]
            found.append(compare_variants(_named(members), per_image))
    return sorted(found, key=lambda one: (-len(one.budgets), -len(one.results)))


def _kind(key: Key, base: Key) -> str:
    """What a decoder and schedule is of another one; empty where it is no variant of it."""
    decoder, frozen, full = key
    if base[2] == 0 or key == base:
        return ""
    if full == 0 and frozen == base[1] + base[2]:
        return "linear" if decoder == "linear" != base[0] else "frozen" if decoder == base[0] else ""
    return "longer" if key == (base[0], base[1], LONGER * base[2]) else ""


def _named(members: Sequence[tuple[str, pd.DataFrame]]) -> list[Variant]:
    """Variants with names that tell them apart, in the order of the tables."""
    plain = [Variant(variant_name(group.iloc[0], kind), kind, group) for kind, group in members]
    settings = [parse_settings(one.first) for one in plain]
    variants = []
    for one, mine in zip(plain, settings, strict=True):
        alike = [other for twin, other in zip(plain, settings, strict=True) if twin.name == one.name]
        differing = [key for key in mine if len({other.get(key) for other in alike}) > 1]
        # as few settings as tell them apart
        rivals = {tuple(other.get(key) for key in differing) for other in alike}
        count = next((n for n in range(len(differing)) if len({rival[:n] for rival in rivals}) == len(rivals)), 3)
        shown = [key.replace("pretrain dataset", "on") + f" {_shorten(mine[key])}" for key in differing[: count or 1]]
        variants.append(replace(one, name=f"{one.name} [{', '.join(shown)}]" if shown else one.name))
    starts = [(one.first["weights"], one.labels) for one in variants if one.is_start]
    if len(set(starts)) < len(starts):
        names = ", ".join(f"{one.name} with {one.labels} labels" for one in variants if one.is_start)
        raise SegaeError(f"rows must have one variant of each start weights to compare with, got {names}")
    return sorted(variants, key=lambda one: (one.labels, one.rank))


def _shorten(value: str) -> str:
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…"


def variant_name(row: Mapping[str, Any] | pd.Series, kind: str = "") -> str:
    """Name a variant: its start weights, pretraining by family, what is transferred, and its kind.

    Example:
        >>> row = {"weights": "imagenet", "method": "denoise", "method_family": "autoencoding", "method_args": "{}"}
        >>> variant_name({**row, "transfer": "encoder+decoder", "finetuning": "supervised", "epochs": 3})
        'ImageNet + autoencoding (denoise) + decoder'
    """
    method, family = str(row["method"]), str(row["method_family"])
    method = str(parse_json(row["method_args"]).get("source", method)) if family == "pseudo_masks" else method
    parts = [str(row["weights"]).replace("imagenet", "ImageNet")]
    parts += [f"{family.replace('_', '-') or 'pretraining'} ({method})"] if method else []
    parts += ["decoder"] if row["transfer"] == "encoder+decoder" else []
    parts += [str(row["finetuning"]).replace("_", "-")] if row["finetuning"] != "supervised" else []
    return " + ".join(parts) + _KINDS[kind].format(epochs=row["epochs"])


def parse_settings(row: pd.Series) -> dict[str, str]:
    """The known settings of fine-tuning and pretraining by name, as text; those in JSON are taken apart."""
    pretraining = {f"pretrain_{name}": value for name, value in parse_json(row["pretrain_settings"]).items()}
    before, _, name = str(row["weights_source"]).partition("published weights ")
    published = {"published": "" if before else name}  # not of weights that were pretrained further
    file = Path(str(row["weights_file"]))
    published |= {"file": file.parent.name or file.stem} if file.suffix else {}
    found = published | dict(row[list(SETTINGS)]) | pretraining | parse_json(row["method_args"])
    texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in found.items()}
    return {name.replace("_", " "): text for name, text in texts.items() if text not in ("", "nan", "None")}


def parse_json(text: str) -> dict[str, Any]:
    """The settings in a cell such as ``method_args``; an empty cell holds none."""
    try:
        return dict(json.loads(text or "{}"))
    except (ValueError, TypeError) as error:
        raise DataError(f"method_args and the columns of settings must be JSON objects, got {text!r}") from error


def compare_variants(variants: Sequence[Variant], per_image: pd.DataFrame | None = None) -> Section:
    """Compute the comparison table of a section: means, intervals, paired tests, label worth.

    Holm's correction is for the gains at one label budget, and for all further comparisons. A gain is clear if its
    corrected p is below 0.05 and the bootstrap over images excludes 0 too. Fewer than two common seeds are not tested.
    """
    counts: dict[int, statistics.PixelCounts] = {}
    reason = "there are no scores of single images" if per_image is None else ""
    for index, one in enumerate(variants if per_image is not None else ()):
        try:
            counts[index] = pixel_counts(per_image, one.rows)  # type: ignore[arg-type]
        except DataError as error:
            reason = str(error)
    # a variant is compared with the plain weights that it began with, plain weights with the random ones
    plain = {(one.first["weights"], one.labels): index for index, one in enumerate(variants) if one.is_start}
    starts = [plain.get(("random" if one.is_start else one.first["weights"], one.labels)) for one in variants]
    starts = [None if start == index else start for index, start in enumerate(starts)]
    tested: dict[Key, statistics.Comparison] = {}
    for a, b in itertools.permutations(range(len(variants)), 2):
        seeds = sorted(set(variants[a].scores.index) & set(variants[b].scores.index))
        if len(seeds) < 2 or not _comparable(variants[a], variants[b]):
            continue
        counted = {a, b} <= counts.keys()
        mine, theirs = (counts[i].select_seeds(seeds) if counted else variants[i].scores[seeds] for i in (a, b))
        tested[a, b] = statistics.compare(mine, theirs, LEVEL)
    families: dict[int, list[Key]] = defaultdict(list)
    for a, b in tested:
        families[variants[a].labels if starts[a] == b else -1].append((a, b))
    for pairs in families.values():
        adjusted = statistics.adjust_p_values([tested[pair] for pair in pairs])
        tested |= dict(zip(pairs, adjusted, strict=True))
    worth = _worth(variants, starts, counts)
    results = []
    for index, (one, start) in enumerate(zip(variants, starts, strict=True)):
        line = {"name": one.name, "kind": one.kind, "plain": one.is_start, "labels": one.labels, "seeds": len(one.rows)}
        line |= {"images": len(counts[index].images) if index in counts else 0, "worth": worth.get(index, "")}
        scores = one.scores.to_numpy()
        interval = statistics.mean_interval(counts.get(index, scores) if len(scores) > 1 else scores, LEVEL)
        low, high = np.clip([interval.low, interval.high], 0, 1)  # with two seeds t intervals reach beyond any mIoU
        line |= {"miou": one.scores.mean(), "low": low, "high": high}
        line |= {"start": "" if start is None else variants[start].name, **_numbers(tested.get((index, start)))}
        if start is not None and (index, start) not in tested:
            line["gain"] = (one.scores - variants[start].scores).mean()
        results.append(line)
    others = [
        {"name": variants[a].name, "other": variants[b].name, "labels": variants[a].labels, **_numbers(found)}
        for (a, b), found in sorted(tested.items(), key=lambda item: -variants[item[0][0]].labels)
        if starts[a] != b
    ]
    return Section(tuple(variants), pd.DataFrame(results), pd.DataFrame(others), reason)


def _numbers(found: statistics.Comparison | None) -> dict[str, Any]:
    if found is None:
        return {**dict.fromkeys(_NUMBERS, np.nan), "clear": False}
    one, beyond = found.difference, found.bootstrap.low > 0 or found.bootstrap.high < 0
    values = (one.estimate, one.low, one.high, found.p_adjusted, found.effect_size)
    return {**dict(zip(_NUMBERS, values, strict=True)), "clear": found.p_adjusted < 1 - LEVEL and beyond}


def _comparable(one: Variant, other: Variant) -> bool:
    """Compare with plain start weights; and pretraining with the baselines that make it hardest for it.

    These are random weights trained for longer (is more training cheaper?), start weights of the same kind, and, for
    pretraining on top of other weights, the same pretraining from random ones.
    """
    a, b = one.first, other.first
    if one.labels != other.labels:
        return False
    if other.is_start:
        return not (one.is_start and one.rank < other.rank)
    if not a["method"]:
        return False
    if b["method"]:
        alike = all(a[name] == b[name] for name in ("method", "method_args", "transfer", "finetuning"))
        return bool(alike and one.kind == other.kind and b["weights"] == "random" != a["weights"])
    if other.kind == "longer":
        return bool(not one.kind and a["weights"] == b["weights"] == "random")
    return bool(one.kind and one.kind == other.kind)


def _worth(
    variants: Sequence[Variant], starts: Sequence[int | None], counts: Mapping[int, statistics.PixelCounts]
) -> dict[int, str]:
    """How many labels the start of each variant needs to get as far, as text, where that start has several budgets."""
    curves: dict[str, dict[int, int]] = defaultdict(dict)
    for index in counts:
        curves[variants[index].name][variants[index].labels] = index
    found: dict[int, str] = {}
    for curve in curves.values():
        start = starts[next(iter(curve.values()))]
        reference = {} if start is None else curves.get(variants[start].name, {})
        places = [*curve.values(), *reference.values()]
        seeds = sorted(set.intersection(*(set(counts[place].seeds) for place in places)))
        if len(reference) < 2 or len(seeds) < 2:
            continue
        mine, theirs = (
            {labels: counts[place].select_seeds(seeds) for labels, place in part.items()} for part in (curve, reference)
        )
        values = statistics.worth_in_labels(mine, theirs, LEVEL)
        gains = {labels: (mine[labels].miou() - theirs[labels].miou()).mean() for labels in {*mine} & {*theirs}}
        shown = [value for value in values if _agrees(value, gains.get(value.budget))]
        found |= {curve[value.budget]: _worth_text(value, list(reference)) for value in shown}
    return found


def _agrees(worth: statistics.LabelWorth, gain: float | None) -> bool:
    """Whether there is a gain, and the start needs more labels for it than the variant.

    Where the start's score falls with more labels, the rising curve closest to it can say otherwise.
    """
    above = statistics.ABOVE in worth.note or (worth.labels or 0) > worth.budget
    return gain is None or (gain > 0 and above)


def _worth_text(worth: statistics.LabelWorth, budgets: Sequence[int]) -> str:
    """The number with its interval; > and < where they lie outside the budgets that were run."""
    below, above = f"< {min(budgets)}", f"> {max(budgets)}"
    outside = above if statistics.ABOVE in worth.note else below
    low = below if worth.low is None else above if worth.low >= max(budgets) else f"{worth.low:.0f}"
    high = above if worth.high is None else below if worth.high <= min(budgets) else f"{worth.high:.0f}"
    if worth.labels is None:
        # the interval may reach back among the budgets, where the number itself does not lie
        low, high = (low, above) if outside == above else (below, high)
    middle = outside if worth.labels is None else f"{worth.labels:.0f}"
    return middle if low == high == middle else f"{middle} ({low} to {high})"
