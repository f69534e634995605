"""Weight files: what is written is read, equal models give equal files, and everything else is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from segae import models
from segae.errors import CheckpointError, SegaeError
from segae.models.checkpoint import DecoderInfo, _digest, load_described, load_strictly, read_weights, save_described

STATE = {"weight": torch.arange(4000.0).view(1000, 4), "steps": torch.tensor(7), "seen": torch.tensor([True])}
INFO = DecoderInfo("test_resnet", "unet", "denoise", "none")


@pytest.fixture(scope="module")
def encoder() -> models.Encoder:
    torch.manual_seed(0)
    return models.create_encoder("test_resnet")


@pytest.fixture
def path(tmp_path: Path, encoder: models.Encoder) -> Path:
    return models.save_encoder(encoder, tmp_path / "encoder.safetensors")


def forge(path: Path, state: dict[str, torch.Tensor] | None = None, **metadata: str) -> None:
    """Change tensors or texts of the header as somebody would who knows the format, the checksum included."""
    own, header = read_weights(path)
    state, header = own if state is None else state, {**header, **metadata}
    path.write_bytes(save(state, metadata={**header, "digest": _digest(header, state)}))


def test_tensors_and_info_come_back(tmp_path: Path) -> None:
    path = save_described(tmp_path / "new" / "w.safetensors", "decoder", STATE, INFO)
    state, info = load_described(path, "decoder", DecoderInfo)
    assert info == INFO
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert json.loads(path.with_suffix(".json").read_text()) == asdict(INFO)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    for run in map(str, range(4)):  # safetensors alone orders the texts of a header at random
        torch.manual_seed(1)
        encoder = models.create_encoder("test_resnet")
        models.save_encoder(encoder, tmp_path / run / "e.safetensors")
        models.save_segmenter(models.create_segmenter(encoder, num_classes=3), tmp_path / run / "s.safetensors")
    for name in ("e.safetensors", "e.json", "s.safetensors", "s.json"):
        assert len({(tmp_path / run / name).read_bytes() for run in map(str, range(4))}) == 1


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, suffix: str, zipped: bool) -> None:
    torch.save(STATE, tmp_path / f"model{suffix}", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="pickle"):
        models.load(tmp_path / f"model{suffix}")


@pytest.mark.parametrize("kept", [0, 4, 9, 100, -1])
def test_a_cut_file_is_damaged(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="damaged"):
        models.load(path)


def test_a_flipped_bit_is_noticed_wherever_it_is(path: Path) -> None:
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    places = [*range(9), *range(20, 8 + header, header // 40), 8 + header, len(content) - 1]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(SegaeError):
            models.load(path)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, 200_000_000])
def test_an_absurd_length_of_the_header_is_refused(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + b"{" + path.read_bytes()[9:])
    with pytest.raises(CheckpointError, match="damaged"):
        models.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    path: Path, encoder: models.Encoder, value: float
) -> None:
    before = path.read_bytes()
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    name = next(name for name, tensor in state.items() if tensor.ndim == 4)
    state[name][0, 0, 0, 0] = value
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        save_described(path, "encoder", state, encoder.info)
    assert path.read_bytes() == before
    forge(path, state)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinity"):
        models.load(path)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_complex_and_unknown_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(CheckpointError, match=f"weight has the type {dtype}"):
        save_described(tmp_path / "w.safetensors", "decoder", {"weight": torch.zeros(2, dtype=dtype)}, INFO)
    assert not list(tmp_path.iterdir())


def test_a_plain_file_and_another_format_say_so(tmp_path: Path, path: Path) -> None:
    save_file(STATE, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not written by segae"):
        models.load(tmp_path / "plain.safetensors")
    save_file(STATE, tmp_path / "new.safetensors", metadata={"segae_format": "99"})
    with pytest.raises(CheckpointError, match="got 99"):
        models.load(tmp_path / "new.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "resnet19"},
        {"in_channels": 10**30},
        {"in_channels": True},
        {"mean": [0.5, 0.5]},
        {"mean": ["0.5", 0.5, 0.5]},
        {"std": [0.0, 0.5, 0.5]},
        {"image_size": 1e3},
        {"weights": {"start": "random", "transfer": "all"}},
        {"color": "red"},
    ],
)
def test_types_and_ranges_of_an_info_are_checked(path: Path, encoder: models.Encoder, changes: dict) -> None:
    forge(path, info=json.dumps({**asdict(encoder.info), **changes}))
    with pytest.raises(SegaeError, match=next(iter(changes)) if "architecture" not in changes else "name|architecture"):
        models.load(path)


@pytest.mark.parametrize("text", ["", "{", "null", "{}", "[" * 100_000, '{"mean":' * 5000])
def test_an_info_that_is_none_is_refused(path: Path, text: str) -> None:
    forge(path, info=text)
    with pytest.raises(CheckpointError, match="info in the header"):
        models.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(bias=torch.zeros(4)), r"1 of another shape \(bias \[4\] for \[3\]"),
        (lambda state: state.update(bias=torch.zeros(3, dtype=torch.int64)), r"1 of another type \(bias\)"),
        (lambda state: state.update(weigth=state.pop("weight")), r"1 missing \(weight\); 1 unknown"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message: str) -> None:
    module = nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    change(state)
    with pytest.raises(CheckpointError, match=message):
        load_strictly(module, state, "the file")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_load_tells_the_kinds_apart(tmp_path: Path, encoder: models.Encoder) -> None:
    model = models.build_autoencoder(encoder, decoder="unet")
    segmenter = models.create_segmenter(encoder, num_classes=2)
    files = {
        "Encoder": models.save_encoder(encoder, tmp_path / "e.safetensors"),
        "Autoencoder": models.save_autoencoder(model, tmp_path / "a.safetensors"),
        "Segmenter": models.save_segmenter(segmenter, tmp_path / "s.safetensors"),
    }
    for kind, file in files.items():
        assert type(models.load(file)).__name__ == kind
    with pytest.raises(CheckpointError, match="decoder"):
        models.load(models.save_decoder(model, tmp_path / "d.safetensors"))
    with pytest.raises(CheckpointError, match=r"must be a file of kind segmenter, got encoder"):
        models.load_segmenter(files["Encoder"])
    with pytest.raises(CheckpointError, match="nowhere"):
        models.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match=tmp_path.name):
        models.load(tmp_path)


def test_a_pretrained_decoder_goes_with_its_encoder_only(tmp_path: Path, encoder: models.Encoder) -> None:
    model = models.build_autoencoder(encoder, decoder="unet", out_channels=5)
    models.save_encoder(encoder, tmp_path / "encoder.safetensors")
    file = models.save_decoder(model, models.decoder_file(tmp_path / "encoder.safetensors"), method="denoise")
    assert file == tmp_path / "decoder.safetensors"
    segmenter = models.create_segmenter(encoder, num_classes=3, decoder_weights=file)
    own = segmenter.decoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.decoder.state_dict().items())
    assert models.load_decoder_into(file, segmenter).method == "denoise"
    with pytest.raises(CheckpointError, match="decoder must be unet .*, got fpn"):
        models.create_segmenter(encoder, num_classes=3, decoder="fpn", decoder_weights=file)
    with pytest.raises(CheckpointError, match="pretrained together"):
        models.create_segmenter(models.create_encoder("test_resnet"), num_classes=3, decoder_weights=file)
    with pytest.raises(CheckpointError, match="nowhere"):
        models.create_segmenter(encoder, num_classes=3, decoder_weights=tmp_path / "nowhere.safetensors")


def test_published_weights_load_by_name() -> None:
    assert "pets_pseudo_masks" in models.published_weights()
    for file in (models.find_weights("pets_pseudo_masks"), models.decoder_file("pets_pseudo_masks")):
        assert file.stat().st_size < 16 * 2**20
        assert file.with_suffix(".json").is_file()
    encoder = models.load_encoder("pets_pseudo_masks")
    assert encoder.info.architecture == "tf_efficientnet_lite0"
    assert encoder.info.weights.method == "pseudo_masks"
    assert encoder.info.weights.method_args == {"source": "color", "boundary": 0.0}
    assert encoder.info.pretraining["images_seen"] == 321_600
    model = models.create_segmenter("pets_pseudo_masks", num_classes=3, decoder_weights="pets_pseudo_masks")
    assert models.fingerprint(model.encoder.state_dict()) == models.fingerprint(encoder.state_dict())
    assert model.info.image_size == 128
    with torch.no_grad():
        assert bool(model.eval()(torch.randn(1, 3, 96, 96)).isfinite().all())


def test_a_file_of_that_path_comes_before_a_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets_pseudo_masks").write_text("a file of the user's")
    assert models.find_weights("pets_pseudo_masks") == Path("pets_pseudo_masks")
    for name in ("pets", 5000 * "x"):
        with pytest.raises(CheckpointError, match=rf"\(.*pets_pseudo_masks.*\), got '{name}'"):
            models.find_weights(name)


def test_a_folder_is_answered_with_the_files_in_it(path: Path) -> None:
    with pytest.raises(CheckpointError, match=path.name):
        models.load(path.parent)
