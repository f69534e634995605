"""The words of a report: what the result is and how it was made, all of it from the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from segae.bench.report_arms import Row, Section
from segae.bench.report_numbers import LEVEL, Numbers
from segae.tasks.page import name_of

if TYPE_CHECKING:
    from segae.bench.statistics import Interval
    from segae.bench.worth import Worth


def number(value: float, digits: int = 3) -> str:
    """A score as text; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign."""
    return "–" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def span(interval: Interval, how: Callable[[float], str] = number) -> str:
    """The ends of an interval."""
    return f"{how(interval.low)} to {how(interval.high)}"


def p_value(p: float) -> str:
    """A p value as papers print it."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def worth_text(worth: Worth, budgets: Sequence[int]) -> str:
    """With how many labels the reference, run at ``budgets``, gets as far; with the interval where there is one."""
    from segae.bench.worth import ABOVE, BELOW

    below, above = f"< {min(budgets)}", f"> {max(budgets)}"
    low, high = (None if end is None else f"{end:.0f}" for end in (worth.low, worth.high))
    if worth.labels is not None:
        return f"{worth.labels:.0f} ({low or below} to {high or above})"
    # the interval may reach back among the budgets, where the number itself does not lie
    if ABOVE in worth.note:
        far = worth.low is None or worth.low < max(budgets)
        return f"{above} ({low or below} to {above})" if far else above
    if BELOW in worth.note:
        far = worth.high is None or worth.high > min(budgets)
        return f"{below} ({below} to {high or above})" if far else below
    return "–"


def further_table(numbers: Numbers) -> list[dict[str, str]]:
    """The comparisons beside those with plain random and ImageNet weights, most labels first."""
    return [
        {
            "labels": str(one.arm.labels),
            "arm": one.arm.name,
            "other": one.other.name,
            "difference": signed(one.comparison.difference.estimate),
            "interval": span(one.comparison.difference, signed),
            "p": p_value(one.comparison.p_adjusted),
        }
        for one in sorted(numbers.further, key=lambda one: -one.arm.labels)
    ]


def methods(all_numbers: Sequence[Numbers]) -> str:
    """A methods paragraph for a paper: nothing in it that the rows do not say."""
    rows = [row for numbers in all_numbers for row in numbers.section.rows]
    sections = [numbers.section for numbers in all_numbers]
    said = [
        _what_was_trained(rows, sections),
        _protocols(sections),
        *_pretraining(sections),
        _measured(rows),
        _tested(all_numbers),
    ]
    return " ".join(sentence for sentence in said if sentence)


def values(rows: Iterable[Row], column: str) -> list[str]:
    """What stands in a column, each once, in the order of the rows; nothing for empty cells."""
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return " ".join([", ".join(words[:-1]), last, words[-1]]) if len(words) > 1 else "".join(words)


def _what_was_trained(rows: Sequence[Row], sections: Sequence[Section]) -> str:
    starts = listed(list(dict.fromkeys(arm.name for section in sections for arm in section.arms)))
    encoders, decoders = listed(values(rows, "encoder")), listed(values(rows, "decoder"))
    budgets = {
        dataset: listed([str(one) for one in sorted({int(row["labels"]) for row in rows if row["dataset"] == dataset})])
        for dataset in values(rows, "dataset")
    }
    data = listed([f"{dataset} with {count} labelled training images" for dataset, count in budgets.items()])
    seeds = sorted({len(arm.rows) for section in sections for arm in section.arms})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"We fine-tuned segmenters with the encoder {encoders} and the decoder {decoders} on {data}, "
        f"starting from: {starts}. Each was trained with {count} seed{'' if seeds == [1] else 's'}."
    )


def _protocols(sections: Sequence[Section]) -> str:
    rows = [row for section in sections for row in section.rows]
    kinds = dict.fromkeys((row["freeze_epochs"], row["epochs"]) for row in rows)
    schedules = listed([f"{frozen} frozen and {full} full epochs" for frozen, full in kinds], "or")
    sizes, batches = (listed(values(rows, column)) for column in ("image_size", "batch_size"))
    said = (
        f"Images were resized to {sizes} px; the batch size was {batches}; the schedule was {schedules} of AdamW, the "
        "learning rate rising and falling once in each part. "
    )
    if (augmented := {row["augment"] for row in rows if row.get("augment")}) == {"1"}:
        said += (
            "Training images were mirrored, moved, turned and scaled a little, and changed in brightness and contrast, "
            "all at random. "
        )
    elif augmented == {"0"}:
        said += "Training images were not augmented. "
    if epochs := values(rows, "epoch_images"):
        said += f"At the smaller label budgets an epoch was {listed(epochs, 'or')} images, drawn with repetition. "
    if losses := values(rows, "loss"):
        said += f"The loss was {listed(losses)}. "
    alike: dict[tuple[str, ...], dict[str, None]] = {}
    for arm in (arm for section in sections for arm in section.arms):
        settings = [arm.rows[0][name] for name in ("lr", "lr_ratio", "bn_mode", "warmup", "recalibrate")]
        settings.append(arm.rows[0].get("fitted_head") or "0")
        alike.setdefault(tuple(settings), {})[arm.name] = None
    each = [
        f"{listed(list(names))}: peak learning rate {lr}, encoder over head rate {ratio}, BatchNorm mode {mode}, "
        f"warm-up {warmup}{', BatchNorm statistics measured again' if again not in ('0', '') else ''}"
        f"{', a head fitted before the first step' if zero == '1' else ''}"
        for (lr, ratio, mode, warmup, again, zero), names in alike.items()
    ]
    return f"{said}Fine-tuning settings were, for {'; for '.join(each)}."


def _pretraining(sections: Sequence[Section]) -> list[str]:
    said: dict[str, None] = {}
    for arm in (arm for section in sections for arm in section.arms if "ae:" in arm.init):
        row = arm.rows[0]
        images = sorted({int(float(one)) for one in values(arm.rows, "pretrain_images")})
        count = (
            f"{images[0]}" if len(images) == 1 else f"{images[0]} to {images[-1]}" if images else "an unknown number of"
        )
        said[
            f"The autoencoder of {name_of(arm.init)} was pretrained on {count} images of {row['pretrain_dataset']} for "
            f"{row['pretrain_epochs']} epochs at {row['pretrain_image_size']} px (batch {row['pretrain_batch_size']}, "
            f"peak learning rate {row['pretrain_lr']}, decoder {row['pretrain_decoder']})."
        ] = None
    return list(said)


def _measured(rows: Sequence[Row]) -> str:
    devices, software = listed(values(rows, "device")), listed(values(rows, "versions"), "or")
    commits = listed(values(rows, "commit"))
    return (
        f"Scores are of the {listed(values(rows, 'split'))} images: mean IoU over the classes from pixel counts "
        f"summed over all images, and boundary IoU (arXiv 2103.16562). Runs were made on {devices} with {software}"
        f"{f', at commit {commits}' if commits else ''}."
    )


def _tested(all_numbers: Sequence[Numbers]) -> str:
    over = {
        result.interval.over for numbers in all_numbers for result in numbers.results if result.interval is not None
    }
    count = sum(numbers.comparisons for numbers in all_numbers)
    said = f"Intervals are {100 * LEVEL:.0f} % intervals over {listed(sorted(over), 'or over')}. " if over else ""
    if count:
        said += (
            f"Differences of two starts are paired by seed; the p values of the {count} comparisons are corrected by "
            "Holm's method within each section."
        )
        if any(not numbers.without_counts for numbers in all_numbers):
            said += (
                " A start is called ahead only where a bootstrap over the scored images (BCa, 2,000 samples) leaves "
                "zero out too."
            )
    return said
