"""Ready benchmarks: drawn pets in minutes, a few hundred images in hours, the whole of Oxford-IIIT Pets on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LABEL_FREE = "ae:layers+decoder"
ON_IMAGENET = "imagenet+ae:feature_layers+decoder"
"""The autoencoder arms that were ahead of the weights they began with: docs/pretraining.md."""

_INITS = ("random", "imagenet", LABEL_FREE, ON_IMAGENET)
_BASELINES = (
    "random@long",
    *(f"{init}@{variant}" for variant in ("frozen", "linear") for init in ("imagenet", "ae:layers")),
)
"""What a sceptic asks for: four times the epochs from scratch, frozen features under a U-Net and under one layer."""


@dataclass(frozen=True)
class Acceptance:
    """Between what the mean over seeds of a published protocol must lie.

    Attributes:
        column: of the rows.
        mean: what was published.
        deviation: between the published runs.
        runs: how many these were.
        test_images: on how many it was published; elsewhere nothing is claimed.
        source: who published what.
        differences: what the preset does in another way.
    """

    column: str
    mean: float
    deviation: float
    runs: int
    test_images: int
    source: str
    differences: str

    def interval(self, runs: int) -> tuple[float, float]:
        """Where the mean of so many further runs lies in 95 % of all cases, if nothing differs."""
        from scipy import stats

        half = stats.t.ppf(0.975, self.runs - 1) * self.deviation * math.sqrt(1 / runs + 1 / self.runs)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Preset:
    """A ready benchmark.

    Attributes:
        settings: values of ``Bench`` that stand where no flag was given.
        also: further grids of the same study: for each the dimensions that differ from the first.
        accept: a published result that the rows are to agree with.
    """

    settings: Mapping[str, Any]
    also: tuple[Mapping[str, tuple[str, ...]], ...] = ()
    accept: Acceptance | None = None


_OWN_DATA: dict[str, Any] = {
    "arms": _INITS,
    "encoders": ("tf_efficientnet_lite0",),
    "decoders": ("unet",),
    "budgets": ("10%", "30%", "100%"),
    "schedules": ("1+3",),
    "seeds": (0, 1, 2),
    "image_size": 128,
    "batch_size": 16,
    "pretrain_image_size": 96,
    "pretrain_epochs": 10,
    "pretrain_batch_size": 32,
}

PRESETS: dict[str, Preset] = {
    "own": Preset(_OWN_DATA),
    "quick": Preset(
        _OWN_DATA
        | {
            "arms": ("random", "imagenet", LABEL_FREE),
            "budgets": ("25%", "100%"),
            "image_size": 64,
            "pretrain_image_size": 64,
            "pretrain_epochs": 3,
        }
    ),
    "sample": Preset(
        _OWN_DATA | {"budgets": ("5%", "10%", "25%", "50%", "100%")},
        also=(
            {"budgets": ("100%",), "arms": _BASELINES},
            {"budgets": ("100%",), "schedules": ("1+12",)},
            {"budgets": ("100%",), "encoders": ("tf_efficientnet_lite2",)},
        ),
    ),
    "full": Preset(
        _OWN_DATA
        | {
            "budgets": ("1%", "5%", "10%", "25%", "50%", "100%"),
            "pretrain_image_size": 224,
            "pretrain_epochs": 1600,  # as many images as recipes/pretrain_pets.json sees
            "pretrain_batch_size": 256,
            "pretrain_lr": 2e-3,
        },
        also=(
            {"budgets": ("100%",), "arms": _BASELINES},
            {"budgets": ("100%",), "encoders": ("tf_efficientnet_lite2", "resnet34")},
        ),
    ),
    "smp": Preset(
        {
            "arms": ("imagenet",),
            "encoders": ("resnet34",),
            "decoders": ("fpn",),
            "budgets": ("100%",),
            "schedules": ("0+10",),
            "seeds": (0, 1, 2),
            "image_size": 256,
            "batch_size": 64,
            "loss": "dice",
            "augment": False,
            "merge": ("foreground=pet+border",),
            "lr": 4e-4,  # the full epochs peak at half of it
            "lr_ratio": 1.0,
            "bn_mode": "train",
            "warmup": 0.002,  # one or two steps: a cosine from its top
            "recalibrate": False,
        },
        accept=Acceptance(
            column="iou_foreground",
            mean=0.9148,
            deviation=0.0012,
            runs=7,
            test_images=3669,
            source="segmentation_models.pytorch's Pets example, seven runs of its protocol: 0.9148, sd 0.0012",
            differences=(
                "Ours differs in the ImageNet weights (timm's for ResNet-34), in AdamW for Adam, in the Dice loss of "
                "two softmax channels for that of one, and in training on all training images."
            ),
        ),
    ),
}
DIMENSIONS = ("arms", "encoders", "decoders", "budgets", "schedules")
