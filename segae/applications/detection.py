"""Object detection on a frozen encoder: torchvision's FCOS on a feature pyramid of its maps of stride 8 to 32."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from segae._io import check_range
from segae.errors import SegaeError
from segae.models import Encoder, evaluation_mode, require_image_size


class _FrozenPyramid(nn.Module):
    """FPN (arXiv 1612.03144) on maps of an encoder that never changes, BatchNorm statistics included."""

    def __init__(self, encoder: Encoder, out_channels: int = 128) -> None:
        super().__init__()
        self.encoder, self.out_channels = encoder.requires_grad_(False), out_channels
        self.fpn = FeaturePyramidNetwork(encoder.out_channels[-3:], out_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        with evaluation_mode(self.encoder), torch.no_grad():
            maps = self.encoder(images)[-3:]
        return self.fpn(dict(zip("012", maps, strict=True)))


def create_detector(encoder: Encoder, *, num_classes: int = 2, image_size: int = 256) -> FCOS:
    """Build FCOS (arXiv 1904.01355) on an encoder of timm, which becomes its frozen part.

    Called with a list of images, float (3, H, W) in [0, 1], it returns for each a dict of ``boxes`` (n, 4), x1 y1 x2 y2
    in pixels, ``labels`` and ``scores`` (n,); in training mode it also takes such dicts, and returns losses.
    ``num_classes`` counts the background, class 0; the longer side of an image is resized to ``image_size``.

    Example:
        >>> boxes = create_detector(encoder).eval()([torch.rand(3, 200, 300)])[0]["boxes"]  # doctest: +SKIP
    """
    about = encoder.info
    if len(encoder.out_channels) != 6 or not all(encoder.out_channels[-3:]) or about.in_channels != 3:
        raise SegaeError(f"encoder must have 3 channels and maps of stride 8, 16 and 32, got {about.architecture}")
    check_range("num_classes", num_classes, low=2, integer=True)
    require_image_size(image_size, 32)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)  # one for each position
    look = {"image_mean": about.mean, "image_std": about.std, "min_size": image_size, "max_size": image_size}
    return FCOS(_FrozenPyramid(encoder), num_classes, anchor_generator=anchors, **look)
