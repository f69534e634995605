"""Pseudo-mask methods: predict, from a crop, a mask that an unsupervised segmentation found in the whole image.

Three sources of masks: GrabCut on color models, GrabCut on features of a pretrained encoder, and Otsu's threshold on
brightness. None uses a label. The first two assume that the object is near the middle and seldom fills the frame, which
has to be said beside their numbers.
"""

# ruff: noqa: ARG002, D102 - a method has the signatures and docstrings of Method and does not need all arguments

import copy
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from typing import ClassVar, Literal, Self

import cv2
import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from segae.errors import SegaeError
from segae.methods.base import Family, Method, register_method, setting
from segae.methods.corruptions import Corrupted, PatchDifficulty, change_light, crop_with_mask
from segae.methods.losses import pseudo_mask_loss

_BOUNDARY = {"color": 1 / 48, "features": 1 / 48, "brightness": 1 / 96}
_SIDE = 48  # of the grid for colors: the boundary needs no more, and the palettes cost little
_COLORS, _PALETTE_STEPS, _MASK_STEPS = 16, 8, 5
_BANDWIDTH = 0.18  # of a palette's color, in standard deviations of the image's colors
_PRIOR_SIGMA, _PRIOR_PEAK, _PRIOR_FLOOR = 0.66, 0.8, 0.03  # in half sides of the image; probabilities
_SURE, _ROUNDS = 0.2, 2  # GrabCut takes what is less likely than this, or more likely than 1 - this, as sure
_CACHED_CUTS = 1 << 18  # of 1.2 kB at 96 px
_STRIDE = 16  # of the features: deeper maps are too coarse for a boundary, shallower ones see texture
_ENLARGED = 2  # how many times the image's sides the encoder sees, so that the map is finer
_SHRINKAGE = 0.01  # of the covariance towards independent features of equal variance
_LEVELS = 64  # of brightness
_UNEVEN = 1 / 8  # sigma, in sides of the image, of what counts as uneven light

FindObject = Callable[[Tensor], Tensor]


@register_method("pseudo_masks")
class PseudoMasks(Method):
    """Tell object, background and boundary in a crop, as an unsupervised segmentation did in the whole image.

    The mask of a whole image could mostly be guessed from the place; in a crop the place says little.

    Attributes:
        source: What the masks are found by: ``color`` (GrabCut on color models), ``features`` (GrabCut on a linear
            discriminant of a pretrained encoder's features; call `prepare` first, without it color decides) or
            ``brightness`` (Otsu's threshold, for many small bright or dark objects).
        boundary: How far the boundary class reaches to either side, as a share of the image's side in [0, 0.5); 0
            asks for object and background alone. None is 1/48, or 1/96 for ``brightness``.
    """

    family: ClassVar[Family] = "pseudo_masks"
    lr: ClassVar[float] = 2e-3
    decoder: ClassVar[str] = "unet"
    crops: ClassVar[bool] = True
    source: Literal["color", "features", "brightness"] = setting("color", choices=tuple(_BOUNDARY))
    boundary: float | None = setting(None, low=0, high=0.5, high_open=True)

    @property
    def needs_pretrained_encoder(self) -> bool:  # type: ignore[override]
        return self.source == "features"

    @property
    def _reach(self) -> float:
        return _BOUNDARY[self.source] if self.boundary is None else self.boundary

    @cached_property
    def _find(self) -> FindObject:
        return segment_by_brightness if self.source == "brightness" else GrabCut()

    def prepare(self, encoder: nn.Module, batches: Iterable[Tensor]) -> None:
        if self.source == "features":
            vars(self)["_find"] = GrabCut(FeatureDiscriminant().fit(encoder, batches))

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        """Find the object in whole images, crop, and change the light of the crop.

        The target (B, C + 1, H, W) is the crop in its own light and, last, its mask.
        """
        target = crop_with_mask(images, self._find(images), generator)
        crop = target[:, :-1].to(images.dtype).contiguous(memory_format=torch.channels_last)
        return Corrupted(change_light(crop, generator), target=target)

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return pseudo_mask_loss(prediction, target, boundary=self._reach)

    def out_channels(self, in_channels: int) -> int:
        """Those of the image, then one for each class: background, object and maybe boundary."""
        return in_channels + (3 if self._reach else 2)

    def object_probability(self, prediction: Tensor) -> Tensor:
        probability = prediction[:, -self.out_channels(0) :].float().softmax(dim=1)
        inside = probability[:, 1:2]
        return inside + probability[:, 2:] / 2 if self._reach else inside  # half of the boundary counts


@torch.no_grad()
def segment_by_color(images: Tensor) -> Tensor:
    """Estimate where the object is by the palettes of object and background: float32 (B, 1, H, W) in (0, 1).

    The colors of an image are gathered into a palette of 16 by k-means. Every pixel begins with a prior that falls off
    from the middle; then, five times, object and background count how often they have each color, and the pixels are
    divided again by these counts and the prior. Nothing is drawn at random. The images (B, C, H, W) have any scale.
    """
    height, width = images.shape[2:]
    rows, columns = min(height, _SIDE), min(width, _SIDE)
    with torch.autocast(images.device.type, enabled=False):
        small = _smooth(functional.interpolate(images.float(), size=(rows, columns), mode="area"), 0.7)
        share = _palette_shares(small.flatten(2).transpose(1, 2))
        prior = center_prior(rows, columns, images.device)
        mask = prior.expand(len(images), 1, rows, columns)
        for _ in range(_MASK_STEPS):
            weight = mask.flatten(2).transpose(1, 2)
            evidence = _log_frequency(share, weight) - _log_frequency(share, 1 - weight)
            evidence = (share @ evidence).view(-1, 1, rows, columns)
            mask = torch.sigmoid(_smooth(evidence, 1.5) + prior.logit())
        return functional.interpolate(mask, size=(height, width), mode="bilinear", align_corners=False)


def _palette_shares(color: Tensor) -> Tensor:
    """How much of each pixel's color (B, N, C) is each color of the image's palette (B, N, K); they sum to 1."""
    count, channels = color.shape[1:]
    centered = color - color.mean(dim=1, keepdim=True)
    deviation = centered.square().mean(dim=(1, 2), keepdim=True).sqrt()  # over all channels
    color = torch.where(deviation > 1e-5, centered / deviation.clamp(min=1e-5), 0.0)
    chosen = torch.linspace(0, count - 1, _COLORS, device=color.device).long()
    order = color.sum(dim=2).argsort(dim=1, stable=True)
    palette = color.gather(1, order[:, chosen].unsqueeze(2).expand(-1, -1, channels))
    index = torch.arange(_COLORS, device=color.device)
    for _ in range(_PALETTE_STEPS):
        nearest = (_squared_distance(color, palette).argmin(dim=2, keepdim=True) == index).float()
        members = nearest.sum(dim=1).unsqueeze(2)
        mean = nearest.transpose(1, 2) @ color / members.clamp(min=1)
        palette = torch.where(members > 0, mean, palette)
    return torch.softmax(-_squared_distance(color, palette) / (2 * _BANDWIDTH**2), dim=2)


def _squared_distance(color: Tensor, palette: Tensor) -> Tensor:
    """(B, N, K), but for the pixel's own square, which argmin and softmax over K do not see."""
    return palette.square().sum(dim=2).unsqueeze(1) - 2 * color @ palette.transpose(1, 2)


def _log_frequency(share: Tensor, weight: Tensor) -> Tensor:
    """Logarithm of how often a layer has each color (B, K, 1); half a pixel is added to each, for those unseen."""
    seen = (share * weight).sum(dim=1).unsqueeze(2) + 0.5
    return (seen / seen.sum(dim=1, keepdim=True)).log()


def center_prior(rows: int, columns: int, device: torch.device) -> Tensor:
    """Probability (1, 1, rows, columns) of the object before any color is seen, highest in the middle."""
    y = (torch.arange(rows, device=device) + 0.5) / rows * 2 - 1
    x = (torch.arange(columns, device=device) + 0.5) / columns * 2 - 1
    squared = y.square().unsqueeze(1) + x.square().unsqueeze(0)
    return (_PRIOR_PEAK * torch.exp(-squared / (2 * _PRIOR_SIGMA**2)) + _PRIOR_FLOOR).view(1, 1, rows, columns)


def _smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every channel; edges are continued."""
    reach = int(2 * sigma) + 1
    place = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = torch.exp(-place.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    batch, channels, height, width = maps.shape
    flat = functional.pad(maps.reshape(batch * channels, 1, height, width), (reach,) * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.view(batch, channels, height, width)


class GrabCut:
    """Segment whole images into object and background with a boundary on their edges, once for each image.

    GrabCut (Rother et al., SIGGRAPH 2004, doi 10.1145/1186562.1015720) takes some 30 ms on a CPU core at 96 px, as long
    as a training step of a small network takes for an image. So as many cuts run at once as torch has threads, and the
    results are kept by the image's values, for 262,144 images at most; mirror images share one. ``start`` gives
    the object's probability (B, 1, H, W) for images (B, C, H, W); the cut begins where it is sure.
    """

    def __init__(self, start: FindObject = segment_by_color) -> None:
        self._start = start
        self._cached: dict[bytes, bytes] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return 1 for object and 0 for background, float32 (B, 1, H, W), for images (B, C, H, W) of any scale."""
        # uint8 (B, H, W, C), each image from its own darkest to its own brightest value
        scaled = (_to_unit(images) * 255).round().byte().permute(0, 2, 3, 1)
        upright = np.asarray(scaled.contiguous().cpu().numpy())
        mirrored = _are_mirrored(upright)
        upright[mirrored] = upright[mirrored][:, :, ::-1]
        keys = [blake2b(one.tobytes(), digest_size=16, person=str(one.shape).encode()[:16]).digest() for one in upright]
        found = {key: self._cached[key] for key in keys if key in self._cached}
        new = {key: place for place, key in enumerate(keys) if key not in found}
        if new:
            asked = [images[place].flip(2) if mirrored[place] else images[place] for place in new.values()]
            likely = self._start(torch.stack(asked))[:, 0].cpu().numpy()
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # OpenCV releases the interpreter meanwhile
                cuts = threads.map(_cut, [upright[place] for place in new.values()], likely)
                found.update({key: np.packbits(cut).tobytes() for key, cut in zip(new, cuts, strict=True)})
            if len(self._cached) < _CACHED_CUTS:
                self._cached.update({key: found[key] for key in new})
        height, width = images.shape[2:]
        bits = np.stack([np.frombuffer(found[key], np.uint8) for key in keys])
        masks = np.unpackbits(bits, axis=1, count=height * width).reshape(-1, height, width)
        masks[mirrored] = masks[mirrored][:, :, ::-1]
        return torch.from_numpy(masks).unsqueeze(1).to(images.device, torch.float32)


def _are_mirrored(images: np.ndarray) -> np.ndarray:
    """bool (B,): of an image (H, W, C) and its mirror image exactly one is, unless they are of one brightness."""
    half = images.shape[2] // 2
    left, right = (part.sum(axis=(1, 2, 3), dtype=np.int64) for part in (images[:, :, :half], images[:, :, -half:]))
    return left < right


def _cut(image: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """Cut one image, uint8 (H, W, C), with the object's probability (H, W): bool (H, W)."""
    mask = np.where(likely > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    mask[likely < _SURE] = cv2.GC_BGD
    mask[likely > 1 - _SURE] = cv2.GC_FGD
    color = np.repeat(image[:, :, :1], 3, axis=2) if image.shape[2] < 3 else image[:, :, :3]  # it takes three channels
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # it starts its color models by k-means
    try:
        cv2.grabCut(np.ascontiguousarray(color), mask, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # one of the two has too few pixels for five colors, as in an image of one color
        return likely > 0.5
    return (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)


class FeatureDiscriminant:
    """Estimate where the object is by features that an encoder has learned elsewhere.

    `GrabCut` errs in many images, in each in another way. Over all images, the direction in which the features of
    objects differ from those of backgrounds averages these errors out: Fisher's linear discriminant (Annals of Eugenics
    1936, doi 10.1111/j.1469-1809.1936.tb02137.x). Each pixel's log-odds are added to those of `center_prior`. ``find``
    gives the first guess, (B, 1, H, W) in [0, 1], for images (B, C, H, W); None is `GrabCut`.
    """

    def __init__(self, find: FindObject | None = None) -> None:
        self._find = find or GrabCut()
        self._encoder: nn.Module = nn.Identity()
        self._direction = self._offset = torch.empty(0)

    @torch.no_grad()
    def fit(self, encoder: nn.Module, batches: Iterable[Tensor]) -> Self:
        """Keep a copy of the encoder as it is, and find the direction in clean, whole, normalized images.

        SegaeError: no image, or all of them without an object or without a background.
        """
        self._encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        device = next(encoder.parameters()).device
        sums = [WeightedSums(), WeightedSums()]  # of background and object
        for images in batches:
            features = self._features(images.to(device))
            mask = functional.interpolate(self._find(images).to(device), size=features.shape[2:], mode="area")
            vectors = features.permute(0, 2, 3, 1).flatten(0, 2).double()
            for one, weight in zip(sums, (1 - mask, mask), strict=True):
                one.add(vectors, weight.flatten().double())
        if min(float(one.weight) for one in sums) < 1:
            raise SegaeError("batches must show objects and backgrounds, got images with only one of them, or none")
        background, thing = sums
        direction = torch.linalg.solve(within_covariance(sums), thing.mean() - background.mean())
        self._offset = -(direction @ (thing.mean() + background.mean()) / 2).float()
        self._direction = direction.float()
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Probability of the object, float32 (B, 1, H, W), for normalized whole images (B, C, H, W), after `fit`."""
        height, width = images.shape[2:]
        device = self._direction.device
        odds = torch.einsum("bcrq,c->brq", self._features(images.to(device)), self._direction) + self._offset
        odds = functional.interpolate(odds.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False)
        return torch.sigmoid(odds + center_prior(height, width, device).logit()).to(images.device)

    def _features(self, images: Tensor) -> Tensor:
        """float32 (B, C, H / 8, W / 8) of the enlarged images: the deepest map of a stride up to 16."""
        height = images.shape[2]
        with torch.autocast(images.device.type, enabled=False):
            large = functional.interpolate(images.float(), scale_factor=_ENLARGED, mode="bilinear", align_corners=False)
            maps = self._encoder(large)
        fine = [one for one in maps if one.shape[1] and one.shape[2] * _STRIDE >= _ENLARGED * height]
        return fine[-1].float()


class WeightedSums:
    """Weighted count, sum and products of the vectors of one class, gathered batch by batch for a discriminant."""

    def __init__(self) -> None:
        self.weight = self._sum = self._products = torch.zeros(())

    def add(self, vectors: Tensor, weights: Tensor) -> None:
        """Add vectors (N, C) with weights (N,), 0 or more."""
        weighted = vectors * weights.unsqueeze(1)
        self.weight = self.weight.to(weights) + weights.sum()
        self._sum = self._sum.to(weights) + weighted.sum(dim=0)
        self._products = self._products.to(weights) + weighted.T @ vectors

    def mean(self) -> Tensor:
        """Weighted mean (C,)."""
        return self._sum / self.weight

    def scatter(self) -> Tensor:
        """Weighted sum (C, C) of the products of the vectors' differences from their mean."""
        return self._products - torch.outer(self._sum, self._sum) / self.weight.clamp(min=1e-12)


def within_covariance(classes: Sequence[WeightedSums]) -> Tensor:
    """Covariance (C, C) of vectors around the means of their classes, shrunk a little so that it has an inverse."""
    weight = torch.stack([one.weight for one in classes]).sum()
    within = torch.stack([one.scatter() for one in classes]).sum(dim=0) / weight
    floor = _SHRINKAGE * within.diagonal().mean().clamp(min=1e-12)
    return within + floor * torch.eye(len(within), dtype=within.dtype, device=within.device)


@torch.no_grad()
def segment_by_brightness(images: Tensor) -> Tensor:
    """Mark by 1 the bright or the dark pixels of each image, whichever are fewer; uneven light is taken away before.

    Otsu's threshold (1979, doi 10.1109/TSMC.1979.4310076) of the square root of the brightness, which evens out how
    faintly fluorescent things differ from the background, less a wide blur of it. The objects can be anywhere, but have
    to cover less than half of the image, each below a quarter of its side. The marks are float32 (B, 1, H, W), for
    images (B, C, H, W) of any scale; an image of one brightness is background, 0.
    """
    with torch.autocast(images.device.type, enabled=False):
        light = _to_unit(images.float().mean(dim=1, keepdim=True)).sqrt()
        even = _to_unit(light - _smooth(light, _UNEVEN * images.shape[3]))
        level = (even.flatten(1) * _LEVELS).long().clamp(max=_LEVELS - 1)
        bright = level > _otsu_threshold(level)
        few = bright.float().mean(dim=1, keepdim=True) <= 0.5
        return (bright == few).float().view_as(light)


def _to_unit(maps: Tensor) -> Tensor:
    """Scale every image from its own lowest value, 0, to its own highest, 1; 0 where there is one value."""
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    span = maps.amax(dim=(1, 2, 3), keepdim=True) - low
    return torch.where(span > 1e-6, (maps - low) / span.clamp(min=1e-6), 0.0)


def _otsu_threshold(level: Tensor) -> Tensor:
    """The last level (B, 1) of the darker class: the variance between the two classes is the largest there."""
    index = torch.arange(_LEVELS, device=level.device)
    count = torch.stack([(level == one).sum(dim=1) for one in index], dim=1).double()
    below, total_below = count.cumsum(dim=1), (count * index).cumsum(dim=1)
    everything, total = below[:, -1:], total_below[:, -1:]
    difference = total_below * everything - below * total
    between = difference.square() / (below * (everything - below)).clamp(min=1)
    return between.argmax(dim=1, keepdim=True)


def cut_out(images: Tensor, mask: Tensor) -> Tensor:
    """Show the object of images (B, C, H, W), where a mask (B, 1, H, W) is 1, on the image's mean color."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + mask * (images - mean)
