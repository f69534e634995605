"""Autoencoders whose code is judged, too: sparse, contractive, variational; and their penalties."""

# ruff: noqa: ARG002, D102 - every method has the signatures and docstrings of Method, and few need all arguments

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from segae.errors import SegaeError
from segae.methods.autoencoding import ImageMethod
from segae.methods.base import register_method, setting

Encode = Callable[[Tensor], Tensor]
"""From images (B, C, H, W) to codes (B, K, h, w), each of its image alone."""

_LARGEST_CODE = 256  # numbers; each costs a backward pass per step


def kl_to_rate(code: Tensor, rate: float) -> Tensor:
    """Kullback-Leibler divergence of the mean activation of each number of a code from a rate in (0, 1), their mean.

    The code (B, K, h, w) is in [0, 1]; the mean is over the batch (Ng, Sparse autoencoder, CS294A lecture notes, 2011).
    """
    mean = code.float().mean(dim=0).clamp(1e-6, 1 - 1e-6)
    return kl_divergence(Bernoulli(torch.full_like(mean, rate)), Bernoulli(mean)).mean()


def gaussian_kl(moments: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a Gaussian code from the standard normal one, in nats per image (B,).

    The moments (B, 2K, h, w) are means and logarithms of variances (arXiv 1312.6114).
    """
    mean, log_variance = moments.float().chunk(2, dim=1)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1)


def jacobian_norm(encode: Encode, images: Tensor) -> Tensor:
    """Squared Frobenius norm of the code's derivative by the image, mean over the images, exactly.

    SegaeError: the code has more than 256 numbers.
    """
    if (size := encode(images[:1]).numel()) > _LARGEST_CODE:
        raise SegaeError(f"jacobian must be estimated for a code of more than {_LARGEST_CODE} numbers, got {size}")
    derivative = torch.func.vmap(torch.func.jacrev(lambda image: encode(image[None])))(images)
    return derivative.square().sum() / len(images)


def estimate_jacobian_norm(encode: Encode, images: Tensor) -> Tensor:
    """Estimate `jacobian_norm` without bias from one random direction per image (Hutchinson's estimator)."""
    code, pull_back, *_ = torch.func.vjp(encode, images)
    (gradient,) = pull_back(torch.randn_like(code))
    return gradient.float().square().sum() / len(images)


@register_method("sparse")
class Sparse(ImageMethod):
    """Give back the image from a code that is mostly zero (sparse autoencoder: L1, or KL to a target rate).

    Attributes:
        penalty_kind: ``l1``: mean absolute value of the code after ReLU; ``kl``: see `kl_to_rate`, after a sigmoid.
        weight: Of the penalty beside the loss, >= 0.
        rate: Mean activation that ``kl`` asks for, in (0, 1).
    """

    penalty_kind: str = setting("l1", choices=("l1", "kl"))
    weight: float = setting(0.01, low=0)
    rate: float = setting(0.05, low=0, high=1, low_open=True, high_open=True)

    @property
    def code(self) -> str:  # type: ignore[override]
        return "relu" if self.penalty_kind == "l1" else "sigmoid"

    def penalty(self, code: Tensor, encode: Encode, images: Tensor) -> Tensor:
        return self.weight * (code.float().abs().mean() if self.penalty_kind == "l1" else kl_to_rate(code, self.rate))


@register_method("contractive")
class Contractive(ImageMethod):
    """Give back the image from a code that hardly moves with it (contractive autoencoder, Rifai et al., ICML 2011).

    The penalty is the squared norm of the code's derivative by the image, through BatchNorm's running statistics.

    Attributes:
        jacobian: ``estimate``, from one random direction per image and step, or ``exact``, for small codes.
        weight: Of the penalty beside the loss, >= 0.
    """

    jacobian: str = setting("estimate", choices=("estimate", "exact"))
    weight: float = setting(0.01, low=0)

    def penalty(self, code: Tensor, encode: Encode, images: Tensor) -> Tensor:
        return self.weight * (jacobian_norm if self.jacobian == "exact" else estimate_jacobian_norm)(encode, images)


@register_method("variational")
class Variational(ImageMethod):
    """Give back the image from a sample of a Gaussian code near the standard normal one (VAE, arXiv 1312.6114).

    Loss and penalty are minus the evidence lower bound, divided by the number of pixel values: of Bernoulli pixels with
    criterion ``binary_cross_entropy``, of normal ones with variance 1/2 with ``mse``.

    Attributes:
        beta: Weight of the divergence, >= 0; other than 1 makes a beta-VAE (Higgins et al., ICLR 2017).
    """

    code: ClassVar[str] = "gaussian"
    beta: float = setting(1.0, low=0)

    def penalty(self, code: Tensor, encode: Encode, images: Tensor) -> Tensor:
        return self.beta * gaussian_kl(code).mean() / images[0].numel()
