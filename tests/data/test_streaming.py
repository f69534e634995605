"""Streams: every image, an order by (seed, epoch), disjoint shards, damage left out, and no shell."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from segae.data.image_io import SkippedFiles
from segae.data.streaming import StreamDataset, is_stream, open_stream, sample_stream
from segae.data.transforms import eval_transform
from segae.errors import SegaeError

pytest.importorskip("webdataset.gopen", reason="pip install 'segae[streaming]'")
pytest.importorskip("datasets", reason="pip install 'segae[streaming]'")
pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

HALF = (0.5, 0.5, 0.5)
SIZE = 16


@pytest.fixture(autouse=True)
def private_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library-cache")


def picture(number: int) -> bytes:
    """A plain picture whose gray level is its number."""
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(file, "PNG")
    return file.getvalue()


def make_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def make_shards(folder: Path, *counts: int) -> str:
    """Shards of pictures, numbered through and named as cat.0.png; their labels lie beside them."""
    for shard, (start, count) in enumerate(zip(np.cumsum((0, *counts)), counts, strict=False)):
        images = {f"cat.{number}.png": picture(number) for number in range(start, start + count)}
        make_tar(folder / f"train-{shard:03d}.tar", images | {"cat.0.cls": b"3"})
    return str(folder / "train-*.tar")


def make_rows(folder: Path, *counts: int) -> str:
    """The same in parquet files, a row group for each two rows, in a folder that holds nothing else."""
    (folder / "rows").mkdir()
    for shard, (start, count) in enumerate(zip(np.cumsum((0, *counts)), counts, strict=False)):
        table = pa.table({"picture": [picture(start + index) for index in range(count)], "label": list(range(count))})
        parquet.write_table(table, folder / "rows" / f"train-{shard:05d}.parquet", row_group_size=2)
    return str(folder / "rows")


def stream(sources: Any, **settings: Any) -> StreamDataset:
    return open_stream(sources, **{"size": SIZE, "transform": eval_transform(SIZE, HALF, HALF), "seed": 0, **settings})


def numbers(images: Iterable[torch.Tensor]) -> list[int]:
    return [round((float(image.mean()) + 1) * 127.5) for item in images for image in item.reshape(-1, 3, SIZE, SIZE)]


def run(data: StreamDataset, epochs: Iterable[int], workers: int = 0) -> list[list[int]]:
    loader = DataLoader(data, 2, num_workers=workers, persistent_workers=workers > 0)
    return [numbers(loader) for epoch in epochs if data.set_epoch(epoch) is None]


@pytest.mark.parametrize("make", [make_shards, make_rows])
def test_an_epoch_is_every_image_once_in_an_order_of_seed_and_epoch(tmp_path: Path, make: Any) -> None:
    sources = make(tmp_path, 8, 4, 12)
    data = stream(sources)
    assert (data.count, len(data)) == (24, 24)
    first, second = run(data, range(2))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second != sorted(second)
    assert run(stream(sources), [1]) == [second]  # without the epoch before it
    assert run(stream(sources, seed=1), [0]) != [first]
    clean = sample_stream(data, 5)
    assert (clean.shape, clean.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    assert np.array_equal(sample_stream(stream(sources), 5), clean)


@pytest.mark.parametrize("make", [make_shards, make_rows])
def test_ranks_and_workers_get_disjoint_shards(tmp_path: Path, make: Any) -> None:
    sources = make(tmp_path, *[6] * 4)
    seen: list[int] = []
    for rank in range(2):
        data = stream(sources, rank=rank, world_size=2)
        running = run(data, range(2), workers=2)
        assert [len(epoch) for epoch in running] == [12, 12]
        assert running == [run(data, [epoch], workers=2)[0] for epoch in range(2)]  # persistent workers hear of it
        seen += running[1]
    assert sorted(seen) == list(range(24))


def test_an_epoch_of_another_length_is_a_part_or_several_passes(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 5, 5)
    part, several = run(stream(shards, epoch_images=4), [0])[0], run(stream(shards, epoch_images=23), [0])[0]
    assert (len(set(part)), len(several)) == (4, 23)
    assert sorted(several[:10]) == sorted(several[10:20]) == list(range(10))
    assert several[:10] != several[10:20]


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_left_out_and_listed(tmp_path: Path, workers: int) -> None:
    shards = make_shards(tmp_path, 4, 4, 4)
    make_tar(tmp_path / "train-003.tar", {"good.png": picture(100), "half.png": picture(1)[:60], "._good.png": b"?"})
    cut = tmp_path / "train-002.tar"
    cut.write_bytes(cut.read_bytes()[: 512 * 5 + 30])  # breaks off within the third picture
    (tmp_path / "train-004.tar").write_bytes(b"no archive at all")
    data = stream(shards, epoch_images=22)
    assert set(run(data, [0], workers)[0]) == {*range(10), 100}
    reasons = {str(name): reason for name, reason in data.failures}
    assert set(reasons) == {f"{tmp_path}/train-00{end}" for end in ("2.tar", "3.tar/half.png", "4.tar")}
    skipped = SkippedFiles()
    assert stream(shards, skipped=skipped).count == 10  # from the headers
    assert [path.name for path, _ in skipped.files] == ["train-002.tar", "train-004.tar"]


def test_damaged_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    cells = [{"bytes": picture(7), "path": None}, None, {"bytes": b"no picture", "path": "x.jpg"}]
    cells.append({"bytes": None, "path": "/etc/passwd"})
    parquet.write_table(pa.table({"image": cells, "thumb": cells}), tmp_path / "a.parquet")
    data = stream(f"{tmp_path / 'a.parquet'}?column=image", epoch_images=2)
    assert numbers(data) == [7, 7]
    assert sorted(name.name for name, _ in data.failures) == ["row-1", "row-2", "row-3"]


def test_shards_without_images_are_an_error_and_no_endless_search(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"a.png": b"no picture"})
    data = stream(str(tmp_path / "a.tar"), epoch_images=10)
    with pytest.raises(SegaeError, match=r"a\.png"):
        list(data)
    with pytest.raises(SegaeError, match=r"a\.tar"):
        sample_stream(data, 1)


COMMANDS = "pipe:X #.tar|{{pipe:X #,a}}.tar|PIPE:X;.tar|a.tar::pipe:X #.tar".replace("X", "touch {}/ran").split("|")
OTHERS = ["http://host/a.tar", "file:///etc/a.tar", "fd:3", "-", "/dev/stdin.tar", "s3://bucket/a.tar", "scp:h:a"]


@pytest.mark.parametrize("source", [*COMMANDS, *OTHERS])
def test_only_paths_https_and_the_hub_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr("subprocess.Popen", refuse)
    monkeypatch.setattr(sys.modules["webdataset.gopen"], "Popen", refuse)
    source = source.format(tmp_path)
    for given in (source, [source], Path(source)):
        with pytest.raises(SegaeError, match="sources"):
            list(stream(given, epoch_images=1))
    assert not (tmp_path / "ran").exists()
    assert is_stream(source) or ":" not in source[1:9]  # so that whoever opens it refuses it


def test_a_file_named_like_a_command_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_tar(Path("pipe:touch ran #.tar"), {"a.png": picture(5)})
    assert numbers(stream("./pipe*.tar")) == [5]
    assert not Path("ran").exists()


def test_an_address_is_fetched_without_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def note(command: Any, **options: Any) -> None:
        started.append((command, options.get("shell", False)))
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["webdataset.gopen"], "Popen", note)
    data = stream(Path("https://host/a-{1..2}.tar"), epoch_images=2)  # a Path has lost a slash
    assert data.sources == ("https://host/a-1.tar", "https://host/a-2.tar")
    with pytest.raises(SegaeError, match="no network"):
        list(data)
    assert {(command[-1], shell) for command, shell in started} == {(source, False) for source in data.sources}


def test_what_counts_as_a_stream(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 2)
    (tmp_path / "photos").mkdir()
    assert all(map(is_stream, ("a.tar", rows, f"{rows}?column=picture", Path("hf://owner/name?split=train"))))
    assert is_stream([tmp_path / "photos", Path("a.tar")])
    assert not any(map(is_stream, (tmp_path / "photos", "x" * 5000, "C:/photos", [])))


@pytest.mark.parametrize(
    ("sources", "settings", "words"),
    [
        ("{}/train-007.tar", {}, "train-007"),
        (["{}/train-000.tar", "{}"], {}, "sources"),
        ("{}/rows?column=label", {}, "column.*label"),
        ("{}/rows?split=nope", {}, "nope"),
        ("{}/gone.parquet", {}, "gone"),
        ("{}/train-000.tar", {"world_size": 2}, "world_size.*2"),
        ("{}/train-000.tar", {"epoch_images": 0}, "epoch_images.*0"),
        ("https://host/a.tar", {}, "epoch_images"),
    ],
)
def test_wrong_use_names_the_argument(tmp_path: Path, sources: Any, settings: dict, words: str) -> None:
    make_shards(tmp_path, 2)
    make_rows(tmp_path, 2)
    given = [source.format(tmp_path) for source in ([sources] if isinstance(sources, str) else sources)]
    with pytest.raises(SegaeError, match=words):
        stream(given, **settings)
