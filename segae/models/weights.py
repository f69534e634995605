"""Weight files: safetensors in and out, never a pickle, never half a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from segae.errors import SegaeError
from segae.files import write_together

FORMAT_VERSION = "1"
_DIGEST = "tensors_blake2b"
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".tar")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # torch.save since 1.6 (a zip), and a bare pickle


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    beside: Mapping[Path, bytes] | None = None,
) -> None:
    """Write a safetensors file atomically, with `metadata` in its header.

    Args:
        path: The file to write or replace; its folder is made.
        state: Tensors by name, on any device, in any memory format.
        metadata: Text stored in the file's header.
        beside: Small files that belong to it; written together with it or not at all.

    Raises:
        SegaeError: The file cannot be written (full disk, no permission); the old one survives.
    """
    # safetensors refuses strided views; channels_last training leaves exactly those
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {"segae_format": FORMAT_VERSION, _DIGEST: fingerprint(tensors), **metadata}
    contents = {Path(path): save(tensors, metadata=header), **(beside or {})}
    write_together({file: partial(_fill, content) for file, content in contents.items()})


def _fill(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, on the CPU, and the text of its header.

    Raises:
        SegaeError: There is no such file, it is a pickle, it is damaged, or a newer segae wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise SegaeError(f"there is no weight file {path}. Give the path of a .safetensors file.")
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise SegaeError(
            f"{path} is damaged or not a safetensors file ({error}). "
            "Copy it again from where it came, or run the command that wrote it again."
        ) from error
    version = metadata.get("segae_format", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise SegaeError(
            f"{path} has format {version}; this segae reads format {FORMAT_VERSION}. "
            "Install a newer one: pip install --upgrade segae."
        )
    names, _, content = metadata.get(_DIGEST, "").partition(":")
    # other names or shapes are somebody's edit, which loading strictly explains better
    if f"{names}:{content}" != (digest := fingerprint(state)) and names == digest.partition(":")[0]:
        raise SegaeError(
            f"{path} is damaged: its tensors are not the ones that were written. "
            "Copy it again from where it came, or run the command that wrote it again."
        )
    return state, metadata


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Fingerprints of names with shapes, and of all bytes: a flipped bit would be a slightly worse model.

    Args:
        state: Tensors by name, on any device, in any memory format.
    """
    names, content = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        names.update(f"{name} {tuple(state[name].shape)}".encode())
        tensor = state[name].detach().cpu().contiguous()
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return f"{names.hexdigest()}:{content.hexdigest()}"


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:9] == b"{":  # a safetensors header, whose length in the first eight bytes may look like a pickle
        return
    if path.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
        raise SegaeError(
            f"{path} is a pickle checkpoint, and loading a pickle can run any code: only .safetensors files "
            "are read. If it holds the state dict of an encoder, convert it once in Python: from "
            "segae.models.encoder import create_encoder, save_encoder; encoder, description = "
            'create_encoder("<architecture>"); encoder.load_state_dict(torch.load('
            f'"{path.name}", weights_only=True)); save_encoder("encoder.safetensors", encoder, '
            'dataclasses.replace(description, init="<name>", source="<where it is from>")).'
        )


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` into `module`, every tensor of both, or raise before anything has changed.

    Args:
        module: The module whose tensors are replaced.
        state: Exactly the module's state dict by name and shape.
        origin: Where the state came from, for the error message.

    Raises:
        SegaeError: A tensor is missing, is not known to the module, or has another shape.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    found = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
    problems = [f"{len(names)} {kind} ({_first(names)})" for kind, names in found if names]
    if problems:
        raise SegaeError(
            f"{origin} does not fit {type(module).__name__}: of its {len(wanted)} tensors, "
            f"{'; '.join(problems)}. The file was changed or written for another model: "
            "use the file as it was saved, or write it again."
        )
    # a copy of the dict: smp's encoders rename keys of some families in the dict they are given
    module.load_state_dict(dict(state), strict=True)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
