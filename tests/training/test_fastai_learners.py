"""Learners on ordinary fastai DataLoaders: what a fastai user does next works, and what cannot work is refused."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tensorboard import TensorBoardCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IntToFloatTensor, Normalize, RandomSplitter, get_image_files
from fastai.distributed import DistributedDL
from fastai.interpret import Interpretation, SegmentationInterpretation
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import DiceMulti
from fastai.torch_core import TensorImage, TensorMask
from fastai.vision.augment import Resize
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock, ImageDataLoaders, SegmentationDataLoaders
from torch import distributed

import segae
from segae.errors import SegaeError
from segae.training.callbacks import MeanIoU
from tests.fabricate import make_folder, make_images
from tests.training.learners import state
from tests.training.test_distributed import together

CODES = ["background", "ellipse", "box"]
Learn = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("fastai") / "data", 10, 2, size=64, values=(0, 1, 2))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    matplotlib.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    plt.close("all")


def mask_of(image: Path) -> Path:
    return image.parents[1] / "masks" / image.name


def masked(folder: Path, codes: Any = CODES, size: int = 64, **more: Any) -> DataLoaders:
    return SegmentationDataLoaders.from_label_func(
        folder,
        get_image_files(folder / "images"),
        mask_of,
        **{
            "codes": codes,
            "bs": 4,
            "valid_pct": 0.3,
            "item_tfms": Resize(size),
            "seed": 0,
            "num_workers": 0,
            "device": "cpu",
            **more,
        },
    )


def unlabeled(folder: Path, *blocks: Any, size: int = 64) -> DataLoaders:
    parts = {"get_items": get_image_files, "splitter": RandomSplitter(0.3, 0), "item_tfms": Resize(size)}
    block = DataBlock(blocks or (ImageBlock,), **parts)
    return block.dataloaders(folder / "images", bs=4, num_workers=0, device="cpu")


def finetuning(folder: Path, path: Path, **more: Any) -> Any:
    segae.training.seed_everything(0)
    learner = segae.segmentation_learner(masked(folder), "test_resnet", **{"decoder": "linknet", "path": path, **more})
    learner.remove_cb(ProgressCallback)
    return learner


def pretraining(folder: Path, path: Path, method: Any = "inpaint", *blocks: Any, **more: Any) -> Any:
    segae.training.seed_everything(0)
    learner = segae.pretraining_learner(unlabeled(folder, *blocks), "test_resnet", method, path=path, **more)
    learner.remove_cb(ProgressCallback)
    return learner


BOTH = pytest.mark.parametrize("make", [finetuning, pretraining])
MOSTLY = pytest.mark.parametrize("make", [finetuning, pytest.param(pretraining, marks=pytest.mark.slow)])


def test_classes_size_and_normalization_follow_the_loaders(folder, tmp_path):
    encoder = segae.create_encoder("test_resnet")
    for model in (encoder, segae.save_encoder(encoder, tmp_path / "encoder.safetensors"), "test_resnet"):
        dls = masked(folder, codes=np.array(CODES))
        learner = segae.segmentation_learner(dls, model)
        info = learner.model.info
        assert (info.classes, info.image_size, info.encoder.architecture) == (tuple(CODES), 64, "test_resnet")
        normalize = [one for one in dls.valid.after_batch.fs if isinstance(one, Normalize)]
        assert normalize[0].mean.flatten().tolist() == pytest.approx(info.encoder.mean)
    image = segae.data.read_image(dls.train_ds.items[0])
    wanted = segae.evaluation.normalize(image[None], info.encoder.mean, info.encoder.std, "cpu")
    torch.testing.assert_close(torch.Tensor(dls.test_dl([dls.train_ds.items[0]]).one_batch()[0]), wanted)
    segae.segmentation_learner(dls, encoder)  # a second learner adds nothing
    assert len([one for one in dls.train.after_batch.fs if isinstance(one, Normalize)]) == 1
    whole = segae.save_segmenter(segae.create_segmenter(encoder, num_classes=CODES), tmp_path / "model.safetensors")
    assert segae.segmentation_learner(masked(folder), whole).model.info.image_size == 64
    assert segae.segmentation_learner(masked(folder, codes=None), encoder, num_classes=3).model.num_classes == 3
    gray = masked(folder, img_cls=PILImageBW)
    assert segae.segmentation_learner(gray, "test_resnet").model.info.encoder.in_channels == 1
    published = segae.segmentation_learner(masked(folder), "pets_pseudo_masks").model.encoder
    assert segae.models.fingerprint(published.state_dict()) == segae.models.fingerprint(
        segae.load_encoder("pets_pseudo_masks").state_dict()
    )


def test_an_encoder_of_any_model_file_can_be_pretrained_again(folder, tmp_path):
    encoder = segae.create_encoder("test_resnet")
    segmenter = segae.save_segmenter(segae.create_segmenter(encoder, num_classes=2), tmp_path / "model.safetensors")
    method = segae.create_method("denoise", sigma=0.2)
    autoencoder = segae.create_autoencoder(segae.create_encoder("test_resnet"), method=method)
    file = segae.models.save_autoencoder(autoencoder, tmp_path / "autoencoder.safetensors")
    for source, original in ((encoder, encoder), (segmenter, encoder), (file, autoencoder.encoder)):
        made = segae.pretraining_learner(unlabeled(folder), source, method, decoder="linear").model
        assert made.info.decoder == ("plain" if source is file else "linear")
        for name, value in original.state_dict().items():
            assert torch.equal(made.encoder.state_dict()[name], value)


def wrong(folder: Path, call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(SegaeError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    learn, pretrain, three = segae.segmentation_learner, segae.pretraining_learner, masked(folder)
    wrong(folder, lambda: learn(masked(folder, codes=None), "test_resnet"), "num_classes", "None")
    wrong(folder, lambda: learn(unlabeled(folder), "test_resnet"), "num_classes", "None")
    model = segae.create_segmenter("test_resnet", num_classes=2)
    wrong(folder, lambda: learn(three, model), "num_classes", "box", "2")
    wrong(folder, lambda: learn(three, segae.create_encoder("test_resnet", in_channels=1)), "1 channels", "got 3")
    other = masked(folder, batch_tfms=Normalize.from_stats((0.1,) * 3, (0.2,) * 3, cuda=False))
    wrong(folder, lambda: learn(other, "test_resnet"), "Normalize", "0.5", "0.1")
    learn(masked(folder, batch_tfms=Normalize.from_stats((0.5,) * 3, (0.5,) * 3, cuda=False)), "test_resnet")
    wrong(folder, lambda: pretrain(unlabeled(folder), "test_resnet", "spork"), "method", "spork", "spark")
    wrong(folder, lambda: learn(three, "test_resnt"), "name", "test_resnet")
    wrong(folder, lambda: learn(three, tmp_path / "gone.safetensors"), "gone.safetensors")
    features = segae.create_method("pseudo_masks", source="features")
    wrong(folder, lambda: pretrain(unlabeled(folder), "test_resnet", features), "pretrained", "random")
    for learner in (
        learn(masked(folder, size=48), "test_resnet"),
        pretrain(unlabeled(folder, size=48), "test_resnet", "denoise"),
    ):
        with learner.no_bar():
            wrong(folder, lambda: learner.fit(1), "image_size", "32", "48")  # noqa: B023 - called at once


def test_a_mask_value_beyond_the_codes_is_refused_before_the_first_step(folder, tmp_path):
    learner = segae.segmentation_learner(masked(folder, codes=CODES[:2]), "test_resnet", path=tmp_path)
    before = state(learner.model)
    with learner.no_bar(), pytest.raises(SegaeError, match=r"masks must be class indices in \[0, 2\) or 255, got 2"):
        learner.fit_one_cycle(1)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    binary = make_folder(tmp_path / "binary", 6, 1, size=32, values=(0, 255))
    dls = masked(binary, CODES[:2], size=32, batch_tfms=IntToFloatTensor(div_mask=255))
    with (learner := segae.segmentation_learner(dls, "test_resnet")).no_bar():
        learner.fit(1)  # 255 becomes 1
    dls = masked(binary, CODES[:2], size=32)
    wrong(binary, lambda: segae.segmentation_learner(dls, "test_resnet"), "got 0 and 255")


@BOTH
def test_fine_tune_freezes_exactly_the_encoder_and_one_cycle_trains_all(make, folder, tmp_path):
    learner = make(folder, tmp_path)
    before = state(learner.model.encoder)
    with learner.no_logging():
        learner.fine_tune(0, freeze_epochs=1)
        assert all(torch.equal(value, before[name]) for name, value in learner.model.encoder.state_dict().items())
        learner.fine_tune(1, freeze_epochs=1)
        learner.fit_one_cycle(2, 3e-3)
    assert not all(torch.equal(value, before[name]) for name, value in learner.model.encoder.state_dict().items())
    losses = [float(row[0]) for row in learner.recorder.values]
    assert losses[1] < losses[0]
    before = state(learner.model)
    assert learner.lr_find(start_lr=1e-3, num_it=20).valley > 0
    learner.lr_find(end_lr=1e30, num_it=12, stop_div=False, suggest_funcs=None)  # until the loss is not a number
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())


def test_a_loss_that_is_not_a_number_is_raised_by_fit_too(folder, tmp_path):
    learner = finetuning(folder, tmp_path)
    with torch.no_grad():
        next(learner.model.parameters()).fill_(float("nan"))
    with learner.no_logging(), pytest.raises(SegaeError, match="the loss became nan"):
        learner.fit_one_cycle(1)


def test_masks_come_out_of_a_segmentation_learner(folder, tmp_path):
    learner = finetuning(folder, tmp_path, metrics=DiceMulti())
    assert list(learner.metrics.attrgot("name")) == ["miou", "dice_multi"]
    probabilities, truth, masks = learner.get_preds(with_decoded=True)
    assert masks.shape == truth.shape == (3, 64, 64)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, 64, 64))
    assert torch.equal(masks, probabilities.argmax(1))
    shown, mask, values = learner.predict(learner.dls.valid_ds.items[0])
    assert isinstance(shown, TensorMask)
    assert shown.codes == CODES
    torch.testing.assert_close(values, probabilities[0])
    assert torch.equal(torch.Tensor(shown), torch.Tensor(masks[0]))
    assert torch.equal(mask, masks[0])
    mine = learner.model.predict(learner.dls.valid_ds.items[0])  # segae's own reading and normalization
    assert (mine == masks[0].numpy()).mean() > 0.99
    assert [tuple(part.shape) for part in learner.tta(n=2)] == [(3, 3, 64, 64), (3, 64, 64)]


@pytest.mark.parametrize("loss", ["cross_entropy", "dice"])
def test_losses_of_images_are_what_they_are_alone(loss, folder, tmp_path):
    learner = finetuning(folder, tmp_path, loss=loss)
    found = SegmentationInterpretation.from_learner(learner)
    values, places = found.top_losses()
    logits, truth = learner.get_preds(act=lambda values: values)
    for value, place in zip(values, places.tolist(), strict=True):
        alone = learner.loss_func(logits[place : place + 1], torch.Tensor(truth[place : place + 1]).long())
        assert float(value) == pytest.approx(float(alone), rel=1e-4)
    found.plot_top_losses(2)
    assert len(plt.gcf().axes) == 6
    found.show_results([0, 1])


def test_the_loss_is_fastais(folder, tmp_path):
    weights = [1.0, 2.0, 0.5]
    learner = finetuning(folder, tmp_path, class_weights=weights)
    logits, mask = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    mask[0, :4] = 255
    theirs = CrossEntropyLossFlat(axis=1, weight=torch.tensor(weights), ignore_index=255)
    torch.testing.assert_close(learner.loss_func(logits, mask), torch.Tensor(theirs(logits, mask)).squeeze())
    assert torch.equal(learner.loss_func.decodes(logits), theirs.decodes(logits))
    torch.testing.assert_close(learner.loss_func.activation(logits), theirs.activation(logits))


def shown(show: Callable[[], Any]) -> list[np.ndarray]:
    """What is drawn: the arrays of all pictures of the newest figure."""
    show()
    return [np.asarray(image.get_array()) for axes in plt.gcf().axes for image in axes.get_images()]


def test_pictures_are_denormalized_and_masks_decoded(folder, tmp_path):
    learner = finetuning(folder, tmp_path)
    originals = [segae.data.read_image(path).astype(int) for path in learner.dls.valid_ds.items]
    batch = [array for array in shown(lambda: learner.dls.valid.show_batch(max_n=3)) if array.ndim == 3]
    assert all(min(np.abs(array - one).max() for one in originals) <= 1 for array in batch)
    result = shown(lambda: learner.show_results(max_n=3, shuffle=False))
    assert min(np.abs(result[0] - one).max() for one in originals) <= 1
    assert any(array.ndim == 2 and set(np.unique(array)) <= {0, 1, 2} for array in result)


@pytest.mark.parametrize("blocks", [(ImageBlock,), (ImageBlock, ImageBlock)])
@pytest.mark.parametrize("method", ["inpaint", "pseudo_masks", "spark", "ddep"])
def test_a_pretraining_learner_shows_input_corrupted_and_reconstruction(method, blocks, folder, tmp_path):
    learner = pretraining(folder, tmp_path, method, *blocks)
    pictures = shown(lambda: learner.show_results(max_n=2, shuffle=False))
    assert len(pictures) == 6
    originals = [segae.data.read_image(path).astype(int) for path in learner.dls.valid_ds.items[:2]]
    for image, original in zip(pictures[::3], originals, strict=True):
        assert np.abs(image.astype(int) - original).max() <= 1
    assert all(picture.min() >= 0 and picture.max() <= 255 for picture in pictures)
    if method == "inpaint":
        changed = (np.abs(pictures[1].astype(int) - originals[0]) > 1).any(axis=2)
        assert 0.4 < changed.mean() < 0.7
    made, clean, again = learner.get_preds(with_decoded=True)
    assert made.shape == clean.shape == again.shape == (3, 3, 64, 64)
    seen, image, values, _ = learner.predict(learner.dls.valid_ds.items[0], with_input=True)
    assert isinstance(image, TensorImage)
    assert seen.shape == image.shape == values.shape == (3, 64, 64)
    losses, places = Interpretation.from_learner(learner).top_losses(2)
    assert losses.isfinite().all()
    assert len(set(places.tolist())) == 2


@BOTH
def test_an_exported_learner_predicts_the_same(make, folder, tmp_path):
    learner = make(folder, tmp_path)
    with learner.no_logging():
        learner.fit(1)
    image = learner.dls.valid_ds.items[0]
    before = learner.predict(image)
    learner.export("learner.pkl")
    after = load_learner(tmp_path / "learner.pkl").predict(image)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(torch.Tensor(one), torch.Tensor(other))


@BOTH
@pytest.mark.parametrize("to", ["to_fp16", "to_bf16"])
def test_mixed_precision_is_fastais(make, to, folder, tmp_path):
    learner = getattr(make(folder, tmp_path, precision="bfloat16"), to)()
    kinds: list[torch.dtype] = []
    learner.model.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    with learner.no_logging():
        learner.fit(1)
    assert set(kinds) == {torch.float32}  # fastai's is for CUDA; ours, which would be bfloat16, is off
    learner.remove_cb(MixedPrecision)
    with learner.no_logging():
        learner.fit(1)
    assert kinds[-1] == torch.bfloat16


@MOSTLY
def test_fastais_callbacks_work_in_every_loop(make, folder, tmp_path):
    if make is pretraining:  # fastai draws pictures of pairs only
        monitor, learner = "valid_loss", pretraining(folder, tmp_path, "denoise", ImageBlock, ImageBlock)
    else:
        monitor, learner = "miou", finetuning(folder, tmp_path)
    logs = TensorBoardCallback(tmp_path / "board")
    callbacks = [SaveModelCallback(monitor, fname="one"), EarlyStoppingCallback(patience=9), logs]
    with learner.no_logging():
        learner.fine_tune(2, freeze_epochs=1, cbs=[*callbacks, CSVLogger("one.csv"), GradientAccumulation(8)])
    assert len(pd.read_csv(tmp_path / "one.csv")) == 2
    assert (tmp_path / "models" / "one.pth").is_file()
    assert list((tmp_path / "board").iterdir())


@MOSTLY
def test_all_phases_of_fit_are_one_training_to_csvlogger_and_savemodel(make, folder, tmp_path):
    learner, monitor = make(folder, tmp_path), "valid_loss"
    keep = SaveModelCallback(monitor, fname="best")
    learner.add_cbs([CSVLogger("log.csv"), keep])
    phases = segae.freeze_finetune_phases(2, 3, lr=0.02)
    log = segae.fit(learner, phases)
    table = pd.read_csv(tmp_path / "log.csv")
    assert table["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert table["valid_loss"].tolist() == pytest.approx(log["valid_loss"].tolist(), rel=1e-4)
    assert keep.best == pytest.approx(log["valid_loss"].min(), rel=1e-4)
    learner.remove_cbs([CSVLogger, SaveModelCallback])
    assert learner.validate()[0] == pytest.approx(log["valid_loss"].min(), rel=1e-4)  # the best of all epochs is back
    alone = make(folder, tmp_path)
    pd.testing.assert_frame_equal(segae.fit(alone, phases)[["train_loss"]], log[["train_loss"]])  # nothing else changed


@pytest.mark.slow
def test_the_score_in_the_log_does_not_count_what_tensorboard_tries(folder, tmp_path):
    phases = segae.freeze_finetune_phases(0, 2)
    plain = segae.fit(finetuning(folder, tmp_path), phases)
    learner = finetuning(folder, tmp_path, cbs=TensorBoardCallback(tmp_path / "board", trace_model=False))
    pd.testing.assert_frame_equal(segae.fit(learner, phases)[["miou", "valid_loss"]], plain[["miou", "valid_loss"]])


def test_patience_ends_no_later_look_at_the_results(folder, tmp_path):
    learner = pretraining(folder, tmp_path, "denoise", patience=1)
    log = segae.fit(learner, segae.pretraining_phases(30, lr=1e-9))
    assert len(log) < 30
    assert len(learner.get_preds()[0]) == 3


def test_classification_loaders_are_images_for_pretraining(folder, tmp_path):
    images = get_image_files(make_images(tmp_path / "photos", 6))
    dls = ImageDataLoaders.from_path_func(
        tmp_path, images, lambda path: str(len(path.stem)), bs=3, item_tfms=Resize(64), num_workers=0, device="cpu"
    )
    learner = segae.pretraining_learner(dls, "test_resnet", segae.create_method("denoise"))
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    assert learner.get_preds()[1].shape == (1, 3, 64, 64)


@pytest.mark.slow
def test_features_of_a_pretrained_encoder_make_pseudo_masks(folder, tmp_path):
    method = segae.create_method("pseudo_masks", source="features")
    learner = segae.pretraining_learner(unlabeled(folder), "pets_pseudo_masks", method, path=tmp_path)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    assert learner.recorder.values[0][0] > 0


def test_a_plain_list_of_tensors_is_not_normalized_again():
    pairs = [(torch.rand(3, 32, 32), torch.zeros(32, 32).long()) for _ in range(4)]
    dls = DataLoaders.from_dsets(pairs, pairs, bs=2, device="cpu")
    before = dls.valid.one_batch()[0]
    segae.segmentation_learner(dls, "test_resnet", num_classes=2)
    assert torch.equal(dls.valid.one_batch()[0], before)


@pytest.mark.slow
@BOTH
def test_two_processes_in_distrib_ctx_agree(make, folder, tmp_path, monkeypatch):
    def broadcast(self: Any, values: Any, rank: int) -> list[int]:  # fastai's own needs CUDA
        tensor = torch.tensor(list(values))
        distributed.broadcast(tensor, rank)
        return tensor.tolist()

    def work() -> dict[str, Any]:
        learner = make(folder, tmp_path)
        with learner.no_logging(), learner.distrib_ctx(cpu=True):
            learner.fine_tune(3, freeze_epochs=1, base_lr=1e-2, cbs=EarlyStoppingCallback(patience=9))
        return {"state": state(learner.model), "values": learner.recorder.values}

    monkeypatch.setattr(DistributedDL, "_broadcast", broadcast)
    one, other = together(tmp_path / "two", work, join=lambda device: nullcontext())
    assert all(torch.equal(value, other["state"][name]) for name, value in one["state"].items())
    assert [row[1] for row in one["values"]] == [row[1] for row in other["values"]]
    assert one["values"][-1][0] < one["values"][0][0]


def test_mean_iou_is_a_metric_of_any_learner():
    metric = MeanIoU(2)
    assert np.isnan(metric.value)
