"""The galleries show the images they say, with what each arm's own model predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segae.bench.pictures import galleries, gallery_figure, run_folders
from segae.bench.report import write_report
from segae.bench.report_arms import sections_of
from segae.data.cache import cache_pairs
from segae.data.dataset import SegmentationData
from segae.data.drawn_pets import draw_pets
from segae.data.open import open_dataset
from segae.data.quarantine import Quarantine
from segae.errors import SegaeError
from segae.models.encoder import create_encoder
from segae.models.segmenter import SegmenterDescription, create_segmenter, save_segmenter
from segae.tasks.rows import COLUMNS, read_rows, write_rows
from segae.training.colour import colour_mask

SIZE = 64
ARMS = {"random": 0, "imagenet": 1, "ae:denoise": 2}  # init, and the class that its model always predicts


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentationData]:
    """Rows, run folders below runs/, and a data set: every model predicts one class everywhere."""
    root = tmp_path_factory.mktemp("benchmark")
    data = open_dataset(draw_pets(root / "drawn", train=2, test=8, size=SIZE, progress=False))
    rows = []
    for init, constant in ARMS.items():
        settings = f"{constant:010x}"
        folder = root / "runs" / "bench" / f"test-{init.replace(':', '-')}-0-{settings}"
        _save_constant(folder / "model.safetensors", data, constant)
        scores = [(pair.name, 0.1 * constant + 0.01 * place) for place, pair in enumerate(data.splits["test"])]
        write_rows(folder / "test" / "per_image.csv", [{"name": name, "miou": value} for name, value in scores])
        row = dict.fromkeys(COLUMNS, "") | {"experiment": "bench", "dataset": data.name, "split": "test", "labels": 2}
        row |= {"encoder": "test_resnet", "decoder": "unet", "init": init, "transfer": "encoder", "image_size": SIZE}
        row |= {"freeze_epochs": 1, "epochs": 3, "seed": 0, "miou": 0.1, "iou_pet": 0.1, "settings": settings}
        row |= {"seconds": 5, "lr": 0.004, "lr_ratio": 1.0, "bn_mode": "strict", "warmup": 0.3, "recalibrate": 0}
        rows.append(row)
    write_rows(root / "bench.csv", rows)
    return root, data


def _save_constant(path: Path, data: SegmentationData, constant: int) -> None:
    encoder, about = create_encoder("test_resnet")
    model = create_segmenter(encoder, "test_resnet", "unet", len(data.classes)).eval()
    head = model.segmentation_head[0]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[constant] = 1
    described = SegmenterDescription(
        encoder="test_resnet",
        decoder="unet",
        classes=data.classes,
        palette=data.palette,
        mask_values=data.mask_values,
        in_channels=3,
        mean=about.mean,
        std=about.std,
        image_size=SIZE,
        details={},
    )
    save_segmenter(path, model, described)


def test_every_arm_shows_its_own_prediction_beside_image_and_truth(finished):
    root, data = finished
    (section,) = sections_of(read_rows(root / "bench.csv"))
    worst, best, differing, failures = galleries(section.arms, data, run_folders(root / "runs"))
    names = [pair.name for pair in data.splits["test"]]
    assert [name for name, _ in worst.rows] == names[:4]
    assert [name for name, _ in best.rows] == names[:3:-1]
    assert len(differing.rows) == 4
    cached = cache_pairs(data.splits["test"], SIZE, data.mask_values, Quarantine(), progress=False)
    for name, (image, truth, *predictions) in worst.rows:
        place = [pair.name for pair in cached.pairs].index(name)
        np.testing.assert_array_equal(image.pixels, cached.images[place])
        np.testing.assert_array_equal(truth.pixels, colour_mask(cached.masks[place], data.palette))
        for tile, constant in zip(predictions, ARMS.values(), strict=True):
            assert (tile.pixels == data.palette[constant]).all()
    assert [name.partition(": ")[2] for name, _ in failures.rows] == [*names[:2]] * 3


def test_the_most_frequent_mistake_is_named_with_its_share(finished):
    root, data = finished
    (section,) = sections_of(read_rows(root / "bench.csv"))
    failures = galleries(section.arms, data, run_folders(root / "runs"))[-1]
    _, (*_, wrong) = failures.rows[0]  # this arm predicts the first class everywhere
    (mask,) = cache_pairs(data.splits["test"][:1], SIZE, data.mask_values, Quarantine(), progress=False).masks
    counts = np.bincount(mask.ravel(), minlength=len(data.classes))
    counts[0] = 0
    true = data.classes[int(counts.argmax())]
    assert wrong.label == f"{true} taken for {data.classes[0]}: {100 * counts.max() / mask.size:.0f} % of the image"
    assert ((wrong.pixels == (213, 94, 0)).all(axis=-1) == (mask != 0)).all()


def test_the_page_has_the_galleries(finished):
    root, data = finished
    out = write_report(root / "bench.csv", root / "page.html", data=data.root, runs=root / "runs")
    text = out.read_text()
    assert text.count("data:image/jpeg") == 3 * 4 + 2 * 6  # three galleries, and image and wrong pixels of failures
    assert "Worst images" in text
    assert out.stat().st_size < 3e6


def test_a_gallery_is_a_figure_too(finished):
    root, data = finished
    (section,) = sections_of(read_rows(root / "bench.csv"))
    worst = galleries(section.arms, data, run_folders(root / "runs"))[0]
    figure = gallery_figure(worst)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    tiles = [tile for _, row in worst.rows for tile in row]
    assert len(shown) == len(tiles) == 4 * 5
    for drawn, tile in zip(shown, tiles, strict=True):
        np.testing.assert_array_equal(drawn, tile.pixels)


def test_a_missing_run_is_named_and_costs_only_the_pictures(finished, tmp_path):
    root, data = finished
    (section,) = sections_of(read_rows(root / "bench.csv"))
    with pytest.raises(SegaeError, match=r"no run folder of random, 2 labels, seed 0 .*0000000000"):
        galleries(section.arms, data, {})
    out = write_report(root / "bench.csv", tmp_path / "page.html", data=[data.root], runs=tmp_path)
    assert "No pictures: no run folder of random" in out.read_text()


def test_images_of_another_data_set_are_refused(finished, tmp_path):
    root, _ = finished
    (section,) = sections_of(read_rows(root / "bench.csv"))
    other = open_dataset(draw_pets(tmp_path / "drawn", train=2, test=1, size=SIZE, progress=False))
    with pytest.raises(SegaeError, match="are not those of"):
        galleries(section.arms, other, run_folders(root / "runs"))
