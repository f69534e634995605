"""A pretraining on tar shards, for data sets that outgrow a disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError
from segae.tasks.loading import MEASURED_IMAGES, SHOWN_IMAGES, Unlabelled

if TYPE_CHECKING:
    import numpy as np

    from segae.models.encoder import EncoderDescription
    from segae.tasks.pretrain import Pretrain


def load_shards(config: Pretrain, description: EncoderDescription) -> Unlabelled:
    """The stream of a pretraining whose ``data`` are tar files, patterns of them or URLs.

    An epoch is ``epoch_images`` images of an endless row of sweeps, ``repeats`` times. There are no validation
    images, and nothing tells test images from others: the shards must hold none.

    Raises:
        SegaeError: something else than shards among them, a setting that a stream cannot serve, or a remote shard
            without ``epoch_images``.
    """
    from segae.data.shards import ShardImages
    from segae.data.tar_shards import count_images, find_shards
    from segae.data.transforms import eval_transform, pretrain_transform
    from segae.tasks.compute import loader_batch
    from segae.training.distributed import require_divisible, this_place

    asked = [_as_typed(root) for root in config.data]
    _check(config, asked)
    shards, place = find_shards(asked), this_place()
    count = config.epoch_images or count_images(shards)
    look = (config.image_size, description.mean, description.std)
    share = require_divisible(loader_batch(config), place)
    stream = ShardImages(
        asked,
        config.image_size,
        pretrain_transform(*look),
        config.seed,
        epoch_images=count * config.repeats,
        batch_size=share,
        rank=place.rank,
        world=place.world,
    )
    measured = ShardImages(
        asked,
        config.image_size,
        eval_transform(*look),
        config.seed,
        epoch_images=min(count, MEASURED_IMAGES),
        batch_size=min(count, MEASURED_IMAGES, config.batch_size),
    )
    shown = _first_images(shards, config.image_size)
    paths = tuple(Path(shard) for shard in shards)
    return Unlabelled(stream, None, None, measured, shown, paths, count, lambda: stream.failures)


def _as_typed(root: Path) -> str:
    """A URL as it was before it became a path, which has one slash where a URL has two."""
    text = str(root)
    scheme, colon, rest = text.partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if colon and len(scheme) > 1 else text


def _check(config: Pretrain, asked: list[str]) -> None:
    others = [root for root in asked if not root.endswith(".tar")]
    if others:
        raise SegaeError(
            f"--data names tar shards and {', '.join(others)}; wanted shards alone or folders alone. Put the folder's "
            "images into a shard: tar cf more.tar FOLDER."
        )
    if config.data_path not in ("auto", "live"):
        raise SegaeError(
            f"data_path is {config.data_path} and --data are tar shards, which are streamed. Leave --data-path out."
        )
    if config.patience is not None:
        raise SegaeError(
            f"patience is {config.patience}, and tar shards have no validation images whose loss could stall. Leave "
            "--patience out."
        )


def _first_images(shards: tuple[str, ...], size: int) -> np.ndarray:
    """A few images for the panels, uint8 (n, S, S, 3)."""
    import numpy as np

    from segae.data.failures import SharedFailures
    from segae.data.images import UnreadableImage
    from segae.data.reduced import decode_reduced, squash
    from segae.data.tar_shards import read_shard

    shown: list[Any] = []
    for name, data in read_shard(shards[0], SharedFailures()):
        try:
            shown.append(squash(decode_reduced(data, Path(name), size), size))
        except UnreadableImage:
            continue  # the stream lists it when it comes to it
        if len(shown) == SHOWN_IMAGES:
            break
    return np.stack(shown) if shown else np.zeros((0, size, size, 3), np.uint8)
