"""Named augmentations: what each changes in training images, in numbers that CPU and GPU share."""

from dataclasses import replace

from segae.data.gpu import CropAndFlip, MildChange, StrongChange
from segae.errors import SegaeError, nearest
from segae.image_format import ImageFormat

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


def before_random_crops(form: ImageFormat, change: Change) -> ImageFormat:
    """Return the format of what random crops are cut from: so large that the smallest crop need not be enlarged."""
    place = change.place if isinstance(change, StrongChange) else change
    share = place.scale[0] if isinstance(place, CropAndFlip) else 1.0
    rows, columns = (round(side / share**0.5) for side in form.shape)
    return replace(form, size=(rows, columns), resize="cover")


def refuse_augmentation(given: object, reason: str = "") -> SegaeError:
    """Make the error of an augmentation that cannot be used."""
    known, shown = ", ".join(FINETUNING_CHANGES), f"{given!r:.100}"
    hint = reason or nearest(given, FINETUNING_CHANGES, cutoff=0.7).removeprefix("; ")
    files = "a transform of albumentations, or a JSON or YAML file of one"
    return SegaeError(f"augment must be one of {known}, {files}, got {shown}{f'; {hint}' if hint else ''}")
