"""How a training gets its images: decoded once, on the device, decoded again each time, or from shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError
from segae.tasks.data_path import agreed_data_path

if TYPE_CHECKING:
    import numpy as np
    import torch

    from segae.data.batch_transforms import CropAndFlip
    from segae.data.quarantine import Quarantine
    from segae.models.encoder import EncoderDescription
    from segae.tasks.pretrain import Pretrain

MEASURED_IMAGES = 2048  # enough for BatchNorm statistics; a pass over millions would cost an epoch
SHOWN_IMAGES = 5


@dataclass(frozen=True)
class Unlabelled:
    """What a pretraining is given.

    Attributes:
        train: augmented items.
        train_indices: which of them an epoch goes through; None for all.
        valid: clean items; None where there are none.
        measured: clean training items, enough for BatchNorm statistics.
        shown: uint8 (n, S, S, 3), a few images for the panels, of the validation part where there is one.
        paths: all the files, of training and validation images; of a stream, its shards.
        count: training images, each counted once.
        data_path: how they come: cache, device, live or stream.
        failures: gives what could not be read so far, as (name, reason); the cache reports it at once and has none.
    """

    train: Any
    train_indices: Sequence[int] | None
    valid: Any
    measured: Any
    shown: np.ndarray
    paths: Sequence[Path]
    count: int
    data_path: str
    failures: Callable[[], Iterable[tuple[Any, str]]] = tuple

    @property
    def names(self) -> list[str]:
        """File names of all the images; of a stream, its shards'."""
        return [path.name for path in self.paths]

    @property
    def held_out(self) -> int:
        """Validation images."""
        return 0 if self.valid is None else len(self.valid)


def load_unlabelled(
    config: Pretrain, description: EncoderDescription, device: torch.device, quarantine: Quarantine
) -> Unlabelled:
    """The images of a pretraining, by the path that was asked for.

    Raises:
        SegaeError: no image can be read, or the path does not go with the data, the device or the workers.
    """
    from segae.tasks.streaming import is_streamed, load_shards

    if is_streamed(config.data):
        return load_shards(config, description)
    if config.epoch_images is not None:
        raise SegaeError(
            f"epoch_images is {config.epoch_images}, which counts images of shards, and --data names folders, whose "
            "images each come once. Leave --epoch-images out, or use --repeats for more passes to an epoch."
        )
    from segae.data.pretraining import find_pretraining_images

    paths = find_pretraining_images(config.data)
    need = 3 * config.image_size**2 * len(paths)
    data_path = agreed_data_path(config, need, device)
    if data_path == "live":
        return _load_live(config, description, paths)
    return _load_cached(config, description, device if data_path == "device" else None, paths, quarantine)


def _load_cached(
    config: Pretrain,
    description: EncoderDescription,
    held_on: torch.device | None,
    paths: Sequence[Path],
    quarantine: Quarantine,
) -> Unlabelled:
    import numpy as np
    from torch.utils.data import Subset

    from segae.data.batches import UnlabelledImages
    from segae.data.cache import cache_images
    from segae.data.transforms import eval_transform
    from segae.training.distributed import first_on_machine

    with first_on_machine():
        cached = cache_images(paths, config.image_size, quarantine)
    images = cached.images
    held_out = kept_apart(cached.paths, config)
    valid, train = np.flatnonzero(held_out), np.flatnonzero(~held_out)
    augmented, checked = unlabelled_sets(config, images, description, held_on)
    clean = UnlabelledImages(images, eval_transform(config.image_size, description.mean, description.std), config.seed)
    return Unlabelled(
        augmented,
        [place + turn * len(images) for turn in range(config.repeats) for place in train.tolist()],
        Subset(checked, valid.tolist()) if len(valid) else None,
        Subset(clean, train[_spread(len(train))].tolist()),
        images[(valid if len(valid) else train)[:SHOWN_IMAGES]],
        cached.paths,
        len(train),
        "cache" if held_on is None else "device",
    )


def unlabelled_sets(
    config: Pretrain, images: np.ndarray, description: EncoderDescription, held_on: torch.device | None
) -> tuple[Any, Any]:
    """Items of decoded images uint8 (N, S, S, 3): augmented, ``repeats`` times each, and clean, once each.

    ``held_on`` is the device on which they lie and are augmented; None leaves them to the CPU.
    """
    from segae.data.batches import UnlabelledImages
    from segae.data.device_images import DeviceImages
    from segae.data.transforms import eval_transform

    look = (config.image_size, description.mean, description.std)
    if held_on is not None:
        more: dict[str, Any] = {"device": held_on, "seed": config.seed, "repeats": config.repeats}
        augmented = DeviceImages(images, None, random_change(config), *look[1:], **more)
        return augmented, augmented.unchanged()
    clean = UnlabelledImages(images, eval_transform(*look), config.seed)
    return UnlabelledImages(images, random_transform(config, description), config.seed, config.repeats), clean


def random_transform(config: Pretrain, description: EncoderDescription) -> Any:
    """What is done to a training image on the CPU: a crop, unless the objective crops by itself, and a flip."""
    from segae.data.transforms import pretrain_transform
    from segae.tasks.prepare import objective_of

    crop = not objective_of(config).crops
    return pretrain_transform(config.image_size, description.mean, description.std, crop=crop)


def random_change(config: Pretrain) -> CropAndFlip:
    """The same for a batch on its device."""
    from segae.data.batch_transforms import CropAndFlip
    from segae.tasks.prepare import objective_of

    return CropAndFlip(scale=(1.0, 1.0), ratio=(1.0, 1.0)) if objective_of(config).crops else CropAndFlip()


def _load_live(config: Pretrain, description: EncoderDescription, paths: Sequence[Path]) -> Unlabelled:
    import numpy as np

    from segae.data.live import LiveImages
    from segae.data.packed import PackedPaths
    from segae.data.reduced import read_resized
    from segae.data.transforms import eval_transform

    paths = PackedPaths.of(paths)
    held_out = kept_apart(paths, config)
    # two lists: what replaces an unreadable training image must not be a validation image
    train, valid = (paths.take(np.flatnonzero(chosen).tolist()) for chosen in (~held_out, held_out))
    size, look = config.image_size, (config.image_size, description.mean, description.std)
    augmented = LiveImages(train, size, random_transform(config, description), config.seed, config.repeats)
    parts = [augmented]
    if valid:
        parts.append(LiveImages(valid, size, eval_transform(*look), config.seed))
    measured = train.take(_spread(len(train)).tolist())
    shown: list[np.ndarray] = []
    for path in valid or train:
        try:
            shown.append(read_resized(path, size))
        except SegaeError:
            continue  # the data sets list it when they come to it
        if len(shown) == SHOWN_IMAGES:
            break
    return Unlabelled(
        augmented,
        None,
        parts[1] if valid else None,
        LiveImages(measured, size, eval_transform(*look), config.seed),
        np.stack(shown) if shown else np.zeros((0, size, size, 3), np.uint8),
        paths,
        len(train),
        "live",
        lambda: [failure for part in parts for failure in part.failures],
    )


def kept_apart(paths: Sequence[Path], config: Pretrain) -> np.ndarray:
    """Which images are kept for validation; decided by name, so that all paths keep the same ones."""
    import numpy as np

    from segae.data.dataset import choose_by_hash, names_apart

    names = names_apart(paths)
    chosen = choose_by_hash(sorted(set(names)), config.val_fraction, config.seed, "validation")
    return np.array([name in chosen for name in names])


def _spread(count: int) -> np.ndarray:
    import numpy as np

    return np.linspace(0, count - 1, min(count, MEASURED_IMAGES)).astype(int)
