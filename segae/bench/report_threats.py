"""What would invalidate a result: computed from the rows where they can tell, asked where they cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from segae.bench.report_arms import Arm, Row, Section
from segae.bench.report_numbers import Numbers
from segae.bench.report_text import listed, values
from segae.data.split_files import first_few

if TYPE_CHECKING:
    import pandas as pd

FEW_SEEDS, FEW_IMAGES = 5, 200
_SEARCHED = "tf_efficientnet_lite0"  # the encoder with which segae's own settings were chosen
_STILL_FALLING = 0.95  # last epoch's loss over that of the epoch before


def threats(
    all_numbers: Sequence[Numbers],
    curves: pd.DataFrame | None,
    drawn: Collection[str] = (),
    near: Sequence[Row] = (),
) -> list[str]:
    """Reasons to doubt the result, the gravest first.

    Args:
        all_numbers: the sections of the page.
        curves: logs of the runs (settings, epoch, train_loss), if there are any.
        drawn: names of the data sets whose pictures were drawn by a program.
        near: test images that look like images that were trained on: dataset, test_images, test_image, looks_like.
    """
    sections = [numbers.section for numbers in all_numbers]
    rows = [row for section in sections for row in section.rows]
    found = [
        f"The pictures of {one} were drawn by a program: no number here says anything about photographs."
        for one in values(rows, "dataset")
        if one in drawn
    ]
    found += [*_seen(near, values(rows, "dataset")), *_unequal(sections), *_steps(sections), *_scored_on(rows)]
    found += [*_provenance(rows), *_small(all_numbers, rows)]
    found += [*_settings(sections), *_pretraining(sections), *_baselines(sections), *_converged(sections, curves)]
    return found


def _seen(near: Sequence[Row], datasets: Sequence[str]) -> Iterator[str]:
    """Test images that training may know: the gravest of all, where they are many."""
    for dataset in datasets:
        here = [line for line in near if line["dataset"] == dataset]
        pairs = {line["test_image"]: line["looks_like"] for line in here}
        if pairs:
            shown = first_few(f"{image} like {other}" for image, other in pairs.items())
            yield (
                f"{len(pairs)} of {here[-1]['test_images']} test images of {dataset} look like images that were "
                f"trained on, with or without masks ({shown}): what a network remembers of these is in the scores."
            )


def _unequal(sections: Sequence[Section]) -> Iterator[str]:
    """Arms of one comparison that did not get the same: the gravest."""
    for section in sections:
        for labels in section.budgets:
            arms = section.at(labels)
            where = f"{section.dataset}, {labels} labels, {section.schedule} epochs"
            if len({arm.seeds for arm in arms}) > 1:
                yield f"The arms do not have the same seeds ({where}); only those that two arms share are paired."
            subsets: dict[str, set[str]] = {}
            for row in (row for arm in arms for row in arm.rows if row.get("label_subset")):
                subsets.setdefault(row["seed"], set()).add(row["label_subset"])
            if any(len(found) > 1 for found in subsets.values()):
                yield f"Arms with the same seed had different labelled images ({where}): the comparison is unfair."


def _steps(sections: Sequence[Section]) -> Iterator[str]:
    """Budgets that differ in their number of steps too."""
    for section in sections:
        short = [arm for arm in section.arms if arm.labels < section.budgets[-1]]
        if any(not row.get("epoch_images") for arm in short for row in arm.rows):
            yield (
                f"At the smaller budgets an epoch was the labelled images once ({section.dataset}), so they got fewer "
                "steps: their curve shows the schedule too."
            )


def _scored_on(rows: Sequence[Row]) -> Iterator[str]:
    if "val" in values(rows, "split"):
        yield (
            "Rows of the validation split are on this page. Settings are chosen on these images, so their scores are "
            "too good; only test rows answer the question."
        )


def _provenance(rows: Sequence[Row]) -> Iterator[str]:
    commits = sorted({row[name] for row in rows for name in ("commit", "pretrain_commit") if row.get(name)})
    if len(commits) > 1:
        yield (
            f"The rows were made by the code of {len(commits)} commits ({listed(commits)}); what changed between them "
            "is in the numbers."
        )
    if dirty := [commit for commit in commits if commit.endswith("+changes")]:
        yield f"Some rows come from code that was not committed ({listed(dirty)}), so nobody can repeat them."
    if not commits:
        yield "The rows do not say which commit of the code made them."
    for column, what in (("device", "kinds of device"), ("versions", "sets of library versions")):
        if len(found := values(rows, column)) > 1:
            yield f"The rows come from {len(found)} {what}: {'; '.join(found)}."


def _small(all_numbers: Sequence[Numbers], rows: Sequence[Row]) -> Iterator[str]:
    datasets, encoders, decoders = (values(rows, column) for column in ("dataset", "encoder", "decoder"))
    if len(datasets) == 1:
        yield f"One data set, {datasets[0]}: nothing here says that it is the same with other images."
    if len(encoders) == 1:
        yield f"One encoder, {encoders[0]}, at {listed(values(rows, 'image_size'))} px: others may gain more or less."
    if len([decoder for decoder in decoders if decoder != "linear"]) == 1:
        yield f"One decoder, {listed([one for one in decoders if one != 'linear'])}: another may gain more or less."
    fewest = min(len(arm.rows) for numbers in all_numbers for arm in numbers.section.arms)
    if fewest < FEW_SEEDS:
        means = (
            "no spread between seeds is known"
            if fewest == 1
            else "intervals over so few are wide and lean on their being normal"
        )
        yield f"{fewest} seed{'s' if fewest > 1 else ''} for some arms: {means}."
    for dataset in datasets:
        images = {
            result.images for numbers in all_numbers for result in numbers.results if numbers.section.dataset == dataset
        }
        if 0 < max(images) < FEW_IMAGES:
            yield f"{max(images)} scored images in {dataset}: a few hard ones move the mean."
    if reasons := listed(sorted({numbers.without_counts for numbers in all_numbers if numbers.without_counts})):
        yield f"Some intervals are over seeds alone ({reasons}): they do not say what other test images would change."


def _settings(sections: Sequence[Section]) -> Iterator[str]:
    from segae.training.schedule import protocol_of

    columns = ("lr", "lr_ratio", "bn_mode", "warmup", "recalibrate", "fitted_head")
    arms = [arm for section in sections for arm in section.arms]
    own = [arm for arm in arms if _is_default(arm.rows[0], protocol_of(arm.init, arm.transfer), columns)]
    chosen = [arm for arm in own if arm.rows[0]["encoder"] == _SEARCHED and arm.variant in ("", "longer")]
    if len({tuple(arm.rows[0].get(name) or "0" for name in columns) for arm in arms}) == 1:
        yield "All arms share one set of fine-tuning settings; what suits one start may starve another."
    else:
        yield (
            "The arms differ in their fine-tuning settings (see the methods): each must have been searched equally "
            "hard."
        )
        if chosen:
            elsewhere = sorted({section.dataset for section in sections} - {"oxford-iiit-pet-sample"})
            others = (
                f"; unless --tune found them again, nothing was searched on {listed(elsewhere)}" if elsewhere else ""
            )
            yield (
                f"The settings of {_names(chosen)} equal segae's own for such a start, chosen on validation images of "
                f"the Oxford-IIIT Pet sample (docs/training.md){others}."
            )
    if carried := [arm for arm in own if arm not in chosen]:
        encoders = dict.fromkeys(arm.rows[0]["encoder"] for arm in carried)
        each = [
            _names([arm for arm in carried if arm.rows[0]["encoder"] == one])
            + (f" with {one}" if one != _SEARCHED else "")
            for one in encoders
        ]
        yield (
            f"The settings of {'; of '.join(each)} were carried over: segae's were chosen with {_SEARCHED} and for an "
            "encoder that is fine-tuned. Unless --tune found them again, others may suit these arms better."
        )


def _names(arms: Sequence[Arm]) -> str:
    return listed(list(dict.fromkeys(arm.name for arm in arms)))


def _is_default(row: Row, protocol: object, columns: Sequence[str]) -> bool:
    def same(text: str, value: object) -> bool:
        return text == value if isinstance(value, str) else float(text or "nan") == float(value)  # type: ignore[arg-type]

    return all(same(row.get(name) or "0", getattr(protocol, name)) for name in columns)


def _pretraining(sections: Sequence[Section]) -> Iterator[str]:
    arms = [arm for section in sections for arm in section.arms if "ae:" in arm.init]
    rows = [row for arm in arms for row in arm.rows]
    if any(row["split"] == "val" for row in rows):
        yield "The autoencoders were pretrained on the images scored here too, without their masks."
    if any(len(arm.rows) > 1 and len(set(values(arm.rows, "pretrain_seed"))) == 1 for arm in arms):
        yield "One pretraining served several seeds, so the intervals do not say what another pretraining would give."
    if any(row["pretrain_dataset"] != row["dataset"] for row in rows):
        yield (
            f"Pretraining used {listed(values(rows, 'pretrain_dataset'))}: if scored images, or near-duplicates of "
            "them, are among its unlabelled images, the autoencoder arms have seen them (without masks)."
        )
    if any(arm.init.startswith("imagenet") for section in sections for arm in section.arms):
        yield "ImageNet weights rest on a million labelled photographs, which the label counts here leave out."


def _baselines(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        where = f"{section.dataset}, {section.encoder}, {section.decoder}, {section.schedule} epochs"
        references = {arm.init for arm in section.arms if arm.is_reference}
        if missing := [
            name for init, name in (("random", "random"), ("imagenet", "ImageNet")) if init not in references
        ]:
            yield f"No arm started from {listed(missing, 'or')} weights ({where}): the gain over it is unknown."
        variants = {arm.variant for arm in section.arms}
        wanted = {"frozen": "a frozen encoder", "linear": "a linear head", "longer": "a longer schedule"}
        if absent := [text for variant, text in wanted.items() if variant not in variants]:
            yield f"No arm with {listed(absent, 'or')} ({where})."


def _converged(sections: Sequence[Section], curves: pd.DataFrame | None) -> Iterator[str]:
    if curves is None:
        yield "Without the curves of the runs nobody can see whether training had converged."
        return
    for section in sections:
        names = [arm.name for arm in section.arms if arm.labels == section.budgets[-1] and _falling(arm.rows, curves)]
        if names:
            yield (
                "The training loss was still falling by 5 % or more in the last epoch "
                f"({section.dataset}, {section.encoder}, {section.schedule} epochs: {listed(names)}): "
                "with more epochs the order may change."
            )


def _falling(rows: Sequence[Row], curves: pd.DataFrame) -> bool:
    mine = curves[curves["settings"].isin([row["settings"] for row in rows])]
    loss = mine.groupby("epoch")["train_loss"].mean().sort_index()
    return len(loss) > 1 and bool(loss.iloc[-1] < _STILL_FALLING * loss.iloc[-2])
