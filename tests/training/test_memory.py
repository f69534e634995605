"""A full memory is distinguished from other errors; the largest batch is found by steps that leave no trace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from segae.data.loaders import make_loaders
from segae.errors import OutOfMemoryError
from segae.methods import create_autoencoder, create_method
from segae.models import create_segmenter
from segae.training import memory
from segae.training.learner import pretraining_learner, segmentation_learner
from segae.training.memory import halve_until_fit, is_out_of_memory, largest_batch, out_of_memory_as_error, trial_step

ON_CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
ON_CPU = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 B"
FULL = [
    (torch.OutOfMemoryError(ON_CUDA), ON_CUDA),
    (torch.OutOfMemoryError(f"Exception occurred in `Learner` when calling event `after_pred`:\n\t{ON_CUDA}"), ON_CUDA),
    (MemoryError("Unable to allocate 9 GiB for an array"), "Unable to allocate 9 GiB"),
    (RuntimeError(f"a note\n{ON_CPU}\nC++ frames"), ON_CPU),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "MPS backend"),
    (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "CUDA error"),
]


@pytest.mark.parametrize(("error", "reason"), FULL)
def test_a_full_memory_is_reported_as_such_with_its_reason(error, reason):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError, match="batch_size") as stopped, out_of_memory_as_error():
        raise error
    assert reason in str(stopped.value)
    assert stopped.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), OSError(ON_CPU), ValueError("memory")])
def test_other_errors_pass_as_they_are(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as stopped, out_of_memory_as_error():
        raise error
    assert stopped.value is error


def test_a_real_allocation_that_does_not_fit_is_reported_with_the_given_advice():
    with pytest.raises(OutOfMemoryError, match="got 16"), out_of_memory_as_error("batch_size must be < 16, got 16"):
        torch.empty(2**60, dtype=torch.uint8)


def attempt_with_room_for(images: int, tried: list[int]):
    def attempt(count: int) -> None:
        tried.append(count)
        if count > images:
            raise torch.OutOfMemoryError(f"{ON_CUDA}\nand more")

    return attempt


@pytest.mark.parametrize(("batch_size", "expected"), [(128, [128, 64, 32, 16]), (24, [24])])
def test_a_batch_is_halved_until_it_fits(batch_size, expected):
    tried: list[int] = []
    assert halve_until_fit(batch_size, attempt_with_room_for(24, tried)) == expected[-1]
    assert tried == expected
    with pytest.raises(ZeroDivisionError):  # other failures are no lack of memory
        halve_until_fit(batch_size, lambda count: 1 // 0)


@pytest.mark.parametrize(("batch_size", "smallest"), [(8, 2), (12, 3), (1, 1)])
def test_a_batch_that_never_fits_is_an_error(batch_size, smallest):
    with pytest.raises(OutOfMemoryError, match=rf"batch_size .*got {smallest} \(CUDA out of memory"):
        halve_until_fit(batch_size, attempt_with_room_for(0, []))


def learner_of(kind: str, batch_size: int = 4, device: str = "cpu"):
    """A Learner on random 64 px images, the same from call to call."""
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)
    items = [(image, (image[0] > 0).long()) if kind == "segmentation" else image for image in images]
    loaders = make_loaders(items, None, batch_size=batch_size, device=torch.device(device))
    if kind == "segmentation":
        return segmentation_learner(loaders, create_segmenter("test_resnet", num_classes=2), bn_mode="train")
    model = create_autoencoder("test_resnet", method=kind)
    return pretraining_learner(loaders, model, create_method(kind))


@pytest.mark.parametrize("kind", ["segmentation", "inpaint", "spark", "pseudo_masks", "denoise"])
def test_a_trial_step_leaves_no_trace(kind):
    tried, plain, seen = learner_of(kind), learner_of(kind), []
    next(tried.model.encoder.parameters()).register_hook(seen.append)
    state = torch.get_rng_state()
    trial_step(tried, 6, 64)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) == 1
    assert all(parameter.grad is None for parameter in tried.model.parameters())
    others = plain.model.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in tried.model.state_dict().items())


def test_the_largest_batch_is_tried_on_a_gpu_alone(monkeypatch):
    learner, made = learner_of("segmentation"), []
    assert largest_batch(lambda count: made.append(count) or learner, 8, image_size=64) == (learner, 8)
    full, attempt = SimpleNamespace(dls=SimpleNamespace(device=torch.device("cuda"))), attempt_with_room_for(2, [])
    monkeypatch.setattr(memory, "trial_step", lambda learner, count, image_size: attempt(count))
    assert largest_batch(lambda count: made.append(count) or full, 8, image_size=64) == (full, 2)
    assert made == [8, 8, 2]


@pytest.mark.gpu
def test_a_gpu_halves_a_batch_that_is_too_large():
    torch.cuda.set_per_process_memory_fraction(1.5e9 / torch.cuda.mem_get_info()[1])
    try:
        _, count = largest_batch(lambda count: learner_of("segmentation", count, "cuda"), 2**14, image_size=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 2 <= count < 2**14
