"""Masks or features of images from an exported ONNX file, by ONNX Runtime; torch is not imported."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import lazy_loader
import numpy as np
from numpy.typing import NDArray

from segae.errors import CheckpointError, SegaeError

onnxruntime = lazy_loader.load("onnxruntime")  # an extra


class OnnxPredictor:
    """A model that ``segae.export`` wrote, with its ``metadata``: the folder, the .onnx file alone, or its content.

    ``threads`` are those of the computation; 0 is one per core.
    CheckpointError if there is no metadata, as in files that segae did not write, or if the file is no ONNX model.

    Example:
        >>> mask = OnnxPredictor("runs/export").predict(Image.open("cat.jpg").convert("RGB"))  # doctest: +SKIP
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, *, threads: int = 0) -> None:
        if not isinstance(source, bytes):
            source = os.fspath(Path(source, "model.onnx") if Path(source).is_dir() else source)
            if not Path(source).is_file():
                raise CheckpointError(f"source must be an existing .onnx file or its folder, got {source}")
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            # waiting threads would take the cores from those that read images
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of a dozen classes, for missing and damaged files and a missing library
            raise CheckpointError(f"source must be ONNX or its folder (pip install 'segae[onnx]'): {error}") from error
        found = self.session.get_modelmeta().custom_metadata_map
        if "segae" not in found:
            raise CheckpointError(f"source must have the metadata of segae, got {source!r} without: export it again")
        self.metadata: dict[str, Any] = json.loads(found["segae"])

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Compute the outputs, by name, of uint8 images (N, H, W, C), RGB, whose sides are multiples of the stride."""
        return dict(zip(self.metadata["outputs"], self.session.run(None, {"images": images}), strict=True))

    def predict(self, image: Any, *, return_probabilities: bool = False) -> NDArray[Any]:
        """Segment a uint8 image (H, W, C), RGB, or a PIL image, at its own size, as ``Segmenter.predict`` does.

        Returns class indices, uint8 (H, W), or softmax values, float32 (K, H, W); of an encoder features (channels,).
        """
        pixels, channels = np.asarray(image), self.session.get_inputs()[0].shape[-1]
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != channels or not pixels.size:
            raise SegaeError(f"image must be uint8 (H, W, {channels}), got {pixels.dtype} {pixels.shape}")
        (height, width), size = pixels.shape[:2], self.metadata["image_size"]
        if height > size or width > size:  # as segae.data.resize_image, whose package imports torch
            pixels = cv2.resize(pixels, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
        found = self.run(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR).reshape(1, size, size, -1))
        if self.metadata["task"] == "features":
            return found["features"][0]
        # logits and not labels are resized: contours come out smooth
        large = cv2.resize(found["logits"][0].transpose(1, 2, 0), (width, height), interpolation=cv2.INTER_LINEAR)
        logits = large.reshape(height, width, -1).transpose(2, 0, 1)
        powers = np.exp(logits - logits.max(axis=0))
        return powers / powers.sum(axis=0) if return_probabilities else logits.argmax(axis=0).astype(np.uint8)
