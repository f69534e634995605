"""How a segmentation gets its images and masks: decoded once, on the device, or decoded again each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segae.tasks.data_path import agreed_data_path

if TYPE_CHECKING:
    import torch

    from segae.data.cache import CachedPairs
    from segae.data.dataset import Pair, SegmentationData
    from segae.data.quarantine import Quarantine
    from segae.models.encoder import EncoderDescription
    from segae.tasks.segment import Segment

SAMPLED = 256  # training pairs that are decoded once all the same, where the others are decoded each time


@dataclass(frozen=True)
class Labelled:
    """What a segmentation is given.

    Attributes:
        train: augmented items.
        valid: clean items; None where there are none.
        pairs: the training pairs that could be read, or with live decoding all of them.
        labels: how many training pairs there are, whether or not all can be read.
        sample: training pairs decoded without change; all of them, but for live decoding.
        shown: pairs for the sheet, of the validation part where there is one.
        data_path: how they come: cache, device or live.
        failures: gives what could not be read so far, as (path, reason); the cache reports it at once and has none.
    """

    train: Any
    valid: Any
    pairs: Sequence[Pair]
    labels: int
    sample: CachedPairs
    shown: CachedPairs
    data_path: str
    failures: Callable[[], Iterable[tuple[Any, str]]] = tuple


def load_labelled(
    config: Segment,
    data: SegmentationData,
    description: EncoderDescription,
    device: torch.device,
    quarantine: Quarantine,
) -> Labelled:
    """The training split of a resolved configuration; validation comes out of ``labels``.

    Raises:
        SegaeError: nothing can be read, or the data path does not go with the device or the workers.
    """
    from segae.data.cache import cache_pairs
    from segae.data.dataset import split_off_validation, take_labels
    from segae.training.distributed import first_on_machine

    size = config.image_size or description.image_size
    chosen = take_labels(data.splits["train"], config.labels, config.seed)
    train, valid = split_off_validation(chosen, config.val_fraction, config.seed)
    data_path = agreed_data_path(config, 4 * size**2 * len(chosen), device)
    live = data_path == "live"
    with first_on_machine():
        sample = cache_pairs(train[:SAMPLED] if live else train, size, data.mask_values, quarantine)
        few = valid[:SAMPLED] if live else valid
        held_out = cache_pairs(few, size, data.mask_values, quarantine, none_is_fine=True) if few else None
    if held_out is not None and not held_out.pairs:  # a handful of images, all of them unreadable
        held_out, valid = None, valid[:0]
    shown = held_out or sample
    if not live:
        items = labelled_sets(config, sample, held_out, description, device if data_path == "device" else None)
        return Labelled(*items, sample.pairs, len(train), sample, shown, data_path)
    parts = live_sets(config, train, valid, data.mask_values, description)
    failures = lambda: [failure for part in parts if part is not None for failure in part.failures]  # noqa: E731
    return Labelled(*parts, train, len(train), sample, shown, data_path, failures)


def labelled_sets(
    config: Segment,
    train: CachedPairs,
    valid: CachedPairs | None,
    description: EncoderDescription,
    held_on: torch.device | None,
) -> tuple[Any, Any]:
    """Training and validation items of decoded pairs, augmented and clean, normalised as the encoder was.

    The training items repeat the pairs as often as ``epoch_images`` needs. ``held_on`` is the device on which they lie
    and are augmented; None leaves them to the CPU.
    """
    from segae.data.batch_transforms import MildChange
    from segae.data.batches import LabelledImages
    from segae.data.device_images import DeviceImages
    from segae.data.transforms import eval_transform, train_transform

    size = config.image_size or description.image_size
    look = (size, description.mean, description.std)
    changed = train_transform if config.augment else eval_transform
    repeats = _repeats(config, len(train.images))
    if held_on is not None:
        where: dict[str, Any] = {"device": held_on, "seed": config.seed}
        clean = None if valid is None else DeviceImages(valid.images, valid.masks, None, *look[1:], **where)
        return DeviceImages(
            train.images, train.masks, MildChange() if config.augment else None, *look[1:], repeats=repeats, **where
        ), clean
    return (
        LabelledImages(train.images, train.masks, changed(*look), config.seed, repeats),
        None if valid is None else LabelledImages(valid.images, valid.masks, eval_transform(*look), config.seed),
    )


def live_sets(
    config: Segment,
    train: Sequence[Pair],
    valid: Sequence[Pair],
    mask_values: Sequence[int | tuple[int, ...]],
    description: EncoderDescription,
) -> tuple[Any, Any]:
    """The same of files that are decoded each time; validation items are None where there are no such pairs."""
    from segae.data.live import LivePairs
    from segae.data.transforms import eval_transform, train_transform

    size = config.image_size or description.image_size
    look = (size, description.mean, description.std)
    changed = train_transform if config.augment else eval_transform
    return (
        LivePairs(train, size, mask_values, changed(*look), config.seed, _repeats(config, len(train))),
        LivePairs(valid, size, mask_values, eval_transform(*look), config.seed) if valid else None,
    )


def _repeats(config: Segment, distinct: int) -> int:
    from segae.training.sharing import turns

    return 1 if config.epoch_images is None else turns(config.epoch_images, distinct)
