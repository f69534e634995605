"""Log a training to TensorBoard, Weights & Biases, MLflow or Trackio: scores, learning rates, pictures, the model."""

# ruff: noqa: D102 - fastai's names of the events say when a method runs, and the class what for
# fastai's own callbacks read the loss of every step, for which a GPU must wait, know no resumed run, and have no MLflow
import importlib
import io
import logging
import math
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from operator import methodcaller
from pathlib import Path
from typing import Any, ClassVar, Self

import lazy_loader
import numpy as np
import yaml
from fastai.callback.core import Callback
from PIL import Image

from segae._io import read_json, require_choice, require_package, write_json
from segae.errors import SegaeError
from segae.training.distributed import rank, run_on_main
from segae.training.run import CONFIG_FILE, LOGGERS_FILE

mlflow = lazy_loader.load("mlflow")
requests = lazy_loader.load("requests")  # wandb brings it
trackio = lazy_loader.load("trackio")
wandb = lazy_loader.load("wandb")

logger = logging.getLogger("segae")

PROJECT = "segae"
PICTURES = ("curves.png", "reconstructions.png", "sheet.png")
"""Pictures of a run folder that are logged when they have changed."""
_WANDB_HOST = "https://api.wandb.ai"


class Tracker(ABC):
    """One run in one logging library.

    ``run_id`` is None for a new run, else that of the run to go on with; afterwards it is that of this run. ``epochs``
    of it are known. ``settings`` are plain values, nested by name.
    """

    package: ClassVar[str]

    @abstractmethod
    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str | None, epochs: int) -> None:
        self.run_id = run_id or secrets.token_hex(4)

    @classmethod
    def check(cls) -> None:
        """Refuse to start where something is missing."""
        require_package(cls.package, cls.package)  # the extra has the same name

    @abstractmethod
    def log_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Log numbers by name; epochs count from 1."""

    @abstractmethod
    def log_picture(self, path: Path, epoch: int) -> None:
        """Log a PNG file under its name."""

    def log_model(self, path: Path) -> None:  # noqa: B027 - not every library keeps files
        """Log a weight file."""

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Finish the run."""


class TensorBoard(Tracker):
    """Event files in the folder tensorboard/ of the run; it has no place for weight files."""

    package = "tensorboard"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str | None, epochs: int) -> None:
        super().__init__(folder, settings, run_id, epochs)
        place = folder / "tensorboard"
        for old in place.glob("events.out.tfevents.*") if run_id is None else ():  # of a run that is overwritten
            old.unlink()
        # hides the epochs that an interrupted run had logged and not saved
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter  # takes a second
        self.writer = writer(place, purge_step=epochs + 1 if run_id else None)
        self.writer.add_text("config", f"```\n{yaml.safe_dump(dict(settings), sort_keys=False)}```", epochs)

    def log_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def log_picture(self, path: Path, epoch: int) -> None:
        self.writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), epoch, dataformats="HWC")
        self.writer.flush()

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, whose files are in the run folder; its own environment variables count."""

    package = "wandb"

    @classmethod
    def check(cls) -> None:
        super().check()
        settings = wandb.setup().settings
        if settings.mode in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            return
        known = settings.api_key or os.environ.get("WANDB_API_KEY")
        # wandb.login would find it, but asks the network
        if not known and not any(map(requests.utils.get_netrc_auth, (str(settings.base_url), _WANDB_HOST))):
            raise SegaeError(
                "log must not have wandb without a key of Weights & Biases, got none: type `wandb login`, or set "
                "WANDB_MODE=offline to keep the run on this machine until `wandb sync`"
            )

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str | None, epochs: int) -> None:
        super().__init__(folder, settings, run_id, epochs)
        offline = wandb.setup().settings.mode == "offline"  # where resume is not known: equal ids do it
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.name),
            id=self.run_id,
            resume=None if offline or not run_id else "allow",
            dir=os.environ.get("WANDB_DIR", folder),
            reinit="create_new",  # a run that the program has open is its own
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.config.update(dict(settings), allow_val_change=True)
        self.run.define_metric("*", step_metric="epoch")

    def log_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log({**values, "epoch": epoch})

    def log_picture(self, path: Path, epoch: int) -> None:
        self.run.log({path.stem: wandb.Image(str(path)), "epoch": epoch})

    def log_model(self, path: Path) -> None:
        artifact = wandb.Artifact(f"{path.stem}-{self.run_id}", type="model")
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run of MLflow, at the address in MLFLOW_TRACKING_URI or in MLflow's own default place."""

    package = "mlflow"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str | None, epochs: int) -> None:
        self.client = mlflow.MlflowClient()
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            run_id = self.client.create_run(experiment, run_name=folder.name).info.run_id
            params = [mlflow.entities.Param(key, str(value)[:500]) for key, value in flatten(settings).items()]
            for start in range(0, len(params), 100):  # as many as MLflow takes at once
                self.client.log_batch(run_id, params=params[start : start + 100])
        else:
            self.client.update_run(run_id, status="RUNNING")
        super().__init__(folder, settings, run_id, epochs)

    def log_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        now = int(1000 * time.time())
        metrics = [mlflow.entities.Metric(name, value, now, epoch) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_picture(self, path: Path, epoch: int) -> None:  # noqa: ARG002
        self.client.log_artifact(self.run_id, str(path), "pictures")

    def log_model(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path), "model")

    def close(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


class Trackio(Tracker):
    """A run of Trackio, in its own folder on this machine; ``trackio show`` opens it."""

    package = "trackio"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str | None, epochs: int) -> None:
        super().__init__(folder, settings, run_id, epochs)
        how: dict[str, Any] = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        name = f"{folder.name}-{self.run_id}"  # by which Trackio finds a run again
        with redirect_stdout(io.StringIO()):  # it greets
            self.run = trackio.init(PROJECT, name=name, config=flatten(settings), **how)

    def log_scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log(dict(values), step=epoch)

    def log_picture(self, path: Path, epoch: int) -> None:
        self.run.log({path.stem: trackio.Image(path)}, step=epoch)

    def log_model(self, path: Path) -> None:
        self.run.log_artifact(path, name=f"{path.stem}-{self.run_id}", type="model")

    def close(self, *, failed: bool) -> None:  # noqa: ARG002
        with redirect_stdout(io.StringIO()):
            trackio.finish()  # the run's own method leaves it to be finished again when Python ends


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def check_loggers(names: Iterable[str]) -> None:
    """Refuse loggers that cannot start, before anything is trained.

    The SegaeError of an unknown name, a package or a key that is missing says what to type.
    """

    def check() -> None:
        for name in names:
            require_choice("log", name, TRACKERS)
            TRACKERS[name].check()

    run_on_main(check)


def flatten(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flatten(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return flat


class ExperimentLogger(Callback, AbstractContextManager):
    """Hands what a training makes to loggers, in rank 0: after each epoch its numbers, and pictures that have changed.

    A logger that fails is left out from then on, with one warning; the training goes on. The ids of the runs are in
    loggers.json in the folder: a training that is resumed there goes on with them. Leaving the ``with`` block, or
    ``close``, finishes the runs.

    Args:
        names: of ``TRACKERS``.
        folder: the run folder, whose name the runs get.
        settings: what the training was called with. Default: config.json in the folder.

    Example:
        >>> with ExperimentLogger(["tensorboard"], Path("runs/mine")) as experiment:  # doctest: +SKIP
        ...     learner.fit_one_cycle(3, cbs=experiment)
    """

    order, spans_phases, run_valid = 95, True, False  # after DrawPictures

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        check_loggers(names)
        self.names, self.folder, self.settings = tuple(names), Path(folder), settings
        self.trackers: dict[str, Tracker] | None = None  # None before the first event
        self.trained = False
        self.done, self.drawn = 0, dict[str, int]()  # the last epoch; when each picture was written that was logged

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(failed=kind is not None)

    def before_fit(self) -> None:
        if not self._is_a_look:
            self._open()

    def before_train(self) -> None:
        self.trained = True

    def after_epoch(self) -> None:
        trained, self.trained = self.trained, False  # a resumed fit goes through its finished epochs without training
        if self._is_a_look or rank() != 0 or not trained:
            return
        self._open()
        row = self._row()
        self.done = int(row.pop("epoch"))
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._each(lambda one: one.log_scalars(numbers, self.done))
        self._log_pictures()

    def log_results(self, model: Path) -> None:
        """Log the pictures and the weight file of the end."""
        self._open()
        self._log_pictures()
        self._each(lambda one: one.log_model(Path(model)))

    def close(self, *, failed: bool = False) -> None:
        """Finish the runs."""
        self._each(lambda one: one.close(failed=failed))
        self.trackers = {}

    @property
    def _is_a_look(self) -> bool:
        """Whether this is no training, but a search for the learning rate or a prediction."""
        return hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds")

    def _open(self) -> None:
        """Begin the runs, or go on with those that the folder knows."""
        if self.trackers is not None or rank() != 0 or not self.names:
            return
        file, self.trackers, started = self.folder / LOGGERS_FILE, {}, dict[str, str]()
        self.folder.mkdir(parents=True, exist_ok=True)
        ids, config = read_json(file) or {}, self.settings
        if config is None:
            config = read_json(self.folder / CONFIG_FILE) or {}
            config["run"] = {name: value for name, value in config.get("run", {}).items() if name != "paths"}
        clock = getattr(getattr(self, "learn", None), "epoch_clock", None)
        self.done = clock.log[-1]["epoch"] if clock is not None and clock.log else 0
        for name in self.names:
            try:
                self.trackers[name] = TRACKERS[name](self.folder, config, ids.get(name), self.done)
                started[name] = self.trackers[name].run_id
            except Exception as error:  # of many kinds
                self._warn(name, error)
        write_json(file, {**ids, **started})

    def _row(self) -> dict[str, Any]:
        """The row of the log of this epoch, or outside segae.fit what fastai's recorder has."""
        clock, recorder = getattr(self.learn, "epoch_clock", None), self.learn.recorder
        if clock is not None and clock.log and clock.log[-1]["epoch"] == clock.now + 1:
            return dict(clock.log[-1])
        rates = [float(group["lr"]) for group in self.learn.opt.hypers]
        seen = dict(zip(recorder.metric_names, recorder.log, strict=False))
        return {**seen, "epoch": self.done + 1, "lr_encoder": rates[0], "lr_head": rates[-1]}

    def _log_pictures(self) -> None:
        for path in [self.folder / name for name in PICTURES] if self.trackers else ():
            written = path.stat().st_mtime_ns if path.is_file() else 0
            if written != self.drawn.get(path.name, 0):
                self.drawn[path.name] = written
                self._each(methodcaller("log_picture", path, self.done))

    def _each(self, act: Callable[[Tracker], object]) -> None:
        for name, tracker in list((self.trackers or {}).items()):
            try:
                act(tracker)
            except Exception as error:  # of many kinds
                self._warn(name, error)
                del self.trackers[name]  # type: ignore[union-attr]

    def _warn(self, name: str, error: Exception) -> None:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        logger.warning("%s failed (%s); the training goes on without it, and log.csv has everything", name, reason)

    def __enter__(self) -> Self:
        return self
