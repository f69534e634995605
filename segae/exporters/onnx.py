"""Segmenters and encoders as ONNX, preprocessing and softmax inside, compared with PyTorch before they are written."""

import copy
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lazy_loader
import numpy as np
import timm.layers.padding
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from segae._io import write_atomically, write_json
from segae.data import read_resized
from segae.data.image_io import image_header
from segae.errors import SegaeError
from segae.exporters.predictor import OnnxPredictor
from segae.image_format import ImageFormat
from segae.models import EncoderInfo

onnx = lazy_loader.load("onnx")  # an extra

MAX_DIFFERENCE, MIN_AGREEMENT = 1e-4, 0.999
_PACKAGES = ("segae", "torch", "onnx", "onnxscript", "onnxruntime")
_FIXED_SIZE = ("pspnet", "upernet")  # average over a number of bins of the map, which the exporter needs fixed
_USE = """segae.OnnxPredictor("FOLDER").predict(PIL.Image.open("image.jpg").convert("RGB"))
onnxruntime.InferenceSession("FOLDER/model.onnx").run(None, {"images": pixels})  # uint8 (N, H, W, channels), RGB"""


class _Network(torch.nn.Module):
    """From uint8 or uint16 (N, H, W, C) to probabilities and logits (N, K, H, W), or pooled features and all maps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.about = copy.deepcopy(model).cpu(), getattr(model.info, "encoder", model.info)
        self.places = [place for place, count in enumerate(getattr(model, "out_channels", ())) if place and count]
        maps = [f"map_{2**place}" for place in self.places]
        self.outputs = ["features", *maps] if maps else ["probabilities", "logits"]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.about.mean, self.about.std))
        # contiguous: about strides as in channels_last the exporter reasons for minutes
        values = images.float().permute(0, 3, 1, 2) if self.about.value_range else images.permute(0, 3, 1, 2)
        normalized = (values.contiguous().float() / np.iinfo(self.about.format.dtype).max - mean) / std
        if self.places:
            maps = self.model(normalized)
            return maps[-1].mean(dim=(2, 3)), *(maps[place] for place in self.places)
        # not forward, whose check of the sides would be recorded
        logits = self.model._decode(self.model.encoder(normalized), normalized.shape[-2:])
        return logits.softmax(dim=1), logits


def write_onnx(model: Any, folder: Path, images: Sequence[Path], *, license: str | None = None) -> None:
    """Write model.onnx, metadata.json and README.md, if ONNX Runtime gives for the images what PyTorch gives.

    SegaeError if the model cannot be exported, an output differs by more than 1e-4 (relative to its largest value, if
    that is above 1), or more than 0.1 % of the pixels get another class.
    """
    info, network, (height, width) = model.info, _Network(model).eval(), model.info.format.shape
    stride = 0 if getattr(info, "decoder", "") in _FIXED_SIZE else getattr(model, "encoder", model).output_stride
    dims = {0: torch.export.Dim("n")} | {axis: stride * torch.export.Dim(f"n{axis}") for axis in (1, 2) if stride}
    kind = torch.uint16 if network.about.value_range else torch.uint8
    example = torch.zeros(2, height + stride, width + 2 * stride, network.about.in_channels, dtype=kind)
    names: Any = {"input_names": ["images"], "output_names": network.outputs, "dynamic_shapes": {"images": dims}}
    # padding as in TensorFlow depends on the size, but not for such sizes; with symbols it would take minutes
    constant = patch.object(timm.layers.padding, "get_same_padding", lambda _, k, s, d: max((k - 1) * d + 1 - s, 0))
    try:
        with constant, torch.no_grad():
            program: Any = torch.onnx.export(network, (example,), dynamo=True, verbose=False, **names)
    except Exception as error:  # of many classes, and pages long
        raise SegaeError(f"model must export to ONNX (pip install 'segae[onnx]'), got {str(error)[:200]}") from error
    proto, task = program.model_proto, "features" if network.places else "segmentation"
    metadata = {"task": task, "outputs": network.outputs, "stride": stride, "opset": proto.opset_import[0].version}
    metadata |= {name: getattr(info, name) for name in ("image_size", "classes", "palette") if hasattr(info, name)}
    metadata["format"] = asdict(info.format)
    metadata["versions"] = {name: importlib.metadata.version(name) for name in _PACKAGES}
    onnx.helper.set_model_props(proto, {"segae": json.dumps(metadata)})
    metadata |= {"compared": _compare(OnnxPredictor(proto.SerializeToString()), network, images), "info": asdict(info)}
    onnx.helper.set_model_props(proto, {"segae": json.dumps(metadata)})
    write_atomically(folder / "model.onnx", lambda file: file.write(proto.SerializeToString()))
    write_json(folder / "metadata.json", metadata)
    model.generate_model_card(use=_USE, license=license).save(folder / "README.md")


def _compare(predictor: OnnxPredictor, network: _Network, images: Sequence[Path]) -> dict[str, float]:
    """Compute the images in both libraries, at two sizes if the stride is not 0; SegaeError if the results differ."""
    worst, alike, form = 0.0, 1.0, predictor.format
    for more in {0, predictor.metadata["stride"]}:
        shape = form.shape[0] + more, form.shape[1] + more
        batch = np.stack([_read(path, form.resized(shape)) for path in images])
        found = list(predictor.run(batch).values())
        with torch.inference_mode():
            expected = [values.numpy() for values in network(torch.from_numpy(batch))]
        off = [np.abs(a - b).max() / max(1.0, np.abs(b).max()) for a, b in zip(found, expected, strict=True)]
        worst = float(np.max([worst, *off]))  # which is NaN if one is
        alike = min(alike, 1.0 if network.places else np.mean(found[0].argmax(axis=1) == expected[0].argmax(axis=1)))
    if not (worst <= MAX_DIFFERENCE and alike >= MIN_AGREEMENT):
        numbers = f"{worst:.1e} (limit {MAX_DIFFERENCE:g}), {alike:.2%} of the pixels alike (limit {MIN_AGREEMENT:.1%})"
        raise SegaeError(f"model must give in ONNX Runtime what it gives in PyTorch, got differences up to {numbers}")
    return {"images": len(images), "max_difference": worst, "pixels_agree": float(alike)}


def _read(path: Path, form: ImageFormat) -> NDArray[Any]:
    """An image as the graph takes it; RGB is repeated where the model takes other channels."""
    if not form.is_rgb and image_header(path)[2] == form.channels:
        return read_resized(path, form)
    pixels = read_resized(path, form.size)[..., np.arange(form.channels) % 3]
    return pixels if form.dtype == np.uint8 else pixels.astype(np.uint16) * 257


class OnnxEncoder(torch.nn.Module):
    """An exported encoder as a module that takes uint8 or uint16 (N, H, W, C), and returns maps as `Encoder` does."""

    takes_bytes = True

    def __init__(self, file: str, threads: int = 0) -> None:
        super().__init__()
        self.predictor = OnnxPredictor(file, threads=threads)
        about = self.predictor.metadata
        if about["task"] != "features":
            raise SegaeError(f"encoder must be an exported encoder, got {file} for {about['task']}")
        self.info = TypeAdapter(EncoderInfo).validate_python(about["info"])
        channels = {one.name: one.shape[1] for one in self.predictor.session.get_outputs()}
        self.out_channels = [self.info.in_channels, *(channels.get(f"map_{2**place}", 0) for place in range(1, 6))]
        self.output_stride = about["stride"]
        self.register_buffer("content", torch.from_numpy(np.fromfile(file, np.uint8)))  # what a fingerprint is made of

    def forward(self, images: NDArray[np.uint8]) -> list[torch.Tensor | None]:
        """Compute the maps, from stride 1 to 32; None for one that the network does not have."""
        found = self.predictor.run(images)
        maps = (found.get(f"map_{2**place}") for place in range(6))
        return [None if one is None else torch.from_numpy(one) for one in maps]
