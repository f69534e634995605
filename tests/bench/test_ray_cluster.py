"""What is asked of a Ray cluster, with a stand-in for Ray: a request that no machine can meet waits for ever there."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from segae.bench.engine import make_engine
from segae.errors import SegaeError

SMALL, LARGE = {"CPU": 4.0, "memory": 1e9}, {"CPU": 16.0, "memory": 1e9}
WITH_GPU = {"CPU": 8.0, "GPU": 1.0}


class Ray:
    """As much of Ray as the engine asks for before its first job."""

    def __init__(self, machines, gone=()) -> None:
        self.machines = [{"Alive": True, "Resources": one} for one in machines]
        self.machines += [{"Alive": False, "Resources": one} for one in gone]
        self.options: dict = {}
        self.runtime_env: dict = {}
        self.left = False

    def init(self, runtime_env, **_) -> None:
        self.runtime_env = runtime_env

    def shutdown(self) -> None:
        self.left = True

    def nodes(self):
        return self.machines

    def cluster_resources(self):
        return {"GPU": sum(one["Resources"].get("GPU", 0) for one in self.machines)}

    def remote(self, function):
        return SimpleNamespace(options=self.options.update)


@pytest.fixture
def cluster(monkeypatch):
    def make(machines, gone=()) -> Ray:
        ray = Ray(machines, gone)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return make


@pytest.mark.parametrize(
    ("machines", "device", "threads", "told"),
    [
        ([SMALL, SMALL], "cpu", 8, "asks for 8 cores of one machine.*2 machine.*4 cores.*--threads 4"),
        ([SMALL, WITH_GPU, LARGE], "auto", 16, "16 cores and a GPU.*1 of them with a GPU.*8 cores.*--threads 8"),
        ([LARGE], "cuda", 2, "2 cores and a GPU.*0 of them with a GPU.*--devices cpu"),
    ],
)
def test_a_request_that_no_machine_can_meet_is_refused(machines, device, threads, told, cluster):
    ray = cluster(machines, gone=[{"CPU": 64.0, "GPU": 8.0}])
    with (
        pytest.raises(SegaeError, match=told),
        make_engine("ray", jobs=1, devices=[device], threads=threads, address="auto"),
    ):
        pass
    assert ray.left, "the connection to the cluster stays open"


@pytest.mark.parametrize(
    ("machines", "device", "threads", "gpus"),
    [([SMALL, LARGE], "cpu", 16, 0), ([WITH_GPU, LARGE], "auto", 8, 1), ([WITH_GPU, LARGE], "cpu", 16, 0)],
)
def test_a_request_that_one_machine_can_meet_goes_through(machines, device, threads, gpus, cluster):
    ray = cluster(machines)
    with make_engine("ray", jobs=1, devices=[device], threads=threads, address="auto"):
        assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (threads, gpus)


def test_a_worker_finds_the_cache_from_another_folder(cluster, tmp_path, monkeypatch):
    ray = cluster([LARGE])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGAE_CACHE", "my-cache")
    with make_engine("ray", jobs=1, devices=["cpu"], threads=1):
        assert ray.runtime_env["env_vars"]["SEGAE_CACHE"] == os.fspath(tmp_path / "my-cache")
