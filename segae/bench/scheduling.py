"""The order of a benchmark's work: a pretraining before the runs that need it; a failure costs only what needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from segae.bench.engine import Engine
from segae.bench.grid import Cell
from segae.bench.jobs import Job, Outcome
from segae.training.run import DONE_FILE


def run_cells(
    cells: Sequence[Cell], engine: Engine, logs: Path, ended: Callable[[Job, Outcome], None]
) -> dict[str, Outcome]:
    """Run every cell, and before it the pretraining it needs.

    Args:
        cells: those that are to be run.
        engine: where; entered and left here.
        logs: folder for what the jobs print, where they are not in this process.
        ended: called for each job as it ends, pretrainings included.

    Returns:
        What failed, by the cell's settings. A cell whose pretraining failed has failed with it.
    """
    waiting: dict[Path, list[Cell]] = {}
    for cell in cells:
        if cell.pretraining is not None and not (cell.pretraining / DONE_FILE).exists():
            waiting.setdefault(cell.pretraining, []).append(cell)
    held_back = {cell.settings for needed in waiting.values() for cell in needed}
    ready = deque(
        Job(needed[0], pretraining=True, log=logs / f"{folder.name}.log") for folder, needed in waiting.items()
    )
    ready.extend(_job(cell, logs) for cell in cells if cell.settings not in held_back)
    failed: dict[str, Outcome] = {}
    running = 0
    with engine:
        while ready or running:
            while ready and engine.has_room():
                engine.submit(ready.popleft())
                running += 1
            job, outcome = engine.next()
            running -= 1
            ended(job, outcome)
            if not job.pretraining:
                if outcome.failure:
                    failed[job.cell.settings] = outcome
                continue
            assert job.cell.pretraining is not None
            needed = waiting.pop(job.cell.pretraining)
            if outcome.failure:
                failed |= {cell.settings: outcome for cell in needed}
            else:
                ready.extendleft(_job(cell, logs) for cell in reversed(needed))
    return failed


def _job(cell: Cell, logs: Path) -> Job:
    return Job(cell, log=logs / f"{cell.settings}.log")
