"""Augmentation depends on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from segae.data.batches import LabelledImages, UnlabelledImages
from segae.data.transforms import eval_transform, pretrain_transform, train_transform
from segae.errors import SegaeError

MEAN = STD = (0.5, 0.5, 0.5)


def arrays(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images.flags.writeable = False
    return images, generator.integers(0, 3, (count, 32, 32), dtype=np.uint8)


def labelled(seed: int = 0) -> LabelledImages:
    return LabelledImages(*arrays(), train_transform(32, MEAN, STD), seed)


def collect(data: LabelledImages, workers: int, epochs: int, persistent: bool = False) -> torch.Tensor:
    loader = DataLoader(data, batch_size=3, num_workers=workers, persistent_workers=persistent)
    seen = []
    for epoch in range(epochs):
        data.set_epoch(epoch)
        seen += [torch.cat([batch[0] for batch in loader])]
    return torch.stack(seen)


def test_items_are_tensors_of_the_announced_kind() -> None:
    image, mask = labelled()[0]
    assert (image.dtype, image.shape) == (torch.float32, (3, 32, 32))
    assert (mask.dtype, mask.shape) == (torch.int64, (32, 32))
    unlabelled = UnlabelledImages(arrays()[0], pretrain_transform(32, MEAN, STD), 0)
    assert unlabelled[7].shape == (3, 32, 32)
    assert len(unlabelled) == 8
    assert len(list(unlabelled)) == 8


@pytest.mark.parametrize(("workers", "persistent"), [(1, False), (2, False), (3, True)])
def test_the_number_of_workers_changes_nothing(workers: int, persistent: bool) -> None:
    alone = collect(labelled(), 0, 2)
    assert torch.equal(collect(labelled(), workers, 2, persistent), alone)
    assert not torch.equal(alone[0], alone[1])


def test_order_and_history_change_nothing() -> None:
    forwards, backwards = labelled(), labelled()
    wanted = [forwards[index] for index in range(8)]
    for index in reversed(range(8)):
        image, mask = backwards[index]
        assert torch.equal(image, wanted[index][0])
        assert torch.equal(mask, wanted[index][1])
    assert torch.equal(forwards[-1][0], wanted[7][0])


def test_seed_epoch_and_index_each_matter() -> None:
    images = np.repeat(arrays(1)[0], 40, 0)  # one image forty times: any difference is the augmentation's
    transform = pretrain_transform(32, MEAN, STD)
    data, other = UnlabelledImages(images, transform, 0), UnlabelledImages(images, transform, 1)
    first = torch.stack(list(data))
    assert len(torch.unique(first.flatten(1), dim=0)) > 35
    seeded = torch.stack(list(other))
    data.set_epoch(1)
    second = torch.stack(list(data))
    for changed in (seeded, second):
        assert (first != changed).flatten(1).any(1).sum() > 35
    data.set_epoch(0)
    assert torch.equal(torch.stack(list(data)), first)


def test_a_transform_may_serve_two_data_sets() -> None:
    transform = train_transform(32, MEAN, STD)
    data = LabelledImages(*arrays(), transform, 0)
    expected = data[3][0]
    other = LabelledImages(*arrays(), transform, 1)
    assert not torch.equal(other[3][0], expected) or not torch.equal(other[4][0], data[4][0])
    assert torch.equal(data[3][0], expected)


def test_copies_give_the_same_items() -> None:
    data = labelled()
    data.set_epoch(5)
    for twin in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert torch.equal(twin[2][0], data[2][0])
        assert torch.equal(twin[6][1], data[6][1])


def test_the_cache_is_never_written_to() -> None:
    images, masks = arrays()
    before = images.copy(), masks.copy()
    masks.flags.writeable = False
    data = LabelledImages(images, masks, eval_transform(32, MEAN, STD), 0)
    for image, mask in data:
        image.zero_()
        mask.zero_()
    assert np.array_equal(images, before[0])
    assert np.array_equal(masks, before[1])


def test_wrong_use_is_an_error() -> None:
    images, masks = arrays()
    with pytest.raises(ValueError, match="8 images and 7 masks"):
        LabelledImages(images, masks[:7], eval_transform(32, MEAN, STD), 0)
    with pytest.raises(IndexError):
        labelled()[8]
    with pytest.raises(IndexError):
        labelled()[-9]


def test_repeated_images_are_augmented_anew_each_time():
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    transform = pretrain_transform(32, (0.5,) * 3, (0.5,) * 3)
    once, thrice = UnlabelledImages(images, transform, 0), UnlabelledImages(images, transform, 0, repeats=3)
    assert (len(once), len(thrice)) == (3, 9)
    assert torch.equal(once[1], thrice[1])
    assert not torch.equal(thrice[1], thrice[4])
    still = UnlabelledImages(images, eval_transform(32, (0.5,) * 3, (0.5,) * 3), 0, repeats=3)
    assert torch.equal(still[1], still[7])
    with pytest.raises(SegaeError, match="repeats is 0"):
        UnlabelledImages(images, transform, 0, repeats=0)
