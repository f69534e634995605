"""What of a global batch each process gets: its images, and the random numbers that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.data import BatchSampler, Sampler

from segae.errors import SegaeError
from segae.training.distributed import Place, this_place


@dataclass(frozen=True)
class Part:
    """The images of one process in a global batch, which follow one another.

    Attributes:
        before: images of the epoch in earlier batches, of all processes.
        first: place of the process's first image in the global batch.
        count: its images. 0 in a last batch with fewer images than processes: the process then goes through the
            steps with the image at ``first``, which another process has too, and lets it count for nothing, because
            the processes wait for each other.
        total: images of the batch, of all processes.
    """

    before: int
    first: int
    count: int
    total: int


class EpochSampler(Sampler[int]):
    """The items of an epoch in an order that depends only on (seed, epoch), so that a resumed run sees the same.

    An epoch is every index once; or, by ``images``, turns through all indices, each in a fresh order, until there are
    so many. So no index comes more than once oftener than another, and the first turn is an epoch as it would be
    without ``images``. In turn t (from 0) the index i is called i + t * (number of indices): a data set with as many
    ``repeats`` takes that for the same image, augmented anew.

    Several processes have the same order and take turns in it: batch k of a single process is the places k B to
    (k + 1) B, and each process gets a contiguous part of it. So their number does not change what a batch is.

    Args:
        indices: of the items; with ``images`` they must be 0, 1, 2, ...
        seed: None keeps the order of ``indices``.
        batch_size: B, images of a global batch; a multiple of the number of processes.
        place: of this process.
        drop_single: train on no single image, from which BatchNorm cannot estimate a variance: leave it out where it
            would be a step of its own. A single image at the end of a longer step gets a second one from the batch
            before it; only where batches have two, and so none to spare, it is left out.
        images: of an epoch, 1 or more; None takes every index once.
        step: images of an optimizer step, a multiple of B; None: each batch is a step.
    """

    def __init__(
        self,
        indices: Sequence[int],
        seed: int | None,
        batch_size: int = 1,
        place: Place | None = None,
        drop_single: bool = False,
        images: int | None = None,
        step: int | None = None,
    ) -> None:
        self.indices, self.seed, self.epoch = indices, seed, 0
        self.batch_size, self.place = batch_size, place or Place()
        self.turns = 1 if images is None else turns(images, len(indices))
        count = len(indices) if images is None else images
        drop_single = drop_single and batch_size > 1
        alone = count % (step or batch_size) == 1 or (batch_size == 2 and count % 2 == 1)
        self.images = count - 1 if drop_single and alone and count > 1 else count
        self.lends = drop_single and self.images > batch_size and self.images % batch_size == 1
        self.batches = -(-self.images // batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def part(self, batch: int) -> Part:
        """This process's part of a batch, counted from 0."""
        before = batch * self.batch_size - (self.lends and batch == self.batches - 1)
        total = min(self.batch_size - (self.lends and batch == self.batches - 2), self.images - before)
        count, more = divmod(total, self.place.world)
        first = min(self.place.rank * count + min(self.place.rank, more), total - 1)
        return Part(before, first, count + (self.place.rank < more), total)

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for batch in range(self.batches):
            part = self.part(batch)
            start = part.before + part.first
            yield from (self._item(place) for place in order[start : start + max(part.count, 1)])

    def __len__(self) -> int:
        whole = max(self.batches - 2, 0)
        others = sum(max(self.part(batch).count, 1) for batch in range(whole, self.batches))
        return whole * (self.batch_size // self.place.world) + others

    def _order(self) -> Sequence[int]:
        count = len(self.indices)
        if self.seed is None:
            return range(count * self.turns)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        orders = [turn * count + torch.randperm(count, generator=generator) for turn in range(self.turns)]
        return torch.cat(orders).tolist()

    def _item(self, place: int) -> int:
        return place if self.turns > 1 else int(self.indices[place])


class EpochBatches(BatchSampler):
    """The items of an ``EpochSampler`` in the batches of its process; the last two may be smaller than the others."""

    sampler: EpochSampler

    def __init__(self, sampler: EpochSampler) -> None:
        super().__init__(sampler, sampler.batch_size // sampler.place.world, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        items = iter(self.sampler)
        for batch in range(len(self)):
            yield list(islice(items, max(self.sampler.part(batch).count, 1)))

    def __len__(self) -> int:
        return self.sampler.batches


def sampler_of(loader: Any) -> Any:
    """What decides the order of a DataLoader's items: an ``EpochSampler``, or torch's own; None of other loaders."""
    return getattr(getattr(loader, "batch_sampler", None), "sampler", None)


def turns(images: int, distinct: int) -> int:
    """How often an epoch of ``images`` goes through ``distinct`` images, the last time perhaps through a part of them.

    Raises:
        SegaeError: there is no image, or an epoch would have none.
    """
    if images < 1 or distinct < 1:
        raise SegaeError(
            f"an epoch of {images} images was asked for, out of {distinct}; both must be 1 or more, for example "
            f"--epoch-images 1000."
        )
    return -(-images // distinct)


def part_of_batch(learner: Any) -> Part:
    """What of the running batch of a fastai Learner this process has.

    Where no EpochSampler shares the images out, as with a stream, all processes have as many as this one.
    """
    sampler = sampler_of(learner.dl)
    if isinstance(sampler, EpochSampler):
        return sampler.part(learner.iter)
    count, place = len(learner.xb[0]), this_place()
    return Part(learner.iter * count * place.world, count * place.rank, count, count * place.world)


def shared_draws(generator: torch.Generator, part: Part) -> AbstractContextManager:
    """``SharedDraws`` where a process has a part of the batch; nothing where it has all of it."""
    return nullcontext() if part.count == part.total else SharedDraws(generator, part)


class SharedDraws(TorchFunctionMode):
    """Inside, a generator gives the images of one process the numbers that they have in the global batch.

    ``torch.rand``, ``randn`` and ``randint`` with this generator, and with as many rows as the process has images,
    draw for all images of the batch and keep the process's rows. Only the drawing costs more then, not the
    corruption that uses it. Draws of other shapes are the same in all processes, as they are for all images.

    Args:
        generator: in the same state in all processes.
        part: of the global batch.

    Raises:
        SegaeError: when another function is asked to draw with the generator.
    """

    def __init__(self, generator: torch.Generator, part: Part) -> None:
        super().__init__()
        self.generator, self.part = generator, part

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        if func not in (torch.rand, torch.randn, torch.randint):
            raise SegaeError(
                f"a corruption draws by {getattr(func, '__name__', func)}, whose numbers several processes cannot "
                f"share; torch.rand, torch.randn or torch.randint is wanted. Change it, or use one process."
            )
        bounds, size = self._split(func, args, kwargs)
        own = max(self.part.count, 1)
        if not size or size[0] != own:
            return func(*args, **kwargs)
        others = {name: value for name, value in kwargs.items() if name != "size"}
        drawn = func(*bounds, (self.part.total, *size[1:]), **others)
        return drawn[self.part.first : self.part.first + own]

    @staticmethod
    def _split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """The positional arguments before the size, and the size."""
        if "size" in kwargs:
            return args, tuple(kwargs["size"])
        if args and isinstance(args[-1], (tuple, list)):
            return args[:-1], tuple(args[-1])
        return ((), args) if func is not torch.randint else (args, ())
