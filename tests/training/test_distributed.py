"""Several gloo processes on the CPU train as one does: same batches, same weights, one set of files.

In double precision where weights are compared: AdamW divides by the size of a gradient, so in single precision the
rounding of a sum in another order can grow into a step of its own.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import tarfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from fastai.callback.core import Callback
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import distributed, nn
from torch.nn import functional
from torch.utils.data import Dataset

import segae.files
from segae.cli import main
from segae.data.shards import ShardImages
from segae.data.transforms import eval_transform
from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.models.pretrainer import create_pretrainer
from segae.models.segmenter import create_segmenter
from segae.objectives.presets import make_objective
from segae.training import fit as fit_module
from segae.training.distributed import Place, joined, once, require_divisible, require_single_process, this_place
from segae.training.fit import fit
from segae.training.learner import pretraining_learner, segmentation_learner
from segae.training.loaders import make_loaders
from segae.training.run import seed_everything
from segae.training.schedule import make_phases, make_pretraining_phases
from segae.training.synchronised_batchnorm import synchronised_batchnorm

CPU = torch.device("cpu")


def together(world: int, folder: Path, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` gives in each of several joined processes, by rank; raises what one of them raised.

    Forked, so that nothing is imported again. The store is made here, as torchrun does it: its port is taken by the
    system, and no other test can have it.
    """
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folder.mkdir()

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        try:
            torch.save(work(), folder / f"{rank}.pt")
        except BaseException:
            (folder / f"{rank}.txt").write_text(traceback.format_exc())

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank,)) for rank in range(world)]
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
    for rank in range(world):
        assert (folder / f"{rank}.pt").exists(), (
            f"no result of process {rank}, which ended with {processes[rank].exitcode}"
        )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


class Items(Dataset):
    def __init__(self, count: int, masks: bool) -> None:
        coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        self.images = functional.interpolate(coarse, size=64, mode="bilinear").double()
        self.masks, self.asked = masks, []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        self.asked.append(index)
        image = self.images[index]
        return (image, (image[0] > 0).long()) if self.masks else image


class LoggedInSingle(Callback):
    """fastai keeps its means in single precision and refuses others; the loss that is differentiated stays double."""

    def after_loss(self) -> None:
        self.learn.loss = self.learn.loss.float()


def train(task: str, images: int, batch_size: int, valid: int = 3, **more: Any) -> dict[str, Any]:
    """Train alone, or with the others if there are any: final weights, log, and the images that were loaded."""
    with joined("cpu"):
        seed_everything(0)
        encoder, _ = create_encoder("test_resnet")
        items, held_out = Items(images, task == "segment"), Items(valid, task == "segment")
        phases: tuple
        if task == "segment":
            model: nn.Module = create_segmenter(encoder, "test_resnet", "unet", 2)
            loaders = make_loaders(items, held_out, batch_size=batch_size, device=CPU)
            learner = segmentation_learner(loaders, model, classes=2, **more)
            learner.add_cb(LoggedInSingle())
            phases = make_phases(1, 1, lr=1e-2)
        else:
            objective = make_objective(task, patch=32 if task == "sparse_mask" else 16, mask_ratio=0.5)
            masking, decoder = objective.masking, objective.decoder
            out_channels = objective.reconstruction.out_channels(3)
            model = create_pretrainer(
                encoder, "test_resnet", out_channels=out_channels, masking=masking, decoder=decoder
            )
            loaders = make_loaders(items, held_out, batch_size=batch_size, device=CPU)
            learner = pretraining_learner(loaders, model, objective, **more)
            phases = make_pretraining_phases(2, 1e-2, 0.3)
        model.double()
        kinds = [type(module) for module in model.modules()]
        log = fit(learner, phases)
        assert [type(module) for module in model.modules()] == kinds  # what is saved is an ordinary network
        return {"state": model.state_dict(), "log": log, "asked": items.asked, "held_out": held_out.asked}


def require_equal(alone: dict[str, Any], many: list[dict[str, Any]], tolerance: float) -> None:
    for one in many:
        for name, tensor in alone["state"].items():
            assert torch.equal(one["state"][name], many[0]["state"][name]), f"{name} differs between processes"
            torch.testing.assert_close(one["state"][name], tensor, rtol=tolerance, atol=tolerance, msg=name)
        assert len(one["log"]) == len(alone["log"]) == 2
        for row, expected in zip(one["log"], alone["log"], strict=True):
            assert row.keys() == expected.keys()
            assert row["phase"] == expected["phase"]
            for name in set(row) - {"phase", "seconds", "images_per_second"}:
                assert row[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize("task", ["mask", "sparse_mask", "segment"])
def test_two_processes_end_with_the_weights_of_one(task, tmp_path):
    """The last batch has three images: two for one process, one for the other."""
    alone = train(task, 11, 4)
    many = together(2, tmp_path / "two", lambda: train(task, 11, 4))
    require_equal(alone, many, 1e-7)
    for name, count in (("asked", 11), ("held_out", 3)):
        for epoch in range(2):
            seen = [index for one in many for index in one[name][len(one[name]) // 2 * epoch :][: len(one[name]) // 2]]
            assert sorted(seen) == list(range(count)), "each image once in an epoch"


@pytest.mark.parametrize(
    ("task", "more"), [("mask", {"hard_mask_share": 0.5, "distance_penalty": 0.1}), ("segment", {})]
)
def test_four_processes_and_a_last_batch_of_two_images(task, more, tmp_path):
    """Two of them have nothing to do in it, and everything still adds up, validation included."""
    alone = train(task, 10, 8, valid=2, **more)
    require_equal(alone, together(4, tmp_path / "four", lambda: train(task, 10, 8, valid=2, **more)), 1e-7)


@pytest.mark.parametrize("task", ["mask", pytest.param("segment", marks=pytest.mark.slow)])
def test_two_processes_accumulate_as_one_does(task, tmp_path):
    """Steps of 4 + 4 and of 3 images; gradients are summed once to a step."""
    alone = train(task, 11, 4, accumulate=2)
    many = together(2, tmp_path / "two", lambda: train(task, 11, 4, accumulate=2))
    require_equal(alone, many, 1e-6)  # AdamW makes more of the rounding of further sums
    whole = train(task, 11, 4)
    assert any(not torch.equal(whole["state"][name], value) for name, value in alone["state"].items())


class Greys(Callback):
    """The grey levels of the clean images, epoch by epoch."""

    order = -10  # before they are corrupted

    def before_epoch(self) -> None:
        self.levels = [*getattr(self, "levels", []), []]

    def before_batch(self) -> None:
        self.levels[-1] += [round(255 * float(image.mean())) for image in self.learn.xb[0]]


def test_two_processes_train_on_each_image_of_tar_shards_once_in_a_sweep(tmp_path):
    pytest.importorskip("webdataset", reason="pip install 'segae[streaming]'")
    every = list(range(0, 240, 20))  # the grey levels of twelve images in four shards
    for shard in range(4):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for level in every[3 * shard :][:3]:
                file = io.BytesIO()
                Image.new("RGB", (32, 32), (level,) * 3).save(file, "PNG")
                member = tarfile.TarInfo(f"{level}.png")
                member.size = file.tell()
                file.seek(0)
                archive.addfile(member, file)

    def work() -> tuple[list[list[int]], dict[str, torch.Tensor], list[dict]]:
        with joined("cpu"):
            seed_everything(0)
            place, transform = this_place(), eval_transform(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
            share = {"epoch_images": 12, "batch_size": 2, "rank": place.rank, "world": place.world}
            stream = ShardImages(str(tmp_path / "*.tar"), 32, transform, 0, shuffle_buffer=4, **share)
            encoder, _ = create_encoder("test_resnet")
            model = create_pretrainer(encoder, "test_resnet")
            loaders = make_loaders(stream, None, batch_size=4, device=CPU)
            learner, greys = pretraining_learner(loaders, model, make_objective("denoise")), Greys()
            learner.add_cb(greys)
            log = fit(learner, make_pretraining_phases(3, 1e-3))
            return greys.levels, model.state_dict(), log

    one, other = together(2, tmp_path / "two", work)
    for first, second in zip(one[0], other[0], strict=True):
        assert len(first) == len(second) == 6
        assert sorted(first + second) == every, "each image once, over both processes"
    assert one[0][0] != one[0][1], "the shards are dealt anew, and shuffled"
    assert [row["images"] for row in one[2]] == [12, 12, 12]
    assert all(torch.equal(tensor, other[1][name]) for name, tensor in one[1].items())


def test_batchnorm_over_processes_is_batchnorm_over_their_images_together(tmp_path):
    """Processes with other numbers of positions, one whose images do not count, both kinds of layer, bfloat16."""

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(2, 4, 3, 6, 1, generator=generator, dtype=torch.float64)
        return 100 + draw[0] * torch.arange(1.0, 4).view(3, 1, 1), draw[1]

    def layer(kind: type) -> nn.Module:
        made = kind(3, momentum=0.3).double()
        with torch.no_grad():
            made.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
            made.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
        return made

    def step(made: nn.Module, image: torch.Tensor, seed: torch.Tensor) -> list[torch.Tensor]:
        image.requires_grad_()
        output = made(image)
        (output * seed).sum().backward()
        gradients = [image.grad, made.weight.grad, made.bias.grad]
        return [part.detach() for part in (output, *gradients, made.running_mean, made.running_var)]

    def shared() -> list:
        with joined("cpu"):
            rank = this_place().rank
            own = slice(0, 3) if rank == 0 else slice(3, 4)
            found = []
            for kind in (nn.BatchNorm2d, BatchNormAct2d):
                image, seed = (part[own] for part in inputs())
                made = layer(kind)
                with synchronised_batchnorm(made) as meeting:
                    meeting.open, meeting.counts = True, rank < 2
                    found.append(step(made, image, seed if rank < 2 else 0 * seed))
                    alone = made.eval()(image.detach())  # only this process asks: it must not wait for the others
                assert type(made) is kind
                assert torch.equal(made(image.detach()), alone)
                assert made.num_batches_tracked == 1
            half = image.detach().bfloat16()
            made = nn.BatchNorm2d(3)
            with synchronised_batchnorm(made) as meeting:
                meeting.open, meeting.counts = True, rank < 2
                found.append([made(half)])
            return found

    many = together(3, tmp_path / "three", shared)
    for index, kind in enumerate((nn.BatchNorm2d, BatchNormAct2d)):
        expected = step(layer(kind), *inputs())
        for part in range(2):  # output and its gradient: rows of images
            found = torch.cat([many[0][index][part], many[1][index][part]])
            torch.testing.assert_close(found, expected[part], rtol=1e-9, atol=1e-9)
        for part in (2, 3):  # of the parameters: a sum over images
            torch.testing.assert_close(many[0][index][part] + many[1][index][part], expected[part])
            assert not many[2][index][part].any()
        for part in (4, 5):
            assert all(torch.allclose(one[index][part], expected[part], rtol=1e-9) for one in many)
    expected_half = nn.BatchNorm2d(3)(inputs()[0].bfloat16())
    found_half = torch.cat([many[0][2][0], many[1][2][0]])
    assert found_half.dtype == torch.bfloat16
    assert torch.allclose(found_half.float(), expected_half.float(), atol=0.05)


def test_all_stop_when_one_has_no_number(tmp_path):
    def work() -> str:
        with joined("cpu"):
            loaders = make_loaders(Items(8, True), None, batch_size=4, device=CPU)
            encoder, _ = create_encoder("test_resnet")
            model = create_segmenter(encoder, "test_resnet", "unet", 2).double()
            learner = segmentation_learner(loaders, model, classes=2)
            learner.add_cb(LoggedInSingle())
            if this_place().rank == 1:
                learner.loss_func = lambda logits, mask: logits.mean() * float("nan")
            with pytest.raises(SegaeError, match="training stopped") as stop:
                fit(learner, make_phases(0, 1))
            return str(stop.value)

    assert all("of epoch 1" in message for message in together(2, tmp_path / "two", work))


def test_a_mistake_that_one_finds_is_told_to_all_and_nobody_waits(tmp_path):
    def work() -> tuple[str, bool]:
        def refuse() -> None:
            raise SegaeError("the folder is taken" if this_place().first else "never asked")

        with joined("cpu"):
            with pytest.raises(SegaeError) as stop:
                once(refuse)
            assert once(lambda: this_place().rank) == 0
        return str(stop.value), distributed.is_initialized()

    assert together(2, tmp_path / "two", work) == [("the folder is taken", False)] * 2


SMALL = ["--encoder", "test_resnet", "--image-size", "64", "--device", "cpu", "--batch-size", "4"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    main(["data", "drawn", "--root", str(root), "--train", "12", "--test", "2", "--unlabelled", "0", "--size", "64"])
    return root


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return list(csv.DictReader(file))


def command(words: list[str], die_in_epoch: int = 0) -> Callable[[], str]:
    """The command in a process that must not write unless it is the first; gives what it printed."""

    def work() -> str:
        if os.environ["RANK"] != "0":

            def refuse(writers: Any) -> None:
                raise AssertionError(f"process {os.environ['RANK']} writes {list(writers)}")

            segae.files.write_together = refuse
        if die_in_epoch:

            def die(row: dict[str, Any]) -> None:
                if row["epoch"] == die_in_epoch:
                    os._exit(9)

            fit_module.print_epoch = die
        with suppress(SystemExit) if die_in_epoch else nullcontext():
            main(words)
        return "done"

    return work


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_pretraining_is_resumed_by_another_number_of_processes(before, after, pets, tmp_path):
    """Killed in its second epoch; the files are written by one process, and the end is that of one process."""
    words = ["pretrain", "--data", str(pets), "--epochs", "2", "--val-fraction", "0.2", "--probe", str(pets), *SMALL]
    main([*words, "--out", str(tmp_path / "alone")])
    broken = [*words, "--out", str(tmp_path / "parts")]
    with pytest.raises(AssertionError, match="no result of process 0"):
        together(before, tmp_path / "before", command(broken, die_in_epoch=2))
    assert not (tmp_path / "parts" / "encoder.safetensors").exists()
    together(after, tmp_path / "after", command([*broken, "--resume"]))
    alone, parts = rows(tmp_path / "alone"), rows(tmp_path / "parts")
    assert [row["epoch"] for row in parts] == ["1", "2"]
    for row, expected in zip(parts, alone, strict=True):
        assert row["images"] == expected["images"]
        for name in ("train_loss", "valid_loss", "feature_rank", "probe_miou"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=0.02), name
    one, other = (safetensors.torch.load_file(tmp_path / run / "encoder.safetensors") for run in ("alone", "parts"))
    assert one.keys() == other.keys()
    flat, other_flat = (torch.cat([state[name].flatten().float() for name in one]) for state in (one, other))
    assert (other_flat - flat).norm() < 0.01 * flat.norm()


def test_a_segmenter_of_two_processes_has_the_log_of_one(pets, tmp_path, capfd):
    # A low rate, where 1e-4 can be asked of the losses. AdamW's first steps move every weight by the whole rate, in a
    # direction that rounding may decide: at the usual one a second thread alone changes the mIoU of one process by 1 %.
    words = ["segment", "--data", str(pets), "--epochs", "1", "--val-fraction", "0.3", *SMALL, "--lr", "0.0001"]
    main([*words, "--out", str(tmp_path / "alone")])
    capfd.readouterr()
    together(2, tmp_path / "two", command([*words, "--out", str(tmp_path / "many")]))
    assert capfd.readouterr().out.count("wrote ") == 1
    alone, many = (tmp_path / run for run in ("alone", "many"))
    assert {path.name for path in many.iterdir()} == {path.name for path in alone.iterdir()}
    for row, expected in zip(rows(many), rows(alone), strict=True):
        assert (row["phase"], row["images"]) == (expected["phase"], expected["images"])
        for name, rel in (("train_loss", 1e-4), ("valid_loss", 1e-4), ("miou", 1e-3)):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=rel), name
    assert '"2 x cpu' in (many / "started.json").read_text()
    keys = [safetensors.torch.load_file(run / "model.safetensors").keys() for run in (alone, many)]
    assert keys[0] == keys[1]


def test_what_does_not_fit_is_said(monkeypatch, capsys):
    with pytest.raises(SegaeError, match=r"batch size is 10, and 4 processes .* --batch-size 12"):
        require_divisible(10, Place(0, 4))
    assert require_divisible(12, Place(0, 4)) == 3
    with pytest.raises(SegaeError, match=r"micro-batch is 6, and 4 processes .* --micro-batch 8,"):
        require_divisible(6, Place(0, 4), 24)
    assert require_divisible(12, Place(0, 4), 24) == 3
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SegaeError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"), joined("cpu"):
        pass
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SegaeError, match="4 processes would share it"), joined("cuda:1"):
        pass
    with pytest.raises(SegaeError, match="compare runs in one process"):
        require_single_process("compare")
    with pytest.raises(SystemExit):
        main(["data", "drawn", "--root", "nowhere"])
    assert "segae (process 1 of 4): data-drawn runs in one process" in capsys.readouterr().err
