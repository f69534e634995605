"""The augmentation and the loss of a run: noted, repeated from its config, and refused before anything is read."""

import json
from pathlib import Path
from typing import Any

import albumentations
import pytest

import segae
from segae.cli import main
from segae.commands import _data

pytestmark = pytest.mark.usefixtures("without_pictures")
QUICK = {"encoder": "test_resnet", "image_size": 32, "batch_size": 4, "epochs": 1, "max_steps": 1}
QUICK |= {"device": "cpu", "threads": 1, "val_fraction": 0.0}


def own() -> albumentations.Compose:
    return albumentations.Compose([albumentations.Rotate((40, 50), border_mode=0, p=1), albumentations.InvertImg(p=1)])


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_run_notes_ones_own_and_can_be_repeated_from_its_config(pets: Path, tmp_path: Path) -> None:
    settings = QUICK | {"freeze_epochs": 0}
    result = segae.finetune(pets, out=tmp_path / "first", augment=own(), **settings)
    noted = result.model.info.training["augment"]
    assert {read(tmp_path / "first" / f"{name}.json")["augment"] for name in ("metrics", "config")} == {noted}
    steps = json.loads(noted)["transform"]["transforms"]
    assert [one["__class_fullname__"] for one in steps] == ["Rotate", "InvertImg"]
    main(["finetune", "--config", str(tmp_path / "first" / "config.json"), "--out", str(tmp_path / "again")])
    same = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("first", "again")]
    assert same[0] == same[1]
    albumentations.save(own(), tmp_path / "own.yaml", data_format="yaml")
    flags = ["--augment", str(tmp_path / "own.yaml"), "--resume"]  # the same settings: it is resumed, not refused
    main(["finetune", "--config", str(tmp_path / "first" / "config.json"), "--out", str(tmp_path / "again"), *flags])


def test_a_pretraining_notes_what_is_not_the_default(pets: Path, tmp_path: Path) -> None:
    noted = {}
    for place, augment in enumerate((True, own())):
        result = segae.pretrain(pets, out=tmp_path / str(place), method="denoise", augment=augment, **QUICK)
        noted[place] = result.encoder.info.pretraining["settings"].get("augment")
    assert noted[0] is None
    assert noted[1].startswith('{"__version__"')


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "strnog"}, "augment must be one of .*did you mean strong"),
        ({"augment": "none.yaml"}, "augment must be .*an existing file, got none.yaml"),
        ({"augment": albumentations.RandomCrop(8, 8, p=1)}, "augment must return image"),
        ({"augment": own(), "cache": "gpu"}, "cache must be auto, disk or none.*got gpu"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"loss": "cross_entropi+dice"}, "loss must be one of .*did you mean cross_entropy"),
        ({"loss": 7}, "loss must be a text or a function, got 7"),
        ({"class_weights": (1, 2)}, "class_weights must be 3 numbers"),
        ({"loss": "dice", "balance_classes": True}, "loss must have cross_entropy"),
        ({"loss": "dice", "label_smoothing": 0.1}, "loss must have cross_entropy"),
        ({"loss": lambda logits, target: logits.sum(), "label_smoothing": 0.1}, "must be left out for a loss of your"),
    ],
)
def test_what_cannot_be_used_is_refused_before_an_image_is_read(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image is read")

    monkeypatch.setattr(_data.data, "cache_pairs", refuse)
    monkeypatch.setattr(_data.data, "cache_images", refuse)
    verbs = [segae.finetune, *([segae.pretrain] if "augment" in settings else [])]
    for verb in verbs:
        with pytest.raises(segae.SegaeError, match=message):
            verb(pets, out=tmp_path / "run", **(QUICK | settings))
    assert not (tmp_path / "run").exists()


def test_a_classifier_takes_cross_entropy_alone(pets: Path, tmp_path: Path) -> None:
    root = tmp_path / "flowers"
    for name in ("rose", "tulip"):
        (root / name).mkdir(parents=True)
        for file in sorted((pets / "images").iterdir())[:4]:
            (root / name / file.name).write_bytes(file.read_bytes())
    with pytest.raises(segae.SegaeError, match="loss must be one of cross_entropy, got 'dice'"):
        segae.finetune(root, task="classify", loss="dice", out=tmp_path / "run", **QUICK)
    result = segae.finetune(root, task="classify", augment="strong", out=tmp_path / "run", **QUICK)
    assert result.model.info.training["augment"] == "strong"


def test_losses_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["finetune", "--loss", "help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["cross_entropy", "dice", "jaccard", "focal", "lovasz"]
    assert all(len(line.partition(": ")[2]) > 10 for line in lines)
