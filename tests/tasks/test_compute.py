"""How many images at once: a device whose memory is full makes the batch smaller, and the steps stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from segae.errors import SegaeError
from segae.tasks.compute import _that_fits
from segae.tasks.segment import Segment
from segae.training.ceiling import TrainingStep
from segae.training.distributed import Place
from segae.training.fit import fit
from segae.training.learner import segmentation_learner
from segae.training.loaders import make_loaders
from segae.training.schedule import make_phases

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Pairs(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return image, (image[0] > 0).long()


class Tiny(nn.Module):
    """Without BatchNorm, which sees other images in smaller batches."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, image_bchw: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image_bchw).relu())


def with_room_for(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """A GPU that has memory for so many images, and how many were tried on it."""
    tried: list[int] = []
    forward = TrainingStep.forward

    def limited(self, inputs, targets):
        tried.append(len(inputs[0]))
        if len(inputs[0]) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, inputs, targets)

    monkeypatch.setattr(TrainingStep, "forward", limited)
    return tried


def learner_that_fits(config: Segment, device: torch.device) -> Any:
    torch.manual_seed(0)
    model = Tiny()

    def make(batch: int) -> Any:
        loaders = make_loaders(Pairs(), None, batch_size=batch, device=CPU)
        return segmentation_learner(loaders, model, classes=2, accumulate=config.batch_size // batch)

    return _that_fits(make, config, device, (16, 2))


def at_once(learner: Any) -> int:
    return len(next(iter(learner.dls.train))[0])


def test_a_full_gpu_gets_the_largest_part_of_the_batch_and_makes_the_same_steps(monkeypatch, capsys):
    tried = with_room_for(monkeypatch, 3)
    found = learner_that_fits(Segment(Path(), batch_size=8), GPU)
    assert tried == [8, 4, 2]
    assert "8 images do not fit into the device's memory at once: 2 at a time" in capsys.readouterr().out
    assert (at_once(found), found.accumulate.batches) == (2, 4)
    whole = learner_that_fits(Segment(Path(), batch_size=8), CPU)
    for learner in (found, whole):
        fit(learner, make_phases(0, 1))
    for ours, theirs in zip(found.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_nothing_is_tried_where_all_fits_was_asked_for_or_has_no_word_for_it(monkeypatch, capsys):
    tried = with_room_for(monkeypatch, 8)
    assert at_once(learner_that_fits(Segment(Path(), batch_size=8), GPU)) == 8
    assert tried == [8]
    assert at_once(learner_that_fits(Segment(Path(), batch_size=8, micro_batch=4), GPU)) == 4
    assert at_once(learner_that_fits(Segment(Path(), batch_size=8), CPU)) == 8
    assert tried == [8]
    assert capsys.readouterr().out == ""


def test_a_gpu_without_room_for_two_images_says_what_to_do(monkeypatch):
    with_room_for(monkeypatch, 1)
    with pytest.raises(SegaeError, match="not even 2 images .* --activation-checkpointing"):
        learner_that_fits(Segment(Path(), batch_size=8), GPU)


def test_all_processes_take_what_the_fullest_gpu_has_room_for(monkeypatch):
    monkeypatch.setattr("segae.training.distributed.this_place", lambda: Place(0, 2))
    monkeypatch.setattr("segae.training.distributed.gathered", lambda value: [value, 2])
    tried, made = with_room_for(monkeypatch, 4), []

    def make(batch: int) -> Any:
        made.append(batch)
        return segmentation_learner(make_loaders(Pairs(), None, batch_size=batch, device=CPU), Tiny(), classes=2)

    _that_fits(make, Segment(Path(), batch_size=16), GPU, (16, 2))
    assert tried == [8, 4]  # its share of 16, and of 8
    assert made == [16, 4]  # the other has room for 2
