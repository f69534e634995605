"""What cannot be pretrained, said before anything is."""

from __future__ import annotations

from torch import nn

from segae.errors import SegaeError
from segae.objectives.presets import Objective


def check_model(model: nn.Module, objective: Objective) -> None:
    """Raise SegaeError unless the model has an encoder and hides pixels from it as the objective asks."""
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise SegaeError(
            f"{type(model).__name__} has no attribute 'encoder', which pretraining is for; pass a segae.Autoencoder, "
            f"or name your backbone 'encoder'."
        )
    masking = getattr(model, "masking", "dense")
    if masking != objective.masking:
        raise SegaeError(
            f"objective {objective.name} asks for {objective.masking} masking, and this {type(model).__name__} does "
            f"{masking}: it would train something else. Build it with segae.create_pretrainer(..., "
            f'masking="{objective.masking}").'
        )


def check_weight_decay(value: float) -> None:
    """Raise SegaeError unless it is 0 or more; fastai sets it behind the back of torch's own check."""
    if not value >= 0:
        raise SegaeError(f"weight_decay is {value}; wanted 0 or more, for example --weight-decay 0.01.")


def check_settings(bn_mode: str, penalty: float, patience: int | None, valid: int) -> None:
    """Raise SegaeError unless the values are in their ranges and there are images to judge ``patience`` by."""
    if bn_mode not in ("train", "eval"):
        raise SegaeError(f"bn_mode is {bn_mode!r}; pretraining knows train and eval, for example --bn-mode eval.")
    if penalty < 0:
        raise SegaeError(f"distance_penalty is {penalty}; wanted 0 or more, for example --distance-penalty 0.01.")
    if patience is not None and not valid:
        raise SegaeError(
            f"patience is {patience}, but there are no validation images to judge by; keep some apart, for example "
            f"--val-fraction 0.05, or leave --patience out."
        )


def check_skip_dropout(model: nn.Module, share: float) -> None:
    """Raise SegaeError unless the share is in [0, 1] and, above 0, the model has skip connections to cut."""
    if not 0 <= share <= 1:
        raise SegaeError(f"skip_dropout is {share}; a share in [0, 1] is wanted, for example --skip-dropout 0.5.")
    if share and not getattr(model, "has_skips", False):
        raise SegaeError(
            f"skip_dropout is {share}, and this decoder has no skip connections to cut: it sees the deepest map alone. "
            "Leave --skip-dropout out, or use --decoder hierarchical or unet."
        )
