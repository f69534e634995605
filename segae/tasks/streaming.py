"""A pretraining on tar shards or rows of parquet files, for data sets that outgrow a disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError
from segae.tasks.loading import MEASURED_IMAGES, SHOWN_IMAGES, Unlabelled, random_transform

if TYPE_CHECKING:
    import numpy as np

    from segae.data.table_shards import TableShards
    from segae.data.tar_shards import TarShards
    from segae.models.encoder import EncoderDescription
    from segae.tasks.pretrain import Pretrain


def is_streamed(data: Sequence[Path]) -> bool:
    """Whether ``--data`` names shards, by which it is read, and not folders of images."""
    from segae.data.table_shards import is_table

    return any(root.endswith(".tar") or is_table(root) for root in map(_as_typed, data))


def load_shards(config: Pretrain, description: EncoderDescription) -> Unlabelled:
    """The stream of a pretraining whose ``data`` are tar files, patterns of them or URLs, or one set of parquet files.

    An epoch is ``epoch_images`` images of an endless row of sweeps, ``repeats`` times. There are no validation
    images, and nothing tells test images from others: the shards must hold none.

    Raises:
        SegaeError: something else than shards among them, a setting that a stream cannot serve, or shards that do not
            say how many images they hold, without ``epoch_images``.
    """
    from segae.data.shards import ShardImages
    from segae.data.transforms import eval_transform
    from segae.tasks.compute import loader_batch
    from segae.training.distributed import require_divisible, this_place

    asked = [_as_typed(root) for root in config.data]
    _check(config, asked)
    source, place = _open(asked), this_place()
    count = config.epoch_images or source.count()
    look = (config.image_size, description.mean, description.std)
    share = require_divisible(loader_batch(config), place, config.batch_size)
    stream = ShardImages(
        source,
        config.image_size,
        random_transform(config, description),
        config.seed,
        epoch_images=count * config.repeats,
        batch_size=share,
        rank=place.rank,
        world=place.world,
    )
    measured = ShardImages(
        source,
        config.image_size,
        eval_transform(*look),
        config.seed,
        epoch_images=min(count, MEASURED_IMAGES),
        batch_size=min(count, MEASURED_IMAGES, config.batch_size),
    )
    shown = _first_images(source, config.image_size)
    paths = tuple(Path(shard) for shard in source.names)
    return Unlabelled(stream, None, None, measured, shown, paths, count, "stream", lambda: stream.failures)


def _as_typed(root: Path) -> str:
    """A URL as it was before it became a path, which has one slash where a URL has two."""
    text = str(root)
    scheme, colon, rest = text.partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if colon and len(scheme) > 1 else text


def _open(asked: list[str]) -> TarShards | TableShards:
    from segae.data.table_shards import open_table
    from segae.data.tar_shards import TarShards, find_shards

    return TarShards(find_shards(asked)) if asked[0].endswith(".tar") else open_table(asked[0])


def _check(config: Pretrain, asked: list[str]) -> None:
    others = [root for root in asked if not root.endswith(".tar")]
    if others and len(asked) > len(others):
        raise SegaeError(
            f"--data names tar shards and {', '.join(others)}; wanted shards alone or folders alone. Put the folder's "
            "images into a shard: tar cf more.tar FOLDER."
        )
    if len(others) > 1:
        raise SegaeError(
            f"--data names {len(others)} places, of which one at least holds rows of images: {', '.join(others)}. Such "
            "a place must be the only one; of several parquet files name the folder, --data FOLDER."
        )
    if config.data_path not in ("auto", "live"):
        raise SegaeError(
            f"data_path is {config.data_path} and --data are shards, which are streamed. Leave --data-path out."
        )
    if config.patience is not None:
        raise SegaeError(
            f"patience is {config.patience}, and shards have no validation images whose loss could stall. Leave "
            "--patience out."
        )


def _first_images(source: TarShards | TableShards, size: int) -> np.ndarray:
    """A few images for the panels, uint8 (n, S, S, 3)."""
    import numpy as np

    from segae.data.failures import SharedFailures
    from segae.data.images import UnreadableImage
    from segae.data.reduced import decode_reduced, squash

    shown: list[Any] = []
    for shard in range(len(source.names)):
        for name, data in source.read(shard, 0, SharedFailures()):
            if data is None:
                continue
            try:
                shown.append(squash(decode_reduced(data, Path(name), size), size))
            except UnreadableImage:
                continue  # the stream lists it when it comes to it
            if len(shown) == SHOWN_IMAGES:
                return np.stack(shown)
        if shown:
            break
    return np.stack(shown) if shown else np.zeros((0, size, size, 3), np.uint8)
