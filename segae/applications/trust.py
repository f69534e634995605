"""Trust in a mask: how near an image's features are to those of the images that a segmenter was trained on."""

import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segae._io import write_atomically
from segae.errors import CheckpointError, SegaeError
from segae.models import Segmenter, evaluation_mode, fingerprint
from segae.models.inference import normalize

logger = logging.getLogger("segae")

TRUST_FILE = "trust.npz"
FLAGGED_BELOW = 0.05
_NEIGHBORS = 5
_MOST_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class TrustScore:
    """Compare images with training images by the distance to the nearest of them (arXiv 2204.06507).

    The trust of an image is (1 + k) / (1 + M), where k of M held-out images are at least as far away. A value below
    0.05 means: further than 95 of 100 images of the kind that the model was trained for; it needs 20 held-out images.

    Attributes:
        features: (N, D), of training images; rows have length 1.
        held_out: (M,), the distances of held-out images.
        model: fingerprint of the segmenter's weights.
    """

    features: NDArray[np.float32]
    held_out: NDArray[np.float32]
    model: str

    @classmethod
    def fit(
        cls, model: Segmenter, images: NDArray[np.uint8], held_out: NDArray[np.uint8], *, batch_size: int = 32
    ) -> Self:
        """Measure training images and held-out ones, uint8 (N, S, S, C); of over 1,024 training images some."""
        if not len(images) or not len(held_out):
            raise SegaeError(f"images and held_out must be one or more each, got {len(images)} and {len(held_out)}")
        some = np.unique(np.linspace(0, len(images) - 1, min(len(images), _MOST_IMAGES)).round().astype(int))
        known = compute_statistics(model, images[some], batch_size=batch_size)
        trust = cls(known, np.empty(0, np.float32), fingerprint(model.state_dict()))
        return cls(known, trust.distances(compute_statistics(model, held_out, batch_size=batch_size)), trust.model)

    def distances(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one minus the mean cosine to the five nearest training images, of features (B, D)."""
        cosine, count = features @ self.features.T, min(_NEIGHBORS, len(self.features))
        return 1 - np.partition(cosine, -count, axis=1)[:, -count:].mean(axis=1)

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the trust, (B,) in (0, 1], of features (B, D) that ``compute_statistics`` made."""
        further = (self.held_out[None] >= self.distances(features)[:, None]).sum(axis=1)
        return (1 + further) / (1 + len(self.held_out))

    @contextmanager
    def watch(self, model: Segmenter) -> Iterator[Callable[[NDArray[np.uint8]], NDArray[np.float64]]]:
        """Within, score images at the model's size that it has just seen; a single batch needs no second pass."""
        seen: list[NDArray[np.float32]] = []

        def score(images: NDArray[np.uint8]) -> NDArray[np.float64]:
            alone = len(seen) == 1 and len(seen[0]) == len(images)  # else these were tiles, or other scales
            scores = self.scores(seen[0] if alone else compute_statistics(model, images))
            seen.clear()
            return scores

        with model.encoder.register_forward_hook(lambda _, _inputs, maps: seen.append(summarize_maps(maps))):
            yield score

    def save(self, path: Path) -> None:
        """Write a file that ``load`` reads."""
        features, model = self.features.astype(np.float16), np.str_(self.model)
        write_atomically(path, lambda file: np.savez(file, features=features, held_out=self.held_out, model=model))

    @classmethod
    def load(cls, path: Path, model: Segmenter) -> Self:
        """Read what ``save`` wrote for a model; a file that is damaged or of another model is a CheckpointError."""
        try:
            with np.load(path) as arrays:
                found = cls(arrays["features"].astype(np.float32), arrays["held_out"], str(arrays["model"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"path must be a trust score that segae wrote, got {path}: {error}") from error
        if found.model != fingerprint(model.state_dict()):
            raise CheckpointError(f"path must hold the trust of this model, got {path} of another one")
        return found

    @classmethod
    def find(cls, source: Any, model: Segmenter) -> Self | None:
        """Read the file beside a model's file; None for a model in memory, and where there is none that fits."""
        if isinstance(source, Segmenter) or not (path := Path(source).with_name(TRUST_FILE)).is_file():
            return None
        try:
            return cls.load(path, model)
        except CheckpointError as error:
            logger.warning("no trust scores for %s: %s", Path(source).name, error)
            return None


def summarize_maps(maps: Sequence[Tensor]) -> NDArray[np.float32]:
    """Return mean and maximum of each channel of all maps but the input, (B, D), with rows of length 1."""
    parts = [part for one in maps[1:] if one.shape[1] for part in (one.float().mean((2, 3)), one.float().amax((2, 3)))]
    return torch.nn.functional.normalize(torch.cat(parts, dim=1), dim=1).cpu().numpy()


def compute_statistics(model: Segmenter, images: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]:
    """Run the encoder on images at the model's size, uint8 (N, S, S, C), and summarize its maps, (N, D)."""
    about, device, rows = model.info.encoder, next(model.parameters()).device, []
    with evaluation_mode(model), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = normalize(images[start : start + batch_size], about.mean, about.std, device)
            rows.append(summarize_maps(model.encoder(batch)))
    return np.concatenate(rows)
