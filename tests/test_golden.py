"""A tiny run of every verb with a fixed seed gives the numbers that it has always given."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import segae
from segae.data import drawn_pets
from tests.pictures import draw_nothing

TOLERANCE = {"rel": 2e-3, "abs": 2e-3}  # other CPUs add up in another order
PRETRAINING = {  # method: train_loss and valid_loss of two epochs, as version 0.1 had them
    "denoise": ([0.284023, 0.194695], [0.220154, 0.203950]),
    "pseudo_masks": ([1.313624, 0.981326], [1.076997, 1.581494]),
    "spark": ([1.088678, 0.995691], [1.015384, 1.027336]),
}
FINETUNING = {  # weights: train_loss of two epochs, test mIoU and IoU of the background
    "random": ([1.247679, 1.036421], 0.230561, 0.583130),
    "pseudo_masks": ([0.884171, 0.841186], 0.293911, 0.623755),
}


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 48 training and 24 test images of the drawn pets."""
    source, target = drawn_pets(), tmp_path_factory.mktemp("golden") / "pets"
    for folder in ("images", "annotations/trimaps"):
        (target / folder).mkdir(parents=True)
    for split, count in (("trainval", 48), ("test", 24)):
        lines = (source / "annotations" / f"{split}.txt").read_text().splitlines()[:count]
        (target / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for name in (line.split()[0] for line in lines):
            shutil.copy(source / "images" / f"{name}.jpg", target / "images")
            shutil.copy(source / "annotations" / "trimaps" / f"{name}.png", target / "annotations" / "trimaps")
    return target


@pytest.fixture(scope="module")
def pretrained(pets: Path) -> dict[str, segae.PretrainResult]:
    common = {"encoder": "test_resnet", "epochs": 2, "image_size": 64, "batch_size": 8}
    trainer = segae.TrainerConfig(threads=1, workers=0, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return {
            method: segae.pretrain(pets, out=pets.parent / method, method=method, trainer=trainer, **common)
            for method in PRETRAINING
        }


@pytest.mark.parametrize("method", PRETRAINING)
def test_pretraining(pretrained: dict[str, segae.PretrainResult], method: str) -> None:
    log: pd.DataFrame = pretrained[method].log
    train, valid = PRETRAINING[method]
    assert log["train_loss"].tolist() == pytest.approx(train, **TOLERANCE)
    assert log["valid_loss"].tolist() == pytest.approx(valid, rel=2e-2)
    assert pretrained[method].path.is_file()


@pytest.mark.parametrize("weights", FINETUNING)
def test_finetuning_and_evaluation(
    pets: Path, pretrained: dict[str, segae.PretrainResult], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    start = {"weights": "random"}
    if weights != "random":
        start = {"weights": pretrained[weights].path, "transfer": "encoder+decoder"}
    trainer = segae.TrainerConfig(threads=1, workers=0, device="cpu")
    out = pets.parent / f"finetune-{weights}"
    result = segae.finetune(pets, out=out, encoder="test_resnet", image_size=64, epochs=1, trainer=trainer, **start)
    losses, miou, background = FINETUNING[weights]
    assert result.log["train_loss"].tolist() == pytest.approx(losses, **TOLERANCE)
    scores = segae.evaluate(result.path, pets, device="cpu")
    assert scores.miou == pytest.approx(miou, abs=1e-2)
    assert scores.iou["background"] == pytest.approx(background, abs=1e-2)
    assert result.model.predict(next((pets / "images").glob("*.jpg"))).shape == (128, 128)
