"""Say where the object of an image is, from a crop of it: an objective that asks for things before pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.corruption import Corrupted, Corruption, Hardness, Identity
from segae.objectives.layer_cut import LayerCut


@dataclass(frozen=True)
class CropOfLayers:
    """Find the object of the image, then show a crop of it: where it is, the crop has to say by what it shows.

    On the whole image most of the layers could be guessed from the place alone, which the prior favours. So it is to
    be given whole images.

    Attributes:
        area: Smallest and largest area of the crop as shares of the image's, in (0, 1], drawn evenly between them; it
            keeps the image's ratio and is resampled to its size.
        then: What is done to the crop afterwards; it keeps the clean image as its target.
        find: Gives where the object is, (B, 1, H, W) in [0, 1], for images (B, C, H, W).

    Raises:
        SegaeError: A value out of its range, or, when called, `then` has another target.
    """

    area: tuple[float, float] = (0.5, 1.0)
    then: Corruption = field(default_factory=Identity)
    find: Callable[[Tensor], Tensor] = field(default_factory=LayerCut, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise SegaeError(f"area of the crop is {self.area}; smallest and largest share in (0, 1] are wanted.")

    def __call__(self, image_bchw: Tensor, generator: torch.Generator, hardness: Hardness | None = None) -> Corrupted:
        """Crop normalised images (B, C, H, W).

        The target (B, C + 1, H, W) is the crop and, last, its object: 1, the ground 0, and between them
        on the boundary, by resampling.
        """
        layered_bchw = torch.cat([image_bchw.float(), self.find(image_bchw)], dim=1)
        drawn_b3 = torch.rand(len(image_bchw), 3, generator=generator, device=generator.device).to(image_bchw.device)
        side_b = (self.area[0] + (self.area[1] - self.area[0]) * drawn_b3[:, 0]).sqrt()
        matrix_b23 = torch.zeros(len(image_bchw), 2, 3, device=image_bchw.device)
        matrix_b23[:, 0, 0] = matrix_b23[:, 1, 1] = side_b
        matrix_b23[:, :, 2] = (2 * drawn_b3[:, 1:] - 1) * (1 - side_b).unsqueeze(1)
        place_bhw2 = functional.affine_grid(matrix_b23, list(layered_bchw.shape), align_corners=False)
        target_bchw = functional.grid_sample(layered_bchw, place_bhw2, padding_mode="border", align_corners=False)
        shown_bchw = target_bchw[:, :-1].to(image_bchw.dtype).contiguous(memory_format=torch.channels_last)
        seen = self.then(shown_bchw, generator, hardness)
        if seen.target_bchw is not None:
            raise SegaeError(
                f"{self.then} asks for another target than the clean image, which the crop's layers are judged with. "
                'Leave it out, or use ScaledNoise(..., predict="image").'
            )
        return Corrupted(seen.image_bchw, seen.hidden_b1hw, target_bchw, seen.visible)


@dataclass(frozen=True)
class LayersAndPixels:
    """Squared error of the image, and divergence of logits, ground before object, from `CropOfLayers`' layers.

    The Kullback-Leibler divergence has the gradient of the cross-entropy and is 0 at best.

    Attributes:
        pixel_weight: Weight of the squared error beside the divergence, 0 or more. 0 asks for no image, and the
            prediction is the logits alone.
        boundary: How far a third layer, last of all, reaches from where object and ground meet to either side, as a
            share of the image's side in [0, 0.5); 0 has two layers.

    Raises:
        SegaeError: A value out of its range.
    """

    pixel_weight: float = 0.1
    boundary: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.pixel_weight < float("inf"):
            raise SegaeError(f"pixel weight is {self.pixel_weight}; 0 or more is wanted. Try 0 or 0.1.")
        if not 0 <= self.boundary < 0.5:
            raise SegaeError(f"boundary is {self.boundary}; a share of the side in [0, 0.5) is wanted. Try 0 or 0.02.")

    def out_channels(self, image_channels: int) -> int:
        """One for each layer, and the image's before them if it is asked for."""
        return self._layers + (image_channels if self.pixel_weight else 0)

    @property
    def _layers(self) -> int:
        return 3 if self.boundary else 2

    def layers_of(self, object_b1hw: Tensor) -> Tensor:
        """The layers (B, 2 or 3, H, W), which sum to 1, of an object that is 1, 0 elsewhere and between on its edge."""
        layers_b2hw = torch.cat([1 - object_b1hw, object_b1hw], dim=1)
        if not self.boundary:
            return layers_b2hw
        reach = max(1, round(self.boundary * object_b1hw.shape[3]))
        wider_b2hw = functional.max_pool2d(layers_b2hw, 2 * reach + 1, stride=1, padding=reach)
        boundary_b1hw = (wider_b2hw.sum(dim=1, keepdim=True) - 1).clamp(0, 1)  # near to both
        return torch.cat([layers_b2hw * (1 - boundary_b1hw), boundary_b1hw], dim=1)

    def object_said(self, prediction_bchw: Tensor) -> Tensor:
        """How likely each pixel is the object's by a prediction (B, C, H, W): (B, 1, H, W) in [0, 1].

        Of its boundary half counts.
        """
        said_blhw = prediction_bchw[:, -self._layers :].float().softmax(dim=1)
        object_b1hw = said_blhw[:, 1:2]
        return object_b1hw + said_blhw[:, 2:] / 2 if self.boundary else object_b1hw

    def __call__(self, prediction_bchw: Tensor, target_bchw: Tensor, hidden_b1hw: Tensor | None) -> Tensor:  # noqa: ARG002
        """Compare (B, layers or C + layers, H, W) with (B, C + 1, H, W): the image and, last, 1 where the object is."""
        channels = target_bchw.shape[1] - 1
        asked = self.out_channels(channels)
        if prediction_bchw.shape != (len(target_bchw), asked, *target_bchw.shape[2:]):
            raise SegaeError(
                f"the prediction has shape {tuple(prediction_bchw.shape)} and the target {tuple(target_bchw.shape)}; "
                f"{asked} channels at the target's size are wanted. Build the model with out_channels of the loss."
            )
        layers_blhw = self.layers_of(target_bchw[:, channels:].float())
        said_blhw = prediction_bchw[:, -self._layers :].float().log_softmax(dim=1)
        loss = functional.kl_div(said_blhw, layers_blhw, reduction="none").sum(dim=1).mean()
        if self.pixel_weight:
            error_bchw = prediction_bchw[:, :channels].float() - target_bchw[:, :channels].float()
            loss = loss + self.pixel_weight * error_bchw.square().mean()
        return loss


def cut_out(image_bchw: Tensor, object_b1hw: Tensor) -> Tensor:
    """The object on a ground of the image's mean colour: the layers as a picture.

    Args:
        image_bchw: (B, C, H, W).
        object_b1hw: (B, 1, H, W) in [0, 1], 1 for object.

    Returns:
        (B, C, H, W).
    """
    ground_bc11 = image_bchw.mean(dim=(2, 3), keepdim=True)
    return ground_bc11 + object_b1hw * (image_bchw - ground_bc11)
