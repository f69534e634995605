"""A published encoder is found by its name, wherever one works; files keep their right of way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segae.errors import SegaeError
from segae.models import published
from segae.models.decoder import decoder_file
from segae.models.encoder import create_encoder, load_encoder, save_encoder
from segae.models.published import encoder_file, published_encoders

NAME = "test_efficientnet"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of published encoders, the second as in an installed wheel."""
    folders = (tmp_path / "clone", tmp_path / "wheel")
    for seed, (folder, name) in enumerate([(folders[0], "mine"), (folders[1], "mine"), (folders[1], "other")]):
        torch.manual_seed(seed)
        save_encoder(folder / f"{name}.safetensors", *create_encoder(NAME, "random"))
    monkeypatch.setattr(published, "_FOLDERS", folders)
    return tmp_path


def test_a_name_is_found_and_the_clone_comes_first(weights: Path) -> None:
    assert set(published_encoders()) == {"mine", "other"}
    assert encoder_file("mine") == weights / "clone" / "mine.safetensors"
    assert encoder_file("other") == weights / "wheel" / "other.safetensors"
    encoder, description = load_encoder("other")
    assert description.architecture == NAME
    created, _ = create_encoder(NAME, "other")
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(encoder.eval()(image)[-1], created.eval()(image)[-1])
    assert not torch.equal(encoder(image)[-1], load_encoder("mine")[0].eval()(image)[-1])


def test_a_file_of_that_path_has_the_right_of_way(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(weights)
    (weights / "mine").write_text("a file of the user's")
    assert encoder_file("mine") == Path("mine")
    assert encoder_file("nowhere/mine.safetensors") == Path("nowhere/mine.safetensors")


@pytest.mark.usefixtures("weights")
def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(SegaeError, match=r"name of a published encoder \(mine, other\)"):
        create_encoder(NAME, "mien")
    with pytest.raises(SegaeError, match="holds an encoder with architecture test_efficientnet, but resnet18"):
        create_encoder("resnet18", "mine")


def test_a_decoder_is_beside_its_encoder_and_no_encoder_itself(weights: Path) -> None:
    (weights / "wheel" / "other-decoder.safetensors").write_bytes(b"")
    assert "other-decoder" not in published_encoders()
    assert decoder_file("other") == weights / "wheel" / "other-decoder.safetensors"
    assert decoder_file("runs/pretrain/encoder.safetensors") == Path("runs/pretrain/decoder.safetensors")


def test_the_published_encoder_says_where_it_comes_from() -> None:
    encoder, description = load_encoder("pets_layers")
    assert description.init == "ae:layers"
    assert description.architecture == "tf_efficientnet_lite0"
    assert description.pretraining["images_seen"] > 30_000
    assert description.pretraining["dataset"] == "oxford-iiit-pet-sample+cats-dogs-unlabelled"
    for file in (published_encoders()["pets_layers"], decoder_file("pets_layers")):
        assert file.stat().st_size < 16 * 2**20
        assert file.with_suffix(".json").is_file()
    features = encoder.eval()(torch.randn(2, 3, 96, 96))
    assert all(bool(feature.isfinite().all()) for feature in features)
