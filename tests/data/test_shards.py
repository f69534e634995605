"""Streaming tar shards: every image once, the same order again, and on from where it stopped."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from segae.data.shards import ShardImages
from segae.data.tar_shards import count_images, find_shards
from segae.data.transforms import eval_transform, pretrain_transform
from segae.errors import SegaeError

pytest.importorskip("webdataset", reason="pip install 'segae[streaming]'")

HALF = (0.5, 0.5, 0.5)
SIZE = 16
STILL = eval_transform(SIZE, HALF, HALF)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def picture(number: int, suffix: str = "png") -> bytes:
    """A plain picture whose grey level is its number."""
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(file, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[suffix])
    return file.getvalue()


def make_shards(folder: Path, *counts: int) -> str:
    """Shards of so many pictures, numbered through; their labels lie beside them."""
    number = 0
    for shard, count in enumerate(counts):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as archive:
            for _ in range(count):
                add(archive, f"{number:05d}.png", picture(number))
                add(archive, f"{number:05d}.cls", b"3")
                number += 1
    return str(folder / "train-*.tar")


def stream(shards: Any, **settings: Any) -> ShardImages:
    return ShardImages(shards, SIZE, STILL, 0, **{"shuffle_buffer": 5, **settings})


def numbers(images: Any) -> list[int]:
    """The numbers of pictures, single ones or batches."""
    return [round((float(image.mean()) + 1) * 127.5) for item in images for image in item.reshape(-1, 3, SIZE, SIZE)]


def run(data: ShardImages, epochs: range, workers: int = 0, batch_size: int = 2) -> list[list[int]]:
    loader = DataLoader(data, batch_size, num_workers=workers, persistent_workers=workers > 0)
    seen = []
    for epoch in epochs:
        data.set_epoch(epoch)
        seen.append(numbers(loader))
    return seen


def as_worker(monkeypatch: pytest.MonkeyPatch, worker: int, workers: int) -> None:
    """Iterate as a loader's worker does, in this process: torch takes 10 s to stop real ones that raised an error."""
    monkeypatch.setattr("segae.data.shards.get_worker_info", lambda: SimpleNamespace(id=worker, num_workers=workers))


def test_every_image_comes_once_over_ranks_and_workers(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 7, 3, 11, 5, 4, 6)
    for epoch in range(2):
        seen: list[int] = []
        for rank in range(2):
            seen += run(stream(shards, rank=rank, world=2), range(epoch, epoch + 1), workers=2)[0]
        assert sorted(seen) == list(range(36))


def test_the_order_is_that_of_seed_and_sweep_and_is_well_shuffled(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 20, 20, 20)
    first, second = run(stream(shards), range(2))
    assert run(stream(shards), range(1, 2)) == [second]  # without the epoch before it
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second
    assert first != sorted(first)
    other = ShardImages(shards, SIZE, STILL, 1, shuffle_buffer=5)
    assert numbers(other) not in (first, second)
    assert {number // 20 for number in first[:20]} == {first[0] // 20}  # shard by shard
    inside = [number % 20 for number in first[:20]]
    assert inside != sorted(inside)
    blocks = [tuple(number % 5 for number in first[begin : begin + 5]) for begin in range(0, 60, 5)]
    assert len(set(blocks)) > 6  # each block has an order of its own


def test_running_workers_hear_of_the_next_epoch(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 6, 6)
    running = run(stream(shards), range(3), workers=2)
    assert running == [run(stream(shards), range(epoch, epoch + 1), workers=2)[0] for epoch in range(3)]
    assert running[0] != running[1] != running[2]


def test_augmentation_depends_on_the_image_and_the_sweep_alone(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        for number in range(12):
            add(archive, f"{number}.png", file.getvalue())

    def images(**settings: Any) -> set[float]:
        data = ShardImages(str(tmp_path / "a.tar"), SIZE, pretrain_transform(SIZE, HALF, HALF), 0, **settings)
        return {float(image.double().sum()) for image in data}

    alone = images(shuffle_buffer=1)
    assert len(alone) == 12  # one picture, twelve crops
    assert images(shuffle_buffer=100) == alone


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 13, 24])
@pytest.mark.parametrize("epoch_images", [None, 25])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path: Path, stop: int, epoch_images: int | None) -> None:
    shards = make_shards(tmp_path, 7, 3, 11, 4)
    wanted = run(stream(shards, epoch_images=epoch_images), range(4), batch_size=1)
    interrupted = stream(shards, epoch_images=epoch_images)
    run(interrupted, range(1), batch_size=1)
    interrupted.set_epoch(1)
    images = iter(interrupted)
    before = numbers([next(images) for _ in range(stop)])
    state = json.loads(json.dumps(interrupted.state_dict()))
    resumed = stream(shards, epoch_images=epoch_images)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    after = run(resumed, range(1, 4), batch_size=1)
    assert [before + after[0], *after[1:]] == wanted[1:]


def test_an_epoch_of_given_length_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 5, 5, 5, 5)
    data = stream(shards, epoch_images=10)
    assert len(data) == 10
    epochs = run(data, range(6))
    assert [len(epoch) for epoch in epochs] == [10] * 6
    for sweep in range(3):
        assert sorted(epochs[2 * sweep] + epochs[2 * sweep + 1]) == list(range(20))
    assert epochs[0] + epochs[1] != epochs[2] + epochs[3]
    assert run(data, range(5, 6))[0] == epochs[5]  # the same epoch again


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_loader_gives_as_many_batches_as_it_says(tmp_path: Path, workers: int) -> None:
    shards = make_shards(tmp_path, 9, 2, 3, 1, 5, 6)
    for rank in range(2):
        data = stream(shards, epoch_images=41, batch_size=4, rank=rank, world=2)
        loader = DataLoader(data, 4, num_workers=workers)
        batches = list(loader)
        assert len(batches) == len(loader) == 5
        assert all(len(batch) == 4 for batch in batches)


def test_between_epochs_a_position_is_exact_with_workers_too(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 9, 4, 3, 8)
    settings = {"epoch_images": 12, "batch_size": 2}
    wanted = run(stream(shards, **settings), range(4), workers=2)
    first = stream(shards, **settings)
    run(first, range(2), workers=2)
    resumed = stream(shards, **settings)
    resumed.load_state_dict(first.state_dict())
    assert run(resumed, range(2, 4), workers=2) == wanted[2:]


def test_within_an_epoch_with_workers_a_resumed_run_repeats_no_image(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 30, 30)
    data = stream(shards)
    loader = iter(DataLoader(data, 2, num_workers=2, prefetch_factor=2))
    before = numbers([next(loader) for _ in range(8)])
    resumed = stream(shards)
    resumed.load_state_dict(data.state_dict())
    after = run(resumed, range(1), workers=2)[0]
    assert max(Counter(before + after).values()) == 1
    assert len(before + after) >= 60 - 2 * (2 + 1) * 2  # at most what the workers had prepared is left out


def test_another_number_of_workers_begins_the_next_sweep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = make_shards(tmp_path, 8, 8)
    data = stream(shards, epoch_images=16, batch_size=2)
    loader = iter(DataLoader(data, 2))
    for _ in range(3):
        next(loader)
    resumed = stream(shards, epoch_images=16, batch_size=2)
    resumed.load_state_dict(data.state_dict())
    assert len(run(resumed, range(1), workers=2)[0]) == 10  # the rest of the epoch
    other_world = stream(shards, epoch_images=32, batch_size=2, rank=1, world=2)
    other_world.load_state_dict(data.state_dict())
    assert len(run(other_world, range(1))[0]) == 10
    assert "the next sweep begins" in caplog.text


@pytest.mark.parametrize("world", [1, 3])
def test_another_number_of_ranks_deals_out_one_sweep(tmp_path: Path, world: int) -> None:
    """Of two ranks one was dealt a short shard alone, and so is a sweep ahead."""
    shards = make_shards(tmp_path, 4, 4, 12)
    old = [stream(shards, epoch_images=8, batch_size=2, rank=rank, world=2) for rank in range(2)]
    for rank in old:
        run(rank, range(2))
    states = [json.loads(json.dumps(rank.state_dict())) for rank in old]
    reached = [max(position[0] for position in state["positions"]) for state in states]
    assert reached[0] != reached[1]
    seen: list[int] = []
    for rank in range(world):
        new = stream(shards, epoch_images=12, batch_size=2, rank=rank, world=world)
        new.load_state_dict(states[rank % 2], states)
        new.set_epoch(2)
        assert new._positions.begin(0, 1, 2).sweep == max(reached) + 1
        seen += run(new, range(2, 3))[0]
    assert len(seen) == len(set(seen)) == 12


def test_a_position_of_something_else_is_refused(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 3, 3)
    state = stream(shards).state_dict()
    with pytest.raises(SegaeError, match="position is of shuffle_buffer 5, and this run has 6"):
        stream(shards, shuffle_buffer=6).load_state_dict(state)
    with pytest.raises(SegaeError, match="position is of shards"):
        stream(str(tmp_path / "train-000.tar")).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_left_out_and_reported(tmp_path: Path, workers: int) -> None:
    shards = make_shards(tmp_path, 4, 4, 4)
    with tarfile.open(tmp_path / "train-003.tar", "w") as archive:
        add(archive, "good.jpg", picture(100, "jpg"))
        add(archive, "half.jpg", picture(101, "jpg")[:300])
        add(archive, "._good.jpg", b"what a file system leaves behind")
        add(archive, "other.WEBP", picture(102, "webp"))
    whole = (tmp_path / "train-002.tar").read_bytes()
    (tmp_path / "train-002.tar").write_bytes(whole[: 512 * 9 + 30])  # breaks off within the third picture
    (tmp_path / "train-004.tar").write_bytes(b"no archive at all")
    data = stream(shards)
    seen = sorted(run(data, range(1), workers=workers)[0])
    assert seen[:10] == list(range(10))
    assert len(seen) == 12
    reasons = dict(data.failures)
    assert len(reasons) == 3
    assert "truncated" in reasons[f"{tmp_path}/train-003.tar/half.jpg"].lower()
    assert f"{tmp_path}/train-002.tar" in reasons
    assert f"{tmp_path}/train-004.tar" in reasons


def test_one_damaged_shard_starves_no_worker(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 6, 6, 6)
    (tmp_path / "train-001.tar").write_bytes(b"no archive")
    data = stream(shards, epoch_images=24, batch_size=2)
    epochs = run(data, range(3), workers=2)
    assert [len(epoch) for epoch in epochs] == [24] * 3
    assert set().union(*epochs) == {*range(6), *range(12, 18)}
    assert len(data.failures) == 1
    assert len(run(stream(shards), range(1), workers=3)[0]) == 12  # one worker has nothing to do


def test_shards_without_images_are_an_error_and_no_endless_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "a.png", b"no picture")
    for epoch_images in (None, 10):
        with pytest.raises(SegaeError, match=r"no image can be read.*a\.png .no known image format"):
            list(stream(str(tmp_path), epoch_images=epoch_images))
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    as_worker(monkeypatch, 1, 2)
    with pytest.raises(SegaeError, match="no image can be read"):
        list(stream(str(tmp_path), epoch_images=10))


def test_fewer_shards_than_workers_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream(make_shards(tmp_path, 9), epoch_images=8)
    as_worker(monkeypatch, 1, 2)
    with pytest.raises(SegaeError, match=r"1 shard\(s\) for 1 rank\(s\) with 2 worker\(s\)"):
        list(data)


def test_shards_are_named_by_braces_patterns_folders_and_urls(tmp_path: Path) -> None:
    pattern = make_shards(tmp_path, 2, 3, 1)
    files = tuple(str(tmp_path / f"train-00{number}.tar") for number in range(3))
    braces = f"{tmp_path}/train-{{000..002}}.tar"
    for asked in (pattern, str(tmp_path), braces, [braces, pattern], f"file:{tmp_path}/train-00?.tar", list(files)):
        assert find_shards(asked) == files
    assert count_images(files) == 6
    assert find_shards("https://host/a-{1..2}.tar") == ("https://host/a-1.tar", "https://host/a-2.tar")
    with pytest.raises(SegaeError, match="--epoch-images"):
        count_images(find_shards("https://host/a.tar"))
    piped = stream(f"pipe:cat {files[1]}")
    assert sorted(numbers(piped)) == [2, 3, 4]


def test_wrong_use_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path, 2, 2)
    with pytest.raises(SegaeError, match=r"There is no shard .*train-007.tar"):
        find_shards(f"{tmp_path}/train-{{000..007}}.tar".replace("000", "007"))
    with pytest.raises(SegaeError, match="--epoch-images 8 or more"):
        stream(shards, epoch_images=7, batch_size=4, world=2)
    with pytest.raises(SegaeError, match="rank 2 of 2"):
        stream(shards, rank=2, world=2)
    with pytest.raises(TypeError, match="give epoch_images"):
        len(stream(shards))
    (tmp_path / "train-001.tar").write_bytes(b"no archive")
    with pytest.raises(SegaeError, match="train-001.tar cannot be read"):
        count_images(find_shards(shards))
    monkeypatch.setitem(sys.modules, "webdataset", None)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(SegaeError, match=r"pip install 'segae\[streaming\]'"):
        find_shards(shards)


def test_live_and_streamed_pictures_are_the_same(tmp_path: Path) -> None:
    from segae.data.live import LiveImages

    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.jpg", "a.jpg")
    live = LiveImages([tmp_path / "a.jpg"], SIZE, STILL, 0)
    assert torch.equal(next(iter(stream(str(tmp_path / "a.tar")))), live[0])
