"""Augmentations by name are the same on every path, and one's own is applied, checked and noted."""

import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest
import torch

from segae import data
from segae._settings import AUGMENTATIONS
from segae.config import FinetuneSettings, PretrainSettings
from segae.data import torchvision_transforms, transforms
from segae.data.gpu import change_images, change_masks
from segae.errors import SegaeError

SIZE, DRAWS = 48, 200
ZERO, ONE = (0.0,) * 3, (1.0,) * 3
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture of middle grays with a disk right of the middle, and its mask."""
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE
    image = np.stack([90 + 50 * rows, 150 - 40 * columns, 100 + 30 * rows * columns], axis=-1)
    mask = ((rows - 0.45) ** 2 + (columns - 0.6) ** 2 < 0.05).astype(np.uint8)
    image[mask == 1] += (50, 20, -20)
    return image.astype(np.uint8), mask


def draw(transform: Any) -> list[dict[str, Any]]:
    image, mask = scene()
    drawn = []
    for seed in range(DRAWS):
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        drawn.append(transform(image=image, mask=mask))
    return drawn


def on_device(change: Any) -> list[dict[str, Any]]:
    """The same images as a batch of the GPU's path."""
    image, mask = scene()
    changes = None if change is None else change(DRAWS, torch.Generator().manual_seed(0))
    white, black = torch.full((3, 1, 1), 255.0), torch.zeros(3, 1, 1)
    images = torch.from_numpy(image).permute(2, 0, 1).expand(DRAWS, -1, -1, -1)
    found = change_images(images, changes, black, white)
    masks = change_masks(torch.from_numpy(mask).expand(DRAWS, -1, -1), changes)
    return [{"image": one, "mask": other} for one, other in zip(found, masks, strict=True)]


def describe(drawn: list[dict[str, Any]]) -> dict[str, float]:
    """Means and standard deviations over the draws of what an augmentation changes."""
    found: dict[str, list[float]] = {}
    axis = (torch.arange(SIZE) + 0.5) / SIZE
    for one in drawn:
        image, disk, counted = one["image"], one["mask"] == 1, one["mask"] != 255
        area = disk.float().mean()
        places = (disk.float().mean(0) * axis).mean() / area, (disk.float().mean(1) * axis).mean() / area
        levels = image[:, counted].mean(dim=1)
        sharpness = (image[:, :, 1:] - image[:, :, :-1]).abs().mean()
        numbers = {"area": area, "x": places[0], "y": places[1], "brightness": levels.mean(), "tint": levels.std()}
        for name, value in (numbers | {"sharpness": sharpness, "ignored": 1 - counted.float().mean()}).items():
            found.setdefault(name, []).append(float(value))
    means = {f"mean {name}": float(np.nanmean(values)) for name, values in found.items()}
    return means | {f"deviation of {name}": float(np.nanstd(values)) for name, values in found.items()}


PATHS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "finetune": lambda module, name: draw(module.train_transform(SIZE, ZERO, ONE, augment=name)),
    "pretrain": lambda module, name: draw(module.pretrain_transform(SIZE, ZERO, ONE, augment=name)),
    "no crop": lambda module, name: draw(module.pretrain_transform(SIZE, ZERO, ONE, crop=False, augment=name)),
}
CHANGES = {
    "finetune": data.FINETUNING_CHANGES,
    "pretrain": data.pretraining_changes(crop=True),
    "no crop": data.pretraining_changes(crop=False),
}


@pytest.mark.parametrize("task", PATHS)
def test_all_paths_change_images_alike(task: str) -> None:
    spread = {}
    for name in AUGMENTATIONS:
        usual = describe(PATHS[task](transforms, name))
        spread[name] = usual
        others = {"torchvision": PATHS[task](torchvision_transforms, name), "gpu": on_device(CHANGES[task][name])}
        for path, drawn in others.items():
            found = describe(drawn)
            for what in (key.removeprefix("mean ") for key in usual if key.startswith("mean ")):
                mean, deviation = usual[f"mean {what}"], usual[f"deviation of {what}"]
                # albumentations rounds shifts towards zero
                seen = found[f"mean {what}"] - mean, found[f"deviation of {what}"] - deviation
                assert abs(seen[0]) < 0.25 * deviation + 1e-3, f"{name} by {path}: {what}"
                assert abs(seen[1]) < 0.45 * deviation + 1e-3, f"{name} by {path}: {what}"
    assert max(value for what, value in spread["none"].items() if "deviation" in what) < 1e-6
    assert spread["light"]["deviation of x"] == pytest.approx(0.11, abs=0.01)  # 0.39 or 0.61
    assert spread["light"]["deviation of brightness"] < 1e-3
    for what in ("deviation of tint", *(["deviation of area"] if task != "no crop" else [])):
        assert spread["strong"][what] > 1.5 * spread["default"][what] + 1e-3
    assert (spread["strong"]["mean ignored"] > 0.005) == (task == "finetune")


@pytest.mark.parametrize("path", ["albumentations", "torchvision", "device"])
def test_a_hole_is_gray_in_the_image_and_ignored_in_the_mask(path: str) -> None:
    change = data.StrongChange(data.MildChange(probability=0), blur=0, color=0, hole=1)
    if path == "device":
        drawn = on_device(change)
    else:
        module: Any = transforms if path == "albumentations" else torchvision_transforms
        drawn = draw(module._transform("strong", {"strong": change}, SIZE, ZERO, ONE))
    shares, (image, _) = [], scene()
    for one in drawn:
        hole = one["mask"] == 255
        shares.append(float(hole.float().mean()))
        assert (one["image"][:, hole] == 0).all()
        assert (one["image"][:, ~hole] >= image.min() / 255 - 1e-6).all()
        rows, columns = hole.any(dim=1).sum(), hole.any(dim=0).sum()
        assert int(hole.sum()) == int(rows * columns)  # a rectangle
    assert min(shares) >= 0.08**2
    assert max(shares) <= 0.33**2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_strong_change_is_the_same_on_every_device_and_for_gray_images(device: str) -> None:
    image, mask = scene()
    batches = []
    for where, mean in (("cpu", MEAN), (device, MEAN), (device, (0.4,))):
        look = {"mean": mean, "std": (0.2,) * len(mean), "device": torch.device(where), "repeats": 40}
        images = np.repeat(image[None, ..., :1], 3, axis=3) if len(mean) == 1 else image[None]
        batches.append(data.GPUImageDataset(images, mask[None], data.StrongChange(), **look).__getitems__(range(40)))
    torch.testing.assert_close(batches[0][0], batches[1][0].cpu(), atol=1e-3, rtol=0)
    assert torch.equal(batches[0][1], batches[1][1].cpu())
    assert torch.equal(batches[0][1], batches[2][1].cpu())
    gray, labels = batches[2][0].cpu(), batches[2][1].cpu()
    assert gray.shape == (40, 1, SIZE, SIZE)
    assert (gray[:, 0][labels == 255].abs() < 1e-5).all()
    assert set(labels.unique().tolist()) == {0, 1, 255}


def test_a_blur_of_the_gpu_is_that_of_opencv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    sigmas = torch.tensor([0.0, 0.005, 0.01])
    changes = torch.tensor([[1.0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]]).repeat(3, 1)
    changes[:, 8] = sigmas
    zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    found = change_images(torch.from_numpy(image).permute(2, 0, 1).expand(3, -1, -1, -1), changes, zero, one)
    assert np.allclose(found[0].permute(1, 2, 0), image, atol=1e-2)
    for place in (1, 2):
        sigma = float(sigmas[place]) * SIZE
        expected = cv2.GaussianBlur(image.astype(np.float32), (5, 5), sigma, borderType=cv2.BORDER_REFLECT_101)
        assert np.abs(found[place].permute(1, 2, 0).numpy() - expected).max() < 1


def test_names_are_those_of_the_settings() -> None:
    assert tuple(data.FINETUNING_CHANGES) == AUGMENTATIONS
    assert data.train_transform is transforms.train_transform
    assert FinetuneSettings(augment={"transform": {}}).augment == '{"transform": {}}'  # inline in a file of settings
    for settings in (PretrainSettings, FinetuneSettings):
        assert settings().augment == settings(augment=True).augment == "default"
        assert settings(augment=False).augment == "none"


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (70, 90), (31, 60)])
def test_resizing_and_normalization_are_those_of_albumentations(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = generator.integers(0, 4, shape, dtype=np.uint8)
    for mean, std in ((MEAN, STD), ((0.4,), (0.2,))):
        (ours, theirs) = (
            module.eval_transform(SIZE, mean, std)(image=image, mask=mask)
            for module in (torchvision_transforms, transforms)
        )
        gray_level = torch.tensor([1 / 255 / value for value in std]).view(-1, 1, 1)
        assert ((ours["image"] - theirs["image"]).abs() <= 1.01 * gray_level).all()
        assert ours["image"].dtype == theirs["image"].dtype == torch.float32
        assert torch.equal(ours["mask"], theirs["mask"])
        assert torch.equal(torchvision_transforms.eval_transform(SIZE, mean, std)(image=image)["image"], ours["image"])


def test_torchvision_draws_from_the_given_state_alone() -> None:
    transform = torchvision_transforms.train_transform(SIZE, MEAN, STD, augment="strong")
    torch.manual_seed(0)
    expected, first = torch.rand(1), draw(transform)[7]["image"]
    torch.manual_seed(0)
    image, mask = scene()
    transform.set_random_state(np.random.default_rng(7), random.Random(7))
    again = transform(image=image, mask=mask)["image"]
    assert torch.equal(first, again)
    assert torch.equal(torch.rand(1), expected)  # the global generator is where it was


@pytest.fixture
def without_albumentations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give `segae.data` as it is imported where albumentations is not there."""
    monkeypatch.setitem(sys.modules, "albumentations", None)
    monkeypatch.delitem(sys.modules, "segae.data.transforms")
    package = importlib.reload(data)
    yield package
    monkeypatch.undo()
    importlib.reload(data)


def test_without_albumentations_torchvision_takes_its_place(without_albumentations: Any) -> None:
    assert without_albumentations.train_transform is torchvision_transforms.train_transform
    image, mask = scene()
    changed = without_albumentations.train_transform(SIZE, MEAN, STD, augment="strong")(image=image, mask=mask)
    assert (changed["image"].shape, changed["mask"].shape) == ((3, SIZE, SIZE), (SIZE, SIZE))
    for given in ("own.json", "{}", object()):
        with pytest.raises(SegaeError, match="needs albumentations"):
            without_albumentations.train_transform(SIZE, MEAN, STD, augment=given)


def own() -> albumentations.Compose:
    return albumentations.Compose([albumentations.Rotate((40, 50), border_mode=0, p=1), albumentations.InvertImg(p=1)])


def test_what_a_transform_leaves_undefined_is_ignored() -> None:
    image, mask = scene()
    pipeline = albumentations.Compose([albumentations.OneOf([own()], p=1)])
    changed = transforms.train_transform(SIZE, ZERO, ONE, augment=pipeline)(image=image, mask=mask)
    undefined = changed["image"].mean(dim=0) > 0.99  # black before it was inverted
    assert 0.1 < float(undefined.float().mean()) < 0.5
    assert (changed["mask"][undefined] == 255).all()
    assert set(changed["mask"][~undefined].unique().tolist()) <= {0, 1, 255}
    assert pipeline[0][0][0].fill_mask == 0  # the user's own is as it was


@pytest.mark.parametrize("kind", ["object", "json", "yaml", "text"])
def test_ones_own_is_read_from_what_albumentations_writes(tmp_path: Path, kind: str) -> None:
    given: Any = own()
    path = tmp_path / f"own.{kind}"
    if kind == "text":
        given = json.dumps(albumentations.to_dict(given))
    elif kind != "object":
        albumentations.save(given, path, data_format=kind)
        given = path
    expected = transforms.describe_augmentation(transforms.load_augmentation(own()))
    described = transforms.describe_augmentation(transforms.load_augmentation(given))
    assert described == expected
    assert json.loads(described)["transform"]["transforms"][0]["fill_mask"] == 255
    assert transforms.describe_augmentation(transforms.load_augmentation(described)) == described


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (albumentations.Normalize(p=1), "augment must return image as uint8 array \\(48, 48, 3\\), got float32"),
        (albumentations.pytorch.ToTensorV2(), "must return image as uint8 array .*, got torch.uint8 \\(3, 48, 48\\)"),
        (albumentations.RandomCrop(16, 16, p=1), "must return image as uint8 array .*got uint8 \\(16, 16, 3\\)"),
        (albumentations.RandomCrop(64, 64, p=1), "must be a transform for uint8 images \\(48, 48, 3\\).*64"),
        (albumentations.Lambda(name="x", mask=lambda mask, **_: mask + 7, p=1), "keep the classes.*got \\[7\\]"),
        (
            albumentations.Lambda(image=lambda image, **_: image, p=1),
            "must be a transform that albumentations can save",
        ),
        (lambda image: image, "augment must be one of none, light, default, strong"),
        ("strnog", "got 'strnog'; did you mean strong"),
        (None, "augment must be one of"),
        ('{"transform": {"__class_fullname__": "Nonsense", "p": 1}}', "KeyError: 'Nonsense'"),
        ('{"transform": {"__class_fullname__": "Rotate", "limits": 3, "p": 1}}', "'limits' are not valid"),
        ("[1, 2", "augment must be one of"),
    ],
)
def test_what_cannot_be_applied_is_refused(given: Any, message: str) -> None:
    with pytest.raises(SegaeError, match=message):
        transforms.train_transform(SIZE, ZERO, ONE, augment=given)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.yaml", "epochs: 3\n"), ("b.json", "[]"), ("c.yaml", "a: [\n"), ("d.json", "\xff"), ("e.yaml", None)],
)
def test_a_file_that_is_none_of_albumentations_is_refused(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(SegaeError, match=f"augment must be .*{name}"):
        transforms.load_augmentation(tmp_path / name)
