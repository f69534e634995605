"""Object and ground of whole images with a boundary on their edges: GrabCut, begun where something softer is sure."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import cv2
import numpy as np
import torch
from torch import Tensor

from segae.objectives.layers import split_layers

_SURE = 0.2  # what is thought less likely than this, or more likely than 1 - this, is not asked again
_ROUNDS = 2
_KEPT = 1 << 18  # answers, of 1.2 kB at 96 px


class LayerCut:
    """GrabCut (Rother et al., SIGGRAPH 2004, doi 10.1145/1186562.1015720) of whole images, once for each.

    A cut takes some 30 ms on a CPU core at 96 px, as long as a training step of a small network takes for an image. So
    as many are made at once as torch has threads, and the answers are kept by the image's values, of 262,144 images at
    most; mirror images share one.

    Args:
        likely: Gives how likely each pixel belongs to the object, (B, 1, H, W) in [0, 1], for images (B, C, H, W); the
            cut begins there.
    """

    def __init__(self, likely: Callable[[Tensor], Tensor] = split_layers) -> None:
        self._likely = likely
        self._kept: dict[bytes, bytes] = {}

    @torch.no_grad()
    def __call__(self, image_bchw: Tensor) -> Tensor:
        """1 for object and 0 for ground, float32 (B, 1, H, W), for images (B, C, H, W) of any scale.

        The cut itself sees the first three channels, or one channel three times.
        """
        grey_bhwc = _as_bytes(image_bchw)
        mirrored_b = [_is_mirrored(image) for image in grey_bhwc]
        upright = [
            np.ascontiguousarray(one[:, ::-1] if m else one) for one, m in zip(grey_bhwc, mirrored_b, strict=True)
        ]
        keys = [blake2b(one.tobytes(), digest_size=16, person=str(one.shape).encode()[:16]).digest() for one in upright]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: place for place, key in enumerate(keys) if key not in found}
        if new:
            new_chw = [image_bchw[place].flip(2) if mirrored_b[place] else image_bchw[place] for place in new.values()]
            likely_bhw = self._likely(torch.stack(new_chw))[:, 0].cpu().numpy()
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # OpenCV lets go of the interpreter meanwhile
                cut_bhw = threads.map(_grab, [upright[place] for place in new.values()], likely_bhw)
                found.update({key: np.packbits(cut_hw).tobytes() for key, cut_hw in zip(new, cut_bhw, strict=True)})
            if len(self._kept) < _KEPT:
                self._kept.update({key: found[key] for key in new})
        height, width = image_bchw.shape[2:]
        object_bhw = np.stack([_unpack(found[key], height, width) for key in keys])
        object_bhw[mirrored_b] = object_bhw[mirrored_b][:, :, ::-1]
        return torch.from_numpy(object_bhw).unsqueeze(1).to(image_bchw.device, torch.float32)


def _as_bytes(image_bchw: Tensor) -> np.ndarray:
    """uint8 (B, H, W, C), each image from its own darkest to its own brightest value."""
    low_b111 = image_bchw.amin(dim=(1, 2, 3), keepdim=True)
    range_b111 = (image_bchw.amax(dim=(1, 2, 3), keepdim=True) - low_b111).clamp(min=1e-6)
    scaled_bchw = ((image_bchw - low_b111) / range_b111 * 255).round().byte()
    return np.asarray(scaled_bchw.permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _is_mirrored(image_hwc: np.ndarray) -> bool:
    """Of an image and its mirror image exactly one is, unless they are of one brightness."""
    half = image_hwc.shape[1] // 2
    return bool(image_hwc[:, :half].sum(dtype=np.int64) < image_hwc[:, -half:].sum(dtype=np.int64))


def _grab(image_hwc: np.ndarray, likely_hw: np.ndarray) -> np.ndarray:
    mask_hw = np.where(likely_hw > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask_hw[likely_hw < _SURE] = cv2.GC_BGD
    mask_hw[likely_hw > 1 - _SURE] = cv2.GC_FGD
    colour_hw3 = np.repeat(image_hwc[:, :, :1], 3, axis=2) if image_hwc.shape[2] < 3 else image_hwc[:, :, :3]
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # it starts its colour models by k-means
    try:
        cv2.grabCut(np.ascontiguousarray(colour_hw3), mask_hw, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # one of the two has too few pixels for five colours, as in an image of one colour
        return likely_hw > 0.5
    return (mask_hw == cv2.GC_FGD) | (mask_hw == cv2.GC_PR_FGD)


def _unpack(bits: bytes, height: int, width: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width).reshape(height, width)
