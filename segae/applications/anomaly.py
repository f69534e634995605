"""Detect anomalies after seeing normal images alone: by reconstruction error or by the distance of features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from segae._io import check_range
from segae.applications.features import compute_features, default_pool, list_images, open_encoder
from segae.data import image_io
from segae.errors import SegaeError
from segae.models import KINDS, Autoencoder, AutoencoderInfo, EncoderInfo
from segae.models.autoencoder import rebuild
from segae.models.checkpoint import Info, PathLike, load_described, save_described

_MOST = 4096  # normal images, and positions of their maps, that the fit sees
_LAYER = 4  # stride 16: on Fashion-MNIST mean AUROC 0.95, at strides 4 and 8 0.90 and 0.92


@dataclass(frozen=True)
class DetectorInfo(Info):
    """What a detector is and what its threshold promises."""

    model: AutoencoderInfo | EncoderInfo
    layer: int
    image_size: int
    threshold: float = 0.0
    false_alarm_rate: float = 1.0  # that was asked for
    held_out: int = 0  # normal images that the threshold was set on
    rate_interval: tuple[float, float] = (0.0, 1.0)  # 95 %, Clopper-Pearson, of the rate of the threshold


class _Error(nn.Module):
    """The squared error of a reconstruction, as the one feature map of an encoder."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model, self.info, self.output_stride = model, model.encoder.info, model.stride
        self.out_channels = (self.info.in_channels, 1)
        if (count := model.info.out_channels) != self.info.in_channels:
            raise SegaeError(f"model must predict the {self.info.in_channels} channels of its images, got {count}")

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, (self.model(images) - images).square().mean(dim=1, keepdim=True)]


class AnomalyDetector:
    """Score how unlike normal images an image is; the threshold keeps a rate of false alarms and needs no anomalies.

    With an autoencoder the score is the mean squared error of the reconstruction, with an encoder the Mahalanobis
    distance of its features from normal ones (arXiv 1807.03888), with a shrunk covariance. Made by ``fit``.

    Example:
        >>> detector = AnomalyDetector.fit("good", "imagenet", false_alarm_rate=0.05)  # doctest: +SKIP
        >>> detector.predict(["new/1.png", "new/2.png"])  # doctest: +SKIP
        array([False,  True])
    """

    def __init__(self, model: Any, info: DetectorInfo, known: dict[str, Any], **how: Any) -> None:
        self.model, self.info, self._known = model, info, known
        network: Any = _Error(model) if isinstance(model, Autoencoder) else model
        self._network = network
        self._how = {"layer": info.layer, "image_size": info.image_size, "pool": "none", **how}
        self._flat = self._network is model and default_pool(model, info.layer) == "flatten"

    @classmethod
    def fit(
        cls, images: Any, model: Any, *, false_alarm_rate: float = 0.01, held_out: float = 0.2, seed: int = 0,
        layer: int | None = None, image_size: int | None = None, **how: Any,
    ) -> AnomalyDetector:  # fmt: skip
        """Learn from normal images, and set the threshold on others that are not learned from.

        Args:
            images: files, folders, or arrays uint8 (H, W, 3), without anomalies. For an autoencoder, not those that it
                was trained on: there is nothing more to learn, and all of them set the threshold.
            model: an autoencoder or encoder, or what names the latter in ``extract_features``.
            false_alarm_rate: share of normal images to be called anomalies, in (0, 1). The expected share is not larger
                with 1 / rate - 1 held-out images or more; with fewer the threshold is their highest score.
            held_out: share of the images that sets the threshold.
            seed: of the choice of held-out images.
            layer: feature map, 1 to 5; None for 4 (stride 16), of small networks the last.
            image_size: side in pixels; None for the model's.
            **how: ``batch_size``, ``device``, ``skipped``, as in ``compute_features``.

        Raises:
            SegaeError: a number out of range, or no image is left to learn from or to set the threshold.
        """
        check_range("false_alarm_rate", false_alarm_rate, low=0, high=1, low_open=True, high_open=True)
        check_range("held_out", held_out, low=0, high=1, high_open=True)
        whole, paths = isinstance(model, Autoencoder), list_images(images)
        model = model if whole else open_encoder(model)
        layer = layer or (-1 if whole or len(model.out_channels) <= _LAYER + 1 else _LAYER)
        size = image_size or (model.encoder if whole else model).info.image_size
        detector = cls(model, DetectorInfo(model.info, layer, size), {}, **how)
        order = np.random.default_rng(seed).permutation(len(paths))
        count = len(paths) if whole else round(held_out * len(paths))
        if count < 1 or (not whole and len(paths) - count < 2):
            why = "those that were learned from would promise too few false alarms"
            raise SegaeError(f"held_out must leave 1 image for the threshold ({why}) and 2 to learn from, got {count}")
        if not whole:
            detector._learn([paths[place] for place in order[count:][:_MOST]], np.random.default_rng(seed))
        scores = detector.score([paths[place] for place in order[:count]])
        scores = np.sort(scores[np.isfinite(scores)])
        threshold = float(scores[-max(1, int(false_alarm_rate * (len(scores) + 1) + 1e-9))])
        low, high = binomtest(int((scores > threshold).sum()), len(scores)).proportion_ci(method="exact")
        promise: Any = threshold, false_alarm_rate, len(scores), (float(low), float(high))
        detector.info = DetectorInfo(model.info, layer, size, *promise)
        return detector

    def score(self, images: Any) -> NDArray[np.float64]:
        """Return how anomalous images are, (N,), 0 or more; NaN for files that cannot be read."""
        scores = np.full(len(found := list_images(images)), np.nan)
        for places, pooled, _ in self._measure(found):
            scores[places] = self._distance(pooled, "images")
        return scores

    def predict(self, images: Any) -> NDArray[np.bool_]:
        """Return which images are anomalies, (N,): above the threshold, or not readable."""
        return ~(self.score(images) <= self.info.threshold)

    def heatmap(self, image: Any) -> NDArray[np.float32]:
        """Return how anomalous each pixel of one image is, (H, W) in its own size, as coarse as the feature map."""
        maps = next(self._measure(list_images(image)))[2][0]
        values = self._distance(maps.reshape(len(maps), -1).T, "positions").reshape(maps.shape[1:])
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else image_io.image_size(Path(image))
        return cv2.resize(values.astype(np.float32), (width, height))

    def save(self, path: PathLike) -> Path:
        """Write a .safetensors file, the model within, that ``load`` and ``segae.load`` read."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        known = {name: torch.from_numpy(array) for name, array in self._known.items()}
        return save_described(path, "anomaly_detector", state | known, self.info)

    @classmethod
    def load(cls, path: PathLike, **how: Any) -> AnomalyDetector:
        """Read what ``save`` wrote; ``batch_size`` and the like as in ``fit``. CheckpointError if it is damaged."""
        known, info = load_described(path, "anomaly_detector", DetectorInfo)
        state = {name[6:]: known.pop(name) for name in [*known] if name.startswith("model.")}
        arrays = {name: tensor.numpy() for name, tensor in known.items()}
        return cls(rebuild(info.model, state, str(path)), info, arrays, **how)

    def _measure(self, images: Any) -> Iterator[tuple[list[int], NDArray[np.floating], NDArray[np.floating]]]:
        """Yield places, pooled features (B, D) and maps (B, C, h, w)."""
        for maps, places, _ in compute_features(self._network, images, **self._how):
            if places:
                yield places, maps.reshape(len(maps), -1) if self._flat else maps.mean(axis=(2, 3)), maps

    def _learn(self, images: Any, generator: np.random.Generator) -> None:
        """Fit a Gaussian to pooled features, and one to positions of the maps, a few of each image."""
        rows: dict[str, list[NDArray[np.floating]]] = {"images": [], "positions": []}
        for _, pooled, maps in self._measure(images):
            rows["images"].append(pooled)
            flat = maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)
            some = generator.permutation(flat.shape[1])[: -(-_MOST // len(images))]
            rows["positions"].append(flat[:, some].reshape(-1, flat.shape[2]))
        for name, fitted in {name: LedoitWolf().fit(np.concatenate(parts)) for name, parts in rows.items()}.items():
            self._known |= {f"{name}.mean": fitted.location_, f"{name}.precision": fitted.precision_}

    def _distance(self, rows: NDArray[np.floating], name: str) -> NDArray[np.floating]:
        """The Mahalanobis distance of rows (B, D); a reconstruction error (B, 1) is one already."""
        if not self._known:
            return rows[:, 0]
        centered = rows - self._known[f"{name}.mean"]
        return np.sqrt(np.maximum((centered @ self._known[f"{name}.precision"] * centered).sum(axis=1), 0))


KINDS["anomaly_detector"] = AnomalyDetector.load
