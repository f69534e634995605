"""Detect anomalies after seeing normal images alone: by reconstruction error or by the distance of features."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from segae._io import check_range
from segae.applications.features import collect_features, compute_features, list_images, open_encoder
from segae.data import image_io
from segae.errors import SegaeError
from segae.image_format import Size
from segae.models import KINDS, Autoencoder, AutoencoderInfo, Encoder, EncoderInfo
from segae.models.checkpoint import Info, PathLike, load_described, load_strictly, save_described

_LAYER = 4  # stride 16; benchmarks/discovery.py compares layers
_MOST = 1000  # images that the fit sees: their maps are in memory


@dataclass(frozen=True)
class DetectorInfo(Info):
    """What a detector is and what its threshold promises."""

    model: AutoencoderInfo | EncoderInfo
    layer: int
    image_size: Size
    threshold: float = 0.0
    false_alarm_rate: float = 1.0  # that was asked for
    held_out: int = 0  # normal images that the threshold was set on
    rate_interval: tuple[float, float] = (0.0, 1.0)  # 95 %, Clopper-Pearson, of the rate of the threshold


class _Heat(nn.Module):
    """An encoder whose one feature map, (B, 1, h, w), is how anomalous each position of an image is."""

    def __init__(self, model: Any, layer: int, known: Mapping[str, Tensor]) -> None:
        super().__init__()
        encoder = model.encoder if isinstance(model, Autoencoder) else model
        self.model, self.layer, self.info, self.output_stride = model, layer, encoder.info, encoder.output_stride
        self.out_channels = (encoder.info.in_channels, 1)
        for name, tensor in known.items():
            self.register_buffer(name, tensor)

    def forward(self, images: Tensor) -> list[Tensor]:
        if isinstance(self.model, Autoencoder):
            return [images, (self.model(images) - images).square().mean(dim=1, keepdim=True)]
        away = self.model(images)[self.layer].movedim(1, 3) - self.mean
        of_position, of_mean = away @ self.whiten_position, away.mean(dim=(1, 2), keepdim=True) @ self.whiten_mean
        return [images, (of_position.square().sum(dim=3) + of_mean.square().sum(dim=3)).unsqueeze(1)]


class AnomalyDetector:
    """Score how unlike normal images an image is; the threshold keeps a rate of false alarms. Made by ``fit``.

    The score is the mean of the heat map. With an autoencoder that is the squared error of the reconstruction. With an
    encoder it is the squared Mahalanobis distance of the features of each position from normal ones there (arXiv
    2011.08785), plus that of their mean (arXiv 1807.03888); covariances are shrunk, and one for all positions.

    Example:
        >>> detector = AnomalyDetector.fit("good", "imagenet", false_alarm_rate=0.05)  # doctest: +SKIP
        >>> detector.predict(["new/1.png", "new/2.png"])  # doctest: +SKIP
        array([False,  True])
    """

    def __init__(self, model: Any, info: DetectorInfo, known: Mapping[str, Tensor], **how: Any) -> None:
        self.model, self.info, self._how = model, info, {"image_size": info.image_size, **how}
        self._network: Any = _Heat(model, info.layer, known)

    @classmethod
    def fit(
        cls, images: Any, model: Any, *, false_alarm_rate: float = 0.01, held_out: float = 0.2, seed: int = 0,
        image_size: Size | None = None, **how: Any,
    ) -> Self:  # fmt: skip
        """Learn from normal images, and set the threshold on others that are not learned from.

        SegaeError: a number out of range, too few images, or an autoencoder of something else than its images.

        Args:
            images: files, folders, or arrays uint8 (H, W, 3), without anomalies; for an autoencoder, which learns
                nothing more, not those of its training: all of them set the threshold.
            model: an autoencoder or encoder, or what names the latter in ``extract_features``.
            false_alarm_rate: share of normal images to be called anomalies, in (0, 1); with fewer than 1 / rate - 1
                held-out images the threshold is their highest score.
            held_out: share of the images that sets the threshold; 1,000 of the others at most are learned from.
            seed: of the choice of held-out images.
            image_size: side in pixels; None for the model's.
            **how: ``batch_size``, ``device``, ``skipped``, as in ``compute_features``.
        """
        check_range("false_alarm_rate", false_alarm_rate, low=0, high=1, low_open=True, high_open=True)
        check_range("held_out", held_out, low=0, high=1, high_open=True)
        found, whole = list_images(images), isinstance(model, Autoencoder)
        model = model if whole else open_encoder(model)
        encoder = model.encoder if whole else model
        channels = encoder.info.in_channels
        if whole and model.info.out_channels != channels:
            raise SegaeError(f"model must predict the {channels} channels of its images, got {model.info.out_channels}")
        count = len(found) if whole else round(held_out * len(found))
        if count < 1 or (not whole and len(found) - count < 2):
            why = "those that were learned from would promise too few false alarms"
            raise SegaeError(f"held_out must leave 1 image for the threshold ({why}) and 2 to learn from, got {count}")
        shuffled = [found[place] for place in np.random.default_rng(seed).permutation(len(found))]
        layer, size = min(_LAYER, len(encoder.out_channels) - 1), image_size or encoder.info.image_size
        known = {} if whole else _learn(model, shuffled[count:][:_MOST], layer=layer, image_size=size, **how)
        detector = cls(model, DetectorInfo(model.info, layer, size), known, **how)
        scores = detector.score(shuffled[:count])
        scores = np.sort(scores[np.isfinite(scores)])
        threshold = float(scores[-max(1, int(false_alarm_rate * (len(scores) + 1) + 1e-9))])
        low, high = binomtest(int((scores > threshold).sum()), len(scores)).proportion_ci(method="exact")
        promise: Any = threshold, false_alarm_rate, len(scores), (float(low), float(high))
        detector.info = DetectorInfo(model.info, layer, size, *promise)
        return detector

    def score(self, images: Any) -> NDArray[np.float64]:
        """Return how anomalous images are, (N,), 0 or more; NaN for files that cannot be read."""
        scores = np.full(len(found := list_images(images)), np.nan)
        for values, places, _ in compute_features(self._network, found, pool="avg", **self._how):
            scores[places] = values.ravel()
        return scores

    def predict(self, images: Any) -> NDArray[np.bool_]:
        """Return which images are anomalies, (N,): above the threshold, or not readable."""
        return ~(self.score(images) <= self.info.threshold)

    def heatmap(self, image: Any) -> NDArray[np.float32]:
        """Return how anomalous each pixel of one image is, (H, W) in its own size, as coarse as the feature map."""
        heat = collect_features(self._network, list_images(image), pool="none", **self._how).values[0, 0]
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else image_io.image_size(Path(image))
        form = self._network.info.format.resized(self.info.image_size)
        seen, place = form.boxes(height, width)
        whole = np.zeros((height, width), np.float32)  # 0 where the model did not look
        columns, rows = (box.stop - box.start for box in reversed(seen))
        part = heat if form.resize == "squash" else cv2.resize(heat, form.shape[::-1])[place]
        whole[seen] = cv2.resize(part, (columns, rows))
        return whole

    def save(self, path: PathLike) -> Path:
        """Write a .safetensors file, the model within, that ``load`` and ``segae.load`` read."""
        return save_described(path, "anomaly_detector", self._network.state_dict(), self.info)

    @classmethod
    def load(cls, path: PathLike, **how: Any) -> Self:
        """Read what ``save`` wrote; ``batch_size`` and the like as in ``fit``. CheckpointError if it is damaged."""
        state, info = load_described(path, "anomaly_detector", DetectorInfo)
        inner = {name[6:]: state.pop(name) for name in [*state] if name.startswith("model.")}
        model = info.model.build()
        load_strictly(model, inner, str(path))
        return cls(model, info, state, **how)


def _learn(encoder: Encoder, images: Any, **how: Any) -> dict[str, Tensor]:
    """The mean of each position's features, and what whitens those of positions and of whole images."""
    maps = np.moveaxis(collect_features(encoder, images, pool="none", **how).values, 1, 3)
    away = maps - (mean := maps.mean(axis=0))
    known = {"mean": torch.from_numpy(mean)}
    for name, rows in {"position": away.reshape(-1, away.shape[3]), "mean": away.mean(axis=(1, 2))}.items():
        precision = LedoitWolf(assume_centered=True).fit(rows).precision_
        known[f"whiten_{name}"] = torch.from_numpy(np.linalg.cholesky(precision)).float()
    return known


KINDS["anomaly_detector"] = AnomalyDetector.load
