"""The jobs of a benchmark on the machines of a Ray cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segae.bench.engine import died, share_of_cores
from segae.bench.jobs import Job, Outcome, do
from segae.errors import SegaeError
from segae.training.threads import set_threads


class RayCluster:
    """The machines of a Ray cluster, which see the same folders under the same names.

    Args:
        jobs: how many at once on a cluster that is started here.
        device: where each job computes.
        threads: CPU threads of each, and the cores that it is given.
        address: of a running cluster; None starts one of this machine alone.

    Raises:
        SegaeError: Ray is not installed; on entering, no cluster can be reached, or none of its machines has what a
            job needs.
    """

    def __init__(self, jobs: int, device: str, threads: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise SegaeError("--engine ray needs the package ray; type: pip install 'segae[ray]'.") from error
        self._ray, self.device, self.address = ray, device, address
        self.jobs, self.threads = jobs, share_of_cores(jobs, threads)
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
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        has_gpus = any(machine.get("GPU", 0) >= 1 for machine in machines)
        gpus = int(self.device.startswith("cuda") or (self.device == "auto" and has_gpus))
        try:
            _require_machine(machines, self.threads, gpus)
        except SegaeError:
            self._ray.shutdown()
            raise
        self._do = self._ray.remote(_do_on_ray).options(num_cpus=self.threads, num_gpus=gpus, max_retries=0)
        return self

    def _start(self) -> None:
        own: dict[str, Any] = {"num_cpus": self.jobs * self.threads, "include_dashboard": False}
        # a worker starts in another folder than this process
        cache = {name: str(Path(os.environ[name]).absolute()) for name in ("SEGAE_CACHE",) if os.environ.get(name)}
        self._ray.init(
            address=self.address or "local",
            log_to_driver=False,
            logging_level="warning",
            # OMP_NUM_THREADS is set to num_cpus by Ray itself
            runtime_env={"env_vars": cache},
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
            return job, died(job, error)


def _require_listener(address: str | None) -> None:
    """OSError or ValueError at once where nobody listens: Ray itself tries for five minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _require_machine(machines: Sequence[dict[str, float]], threads: int, gpus: int) -> None:
    """Raise SegaeError where no machine of the cluster has room for a job: Ray itself would wait for one for ever."""
    fitting = [machine for machine in machines if machine.get("GPU", 0) >= gpus]
    cores = int(max((machine.get("CPU", 0) for machine in fitting), default=0))
    if cores >= threads:
        return
    seen = f"{len(machines)} machine(s), {len(fitting)} of them with a GPU" if gpus else f"{len(machines)} machine(s)"
    if cores:
        seen, way = f"{seen}; the largest has {cores} cores", f"--threads {cores}"
    else:
        way = "--devices cpu" if gpus else "ray start --address HOST:PORT on one that has cores"
    raise SegaeError(
        f"a run asks for {threads} cores{' and a GPU' if gpus else ''} of one machine, and the Ray cluster has {seen}. "
        f"It would wait for ever; type {way}."
    )


def _do_on_ray(job: Job, threads: int) -> Outcome:
    set_threads(threads)
    return do(job)
