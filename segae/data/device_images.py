"""Images that lie on the training device as bytes and are augmented there, a batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from segae.data.batch_transforms import BatchTransform, Changes, change_images, change_masks
from segae.errors import SegaeError

_UPLOAD_BYTES = 64 * 2**20  # copied to the device at a time


class DeviceImages(Dataset[tuple[Tensor, ...]]):
    """Cached images, and masks where there are any, on a device.

    A DataLoader with ``workers=0`` asks it for whole batches: a batch is one selection, one resampling and one
    normalisation on the device, and nothing but its indices is copied there. What happens to an image depends on
    (seed, epoch, index) alone.

    Args:
        images: uint8 (N, S, S, 3), RGB.
        masks: uint8 (N, S, S), class indices; None for unlabelled images.
        transform: from ``segae.data.batch_transforms``; None only normalises.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
        device: where they lie; N * S * S * 3 bytes (4 with masks) of its memory.
        seed: with the epoch and the index, the only source of randomness.
        repeats: times that every image occurs, each time augmented anew.

    Attributes:
        device: where they lie.
        distinct: N, how many images there are without the repeats.

    A batch is (float32 (B, 3, S, S), normalised) or (that, int64 (B, S, S)). The images are copied in parts, so that
    a map of a file takes little memory of the host, however many they are.

    Raises:
        SegaeError: repeats is below 1.
        ValueError: there are not as many masks as images.
    """

    def __init__(
        self,
        images: np.ndarray,
        masks: np.ndarray | None,
        transform: BatchTransform | None,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        if repeats < 1:
            raise SegaeError(f"repeats is {repeats}; 1 or more is wanted, for example --repeats 10.")
        if masks is not None and len(images) != len(masks):
            raise ValueError(f"{len(images)} images and {len(masks)} masks")
        self.device, self.distinct = device, len(images)
        self._image_nhwc = _uploaded(images, device)
        self._mask_nhw = None if masks is None else _uploaded(masks, device)
        self._mean_c11, self._std_c11 = (
            torch.tensor([255 * value for value in values], device=device).view(-1, 1, 1) for values in (mean, std)
        )
        self._transform = transform
        self._seed, self._repeats, self._epoch = seed, repeats, 0
        self._changes: Changes | None = None

    def unchanged(self) -> DeviceImages:
        """The same images, each once and only normalised; their memory is shared."""
        other = copy.copy(self)
        other._transform, other._repeats, other._changes = None, 1, None
        return other

    def __len__(self) -> int:
        return self.distinct * self._repeats

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, before its first batch is asked for."""
        self._epoch, self._changes = epoch, None

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """The batch of these items."""
        place_b = torch.tensor(indices).to(self.device, non_blocking=True)
        changes = self._drawn()[place_b] if self._transform is not None else None
        image_b = place_b % self.distinct
        # the images' bytes stay in their order: permuted, they are what channels_last means
        chosen_bchw = self._image_nhwc[image_b].permute(0, 3, 1, 2)
        image_bchw = change_images(chosen_bchw, changes, self._mean_c11, self._std_c11)
        if self._mask_nhw is None:
            return (image_bchw,)
        return image_bchw, change_masks(self._mask_nhw[image_b], changes)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """One item as the batch gives it, without the batch axis."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)  # iteration needs it
        return tuple(part[0] for part in self.__getitems__([index % len(self)]))

    def _drawn(self) -> Changes:
        if self._changes is None:
            assert self._transform is not None  # asked for only then
            # 63 bits, as many as a generator takes; the odd factor keeps neighbouring seeds and epochs apart
            mixed = (self._seed * 0x9E3779B97F4A7C15 + self._epoch * 0xD1B54A32D192ED03) % 2**63
            self._changes = self._transform(len(self), torch.Generator().manual_seed(mixed)).to(self.device)
        return self._changes


def _uploaded(array: np.ndarray, device: torch.device) -> Tensor:
    """A uint8 array, often a map of a file, on a device."""
    tensor = torch.empty(array.shape, dtype=torch.uint8, device=device)
    rows = max(_UPLOAD_BYTES * len(array) // max(tensor.nbytes, 1), 1)
    for start in range(0, len(array), rows):
        # a copy: the map may be read-only, which torch must not be given
        tensor[start : start + rows].copy_(torch.from_numpy(np.array(array[start : start + rows])))
    return tensor
