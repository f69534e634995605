"""Mistakes that users make, typed as they would type them: one paragraph that names what to change, exit code 2."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from segae.cli import main
from segae.training import limit_threads
from tests.fabricate import make_folder, make_images, make_pets, save
from tests.pictures import draw_nothing

TINY = ["--encoder", "test_resnet", "--image-size", "64", "--epochs", "1", "--batch-size", "4"]
TINY += ["--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data sets and with runs of one epoch, to be read only."""
    root = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(root / "cache"))
        draw_nothing(patch)
        make_pets(root / "pets", 8, 3, unlabeled=4)
        make_folder(root / "cells", 6, 2, classes=("ground", "cell"))
        make_images(root / "photos", 4)
        (root / "empty").mkdir()
        run = ["--out", str(root / "p"), "--method", "denoise", "--decoder", "unet", *TINY]
        main(["pretrain", str(root / "pets"), *run])
        start = ["--weights", str(root / "p" / "encoder.safetensors"), "--freeze-epochs", "0", *TINY]
        main(["finetune", str(root / "pets"), "--out", str(root / "f"), *start])
        yield root


@pytest.fixture
def refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable:
    """Run a command in ``place`` that must fail as a user's mistake, and give its message."""
    monkeypatch.chdir(place)

    def run(command: str | list[str], *more: object) -> str:
        words = [*(command.split() if isinstance(command, str) else command), *map(str, more)]
        tiny = TINY if words[0] in ("pretrain", "finetune") else []
        pairs = zip(tiny[::2], tiny[1::2], strict=True)
        tiny = [word for flag, value in pairs if flag not in words for word in (flag, value)]
        out = [] if "--out" in words or words[0] in ("data", "report", "serve") else ["--out", str(tmp_path / "out")]
        files = (path for path in place.rglob("*") if path.is_file() and "cache" not in path.parts)
        before = {path: path.read_bytes() for path in files}
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([*words, *tiny, *out])
        message = capsys.readouterr().err
        assert leaving.value.code == 2, message
        assert "Traceback" not in message
        assert {path: path.read_bytes() for path in before} == before, "something was overwritten"
        assert not (tmp_path / "out" / "log.csv").exists()
        return message

    return run


CASES = {  # command: what the message must name, beside the wrong value
    "pretrain nowhere": ("nowhere", "FOLDER"),
    "finetune nowhere": ("nowhere", "FOLDER"),
    "pretrain empty": ("empty", "FOLDER"),
    "finetune empty": ("empty", "images/ and masks/"),
    "finetune photos": ("photos", "images/ and masks/"),
    "pretrain pipe:touch": ("pipe", "https://"),
    "pretrain pets/images/Abyssinian_8.jpg": ("test images",),
    "pretrain pets --encoder resnet1": ("resnet1", "resnet18", "--encoder"),
    "pretrain pets --method masked": ("masked", "inpaint", "--method"),
    "pretrain pets --method-args.source colr": ("colr", "color", "--method-args.source"),
    "pretrain pets --method-args.sigma 1": ("sigma", "source"),
    "pretrain pets --method inpaint --method-args.mask-ratio 1.0": ("1.0", "--method-args.mask-ratio"),
    "pretrain pets --method inpaint --method-args.patch-size 100": ("100", "--method-args.patch-size"),
    "pretrain pets --method-args.sigma": ("--method-args.sigma",),
    "pretrain pets --image-size 16": ("16", "32", "--image-size"),
    "pretrain pets --image-size 1000000": ("1000000", "--image-size"),
    "pretrain pets --device cuda:7": ("cuda:7", "--device"),
    "pretrain pets --epochs 0": ("0", "--epochs"),
    "pretrain pets --batch-size 0": ("0", "--batch-size"),
    "pretrain pets --lr nan": ("nan", "--lr"),
    "pretrain pets --distance-penalty nan": ("nan", "--distance-penalty"),
    "pretrain pets --seed 100000000000000000000": ("--seed",),
    "pretrain pets --threads 1000000": ("1000000", "--threads"),
    "pretrain pets --accumulate 3": ("3", "4", "--accumulate"),
    "pretrain pets --weights nope": ("nope", "published", "--weights"),
    "pretrain pets --weights nope.safetensors": ("nope.safetensors", "--weights"),
    "pretrain pets --weights f/model.safetensors": ("segmenter", "encoder"),
    "pretrain pets --out p": ("p", "--resume", "--overwrite"),
    "pretrain pets --out p --resume --lr 0.5": ("lr was", "0.5"),
    "pretrain pets --out p --resume --overwrite": ("resume", "overwrite"),
    "pretrain pets --out photos --overwrite": ("photos", "--out"),
    "finetune pets --encoder tf_efficientnet_lite9": ("tf_efficientnet_lite9", "tf_efficientnet_lite0"),
    "finetune pets --encoder test_efficientnet --weights p/encoder.safetensors": ("test_resnet", "test_efficientnet"),
    "finetune pets --decoder unett": ("unett", "unet", "--decoder"),
    "finetune pets --image-size 100": ("100", "96 or 128"),
    "finetune pets --labels 900": ("900", "8", "--labels"),
    "finetune pets --labels 1.5": ("1.5", "--labels"),
    "finetune pets --val-fraction 1.5": ("1.5", "--val-fraction"),
    "finetune pets --lr -1": ("-1", "--lr"),
    "finetune pets --lr-ratio 0": ("0", "--lr-ratio"),
    "finetune pets --epochs 0 --freeze-epochs 0": ("epochs", "0"),
    "finetune pets --merge foreground=pet+dog": ("dog",),
    "finetune pets --transfer encoder+decoder": ("weights", "random"),
    "finetune pets --weights p/encoder.safetensors --transfer encoder+decoder --decoder fpn": ("unet", "fpn"),
    "finetune pets --out p --overwrite": ("pretrain", "finetune"),
    "finetune pets --out f --overwrite --labels 900": ("900",),
    "finetune pets --out f --overwrite --lr nan": ("nan",),
    "finetune pets --epoch-count 3": ("--epoch-count",),
    "finetune pets --epochs three": ("three",),
    "finetune": ("FOLDER",),
    "evaluate cells --model f/model.safetensors": ("ground, cell", "border"),
    "evaluate pets --model p/encoder.safetensors": ("encoder", "segmenter"),
    "evaluate pets --model f/model.safetensors --split holdout": ("holdout", "test (3", "--split"),
    "evaluate pets --model f/model.safetensors --batch-size 0": ("0", "--batch-size"),
    "evaluate pets --model nope": ("nope", "--model"),
    "evaluate pets": ("--model",),
    "predict photos --model f/model.safetensors --out photos": ("photos", "--out"),
    "predict photos --model f/model.safetensors --out f": ("f", "--out"),
    "predict nowhere.jpg --model f/model.safetensors": ("nowhere.jpg", "IMAGE"),
    "predict empty --model f/model.safetensors": ("empty", "IMAGE"),
    "predict photos": ("--model",),
    "predict photos --model f/model.safetensors --tile 0": ("0", "--tile"),
    "predict photos --model f/model.safetensors --overlap 1": ("1", "--overlap"),
    "serve nope.safetensors": ("nope.safetensors", "MODEL"),
    "serve p/encoder.safetensors": ("encoder", "segmenter"),
    "serve f/model.safetensors --autoencoder p/encoder.safetensors": ("autoencoder", "encoder"),
    "serve f/model.safetensors --port 0": ("0", "--port"),
    "bench": ("preset", "FOLDER"),
    "bench pets --experiment ../../x": ("../../x", "--experiment"),
    "bench pets --seeds 0": ("0", "--seeds"),
    "bench pets --preset sampel": ("sampel", "sample"),
    "report none.csv": ("none.csv", "CSV"),
    "data cats": ("cats",),
    "pretran pets": ("pretran", "pretrain"),
    "finetune pets --config nope.json": ("nope.json", "--config"),
    "finetune pets --config p/config.json": ("pretrain", "finetune", "--config"),
    "pretrain pets --config": ("--config",),
}


@pytest.mark.parametrize("command", CASES)
def test_a_mistake_is_named_with_what_to_change(refused: Callable, command: str) -> None:
    message = refused(command)
    for hint in CASES[command]:
        assert hint in message, message


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ('{"data": "pets", "epoch": 3}', ("epoch is not a setting", "epochs")),
        ('{"data": "pets", "trainer": {"sead": 3}}', ("sead", "seed")),
        ('{"data": "pets", "epochs": "many"}', ("many", "--epochs")),
        ('{"data": "pets", "lr": NaN}', ("nan", "--lr")),
        ('{"data": "pipe:touch ran #.tar"}', ("pipe",)),
        ("{", ("--config",)),
        ("[1, 2]", ("list",)),
        ("[" * 100_000, ("--config",)),
    ],
)
def test_a_file_of_settings_is_checked_as_flags_are(
    refused: Callable, tmp_path: Path, text: str, hints: tuple[str, ...]
) -> None:
    (tmp_path / "settings.json").write_text(text)
    words = ["pretrain", "--config", str(tmp_path / "settings.json")]
    message = refused([*words, "--epochs", "many"] if "many" in text else words)
    assert all(hint in message for hint in hints), message


def spoil_masks(root: Path) -> str:
    mask = np.zeros((64, 64), np.uint8)
    mask[0, 0] = 7
    return save(mask, root / "masks" / "n2.png").name


def lose_image(root: Path) -> str:
    (root / "images" / "n3.png").unlink()
    return "n3.png"


def shrink_mask(root: Path) -> str:
    return save(np.zeros((20, 48), np.uint8), root / "masks" / "n7.png").name  # of a test image


def break_images(root: Path) -> str:
    for path in (root / "images").iterdir():
        path.write_bytes(b"no image at all")
    return "images"


@pytest.mark.parametrize("damage", [spoil_masks, lose_image, shrink_mask, break_images])
def test_a_damaged_data_set_is_refused_before_training(
    refused: Callable, place: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    root = Path(shutil.copytree(place / "cells", tmp_path / "cells"))
    name = damage(root)
    assert name in refused(["finetune", str(root)])


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("kind", ["cut", "flipped", "pickle", "pickle.pth"])
def test_a_damaged_weight_file_is_refused_and_never_run(
    refused: Callable, place: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("encoder.pth" if kind == "pickle.pth" else "encoder.safetensors")
    content = bytearray((place / "p" / "encoder.safetensors").read_bytes())
    content[-100] ^= 1
    cut = bytes(content[: len(content) // 2])
    path.write_bytes({"cut": cut, "flipped": bytes(content)}.get(kind, pickle.dumps(Evil(tmp_path / "ran"))))
    message = refused(["finetune", str(place / "pets")], "--weights", path)
    assert ("pickle" if "pickle" in kind else path.name) in message
    model = Path(shutil.copy(path, tmp_path / "model.safetensors"))
    refused(["predict", str(place / "photos")], "--model", model)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_named_and_costs_nothing_that_was_there(place: Path, tmp_path: Path) -> None:
    """The operating system really refuses to write more than 300 kB to a file."""
    run = Path(shutil.copytree(place / "p", tmp_path / "p"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    words = [str(place / "pets"), "--out", str(run), "--method", "denoise", "--decoder", "unet", *TINY, "--resume"]

    def resume() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        sys.stderr = (tmp_path / "shown.txt").open("w")
        main(["pretrain", *words])

    with limit_threads(1):  # what is forked, so that nothing is imported again, may not have threads
        process = multiprocessing.get_context("fork").Process(target=resume)
        process.start()
        process.join(60)
    shown = (tmp_path / "shown.txt").read_text()
    assert process.exitcode == 2, shown
    assert "could not be written" in shown
    assert "Traceback" not in shown
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert after["encoder.safetensors"] == before["encoder.safetensors"]
    assert set(after) == set(before)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 300_000
