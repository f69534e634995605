"""Where the jobs of a benchmark run: in this process, in several of this machine, or on several machines with Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from segae.bench.jobs import Job, Outcome, do
from segae.errors import SegaeError
from segae.training.threads import set_threads


class Engine(Protocol):
    """Takes jobs while it has room for them, and gives back the next one that ends."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def has_room(self) -> bool:
        """Whether another job would start now."""
        ...

    def submit(self, job: Job) -> None:
        """Start a job."""
        ...

    def next(self) -> tuple[Job, Outcome]:
        """Wait for a job to end."""
        ...


def make_engine(
    kind: str, *, jobs: int, devices: Sequence[str], threads: int | None = None, address: str | None = None
) -> Engine:
    """The engine that was asked for.

    Args:
        kind: local or ray.
        jobs: how many at once, at least 1.
        devices: where they compute, in turn; Ray gives each job a device of the machine where it runs.
        threads: CPU threads of each job; None shares the cores out among the jobs.
        address: of a Ray cluster, such as auto; None starts a cluster of this machine alone.

    Raises:
        SegaeError: the numbers are not possible, or Ray is not installed or not reached.
    """
    require_some(jobs, threads)
    if address is not None and kind != "ray":
        raise SegaeError(f"the address {address!r} is one of a Ray cluster; add --engine ray.")
    if kind == "ray":
        from segae.bench.ray_cluster import RayCluster

        return RayCluster(jobs, devices[0], threads, address)
    if jobs == 1:
        return ThisProcess(devices[0], threads)
    return Processes(jobs, devices, share_of_cores(jobs, threads))


def require_some(jobs: int, threads: int | None) -> None:
    """Refuse a number of jobs, or of threads, below 1."""
    if jobs < 1 or (threads is not None and threads < 1):
        raise SegaeError(f"jobs is {jobs} and threads is {threads}; wanted 1 or more, such as --jobs 2 --threads 1.")


def share_of_cores(jobs: int, threads: int | None) -> int:
    """CPU threads of each of so many jobs: those asked for, else as many as there are cores for each."""
    return threads or max(1, (os.cpu_count() or 1) // jobs)


class ThisProcess:
    """One job after the other, here."""

    def __init__(self, device: str, threads: int | None = None) -> None:
        self.device, self.threads = device, threads
        self._waiting: list[Job] = []

    def __enter__(self) -> ThisProcess:
        if self.threads is not None:
            set_threads(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    def has_room(self) -> bool:
        """Whether another job would start now."""
        return not self._waiting

    def submit(self, job: Job) -> None:
        """Start a job."""
        self._waiting.append(replace(job, device=self.device, shown=True))

    def next(self) -> tuple[Job, Outcome]:
        """Wait for a job to end."""
        job = self._waiting.pop()
        return job, do(job)


class Processes:
    """Several processes of this machine; one that dies costs its own job and no other.

    Args:
        jobs: how many.
        devices: given to them in turn, a device that is free first.
        threads: CPU threads of each.
    """

    def __init__(self, jobs: int, devices: Sequence[str], threads: int) -> None:
        self._free = [devices[place % len(devices)] for place in range(jobs)]
        self.jobs, self.threads = jobs, threads
        self._running: dict[Future, Job] = {}

    def __enter__(self) -> Processes:
        import multiprocessing

        from pebble import ProcessPool

        context: Any = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, nor torch's threads
        self._pool = ProcessPool(self.jobs, initializer=_begin, initargs=[self.threads, os.getpid()], context=context)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.stop() if kind else self._pool.close()
        self._pool.join()

    def has_room(self) -> bool:
        """Whether another job would start now."""
        return bool(self._free)

    def submit(self, job: Job) -> None:
        """Start a job."""
        job = replace(job, device=self._free.pop(0))
        self._running[self._pool.schedule(do, args=[job])] = job

    def next(self) -> tuple[Job, Outcome]:
        """Wait for a job to end."""
        ended = next(iter(wait(self._running, return_when=FIRST_COMPLETED).done))
        job = self._running.pop(ended)
        self._free.append(job.device)
        error = ended.exception()
        return job, died(job, error) if error is not None else ended.result()


def died(job: Job, error: BaseException) -> Outcome:
    """What is told of a job whose process ended under it."""
    code = getattr(error, "exitcode", None)
    how = f"with exit status {code}" if code is not None else f"({type(error).__name__})"
    hint = "; -9 is what Linux does when memory runs out: fewer --jobs" if code == -9 else ""
    return Outcome(failure=f"its process ended {how}{hint}; what it printed is in {job.log}")


def _begin(threads: int, parent: int) -> None:
    """In each process: its share of the cores, and an end of its own when the benchmark is killed."""
    set_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
