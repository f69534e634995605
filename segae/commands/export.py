"""Hand a model to other libraries: a folder of timm or smp, or ONNX."""

import copy
from dataclasses import replace
from pathlib import Path

from segae._io import logger
from segae._settings import takes_settings_of
from segae.config import ExportConfig
from segae.data import SkippedFiles, cache_images, drawn_pets, find_images
from segae.errors import SegaeError, argument_named
from segae.exporters.onnx import write_onnx
from segae.models import Encoder, Segmenter, load
from segae.models.hub import whole_network

_FILES = {"README.md", "config.json", "model.safetensors", "model.json", "model.onnx", "metadata.json"}
# words that a library looks for in the whole path of a folder, to treat the model as one of that family
_WORDS = {"dla": "segmentation_models_pytorch", "tresnet": "segmentation_models_pytorch", "vit": "anomalib"}


@takes_settings_of(ExportConfig)
def export(config: ExportConfig) -> Path:
    """Write a model for another library into a folder, whose README.md says how to load it, and return the folder.

    All settings are those of ``segae.config.ExportConfig``; the model may also be one in memory. SegaeError if the
    library cannot take it, the folder holds something, or an ONNX file computes something else than PyTorch.

    Example:
        >>> folder = export("runs/finetune/model.safetensors", to="onnx")  # doctest: +SKIP
    """
    out, model, in_memory = Path(config.out), config.model, hasattr(config.model, "info")
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name] * out.exists()
    apart = in_memory or Path(model).resolve().parent != out.resolve()
    if present and not (config.overwrite and apart and _FILES.issuperset(present)):
        raise SegaeError(f"out must be a new folder, or with overwrite=True an old export, got {out} with {present[0]}")
    with argument_named("model", instead_of="weights"), argument_named("model", instead_of="path"):
        model = model if in_memory else load(model)
    if not isinstance(model, Encoder) and not (isinstance(model, Segmenter) and config.to in ("smp", "hub", "onnx")):
        labeled = getattr(model.info, "training", {}).get("dataset", "")
        model = copy.copy(model.encoder)
        model.info = replace(model.info, source=model.info.source + (labeled and f"; fine-tuned on {labeled}"))
    if config.to == "onnx":
        paths = find_images([Path(root) for root in config.images or [drawn_pets() / "images"]])
        skipped = SkippedFiles()
        form = model.info.format.resized(64) if config.images else 64
        shown = cache_images(paths[: 64 if config.images else 8], form, skipped).paths  # those that can be read
        skipped.report()
        write_onnx(model, out, shown, license=config.license)
    else:
        if isinstance(model, Encoder):
            _check(model, str(out.resolve()), config.to)
        elif config.to == "smp" and model.info.decoder == "linear":
            raise SegaeError("model must have a decoder of segmentation_models_pytorch, got decoder linear")
        (out / "README.md").unlink(missing_ok=True)
        model.save_pretrained(out, model_card_kwargs={"license": config.license})
    logger.info("wrote %s; its README.md says how to load it", out)
    return out


def _check(encoder: Encoder, path: str, to: str) -> None:
    """Refuse a library that cannot take the encoder, and warn about what one would do wrong."""
    name, about = encoder.info.architecture, whole_network(encoder)[1]["segae"]
    if about["left_out"]:
        text = f"{name} has layers behind its deepest map: {about['layers_behind']}"
        if to == "fastai":  # whose vision_learner takes whole networks
            raise SegaeError(f"to must not be fastai, as {text}; give fastai the encoder itself as the body")
        logger.warning("%s", text)
    for word, library in _WORDS.items():
        needed = word != "vit" and word in name  # anomalib takes any vit for a transformer: no encoder is one
        if (word in path.lower()) != needed:
            logger.warning("%s needs a path with%s %r for %s: %s", library, "" if needed else "out", word, name, path)
