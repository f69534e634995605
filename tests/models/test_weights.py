"""Weight files survive what goes wrong around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segae.errors import SegaeError
from segae.models.weights import load_strictly, read_weights, write_weights

STATE = {"weight": torch.arange(4000.0).view(1000, 4), "steps": torch.tensor(7)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    write_weights(path, STATE, {"kind": "test"})
    state, metadata = read_weights(path)
    assert metadata["kind"] == "test"
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


def test_channels_last_weights_are_stored_by_value(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    write_weights(tmp_path / "w.safetensors", conv.state_dict(), {})
    assert torch.equal(read_weights(tmp_path / "w.safetensors")[0]["weight"], conv.weight)


def test_a_full_disk_costs_nothing_that_was_there(tmp_path: Path) -> None:
    # the kernel itself cuts the write off part-way, as a full disk does
    resource = pytest.importorskip("resource", reason="file size limits exist on Unix only")
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE, {})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(SegaeError, match=r"could not write .*w.safetensors: File too large"):
            write_weights(path, {**STATE, "steps": torch.tensor(8)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(STATE, path)
    with pytest.raises(SegaeError, match=r"pickle.*only \.safetensors.*save_encoder"):
        read_weights(path)


def test_an_old_style_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    with pytest.raises(SegaeError, match="pickle"):
        read_weights(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_cut_file_is_damaged(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SegaeError, match=r"w.safetensors is damaged"):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegaeError, match=r"there is no weight file .*nowhere.safetensors"):
        read_weights(tmp_path / "nowhere.safetensors")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors", metadata={"segae_format": "99"})
    with pytest.raises(SegaeError, match="has format 99"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("weight"), r"1 missing \(weight\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unknown \(extra\)"),
        (lambda state: state.update(bias=torch.zeros(4)), r"1 of another shape \(bias \(4,\) instead of"),
        (lambda state: state.update(weigth=state.pop("weight")), r"1 missing \(weight\); 1 unknown"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message: str) -> None:
    module = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    change(state)
    with pytest.raises(SegaeError, match=message):
        load_strictly(module, state, "the file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE, {})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegaeError, match="damaged"):
        read_weights(path)
