"""Several processes, one training: join them, know one's own place, and speak with one voice.

Plain torch.distributed, started by ``torchrun`` or ``accelerate launch``; docs/distributed.md has the command lines.
In a single process every function here does the obvious thing at no cost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from segae.errors import SegaeError
from segae.training.device import choose_device

T = TypeVar("T")

# the longest wait: one process decodes all images into the cache, or writes the results, and the others do nothing
_PATIENCE = timedelta(hours=6)
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        rank: from 0 to world - 1; 0 writes files and prints.
        world: number of processes.
        local: rank among the processes of this machine, which is the index of its GPU.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


def this_place() -> Place:
    """The place in the process group; that of a single process where there is no group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Place()
    rank = distributed.get_rank()
    return Place(rank, distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)))


@contextmanager
def joined(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that a launcher started, and leave them at the end, also after an error.

    Inside, only the first process prints to standard output. Leaving waits for it, because it still writes. Where no
    launcher is at work, or the group is there already, only the device is chosen.

    Args:
        device: as for ``choose_device``; among several processes ``auto`` and ``cuda`` are the GPU of the local rank.

    Yields:
        The device of this process.

    Raises:
        SegaeError: the launcher's variables are incomplete, the device does not fit, or another process stopped.
    """
    place = _launched()
    if place.world == 1 or this_place().world > 1:
        yield _own_device(device, this_place())
        return
    own = _own_device(device, place)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    # gloo also beside NCCL: what is said about files and logs lies on the CPU
    distributed.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        with ExitStack() as stack:
            if not place.first:
                stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield own
            wait()
    except RuntimeError as error:
        if "Connection closed by peer" not in str(error) and "Connection reset by peer" not in str(error):
            raise
        raise SegaeError(
            f"process {place.rank} of {place.world} waited for one that has stopped; that one says why. Mend it, then "
            f"repeat the command with --resume."
        ) from error
    finally:
        distributed.destroy_process_group()


def require_single_process(command: str) -> None:
    """Raise SegaeError if a launcher started several processes for a command that runs in one."""
    if _launched().world > 1:
        raise SegaeError(
            f"{command} runs in one process, and {_launched().world} were started; only pretrain and segment share "
            f"their work. Type segae {command} without the launcher."
        )


def require_divisible(batch_size: int, place: Place, step: int | None = None) -> int:
    """The images per process of a global batch; raises SegaeError where the processes cannot share it evenly.

    ``step`` is the images of an optimizer step, if the batch is a micro-batch of it.
    """
    if batch_size % place.world:
        more = -(-batch_size // place.world) * place.world
        name = "micro-batch" if step and step > batch_size else "batch-size"
        more = next((count for count in range(more, (step or 0) + 1, place.world) if step and step % count == 0), more)
        raise SegaeError(
            f"the {name.replace('-s', ' s')} is {batch_size}, and {place.world} processes share it: a multiple of "
            f"{place.world} is wanted. Type --{name} {more}, or start another number of processes."
        )
    return batch_size // place.world


def wait() -> None:
    """Go on when all processes are here."""
    summed(torch.zeros(1))


def once(action: Callable[[], T]) -> T:
    """Let the first process do something, and give its result to all.

    Args:
        action: what it does; called in the first process only. The result must be picklable.

    Raises:
        SegaeError: the action raised it, in all processes; another error is raised in the first, and a SegaeError
            in the others.
    """
    place = this_place()
    if place.world == 1:
        return action()
    told: list[Any] = [None, None]
    failure: BaseException | None = None
    if place.first:
        try:
            told[0] = action()
        except SegaeError as error:
            told[1], failure = str(error), error
        except BaseException as error:
            told[1], failure = f"process 0 failed: {error!r}. Its own message says more.", error
    distributed.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise SegaeError(told[1])
    return told[0]


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Let one process of each machine go ahead; the others follow and find what it left in the cache."""
    place = this_place()
    if place.local:
        wait()
    try:
        yield
    finally:  # also after an error, or the others would wait for ever
        if not place.local:
            wait()


def summed(tensor: Tensor) -> Tensor:
    """A new tensor, the sum over all processes; every process must ask, with the same shape and type."""
    total = tensor.detach().clone()
    if this_place().world > 1:
        distributed.all_reduce(total)
    return total


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank; small and picklable ones."""
    place = this_place()
    values: list[Any] = [value] * place.world
    if place.world > 1:
        distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def make_equal(model: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers."""
    if this_place().world > 1:
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()  # a channels_last tensor has gaps in the order of its axes
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the processes, in one message for each type and device.

    Parameters without a gradient, frozen or unused, are left out; they are the same ones in all processes.
    """
    gradients: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is not None:
            gradients.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter.grad)
    for group in gradients.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in group])
        distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in group])
        torch._foreach_copy_(group, [part.view(gradient.shape) for part, gradient in zip(parts, group, strict=True)])


def _launched() -> Place:
    """The place that the launcher's environment variables name."""
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdigit() or int(world) <= 1:
        return Place()
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise SegaeError(
            f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set; a launcher sets them all. Type torchrun "
            f"--standalone --nproc-per-node {world} -m segae.cli ..., or unset WORLD_SIZE."
        )
    return Place(int(os.environ["RANK"]), int(world), int(os.environ["LOCAL_RANK"]))


def _own_device(name: str, place: Place) -> torch.device:
    """The device of one process among several; that of ``choose_device`` if it is alone."""
    if place.world == 1:
        return choose_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise SegaeError(
            f"the device is {name!r}, and {place.world} processes would share it: each wants one of its own. Type "
            f"--device cuda, or --device cpu."
        )
    choose_device(name)  # says what is there if no GPU is
    if place.local >= torch.cuda.device_count():
        raise SegaeError(
            f"process {place.local} of this machine wants a GPU of its own, and there are {torch.cuda.device_count()}. "
            f"Type torchrun --nproc-per-node {torch.cuda.device_count()} ..."
        )
    return torch.device("cuda", place.local)
