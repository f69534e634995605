"""Weight files: safetensors with a typed header and a checksum, loaded strictly; published weights by name."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from segae._io import package_data, write_together
from segae.errors import CheckpointError, nearest

InfoType = TypeVar("InfoType", bound="Info")
PathLike = str | os.PathLike[str]

FORMAT_VERSION = "2"
_DECODER_SUFFIX = "-decoder"
_LARGEST_HEADER = 1 << 24  # bytes; a network of a thousand tensors needs about 0.1 MB
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # torch.save since 1.6 (a zip), and a bare pickle
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


class Info:
    """Base of the dataclasses in headers: unknown fields, NaN and infinity are refused when a file is read."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012 - pydantic's own spelling


def read_weights(path: PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a weight file, to the CPU, and the text of its header.

    CheckpointError: no such file, a pickle, a damaged or changed file, NaN or infinity in it, or another format.
    """
    metadata = read_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # what torch and safetensors raise for damaged sizes and types is not documented
        raise _damaged(path, error) from error
    if metadata.pop("digest", None) != _digest(metadata, state):
        raise _damaged(path, "its header or its tensors are not those that were written")
    _check_tensors(state, f"{path} cannot be used")
    return state, metadata


def read_header(path: PathLike) -> dict[str, str]:
    """Read the text in the header of a weight file alone, without its checksum; errors as in `read_weights`."""
    if not is_file(path):
        raise CheckpointError(f"there is no weight file {path}")
    with Path(path).open("rb") as file:
        start = file.read(9)
    # the length before a safetensors header may look like the start of a pickle
    if start[8:9] != b"{" and start.startswith(_PICKLE_STARTS):
        raise CheckpointError(
            f"{path} is a pickle, and loading a pickle can run any code: only .safetensors files are read. If it holds "
            "an encoder's state dict: encoder = segae.create_encoder(NAME); encoder.load_state_dict(torch.load(FILE, "
            "weights_only=True)); segae.save_encoder(encoder, NEW_FILE)"
        )
    if start[8:9] != b"{" and Path(path).suffix != ".safetensors":
        raise CheckpointError(f"{path} is no .safetensors file")
    if (length := int.from_bytes(start[:8], "little")) > _LARGEST_HEADER:
        raise _damaged(path, f"a header of {length} bytes")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
    except Exception as error:  # as in read_weights
        raise _damaged(path, error) from error
    version = metadata.get("segae_format", "none, as it was not written by segae")
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} must have the format {FORMAT_VERSION} of this version of segae, got {version}")
    return metadata


def _damaged(path: PathLike, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or not a safetensors file ({str(reason)[:200]}). Copy it again from its source, or run the "
        "command that wrote it again."
    )


def _check_tensors(state: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in state.items():
        if tensor.dtype not in _FLOATS + _INTEGERS:  # such as complex, which loading would strip of a part
            raise CheckpointError(f"{what}: {name} has the type {tensor.dtype}, which no network here has")
        if tensor.dtype in _FLOATS and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{what}: {name} holds NaN or infinity; a training that diverged leaves such weights")


def _digest(header: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    text = json.dumps(dict(header), sort_keys=True) + fingerprint(state)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash the names, types, shapes and values of tensors, on any device, in any order and memory format."""
    content = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load ``state`` into ``module``, every tensor of both, or raise before anything has changed.

    CheckpointError: from this ``origin`` a tensor is missing, unknown, or of another shape or kind of number.
    """
    own = module.state_dict()
    both = [(name, state[name], tensor) for name, tensor in own.items() if name in state]
    found = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [f"{name} {[*a.shape]} for {[*b.shape]}" for name, a, b in both if a.shape != b.shape],
        "of another type": [name for name, a, b in both if a.is_floating_point() != b.is_floating_point()],
    }
    problems = [f"{len(names)} {kind} ({', '.join(names[:3])})" for kind, names in found.items() if names]
    if problems:
        raise CheckpointError(
            f"{origin} does not fit {type(module).__name__}: of its {len(own)} tensors, {'; '.join(problems)}. "
            "The file was changed or written for another model."
        )
    # a copy of the dict: smp's encoders rename keys of some families in the dict they are given
    module.load_state_dict(dict(state), strict=True)


def save_described(path: PathLike, kind: str, state: Mapping[str, Tensor], info: Any) -> Path:
    """Write tensors with a dataclass that describes them in the header, and as JSON beside the file; all or nothing.

    Equal content gives equal bytes. The ``kind`` keeps, say, an encoder from being read as a segmenter.
    SegaeError if the files cannot be written, or a value is NaN or infinite; the old files survive then.
    """
    # safetensors refuses strided views, and channels_last training leaves exactly those
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    _check_tensors(tensors, f"the model cannot be saved as {path}")
    try:
        text = json.dumps(asdict(info), indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"info must be text and finite numbers, got {error} (for {path})") from error
    metadata = {"segae_format": FORMAT_VERSION, "kind": kind, "info": text}
    content = save(tensors, metadata={**metadata, "digest": _digest(metadata, tensors)})
    end = 8 + int.from_bytes(content[:8], "little")
    # safetensors writes the metadata in another order each time
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    parts, path = (len(header).to_bytes(8, "little"), header, content[end:]), Path(path)
    write_together({path: lambda file: file.writelines(parts), path.with_suffix(".json"): f"{text}\n".encode()})
    return path


def load_described(path: PathLike, kind: str, info_type: type[InfoType]) -> tuple[dict[str, Tensor], InfoType]:
    """Read what `save_described` wrote, with kind, types and ranges checked; errors as in `read_weights`."""
    state, metadata = read_weights(path)
    if metadata.get("kind") != kind:
        raise CheckpointError(f"{path} must be a file of kind {kind}, got {metadata.get('kind')}")
    try:
        return state, TypeAdapter(info_type).validate_json(metadata.get("info", ""), strict=True)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise CheckpointError(f"the info in the header of {path} cannot be used ({'; '.join(problems)})") from error


def load_model(path: PathLike, kind: str, info_type: Any) -> Any:
    """Rebuild a model from what `save_described` wrote: ``build`` of its info makes it, every tensor is checked."""
    state, info = load_described(path, kind, info_type)
    model = info.build()
    load_strictly(model, state, str(path))
    return model


def is_file(path: PathLike) -> bool:
    """Whether it is an existing file; False too for names that are too long, for which `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113


def published_weights() -> list[str]:
    """Names of the encoders that come with segae; each can be given wherever a weight file can."""
    files = package_data("weights").glob("*.safetensors")
    return sorted(file.stem for file in files if not file.stem.endswith(_DECODER_SUFFIX))


def find_weights(source: PathLike, *, others: Sequence[str] = ()) -> Path:
    """Return the file of a path or of a published name, in this order; CheckpointError if it is neither.

    ``others`` are names of no file that the caller takes, too, for the message.
    """
    if is_file(source):
        return Path(source)
    if str(source) in published_weights():
        return package_data("weights") / f"{source}.safetensors"
    known = ", ".join(published_weights()) or "none here"
    inside = sorted(Path(source).glob("*.safetensors")) if os.path.isdir(source) else []  # noqa: PTH112
    hint = (
        f", a folder with {', '.join(map(str, inside))}" if inside else nearest(source, [*others, *published_weights()])
    )
    allowed = ", ".join([*others, f"an existing .safetensors file or a published name ({known})"])
    raise CheckpointError(f"weights must be {allowed}, got {str(source)!r}{hint}")


def decoder_file(encoder: PathLike) -> Path:
    """Return where the decoder that was pretrained with an encoder is: beside its file, or under its published name."""
    published = published_name(encoder)
    name = f"{published}{_DECODER_SUFFIX}" if published else "decoder"
    return find_weights(encoder).with_name(f"{name}.safetensors")


def published_name(source: PathLike) -> str:
    """The name under which weights are published, of that name or of their file; empty for other files."""
    file = find_weights(source).resolve()
    return file.stem if file.parent == package_data("weights").resolve() else ""


@dataclass(frozen=True)
class DecoderInfo(Info):
    """What must agree before a pretrained decoder is taken over, and its method; stored in the header of its file."""

    encoder: str
    decoder: str
    method: str
    encoder_fingerprint: str


def save_decoder(model: Any, path: PathLike, *, method: str = "") -> Path:
    """Write a pretrained model's decoder, without its head, for a segmenter with exactly this encoder."""
    whole = fingerprint(model.encoder.state_dict())
    info = DecoderInfo(model.encoder.info.architecture, model.info.decoder, method, whole)
    return save_described(path, "decoder", model.decoder.state_dict(), info)


def load_decoder_into(path: PathLike, segmenter: Any) -> DecoderInfo:
    """Load a pretrained decoder into a segmenter; its encoder and its head stay as they are.

    ``path`` is a file of `save_decoder`, or the published name of an encoder that comes with a decoder.
    CheckpointError: no such file, or it holds another decoder, or one that was trained with another encoder.
    """
    file = decoder_file(path) if str(path) in published_weights() and not is_file(path) else Path(path)
    state, info = load_described(file, "decoder", DecoderInfo)
    if segmenter.info.decoder != info.decoder:
        raise CheckpointError(f"decoder must be {info.decoder} as in {file}, got {segmenter.info.decoder}")
    if fingerprint(segmenter.encoder.state_dict()) != info.encoder_fingerprint:
        raise CheckpointError(
            f"encoder must be the {info.encoder} that was pretrained together with {file}, got other weights of "
            f"{segmenter.encoder.info.architecture}; use the encoder file beside it, or transfer the encoder alone"
        )
    load_strictly(segmenter.decoder, state, str(file))
    return info
