"""What every settings dataclass shares: fields checked when it is made, nesting, nearest names, path checks."""

import inspect
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, ParamSpec, TypeVar

from segae._io import check_range, parse_duration, refuse_archives, show_messages
from segae.errors import CheckpointError, DataError, SegaeError, nearest

PathLike = str | os.PathLike[str]
Size = int | tuple[int, int]
C = TypeVar("C", bound="Config")
P = ParamSpec("P")
R = TypeVar("R")
AUGMENTATIONS = ("none", "light", "default", "strong")
_LIMIT = 200  # characters of a word that is no path, such as a class name


def number(default: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Any:
    """Declare a field that holds a number, or a tuple of numbers, and its range."""
    return field(default=default, metadata={"low": low, "high": high, "low_open": open_low, "high_open": open_high})


def sides(default: Any, low: int, high: int) -> Any:
    """Declare a field that holds the side of a square or (height, width), also as text such as 192x256."""
    return field(default=default, metadata={"sides": (low, high)})


def checked(require: Callable[[str, Any], object], **how: Any) -> Any:
    """Declare a field that ``require`` checks before a command starts, such as a path that must exist."""
    return field(metadata={"require": require}, **how)


def augmentation() -> Any:
    """Declare the field of an augmentation: a name, a file, or what albumentations makes; True and False are names."""
    return field(default="default", metadata={"require": require_augmentation, "convert": _name_augmentation})


def _name_augmentation(value: Any) -> Any:
    if isinstance(value, bool):
        return "default" if value else "none"
    return json.dumps(value) if isinstance(value, Mapping) else value  # what stands in a file of settings


class FieldType(NamedTuple):
    """What a field accepts, read from its annotation."""

    kinds: frozenset[Any]
    choices: tuple[str, ...] = ()
    many: bool = False
    optional: bool = False


def _field_type(hint: Any) -> FieldType:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return FieldType(frozenset([str]), inner)
    if origin in (typing.Union, types.UnionType):
        parts = [_field_type(one) for one in inner if one is not type(None)]
        kinds = frozenset().union(*(part.kinds for part in parts))
        choices = tuple(choice for part in parts for choice in part.choices)
        return FieldType(kinds, choices, any(part.many for part in parts), type(None) in inner)
    if origin in (tuple, Sequence):
        return _field_type(inner[0])._replace(many=True)
    return FieldType(frozenset([origin or hint]))


@typing.dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, checked))
class Config:
    """Base of all settings, which makes them frozen dataclasses; every field is checked when the object is made.

    ``MAIN`` are the fields shown first in the help, ``TYPES`` what each field accepts.
    """

    MAIN: ClassVar[tuple[str, ...]] = ()
    TYPES: ClassVar[Mapping[str, FieldType]]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        hints = typing.get_type_hints(cls)
        cls.TYPES = {
            one.name: FieldType(frozenset([Size]), optional=one.default is None)
            if "sides" in one.metadata
            else _field_type(hints[one.name])
            for one in fields(cls)
        }

    def __post_init__(self) -> None:
        for one in fields(self):
            value, accepted = getattr(self, one.name), self.TYPES[one.name]
            if convert := one.metadata.get("convert"):
                value = convert(value)
                object.__setattr__(self, one.name, value)
            if value is None and accepted.optional:
                continue
            if "sides" in one.metadata:
                object.__setattr__(self, one.name, _parse_size(one.name, value, *one.metadata["sides"]))
                continue
            if accepted.many:
                single = isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)
                value = (value,) if single else tuple(value)
                if not value and is_required(one):
                    raise SegaeError(f"{one.name} must be given")
                object.__setattr__(self, one.name, value)
            for item in value if accepted.many else (value,):
                _check(one.name, item, accepted, one.metadata)

    @classmethod
    def expand(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add what given settings imply, such as those of a preset."""
        return settings

    def check_inputs(self) -> None:
        """Refuse input files and folders that are not there, before anything expensive is imported."""
        for name in dict.fromkeys([*self.MAIN, *self.TYPES]):  # in the order of the help
            value, require = getattr(self, name), self.__dataclass_fields__[name].metadata.get("require")
            for item in value if isinstance(value, tuple) else () if value is None else (value,):
                if require:
                    require(name, item)


def _parse_size(name: str, value: Any, low: int, high: int) -> Size:
    """An integer, or height and width; equal ones are an integer."""
    parts = value.lower().split("x") if isinstance(value, str) else value
    listed = list(parts) if isinstance(parts, list | tuple) else [parts]
    given = [int(part) if isinstance(part, str) and part.strip().isdecimal() else part for part in listed]
    if not 1 <= len(given) <= 2 or any(isinstance(part, str) for part in given):
        raise SegaeError(f"{name} must be a side in pixels, or HEIGHTxWIDTH such as 192x256, got {value!r}")
    for side in given:
        check_range(name, side, low=low, high=high, integer=True)
    return given[0] if given[0] == given[-1] else (given[0], given[1])


def _check(name: str, value: Any, accepted: FieldType, limits: Mapping[str, Any]) -> None:
    if "low" in limits:
        check_range(name, value, integer=float not in accepted.kinds, **limits)
        if name == "labels" and isinstance(value, float) and value > 1:
            raise SegaeError(f"labels must be a whole number of images or a share in (0, 1], got {value}")
    elif accepted.choices and value not in accepted.choices:
        known = ", ".join(accepted.choices)
        raise SegaeError(f"{name} must be one of {known}, got {value!r}{nearest(value, accepted.choices)}")
    elif accepted.kinds == {bool} and not isinstance(value, bool):
        raise SegaeError(f"{name} must be true or false, got {value!r}")
    elif os.PathLike in accepted.kinds:
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
        longest = 0 if "://" in text else max(map(len, os.fsencode(text).split(os.fsencode(os.sep))))
        if not text or "\0" in text or longest > 255 or len(text) > 4000:
            raise SegaeError(f"{name} must be a path, got {str(value)[:60]!r}")
    elif accepted.kinds == {str} and not (isinstance(value, str) and 0 < len(value) <= _LIMIT and value.isprintable()):
        raise SegaeError(f"{name} must be text of 1 to {_LIMIT} printable characters, got {str(value)[:60]!r}")


def takes_settings_of(kind: Callable[P, C]) -> Callable[[Callable[[C], R]], Callable[P, R]]:
    """Turn a function of one config into a function of the config's settings, with their signature and types."""

    def decorate(function: Callable[[C], R]) -> Callable[P, R]:
        @wraps(function)
        def call(*values: P.args, **settings: P.kwargs) -> R:
            with show_messages():
                return function(make_config(kind, *values, **settings))  # type: ignore[arg-type]

        returned = inspect.signature(function).return_annotation
        call.__signature__ = inspect.signature(kind).replace(return_annotation=returned)  # type: ignore[attr-defined]
        return call

    return decorate


def make_config(kind: type[C], /, *values: Any, **settings: Any) -> C:
    """Build a config from settings by name and check it; settings of the trainer may stand beside the others.

    The SegaeError of an unknown setting names the nearest known one.
    """
    names = [one.name for one in fields(kind) if not one.kw_only]
    if len(values) > len(names):
        raise SegaeError(f"settings of {kind.__name__} must be given by name, got {values[len(names) :]!r}")
    given = nest(kind, kind.expand({**dict(zip(names, values, strict=False)), **settings}))
    for one in fields(kind):
        if is_required(one) and one.name not in given:
            raise SegaeError(f"{one.name} must be given")
    config = kind(**given)
    config.check_inputs()
    return config


def nest(kind: type[Config], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sort settings into the fields of a config, which must have them, those of its trainer below ``trainer``."""
    known: dict[str, Field[Any]] = {one.name: one for one in fields(kind)}
    factory: Any = known["trainer"].default_factory if "trainer" in known else dict
    ours, below = set(known), {one.name for one in fields(factory)} if factory is not dict else set()
    for name in settings:
        if name not in ours | below:
            raise SegaeError(f"{name} is not a setting of {kind.__name__}{nearest(name, ours | below)}")
    nested = {name: value for name, value in settings.items() if name in ours}
    if flat := {name: value for name, value in settings.items() if name not in ours}:
        given = nested.get("trainer", {})
        nested["trainer"] = {**given, **flat} if isinstance(given, Mapping) else replace(given, **flat)
    for name, value in nested.items():
        factory = known[name].default_factory
        if isinstance(value, Mapping) and factory not in (MISSING, dict):
            nested[name] = replace(factory(), **nest(type(factory()), value))
    return nested


def merge_settings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings; where both have a value, that of ``above`` counts."""
    merged = {**below, **above}
    for name in set(below) & set(above):
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            merged[name] = merge_settings(below[name], above[name])
    return merged


def is_required(one: Field[Any]) -> bool:
    """Whether a field has no default."""
    return one.default is MISSING and one.default_factory is MISSING


def _sibling(path: PathLike) -> str:
    """A hint at a neighbor of almost the same name, or at the files in a folder that may be meant."""
    folder = Path(path).parent
    if Path(path).is_dir():
        kinds = (".safetensors", ".onnx", ".csv")
        files = ", ".join(sorted(child.name for child in Path(path).iterdir() if child.suffix in kinds))
        return f", a folder with {files or 'no such file'}"
    if not folder.is_dir():
        return f"; there is no folder {folder} either"
    if Path(path).exists():
        return ", a file"
    return nearest(Path(path).name, (child.name for child in folder.iterdir()))


def require_images(name: str, root: PathLike) -> None:
    """Refuse a root of unlabeled images that is missing, empty, or an address of a kind that is never opened."""
    text = os.fspath(root)
    if found := re.match(r"([a-zA-Z][\w+.-]+):", text):
        if not text.startswith(("https://", "hf://")):
            raise DataError(f"{name} must be a local path or begin with https:// or hf://, got the scheme {found[1]}")
    elif not any(mark in text for mark in "*[{"):  # no pattern of tar shards
        path = Path(text.partition("?")[0])
        if not path.exists():
            raise DataError(f"{name} must be an image or a folder that exists, got {text}{_sibling(path)}")
        if path.is_dir() and not any(files for _, _, files in os.walk(path, followlinks=True)):
            raise DataError(f"{name} must hold images, got the empty folder {text}")
        refuse_archives(path, shards=True)


def require_labeled(name: str, root: PathLike) -> None:
    """Refuse what is no folder, or an empty one; whether another is a labeled data set, the data decide."""
    text = os.fspath(root)
    if re.match(r"hf:/", text):
        return
    path = Path(text) if Path(text).exists() else Path(text.partition("?")[0])
    refuse_archives(path)
    if not path.is_dir():
        raise DataError(f"{name} must be an existing folder with a labeled data set, got {path}{_sibling(path)}")
    if not any(path.iterdir()):
        layouts = "with images/ and masks/, or of another layout of docs/data.md"
        raise DataError(f"{name} must be a folder {layouts}, got the empty folder {path}")


def require_trainable(name: str, source: PathLike) -> None:
    """Refuse what is neither labeled shards (tar or parquet files, here or at an address) nor a labeled folder."""
    text = os.fspath(source)
    path = Path(text.partition("?")[0])
    is_table = path.suffix == ".parquet" or any(any(place.glob("*.parquet")) for place in (path, path / "data"))
    (require_images if text.endswith(".tar") or is_table or "://" in text else require_labeled)(name, source)


def require_file(name: str, path: Any) -> None:
    """Refuse a file of weights or rows that is not there; a model in memory passes."""
    if isinstance(path, str | os.PathLike) and not Path(path).is_file():
        raise CheckpointError(f"{name} must be an existing file, got {os.fspath(path)}{_sibling(path)}")


def require_weights(name: str, weights: PathLike) -> None:
    """Refuse a weights file that is not there; published names are left to the models."""
    suffixes = (".safetensors", ".pt", ".pth", ".bin")
    if isinstance(weights, os.PathLike) or os.sep in weights or Path(weights).suffix in suffixes:
        require_file(name, weights)


def require_augmentation(name: str, value: Any) -> None:
    """Refuse a text that is no augmentation, the JSON of one, or an existing file; objects are left to the data."""
    text, known = str(value), f"one of {', '.join(AUGMENTATIONS)}"
    if isinstance(value, str | os.PathLike) and text not in AUGMENTATIONS and not text.lstrip().startswith("{"):
        if Path(text).suffix.lower() not in (".json", ".yaml", ".yml"):
            hint = nearest(text, AUGMENTATIONS)
            raise SegaeError(f"{name} must be {known}, or a JSON or YAML file of albumentations, got {text}{hint}")
        if not Path(text).is_file():
            raise SegaeError(f"{name} must be {known}, or an existing file, got {text}{_sibling(text)}")


def require_duration(name: str, text: str) -> None:
    """Refuse what is not a time such as 1h30m."""
    parse_duration(name, text)


def require_shard(name: str, text: str) -> None:
    """Refuse what is not a part i/n of a grid."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and len(text) < 12 and 1 <= int(part) <= int(parts)):
        raise SegaeError(f"{name} must be i/n with 1 <= i <= n, such as 1/4, got {text!r}")
