"""Streaming rows of parquet files: every image once, the same order again, and on from where it stopped."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from segae.data.failures import SharedFailures
from segae.data.shards import ShardImages
from segae.data.table_shards import TableShards, is_table, open_table
from segae.data.transforms import eval_transform
from segae.errors import SegaeError

pytest.importorskip("datasets", reason="pip install 'segae[streaming]'")
from pyarrow import parquet, table

HALF = (0.5, 0.5, 0.5)
SIZE = 16
STILL = eval_transform(SIZE, HALF, HALF)


@pytest.fixture(autouse=True)
def private_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library locks a file in its cache, also where it only streams."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library-cache")


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (number,) * 3).save(file, "PNG")
    return file.getvalue()


def make_files(folder: Path, *counts: int, group: int = 100, split: str = "train") -> Path:
    """Files of so many pictures, numbered through by their grey level."""
    folder.mkdir(exist_ok=True)
    number = 0
    for file, count in enumerate(counts):
        cells = [{"bytes": picture(number + place), "path": "a.png"} for place in range(count)]
        rows = table({"image": cells, "label": [3] * count})
        parquet.write_table(rows, folder / f"{split}-{file:05d}-of-{len(counts):05d}.parquet", row_group_size=group)
        number += count
    return folder


def stream(source: TableShards, **settings: Any) -> ShardImages:
    return ShardImages(source, SIZE, STILL, 0, **{"shuffle_buffer": 5, **settings})


def numbers(images: Any) -> list[int]:
    return [round((float(image.mean()) + 1) * 127.5) for item in images for image in item.reshape(-1, 3, SIZE, SIZE)]


def test_every_image_comes_once_over_ranks_and_workers(tmp_path: Path) -> None:
    source = open_table(str(make_files(tmp_path / "rows", 7, 3, 11, 5)))
    assert source.count() == 26
    seen: list[int] = []
    for rank in range(2):
        seen += numbers(DataLoader(stream(source, rank=rank, world=2), 2, num_workers=2))
    assert sorted(seen) == list(range(26))


def test_sweeps_are_shuffled_and_the_same_again(tmp_path: Path) -> None:
    data = stream(open_table(str(make_files(tmp_path / "rows", 20, 20))))
    first = numbers(data)
    data.set_epoch(1)
    second = numbers(data)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second != sorted(first) != first
    data.set_epoch(0)
    assert numbers(data) == first


@pytest.mark.parametrize("stopped_after", [1, 6, 13, 17])
def test_a_resumed_stream_repeats_nothing_and_leaves_nothing_out(tmp_path: Path, stopped_after: int) -> None:
    place = str(make_files(tmp_path / "rows", 9, 8, 4, group=4))
    whole = numbers(stream(open_table(place)))
    data, seen = stream(open_table(place)), []
    for image in data:
        seen += numbers([image])
        if len(seen) == stopped_after:
            break
    state = json.loads(json.dumps(data.state_dict()))
    resumed = stream(open_table(place))
    resumed.load_state_dict(state)
    assert seen + numbers(resumed) == whole


def test_a_position_in_other_files_is_refused(tmp_path: Path) -> None:
    state = stream(open_table(str(make_files(tmp_path / "one", 4)))).state_dict()
    other = stream(open_table(str(make_files(tmp_path / "other", 4))))
    with pytest.raises(SegaeError, match="of shards"):
        other.load_state_dict(state)


def test_row_groups_of_few_files_are_shards(tmp_path: Path) -> None:
    source = open_table(str(make_files(tmp_path / "rows", 10, group=4) / "train-00000-of-00001.parquet"))
    assert len(source.names) == len(set(source.names)) == 3
    found = [[cell for _, cell in source.read(shard, 0, SharedFailures())] for shard in range(3)]
    assert [len(cells) for cells in found] == [4, 4, 2]
    assert [cell for cells in found for cell in cells] == [picture(number) for number in range(10)]


@pytest.mark.parametrize("start", [0, 3, 17, 18])
def test_a_shard_is_read_from_any_row_on_also_in_a_worker(
    tmp_path: Path, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_table(str(make_files(tmp_path / "rows", 18, 18)))
    # what the library looks at to hand out a share of the shard alone
    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: SimpleNamespace(id=1, num_workers=2))
    monkeypatch.setattr("segae.data.table_shards.get_worker_info", lambda: SimpleNamespace(id=1, num_workers=2))
    read = list(source.read(1, start, SharedFailures()))
    assert read == [(f"row-{number}", picture(18 + number)) for number in range(start, 18)]


def test_what_cannot_be_read_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    make_files(folder, 3)
    (folder / "there.png").write_bytes(picture(9))
    cells = [{"bytes": picture(7), "path": None}, None, {"bytes": b"no picture", "path": "x.jpg"}]
    cells += [{"bytes": None, "path": str(folder / name)} for name in ("there.png", "gone.png")]
    parquet.write_table(table({"image": cells, "label": [3] * 5}), folder / "train-00001.parquet")
    (folder / "train-00002.parquet").write_bytes((folder / "train-00001.parquet").read_bytes())
    data = stream(open_table(f"{folder}?column=image"))
    (folder / "train-00002.parquet").write_bytes(b"broken after it was found" * 50)
    assert sorted(numbers(data)) == [0, 1, 2, 7, 9]
    reasons = dict(data.failures)
    assert len(reasons) == 4
    assert "no image" in reasons[next(name for name in reasons if name.endswith("row-1"))]
    assert "image format" in reasons[next(name for name in reasons if name.endswith("row-2"))]
    assert "gone.png" in reasons[next(name for name in reasons if name.endswith("row-4"))]
    assert any("row" in reason and "row-" not in name for name, reason in reasons.items())


def test_column_and_split_are_chosen_or_asked_for(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "rows", 2)
    make_files(folder, 3, split="test")
    assert open_table(str(folder)).count() == 2
    assert open_table(f"{folder}?split=test").count() == 3
    parquet.write_table(table({"small": [picture(1)], "large": [picture(2)], "label": [0]}), tmp_path / "two.parquet")
    chosen = open_table(f"{tmp_path / 'two.parquet'}?column=large")
    assert list(chosen.read(0, 0, SharedFailures())) == [("row-0", picture(2))]
    with pytest.raises(SegaeError, match=r"no column is named.*small, large.*\?column=small"):
        open_table(str(tmp_path / "two.parquet"))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("?column=label", "the column is 'label'"),
        ("?split=nope", "nope.*train"),
        ("?colum=image", "'colum'.*column"),
        ("/gone.parquet", "no such file"),
    ],
)
def test_what_cannot_be_opened_says_what_is_wanted(tmp_path: Path, asked: str, words: str) -> None:
    with pytest.raises(SegaeError, match=words):
        open_table(f"{make_files(tmp_path / 'rows', 2)}{asked}")


def test_what_counts_as_rows_of_images(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "rows", 1)
    (tmp_path / "hub").mkdir()
    make_files(tmp_path / "hub" / "data", 1)
    assert all(map(is_table, (str(folder), f"{folder}?column=image", "a.parquet", str(tmp_path / "hub"))))
    assert is_table("hf://owner/name?split=train")
    assert not any(map(is_table, (str(tmp_path), "hf://owner/name/train-0.tar", "s3://place/name-0.tar")))


def test_a_stream_without_a_number_of_images_asks_for_it() -> None:
    with pytest.raises(SegaeError, match="--epoch-images"):
        TableShards(("hf://a", "hf://b"), None, "image", None).count()
