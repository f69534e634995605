"""What a training hands to TensorBoard, W&B, MLflow and Trackio, read back from this machine alone."""

import importlib
import importlib.util
import json
import struct
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastai.callback.core import Callback
from PIL import Image

import segae
from segae._io import read_json
from segae.errors import SegaeError
from segae.training import ExperimentLogger, fit, freeze_finetune_phases, loggers, open_run_folder
from segae.training.loggers import TRACKERS, Tracker, flatten
from tests.fabricate import make_pets
from tests.training.learners import KillAfter, Tiny, changed, segmentation, state, without_times

PHASES = freeze_finetune_phases(1, 2)
NUMBERS = ("train_loss", "valid_loss", "miou", "lr_encoder", "lr_head")
SETTINGS = {"lr": None, "trainer": {"seed": 3, "device": "cpu"}}
SMALL = {
    "encoder": "test_resnet",
    "image_size": 32,
    "batch_size": 4,
    "device": "cpu",
    "threads": 1,
    "val_fraction": 0.3,
}


def needs(name: str) -> Any:
    missing = PathFinder.find_spec(TRACKERS[name].package) is None  # which imports nothing
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"the package {name} is not installed"))


LIBRARIES = [needs(name) for name in TRACKERS]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every library on this machine, below the folder of the test, and without a key."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a SQLite file takes seconds to make
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module", autouse=True)
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trackio takes its folder from the environment when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder := tmp_path_factory.mktemp("trackio")))
        yield folder


class Draw(Callback):
    """Draws another picture after the first and the last epoch."""

    order = 90

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_epoch(self) -> None:
        if (count := len(self.learn.epoch_clock.log)) != 2:
            Image.fromarray(np.full((8, 12, 3), 80 * count, np.uint8)).save(self.folder / "curves.png")


class KillLate(KillAfter):
    """Ends the process after an epoch was logged."""

    order = 99


def learner(folder: Path, *callbacks: Callback) -> Any:
    folder.mkdir(exist_ok=True)
    made = segmentation(Tiny, size=16, train=8, valid=2)
    made.add_cbs([Draw(folder), *callbacks])
    return made


Seen = tuple[dict[str, dict[int, float]], dict[str, Any], int, bool]
"""Of a run: each number by epoch, settings, how many pictures, whether the model is there."""


def read_tensorboard(folder: Path) -> Seen:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    scalars = {name: {one.step: one.value for one in events.Scalars(name)} for name in tags["scalars"]}
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "seed: 3" in text
    return scalars, {"lr": "None", "trainer.seed": "3"}, len(events.Images("curves")), True  # it keeps no models


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a run of W&B: protocol buffers in a log of LevelDB, blocks of 32 KiB behind 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as records

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])  # behind a checksum
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = records.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_wandb(folder: Path) -> Seen:
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1  # parts of one run
    scalars: dict[str, dict[int, float]] = {}
    config, pictures, model = dict[str, Any](), 0, False
    for record in (record for file in files for record in wandb_records(file)):
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        row = {one.key or one.nested_key[0]: one.value_json for one in record.history.item}
        pictures += "curves" in row
        for name in set(NUMBERS) & set(row):
            scalars.setdefault(name, {})[int(row["epoch"])] = float(json.loads(row[name]))
        model |= record.artifact.type == "model" or record.request.log_artifact.artifact.type == "model"
    return scalars, {name: str(value) for name, value in flatten(config).items()}, pictures, model


def read_mlflow(folder: Path) -> Seen:
    from mlflow import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("segae").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == folder.name
    scalars = {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)} for name in NUMBERS
    }
    pictures = [one.path for one in client.list_artifacts(run.info.run_id, "pictures")]
    assert pictures == ["pictures/curves.png"]
    models = [one.path for one in client.list_artifacts(run.info.run_id, "model")]
    return scalars, run.data.params, 2, models == ["model/model.safetensors"]


def read_trackio(folder: Path) -> Seen:
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR  # as it was when the package was first imported

    own = read_json(folder / "loggers.json")["trackio"]
    (name,) = [name for name in SQLiteStorage.get_runs("segae") if own in name]  # other tests have runs, too
    scalars: dict[str, dict[int, float]] = {}
    rows = SQLiteStorage.get_logs("segae", name)
    for row in rows:
        for key in set(NUMBERS) & set(row):
            scalars.setdefault(key, {})[row["step"]] = row[key]
    config = {key: str(value) for key, value in SQLiteStorage.get_run_config("segae", name).items()}
    blobs = list(Path(TRACKIO_DIR, "artifacts").rglob("*"))
    return scalars, config, sum("curves" in row for row in rows), any(path.is_file() for path in blobs)


READERS: dict[str, Callable[[Path], Seen]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_resumed_training_is_one_run_with_every_epoch_once(tmp_path, capsys, name):
    folder, file = tmp_path / "mine", tmp_path / "resume.pt"
    plain = learner(folder)
    expected = fit(plain, PHASES)
    with ExperimentLogger([name], folder, SETTINGS) as first:
        with pytest.raises(KeyboardInterrupt):
            fit(learner(folder, first, KillLate(2)), PHASES, resume_file=file)
        first.close(failed=True)
    ids = read_json(folder / "loggers.json")
    with ExperimentLogger([name], folder, SETTINGS) as second:
        trained = learner(folder, second)
        log = fit(trained, PHASES, resume_file=file, resume=True)
        model = tmp_path / "model.safetensors"
        model.write_bytes(b"weights")
        second.log_results(model)
    assert read_json(folder / "loggers.json") == ids == {name: ids[name]}
    assert without_times(log) == without_times(expected)  # and it is the same training
    assert changed(trained.model, state(plain.model)) == set()
    scalars, config, pictures, keeps_model = READERS[name](folder)
    for column in NUMBERS:
        assert list(scalars[column]) == [1, 2, 3], column
        assert [*scalars[column].values()] == pytest.approx(log[column].tolist(), rel=1e-6), column
    assert {key: config[key] for key in ("lr", "trainer.seed")} == {"lr": "None", "trainer.seed": "3"}
    assert pictures == 2
    assert keeps_model
    assert not capsys.readouterr().out


class Failing(Tracker):
    """Fails at one of its calls."""

    package, at = "json", ""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._fail("open")

    def _fail(self, name: str) -> None:
        if self.at == name:
            raise ConnectionError("the server is gone\nfor ever")

    def log_scalars(self, values: Any, epoch: int) -> None:
        self._fail("scalars")

    def log_picture(self, path: Path, epoch: int) -> None:
        self._fail("picture")

    def log_model(self, path: Path) -> None:
        self._fail("model")

    def close(self, *, failed: bool) -> None:
        self._fail("close")


@pytest.mark.parametrize("at", ["open", "scalars", "picture", "model", "close"])
def test_a_logger_that_fails_is_one_warning_and_the_others_go_on(tmp_path, caplog, monkeypatch, at):
    kept = type("Kept", (Failing,), {"seen": []})
    kept.log_scalars = lambda self, values, epoch: self.seen.append(epoch)
    monkeypatch.setitem(TRACKERS, "failing", type("At", (Failing,), {"at": at}))
    monkeypatch.setitem(TRACKERS, "kept", kept)
    with ExperimentLogger(["failing", "kept"], tmp_path / "run", SETTINGS) as experiment:
        log = fit(learner(tmp_path / "run", experiment), PHASES)
        experiment.log_results(tmp_path / "model.safetensors")
    assert len(log) == 3
    assert kept.seen == [1, 2, 3]
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warning.startswith("failing failed (the server is gone); the training goes on without it")


def test_other_ranks_and_searches_for_a_rate_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "failing", Failing)
    experiment = ExperimentLogger(["failing"], tmp_path / "run", SETTINGS)
    monkeypatch.setattr(loggers, "rank", lambda: 1)
    fit(learner(tmp_path / "other", experiment), PHASES)
    experiment.log_results(tmp_path / "model.safetensors")
    assert experiment.trackers is None
    monkeypatch.undo()
    monkeypatch.setitem(TRACKERS, "failing", Failing)
    searching = learner(tmp_path / "other", experiment)
    searching.lr_find(num_it=2, show_plot=False, suggest_funcs=())
    searching.get_preds(dl=searching.dls.valid)
    assert experiment.trackers is None


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_fastai_users_add_the_callback(tmp_path, name):
    made = segmentation(Tiny, size=16, train=8, valid=2)
    with ExperimentLogger([name], tmp_path / "mine", {"trainer": {"seed": 3}}) as experiment:
        made.fit_one_cycle(2, 1e-3, cbs=experiment)
        made.fit_one_cycle(1, 1e-3, cbs=experiment)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "mine" / "tensorboard"))
    events.Reload()
    assert {*NUMBERS} <= {*events.Tags()["scalars"]}
    assert [one.step for one in events.Scalars("miou")] == [1, 2, 3]
    assert events.Scalars("miou")[-1].value == pytest.approx(float(made.recorder.log[-2]), rel=1e-6)


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 10, 2, size=32)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_read(pets, tmp_path, monkeypatch, name):
    found = importlib.util.find_spec
    package = TRACKERS[name].package
    monkeypatch.setattr(importlib.util, "find_spec", lambda one, *more: None if one == package else found(one, *more))
    for train in (segae.finetune, segae.pretrain):
        with pytest.raises(SegaeError, match=rf"{package} must be installed: pip install 'segae\[{name}\]'"):
            train(pets, out=tmp_path / "run", log=name, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [needs("wandb")])
def test_a_missing_key_of_wandb_is_asked_for_before_anything_is_read(pets, tmp_path, monkeypatch, name):
    import wandb

    monkeypatch.delenv("WANDB_MODE")
    wandb.teardown()
    with pytest.raises(SegaeError, match="got none: type `wandb login`, or set WANDB_MODE=offline"):
        segae.finetune(pets, out=tmp_path / "run", log=name, **SMALL)
    assert not (tmp_path / "run").exists()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    loggers.check_loggers(["wandb"])
    (tmp_path / "netrc").unlink()
    for name, value in {"WANDB_MODE": "disabled", "WANDB_API_KEY": "0" * 40}.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            wandb.teardown()
            loggers.check_loggers(["wandb"])
    wandb.teardown()


def test_log_takes_names_in_one_text_or_several():
    for given in ("tensorboard,mlflow", ("tensorboard", "csv, mlflow"), ["tensorboard", "mlflow", "tensorboard"]):
        assert segae.TrainerConfig(log=given).log == ("tensorboard", "mlflow")
    assert segae.TrainerConfig(log="csv").log == ()
    with pytest.raises(SegaeError, match=r"log must be one of csv, .*got 'wandbb'; did you mean wandb"):
        segae.TrainerConfig(log="tensorboard,wandbb")


@pytest.mark.parametrize("name", [needs("tensorboard")])
def test_finetune_logs_its_run_folder(pets, tmp_path, name):
    folder = tmp_path / "run"
    result = segae.finetune(pets, out=folder, log=name, epochs=1, freeze_epochs=0, **SMALL)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [one.value for one in events.Scalars("miou")] == pytest.approx(result.log["miou"].tolist(), rel=1e-6)
    assert {"curves", "sheet"} <= {*events.Tags()["images"]}
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "epochs: 1" in text
    assert "paths" not in text
    first = read_json(folder / "loggers.json")
    open_run_folder(folder, {}, task="finetune", overwrite=True).close()
    with ExperimentLogger([name], folder) as again:
        again.log_results(result.path)
    assert read_json(folder / "loggers.json") != first
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == []  # of the new run alone
