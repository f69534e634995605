"""What a pretraining method is, the registry of methods, and the autoencoder that a method trains."""

# ruff: noqa: ARG002 - the defaults of Method do not need all arguments

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, dataclass_transform

from torch import Generator, Tensor, nn

from segae._io import check_range, require_choice, require_name
from segae.errors import SegaeError
from segae.methods.corruptions import Corrupted, PatchDifficulty
from segae.methods.losses import UNIT_RANGE
from segae.models import Autoencoder, Encoder, build_autoencoder, create_encoder

Family = Literal["autoencoding", "pseudo_masks"]
Masking = Literal["dense", "sparse", "token"]


def setting(default: Any, *, choices: tuple[str, ...] = (), kw_only: bool = False, **limits: float) -> Any:
    """Declare a setting of a method with its default (an integer allows integers only) and allowed values.

    These are ``choices`` of names, or the ``limits`` of a number: ``low`` and ``high``; ``low_open`` or ``high_open``
    true refuses the limit itself. ``kw_only`` settings come after the others.
    """
    return field(default=default, kw_only=kw_only, metadata={"rule": choices or limits})


@dataclass(frozen=True)
class Method(ABC):
    """A pretraining task: how images are corrupted, and what the prediction is compared with.

    The fields of a subclass are its settings; one out of its range is a SegaeError. Only `corrupt` and `loss` have to
    be written.

    Attributes:
        name: Registered name.
        family: ``autoencoding``: predicts pixels or what is computed from them; ``pseudo_masks``: predicts a mask.
        lr: Peak learning rate of AdamW that suits the method.
        masking: How the encoder treats hidden pixels: ``dense`` (it reads what the corruption put there), ``sparse``
            (it skips them) or ``token`` (a learned value is added to their features inside the encoder).
        decoder: Name of the decoder that suits the method.
        frozen_encoder: Whether only the decoder is trained.
        crops: Whether the corruption crops by itself and so has to be given whole images.
        needs_pretrained_encoder: Whether targets come from the encoder that it starts from, never from random weights.
        needs_rgb: Whether images must have red, green and blue.
        restores: Whether its autoencoder is for corrupted images: BatchNorm then has their statistics.
        mask_patch: Side in pixels of the patches that `corrupt` hides; None where it hides none.
        code: How the bottleneck ends, see `AutoencoderInfo`; other than linear asks for decoder ``plain``.
    """

    name: ClassVar[str] = ""
    family: ClassVar[Family] = "autoencoding"
    lr: ClassVar[float] = 1e-3
    masking: ClassVar[Masking] = "dense"
    decoder: ClassVar[str] = "plain"
    frozen_encoder: ClassVar[bool] = False
    crops: ClassVar[bool] = False
    needs_pretrained_encoder: ClassVar[bool] = False
    needs_rgb: ClassVar[bool] = False
    restores: ClassVar[bool] = False
    mask_patch: ClassVar[int | None] = None
    code: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        for one in fields(self):
            value, rule = getattr(self, one.name), one.metadata.get("rule", {})
            number = isinstance(one.default, int | float) and not isinstance(one.default, bool)
            if isinstance(rule, tuple):
                require_choice(one.name, value, rule)
            elif number or (rule and value is not None):
                check_range(one.name, value, integer=isinstance(one.default, int), **rule)

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the settings; those of all image methods come last."""
        return {name: getattr(self, name) for name in _defaults(type(self))}

    @property
    def predicts_pixels(self) -> bool:
        """Whether the prediction is an image, whose values an output activation can bound."""
        return self.family == "autoencoding"

    @abstractmethod
    def corrupt(self, images: Tensor, generator: Generator, difficulty: PatchDifficulty | None = None) -> Corrupted:
        """Corrupt normalized images (B, C, H, W), which stay as they are, with random numbers of the generator alone.

        The generator may live on another device. Masks may prefer difficult patches; other corruptions ignore them.
        """

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Compare a prediction (B, `out_channels`, H, W) with its target: a scalar, smaller is better.

        The target is that of `Corrupted`, or the clean images where that is None; the mask is 1 where hidden.
        """

    def require_channels(self, channels: int) -> None:
        """Raise SegaeError where the method needs images of three channels, red, green and blue."""
        if self.needs_rgb and channels != 3:
            raise SegaeError(f"in_channels must be 3 for {self.name}, which needs red, green and blue, got {channels}")

    def penalty(self, code: Tensor, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor | None:
        """Compute what is added to the loss, or None for nothing.

        The code is (B, K, h, w), or the moments (B, 2K, h, w) of a Gaussian one; ``encode`` makes such codes of images
        (B, C, H, W), each of its image alone; ``images`` are what the model saw.
        """
        return None

    @property
    def has_penalty(self) -> bool:
        """Whether the method judges the code, too."""
        return type(self).penalty is not Method.penalty

    def squared_error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error of each value, float32, for the difficulty of patches."""
        return (prediction[:, : target.shape[1]].float() - target.float()).square()

    def out_channels(self, in_channels: int) -> int:
        """Count the channels of the prediction for images of ``in_channels`` channels."""
        return in_channels

    def to_image(self, prediction: Tensor, seen: Tensor, clean: Tensor) -> Tensor:
        """Compute the image (B, C, H, W) that a prediction means, from what the model saw and the clean images."""
        return prediction[:, : clean.shape[1]]

    def object_probability(self, prediction: Tensor) -> Tensor | None:
        """Probability (B, 1, H, W) of the object by a prediction; None where a method does not predict masks."""
        return None

    def prepare(self, encoder: nn.Module, batches: Iterable[Tensor]) -> None:  # noqa: B027
        """Look at clean, whole, normalized images (B, C, H, W) with the encoder as it starts, once before training."""


_METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound=Method)


@dataclass_transform(frozen_default=True)
def register_method(name: str) -> Callable[[type[M]], type[M]]:
    """Class decorator that registers a subclass of `Method` under a name and makes it a frozen dataclass.

    SegaeError: the name is taken or has other characters than ``a-z A-Z 0-9 . _ -``, or the class lacks something.

    Example:
        >>> @register_method("zeros")
        ... class Zeros(Method):
        ...     '''Predict the image from nothing.'''
        ...     def corrupt(self, images, generator, difficulty=None):
        ...         return Corrupted(torch.zeros_like(images))
        ...     def loss(self, prediction, target, mask):
        ...         return (prediction - target).abs().mean()
    """
    require_name("name", name)

    def register(cls: type[M]) -> type[M]:
        if not (isinstance(cls, type) and issubclass(cls, Method)) or inspect.isabstract(cls):
            raise SegaeError(f"method {name} must be a subclass of Method with corrupt and loss, got {cls!r}")
        other = _METHODS.get(name)
        # a notebook's cell that runs again defines the same class again
        if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SegaeError(f"name must be one that is not taken, got {name!r}, which is {other.__qualname__}")
        check_range("lr", cls.lr, low=0, low_open=True)
        if "__dataclass_fields__" not in vars(cls):
            cls = dataclass(frozen=True)(cls)
        for one in fields(cls):
            if one.default is MISSING:
                raise SegaeError(f"{one.name} must have a default in method {name}, got none")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return register


def create_method(name: str, **settings: Any) -> Method:
    """Create a pretraining method by its name, one of `list_methods`; a setting that is None keeps its default.

    SegaeError: the method does not exist, it does not have a setting, or a value is out of its range.

    Example:
        >>> create_method("denoise", sigma=0.2)
        Denoise(target='pixels', criterion='mse', residual=False, sigma=0.2)
    """
    require_choice("method", name, tuple(_METHODS))
    cls = _METHODS[name]
    known = list(_defaults(cls))
    for key, value in settings.items():
        if key not in known:
            choice = f"one of {', '.join(known)}" if known else "left out"
            raise SegaeError(f"a setting of method {name} must be {choice}, got {key}={value!r}")
    return cls(**{key: value for key, value in settings.items() if value is not None})


def method_names() -> dict[str, str | None]:
    """Return the names of all registered methods, each with its first setting: ``known_methods`` of `Weights.parse`."""
    return {name: next(iter(_defaults(cls)), None) for name, cls in _METHODS.items()}


def list_methods() -> list[str]:
    """List the names of all pretraining methods, sorted."""
    return sorted(_METHODS)


class MethodRow(NamedTuple):
    """A method, its family, the first line of its docstring, and its settings with their defaults."""

    name: str
    family: str
    summary: str
    settings: dict[str, Any]


def method_table() -> list[MethodRow]:
    """Tabulate all registered methods with their settings and defaults."""
    summaries = {name: (inspect.getdoc(cls) or "").partition("\n")[0] for name, cls in _METHODS.items()}
    return [MethodRow(name, cls.family, summaries[name], _defaults(cls)) for name, cls in _METHODS.items()]


def _defaults(cls: type[Method]) -> dict[str, Any]:
    """The settings of a method, its own before those that it shares with others."""
    return {one.name: one.default for one in sorted(fields(cls), key=lambda one: bool(one.kw_only))}


def create_autoencoder(
    encoder: Encoder | str,
    *,
    method: str | Method | None = None,
    decoder: str | None = None,
    bottleneck: int | None = None,
    upsampling: Literal["nearest", "transposed"] = "nearest",
    output_activation: Literal["none", "sigmoid", "tanh"] = "none",
    domains: tuple[str, ...] = (),
) -> Autoencoder:
    """Join an encoder with the decoder that a pretraining method trains.

    Args:
        encoder: from `segae.create_encoder`, or an architecture's name for random weights.
        method: decides the masking and the output channels; None is ``reconstruct``.
        decoder: ``plain`` (no skips), ``linear``, ``hierarchical`` (SparK's), ``unet_with_input`` (smp's U-Net, whose
            last block also sees the input, to restore images), or one of smp's, for a segmenter later; None takes the
            method's own.
        bottleneck: channels after a 1x1 convolution before decoder ``plain``; None for none.
        upsampling: of decoder ``plain``: ``nearest`` (then a 3x3 convolution) or ``transposed`` (4x4, stride 2).
        output_activation: ``sigmoid`` or ``tanh`` bounds the output to images in [0, 1]; only for predicted pixels.
        domains: names of two or more kinds of images that each get a ``plain`` decoder of their own.

    Raises:
        SegaeError: a choice is unknown or impossible.

    Example:
        >>> model = create_autoencoder("resnet18", method="spark")
    """
    if not isinstance(method, Method):
        method = create_method(method or "reconstruct")
    if output_activation != "none" and not method.predicts_pixels:
        task = f"{method!r}, which predicts no image"
        raise SegaeError(f"output_activation must be none for {task}, got {output_activation!r}")
    encoder = create_encoder(encoder) if isinstance(encoder, str) else encoder
    about, criterion = encoder.info, getattr(method, "criterion", "mse")
    if criterion in UNIT_RANGE and (any(about.mean) or {*about.std} != {1.0}):
        if about.weights.pretrained:
            raise SegaeError(
                f"criterion must be mse or l1 for weights {about.weights}, whose images are not in [0, 1] but "
                f"normalized by mean {about.mean} and std {about.std}, got {criterion}"
            )
        encoder.info = replace(about, mean=(0.0,) * about.in_channels, std=(1.0,) * about.in_channels)
    if criterion == "binary_cross_entropy":
        if output_activation == "tanh":
            raise SegaeError(f"output_activation must be sigmoid for {method}, got tanh")
        output_activation = "sigmoid"
    given: dict[str, Any] = {"upsampling": upsampling, "bottleneck": bottleneck, "domains": domains}
    given |= {"decoder": decoder or method.decoder, "output_activation": output_activation}
    by_method = {"masking": method.masking, "code": method.code, "out_channels": method.out_channels(about.in_channels)}
    return build_autoencoder(encoder, **given, **by_method)
