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
from segae.image_format import GRAY, ImageFormat, resize_image

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
        known = self.metadata.get("format", {"size": self.metadata["image_size"]})  # older exports are of 8-bit squares
        ranges = tuple(map(tuple, known.get("value_range", ())))
        size = known["size"] if isinstance(known["size"], int) else tuple(known["size"])
        channels = self.session.get_inputs()[0].shape[-1]
        self.format = ImageFormat(**{**known, "size": size, "value_range": ranges, "channels": channels})

    def run(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Compute the outputs, by name, of images (N, H, W, C) of the ``format``; sides are multiples of the stride.

        RGB is made gray for a model of 8-bit gray images.
        """
        if images.shape[-1] == 3 and self.format.channels == 1:
            images = np.rint(images @ np.array(GRAY, np.float32))[..., None].astype(np.uint8)
        return dict(zip(self.metadata["outputs"], self.session.run(None, {"images": images}), strict=True))

    def predict(self, image: Any, *, return_probabilities: bool = False) -> NDArray[Any]:
        """Segment a uint8 image (H, W, C), RGB, or a PIL image, at its own size, as ``Segmenter.predict`` does.

        A model of other images takes arrays of any numbers. Returns class indices, uint8 (H, W), or softmax values,
        float32 (K, H, W); of an encoder features (channels,). SegaeError for another image, and where the model crops:
        ``segae.predict`` covers whole images then.
        """
        pixels, form, task = np.asarray(image), self.format, self.metadata["task"]
        wrong = pixels.ndim != 3 or pixels.shape[-1] not in (form.channels, form.stored_channels) or not pixels.size
        if wrong or (not form.value_range and pixels.dtype != np.uint8):
            kind = "numbers" if form.value_range else "uint8"
            raise SegaeError(f"image must be {kind} (H, W, {form.channels}), got {pixels.dtype} {pixels.shape}")
        if form.resize == "crop" and task != "features":
            raise SegaeError("resize must be squash or letterbox to predict here, got crop: take segae.predict")
        (rows, columns), place = form.boxes(*pixels.shape[:2])
        height, width = rows.stop - rows.start, columns.stop - columns.start
        found = self.run(resize_image(form.convert(pixels) if form.value_range else pixels, form)[None])
        if task == "features":
            return found["features"][0]
        # logits and not labels are resized: contours come out smooth
        logits_hwk = np.ascontiguousarray(found["logits"][0].transpose(1, 2, 0)[place])
        large = cv2.resize(logits_hwk, (width, height), interpolation=cv2.INTER_LINEAR)
        logits = large.reshape(height, width, -1).transpose(2, 0, 1)
        powers = np.exp(logits - logits.max(axis=0))
        return powers / powers.sum(axis=0) if return_probabilities else logits.argmax(axis=0).astype(np.uint8)
