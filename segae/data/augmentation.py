"""Named augmentations: what each changes in training images, in numbers that CPU and GPU share."""

from segae.data.gpu import CropAndFlip, MildChange, StrongChange
from segae.errors import SegaeError, nearest

Change = CropAndFlip | MildChange | StrongChange | None

MIRROR = CropAndFlip(scale=(1.0, 1.0), ratio=(1.0, 1.0))
"""A horizontal flip and no crop."""
FINETUNING_CHANGES: dict[str, Change] = {
    **{"none": None, "light": MIRROR},
    **{"default": MildChange(), "strong": StrongChange()},
}
"""The augmentations of a fine-tuning by name."""


def pretraining_changes(*, crop: bool) -> dict[str, Change]:
    """The augmentations of a pretraining by name, without crops for methods that crop by themselves."""
    usual, strong = (CropAndFlip(), CropAndFlip(scale=(0.2, 1.0))) if crop else (MIRROR, MIRROR)
    # its images are also what it reconstructs: holes and blur would be learned
    return FINETUNING_CHANGES | {"default": usual, "strong": StrongChange(strong, blur=0.0, hole=0.0)}


def refuse_augmentation(given: object, reason: str = "") -> SegaeError:
    """Make the error of an augmentation that cannot be used."""
    known, shown = ", ".join(FINETUNING_CHANGES), f"{given!r:.100}"
    hint = reason or nearest(given, FINETUNING_CHANGES, cutoff=0.7).removeprefix("; ")
    files = "a transform of albumentations, or a JSON or YAML file of one"
    return SegaeError(f"augment must be one of {known}, {files}, got {shown}{f'; {hint}' if hint else ''}")
