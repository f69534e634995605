"""Where the jobs of a benchmark run: in this process, in several of this machine, or on several machines with Ray."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol

from segae.bench.jobs import Job, Outcome, do
from segae.errors import SegaeError


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
    if jobs < 1 or (threads is not None and threads < 1):
        raise SegaeError(f"jobs is {jobs} and threads is {threads}; wanted 1 or more, such as --jobs 2 --threads 1.")
    if address is not None and kind != "ray":
        raise SegaeError(f"the address {address!r} is one of a Ray cluster; add --engine ray.")
    if kind == "ray":
        return RayCluster(jobs, devices[0], threads, address)
    if jobs == 1:
        return ThisProcess(devices[0], threads)
    return Processes(jobs, devices, threads or max(1, (os.cpu_count() or 1) // jobs))


class ThisProcess:
    """One job after the other, here."""

    def __init__(self, device: str, threads: int | None = None) -> None:
        self.device, self.threads = device, threads
        self._waiting: list[Job] = []

    def __enter__(self) -> ThisProcess:
        if self.threads is not None:
            _set_threads(self.threads)
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
        return job, _died(job, error) if error is not None else ended.result()


class RayCluster:
    """The machines of a Ray cluster, which see the same folders under the same names.

    Args:
        jobs: how many at once on a cluster that is started here.
        device: where each job computes.
        threads: CPU threads of each, and the cores that it is given.
        address: of a running cluster; None starts one of this machine alone.

    Raises:
        SegaeError: Ray is not installed; on entering, no cluster can be reached.
    """

    def __init__(self, jobs: int, device: str, threads: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise SegaeError("--engine ray needs the package ray; type: pip install 'segae[ray]'.") from error
        self._ray, self.device, self.address = ray, device, address
        self.jobs, self.threads = jobs, threads or max(1, (os.cpu_count() or 1) // jobs)
        self._running: dict[Any, Job] = {}

    def __enter__(self) -> RayCluster:
        try:
            _require_listener(self.address)
            self._start()
        except (OSError, RuntimeError, ValueError) as error:
            raise SegaeError(
                f"no Ray cluster could be reached at {self.address or 'this machine'} ({error}). Wanted the HOST:PORT "
                "that ray start --head prints, or no --address."
            ) from error
        gpus = 0 if self.device in ("cpu", "mps") or not self._ray.cluster_resources().get("GPU") else 1
        self._do = self._ray.remote(_do_on_ray).options(num_cpus=self.threads, num_gpus=gpus, max_retries=0)
        return self

    def _start(self) -> None:
        own: dict[str, Any] = {"num_cpus": self.jobs * self.threads, "include_dashboard": False}
        self._ray.init(
            address=self.address or "local",
            log_to_driver=False,
            logging_level="warning",
            # OMP_NUM_THREADS is set to num_cpus by Ray itself
            runtime_env={"env_vars": {name: os.environ[name] for name in ("SEGAE_CACHE",) if name in os.environ}},
            **({} if self.address else own),
        )

    def __exit__(self, *_: object) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def has_room(self) -> bool:
        """Whether another job would start now; Ray keeps a queue of its own."""
        return True

    def submit(self, job: Job) -> None:
        """Start a job."""
        job = replace(job, device=self.device)
        self._running[self._do.remote(job, self.threads)] = job

    def next(self) -> tuple[Job, Outcome]:
        """Wait for a job to end."""
        ended = self._ray.wait(list(self._running), num_returns=1)[0][0]
        job = self._running.pop(ended)
        try:
            return job, self._ray.get(ended)
        except self._ray.exceptions.RayError as error:
            return job, _died(job, error)


def _require_listener(address: str | None) -> None:
    """OSError or ValueError at once where nobody listens: Ray itself tries for five minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _do_on_ray(job: Job, threads: int) -> Outcome:
    _set_threads(threads)
    return do(job)


def _died(job: Job, error: BaseException) -> Outcome:
    code = getattr(error, "exitcode", None)
    how = f"with exit status {code}" if code is not None else f"({type(error).__name__})"
    hint = "; -9 is what Linux does when memory runs out: fewer --jobs" if code == -9 else ""
    return Outcome(failure=f"its process ended {how}{hint}; what it printed is in {job.log}")


def _begin(threads: int, parent: int) -> None:
    """In each process: its share of the cores, and an end of its own when the benchmark is killed."""
    _set_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _set_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)
    import torch

    torch.set_num_threads(count)
