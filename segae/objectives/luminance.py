"""How bright a pixel is, for any number of channels."""

from __future__ import annotations

from torch import Tensor


def luminance(image_bchw: Tensor) -> Tensor:
    """Brightness (B, 1, H, W): red, green and blue weighted as in Rec. 601; the plain mean if not three channels."""
    if image_bchw.shape[1] != 3:
        return image_bchw.mean(dim=1, keepdim=True)
    red_b1hw, green_b1hw, blue_b1hw = image_bchw.split(1, dim=1)
    return 0.299 * red_b1hw + 0.587 * green_b1hw + 0.114 * blue_b1hw
