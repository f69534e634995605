"""By which path images reach a training; one for all its processes and all its parts, because augmentation differs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from segae.errors import SegaeError

if TYPE_CHECKING:
    import torch

    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment

_SHARE_OF_DEVICE = 0.25  # of the free memory, that images may take


def agreed_data_path(config: Pretrain | Segment, need: int, device: torch.device) -> str:
    """The path of a training. ``auto`` is what a resumed run began with, else the device if every process has room.

    Args:
        config: of the training; of a run folder to be resumed, what it noted is read.
        need: bytes that the images take.
        device: where this process computes.

    Returns:
        cache, device or live; the same in all processes, which must all call this.

    Raises:
        SegaeError: images on the device are prepared there, and workers were asked for.
    """
    from segae.training.distributed import gathered, once

    before = once(lambda: _noted(config))
    if before == "device" and config.workers:
        raise SegaeError(
            f"the run in {config.out} began with its images on the device, where batches are prepared on the device "
            f"itself, and workers is {config.workers}. Leave --workers out, or choose another --out."
        )
    if before is not None:
        return before
    chosen = set(gathered(choose_data_path(config.data_path, need, device, config.workers)))
    return chosen.pop() if len(chosen) == 1 else "cache"


def choose_data_path(wanted: str, need: int, device: torch.device, workers: int | None) -> str:
    """``auto`` is the device where that is a GPU with room for the images, else the cache.

    Args:
        wanted: auto, cache, device or live.
        need: bytes that the images take.
        device: where the training computes.
        workers: processes that prepare images; None leaves their number open.

    Raises:
        SegaeError: images on the device are prepared there, and workers were asked for.
    """
    if wanted == "device" and workers:
        raise SegaeError(
            f"data_path is device, where batches are prepared on the device itself, and workers is {workers}. Leave "
            "--workers out, or use --data-path cache."
        )
    if wanted != "auto":
        return wanted
    import torch

    if device.type != "cuda" or workers:
        return "cache"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if need < _SHARE_OF_DEVICE * free else "cache"


def _noted(config: Pretrain | Segment) -> str | None:
    """What ``auto`` was in the run that is to go on; None where there is none, or it is older than the note."""
    from segae.training.run import STARTED_FILE

    file = config.out / STARTED_FILE
    if not config.resume or config.data_path != "auto" or not file.exists():
        return None
    return json.loads(file.read_text()).get("data_path")
