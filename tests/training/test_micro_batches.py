"""Several small batches to an optimizer step: the step of one large batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from segae.errors import SegaeError
from segae.training.callbacks import Callback
from segae.training.fit import fit
from segae.training.learner import segmentation_learner
from segae.training.loaders import make_loaders
from segae.training.micro_batches import Accumulate, largest_that_fits
from segae.training.schedule import make_phases

CPU = torch.device("cpu")


class Pairs(Dataset):
    """Images whose mask can be read off the first channel."""

    def __init__(self, count: int) -> None:
        self.images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.images[index]
        return image, (image[0] > 0).long()


class Tiny(nn.Module):
    """Without BatchNorm, which sees other images in smaller batches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image_bchw: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image_bchw).relu())


class Rates(Callback):
    """The learning rates that the optimizer's steps had."""

    order = 90

    def __init__(self) -> None:
        self.seen_rates: list[float] = []

    def before_step(self) -> None:
        self.seen_rates.append(self.learn.opt.hypers[-1]["lr"])


def trained(batch_size: int, accumulate: int = 1, images: int = 22) -> tuple[nn.Module, list[float], list[dict]]:
    torch.manual_seed(0)
    model, rates = Tiny(), Rates()
    loaders = make_loaders(Pairs(images), None, batch_size=batch_size, device=CPU, accumulate=accumulate)
    learner = segmentation_learner(loaders, model, classes=2, accumulate=accumulate)
    learner.add_cb(rates)
    log = fit(learner, make_phases(1, 2, lr=1e-2))
    return model, rates.seen_rates, log


def test_accumulated_steps_are_those_of_the_whole_batch():
    whole, rates, log = trained(8, 1)
    parts, same_rates, same_log = trained(2, 4)  # 22 images: the last step of an epoch has three parts of the four
    assert same_rates == pytest.approx(rates, rel=1e-6)
    for (name, ours), (_, theirs) in zip(parts.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)
    assert [row["train_loss"] for row in same_log] == pytest.approx([row["train_loss"] for row in log], rel=1e-3)


@pytest.mark.parametrize(("images", "kept"), [(17, 16), (21, 21), (25, 24)])
def test_small_batches_lose_no_image_that_the_whole_one_keeps(images: int, kept: int):
    whole, _, log = trained(8, images=images)
    parts, _, same_log = trained(4, 2, images=images)  # 21: 4 + 4, 4 + 4, 3 + 2
    assert [row["images"] for row in log] == [row["images"] for row in same_log] == [kept] * 3
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_parts_of_different_sizes_count_by_their_images():
    whole, _, _ = trained(22, 1)
    parts, steps, _ = trained(5, 5)  # 5 + 5 + 5 + 5 + 2 images
    assert len(steps) == 3
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_penalty_is_added_once_to_a_step(pretraining):
    learner = pretraining(distance_penalty=0.5, accumulate=2)
    added: list[int] = []
    penalty = learner.distance_penalty
    original = penalty.after_backward

    def count() -> None:
        before = [None if p.grad is None else p.grad.clone() for p in penalty.parameters]
        original()
        changed = [
            p.grad is not None and not torch.equal(p.grad, b) for p, b in zip(penalty.parameters, before, strict=True)
        ]
        added.append(sum(changed))

    penalty.after_backward = count
    for parameter in learner.model.encoder.parameters():
        parameter.data.add_(0.1)  # away from the start, so that the penalty shows
    learner.fit(1)
    assert [number > 0 for number in added] == [False, True, True]  # 18 images: 8 + 8, then the 2 that are left


def test_fewer_batches_than_one_are_refused():
    with pytest.raises(SegaeError, match="0 batches to a step"):
        Accumulate(0)


def test_a_batch_is_halved_until_it_fits():
    tried: list[int] = []

    def attempt(count: int) -> None:
        tried.append(count)
        if count > 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nand more")

    assert largest_that_fits(128, attempt) == 16
    assert tried == [128, 64, 32, 16]
    assert largest_that_fits(24, attempt) == 24


@pytest.mark.parametrize(("batch_size", "smallest"), [(8, 2), (12, 3)])
def test_a_batch_that_never_fits_says_what_to_do(batch_size: int, smallest: int):
    def attempt(count: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    with pytest.raises(SegaeError, match=rf"not even {smallest} images .* --activation-checkpointing"):
        largest_that_fits(batch_size, attempt)


def test_other_failures_are_not_taken_for_a_lack_of_memory():
    def attempt(count: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        largest_that_fits(8, attempt)
