"""Autoencoding methods: give back the image, or something computed from it, after a corruption."""

# ruff: noqa: ARG002, D102 - every method has the signatures and docstrings of Method, and few need all arguments

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor

from segae.errors import SegaeError
from segae.methods import corruptions, losses
from segae.methods.base import Masking, Method, register_method, setting
from segae.methods.corruptions import Corrupted, PatchDifficulty, add_scaled_noise, hide_patches

_LOSSES = {
    "pixels": losses.pixel_loss,
    "patch_normalized": losses.pixel_loss,
    "hog": losses.hog_loss,
    "frequency": losses.frequency_loss,
}
TARGETS = tuple(_LOSSES)
_TARGET_PATCH = 16  # of target patch_normalized, for methods without patches


@dataclass(frozen=True)
class ImageMethod(Method):
    """A method whose target is the clean image; what the network sees is a subclass's matter, here the image itself.

    Attributes:
        judges_hidden: Whether only hidden pixels count.
        target: What the prediction is compared with: ``pixels``, ``patch_normalized`` (every patch brought to mean 0
            and variance 1), ``hog`` (pixels and histograms of oriented gradients) or ``frequency`` (pixels and their
            spectrum).
        criterion: Loss of target ``pixels``: ``mse``, ``l1``, ``binary_cross_entropy`` or ``cross_entropy`` (of 16
            intensities), ``ssim`` or ``ms_ssim``. The last four need images in [0, 1] and so an encoder with mean 0 and
            standard deviation 1, as random weights get then; ``binary_cross_entropy`` also a sigmoid output.
    """

    judges_hidden: ClassVar[bool] = False
    target: str = setting("pixels", choices=TARGETS, kw_only=True)
    criterion: str = setting("mse", choices=losses.CRITERIA, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target != "pixels" and self.criterion != "mse":
            raise SegaeError(f"criterion must be mse for target {self.target}, got {self.criterion}")

    @property
    def predicts_pixels(self) -> bool:
        return self.target == "pixels" and self.criterion != "cross_entropy"

    @property
    def mask_patch(self) -> int | None:  # type: ignore[override]
        return getattr(self, "patch_size", None)

    def out_channels(self, in_channels: int) -> int:
        """Those of the image, each of the intensities' for ``cross_entropy``; and ``hog``'s orientations."""
        if self.criterion == "cross_entropy":
            return in_channels * losses.INTENSITY_BINS
        return in_channels + (losses.HOG_BINS if self.target == "hog" else 0)

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        return Corrupted(images)

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if self.judges_hidden and mask is None:
            raise SegaeError(f"mask must be given to method {self.name}, which judges hidden pixels, got None")
        mask = mask if self.judges_hidden else None
        if self.criterion != "mse":
            return losses.criterion_loss(self.criterion, prediction, target, mask)
        return _LOSSES[self.target](prediction, self._transformed(target), mask)

    def squared_error(self, prediction: Tensor, target: Tensor) -> Tensor:
        return super().squared_error(self._pixels(prediction, target), self._transformed(target))

    def to_image(self, prediction: Tensor, seen: Tensor, clean: Tensor) -> Tensor:
        """Compute the image that the prediction means; normalized patches get the clean image's contrast again."""
        image = super().to_image(self._pixels(prediction, clean), seen, clean)
        return losses.denormalize_patches(image, clean, self._target_patch) if self._target_patch else image

    def _pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        return losses.intensities(prediction, image.shape[1]) if self.criterion == "cross_entropy" else prediction

    @property
    def _target_patch(self) -> int:
        return (self.mask_patch or _TARGET_PATCH) if self.target == "patch_normalized" else 0

    def _transformed(self, target: Tensor) -> Tensor:
        return losses.normalize_patches(target, self._target_patch) if self._target_patch else target


@register_method("reconstruct")
class Reconstruct(ImageMethod):
    """Give back the image as it is (the plain autoencoder)."""


@dataclass(frozen=True)
class RestorationMethod(ImageMethod):
    """A method that restores what ``degrade`` takes from an image.

    Attributes:
        residual: Whether the network predicts what is lost, which is added to what it saw (arXiv 1608.03981), and not
            the whole image. Only for target ``pixels`` with criterion ``mse`` or ``l1``.
    """

    restores: ClassVar[bool] = True
    residual: bool = setting(True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual and (self.target != "pixels" or self.criterion not in ("mse", "l1")):
            seen = f"target {self.target}, criterion {self.criterion}"
            raise SegaeError(f"residual must be False unless target is pixels and criterion mse or l1, got {seen}")

    @property
    def predicts_pixels(self) -> bool:
        return super().predicts_pixels and not self.residual

    @abstractmethod
    def degrade(self, images: Tensor, generator: Generator) -> Tensor:
        """Take from images (B, C, H, W), normalized, what the network is to restore."""

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        seen = self.degrade(images, generator)
        return Corrupted(seen, target=images - seen if self.residual else None)

    def to_image(self, prediction: Tensor, seen: Tensor, clean: Tensor) -> Tensor:
        return super().to_image(prediction + seen if self.residual else prediction, seen, clean)


@register_method("denoise")
class Denoise(RestorationMethod):
    """Remove Gaussian noise (the denoising autoencoder, Vincent et al., 2008).

    Attributes:
        sigma: Standard deviation of the noise in normalized image space, > 0. 0.5 is 64 gray levels of 255 where an
            encoder divides by 0.5 (tf_efficientnet_lite0), and 29 where it divides by ImageNet's deviation.
    """

    sigma: float = setting(0.5, low=0, low_open=True)
    residual: bool = setting(False, kw_only=True)

    def degrade(self, images: Tensor, generator: Generator) -> Tensor:
        return corruptions.add_noise(images, generator, self.sigma)


@register_method("inpaint")
class Inpaint(ImageMethod):
    """Fill hidden patches, which alone are judged; the network sees zeros in their place.

    Attributes:
        patch_size: Side of a hidden patch in pixels, >= 1.
        mask_ratio: Share of the patches that is hidden, in (0, 1).
    """

    restores: ClassVar[bool] = True
    judges_hidden: ClassVar[bool] = True
    fill: ClassVar[Literal["zero", "mean"]] = "zero"
    patch_size: int = setting(16, low=1)
    mask_ratio: float = setting(0.6, low=0, high=1, low_open=True, high_open=True)

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        return hide_patches(images, generator, self.patch_size, self.mask_ratio, fill=self.fill, difficulty=difficulty)


@register_method("spark")
class Spark(Inpaint):
    """Fill hidden patches that no convolution of the encoder sees (SparK, arXiv 2301.03580).

    The settings are those of `Inpaint`; patches have to be multiples of the encoder's stride and divide the image.
    """

    restores: ClassVar[bool] = False
    masking: ClassVar[Masking] = "sparse"
    decoder: ClassVar[str] = "hierarchical"
    patch_size: int = setting(32, low=1)
    target: str = setting("patch_normalized", choices=TARGETS, kw_only=True)

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        corrupted = super().corrupt(images, generator, difficulty)
        if corrupted.visible is None:
            sides = " x ".join(map(str, images.shape[2:]))
            raise SegaeError(f"patch_size must divide images of {sides} px for method spark, got {self.patch_size}")
        return corrupted


@register_method("a2mim")
class A2MIM(Inpaint):
    """Fill patches hidden behind the mean color, judged by pixels and frequencies (A2MIM, arXiv 2205.13943).

    The settings are those of `Inpaint`.
    """

    restores: ClassVar[bool] = False
    masking: ClassVar[Masking] = "token"
    decoder: ClassVar[str] = "linear"
    fill: ClassVar[Literal["zero", "mean"]] = "mean"
    patch_size: int = setting(32, low=1)
    target: str = setting("frequency", choices=TARGETS, kw_only=True)


@register_method("mixture")
class Mixture(ImageMethod):
    """Undo hidden patches, noise, missing color, blur and low resolution at once, and find the edges.

    Mixing corruptions beat every single one in Models Genesis (arXiv 2004.07882).

    Attributes:
        patch_size: Side of a hidden patch in pixels, >= 1.
        mask_ratio: Share of the patches that is hidden, in [0, 1).
        sigma: Standard deviation of the noise in normalized image space, > 0.
    """

    decoder: ClassVar[str] = "unet"
    patch_size: int = setting(16, low=1)
    mask_ratio: float = setting(0.4, low=0, high=1, high_open=True)
    sigma: float = setting(0.22, low=0, low_open=True)
    target: str = setting("hog", choices=TARGETS, kw_only=True)

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        """Apply all corruptions; three images of ten lose color, three sharpness, three resolution."""
        # the mask first: a blur would carry hidden pixels to their neighbors
        hidden = hide_patches(images, generator, self.patch_size, self.mask_ratio, fill="mean", difficulty=difficulty)
        seen = corruptions.remove_color(hidden.image, generator, 0.3)
        seen = corruptions.blur(seen, generator, 0.3, (0.5, 2.0))
        seen = corruptions.reduce_resolution(seen, generator, 0.3, (2, 4))
        return Corrupted(add_scaled_noise(seen, generator, self.sigma)[0], hidden.mask)


@register_method("colorize")
class Colorize(RestorationMethod):
    """Give a gray image its colors (arXiv 1603.08511); it is gray in the sense of Rec. 601's luminance."""

    needs_rgb: ClassVar[bool] = True
    decoder: ClassVar[str] = "unet"

    def degrade(self, images: Tensor, generator: Generator) -> Tensor:
        return corruptions.remove_color(images, generator, 1.0)


@register_method("super_resolution")
class SuperResolution(RestorationMethod):
    """Give an image the resolution that it lost (super-resolution, arXiv 1501.00092).

    Attributes:
        factor: How many pixels along each side become one, 2 to 16, before the image is enlarged again.
    """

    decoder: ClassVar[str] = "unet"
    factor: int = setting(4, low=2, high=16)

    def degrade(self, images: Tensor, generator: Generator) -> Tensor:
        return corruptions.reduce_resolution(images, generator, 1.0, (self.factor,))


@register_method("sharpen")
class Sharpen(RestorationMethod):
    """Undo a Gaussian blur.

    Attributes:
        sigma: Width of the blur in pixels, > 0.
    """

    decoder: ClassVar[str] = "unet"
    sigma: float = setting(1.5, low=0, low_open=True)

    def degrade(self, images: Tensor, generator: Generator) -> Tensor:
        return corruptions.blur(images, generator, 1.0, (self.sigma, self.sigma))


@register_method("ddep")
class DDeP(Method):
    """Train the decoder alone to predict the noise of standard deviation ``sigma`` (DDeP, arXiv 2205.11423)."""

    decoder: ClassVar[str] = "unet"
    frozen_encoder: ClassVar[bool] = True
    sigma: float = setting(0.22, low=0, low_open=True)

    @property
    def predicts_pixels(self) -> bool:
        return False  # but noise

    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        noisy, noise = add_scaled_noise(images, generator, self.sigma)
        return Corrupted(noisy, target=noise)

    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        return losses.pixel_loss(prediction, target)

    def to_image(self, prediction: Tensor, seen: Tensor, clean: Tensor) -> Tensor:
        return seen * math.sqrt(1 + self.sigma**2) - self.sigma * prediction[:, : clean.shape[1]]
