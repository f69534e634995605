"""The main path as a user types it, on drawn pets, with a tiny encoder."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image

from segae.cli import main
from segae.models.weights import read_weights
from segae.training.schedule import PROTOCOLS

TINY = ["--encoder", "test_resnet", "--image-size", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    amounts = ["--train", "20", "--test", "8", "--unlabelled", "12", "--size", "64"]
    main(["data", "drawn", "--root", str(root / "pets"), *amounts])
    return root / "pets"


@pytest.fixture(scope="module")
def pretrained(pets, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "run"
    main(["pretrain", "--data", str(pets), "--out", str(out), "--objective", "denoise", "--epochs", "2", *TINY])
    return out


@pytest.fixture(scope="module")
def segmented(pets, pretrained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("segmented") / "run"
    init = str(pretrained / "encoder.safetensors")
    main(
        ["segment", "--data", str(pets), "--out", str(out), "--init", init, "--encoder", "test_resnet", "--epochs", "2"]
    )
    return out


def is_picture(path: Path) -> bool:
    return np.asarray(Image.open(path).convert("RGB")).std() > 5


def test_pretraining_leaves_everything_a_run_folder_should_hold(pets, pretrained):
    description = json.loads((pretrained / "encoder.json").read_text())
    assert description["init"] == "ae:denoise"
    assert description["image_size"] == 64
    past = description["pretraining"]
    assert past["images"] == 32  # 20 training and 12 unlabelled ones: none of the test split
    assert 0 < past["images_seen"] <= 2 * 32
    resolved = json.loads((pretrained / "config.json").read_text())
    assert (resolved["noise_sigma"], resolved["patch"]) == (0.5, None)  # what the objective uses
    with (pretrained / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    assert is_picture(pretrained / "curves.png")
    assert is_picture(pretrained / "reconstructions.png")


def test_no_test_image_is_ever_seen_in_pretraining(pets, tmp_path):
    from segae.data.pretraining import find_pretraining_images
    from segae.errors import SegaeError

    test = {line.split()[0] for line in (pets / "annotations" / "test.txt").read_text().splitlines()}
    for roots in ([pets], [pets / "images"], [pets / "images", pets / "unlabelled"]):
        assert not test & {path.stem for path in find_pretraining_images(roots)}
    copies = tmp_path / "more"
    copies.mkdir()
    name = sorted(test)[0]
    (copies / "harmless name.jpg").write_bytes((pets / "images" / f"{name}.jpg").read_bytes())
    assert copies / "harmless name.jpg" not in find_pretraining_images([pets, copies])
    assert not test & {path.stem for path in find_pretraining_images([pets.parent])}
    with pytest.raises(SegaeError, match="test split"):
        find_pretraining_images([pets / "images" / f"{name}.jpg"])


def test_no_test_image_is_seen_behind_links_or_without_its_trimap(pets, tmp_path):
    from segae.data.pretraining import find_pretraining_images

    test = {line.split()[0] for line in (pets / "annotations" / "test.txt").read_text().splitlines()}
    linked, files = tmp_path / "linked", tmp_path / "files"
    for root in (linked, files):
        shutil.copytree(pets / "annotations", root / "annotations")
    (linked / "images").symlink_to(pets / "images")
    (files / "images").mkdir()
    for path in (pets / "images").iterdir():
        (files / "images" / path.name).symlink_to(path)
    (files / "annotations" / "trimaps" / f"{min(test)}.png").unlink()
    store = tmp_path / "store"
    shutil.move(shutil.copytree(pets / "images", tmp_path / "copy"), store)
    (linked / "images").unlink()
    (linked / "images").symlink_to(store)
    for root in (linked, files):
        found = {path.stem for path in find_pretraining_images([root])}
        assert found
        assert not test & found


def test_the_encoder_file_starts_the_segmenter(pretrained, segmented):
    details = json.loads((segmented / "metrics.json").read_text())
    assert details["init"] == "ae:denoise"
    assert details["image_size"] == 64  # from the file: none was asked for
    config = json.loads((segmented / "config.json").read_text())
    assert config["lr_ratio"] == details["lr_ratio"] == PROTOCOLS["autoencoder"].lr_ratio  # as it was resolved
    assert 10 <= details["labels"] < 20  # the others are for validation
    with (segmented / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["phase"] for row in rows] == ["frozen", "full", "full"]
    assert all(0 <= float(row["miou"]) <= 1 for row in rows)
    assert is_picture(segmented / "sheet.png")


def test_the_encoder_file_in_plain_timm_and_in_smp(pretrained):
    state = safetensors.torch.load_file(pretrained / "encoder.safetensors")
    images = torch.randn(2, 3, 64, 64)
    unet = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3).eval()
    unet.encoder.load_state_dict(state, strict=True)
    plain = timm.create_model("test_resnet", features_only=True, pretrained=False).eval()
    plain.load_state_dict({key.removeprefix("model."): value for key, value in state.items()}, strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(plain(images)[-1], unet.encoder(images)[-1])


def test_evaluate_and_predict(pets, segmented, tmp_path, capsys):
    main(
        ["evaluate", "--model", str(segmented / "model.safetensors"), "--data", str(pets), "--out", str(tmp_path / "e")]
    )
    assert "miou" in capsys.readouterr().out
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())
    main(["predict", "--model", str(segmented / "model.safetensors"), "--input", str(pets / "unlabelled"),
          "--out", str(tmp_path / "p"), "--probabilities"])  # fmt: skip
    assert len(list((tmp_path / "p").glob("*_overlay.jpg"))) == 12


def test_a_killed_pretraining_goes_on_to_the_same_encoder(pets, pretrained, tmp_path):
    """The process is really killed, after its first epoch."""
    out = tmp_path / "killed"
    words = ["pretrain", "--data", str(pets), "--out", str(out), "--objective", "denoise", "--epochs", "2", *TINY]
    code = "import sys; from segae.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "resume.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "resume.pt").exists()
    main([*words, "--resume"])
    one, other = (read_weights(folder / "encoder.safetensors")[0] for folder in (pretrained, out))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_compare_writes_one_row_for_each_run_and_goes_on_where_it_stopped(pets, tmp_path, capsys):
    words = ["compare", "--data", str(pets), "--out", str(tmp_path / "c"), "--pretrain-epochs", "1", "--epochs", "1"]
    words += TINY
    first = [*words, "--arms", "random", "ae:denoise", "--seeds", "0"]
    main(first)
    table = tmp_path / "c" / "rows.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["init"] for row in rows] == ["random", "ae:denoise"]
    assert {row["split"] for row in rows} == {"test"}
    assert [row["pretrain_objective"] for row in rows] == ["", "denoise"]
    assert all(0 < float(row["miou"]) < 1 and float(row["seconds"]) > 0 and row["versions"] for row in rows)
    with gzip.open(tmp_path / "c" / "per_image" / "compare.csv.gz", "rt") as file:
        images = list(csv.DictReader(file))
    assert len(images) == 2 * 8
    for row in rows:
        own = [float(line["miou"]) for line in images if line["init"] == row["init"]]
        assert sum(own) / 8 == pytest.approx(float(row["per_image_miou"]), abs=1e-5)
    before = table.stat().st_mtime_ns
    capsys.readouterr()
    main(first)
    assert table.stat().st_mtime_ns == before
    assert "frozen" not in capsys.readouterr().out
    for other in (["--labels", "9"], ["--lr", "0.01"], ["--split", "val"], ["--seeds", "1"]):
        capsys.readouterr()
        main([*words, "--arms", "random", "--seeds", "0", *other])
        assert "frozen" in capsys.readouterr().out, f"{other} is another run and was taken for a finished one"
    main([*words, "--arms", "ae:denoise", "--seeds", "0", "--pretrain-epochs", "2"])
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["settings"] for row in rows}) == len(rows) == 7
    assert [row["pretrain_epochs"] for row in rows if row["init"] == "ae:denoise"] == ["1", "2"]


def test_quickstart_on_a_users_own_folder(pets, tmp_path):
    """Two classes, other names, masks of 0 and 255, one unreadable file, unlabelled images beside."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "unlabelled").mkdir()
    for index, path in enumerate(sorted((pets / "images").glob("*.jpg"))[:16]):
        Image.open(path).save(root / "images" / f"shot {index}.png")
        trimap = np.asarray(Image.open(pets / "annotations" / "trimaps" / f"{path.stem}.png"))
        Image.fromarray(np.where(trimap == 1, 255, 0).astype(np.uint8)).save(root / "masks" / f"shot {index}.png")
    for path in sorted((pets / "unlabelled").glob("*.jpg"))[:6]:
        (root / "unlabelled" / path.name).write_bytes(path.read_bytes())
    (root / "unlabelled" / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "q"
    main(["quickstart", "--data", str(root), "--out", str(out), "--pretrain-images", "20", *TINY])
    html = (out / "index.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert 'src="http' not in html
    assert "class_255" in html
    assert "ImageNet arm is left out" in html  # test_resnet's weights cannot be had without the hub
    assert "drawn pets" not in html
    quarantine = next(out.rglob("pretrain*/quarantine.csv")).read_text()
    assert "broken.jpg" in quarantine


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_pipeline_on_a_gpu_comes_near_the_one_on_a_cpu(pets, pretrained, tmp_path):
    """bfloat16 and another order of sums: near, not equal."""
    words = [*TINY[:-1], "cuda"]
    main(["pretrain", "--data", str(pets), "--out", str(tmp_path / "p"), "--epochs", "2", *words])
    init = str(tmp_path / "p" / "encoder.safetensors")
    main(["segment", "--data", str(pets), "--out", str(tmp_path / "s"), "--init", init, "--epochs", "2", *words])
    losses = []
    for folder in (pretrained, tmp_path / "p", tmp_path / "s"):
        with (folder / "log.csv").open() as file:
            losses.append([float(row["train_loss"]) for row in csv.DictReader(file)])
    assert losses[1] == pytest.approx(losses[0], rel=0.25)
    assert losses[2][-1] < losses[2][0]
