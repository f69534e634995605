"""``segae.export`` to timm, smp, fastai and the Hub: each loads the folder by its name and computes the same."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor

import segae
import segae.models.hub
from segae.cli import main
from segae.models.checkpoint import save_described
from tests.fabricate import make_images

TINY = ("test_resnet", "test_convnext", "test_efficientnet")


def used(name: str, channels: int = 3, **info: Any) -> segae.Encoder:
    """An encoder with weights and running statistics that no fresh network has."""
    torch.manual_seed(1)
    encoder = segae.create_encoder(name, in_channels=channels)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    encoder.train()(pixels(channels))
    encoder.info = replace(encoder.info, **info)
    return encoder.eval()


def pixels(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 96, generator=torch.Generator().manual_seed(0))


def difference(found: Any, expected: Any, count: int = 4) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found[-count:], expected[-count:], strict=True))


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("folders")

    def export(name: str) -> Path:
        return root / name if (root / name).exists() else segae.export(used(name), out=root / name)

    return export


@pytest.mark.parametrize("name", [*TINY, "cspnext_s"])  # the last one is wrapped once more by timm
@torch.no_grad()
def test_timm_loads_the_folder_by_its_name(name: str, folders: Callable[[str], Path]) -> None:
    folder, encoder = folders(name), used(name)
    model = timm.create_model(f"local-dir:{folder}", features_only=True, pretrained=True).eval()
    assert difference(model(pixels()), encoder(pixels())) < 1e-4
    again = segae.load(folder / "model.safetensors").eval()
    assert again.info == encoder.info
    assert same(again, encoder)


@pytest.mark.parametrize("channels", [1, 4])
@torch.no_grad()
def test_channels_size_and_normalization_travel(channels: int, tmp_path: Path) -> None:
    looks = {"mean": (0.1,) * channels, "std": (0.7,) * channels, "image_size": 96}
    encoder = used("test_resnet", channels, **looks)
    folder = segae.export(encoder, out=tmp_path / "folder")
    model = timm.create_model(f"local-dir:{folder}", features_only=True, pretrained=True).eval()
    assert difference(model(pixels(channels)), encoder(pixels(channels))) < 1e-4
    data = timm.data.resolve_data_config(model=timm.create_model(f"local-dir:{folder}"))
    assert [tuple(data[name]) for name in looks if name in data] == [looks["mean"], looks["std"]]
    assert tuple(data["input_size"]) == (channels, 96, 96)
    unet = smp.Unet(f"tu-local-dir:{folder}", encoder_weights=True, in_channels=channels).eval()
    assert difference(unet.encoder(pixels(channels)), encoder(pixels(channels))) < 1e-4


@pytest.mark.parametrize("name", TINY)
def test_the_file_holds_the_plain_network_without_classifier(name: str, folders: Callable[[str], Path]) -> None:
    file, config = folders(name) / "model.safetensors", settings(folders(name))
    state, whole = safetensors.torch.load_file(file), timm.create_model(name, num_classes=0).state_dict()
    assert set(state) == set(whole) - set(config["segae"]["left_out"])
    assert (config["num_classes"], config["model_args"]["num_classes"]) == (0, 0)
    # under its plain name timm loads every tensor of the file, or fails
    overlay = {"file": str(file)}
    model = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay)
    loaded = segae.models.hub.names_in_whole(model.state_dict(), state)
    assert all(torch.equal(tensor, state[loaded[key]]) for key, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)


@torch.no_grad()
def test_layers_behind_the_deepest_map_are_not_random(tmp_path: Path, folders: Callable[[str], Path], caplog) -> None:
    pooled = timm.create_model(f"local-dir:{folders('test_resnet')}", pretrained=True).eval()(pixels())
    assert difference([pooled], [used("test_resnet")(pixels())[-1].mean((2, 3))], 1) < 1e-4
    folder = segae.export(used("test_efficientnet"), out=tmp_path / "new")
    assert "conv_head.weight" in caplog.text
    assert "never trained" in (folder / "README.md").read_text()
    with pytest.raises(RuntimeError, match="conv_head"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=5)(pixels())  # to be trained
    with pytest.raises(segae.SegaeError, match="to must not be fastai.*conv_head"):
        segae.export(used("test_efficientnet"), to="fastai", out=tmp_path / "fastai")
    convnext = safetensors.torch.load_file(folders("test_convnext") / "model.safetensors")
    assert (convnext["head.norm.weight"] == 1).all()


@torch.no_grad()
def test_layers_behind_the_deepest_map_come_from_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = segae.create_encoder("tf_efficientnet_lite0", weights="imagenet")
    folder = segae.export(encoder, out=tmp_path / "folder")
    expected = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    expected.load_state_dict(segae.models.imagenet.read_imagenet("tf_efficientnet_lite0")[0], strict=False)
    found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert difference([found(pixels())], [expected(pixels())], 1) < 1e-4
    assert "ImageNet, from the installed package" in (folder / "README.md").read_text()

    def refuse(*_: object) -> None:
        raise segae.CheckpointError("no connection")

    monkeypatch.setattr(segae.models.hub, "read_imagenet", refuse)
    folder = segae.export(encoder, out=tmp_path / "offline")
    assert "conv_head.weight" in settings(folder)["segae"]["left_out"]


@torch.no_grad()
def test_a_word_in_the_path_that_misleads_a_library_is_a_warning(tmp_path: Path, caplog) -> None:
    for out, library in (("landladay", "segmentation_models_pytorch"), ("Vitrine", "anomalib")):
        segae.export(used("test_resnet"), out=tmp_path / out)
        warned = [record.message.split()[0] for record in caplog.records if record.levelname == "WARNING"]
        assert warned == [library]
        caplog.clear()
    encoder = used("dla46_c")
    segae.export(encoder, out=tmp_path / "plain")
    assert "segmentation_models_pytorch needs a path with 'dla' for dla46_c" in caplog.text
    caplog.clear()
    folder = segae.export(encoder, out=tmp_path / "dla")
    assert "WARNING" not in caplog.text
    unet = smp.Unet(f"tu-local-dir:{folder}", encoder_weights=True).eval()
    assert difference(unet.encoder(pixels()), encoder(pixels())) < 1e-4


@pytest.mark.parametrize("decoder", ["unet", "pspnet", "deeplabv3plus", "segformer"])
@torch.no_grad()
def test_smp_loads_a_segmenter(decoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = segae.create_segmenter(used("test_resnet"), num_classes=["ground", "pet"], decoder=decoder).eval()
    folder = segae.export(model, to="smp", out=tmp_path / "folder")
    assert difference([smp.from_pretrained(folder).eval()(pixels())], [model(pixels())], 1) < 1e-4
    again = segae.Segmenter.from_pretrained(folder).eval()
    assert again.info == model.info
    assert torch.equal(again(pixels()), model(pixels()))


def test_the_linear_decoder_is_for_segae_alone(tmp_path: Path) -> None:
    model = segae.create_segmenter("test_resnet", num_classes=2, decoder="linear")
    with pytest.raises(segae.SegaeError, match="model must have a decoder of segmentation_models_pytorch.*linear"):
        segae.export(model, to="smp", out=tmp_path / "folder")
    folder = segae.export(model, to="hub", out=tmp_path / "folder")
    assert "segmentation_models_pytorch" not in (folder / "README.md").read_text()
    assert segae.load(folder / "model.safetensors").info == model.info


def test_of_other_models_the_encoder_is_written(tmp_path: Path) -> None:
    model = segae.create_segmenter(used("test_resnet"), num_classes=2)
    model.info = replace(model.info, training={"dataset": "pets"})
    path = segae.save_segmenter(model, tmp_path / "model.safetensors")
    encoder = segae.load(segae.export(path, out=tmp_path / "a") / "model.safetensors")
    assert "fine-tuned on pets" in encoder.info.source
    assert "fine-tuned" not in model.encoder.info.source
    autoencoder = segae.create_autoencoder(used("test_resnet"), method="denoise")
    encoder = segae.load(segae.export(autoencoder, to="hub", out=tmp_path / "b") / "model.safetensors")
    assert same(encoder, autoencoder.encoder)


@torch.no_grad()
def test_fastai_takes_the_folder_as_an_architecture(folders: Callable[[str], Path], tmp_path: Path) -> None:
    from fastai.vision.all import ImageDataLoaders, Normalize, vision_learner

    photos = make_images(tmp_path / "photos", 8)
    files = sorted(photos.iterdir())
    dls = ImageDataLoaders.from_lists(photos, files, ["a", "b"] * 4, bs=4, num_workers=0)
    encoder = used("test_resnet")
    learner = vision_learner(dls, f"local-dir:{folders('test_resnet')}")
    body = learner.model[0].eval()(pixels())
    assert difference([body], [encoder(pixels())[-1]], 1) < 1e-4
    norm = next(one for one in dls.after_batch.fs if isinstance(one, Normalize))
    assert norm.mean.flatten().tolist() == pytest.approx(encoder.info.mean)


def test_the_card_is_filled_from_the_header(tmp_path: Path) -> None:
    pretraining = {"dataset": "pictures of pets", "images_seen": 4711, "final_loss": 0.25}
    weights = segae.Weights("random", "pseudo_masks", {"source": "color"})
    encoder = used("test_resnet", weights=weights, pretraining=pretraining)
    encoder.save_pretrained(tmp_path / "a", model_card_kwargs={"license": "cc-by-4.0", "miou": 0.5})
    text = (tmp_path / "a" / "README.md").read_text()
    for part in ("pictures of pets", "4711", "0.25", "pseudo_masks", "color", "| miou | 0.5 |", "license: cc-by-4.0"):
        assert part in text
    lines = text.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(tmp_path / "a")).splitlines()
    libraries = {"segae": segae, "timm": timm, "segmentation_models_pytorch": smp}
    run = [exec(line, dict(libraries)) for line in lines if line.split(".")[0] in libraries]
    assert (len(lines), len(run)) == (6, 3)


def test_the_hub_gets_the_folder_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeApi:
        def __init__(self, **_: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: object) -> str:
            shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
            return "address"

    def download(repo_id: str, filename: str, **options: object) -> str:
        assert set(options) == {"revision", "cache_dir", "force_download", "local_files_only", "token"}
        return str(tmp_path / "hub" / repo_id / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", FakeApi)
    monkeypatch.setattr(segae.models.hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", lambda **named: download(**named))
    encoder, model = used("test_resnet"), segae.create_segmenter("test_convnext", num_classes=2)
    for one in (encoder, model):
        assert one.push_to_hub("me/model") == "address"
        again = type(one).from_pretrained("me/model")
        assert again.info == one.info
        assert same(again, one)
        assert "library_name: segae" in (tmp_path / "hub" / "me" / "model" / "README.md").read_text()
        shutil.rmtree(tmp_path / "hub")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    encoder = segae.create_encoder("test_resnet")
    folder = segae.export(encoder, out=tmp_path / "a")
    with pytest.raises(segae.SegaeError, match="out must be a new folder.*overwrite=True"):
        segae.export(encoder, out=folder)
    segae.export(used("test_resnet", image_size=96), out=folder, overwrite=True)
    assert "96" in (folder / "README.md").read_text()
    with pytest.raises(segae.SegaeError, match="out must be a new folder"):
        segae.export(folder / "model.safetensors", out=folder, overwrite=True)
    (folder / "log.csv").touch()
    with pytest.raises(segae.SegaeError, match=r"out must be a new folder"):
        segae.export(encoder, out=folder, overwrite=True)
    with pytest.raises(segae.SegaeError, match="log.csv"):
        segae.export(encoder, out=folder / "log.csv", overwrite=True)


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = segae.create_encoder("test_resnet")
    save_described("foreign.safetensors", "encoder", encoder.state_dict(), replace(encoder.info, architecture="resnot"))
    Path("notes.safetensors").write_text("no model")
    segae.models.save_decoder(segae.create_segmenter(encoder, num_classes=2), "decoder.safetensors")
    cases = {
        "export pets_pseudo_masks --to tensorflow": "tensorflow",
        "export notes.safetensors": "notes.safetensors is damaged or not a safetensors file",
        "export nothing.safetensors": "model must be an existing .safetensors file",
        "export no_name": "model must be an existing .safetensors file or a published name",
        "export decoder.safetensors": "model must be a file of encoder, segmenter, autoencoder",
        "export foreign.safetensors": "must be a network of timm, such as tf_efficientnet_lite0, got 'resnot'",
        "export pets_pseudo_masks --to onnx --images nowhere": "nowhere",
    }
    for command, message in cases.items():
        with pytest.raises(SystemExit) as leaving:
            main(command.split())
        assert leaving.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not Path("runs").exists()


def test_the_command_says_where(tmp_path: Path, capsys) -> None:
    path = segae.save_encoder(used("test_resnet"), tmp_path / "encoder.safetensors")
    main(["export", str(path), "--to", "anomalib", "--out", str(tmp_path / "new"), "--license", "mit"])
    assert f"wrote {tmp_path / 'new'}" in capsys.readouterr().out
    assert "license: mit" in (tmp_path / "new" / "README.md").read_text()
    assert not logging.getLogger("segae").handlers
