"""Pretraining images streamed from shards, for data sets that outgrow a disk: tar files or rows of parquet files.

The shards are found, opened and unpacked by the webdataset and datasets libraries. What is here is the order, and a
position in it to resume from: the one library has none, the other's leaves out what lies in its shuffle buffer. A
sweep is one pass over all shards in an order drawn from (seed, sweep). The shards are dealt out to the streams, one
stream for each loader worker of each rank. A stream reads its shards one after the other and shuffles its images in
blocks; while one block is handed out the next is read. A position is then four numbers, whatever the size of the
shards: the sweep, the shard and the member where the block begins, and how many images of the block have been handed
out. To go on there, one shard is read up to the block, without decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from segae.data.batches import SeededTransform, Transform
from segae.data.failures import SharedFailures
from segae.data.images import UnreadableImage
from segae.data.reduced import decode_reduced, squash
from segae.data.stream_position import Position, StreamPositions, share
from segae.data.tar_shards import TarShards, find_shards
from segae.errors import SegaeError

_MOST_EMPTY_SWEEPS = 20
_SHARDS, _BLOCK = 1, 2  # what a random number is for; the augmentation's counters begin at 0


class _Member(NamedTuple):
    """One image of a shard, not decoded: the shard's turn in its stream, its number, the image's number in it."""

    turn: int
    shard: int
    number: int
    name: str
    data: bytes | None


class Shards(Protocol):
    """Where images come from: ``TarShards``, or ``segae.data.table_shards.TableShards``."""

    @property
    def names(self) -> tuple[str, ...]:
        """One for each shard; a saved position is of these."""

    def read(self, shard: int, start: int, failures: SharedFailures) -> Iterator[tuple[str, bytes | None]]:
        """Images of a shard from number ``start`` on, always the same ones; None is one that was put on the list."""


class ShardImages(IterableDataset[Tensor]):
    """Images for pretraining from shards; of tar files the members named .jpg, .jpeg, .png or .webp.

    Without `epoch_images` an epoch is one sweep over all shards: over all ranks and workers together every image
    comes once, and ranks may get unequal numbers. With it, an epoch is the next so many images of an endless row of
    sweeps: each rank gets the same number, the loader's length is known, and the next epoch goes on where this one
    ended. Training on more than one rank needs that.

    The order depends on (seed, sweep) and on the number of ranks and workers; an image's augmentation on (seed,
    sweep) and the image alone. The shards hold what they hold: keep the images you test on out of them.

    A position saved between two epochs is exact. Saved within an epoch it is exact with 0 workers, and with workers
    it is ahead of the training by what they had prepared (at most `prefetch_factor` batches each), so that a resumed
    run leaves those images out and repeats none; torchdata's StatefulDataLoader, which asks the workers themselves, is
    exact there too. With another number of ranks or workers a resumed run begins the next sweep.

    Args:
        shards: tar files as `find_shards` takes them, or other `Shards`.
        size: side S in pixels to which each image is squashed before the transform.
        transform: from `segae.data.transforms`.
        seed: of order and augmentation.
        epoch_images: images in an epoch, all ranks together; None: one sweep over the shards.
        batch_size: the loader's. An epoch of `epoch_images` is rounded down to whole batches for each rank, and a
            worker gets whole batches only.
        shuffle_buffer: images in a block. Up to twice as many undecoded files are held in memory by each worker.
        rank: of this process among those that train together.
        world: number of those processes.

    Items are float32 tensors (3, S, S), normalised.

    Raises:
        SegaeError: webdataset is not installed, a shard does not exist, a number is out of range; from the iteration:
            fewer shards than ranks times workers with `epoch_images`, or no readable image in the shards.
    """

    def __init__(
        self,
        shards: str | Sequence[str] | Shards,
        size: int,
        transform: Transform,
        seed: int,
        *,
        epoch_images: int | None = None,
        batch_size: int = 1,
        shuffle_buffer: int = 1000,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._source = TarShards(find_shards(shards)) if isinstance(shards, str | Sequence) else shards
        self.shards = self._source.names
        if not 0 <= rank < world or batch_size < 1 or shuffle_buffer < 1:
            raise SegaeError(
                f"rank {rank} of {world}, batch size {batch_size} and shuffle buffer {shuffle_buffer} were given. "
                "Wanted a rank from 0 to below the number of ranks, and the others 1 or more."
            )
        if epoch_images is not None and epoch_images < world * batch_size:
            raise SegaeError(
                f"an epoch has {epoch_images} images. Wanted at least one batch of {batch_size} for each of {world} "
                f"rank(s): --epoch-images {world * batch_size} or more."
            )
        self._size, self._seeded, self._seed = size, SeededTransform(transform, seed), seed
        self._batches = None if epoch_images is None else epoch_images // world // batch_size
        self._batch_size, self._block_size, self._rank, self._world = batch_size, shuffle_buffer, rank, world
        shards_hash = hashlib.blake2b("\n".join(self.shards).encode(), digest_size=8).hexdigest()
        source = {"seed": seed, "shards": shards_hash, "shuffle_buffer": shuffle_buffer}
        self._positions = StreamPositions(source, rank, world, endless=epoch_images is not None)
        self._failures = SharedFailures()

    def __len__(self) -> int:
        """Images that this rank gets in an epoch."""
        if self._batches is None:
            raise TypeError("the length of a sweep is not known before its end; give epoch_images")
        return self._batches * self._batch_size

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """What could not be read so far in any worker: (shard or shard/member, reason); the first few hundred.

        If there were more, the last row is (``segae.data.quarantine.UNNAMED``, how many times one was met).
        """
        return self._failures.all

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before its first batch is asked for; running workers hear of it."""
        self._positions.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """This rank's position, whole numbers and strings only; each rank has its own."""
        return self._positions.state_dict()

    def load_state_dict(self, state: dict[str, Any], ranks: Sequence[dict[str, Any]] = ()) -> None:
        """Go on from a saved position; then call `set_epoch` with the epoch that is to run.

        `ranks` are the positions of all ranks, without which those of another number may begin with other sweeps.

        Raises:
            SegaeError: the position is of other shards, another seed or another shuffle buffer.
        """
        self._positions.load_state_dict(state, ranks)

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        position = self._positions.begin(worker, workers, self._batch_size)
        quota = None if self._batches is None else share(self._batches, worker, workers) * self._batch_size
        if quota and not self._has_shard(worker, workers):
            raise self._too_few_shards(workers)
        empty = 0
        while quota is None or position.given < quota:
            start = position
            for image, position in self._sweep(start, worker, workers):
                self._positions.reached(worker, position)
                yield image
                if position.given == quota:
                    return
            empty = empty + 1 if position == start and start.is_sweep_start else 0
            # one of several streams may have been dealt nothing but damaged shards; the next sweep deals anew
            if empty > (0 if self._world * workers == 1 else _MOST_EMPTY_SWEEPS):
                raise self._nothing_there()
            if quota is None:
                return
            position = Position(start.sweep + 1, 0, 0, 0, position.given)

    def _has_shard(self, worker: int, workers: int) -> bool:
        return self._rank * workers + worker < len(self.shards)

    def _sweep(self, start: Position, worker: int, workers: int) -> Iterator[tuple[Tensor, Position]]:
        """Images from a position to the end of its sweep, each with the position after it."""
        stream, streams = self._rank * workers + worker, self._world * workers
        order = self._generator(start.sweep, _SHARDS, 0).permutation(len(self.shards))[stream::streams].tolist()
        members = self._members(order, start.turn, start.member)
        block = list(islice(members, self._block_size))
        place, given = start.place, start.given
        while block:
            first = block[0]
            key = first.shard << 32 | first.number
            shuffled = self._generator(start.sweep, _BLOCK, key).permutation(len(block)).tolist()
            following: list[_Member] = []
            for done, index in enumerate(shuffled, start=1):
                following += islice(members, 1)
                if done <= place:
                    continue
                image = self._decode(block[index], start.sweep)
                if image is not None:
                    given += 1
                    yield image, self._after(start.sweep, first, done, block, following, given)
            block, place = following, 0

    def _after(
        self, sweep: int, first: _Member, done: int, block: list[_Member], following: list[_Member], given: int
    ) -> Position:
        if done < len(block):
            return Position(sweep, first.turn, first.number, done, given)
        if following:
            return Position(sweep, following[0].turn, following[0].number, 0, given)
        return Position(sweep + 1, 0, 0, 0, given)

    def _members(self, order: Sequence[int], turn: int, number: int) -> Iterator[_Member]:
        """The images of a stream's shards, beginning with image `number` of its shard `turn`."""
        for at in range(turn, len(order)):
            start = number if at == turn else 0
            for index, (name, data) in enumerate(self._source.read(order[at], start, self._failures), start):
                yield _Member(at, order[at], index, name, data)

    def _too_few_shards(self, workers: int) -> SegaeError:
        return SegaeError(
            f"there are {len(self.shards)} shard(s) for {self._world} rank(s) with {workers} worker(s) each. "
            f"Wanted one or more for each of the {self._world * workers}; use fewer workers or more shards."
        )

    def _nothing_there(self) -> SegaeError:
        named = (f"{name} ({reason})" for name, reason in self._failures.items[:3])
        return SegaeError(
            f"no image can be read from the shards {self.shards[0]} to {self.shards[-1]}: "
            f"{'; '.join(named) or 'no .jpg, .png or .webp in them'}. Wanted shards of images; make them anew or name "
            "others."
        )

    def _decode(self, member: _Member, sweep: int) -> Tensor | None:
        if member.data is None:
            return None
        name = f"{self.shards[member.shard]}/{member.name}"
        try:
            image = squash(decode_reduced(member.data, Path(member.name), self._size), self._size)
        except UnreadableImage as error:
            self._failures.add(name, error.reason)
            return None
        index = member.shard << 32 | member.number
        return self._seeded(sweep, index, image=image)["image"]

    def _generator(self, sweep: int, purpose: int, key: int) -> np.random.Generator:
        run = (self._seed << 32 | sweep) & 0xFFFF_FFFF_FFFF_FFFF
        return np.random.Generator(np.random.Philox(counter=[0, 0, 0, purpose], key=[run, key]))
