"""The arms of a comparison: where an encoder starts, what it was pretrained for, what of it is transferred."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError
from segae.objectives.catalogue import DEFAULTS, used_values
from segae.tasks.prepare import resolve
from segae.tasks.pretrain import Pretrain

if TYPE_CHECKING:
    from segae.tasks.compare import Compare

_DECODER = "+decoder"
VARIANTS = {
    "frozen": "the encoder is frozen in all epochs",
    "linear": "a linear decoder on an encoder that is frozen in all epochs",
    "long": "four times the full epochs",
}
"""What stands behind an arm's @: the same start, fine-tuned in another way."""
LONGER = 4
_THE_ARMS = ("data", "out", "encoder", "init", "objective", "seed", "device", "probe", "classes", "resume", "overwrite")


@dataclass(frozen=True)
class Arm:
    """One way to start a segmenter.

    Attributes:
        start: `random` or `imagenet`: before any pretraining of ours.
        objective: what our pretraining asks for; empty where there is none.
        transfer: `encoder` or `encoder+decoder`.
        variant: a key of `VARIANTS`, or empty.
    """

    start: str
    objective: str
    transfer: str
    variant: str = ""

    @property
    def init(self) -> str:
        """As result rows name it: `random`, `imagenet`, `ae:<objective>` or `imagenet+ae:<objective>`."""
        if not self.objective:
            return self.start
        return ("imagenet+" if self.start == "imagenet" else "") + f"ae:{self.objective}"


def parse_arm(text: str) -> Arm:
    """Read `random`, `imagenet`, `ae:<objective>` or `imagenet+ae:<objective>`, the last two also with `+decoder`.

    Behind an `@` may stand one of `VARIANTS`, such as `imagenet@frozen` or `ae:mask+decoder@long`.

    Raises:
        SegaeError: it is none of these, or the objective is unknown or trains nothing of what is transferred.
    """
    start, mark, variant = text.partition("@")
    if mark and variant not in VARIANTS:
        known = "; ".join(f"@{name}: {meaning}" for name, meaning in VARIANTS.items())
        raise SegaeError(
            f"the arm {text!r} has the unknown variant {variant!r}. Use one of these, as the last part of the arm: "
            f"{known}."
        )
    arm = replace(_parse_start(start), variant=variant)
    if variant == "linear" and arm.transfer == "encoder+decoder":
        raise SegaeError(
            f"the arm {text!r} transfers a decoder, and @linear has none but its head. Use "
            f"{start.removesuffix(_DECODER)}@linear or {start}@frozen."
        )
    return arm


def _parse_start(text: str) -> Arm:
    from segae.objectives.presets import OBJECTIVES, make_objective

    bare = text.removesuffix(_DECODER)
    start, mark, objective = bare.rpartition("ae:")
    if text in ("random", "imagenet"):
        return Arm(text, "", "encoder")
    if not mark or start not in ("", "imagenet+") or not objective:
        raise SegaeError(
            f"the arm {text!r} is unknown; use random, imagenet, ae:<objective> or imagenet+ae:<objective>, with "
            f"{_DECODER} behind it to transfer the decoder too, and @{', @'.join(VARIANTS)} behind all of it for a "
            f"variant, for example --arms random imagenet ae:mask."
        )
    if objective not in OBJECTIVES:
        close = difflib.get_close_matches(objective, list(OBJECTIVES), n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        raise SegaeError(f"the arm {text!r} has an unknown objective. {hint}Use one of {', '.join(OBJECTIVES)}.")
    transfer = "encoder+decoder" if text.endswith(_DECODER) else "encoder"
    if _freezes(objective) and transfer == "encoder":
        raise SegaeError(
            f"the arm {text!r} would transfer an encoder that {objective} leaves as it was; transfer the decoder "
            f"too: --arms {text}{_DECODER}."
        )
    if not start and make_objective(objective).prepare is not None:
        raise SegaeError(
            f"the arm {text!r} starts from random weights, which cannot say where the objects are as {objective} asks "
            f"them to. Use --arms imagenet+{text}, or ae:layers."
        )
    return Arm("imagenet" if start else "random", objective, transfer)


def _freezes(objective: str) -> bool:
    from segae.objectives.presets import make_objective

    return make_objective(objective, noise_sigma=None, patch=None, mask_ratio=None).frozen_encoder


def own_settings(config: Compare, arm: Arm) -> Compare:
    """The configuration with the decoder, schedule and BatchNorm mode of the arm's variant.

    An encoder that is frozen in all epochs rests with its BatchNorm layers, unless a mode was asked for.
    """
    if arm.variant == "long":
        return replace(config, epochs=LONGER * config.epochs)
    if not arm.variant:
        return config
    rests = replace(
        config,
        freeze_epochs=config.freeze_epochs + config.epochs,
        epochs=0,
        bn_mode=config.bn_mode or "strict",
    )
    return replace(rests, decoder="linear") if arm.variant == "linear" else rests


def require_transferable(transfer: str, decoder: str) -> None:
    """Raise SegaeError if the segmenter's decoder is one that no pretraining trains."""
    if transfer == "encoder+decoder" and decoder == "linear":
        raise SegaeError(
            "the segmenter's linear decoder is its head and nothing more; there is nothing to transfer. Use --decoder "
            "unet, or transfer the encoder alone: arms without +decoder, or --transfer encoder."
        )


def pretraining_of(config: Compare, arm: Arm, seed: int) -> Pretrain:
    """The pretraining that an arm asks for, every setting filled in."""
    settings = read_pretraining(config.pretrain_config, arm) if config.pretrain_config else {}
    given = {
        name: getattr(config, f"pretrain_{name}") for name in ("image_size", "epochs", "batch_size", "lr", "decoder")
    }
    own_defaults = {"workers": 0, "image_size": config.image_size}  # several runs may share the cores
    settings = {**own_defaults, **settings, **{n: v for n, v in given.items() if v is not None}}
    if arm.transfer == "encoder+decoder":
        settings["decoder"] = config.decoder
    own = {
        "data": (config.data, *config.unlabelled),
        "encoder": config.encoder,
        "init": arm.start,
        "objective": arm.objective,
        "seed": seed if config.pretrain_seed is None else config.pretrain_seed,
        "device": config.device,
    }
    return resolve(Pretrain(**{**settings, **own}), arm.start)


def read_pretraining(path: Path, arm: Arm) -> dict[str, Any]:
    """Settings of a pretraining from a JSON file, without those that say what, where and from which start.

    A run's config.json holds every value as it was resolved; those that were resolved for another objective or
    another start than the arm's are left open again.

    Raises:
        SegaeError: the file cannot be read, or holds an unknown setting or a value of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    from segae.training.run import TYPED_IN

    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.pop("task", "Pretrain") != "Pretrain":
            raise ValueError("it is of another task")
        content.pop(TYPED_IN, None)
        if unknown := set(content) - {field.name for field in fields(Pretrain)}:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        TypeAdapter(Pretrain).validate_json(json.dumps({"data": ["."], **content}), strict=True)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise _no_pretraining(path, wrong) from error
    except (OSError, ValueError) as error:
        raise _no_pretraining(path, str(error)) from error
    left_open = set(_THE_ARMS)
    if content.get("objective", arm.objective) != arm.objective:
        left_open |= {"decoder", "skip_dropout", "target", "freeze_epochs", *DEFAULTS[arm.objective]}
    # of a file for arms of several objectives, each takes what it has a use for
    left_open |= set(DEFAULTS[arm.objective]) - set(used_values(arm.objective, content.get("target")))
    if _freezes(arm.objective):
        left_open |= {"distance_penalty", "bn_mode", "encoder_lr_ratio"}
    if content.get("init", arm.start) != arm.start:
        left_open |= {"freeze_epochs", "encoder_lr_ratio"}
    return {name: value for name, value in content.items() if name not in left_open}


def _no_pretraining(path: Path, reason: str) -> SegaeError:
    return SegaeError(
        f"{path} does not configure a pretraining ({reason}). Give a file such as recipes/pretrain_cpu.json or the "
        f"config.json of a pretraining's run folder."
    )
