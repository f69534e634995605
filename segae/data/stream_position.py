"""Where the streams of a data set without an index stand: in shared memory, saved and loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segae.errors import SegaeError

logger = logging.getLogger("segae")

_MOST_WORKERS = 256


class Position(NamedTuple):
    """How far one stream is.

    Attributes:
        sweep: number of the pass over all shards.
        turn: which of the stream's shards the block begins in.
        member: which image of that shard the block begins with.
        place: images of the shuffled block that were handed out.
        given: images handed out in this epoch.
    """

    sweep: int
    turn: int
    member: int
    place: int
    given: int

    @property
    def is_sweep_start(self) -> bool:
        """Whether nothing of the sweep was handed out yet."""
        return not (self.turn or self.member or self.place)


def share(count: int, worker: int, workers: int) -> int:
    """How many of `count` things the worker gets when they are dealt out one by one."""
    return count // workers + (worker < count % workers)


class StreamPositions:
    """The positions of one rank's streams, one for each loader worker.

    Workers write theirs, the main process saves them all; so they are in shared memory.

    Args:
        source: what a position is worth nothing without; a saved position must have the same.
        rank: of this process.
        world: number of ranks.
        endless: an epoch goes on where the last one ended; otherwise epoch e is sweep e.
    """

    def __init__(self, source: dict[str, Any], rank: int, world: int, *, endless: bool) -> None:
        self._source, self._rank, self._world, self._endless = source, rank, world, endless
        self._epoch = _shared(1)
        self._start, self._reached = _shared(_MOST_WORKERS, 5), _shared(_MOST_WORKERS, 5)
        # numbers of workers that the two tables are for: 0 fits any number, -1 none
        self._start_workers, self._reached_workers = _shared(1), _shared(1)
        self._latest = _shared(1)  # sweep that any rank had reached

    def set_epoch(self, epoch: int) -> None:
        """Choose where the next iteration starts; the same epoch again starts where it started before."""
        now = int(self._epoch)
        if epoch == now:
            return
        self._epoch[0] = epoch
        if self._endless and epoch == now + 1:
            self._start.copy_(self._reached)
            self._start[:, -1] = 0
            self._start_workers.copy_(self._reached_workers)
        else:
            self._start.zero_()
            self._start[:, 0] = epoch
            self._start_workers.zero_()
        self._restart()

    def begin(self, worker: int, workers: int, batch_size: int) -> Position:
        """Where the worker's stream starts in this epoch."""
        if workers > _MOST_WORKERS:
            raise SegaeError(f"{workers} workers are too many; wanted at most {_MOST_WORKERS}, such as --workers 16.")
        fits = int(self._start_workers) in (0, workers)
        position = Position(*self._start[worker].tolist()) if fits else self._next_sweep(worker, workers, batch_size)
        self._reached_workers[0] = workers
        self.reached(worker, position)
        return position

    def reached(self, worker: int, position: Position) -> None:
        """Note how far the worker is."""
        self._reached[worker] = torch.tensor(position)

    def state_dict(self) -> dict[str, Any]:
        """All positions of this rank, as whole numbers and strings."""
        workers = int(self._reached_workers)
        return {
            **self._source,
            "rank": self._rank,
            "world": self._world,
            "epoch": int(self._epoch),
            "workers": workers,
            "positions": self._reached[: max(workers, 1)].tolist(),
        }

    def load_state_dict(self, state: dict[str, Any], ranks: Sequence[dict[str, Any]] = ()) -> None:
        """Start the next iteration at saved positions.

        Args:
            state: of this rank, or of another where their number has changed.
            ranks: of all that saved theirs then. Where the numbers have changed the next sweep begins, and it must be
                the same one in all ranks, which is the one after the latest that any of them had reached.

        Raises:
            SegaeError: they are of another source.
        """
        for name, wanted in self._source.items():
            if state.get(name) != wanted:
                raise SegaeError(
                    f"the saved position is of {name} {state.get(name)}, and this run has {wanted}. Wanted the "
                    "settings that the position was saved with; start a new run if they are to change."
                )
        same_ranks = (state["rank"], state["world"]) == (self._rank, self._world)
        rows = torch.tensor(state["positions"])
        self._latest[0] = max(position[0] for saved in (state, *ranks) for position in saved["positions"])
        info = torch.utils.data.get_worker_info()
        # a worker process loads its own position only: the others' are newer than what it was given
        chosen = range(len(rows)) if info is None else [info.id]
        for row in chosen:
            self._start[row] = rows[row]
        self._epoch[0] = state["epoch"]
        self._start_workers[0] = state["workers"] if same_ranks else -1
        if info is None:
            self._start[len(rows) :] = 0
            self._restart()

    def _next_sweep(self, worker: int, workers: int, batch_size: int) -> Position:
        """Positions of other streams mean nothing; what they have in common is the sweep and the images given."""
        if worker == 0:
            logger.warning("the position was saved with other numbers of ranks or workers: the next sweep begins")
        given = int(self._start[:, -1].sum()) // batch_size
        latest = max(int(self._start[:, 0].max()), int(self._latest))
        return Position(latest + 1, 0, 0, 0, share(given, worker, workers) * batch_size)

    def _restart(self) -> None:
        self._reached.copy_(self._start)
        self._reached_workers.copy_(self._start_workers)


def _shared(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64).share_memory_()
