"""Encoders as bodies of fastai's own learners, and the encoder of any Learner as a file."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastai
import pytest
import timm
import torch
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.transforms import Normalize, get_image_files
from fastai.learner import load_learner
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import model_meta, unet_learner, vision_learner
from fastai.vision.models.xresnet import xresnet18
from torch import nn

import segae
from segae.errors import SegaeError
from segae.models import fingerprint
from tests.fabricate import make_folder
from tests.training.test_fastai_learners import masked, unlabeled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("bodies") / "data", 8, 2, size=32, values=(0, 1, 2))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def labeled(folder: Path) -> Any:
    def label(image: Path) -> str:
        return "odd" if int(image.stem[1:]) % 2 else "even"

    images, how = get_image_files(folder / "images"), {"bs": 4, "num_workers": 0, "device": "cpu", "seed": 1}
    return ImageDataLoaders.from_path_func(folder, images, label, item_tfms=Resize(32), **how)


def own_learner(kind: Any, folder: Path, arch: Any, path: Path, **more: Any) -> Any:
    dls = masked(folder, size=32) if kind is unet_learner else labeled(folder)
    learner = kind(dls, arch, path=path, **more)
    return learner.remove_cb(ProgressCallback) or learner


def encoder_of(learner: Any) -> Any:
    return next(module for module in learner.model.modules() if isinstance(module, segae.Encoder))


def weights(module: nn.Module) -> str:
    return fingerprint(module.state_dict())


@pytest.mark.parametrize("kind", [unet_learner, vision_learner])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_a_file_is_the_body_with_its_weights_normalization_and_freezing(kind, name, folder, tmp_path):
    original = segae.create_encoder(name).eval()
    arch = segae.fastai.arch(segae.save_encoder(original, tmp_path / "encoder.safetensors"))
    learner = own_learner(kind, folder, arch, tmp_path)
    encoder = encoder_of(learner)
    assert weights(encoder) == weights(original)
    normalize = [one for one in learner.dls.valid.after_batch.fs if isinstance(one, Normalize)]
    for part in ("mean", "std"):
        found = [getattr(one, part).flatten().tolist() for one in normalize]
        assert found == [pytest.approx(getattr(original.info, part))]
    images = learner.dls.valid.one_batch()[0]
    body = learner.model[0].eval()
    torch.testing.assert_close(body(images), original(images)[-1])
    if kind is unet_learner:  # the maps that the U-Net's skip connections get
        maps = [one for one in original(images)[1:-1] if one.shape[1]]
        for hook, wanted in zip(learner.model.sfs, maps[::-1], strict=True):
            torch.testing.assert_close(hook.stored, wanted)
    kernels = {n: p.clone() for n, p in encoder.named_parameters() if p.ndim > 1 and "norm" not in n}
    with learner.no_logging():
        learner.fit(1)
        assert all(torch.equal(value, encoder.get_parameter(n)) for n, value in kernels.items()), "frozen"
        learner.unfreeze()
        learner.fit(1)
    assert not any(torch.equal(value, encoder.get_parameter(n)) for n, value in kernels.items())
    image = learner.dls.valid_ds.items[0]
    before = learner.predict(image)
    learner.export("learner.pkl")
    assert torch.equal(load_learner(tmp_path / "learner.pkl").predict(image)[2], before[2])


def test_arch_takes_models_names_and_gives_random_weights_when_asked(folder, tmp_path):
    encoder = segae.create_encoder("test_resnet")
    segmenter = segae.save_segmenter(segae.create_segmenter(encoder, num_classes=2), tmp_path / "model.safetensors")
    for source in (encoder, segmenter):
        learner = own_learner(vision_learner, folder, arch := segae.fastai.arch(source), tmp_path)
        assert weights(encoder_of(learner)) == weights(encoder)
        assert encoder_of(learner) is not encoder
    random = own_learner(vision_learner, folder, arch, tmp_path, pretrained=False)
    assert weights(encoder_of(random)) != weights(encoder)
    assert all(parameter.requires_grad for parameter in random.model.parameters())
    assert arch.__name__ == "test_resnet"
    published = own_learner(vision_learner, folder, segae.fastai.arch("pets_pseudo_masks"), tmp_path)
    assert weights(encoder_of(published)) == weights(segae.load_encoder("pets_pseudo_masks"))
    with pytest.raises(SegaeError, match="3 channels"):
        segae.fastai.arch(segae.create_encoder("test_resnet", in_channels=1))
    with pytest.raises(SegaeError, match="test_resnet"):
        segae.fastai.arch("test_resnt")


def saved(learner: Any, path: Path, train: Any) -> Any:
    file = path / "saved.safetensors"
    learner.add_cb(segae.fastai.SaveEncoder(file))
    assert learner.get_preds()[0] is not None
    assert not file.exists(), "nothing was trained"
    with learner.no_logging():
        train(learner)
    return segae.load_encoder(file)


@pytest.mark.parametrize("kind", [unet_learner, vision_learner])
def test_the_encoder_of_fastais_own_learner_is_saved(kind, folder, tmp_path):
    learner = own_learner(kind, folder, segae.fastai.arch("test_resnet"), tmp_path)
    found = saved(learner, tmp_path, lambda one: one.fine_tune(1))
    assert weights(found) == weights(encoder_of(learner))
    assert found.info.pretraining == {"before": encoder_of(learner).info.pretraining}
    assert (found.info.image_size, str(found.info.weights)) == (32, "random+supervised")
    segae.create_segmenter(found, num_classes=2)


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_network_of_timm_is_saved_with_the_normalization_of_its_images(
    name, pretrained, folder, tmp_path, monkeypatch
):
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: make(name, **more))  # no download
    learner = own_learner(vision_learner, folder, name, tmp_path, pretrained=pretrained)
    found = saved(learner, tmp_path, lambda one: one.fit(1)).eval()
    images = learner.dls.valid.one_batch()[0]
    torch.testing.assert_close(found(images)[-1], learner.model[0].eval().model.forward_features(images))
    assert found.info.mean == ((0.5,) * 3 if pretrained else (0.0,) * 3)  # without weights fastai does not normalize


def test_after_pretraining_batchnorm_is_that_of_clean_images(folder, tmp_path):
    learner = segae.pretraining_learner(unlabeled(folder, size=32), "test_resnet", "inpaint", path=tmp_path)
    found = saved(learner.remove_cb(ProgressCallback) or learner, tmp_path, lambda one: one.fit_one_cycle(1))
    assert str(found.info.weights) == "random+inpaint"
    assert found.info.weights.method_args["patch_size"] == 16
    assert found.info.image_size == 32
    wanted = encoder_of(learner)
    for name, value in found.named_parameters():
        assert torch.equal(value, wanted.get_parameter(name))
    corrupted = dict(copy.deepcopy(wanted).named_buffers())
    segae.training.recalibrate_batchnorm(wanted, (images for images, *_ in learner.dls.train), torch.device("cpu"))
    apart = [torch.zeros(()), torch.zeros(())]
    for name, clean in wanted.named_buffers():
        for place, one in enumerate((found.get_buffer(name), corrupted[name])):
            apart[place] += (one - clean).square().sum() if clean.ndim else 0
    assert apart[0] < 0.2 * apart[1]  # not the same: each pass leaves other images out


def test_after_all_phases_it_is_that_of_the_best_epoch(folder, tmp_path):
    dls = masked(folder, size=32)
    best = SaveModelCallback("miou", comp=lambda new, old: old == -float("inf"), fname="first")  # the first epoch
    learner = segae.segmentation_learner(dls, "test_resnet", decoder="linknet", path=tmp_path, cbs=best)
    start = weights(learner.model.encoder)
    found = saved(learner, tmp_path, lambda one: segae.fit(one, segae.freeze_finetune_phases(1, 2)))
    assert weights(found) == weights(learner.model.encoder) == start  # in which the encoder was frozen


def test_a_network_that_segae_does_not_know_is_refused_before_the_training(folder, tmp_path):
    learner = own_learner(vision_learner, folder, xresnet18, tmp_path, pretrained=False)
    before = fingerprint(learner.model.state_dict())
    with pytest.raises(SegaeError, match="model must have an encoder of segae or a network of timm"):
        learner.fit(1, cbs=segae.fastai.SaveEncoder(tmp_path / "encoder.safetensors"))
    assert fingerprint(learner.model.state_dict()) == before


def test_the_module_hides_no_fastai():
    assert fastai.__file__ != segae.fastai.__file__
    assert segae.fastai.model_meta is model_meta
