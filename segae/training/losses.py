"""Losses of segmentation and classification by name, and sums of them; pixels of class index 255 do not count."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from segmentation_models_pytorch import losses
from torch import Tensor, nn

from segae._io import require_choice
from segae.errors import SegaeError, nearest
from segae.image_format import IGNORE_INDEX

_SHARED: dict[str, Any] = {"mode": "multiclass", "ignore_index": IGNORE_INDEX}
_LOSSES: dict[str, Callable[[], nn.Module]] = {
    "dice": lambda: _Overlap(losses.DiceLoss(**_SHARED)),
    "jaccard": lambda: _Overlap(losses.JaccardLoss(**_SHARED)),
    "focal": lambda: losses.FocalLoss(**_SHARED),
    "lovasz": lambda: losses.LovaszLoss(**_SHARED),
}
LOSSES = {
    "cross_entropy": "of each pixel; the only one that takes class weights and label smoothing",
    "dice": "one minus the Dice score of each class: small classes count as much as large ones (arXiv 1606.04797)",
    "jaccard": "one minus the intersection over union of each class (10.1007/978-3-319-50835-1_22)",
    "focal": "of each pixel, less where it is predicted well (arXiv 1708.02002, of each class against the rest)",
    "lovasz": "a convex surrogate of the intersection over union, Lovasz-Softmax (arXiv 1705.08790)",
}
"""What can be named, with a line about each."""


class SupervisedLoss(nn.Module):
    """A loss between logits (B, K, ...) and class indices (B, ...), such as ``cross_entropy`` or ``dice+0.5*focal``.

    ``LOSSES`` describes the names. All but cross-entropy and focal count a class over the whole batch, and average over
    the classes that the batch has. Class indices of 255 do not count; the loss of a batch without others is 0.

    Args:
        text: names, with a factor before each where it is not 1, joined by ``+``.
        num_classes: K.
        class_weights: of each class in the cross-entropy, (K,); None for equal ones.
        label_smoothing: share of the target in [0, 1) that cross-entropy spreads over all classes.

    Raises:
        SegaeError: a name or a factor that cannot be used, or weights or smoothing without a cross-entropy.

    Example:
        >>> loss = SupervisedLoss("cross_entropy+dice", num_classes=3)
        >>> float(loss(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255)))
        0.0
    """

    def __init__(
        self,
        text: str,
        *,
        num_classes: int,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(text, str):
            raise SegaeError(f"loss must be a text or a function, got {text!r}")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if weights is not None and (len(weights) != num_classes or not weights.sum() > 0):
            raise SegaeError(f"class_weights must be {num_classes} numbers, not all 0, got {class_weights}")
        self.parts, self.factors = nn.ModuleList(), list[float]()
        for term in text.split("+"):
            factor, _, name = ("1*" + term if "*" not in term else term).partition("*")
            if (name := name.strip()) not in LOSSES:
                hint = nearest(name, LOSSES)
                raise SegaeError(
                    f"loss must be one of {', '.join(LOSSES)} or a sum such as dice+0.5*focal, got {text!r}{hint}"
                )
            try:
                self.factors.append(float(factor))
            except ValueError:
                raise SegaeError(f"loss must have numbers before *, got {text!r}") from None
            if name == "cross_entropy":
                how: dict[str, Any] = {"ignore_index": IGNORE_INDEX, "label_smoothing": label_smoothing}
                self.parts.append(nn.CrossEntropyLoss(weights, **how))
            else:
                self.parts.append(_LOSSES[name]())
        if not all(0 < factor < float("inf") for factor in self.factors):
            raise SegaeError(f"loss must have factors above 0, got {text!r}")
        if (weights is not None or label_smoothing) and "cross_entropy" not in text:
            raise SegaeError(f"loss must have cross_entropy for class_weights or label_smoothing, got {text!r}")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute a scalar."""
        logits = logits.float()  # bfloat16 has eight bits, and a class is summed over a hundred thousand pixels
        counts = (target != IGNORE_INDEX).any()
        target = target.where(counts, 0)  # means of nothing would be NaN
        terms = [factor * part(logits, target) for factor, part in zip(self.factors, self.parts, strict=True)]
        return torch.stack(terms).sum() * counts


def supervised_loss(
    loss: str | Callable[[Tensor, Tensor], Tensor],
    *,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    whole_images: bool = False,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of one's own as it is, and make that of a text.

    Other arguments are as in ``SupervisedLoss``; with ``whole_images``, a class for each, the text must be
    ``cross_entropy``. SegaeError for what cannot be used, or weights or smoothing beside a loss of one's own.
    """
    if not callable(loss):
        if whole_images:
            require_choice("loss", loss, ("cross_entropy",))
        how: dict[str, Any] = {"class_weights": class_weights, "label_smoothing": label_smoothing}
        return SupervisedLoss(loss, num_classes=num_classes, **how)
    if class_weights is not None or label_smoothing:
        given = f"{class_weights}, {label_smoothing}"
        raise SegaeError(f"class_weights and label_smoothing must be left out for a loss of your own, got {given}")
    return loss


class _Overlap(nn.Module):
    """A loss of smp that is a mean over all classes, as the mean over those that the batch has."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        mean_of_all = self.loss(logits, mask)
        classes = torch.zeros(IGNORE_INDEX + 1, device=mask.device).index_fill_(0, mask.flatten().long(), 1)
        present = classes[: logits.shape[1]].sum()
        return mean_of_all * logits.shape[1] / present


def balanced_weights(masks: Any, num_classes: int) -> tuple[float, ...]:
    """Weigh each class by the inverse of its share of the pixels, so that the mean weight of a pixel is 1.

    ``masks`` are class indices (N, ...), of which 255 does not count; a class without a pixel gets the weight 0.
    """
    counts = sum(torch.bincount(torch.as_tensor(mask).flatten().long(), minlength=256) for mask in masks)
    counts = torch.as_tensor(counts)[:num_classes].double()
    present = counts > 0
    return tuple(torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0).tolist())
