"""Data-parallel training, started by torchrun: process group, rank, collectives, and the gradients of a step."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.torch_core import find_bs
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn

from segae.errors import SegaeError
from segae.training.device import choose_device

T = TypeVar("T")

# the longest wait: one process decodes all images into the cache, or writes the results, and the others do nothing
_TIMEOUT = timedelta(hours=6)


def rank() -> int:
    """Return the index of this process, from 0; 0 writes files and prints."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that a launcher started, and leave them at the end; yields the device of this process.

    Inside, only rank 0 prints to standard output; leaving waits for it, because it still writes. Without a launcher, or
    inside a group that exists already, this only chooses the device, as ``choose_device``; among several processes
    ``auto`` and ``cuda`` are the GPU of the local rank.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1" or world_size() > 1:
        yield choose_device(device) if world_size() == 1 else _local_device(device)
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SegaeError(f"WORLD_SIZE must be set by a launcher such as torchrun, got {size} without {missing[0]}")
    chosen = _local_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # gloo beside NCCL: numbers for logs are on the CPU
    distributed.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        with ExitStack() as stack:
            if rank() != 0:
                stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield chosen
            all_reduce(torch.zeros(1))
    finally:
        distributed.destroy_process_group()


def _local_device(name: str) -> torch.device:
    chosen, local = choose_device(name), int(os.environ["LOCAL_RANK"])
    if chosen.type == "cpu":
        return chosen
    if name not in ("auto", "cuda") or chosen.type != "cuda" or local >= torch.cuda.device_count():
        raise SegaeError(f"device must be cpu, or cuda with a GPU for each process of a machine, got {name}")
    return torch.device("cuda", local)


def run_on_main(function: Callable[[], T]) -> T:
    """Call a function in rank 0 only; return its (picklable) result, or raise its exception, in all ranks."""
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    if world_size() > 1:
        distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def all_reduce(tensor: Tensor) -> Tensor:
    """Return a new tensor, the sum over all ranks; every rank must call it, with the same shape and type."""
    total = tensor.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks, by rank; for small and picklable ones."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast_state(tensors: Iterable[Tensor]) -> None:
    """Copy the values of rank 0 into the tensors of all ranks."""
    for tensor in tensors if world_size() > 1 else ():
        whole = tensor.contiguous()  # a channels_last tensor has gaps in the order of its axes
        distributed.broadcast(whole, src=0)
        tensor.copy_(whole)


def sync_batchnorm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let BatchNorm layers use the images of all ranks, which torch has for CUDA only."""
    return convert_sync_batchnorm(model) if world_size() > 1 and device.type == "cuda" else model


class AverageGradients(Callback):
    """Average gradients over all images of an optimizer step: of several batches, of several processes, or of both.

    Each batch counts by its images, the smaller last ones too. A step is then that of one large batch, except for
    BatchNorm's statistics; after an epoch all ranks take over the running ones of rank 0. fastai's GradientAccumulation
    carries an unfinished step over into the next epoch, and DistributedDataParallel would wrap the model.
    """

    order, run_valid = -4, False  # before DistancePenalty, which is added once; after StopOnNaN, which quotes the loss

    def __init__(self, batches: int = 1) -> None:
        self.batches, self.images = batches, 0

    @property
    def completes_step(self) -> bool:
        """Whether the running batch is the last one of a step; that of an epoch takes what is left."""
        return (self.learn.iter + 1) % self.batches == 0 or self.learn.iter + 1 == self.learn.n_iter

    def before_batch(self) -> None:
        # all batches of a step have its learning rates
        done = (self.learn.iter // self.batches) / math.ceil(self.learn.n_iter / self.batches)
        self.learn.pct_train = (self.learn.epoch + done) / self.learn.n_epoch
        self.images = find_bs(self.learn.xb) + (self.images if self.learn.iter % self.batches else 0)

    def after_loss(self) -> None:
        self.learn.loss_grad = self.learn.loss_grad * find_bs(self.learn.xb)

    @torch.no_grad()
    def after_backward(self) -> None:
        if not self.completes_step:
            return
        # the same ones in all ranks
        gradients = [p.grad for p in self.learn.model.parameters() if p.requires_grad and p.grad is not None]
        if world_size() == 1:
            torch._foreach_div_(gradients, self.images)
            return
        count = torch.full_like(gradients[0].reshape(-1)[:1], self.images)
        flat = all_reduce(torch.cat([*(gradient.reshape(-1) for gradient in gradients), count]))  # one message
        parts = (flat[:-1] / flat[-1]).split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])

    def before_step(self) -> None:
        if not self.completes_step:
            raise CancelBatchException  # which keeps the gradients

    def after_train(self) -> None:
        broadcast_state(self.learn.model.buffers())
