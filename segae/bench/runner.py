"""Run a benchmark's grid: pretrain, fine-tune, score once, write rows and a report; continue after an interruption."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import joblib
import lazy_loader
import numpy as np
import pandas as pd
from filelock import FileLock
from joblib.externals.loky.process_executor import TerminatedWorkerError

from segae._io import read_json, write_json
from segae.bench.checks import compare_with_published, require_comparable, require_no_leak
from segae.bench.comparison import compare_rows
from segae.bench.grid import Run, make_runs
from segae.bench.report import next_steps, report, verdict
from segae.bench.results import COLUMNS, collect_details, details_path, merge_rows, read_details, read_rows
from segae.bench.tuning import tune
from segae.commands import download, evaluate, finetune, pretrain
from segae.commands._data import takes_settings_of
from segae.config import BenchConfig, TrainerConfig
from segae.data import PETS_CLASSES, drawn_pets, open_dataset
from segae.errors import SegaeError
from segae.evaluation import SegmentationScores
from segae.methods import create_method, method_names
from segae.training import is_out_of_memory, read_metrics

ray = lazy_loader.load("ray", error_on_import=False)
ray_joblib = lazy_loader.load("ray.util.joblib", error_on_import=False)
logger = logging.getLogger("segae")


@dataclass(frozen=True)
class BenchResult:
    """What a benchmark found.

    Attributes:
        runs: one row per finished run, with the columns of ``segae.bench.results.COLUMNS``.
        report: the HTML page; None where none was made.
    """

    runs: pd.DataFrame
    report: Path | None


@dataclass(frozen=True)
class Outcome:
    """What came of one job: its duration, or why it failed; ``ours`` is a fault of segae."""

    seconds: float = 0.0
    failure: str = ""
    ours: bool = False
    miou: float | None = None


@takes_settings_of(BenchConfig)
def benchmark(config: BenchConfig) -> BenchResult:
    """Compare start weights on a data set; all settings are those of ``segae.config.BenchConfig``.

    Finished runs are kept, so the same call continues after an interruption.

    Raises:
        SegaeError: a setting is not possible, test images are among the training images, or runs failed.

    Example:
        >>> result = benchmark("pets", weights=["random", "imagenet"], labels=[0.1, 1.0], seeds=3)  # doctest: +SKIP
    """
    config = _with_data(config)
    assert config.data is not None
    dataset = open_dataset(Path(config.data), classes=config.classes, merge=config.merge)
    near = require_no_leak(dataset, allow_near=config.allow_near_duplicates)
    tuned = None
    if config.tune:
        trials = replace(config, split="val", experiment=f"{config.experiment}_validation", tune=())
        tuned = tune(trials, dataset, config.tune, config.tune_seeds, functools.partial(_require_all, trials))
    runs = make_runs(config, dataset, tuned)
    if config.shard:
        part, parts = map(int, config.shard.split("/"))
        runs = runs[part - 1 :: parts]
    rows_csv = _rows_csv(config)
    if near:
        lines = [{"run_id": "", "image": str(one.image), "test_image": str(one.of)} for one in near]
        merge_rows(details_path(rows_csv, config.experiment, "near_duplicates"), lines, key=("image", "test_image"))
    failures = _run_all(config, runs)
    page = None
    found = _finished(config, runs)
    if len(found):
        require_comparable(found)
        logger.info("%d rows in %s", len(found), rows_csv)
        if config.preset == "smp":
            logger.info("%s", compare_with_published(found, len(dataset.splits["test"])))
        if config.report and config.split == "test":
            page = report(rows_csv, out=Path(config.out) / "index.html", experiment=config.experiment, runs=config.out)
        for line in _conclusion(found, config, page):
            logger.info("%s", line)
    if failures:
        raise SegaeError(_explain(failures, len(runs), Path(config.out) / "logs"))
    return BenchResult(found, page)


def _with_data(config: BenchConfig) -> BenchConfig:
    """The data of the preset where none are given, absolute paths, and the data set's own unlabeled images."""
    data = config.data
    if data is None:
        data = drawn_pets() if config.preset == "quick" else download("pets")
    data = Path(data).absolute()
    own = data / "unlabeled"
    unlabeled = config.unlabeled or ((own,) if own.is_dir() else ())
    places = {"unlabeled": tuple(Path(root).absolute() for root in unlabeled), "out": Path(config.out).absolute()}
    return replace(config, data=data, **places)  # type: ignore[arg-type]


def _rows_csv(config: BenchConfig) -> Path:
    """The table of rows; that of a search of settings stands beside the one it is for."""
    if config.rows is None:
        return Path(config.out) / f"{config.experiment}.csv"
    rows = Path(config.rows).absolute()
    return rows.with_name(f"{config.experiment}.csv") if config.experiment.endswith("_validation") else rows


def _finished(config: BenchConfig, runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of these runs that are in the table, in the order of the runs."""
    order, rows_csv = {run.run_id: place for place, run in enumerate(runs)}, _rows_csv(config)
    if not rows_csv.exists():
        return pd.DataFrame(columns=["run_id", "miou"])
    rows = read_rows(rows_csv)
    rows = rows[rows["run_id"].isin(order) & (rows["experiment"] == config.experiment)]
    return rows.sort_values("run_id", key=lambda ids: ids.map(order)).reset_index(drop=True)


def _run_all(config: BenchConfig, runs: Sequence[Run]) -> dict[str, Outcome]:
    """Run what has no row yet: first all pretrainings, then all fine-tunings; return what failed, by name."""
    done = set(_finished(config, runs)["run_id"])
    missing = [run for run in runs if run.run_id not in done]
    logger.info("%d runs, %d of them finished", len(runs), len(runs) - len(missing))
    pretrainings = {run.pretrain_id: run for run in missing if run.pretrain is not None}
    unfinished = [run for run in pretrainings.values() if read_metrics(pretrain_folder(config, run)) is None]
    failed: dict[str, Outcome] = {}
    without: set[str] = set()
    for run, outcome in _in_parallel(config, functools.partial(_pretrain_job, config), unfinished, "pretrainings"):
        if outcome.failure:
            failed[f"pretraining of {run.name}"] = outcome
            without.add(run.pretrain_id)
    missing = [run for run in missing if run.pretrain_id not in without]
    for run, outcome in _in_parallel(config, functools.partial(_finetune_job, config), missing, "runs"):
        if outcome.failure:
            failed[run.name] = outcome
    return failed


def _require_all(config: BenchConfig, runs: Sequence[Run]) -> dict[str, float]:
    """Run what is missing of a search; the validation mIoU by run id.

    Raises:
        SegaeError: a run failed.
    """
    if failed := _run_all(config, runs):
        raise SegaeError(_explain(failed, len(runs), Path(config.out) / "logs"))
    rows = _finished(config, runs)
    return dict(zip(rows["run_id"], rows["miou"], strict=True))


def _in_parallel(
    config: BenchConfig, job: Callable[[Run, str], Outcome], runs: Sequence[Run], what: str
) -> Iterator[tuple[Run, Outcome]]:
    """Do jobs, several at once where asked for, and log each as it ends with the time that is left.

    A process that is killed, for example when the memory is full, ends the pool. What was not finished is then done
    one job at a time, each in a process of its own, so that it ends only its own job.
    """
    devices = config.devices or (config.trainer.device,)
    jobs = config.jobs or len(devices)
    waiting = dict(enumerate(runs))
    seconds: dict[Any, list[float]] = defaultdict(list)

    def collect(found: Iterable[tuple[int, Outcome]]) -> Iterator[tuple[Run, Outcome]]:
        for index, outcome in found:
            run = waiting.pop(index)
            seconds[run.kind].append(outcome.seconds)
            done, left = len(runs) - len(waiting), _time_left(seconds, waiting.values(), jobs)
            result = f"failed: {outcome.failure}" if outcome.failure else f"{outcome.seconds:.0f} s"
            result += "" if outcome.miou is None else f", mIoU {outcome.miou:.3f}"
            count = f"{done} of {len(runs)} {what} done, {min(jobs, len(waiting))} running{left}"
            logger.info("%s: %s: %s", count, run.name, result)
            yield run, outcome

    def pool(jobs: int, **backend: Any) -> Iterator[tuple[Run, Outcome]]:
        with joblib.parallel_config(**backend):
            parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
            places = ((index, run, devices[index % len(devices)]) for index, run in list(waiting.items()))
            yield from collect(parallel(joblib.delayed(_numbered)(job, *place) for place in places))

    if config.engine == "ray":
        ray.init(address=config.address, ignore_reinit_error=True, log_to_driver=False)
        ray_joblib.register_ray()
        yield from pool(config.jobs or -1, backend="ray")
    elif jobs == 1 or len(runs) < 2:
        yield from collect((index, job(run, devices[0])) for index, run in list(waiting.items()))
    else:
        try:
            yield from pool(jobs, backend="loky", inner_max_num_threads=_threads(config, jobs))
        except TerminatedWorkerError:
            logger.warning("a process was killed; what is left runs one job at a time")
            for index, run in list(waiting.items()):
                yield from collect([(index, _alone(job, run, devices[0]))])


def _numbered(job: Callable[[Run, str], Outcome], index: int, run: Run, device: str) -> tuple[int, Outcome]:
    return index, job(run, device)


def _alone(job: Callable[[Run, str], Outcome], run: Run, device: str) -> Outcome:
    """Do one job in a new process that may be killed."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as executor:
            return executor.submit(job, run, device).result()
    except BrokenProcessPool:
        return Outcome(failure="its process was killed, perhaps because the memory was full")


def _threads(config: BenchConfig, jobs: int) -> int:
    return config.trainer.threads or max(joblib.cpu_count() // jobs, 1)


def _time_left(seconds: dict[Any, list[float]], waiting: Iterable[Run], jobs: int) -> str:
    """Estimate from the mean of finished jobs of the same kind, or of all kinds."""
    known = [value for values in seconds.values() for value in values]
    total = sum(statistics.fmean(seconds.get(run.kind) or known) for run in waiting) / jobs
    return f", {total / 60:.0f} min left" if total >= 90 else f", {total:.0f} s left" if total else ""


def pretrain_folder(config: BenchConfig, run: Run) -> Path:
    """Run folder of the pretraining that a run needs."""
    return Path(config.out) / f"pretrain-{_slug(run.variant.partition('@')[0])}-{run.pretrain_id}"


def run_folder(config: BenchConfig, run: Run) -> Path:
    """Run folder of a fine-tuning; its name ends with the run's id."""
    return Path(config.out) / f"{config.split}-{_slug(run.variant)}-{run.run_id}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(text).name).strip("-")[:60]


def _trainer(config: BenchConfig, device: str, seed: int) -> TrainerConfig:
    jobs = config.jobs or len(config.devices) or 1
    threads = config.trainer.threads if jobs == 1 and config.engine == "local" else _threads(config, jobs)
    workers = 0 if config.trainer.workers is None and jobs > 1 else config.trainer.workers  # runs share the cores
    return replace(config.trainer, device=device, seed=seed, threads=threads, workers=workers)


def _pretrain_job(config: BenchConfig, run: Run, device: str) -> Outcome:
    """Do the pretraining that a run needs; every failure is an outcome."""

    def work(folder: Path) -> None:
        assert run.pretrain is not None
        settings = {name: value for name, value in run.pretrain.items() if name != "seed"}
        pretrain(**settings, out=folder, trainer=_trainer(config, device, run.pretrain["seed"]), resume=True)

    return _attempt(config, pretrain_folder(config, run), work)


def _finetune_job(config: BenchConfig, run: Run, device: str) -> Outcome:
    """Do one fine-tuning, score it once, and add its row; every failure is an outcome."""
    miou: float | None = None
    experiment, rows_csv = config.experiment, _rows_csv(config)

    def work(folder: Path) -> None:
        nonlocal miou
        assert config.data is not None
        pretrained: dict[str, Any] = {}
        weights = run.weights
        if run.pretrain is not None:
            source = pretrain_folder(config, run)
            pretrained, weights = read_json(source / "metrics.json") or {}, str(source / "encoder.safetensors")
        trainer = _trainer(config, device, run.seed)
        known = (folder / "metrics.json").exists()
        if not known:
            result = finetune(config.data, **run.finetune, weights=weights, out=folder, trainer=trainer, resume=True)
            if config.split == "val":
                scores = result.scores
                write_json(folder / "validation.json", {} if scores is None else scores.as_row())
        if config.split == "test":
            inference: dict[str, Any] = {"device": device, "threads": trainer.threads, "overwrite": True}
            scores = evaluate(folder / "model.safetensors", config.data, out=folder / "test", **inference)
            values: dict[str, Any] = {**scores.as_row(), "miou_without_border": _without_border(scores)}
        else:
            values = read_json(folder / "validation.json") or {}
        miou = values["miou"]
        row = make_row(read_metrics(folder) or {}, values, pretrained)
        row |= {"experiment": experiment, "split": config.split, "run_id": run.run_id}
        details = collect_details(folder, row) if config.split == "test" else {}
        for kind, lines in details.items():
            merge_rows(details_path(rows_csv, experiment, kind), lines, key=("run_id",))
        merge_rows(rows_csv, [row])

    return replace(_attempt(config, run_folder(config, run), work), miou=miou)


def _attempt(config: BenchConfig, folder: Path, work: Callable[[Path], None]) -> Outcome:
    """Do work under a lock, with its output in a log file unless it is the only job; failures become an outcome."""
    started = time.perf_counter()
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = Path(config.out) / "logs" / f"{folder.name}.log"
    try:
        # what an earlier, killed benchmark left running may still be at it
        with FileLock(folder.parent / f".{folder.name}.lock"), _output_to(log):
            work(folder)
        return Outcome(time.perf_counter() - started)
    except SegaeError as error:
        return Outcome(time.perf_counter() - started, str(error))
    except Exception as error:
        with log.open("a") as file:
            file.write(traceback.format_exc())
        if is_out_of_memory(error):
            return Outcome(failure=f"the memory is full ({error}): use fewer jobs, or a smaller batch_size")
        return Outcome(failure=f"unexpected {type(error).__name__}: {error}", ours=True)


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send prints and log messages of this process to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handler, handlers, level = logging.FileHandler(log), logger.handlers[:], logger.level
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    try:
        with log.open("a", buffering=1) as file, contextlib.redirect_stdout(file):
            yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
        handler.close()


def make_row(run: Mapping[str, Any], scores: Mapping[str, Any], pretraining: Mapping[str, Any]) -> dict[str, Any]:
    """Make a result row from a run's metrics.json, its scores and its pretraining's metrics.json."""
    method, renamed = run["method"], {"label_subset": "split_hash"}
    row = {name: run.get(renamed.get(name, name), "") for name in COLUMNS}
    row |= {"method_args": json.dumps(run["method_args"]) if method else "", "finetuning": "supervised"}
    row["method_family"] = create_method(method).family if method in method_names() else ""
    row["pretrain_settings"] = json.dumps(run["pretrain_settings"]) if run.get("pretrain_settings") else ""
    row |= {f"pretrain_{name}": pretraining.get(name, "") for name in ("seconds", "energy_wh") if pretraining}
    flags = {name: int(bool(run[name])) for name in ("augment", "recalibrate", "lpft_head")}
    return {**row, **flags, **scores}


def _without_border(scores: SegmentationScores) -> float | str:
    """The mIoU of Pets over the pixels whose truth is pet or background; empty for other data."""
    if set(scores.classes) != set(PETS_CLASSES):
        return ""
    kept = [scores.classes.index(name) for name in ("pet", "background")]
    truth = scores.confusion[kept]
    hits = np.array([truth[place, column] for place, column in enumerate(kept)])
    return float((hits / (truth.sum(1) + truth[:, kept].sum(0) - hits)).mean())


def _conclusion(rows: pd.DataFrame, config: BenchConfig, page: Path | None) -> list[str]:
    """Three lines: what to start from and how much it brings, where the report is, what to type next."""
    section = compare_rows(rows, read_details(_rows_csv(config), config.experiment, "per_image"))[0]
    steps = next_steps(section)
    where = f"Report: {page.as_uri()}" if page else f"Rows: {_rows_csv(config)}"
    gains = section.at(section.budgets[0]).dropna(subset=["gain_low"])
    best = gains.iloc[int(gains["gain"].argmax())] if len(gains) else None
    interval = (
        ""
        if best is None
        else (
            f" Largest gain: {best['name']} over {best['start']}, {best['gain']:+.3f} "
            f"({best['gain_low']:+.3f} to {best['gain_high']:+.3f}, 95 %)."
        )
    )
    return [verdict(section) + interval, where, f"Next: {steps[0][1]}"]


def _explain(failed: Mapping[str, Outcome], runs: int, logs: Path) -> str:
    lines = [f"  {name}: {outcome.failure}" for name, outcome in list(failed.items())[:3]]
    more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
    ours = " An unexpected error is a fault of segae; please report it." if any(o.ours for o in failed.values()) else ""
    text = "\n".join(lines)
    return f"{len(failed)} of {runs} runs failed{more}:\n{text}\nLogs: {logs}.{ours} Repeat to try these again"
