"""Fine-tuning on labeled shards: pairs are found in tar files and tables, classes in their masks; a training runs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segae
from segae import cli, data
from segae.data.streaming import open_stream
from tests.fabricate import drawings, make_pets, make_shard

pytest.importorskip("webdataset.gopen", reason="pip install 'segae[streaming]'")
pytest.importorskip("datasets", reason="pip install 'segae[streaming]'")
pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

SMALL: dict[str, Any] = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "device": "cpu", "threads": 1}
SMALL |= {"decoder": "linear", "epochs": 1, "workers": 0, "overwrite": True}
LAYOUTS = ("{}.mask.png", "{}_mask.png", "{}.png", "masks first {}_mask.png", "rows")


@pytest.fixture(autouse=True)
def private_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "library-cache")


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def make_labeled(folder: Path, layout: str, counts: tuple[int, ...] = (5, 3), values: tuple[int, ...] = (0, 1)) -> str:
    """Shards of drawings with masks; the corner of each mask is 255. Names have dots, as cat.0.jpg."""
    folder.mkdir(parents=True)
    pictures = list(drawings(sum(counts), 32, 2, seed=7))
    for number, (_, mask) in enumerate(pictures):
        mask[:] = np.array(values, np.uint8)[mask]
        mask[0, : 1 + number] = 255
    for shard, end in enumerate(np.cumsum(counts)):
        chosen = range(end - counts[shard], end)
        if layout == "rows":
            cells = [[{"bytes": encoded(pictures[number][part]), "path": None} for number in chosen] for part in (0, 1)]
            table = pa.table({"picture": cells[0], "annotation": cells[1], "label_id": [*chosen]})
            parquet.write_table(table, folder / f"train-{shard}.parquet")
            continue
        with tarfile.open(folder / f"train-{shard}.tar", "w") as archive:
            for number in chosen:
                image, mask = pictures[number]
                name = layout.removeprefix("masks first ").format(f"set/cat.{number}")
                pair = [(f"set/cat.{number}.jpg", encoded(image, "JPEG")), (name, encoded(mask))]
                for member, content in pair if layout == layout.removeprefix("masks first ") else pair[::-1]:
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(folder) if layout == "rows" else str(folder / "*.tar")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_comes_with_its_own_mask(layout: str, tmp_path: Path) -> None:
    dataset: Any = data.open_labeled_shards(make_labeled(tmp_path / "shards", layout))
    assert (dataset.classes, dataset.mask_values, dataset.ignore_values) == (("class_0", "class_1"), (0, 1), (255,))
    plain = data.eval_transform(32, (0.5,) * 3, (0.5,) * 3)
    coding = {"mask_values": dataset.mask_values, "ignore_values": dataset.ignore_values}
    stream = open_stream(dataset.source, size=32, transform=plain, seed=0, **coding)
    assert len(stream) == 8
    truths = list(drawings(8, 32, 2, seed=7))
    seen = []
    for image, mask in stream:
        number = int((mask[0] == 255).sum()) - 1  # as the corner says
        seen.append(number)
        truth = truths[number][1].copy()
        truth[0, : 1 + number] = 255
        assert np.array_equal(mask.numpy(), truth)
        assert np.abs((image.numpy().transpose(1, 2, 0) + 1) * 127.5 - truths[number][0]).mean() < 12
    assert sorted(seen) == list(range(8))
    assert data.sample_pairs(stream, 3)[1].shape == (3, 32, 32)


def test_a_training_on_shards_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = make_labeled(tmp_path / "train", "{}.mask.png", values=(0, 7))
    valid = make_labeled(tmp_path / "valid", "{}.mask.png", (4,), values=(0, 7))
    words = ["--encoder", "test_resnet", "--image-size", "32", "--batch-size", "4", "--device", "cpu", "--threads", "1"]
    words += ["--decoder", "linear", "--epochs", "1", "--epoch-images", "12", "--val-shards", valid, "--workers", "0"]
    cli.main(
        ["finetune", train, "--classes", "ground", "thing", "--ignore", "255", *words, "--out", str(tmp_path / "run")]
    )
    assert "12 training and 4 validation images" in capsys.readouterr().out
    model = segae.load_segmenter(tmp_path / "run" / "model.safetensors")
    assert (model.info.classes, model.info.mask_values) == (("ground", "thing"), (0, 7))
    assert model.info.training["dataset"] == "train"
    assert model.info.training["training_images"] == 12
    assert (tmp_path / "run" / "sheet.png").is_file()


def test_without_validation_shards_and_with_all_settings_of_the_head(tmp_path: Path) -> None:
    train = make_labeled(tmp_path / "train", "rows")
    more: dict[str, Any] = {
        "layout": "shards",
        "balance_classes": True,
        "lpft_head": True,
        "recalibrate": True,
        "decoder": "unet",
    }
    result = segae.finetune(train, out=tmp_path / "run", **(SMALL | more))
    assert result.scores is None
    assert result.log["images"].tolist() == [8, 8]
    merged = segae.finetune(train, out=tmp_path / "other", ignore=("class_1",), loss="dice", layout="shards", **SMALL)
    assert merged.model.info.classes == ("class_0",)


@pytest.mark.usefixtures("without_pictures")
def test_a_resumed_training_equals_one_without_interruption(tmp_path: Path, interrupt: Callable[[int], None]) -> None:
    train = make_labeled(tmp_path / "train", "{}.png")
    more: dict[str, Any] = {**SMALL, "epochs": 2, "epoch_images": 8, "overwrite": False, "freeze_epochs": 0}
    whole = segae.finetune(train, out=tmp_path / "whole", **more)
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        segae.finetune(train, out=tmp_path / "parts", **more)
    resumed = segae.finetune(train, out=tmp_path / "parts", resume=True, **more)
    assert resumed.log["train_loss"].tolist() == whole.log["train_loss"].tolist()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    labeled = make_labeled(tmp_path / "train", "{}.png")
    for settings, named in (
        ({"labels": 3}, "labels"),
        ({"cache": "disk"}, "cache"),
        ({"task": "classify"}, "task is classify"),
        ({"classes": ("a",)}, "255|value"),
    ):
        with pytest.raises(segae.SegaeError, match=named):
            segae.finetune(labeled, out=tmp_path / "run", **(SMALL | settings))
    with pytest.raises(segae.DataError, match="masks"):
        segae.finetune(make_shard(tmp_path / "unlabeled.tar"), out=tmp_path / "run", **SMALL)
    with pytest.raises(segae.SegaeError, match="val_shards"):
        segae.finetune(make_pets(tmp_path / "pets"), out=tmp_path / "run", val_shards=labeled, **SMALL)
    with pytest.raises(segae.DataError, match="data must be"):
        segae.finetune(tmp_path / "nowhere" / "*.tar", out=tmp_path / "run", **SMALL)
    rows = make_labeled(tmp_path / "rows", "rows")
    with pytest.raises(segae.DataError, match="mask must be one of picture, annotation, got label_id"):
        segae.finetune(f"{rows}?mask=label_id", layout="shards", out=tmp_path / "run", **SMALL)


def test_an_image_without_a_mask_is_left_out_and_listed(tmp_path: Path) -> None:
    labeled = make_labeled(tmp_path / "train", "{}.png", (6,))
    with tarfile.open(tmp_path / "train" / "train-0.tar", "a") as archive:
        info = tarfile.TarInfo("set/lonely.jpg")
        info.size = len(content := encoded(np.zeros((32, 32, 3), np.uint8), "JPEG"))
        archive.addfile(info, io.BytesIO(content))
    segae.finetune(labeled, out=tmp_path / "run", epoch_images=8, **SMALL)
    assert "lonely.jpg,it has no mask" in (tmp_path / "run" / "skipped.csv").read_text()


def test_rows_without_types_are_read_as_a_data_set_too(tmp_path: Path) -> None:
    rows = make_labeled(tmp_path / "rows", "rows")  # as pandas writes them: bytes and a path
    dataset = segae.data.open_dataset(rows)
    assert sum(map(len, dataset.splits.values())) == 8
    assert dataset.classes == ("class_0", "class_1")
    with pytest.raises(segae.DataError, match="mask must be one of picture, annotation, got label_id"):
        segae.data.open_dataset(f"{rows}?mask=label_id")
