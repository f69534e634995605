"""Object and ground of an image told apart by what an encoder already knows: a linear discriminant of its features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.objectives.discriminant import WeightedSums, within_covariance
from segae.objectives.layer_cut import LayerCut
from segae.objectives.layers import centre_prior, split_layers

_STRIDE = 16  # of the feature map: deeper ones are too coarse for a boundary, shallower ones see texture
_ENLARGED = 2  # how many times the image's sides the encoder sees, so that the map is finer


class FeatureLayers:
    """How likely each pixel belongs to the object, by features that an encoder has brought from elsewhere.

    `LayerCut` errs in many images, in each in another way. Over all images, the direction in which the features of
    its objects differ from its grounds' averages these errors out: Fisher's linear discriminant (Annals of Eugenics
    1936, doi 10.1111/j.1469-1809.1936.tb02137.x), here of features of stride 16 that stay as they are. Each pixel's
    log-odds are added to those of the prior of `split_layers`. No label is used; what the encoder was trained on is.

    Args:
        find: Gives where the object is, (B, 1, H, W) in [0, 1], for images (B, C, H, W); the direction comes from it.
    """

    def __init__(self, find: Callable[[Tensor], Tensor] | None = None) -> None:
        self._find = LayerCut() if find is None else find
        self._encoder: nn.Module | None = None
        self._direction_c = self._offset = torch.empty(0)

    @torch.no_grad()
    def fit(self, encoder: nn.Module, batches: Iterable[Tensor]) -> FeatureLayers:
        """Keep a copy of the encoder as it is, and find the direction.

        Args:
            encoder: Gives a list of feature maps for images (B, C, H, W); its copy is at rest, on the encoder's device.
            batches: Clean whole images (B, C, H, W), normalised as the encoder wants them.

        Raises:
            SegaeError: No image, or all of them without an object or without a ground.
        """
        self._encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        device = next(encoder.parameters()).device
        sides = [WeightedSums(), WeightedSums()]  # of the ground, of the object
        for image_bchw in batches:
            feature_bcrq = self._features(image_bchw.to(device))
            object_b1rq = functional.interpolate(
                self._find(image_bchw).to(device), size=feature_bcrq.shape[2:], mode="area"
            )
            feature_nc = feature_bcrq.permute(0, 2, 3, 1).flatten(0, 2).double()
            for side, weight_b1rq in zip(sides, (1 - object_b1rq, object_b1rq), strict=True):
                side.add(feature_nc, weight_b1rq.flatten().double())
        if min(float(side.weight) for side in sides) < 1:
            self._encoder = None
            raise SegaeError(
                "no direction tells object from ground: the images given have no object, or nothing else. Give the "
                "images to be trained on, or use objective layers."
            )
        ground, thing = sides
        direction_c = torch.linalg.solve(within_covariance(sides), thing.mean() - ground.mean())
        self._offset = -(direction_c @ (thing.mean() + ground.mean()) / 2).float()
        self._direction_c = direction_c.float()
        return self

    @torch.no_grad()
    def __call__(self, image_bchw: Tensor) -> Tensor:
        """Probability of the object, float32 (B, 1, H, W), for normalised whole images (B, C, H, W).

        Before `fit` it is what `split_layers` says.
        """
        if self._encoder is None:
            return split_layers(image_bchw)
        height, width = image_bchw.shape[2:]
        device = self._direction_c.device
        feature_bcrq = self._features(image_bchw.to(device))
        odds_brq = torch.einsum("bcrq,c->brq", feature_bcrq, self._direction_c) + self._offset
        odds_b1hw = functional.interpolate(
            odds_brq.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False
        )
        return torch.sigmoid(odds_b1hw + centre_prior(height, width, device).logit()).to(image_bchw.device)

    def _features(self, image_bchw: Tensor) -> Tensor:
        """float32 (B, C, H / 8, W / 8) of the enlarged images: the deepest map of a stride up to 16."""
        assert self._encoder is not None
        height = image_bchw.shape[2]
        with torch.autocast(image_bchw.device.type, enabled=False):
            large_bchw = functional.interpolate(
                image_bchw.float(), scale_factor=_ENLARGED, mode="bilinear", align_corners=False
            )
            maps = self._encoder(large_bchw)
        fine = [one for one in maps if one.shape[1] and one.shape[2] * _STRIDE >= _ENLARGED * height]
        return fine[-1].float()
