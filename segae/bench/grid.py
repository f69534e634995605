"""The runs of a benchmark: start weights x encoders x decoders x label budgets x schedules x seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from segae.bench.results import run_id
from segae.config import PRESETS, BenchConfig, FinetuneSettings, PretrainSettings, TrainerConfig
from segae.data import SegmentationDataset, content_hashes, find_pretraining_images, split_hash
from segae.errors import SegaeError
from segae.methods import create_method, method_names
from segae.models import SMP_DECODERS, Weights

KINDS = {
    "frozen": "the encoder is frozen in all epochs",
    "linear": "a linear decoder on an encoder that is frozen in all epochs",
    "long": "four times the full epochs",
}
"""What may follow an @: the same start weights, fine-tuned in another way."""
LONGER = 4
VALIDATION_FRACTION = 0.2  # of the training images, to choose settings on
_ALL = {"labels": (1.0,)}
_BASELINES = {
    "weights": (
        "random@long",
        *(f"{start}@{kind}" for kind in ("frozen", "linear") for start in ("imagenet", "random+pseudo_masks")),
    )
}
FURTHER_GRIDS: dict[str, tuple[dict[str, Any], ...]] = {
    "sample": (
        {**_ALL, **_BASELINES},
        {**_ALL, "schedules": ("1+12",)},
        {**_ALL, "encoders": ("tf_efficientnet_lite2",)},
    ),
    "full": ({**_ALL, **_BASELINES}, {**_ALL, "encoders": ("tf_efficientnet_lite2", "resnet34")}),
}
"""Grids that a preset adds to its first one, unless one of its dimensions was changed."""
_DIMENSIONS = ("weights", "labels", "encoders", "decoders", "schedules")


@dataclass(frozen=True)
class Run:
    """One fine-tuning of the grid, with the pretraining that has to be there first.

    Attributes:
        variant: text of the start weights, such as ``imagenet+denoise@frozen``.
        finetune: settings of ``segae.finetune`` but for ``weights``, ``out`` and the trainer.
        seed: of the label subset, initialization, order and augmentation.
        weights: where the encoder starts before a pretraining of ours.
        run_id: hash of everything that decides the result, contents of the images included.
        pretrain: settings of ``segae.pretrain``; None where there is no pretraining.
        pretrain_id: its hash; empty without.
    """

    variant: str
    finetune: Mapping[str, Any]
    seed: int
    weights: str
    run_id: str
    pretrain: Mapping[str, Any] | None = None
    pretrain_id: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Encoder, decoder and variant: what settings are tuned for."""
        return str(self.finetune["encoder"]), str(self.finetune["decoder"]), self.variant

    @property
    def kind(self) -> tuple[Any, ...]:
        """What runs of about the same duration share."""
        return (*self.place[:2], *(self.finetune[name] for name in ("epochs", "freeze_epochs", "epoch_images")))

    @property
    def name(self) -> str:
        """A name for messages."""
        settings, labels = self.finetune, self.finetune["labels"]
        schedule = f"{settings['freeze_epochs']} + {settings['epochs']} epochs"
        return f"{self.variant}, {'all' if labels is None else labels} labels, {schedule}, seed {self.seed}"


def make_runs(
    config: BenchConfig, dataset: SegmentationDataset, tuned: Mapping[Any, Mapping] | None = None
) -> list[Run]:
    """Make every run of the grid, each once, in the order of the rows.

    With fewer labels an epoch has as many images as with all of them, so every budget gets the same number of steps.

    Args:
        config: of the benchmark.
        dataset: its labeled images.
        tuned: fine-tuning settings chosen for each ``Run.place``.

    Raises:
        SegaeError: weights, a label budget or a schedule cannot be read or used.
    """
    contents = _contents(config, dataset)
    grids, preset = [config], PRESETS.get(config.preset, {})
    usual = {one.name: one.default for one in fields(BenchConfig)} | preset
    if all(getattr(config, name) == usual[name] for name in _DIMENSIONS):
        grids += [replace(config, **further) for further in FURTHER_GRIDS.get(config.preset, ())]
    found: dict[str, Run] = {}
    for grid in grids:
        if not grid.weights:
            raise SegaeError("weights must name at least one start, got none")
        for encoder in grid.encoders:
            for decoder in grid.decoders:
                for schedule in grid.schedules:
                    for budget in grid.labels:
                        for text in grid.weights:
                            for seed in range(grid.trainer.seed, grid.trainer.seed + grid.seeds):
                                about = (encoder, decoder, schedule, budget, text, seed)
                                run = _make_run(grid, about, dataset, contents, tuned or {})
                                found.setdefault(run.run_id, run)
    return list(found.values())


def parse_variant(text: str) -> tuple[Weights, str]:
    """Read start weights such as ``imagenet+pseudo_masks:features+decoder@frozen``, and what follows the @.

    Raises:
        SegaeError: unknown weights, method or kind, or a combination that trains nothing of what is transferred.
    """
    bare, at, kind = text.partition("@")
    if at and kind not in KINDS:
        raise SegaeError(f"weights must end with one of @{', @'.join(KINDS)} or none, got {text!r}")
    weights = Weights.parse(bare, method_names())
    if weights.method:
        method = create_method(weights.method, **weights.method_args)
        if method.frozen_encoder and weights.transfer == "encoder":
            raise SegaeError(
                f"weights must end with +decoder for {weights.method}, which trains it alone, got {text!r}"
            )
        if method.needs_pretrained_encoder and weights.start == "random":
            raise SegaeError(f"weights must not start from random for source features, got {text!r}")
    if kind == "linear" and weights.transfer == "encoder+decoder":
        raise SegaeError(f"weights must not take a decoder along to a linear one, got {text!r}")
    return weights, kind


def read_schedule(text: str) -> tuple[int, int]:
    """Read frozen and full epochs, written as ``1+3``."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*\+\s*(\d{1,6})\s*", text)
    if not match or int(match[1]) + int(match[2]) == 0:
        raise SegaeError(f"schedules must be frozen + full epochs, such as 1+3, got {text!r}")
    return int(match[1]), int(match[2])


def count_labels(budget: int | float, available: int) -> int | None:
    """Number of images of a label budget, a count or a share in (0, 1]; None for all."""
    share = isinstance(budget, float)
    count = max(round(budget * available), 1) if share and budget <= 1 else budget
    if count != int(count) or not 1 <= count <= available:
        raise SegaeError(f"labels must be at most the {available} training images, or a share in (0, 1], got {budget}")
    return None if count == available else int(count)


def _make_run(
    config: BenchConfig, about: tuple[Any, ...], dataset: SegmentationDataset, contents: dict[str, Any], tuned: Mapping
) -> Run:
    encoder, decoder, schedule, budget, text, seed = about
    weights, kind = parse_variant(text)
    freeze, full = read_schedule(schedule)
    if weights.transfer == "encoder+decoder" and decoder == "linear":
        raise SegaeError(f"decoders must not be linear where a decoder is taken along, got linear with {text!r}")
    available = len(dataset.splits["train"])
    labels = count_labels(budget, available)
    settings: dict[str, Any] = {
        **{one.name: getattr(config.finetune, one.name) for one in fields(FinetuneSettings)},
        **{"encoder": encoder, "decoder": decoder, "transfer": weights.transfer, "labels": labels},
        **{"freeze_epochs": freeze, "epochs": full, "classes": tuple(config.classes), "merge": tuple(config.merge)},
        "val_fraction": 0.0 if config.split == "test" else VALIDATION_FRACTION,
    }
    if labels is not None and settings["epoch_images"] is None:
        settings["epoch_images"] = available
    if kind == "long":
        settings["epochs"] = LONGER * full
    elif kind:
        settings |= {"freeze_epochs": freeze + full, "epochs": 0, "bn_mode": settings["bn_mode"] or "strict"}
        settings["decoder"] = "linear" if kind == "linear" else decoder
    settings |= tuned.get((encoder, settings["decoder"], text), {})
    common = {"data": contents["labeled"], "seed": seed, **_plain_trainer(config.trainer)}
    if not weights.method:
        return Run(
            text, settings, seed, weights.start, run_id({**common, "weights": weights.start, "finetune": settings})
        )
    pretrain = _pretraining(config, weights, encoder, decoder, seed)
    own = {name: value for name, value in pretrain.items() if name != "data"}
    pretrain_id = run_id({**own, "data": contents["unlabeled"], **_plain_trainer(config.trainer)})
    return Run(
        text,
        settings,
        seed,
        weights.start,
        run_id({**common, "weights": pretrain_id, "finetune": settings}),
        pretrain,
        pretrain_id,
    )


def _pretraining(config: BenchConfig, weights: Weights, encoder: str, decoder: str, seed: int) -> dict[str, Any]:
    """Settings of the pretraining that start weights ask for."""
    given = config.method_args.get(weights.method, {})
    method = create_method(weights.method, **{**given, **weights.method_args})
    settings = {one.name: getattr(config.pretrain, one.name) for one in fields(PretrainSettings)}
    if weights.transfer == "encoder+decoder":
        if decoder not in SMP_DECODERS:
            raise SegaeError(f"decoders must be one of {', '.join(SMP_DECODERS)} to be taken along, got {decoder}")
        settings["decoder"] = decoder
    return {
        **settings,
        **{"data": _roots(config), "encoder": encoder, "weights": weights.start},
        **{"method": weights.method, "method_args": asdict(method)},
        "seed": seed if config.pretrain_seed is None else config.pretrain_seed,
    }


def _roots(config: BenchConfig) -> tuple[str, ...]:
    return tuple(str(Path(root).absolute()) for root in (config.data, *config.unlabeled) if root is not None)


def _plain_trainer(trainer: TrainerConfig) -> dict[str, Any]:
    """What of the trainer decides a result."""
    return {name: value for name, value in asdict(trainer).items() if name in ("precision", "max_steps")}


def _contents(config: BenchConfig, dataset: SegmentationDataset) -> dict[str, Any]:
    """Hashes of all images and masks: the same files elsewhere are the same runs, changed files are others."""
    labeled = {}
    for split, pairs in dataset.splits.items():
        files = [file for pair in pairs for file in (pair.image, pair.mask)]
        labeled[split] = split_hash([*(pair.name for pair in pairs), *content_hashes(files)])
    unlabeled = ""
    if any(parse_variant(text)[0].method for text in config.weights):
        kept = find_pretraining_images([Path(root) for root in _roots(config)]).kept
        unlabeled = split_hash([*(path.name for path in kept), *content_hashes(kept)])
    return {"labeled": [dataset.classes, labeled], "unlabeled": unlabeled}
