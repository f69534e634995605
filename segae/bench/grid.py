"""The runs of a benchmark: start weights x encoders x decoders x label budgets x schedules x seeds."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from segae.bench.comparison import LONGER
from segae.bench.results import run_id
from segae.config import PRESETS, BenchConfig, FinetuneSettings, PretrainSettings
from segae.data import (
    SegmentationDataset,
    content_hashes,
    find_pretraining_images,
    load_augmentation,
    split_hash,
)
from segae.errors import SegaeError
from segae.methods import create_method, method_names
from segae.models import SMP_DECODERS, STARTS, Weights, decoder_file, find_weights

KINDS = ("frozen", "linear", "long")
"""What may follow an @: an encoder frozen in all epochs, a linear decoder on it, or four times the full epochs."""
VALIDATION_FRACTION = 0.2  # of the training images, to choose settings on
_FROZEN = (f"{start}@{kind}" for kind in KINDS[:2] for start in ("imagenet", "random+pseudo_masks"))
_BASELINES = {"weights": ("random@long", *_FROZEN)}
FURTHER_GRIDS: dict[str, tuple[dict[str, Any], ...]] = {
    "sample": (_BASELINES, {"schedules": ("1+12",)}, {"encoders": ("tf_efficientnet_lite2",)}),
    "full": (_BASELINES, {"encoders": ("tf_efficientnet_lite2", "resnet34")}),
}
"""Grids with all labels that a preset adds to its first one, unless one of its dimensions was changed."""
_DIMENSIONS = ("encoders", "decoders", "schedules", "labels", "weights")  # the first varies slowest
_DECIDING = ("precision", "max_steps", "accumulate")  # settings of the trainer that decide a result


@dataclass(frozen=True)
class Run:
    """One fine-tuning of the grid, with the pretraining that has to be there first.

    Attributes:
        variant: text of the start weights, such as ``imagenet+denoise@frozen``.
        finetune: settings of ``segae.finetune`` but for ``weights``, ``out`` and the trainer.
        seed: of the label subset, initialization, order and augmentation.
        weights: where the encoder starts before a pretraining of ours: random, imagenet, or the path of a file.
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
    def schedule(self) -> tuple[int, int]:
        """Frozen and full epochs."""
        return self.finetune["freeze_epochs"], self.finetune["epochs"]

    @property
    def name(self) -> str:
        """A name for messages."""
        encoder, decoder, variant = self.place
        frozen, full = self.schedule
        labels = "all" if self.finetune["labels"] is None else self.finetune["labels"]
        return f"{variant}, {labels} labels, {frozen} + {full} epochs, seed {self.seed} ({encoder}, {decoder})"

    @property
    def pretraining_name(self) -> str:
        """A name of its pretraining for messages."""
        method, seed = self.pretrain["method"].name, self.pretrain["seed"]  # type: ignore[index]
        return f"{method} from {self.weights}, seed {seed} ({self.finetune['encoder']})"


@dataclass(frozen=True)
class Contents:
    """What the runs read, which is the same wherever the folders are: classes, mask values, hashes of the images."""

    labeled: tuple[Any, ...] = ()
    unlabeled: str = ""


def hash_contents(config: BenchConfig, dataset: SegmentationDataset) -> Contents:
    """Hash all images and masks of a benchmark, and log which images pretraining leaves out."""
    splits = {split: _hash_files(pairs.names, pairs.images, pairs.masks) for split, pairs in dataset.splits.items()}
    unlabeled = ""
    if any(parse_variant(text)[0].method for grid in _grids(config) for text in grid.weights):
        images = find_pretraining_images([Path(root) for root in _roots(config)]).kept
        unlabeled = _hash_files([path.name for path in images], images)
    ignored = (dataset.ignore_values,) if dataset.ignore_values else ()  # hashes without any are those of earlier runs
    return Contents((dataset.classes, dataset.mask_values, *ignored, splits), unlabeled)


def make_runs(
    config: BenchConfig, dataset: SegmentationDataset, contents: Contents, tuned: Mapping[Any, Mapping] | None = None
) -> list[Run]:
    """Make every run of the grid, each once, in the order of the rows; ``tuned`` has settings for each ``Run.place``.

    With fewer labels an epoch has as many images as with all of them, so every budget gets the same number of steps.
    """
    found: dict[str, Run] = {}
    available = len(dataset.splits["train"])
    for grid in _grids(config):
        if empty := [name for name in _DIMENSIONS if not getattr(grid, name)]:
            raise SegaeError(f"{empty[0]} must have at least one value, got none")
        for encoder, decoder, schedule, budget, text in itertools.product(*(getattr(grid, one) for one in _DIMENSIONS)):
            settings = {"encoder": encoder, "decoder": decoder, "labels": count_labels(budget, available)}
            settings = _finetuning(grid, settings, text, read_schedule(schedule), available)
            settings |= (tuned or {}).get((encoder, settings["decoder"], text), {})
            for seed in range(grid.trainer.seed, grid.trainer.seed + grid.seeds):
                run = _make_run(grid, contents, settings, text, seed)
                found.setdefault(run.run_id, run)
    return list(found.values())


def parse_variant(text: str) -> tuple[Weights, str]:
    """Read start weights such as ``imagenet+pseudo_masks:features+decoder@frozen``, and what follows the @.

    A combination that trains nothing of what is transferred is a SegaeError, as are unknown names.
    """
    bare, at, kind = text.rpartition("@")
    if not at or "/" in kind:  # an @ in the name of a folder
        bare, kind = text, ""
    elif kind not in KINDS:
        raise SegaeError(f"weights must end with one of @{', @'.join(KINDS)} or none, got {text!r}")
    weights = Weights.parse(bare, method_names())
    if weights.method:
        method = create_method(weights.method, **weights.method_args)
        if method.frozen_encoder and weights.transfer == "encoder":
            ending = f"+decoder for {weights.method}, which trains it alone"
            raise SegaeError(f"weights must end with {ending}, got {text!r}")
        if method.needs_pretrained_encoder and weights.start == "random":
            raise SegaeError(f"weights must not start from random for {method}, got {text!r}")
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
    count = max(round(budget * available), 1) if isinstance(budget, float) and 0 < budget <= 1 else budget
    if not 1 <= count <= available or count != int(count):
        raise SegaeError(f"labels must be at most the {available} training images, or a share in (0, 1], got {budget}")
    return None if count == available else int(count)


def _grids(config: BenchConfig) -> Iterator[BenchConfig]:
    """The grid of the settings, then those that the preset adds."""
    yield config
    usual = {one.name: one.default for one in fields(BenchConfig)} | PRESETS.get(config.preset, {})
    if all(getattr(config, name) == usual[name] for name in _DIMENSIONS):
        for further in FURTHER_GRIDS.get(config.preset, ()):
            yield replace(config, labels=(1.0,), **further)


def _finetuning(
    config: BenchConfig, settings: dict[str, Any], text: str, schedule: tuple[int, int], available: int
) -> dict[str, Any]:
    """All settings of a fine-tuning; ``settings`` are its encoder, decoder and labels, ``available`` images."""
    weights, kind = parse_variant(text)
    freeze, full = schedule
    if weights.transfer == "encoder+decoder" and settings["decoder"] == "linear":
        raise SegaeError(f"decoders must not be linear where a decoder is taken along, got linear with {text!r}")
    settings = {
        **{one.name: getattr(config.finetune, one.name) for one in fields(FinetuneSettings)},
        **{**settings, "transfer": weights.transfer, "freeze_epochs": freeze, "epochs": full},
        **{"classes": tuple(config.classes), "merge": tuple(config.merge)},
        **{name: tuple(getattr(config, name)) for name in ("ignore", "colors") if getattr(config, name)},
        **({"layout": config.layout} if config.layout != "auto" else {}),
        "augment": load_augmentation(config.finetune.augment),
        "val_fraction": 0.0 if config.split == "test" else VALIDATION_FRACTION,
    }
    if settings["labels"] is not None and settings["epoch_images"] is None:
        settings["epoch_images"] = available
    if kind == "long":
        settings["epochs"] = LONGER * full
    elif kind:
        settings |= {"freeze_epochs": freeze + full, "epochs": 0, "bn_mode": settings["bn_mode"] or "strict"}
        settings["decoder"] = "linear" if kind == "linear" else settings["decoder"]
    return settings


def _make_run(config: BenchConfig, contents: Contents, settings: dict[str, Any], text: str, seed: int) -> Run:
    weights, _ = parse_variant(text)
    start, content = weights.start, weights.start
    if start not in STARTS:
        file = find_weights(start, others=STARTS).absolute()
        takes_decoder = weights.transfer == "encoder+decoder" and not weights.method
        start, content = str(file), str(content_hashes([file, decoder_file(file)] if takes_decoder else [file]))
    trainer = {name: getattr(config.trainer, name) for name in _DECIDING}
    common = {"data": contents.labeled, "seed": seed, "finetune": settings, **trainer}
    if not weights.method:
        return Run(text, settings, seed, start, run_id({**common, "weights": content}))
    pretrain = {one.name: getattr(config.pretrain, one.name) for one in fields(PretrainSettings)}
    pretrain["augment"] = load_augmentation(config.pretrain.augment)
    if weights.transfer == "encoder+decoder":
        if (decoder := settings["decoder"]) not in SMP_DECODERS:
            raise SegaeError(f"decoders must be one of {', '.join(SMP_DECODERS)} to be taken along, got {decoder}")
        pretrain["decoder"] = decoder
    pretrain |= {"encoder": settings["encoder"], "seed": seed if config.pretrain_seed is None else config.pretrain_seed}
    # an object, not its name: a method that a script registers is not known to the processes that it starts
    method = create_method(weights.method, **{**config.method_args.get(weights.method, {}), **weights.method_args})
    decides = {"method": weights.method, "method_args": method.settings, "weights": content, "data": contents.unlabeled}
    pretrain_id = run_id({**pretrain, **decides, **trainer})
    pretrain |= {"method": method, "data": _roots(config), "weights": start}
    return Run(text, settings, seed, start, run_id({**common, "weights": pretrain_id}), pretrain, pretrain_id)


def _roots(config: BenchConfig) -> tuple[str, ...]:
    return tuple(str(Path(root).absolute()) for root in (config.data, *config.unlabeled) if root is not None)


def _hash_files(names: Sequence[str], *files: Sequence[Path]) -> str:
    """Hash names and contents of files that belong together; their folders and their order do not matter."""
    return split_hash(" ".join(parts) for parts in zip(names, *map(content_hashes, files), strict=True))
