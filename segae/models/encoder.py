"""Encoders: any convolutional network of timm as a feature pyramid that knows what it is and where it comes from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import timm
import torch
from segmentation_models_pytorch.encoders import TimmUniversalEncoder
from timm.models import adapt_input_conv
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from segae._io import check_range, write_json
from segae._notebook import ShownInNotebooks
from segae.errors import CheckpointError, SegaeError, nearest
from segae.image_format import ImageFormat, Size
from segae.models.checkpoint import Info, PathLike, find_weights, is_file, load_described, load_strictly, save_described
from segae.models.classic import DEFAULT_SIZE, ClassicLayers, is_classic
from segae.models.hub import CONFIG_FILE, MODEL_FILE, HubModel, whole_network
from segae.models.imagenet import load_imagenet, select_from_whole

_WHOLE = "encoder+decoder"
STARTS = ("random", "imagenet")
"""Weights that are no file."""


@dataclass(frozen=True)
class Weights(Info):
    """Where a model's weights come from; as text `start[+method[:value]][+decoder]`.

    Attributes:
        start: `random`, `imagenet`, a file or a published name; or the text of the weights that a second pretraining
            began with.
        method: the pretraining method on top, empty where there was none.
        method_args: its settings.
        transfer: what of it a segmenter takes over, `encoder` or `encoder+decoder`.
    """

    start: str = "random"
    method: str = ""
    method_args: dict[str, Any] = field(default_factory=dict, hash=False)
    transfer: str = "encoder"

    def __post_init__(self) -> None:
        if self.transfer not in ("encoder", _WHOLE):
            raise SegaeError(f"transfer must be encoder or {_WHOLE}, got {self.transfer!r}")

    @classmethod
    def parse(cls, text: str, known_methods: Mapping[str, str | None] | None = None) -> Self:
        """Read weights from text; ``known_methods`` are the methods' names, each with the setting that a value is for.

        SegaeError: an unknown method, or a value that the method has no setting for.

        Example:
            >>> str(Weights.parse("imagenet+pseudo_masks:features+decoder", {"pseudo_masks": "source"}))
            'imagenet+pseudo_masks:features+decoder'
        """
        rest = text if is_file(text) else text.removesuffix("+decoder")
        transfer = "encoder" if rest == text else _WHOLE
        start, plus, last = rest.rpartition("+")
        method, _, value = last.partition(":")
        known = {method: None} if known_methods is None else known_methods
        whole = is_file(rest)  # whose name may have a plus sign
        if not whole and (not rest or (not start if plus else rest in (known_methods or ()))):
            raise SegaeError(f"weights must be START+METHOD, such as random+{last or 'denoise'}, got {text!r}")
        if not plus or whole:
            return cls(rest, transfer=transfer)
        if method not in known:
            hint = nearest(method, known)
            raise SegaeError(f"method must be one of {', '.join(known)}, got {method!r} in weights {text!r}{hint}")
        if value and known[method] is None:
            raise SegaeError(f"weights must have no value for method {method}, got {text!r}")
        return cls(start, method, {str(known[method]): _as_number(value)} if value else {}, transfer)

    def __str__(self) -> str:
        first = next(iter(self.method_args.values()), None)
        # the first setting is part of the name where it is a name itself, or the only one
        shown = isinstance(first, str) or (first is not None and len(self.method_args) == 1)
        method = f"+{self.method}{f':{first}' if shown else ''}" if self.method else ""
        return f"{self.start}{method}{'+decoder' if self.transfer == _WHOLE else ''}"

    @property
    def pretrained(self) -> bool:
        """Whether they have been trained on anything."""
        return self.start != "random" or self.method != ""

    @property
    def from_imagenet(self) -> bool:
        """Whether ImageNet weights stood at the beginning, also of several pretrainings."""
        return self.start.split("+")[0] == "imagenet"


def _as_number(text: str) -> str | int | float:
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text


@dataclass(frozen=True)
class EncoderInfo(Info):
    """What an encoder is and where its weights come from; stored in the header of its file.

    Attributes:
        architecture: timm's name of the network.
        in_channels: channels of an input image.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, above 0; images are divided by it after that.
        image_size: side in pixels that the weights were made for, or height and width.
        weights: what was trained on what.
        source: in words, where the weights came from.
        pretraining: dataset, images, epochs, images_seen, seed, commit, versions, final_loss and the like; nothing
            that differs between equal runs, such as seconds or a date.
        value_range: per channel the values of an image that become 0 and 1; see `segae.ImageFormat`.
        resize: how images of other sizes are fitted to it.
    """

    architecture: str
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: Size
    weights: Weights = field(default_factory=Weights)
    source: str = ""
    pretraining: dict[str, Any] = field(default_factory=dict, hash=False)
    value_range: tuple[tuple[float, float], ...] = ()
    resize: str = "squash"

    def __post_init__(self) -> None:
        _ = self.format  # checks what belongs to it
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_channels:
                raise SegaeError(f"{name} must have {self.in_channels} values, one per channel, got {values}")
            for value in values:
                check_range(name, value, low=0 if name == "std" else None, low_open=True)

    @property
    def format(self) -> ImageFormat:
        """The images that it takes."""
        return ImageFormat(self.image_size, self.in_channels, self.value_range, self.resize)

    def build(self) -> "Encoder":
        """Build the encoder that this describes, with random weights."""
        encoder = make_encoder(self.architecture, self.in_channels, self.format.shape[0])
        encoder.info = self
        return encoder


class Encoder(ShownInNotebooks, TimmUniversalEncoder, HubModel):
    """A convolutional network of timm that returns six feature maps, from the input to stride 32, with random weights.

    Takes normalized images (B, C, H, W) with sides that are multiples of ``output_stride``; ``out_channels`` lists the
    channels of the maps, 0 for a stage that the network does not have. It is smp's universal encoder with the same
    tensors under the same names, and an `info`. An output stride of 16 or 8 dilates the last stages, with the same
    weights, and does not reduce their maps. ``save_pretrained(folder)`` writes a model of timm, `local-dir:FOLDER`.
    """

    _from_file = classmethod(lambda _, path: load_encoder(path))

    def __init__(
        self, architecture: str, in_channels: int = 3, output_stride: int = 32, image_size: int | None = None
    ) -> None:
        if is_classic(architecture):
            self._make_classic(architecture, in_channels, image_size or DEFAULT_SIZE)
            return
        super().__init__(architecture, pretrained=False, in_channels=in_channels, output_stride=output_stride)
        config = timm.get_pretrained_cfg(architecture)
        mean, std = (_fit_channels(values, in_channels) for values in (config.mean, config.std))
        size = int(config.input_size[-1])
        self.info = EncoderInfo(architecture, in_channels, mean, std, size, source="random initialization")

    def _make_classic(self, architecture: str, in_channels: int, image_size: int) -> None:
        nn.Module.__init__(self)
        self.model, self.name = ClassicLayers(architecture, in_channels, image_size), architecture
        self._out_channels = self.model.channels
        # whole images only: a stride of one image
        self._in_channels, self._depth, self._output_stride = in_channels, len(self._out_channels) + 16, image_size
        self._is_channel_last = self._is_transformer_style = self._is_vgg_style = False
        zeros, ones = (0.0,) * in_channels, (1.0,) * in_channels
        self.info = EncoderInfo(architecture, in_channels, zeros, ones, image_size, source="random initialization")

    def _facts(self) -> dict[str, Any]:
        return {"architecture": self.info.architecture, "parameters": count_parameters(self)} | encoder_facts(self.info)

    def with_stride(self, output_stride: int) -> "Encoder":
        """Return this encoder, or where its stride is another one a copy that is dilated; draws no random number."""
        if output_stride == self.output_stride:
            return self
        with torch.random.fork_rng(devices=[]):
            copied = Encoder(self.info.architecture, self.info.in_channels, output_stride)
        load_strictly(copied, self.state_dict(), f"the encoder {self.info.architecture}")
        copied.info = self.info
        return copied

    def _save_pretrained(self, save_directory: Path) -> None:
        state, config = whole_network(self)
        save_described(save_directory / MODEL_FILE, "encoder", state, self.info)
        write_json(save_directory / CONFIG_FILE, config)


def encoder_facts(info: EncoderInfo) -> dict[str, Any]:
    """What a short description of an encoder says beside its architecture: input, weights, where they come from."""
    seen, place = info.pretraining.get("images_seen"), info.pretraining.get("dataset")
    facts: dict[str, Any] = {"image size": info.image_size, "channels": info.in_channels}
    facts |= {"weights": str(info.weights), "source": info.source}
    return facts | ({"pretraining": f"{seen:,} images of {place}"} if seen and place else {})


def count_parameters(module: nn.Module) -> str:
    """The number of a module's parameters in words."""
    number = sum(one.numel() for one in module.parameters())
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"


def _fit_channels(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One value per channel, following how timm adapts the first convolution: gray sums, more repeat."""
    if channels == 1:
        return (sum(rgb) / len(rgb),)
    return tuple(float(rgb[index % len(rgb)]) for index in range(channels))


def create_encoder(
    name: str | None = None,
    *,
    weights: PathLike | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
) -> Encoder:
    """Build an encoder with random, ImageNet or pretrained weights.

    Args:
        name: a timm name, such as `tf_efficientnet_lite0` or `resnet18`, or a small network of `segae.models.classic`,
            such as `conv_16_8_4`; a file has its own, with which it must agree.
        weights: None or `random`, `imagenet`, an encoder's .safetensors file, or a published name.
        in_channels: channels of an input image; None for 3, or those of the file. If they are others than those of the
            weights, the first convolution is adapted; see `adapt_channels`.
        image_size: side in pixels for which a small network is made; None for 28.

    Raises:
        SegaeError: timm has no such network, it is no convolutional one, its weights cannot be had, or the file holds
            another encoder.

    Example:
        >>> encoder = create_encoder("test_resnet")
        >>> encoder(torch.zeros(1, 3, 64, 64))[-1].shape
        torch.Size([1, 96, 2, 2])
    """
    start = "random" if weights is None else str(weights)
    if start in STARTS:
        encoder = make_encoder(str(name), 3 if in_channels is None else in_channels, image_size)
        if start == "imagenet":
            source = load_imagenet(encoder, encoder.info.architecture, encoder.info.in_channels)
            encoder.info = replace(encoder.info, weights=Weights("imagenet"), source=source)
        return encoder
    encoder = load_encoder(find_weights(start, others=STARTS))
    own = encoder.info
    if name is not None and name.split(".")[0] != own.architecture.split(".")[0]:
        raise CheckpointError(f"name must be {own.architecture} or None, as {start} holds that encoder, got {name!r}")
    return encoder if in_channels is None else adapt_channels(encoder, in_channels)


def adapt_channels(encoder: Encoder, in_channels: int) -> Encoder:
    """Return an RGB encoder for another number of channels, or itself; its first convolution is adapted as timm does.

    For one channel the weights of the three are summed, for more they are repeated and scaled. Mean and standard
    deviation are repeated. SegaeError: the encoder takes other images than RGB, or mixes their channels differently.
    """
    info = encoder.info
    if in_channels == info.in_channels:
        return encoder
    if info.in_channels != 3:
        raise SegaeError(f"in_channels must be {info.in_channels} or None for {info.source}, got {in_channels}")
    with torch.random.fork_rng(devices=[]):
        adapted = make_encoder(info.architecture, in_channels, ImageFormat(info.image_size).shape[0])
    state, shapes = dict(encoder.state_dict()), adapted.state_dict()
    try:
        for name in [name for name, tensor in state.items() if tensor.shape != shapes[name].shape]:
            state[name] = adapt_input_conv(in_channels, state[name])
        load_strictly(adapted, state, f"the adapted encoder {info.architecture}")
    except (KeyError, ValueError, AssertionError, NotImplementedError, CheckpointError) as error:
        raise SegaeError(f"in_channels must be 3 for weights of {info.architecture}, got {in_channels}") from error
    mean, std = (_fit_channels(values, in_channels) for values in (info.mean, info.std))
    source = f"{info.source}, adapted to {in_channels} channels"
    adapted.info = replace(info, in_channels=in_channels, mean=mean, std=std, value_range=(), source=source)
    return adapted


def make_encoder(name: str, in_channels: int, image_size: int | None = None) -> Encoder:
    """Build a random encoder; one of timm gives maps of stride 4 to 32, and a small network has an image size."""
    check_range("in_channels", in_channels, low=1, high=1024, integer=True)
    if is_classic(name):
        return Encoder(name, in_channels, image_size=image_size)
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models(), count=4, cutoff=0.5)
        raise SegaeError(f"name must be a network of timm, such as tf_efficientnet_lite0, got {name[:100]!r}{hint}")
    try:
        encoder = Encoder(name, in_channels)
        with evaluation_mode(encoder), torch.no_grad():
            deepest = encoder(torch.zeros(1, in_channels, 64, 64))[-1]
        if deepest.shape[-1] * encoder.output_stride != 64:
            raise ValueError(f"its deepest map has stride {64 // deepest.shape[-1]}")
    except Exception as error:  # timm and smp raise a dozen kinds for networks without feature maps
        raise SegaeError(
            "name must be a convolutional network with feature maps of stride 4 to 32 at any image size, such as "
            f"tf_efficientnet_lite0, resnet18 or convnext_atto, got {name!r} ({error!r})"
        ) from error
    return encoder


def load_encoder(source: PathLike) -> Encoder:
    """Rebuild an encoder from its .safetensors file alone, or from its published name, every tensor checked.

    SegaeError: no such file, a pickle, a damaged file, an unknown architecture, or tensors that do not fit.
    """
    path = find_weights(source)
    state, info = load_described(path, "encoder", EncoderInfo)
    encoder = info.build()
    # the file of save_pretrained has the whole network
    load_strictly(encoder, select_from_whole(encoder.state_dict(), state) or state, str(path))
    return encoder


def save_encoder(encoder: Encoder, path: PathLike, *, info: EncoderInfo | None = None) -> Path:
    """Write an encoder with its info, or another one, in the header, and as a .json file beside it.

    SegaeError: it cannot be written, or holds NaN or infinity; the old files survive.
    """
    return save_described(path, "encoder", encoder.state_dict(), encoder.info if info is None else info)


def list_encoders(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """List timm's networks that take any image size; `create_encoder` refuses those of them without feature maps.

    ``pretrained`` keeps those with weights at the model hub, each with the tag of its weights.
    """
    names = timm.list_models(pattern, pretrained=pretrained)
    return [name for name in names if not timm.get_pretrained_cfg(name).fixed_input_size]


def require_image_size(image_size: Size, stride: int) -> None:
    """Raise SegaeError unless image sides in pixels are multiples of an encoder's stride; names the next ones."""
    for side in dict.fromkeys(image_size if isinstance(image_size, tuple) else [image_size]):  # also a traced number
        below, above = side // stride * stride, max(stride, -(-side // stride) * stride)
        if side != below or below <= 0:
            choice = f"{below} or {above}" if below > 0 else str(above)
            raise SegaeError(f"image_size must be a multiple of the stride {stride}, got {side}; use {choice}")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within; afterwards each module has its own mode again, frozen parts included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def set_gradient_checkpointing(model: nn.Module) -> int:
    """Make the stages of encoder and decoder keep only their inputs for the backward pass (arXiv 1604.06174).

    Costs a second forward pass of them, about a third of a step, and saves most of the activations' memory. Weights,
    names, gradients and BatchNorm statistics stay what they would be, and the model can be copied and pickled.
    timm's own switch leaves out the decoder: a U-Net on tf_efficientnet_lite0 keeps 69 of 176 MB then, and 19 MB here.
    The model is changed in place; returned is the number of its stages that were. SegaeError: the model has no encoder,
    or hides pixels inside it by hooks, which are gone in the second pass.
    """
    if not isinstance(getattr(model, "encoder", None), nn.Module):
        raise SegaeError(f"model must have an encoder for gradient checkpointing, got {type(model).__name__}")
    if (masking := getattr(model, "masking", "dense")) != "dense":
        raise SegaeError(f"masking must be dense for gradient checkpointing, got {masking}")
    stages = [stage for part in ("encoder", "decoder") for stage in _stages(getattr(model, part, nn.Identity()))]
    for stage in stages:
        # a partial with the module as its argument: copies and pickles of the model then call their own stages
        stage.forward = partial(_checkpointed, stage)
    return len(stages)


def _checkpointed(stage: nn.Module, *inputs: Any, **named: Any) -> Any:
    forward = partial(type(stage).forward, stage)
    return checkpoint(
        forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _paused_statistics(stage)), **named
    )


def _stages(part: nn.Module) -> Iterator[nn.Module]:
    """The blocks below a part: the outermost modules with several layers that are no mere containers of such."""
    for child in part.children():
        if _layers(child) > 1 and "forward" not in vars(child):
            yield from _stages(child) if _only_holds(child) else (child,)


def _only_holds(module: nn.Module) -> bool:
    """Whether it is a list of blocks, or a model or stage that has one: its own forward may never be called."""
    if type(module) is nn.Sequential:
        return any(_layers(child) > 1 for child in module)
    lists = (nn.ModuleList, nn.ModuleDict)
    return isinstance(module, lists) or any(
        isinstance(child, lists) or (type(child) is nn.Sequential and _only_holds(child)) for child in module.children()
    )


def _layers(module: nn.Module) -> int:
    return sum(1 for part in module.modules() if next(part.parameters(recurse=False), None) is not None)


@contextmanager
def _paused_statistics(stage: nn.Module) -> Iterator[None]:
    """BatchNorm normalizes by the batch but does not count it a second time."""
    layers = [layer for layer in stage.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, values in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = values
