"""Folders for the Hugging Face Hub that timm and segmentation_models.pytorch read too: weights, config, model card."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from pandas import json_normalize

from segae.errors import SegaeError
from segae.models.classic import is_classic
from segae.models.imagenet import names_in_whole, read_imagenet

MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_ENCODER_USE = """segae.load_encoder("FOLDER/model.safetensors")
timm.create_model("local-dir:FOLDER", features_only=True, pretrained=True)  # or "hf-hub:OWNER/NAME"
segmentation_models_pytorch.Unet("tu-local-dir:FOLDER", encoder_weights=True, in_channels={0})
torchgeo.trainers.SemanticSegmentationTask("unet", "tu-local-dir:FOLDER", True, in_channels={0}, num_classes=2)
anomalib.models.components.TimmFeatureExtractor("local-dir:FOLDER", layers=[1, 2, 3])
fastai.vision.all.vision_learner(dls, "local-dir:FOLDER", n_in={0})"""
_SEGMENTER_USE = 'segae.load("FOLDER/model.safetensors").predict("image.jpg")'
_SMP_USE = '\nsegmentation_models_pytorch.from_pretrained("FOLDER")'


class HubModel(ModelHubMixin, library_name="segae"):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of huggingface_hub, for encoders and segmenters."""

    @classmethod
    def _from_pretrained(cls: Any, *, model_id: str, **options: Any) -> Any:
        if Path(model_id).is_dir():
            return cls._from_file(Path(model_id, MODEL_FILE))
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        return cls._from_file(hf_hub_download(model_id, MODEL_FILE, **{name: options[name] for name in names}))

    def generate_model_card(self: Any, *, license: str | None = None, use: str = "", **scores: float) -> ModelCard:
        """Make a model card from the info, scores and a license of the Hub; ``use`` is code that loads the model."""
        info, about = self.info, getattr(self.info, "encoder", self.info)
        facts = {**json_normalize(asdict(info)).iloc[0], **scores, "license": license or "none was stated"}
        load, task = _ENCODER_USE.format(about.in_channels), "image-feature-extraction"
        if info is about:
            facts["layers behind the deepest map"] = whole_network(self)[1]["segae"]["layers_behind"]
        else:
            load, task = _SEGMENTER_USE + (_SMP_USE if info.decoder != "linear" else ""), "image-segmentation"
        rows = [f"| {name.replace('_', ' ')} | {value} |" for name, value in facts.items() if value not in ("", None)]
        data = ModelCardData(library_name="segae", pipeline_tag=task, license=license, tags=["segae", "timm"])
        parts = [f"---\n{data.to_yaml()}\n---", f"# {about.architecture}", "\n".join(["| | |", "|---|---|", *rows])]
        return ModelCard("\n\n".join([*parts, f"```python\n{use or load}\n```\n"]))


def whole_network(encoder: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Make the state dict of timm's whole network without a classifier, and its config.json.

    Layers behind the deepest map, such as an EfficientNet's last convolution, are in no encoder. Norms have their start
    values; others come from ImageNet if the encoder began there and its weights can be had. Else they are left out:
    timm then loads feature maps and new classifiers, and refuses pooled features, which random layers would make.
    """
    info, own = encoder.info, encoder.state_dict()
    if is_classic(info.architecture):
        raise SegaeError(f"model must have an encoder of timm to be exported, got {info.architecture}")
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(info.architecture, num_classes=0, in_chans=info.in_channels)
    state = network.state_dict()
    names = names_in_whole(own, state)
    if unknown := [name for name in own if name not in names]:
        raise SegaeError(f"model must have the tensors of timm's {info.architecture}, got also {unknown[0]}")
    behind = [name for name in state if name not in {*names.values()}]
    how, left_out = "norms with their start values" if behind else "none", set[str]()
    if any(state[name].ndim > 1 for name in behind):
        how, left_out = "never trained, so they are left out, and timm refuses pooled features", {*behind}
        if info.weights.from_imagenet:
            with suppress(SegaeError):
                imagenet, source = read_imagenet(info.architecture, info.in_channels)
                state |= {name: imagenet[name] for name in behind}
                how, left_out = f"{source}, not trained any further", set()
    state |= {whole: own[name] for name, whole in names.items()}
    # without its name older timm would not adapt a first convolution of three channels, but with it any other, too
    kept = ("classifier", "pool_size", *(("first_conv",) if info.in_channels == 3 else ()))
    looks = {name: network.pretrained_cfg.get(name) for name in kept} | {"mean": info.mean, "std": info.std}
    looks |= {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear", "num_classes": 0}  # as segae resizes
    config = {
        **{"architecture": info.architecture.split(".")[0], "num_classes": 0, "num_features": network.num_features},
        "model_args": {"num_classes": 0, "in_chans": info.in_channels},
        "pretrained_cfg": looks | {"input_size": [info.in_channels, *info.format.shape]},
        "segae": {"layers_behind": ", ".join([*behind[:3], how]), "left_out": sorted(left_out)},
    }
    return {name: tensor for name, tensor in state.items() if name not in left_out}, config
