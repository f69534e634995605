"""Two gloo processes on the CPU train one model: the loss falls, all ranks agree, and nothing is counted twice."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from segae.data import make_loaders
from segae.errors import SegaeError
from segae.methods import create_autoencoder, create_method
from segae.models import create_segmenter
from segae.training import (
    fit,
    freeze_finetune_phases,
    open_run_folder,
    pretraining_learner,
    pretraining_phases,
    seed_everything,
    segmentation_learner,
)
from segae.training.distributed import all_reduce, gather_objects, init_distributed, rank, run_on_main, world_size
from tests.training.learners import CPU, Items, Tiny, images, pairs, state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")


def together(
    folder: Path, work: Callable[[], Any], world: int = 2, join: Callable[[str], Any] = init_distributed
) -> Any:
    """Call ``work`` in several joined processes; return its results by rank, or raise what one of them raised.

    Forked, so that nothing is imported again. The store is made here, as torchrun does it: the system chooses its port.
    """
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folder.mkdir()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        try:
            with join("cpu"):
                result = work()
            torch.save(result, folder / f"{rank}.pt")
        except BaseException:
            (folder / f"{rank}.txt").write_text(traceback.format_exc())

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    failures = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert not failures, failures[0]
    assert not stuck, "some processes still wait for each other"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def train(task: str, folder: Path, **settings: Any) -> dict:
    """Train alone, or with the other processes: final weights, log, and the images that were loaded."""
    seed_everything(rank())  # other weights in each rank: those of rank 0 count
    items = pairs(22, 32) if task in ("unet", "tiny") else [(image,) for image in images(22)]
    data = Items(items), Items(items[:5])
    loaders = make_loaders(*data, batch_size=8, device=CPU, rank=rank(), world_size=world_size())
    if task in ("unet", "tiny"):
        model: Any = Tiny() if task == "tiny" else create_segmenter("test_resnet", num_classes=2, decoder="linknet")
        learner = segmentation_learner(loaders, model, num_classes=2, **settings)
        phases = freeze_finetune_phases(1, 3, lr=1e-2)
    else:
        method = create_method(task)
        learner = pretraining_learner(loaders, create_autoencoder("test_resnet", method=method), method, **settings)
        phases = pretraining_phases(4, 3e-3)
    log = fit(learner, phases, log_csv=folder / "log.csv", resume_file=folder / "resume.pt")
    return {"state": state(learner.model), "log": log, "asked": data[0].asked, "held_out": data[1].asked}


HARD = {"hard_mask_fraction": 0.5, "distance_penalty": 0.01, "accumulate": 2}


@pytest.mark.parametrize(("task", "settings"), [("unet", {}), ("spark", HARD)])
def test_the_loss_falls_the_ranks_agree_and_each_image_counts_once(task, settings, tmp_path):
    one, other = together(tmp_path / "two", lambda: train(task, tmp_path, **settings))
    for name, value in one["state"].items():
        assert torch.equal(value, other["state"][name]), f"{name} differs between ranks"
    assert one["log"].equals(other["log"])
    assert one["log"]["train_loss"].iloc[-1] < one["log"]["train_loss"][0]
    assert one["log"]["images"].tolist() == [22] * 4
    for name, count in (("asked", 22), ("held_out", 5)):
        for epoch in range(4):
            parts = [
                result[name][len(result[name]) // 4 * epoch :][: len(result[name]) // 4] for result in (one, other)
            ]
            assert sorted(parts[0] + parts[1]) == list(range(count)), "each image once in an epoch"
    assert {path.name for path in tmp_path.iterdir()} == {"two", "log.csv", "resume.pt"}


def test_a_step_of_two_processes_is_that_of_all_images_and_so_are_the_metrics(tmp_path):
    """Without BatchNorm."""
    alone, (two, _) = train("tiny", tmp_path), together(tmp_path / "two", lambda: train("tiny", tmp_path))
    for name, value in alone["state"].items():
        torch.testing.assert_close(two["state"][name], value, atol=1e-3, rtol=1e-3)
    for column in ("train_loss", "valid_loss", "miou"):
        assert two["log"][column].tolist() == pytest.approx(alone["log"][column].tolist(), rel=5e-3), column


def test_all_stop_when_one_has_no_number(tmp_path):
    def work() -> str:
        loaders = make_loaders(
            Items(pairs(8, 16)), None, batch_size=4, device=CPU, rank=rank(), world_size=world_size()
        )
        learner = segmentation_learner(loaders, Tiny(), num_classes=2)
        if rank() == 1:
            learner.loss_func = lambda logits, mask: logits.mean() * float("nan")
        with pytest.raises(SegaeError, match="epoch 1") as stop:
            fit(learner, freeze_finetune_phases(0, 1))
        return str(stop.value)

    assert len(together(tmp_path / "two", work)) == 2


def test_collectives_and_a_mistake_that_rank_0_finds_reach_all(tmp_path):
    def work() -> list:
        def refuse() -> None:
            raise SegaeError("the folder is taken" if rank() == 0 else "never asked")

        with pytest.raises(SegaeError, match="the folder is taken"):
            run_on_main(refuse)
        with open_run_folder(tmp_path / "run", {}, task="pretrain") as folder:
            device = folder.start(CPU, images="abc")["device"].split(" (")[0]
            folder.write_metrics({"rank": rank()})
        summed = all_reduce(torch.tensor(rank() + 1.0)).item()
        return [run_on_main(rank), gather_objects(rank()), summed, world_size(), device]

    assert together(tmp_path / "two", work) == [[0, [0, 1], 3.0, 2, "2 x cpu"]] * 2
    assert "0" in (tmp_path / "run" / "metrics.json").read_text()


def test_one_process_alone_needs_no_group(monkeypatch):
    with init_distributed("cpu") as device:
        assert (device, rank(), world_size(), gather_objects("x")) == (CPU, 0, 1, ["x"])
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SegaeError, match="WORLD_SIZE"), init_distributed("cpu"):
        pass
