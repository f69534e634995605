"""Run a benchmark's grid: pretrain, fine-tune, score once, write rows and a report; continue after an interruption."""

import contextlib
import logging
import os
import re
import socket
import statistics
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from joblib.externals.loky import ProcessPoolExecutor, cpu_count
from tqdm import tqdm

from segae._io import cache_dir, logger, read_json, write_json
from segae._settings import takes_settings_of
from segae.bench.checks import compare_with_published, require_comparable, require_no_leak
from segae.bench.comparison import compare_rows
from segae.bench.grid import Contents, Run, hash_contents, make_runs, parse_variant
from segae.bench.next_steps import next_steps
from segae.bench.report import largest_gain, report, verdict, write_report
from segae.bench.results import COLUMNS, collect_details, details_path, merge_rows, read_details, read_rows
from segae.bench.tuning import read_candidates, tune
from segae.commands import download, evaluate, finetune, pretrain
from segae.config import BenchConfig, FinetuneSettings
from segae.data import PETS_CLASSES, drawn_pets, locate_dataset, open_dataset
from segae.errors import SegaeError
from segae.evaluation import SegmentationScores
from segae.methods import create_method, method_names
from segae.models import STARTS
from segae.training import is_out_of_memory, read_metrics


@dataclass(frozen=True)
class BenchResult:
    """A row per finished run, with the columns of ``segae.bench.results.COLUMNS``; the HTML page if one was made."""

    runs: pd.DataFrame
    report: Path | None


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its row and the lines beside it by table, or why it failed; ``ours`` is a fault of segae."""

    row: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""
    ours: bool = False


Job = Callable[[BenchConfig, Run, Path, str], Outcome]
"""Does a run in its folder on a device."""
Submit = Callable[[int, Job, BenchConfig, Run], "Future[Outcome]"]
"""Starts a job in a slot."""


@takes_settings_of(BenchConfig)
def benchmark(config: BenchConfig) -> BenchResult:
    """Compare start weights on a data set; all settings are those of ``segae.config.BenchConfig``.

    Finished runs are kept, so the same call continues after an interruption.

    Raises:
        SegaeError: a setting is not possible, test images are among the training images, or runs failed.

    Example:
        >>> result = benchmark("pets", weights=["random", "imagenet"], labels=[0.1, 1.0], seeds=3)  # doctest: +SKIP
    """
    config = _resolve(config)
    rows_csv, candidates = _rows_csv(config), read_candidates(config.tune)
    dataset = open_dataset(str(config.data), **config.reading)
    make_runs(config, dataset, Contents())  # refuses settings before images are read
    _finished(config, [])  # refuses another table before anything is trained
    contents, near = hash_contents(config, dataset), require_no_leak(dataset, allow_near=config.allow_near_duplicates)
    if near:
        lines = [{"dataset": dataset.name, "test_image": one.of.name, "looks_like": one.image.name} for one in near]
        merge_rows(details_path(rows_csv, config.experiment, "near_duplicates"), lines, key=tuple(lines[0]))
    name = f"{config.experiment}_validation"
    trials = replace(config, split="val", experiment=name, rows=rows_csv.with_name(f"{name}.csv"))

    def score(runs: Sequence[Run]) -> Mapping[str, float]:
        if failed := _run_all(trials, submit, runs):
            raise SegaeError(_explain(failed, len(runs), Path(config.out) / "logs"))
        return dict(_finished(trials, runs).set_index("run_id")["miou"])

    with _open_engine(config) as submit:
        tuned = tune(trials, dataset, contents, candidates, score) if candidates else {}
        part, parts = map(int, (config.shard or "1/1").split("/"))
        runs = make_runs(config, dataset, contents, tuned)[part - 1 :: parts]
        failed = _run_all(config, submit, runs)
    found, page = _finished(config, runs), None
    if len(found):
        require_comparable(found)
        logger.info("%d rows in %s", len(found), rows_csv)
        if config.preset == "smp":
            logger.info("%s", compare_with_published(found, len(dataset.splits["test"])))
        page = _write_report(config, found) if config.report and config.split == "test" else None
        logger.info("%s", _conclusion(found, config, page))
    if failed:
        raise SegaeError(_explain(failed, len(runs), Path(config.out) / "logs"))
    return BenchResult(found, page)


def _resolve(config: BenchConfig) -> BenchConfig:
    """The data of the preset where none are given, absolute paths, and the share of the cores of each job."""
    data = config.data or (drawn_pets() if config.preset == "quick" else download("pets"))
    folder, layout = locate_dataset(os.fspath(data), config.layout)  # of Hugging Face rows the files that they become
    layout = config.layout if folder == Path(data) else layout
    paths: dict[str, Any] = {"data": folder.absolute(), "layout": layout, "out": Path(config.out).absolute()}
    paths["unlabeled"] = tuple(Path(root).absolute() for root in config.unlabeled)
    devices, trainer = config.devices or (config.trainer.device,), config.trainer
    jobs = config.jobs or len(devices)
    if jobs > 1 or config.engine == "ray":
        threads = trainer.threads or max(cpu_count() // jobs, 1)
        trainer = replace(trainer, threads=threads, workers=trainer.workers or 0)
    return replace(config, **paths, devices=devices, jobs=jobs, trainer=trainer)


def _rows_csv(config: BenchConfig) -> Path:
    return Path(config.out) / f"{config.experiment}.csv" if config.rows is None else Path(config.rows).absolute()


def _finished(config: BenchConfig, runs: Sequence[Run]) -> pd.DataFrame:
    """Rows of these runs that are in the table, in the order of the runs."""
    order, rows_csv = {run.run_id: place for place, run in enumerate(runs)}, _rows_csv(config)
    if not rows_csv.exists():
        return pd.DataFrame(columns=["run_id", "miou"])
    rows = read_rows(rows_csv)
    rows = rows[rows["run_id"].isin(order) & (rows["experiment"] == config.experiment)]
    return rows.sort_values("run_id", key=lambda ids: ids.map(order)).reset_index(drop=True)


def _run_all(config: BenchConfig, submit: Submit, runs: Sequence[Run]) -> dict[str, Outcome]:
    """Run what has no row yet: first all pretrainings, then all fine-tunings; return what failed, by name."""
    done, rows_csv = set(_finished(config, runs)["run_id"]), _rows_csv(config)
    missing = [run for run in runs if run.run_id not in done]
    logger.info("%d runs, %d of them finished; logs in %s", len(runs), len(done), Path(config.out) / "logs")
    once = {run.pretrain_id: run for run in missing if run.pretrain is not None}.values()
    needed = [run for run in once if read_metrics(run_folder(config, run, pretraining=True)) is None]
    outcomes = _in_parallel(config, submit, _pretrain, needed, "pretrainings")
    without = {run.pretrain_id: outcome for run, outcome in outcomes if outcome.failure}
    failed = {f"pretraining of {run.name}": without[run.pretrain_id] for run in missing if run.pretrain_id in without}
    missing = [run for run in missing if run.pretrain_id not in without]
    for run, outcome in _in_parallel(config, submit, _finetune, missing, "runs"):
        if outcome.failure:
            failed[run.name] = outcome
            continue
        for kind, lines in outcome.details.items():
            merge_rows(details_path(rows_csv, config.experiment, kind), lines, key=("run_id",))
        start = parse_variant(run.variant)[0].start  # here: jobs elsewhere do not know a user's own methods by name
        file = "" if start in STARTS else start
        merge_rows(rows_csv, [{**outcome.row, "weights_file": file}])  # last: a run with a row is finished
    return failed


def _in_parallel(
    config: BenchConfig, submit: Submit, job: Job, runs: Sequence[Run], what: str
) -> Iterator[tuple[Run, Outcome]]:
    """Keep every slot busy with one job at a time, and log each as it ends with the time that is left."""
    jobs, waiting = config.jobs or 1, deque(runs)
    free = list(range(len(runs) if config.engine == "ray" else jobs))  # Ray itself lets jobs wait
    running: dict[Future[Outcome], tuple[int, Run]] = {}
    seconds: dict[Any, list[float]] = defaultdict(list)
    while waiting or running:
        while waiting and free:
            slot, run = free.pop(0), waiting.popleft()
            if job is _pretrain:  # which may take long
                log = log_file(run_folder(config, run, pretraining=True))
                logger.info("pretraining %s, without labels; its log: %s", run.pretraining_name, log)
            running[submit(slot, job, config, run)] = slot, run
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            slot, run = running.pop(future)
            free.append(slot)
            error = future.exception()  # of loky or Ray; jobs raise none
            code = re.search(r"\{.*\}", str(error)) or [str(error)[:200]]
            killed = f"its process was killed, perhaps because the memory was full: {code[0]}"
            outcome = Outcome(failure=killed) if error else future.result()
            result = f"{outcome.seconds:.0f} s" + (f", mIoU {outcome.row['miou']:.3f}" if outcome.row else "")
            if outcome.failure:
                result = f"failed: {outcome.failure}"
            else:
                seconds[run.schedule].append(outcome.seconds)
            left = [*waiting, *(run for _, run in running.values())]
            count = f"{len(runs) - len(left)} of {len(runs)} {what} done{_time_left(seconds, left, jobs)}"
            logger.info("%s: %s: %s", count, run.pretraining_name if job is _pretrain else run.name, result)
            yield run, outcome


def _time_left(seconds: Mapping[Any, list[float]], waiting: Iterable[Run], jobs: int) -> str:
    """Estimate from the mean of finished jobs of the same schedule, or of all."""
    known = [value for values in seconds.values() for value in values] or [0.0]
    total = sum(statistics.fmean(seconds.get(run.schedule, known)) for run in waiting) / jobs
    return f", {total / 60:.0f} min left" if total >= 90 else f", {total:.0f} s left" if total else ""


@contextlib.contextmanager
def _open_engine(config: BenchConfig) -> Iterator[Submit]:
    """Choose where jobs run: in this process, in others, or on a Ray cluster."""

    def submit(_: int, job: Job, config: BenchConfig, run: Run) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(_attempt(job, config, run, config.devices[0]))
        return future

    if config.engine == "ray":
        yield from _on_cluster(config)
    elif int(config.jobs or 1) > 1:
        yield from _in_processes(str(config.trainer.threads))
    else:
        yield submit


def _in_processes(threads: str) -> Iterator[Submit]:
    """Each slot has a process and a pool of its own: one that is killed ends its own job and no other."""
    pools: dict[int, ProcessPoolExecutor] = {}
    env = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    env["PYTHONWARNINGS"] = "ignore"  # of other libraries, which a user cannot mend

    def submit(slot: int, job: Job, config: BenchConfig, run: Run) -> Future[Outcome]:
        device = config.devices[slot % len(config.devices)]
        try:
            return pools[slot].submit(_attempt, job, config, run, device)
        except (KeyError, BrokenProcessPool):
            pools[slot] = ProcessPoolExecutor(1, initializer=_start_worker, initargs=(os.getpid(),), env=env)
            return pools[slot].submit(_attempt, job, config, run, device)

    busy = True
    try:
        yield submit
        busy = False
    finally:
        for pool in pools.values():
            pool.shutdown(wait=busy, kill_workers=busy)


def _start_worker(parent: int) -> None:
    """Prepare a process for jobs: its progress bars have a lock of its own, as a shared one would outlive it."""
    tqdm.set_lock(threading.RLock())
    _end_with(parent)


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed, which could not end it."""
    if os.getppid() != parent:
        os._exit(1)
    timer = threading.Timer(1, _end_with, [parent])
    timer.daemon = True
    timer.start()


def _on_cluster(config: BenchConfig) -> Iterator[Submit]:
    """The machines of a Ray cluster, or this one alone where no address is given."""
    try:
        import ray  # an optional dependency
    except ImportError as error:
        raise SegaeError("engine must be local without the package ray (pip install 'segae[ray]'), got ray") from error
    device, threads, ours = config.devices[0], config.trainer.threads or 1, not ray.is_initialized()
    address = config.address or "local"
    env = {"PYTHONWARNINGS": "ignore", "SEGAE_CACHE": str(cache_dir().absolute())}  # workers start in another folder
    how: dict[str, Any] = {"runtime_env": {"env_vars": env}, "log_to_driver": False, "logging_level": "warning"}
    how |= {} if config.address else {"num_cpus": (config.jobs or 1) * threads, "include_dashboard": False}
    try:
        if ":" in address:  # Ray itself would try for five minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address, ignore_reinit_error=True, **how)
    except Exception as error:  # of many kinds
        raise SegaeError(f"address must be that of a running Ray cluster, got {address}: {error}") from error
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(device != "cpu" and any("GPU" in one for one in machines))
    cores = max(one.get("CPU", 1) for one in machines if one.get("GPU", 0) >= gpus)  # for more it would wait for ever
    needs = {"num_cpus": min(threads, cores), "num_gpus": gpus, "max_retries": 0}
    try:
        attempt = ray.remote(_attempt).options(**needs)
        yield lambda _, job, config, run: attempt.remote(job, config, run, device).future()
    finally:
        if ours:
            ray.shutdown()


def run_folder(config: BenchConfig, run: Run, *, pretraining: bool = False) -> Path:
    """Run folder of a fine-tuning, or of the pretraining that it needs; the name ends with its id."""
    if pretraining:
        return Path(config.out) / f"pretrain-{(run.pretrain or {})['method'].name}-{run.pretrain_id}"
    variant = re.sub(r"[^A-Za-z0-9]+", "-", Path(run.variant).name).strip("-")[:60]
    return Path(config.out) / f"{config.split}-{variant}-{run.run_id}"


def log_file(folder: Path) -> Path:
    """Where the output of a run goes that has this folder."""
    return folder.parent / "logs" / f"{folder.name}.log"


def _pretrain(config: BenchConfig, run: Run, folder: Path, device: str) -> Outcome:
    """Do the pretraining that a run needs."""
    settings = dict(run.pretrain or {})
    trainer = replace(config.trainer, device=device, seed=settings.pop("seed"))
    if read_metrics(folder) is None:  # another shard may have done it meanwhile
        pretrain(**settings, out=folder, trainer=trainer, save_top_k=0, resume=True)
    return Outcome()


def _finetune(config: BenchConfig, run: Run, folder: Path, device: str) -> Outcome:
    """Do one fine-tuning and score it once."""
    pretraining, weights, test = {}, run.weights, config.split == "test"
    if run.pretrain is not None:
        source = run_folder(config, run, pretraining=True)
        pretraining, weights = read_metrics(source) or {}, str(source / "encoder.safetensors")
    trainer = replace(config.trainer, device=device, seed=run.seed)
    validation = folder / "validation.json"
    if read_metrics(folder) is None or not (test or validation.exists()):
        how: dict[str, Any] = {"out": folder, "trainer": trainer, "save_top_k": 0, "resume": True}
        scores = finetune(str(config.data), **run.finetune, weights=weights, **how).scores
        if not test:
            if scores is None:
                raise SegaeError("split must be test where there are no validation images, got val")
            write_json(validation, scores.as_row())
    values = read_json(validation) or {}
    if test:
        how = {"out": folder / "test", "device": device, "threads": trainer.threads, "overwrite": True}
        how |= config.reading
        found: Any = evaluate(folder / "model.safetensors", str(config.data), **how)  # of a segmenter
        values = {**found.as_row(), "miou_without_border": _without_border(found)}
    row = make_row(read_metrics(folder) or {}, values, pretraining)
    row |= {"experiment": config.experiment, "split": config.split, "run_id": run.run_id}
    return Outcome(row, collect_details(folder, row) if test else {})


def _attempt(job: Job, config: BenchConfig, run: Run, device: str) -> Outcome:
    """Do a job under a lock, with its output in a log file; failures become an outcome."""
    started = time.perf_counter()
    folder = run_folder(config, run, pretraining=job is _pretrain)
    log = log_file(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        # another shard, or what a killed benchmark left running, may be at it
        with FileLock(folder.parent / f".{folder.name}.lock"), _output_to(log):
            return replace(job(config, run, folder, device), seconds=time.perf_counter() - started)
    except SegaeError as error:
        return Outcome(failure=str(error))
    except Exception as error:
        with log.open("a") as file:
            file.write(traceback.format_exc())
        if is_out_of_memory(error):
            return Outcome(failure=f"the memory is full ({error}): use fewer jobs, or a smaller batch_size")
        return Outcome(failure=f"unexpected {type(error).__name__}: {error}", ours=True)


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Send prints, warnings and log messages of this process to a file."""
    handler = logging.FileHandler(log)
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        with log.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        handler.close()


def make_row(run: Mapping[str, Any], scores: Mapping[str, Any], pretraining: Mapping[str, Any]) -> dict[str, Any]:
    """Make a result row from a run's metrics.json, its scores and its pretraining's metrics.json."""
    row = {name: "" if run.get(name) in (None, {}) else run[name] for name in COLUMNS}
    family = create_method(run["method"]).family if run["method"] in method_names() else ""
    sizes = {name: row[name] for name in ("image_size", "pretrain_image_size")}
    row |= {name: "x".join(map(str, np.atleast_1d(size))) for name, size in sizes.items()}
    row |= {"label_subset": run["split_hash"], "method_family": family, "finetuning": "supervised"}
    usual = {one.name: one.default for one in fields(FinetuneSettings) if one.name not in COLUMNS}
    usual["resize"] = "squash"  # what None means for weights that say nothing else
    changed = {name: run[name] for name, default in usual.items() if run.get(name, default) != default}
    row |= {"finetune_settings": changed or ""}
    return {**row, **{f"pretrain_{name}": pretraining.get(name) for name in ("seconds", "energy_wh")}, **scores}


def _without_border(scores: SegmentationScores) -> float | str:
    """The mIoU of Pets over the pixels whose truth is pet or background; empty for other data."""
    if set(scores.classes) != set(PETS_CLASSES):
        return ""
    kept = [scores.classes.index(name) for name in ("pet", "background")]
    truth = scores.confusion[kept]
    hits = truth[[0, 1], kept]
    return float(np.mean(hits / (truth.sum(1) + truth[:, kept].sum(0) - hits)))


def _write_report(config: BenchConfig, found: pd.DataFrame) -> Path:
    """Write the page of the whole study, or where its earlier rows cannot be compared with these of these alone."""
    rows_csv, page = _rows_csv(config), Path(config.out) / "index.html"
    try:
        return report(rows_csv, out=page, experiment=config.experiment, runs=config.out)
    except SegaeError as error:
        logger.warning("the report is of these runs alone, without earlier ones of the study: %s", error)
        return write_report(found, page, per_image=read_details(rows_csv, config.experiment, "per_image"))


def _conclusion(rows: pd.DataFrame, config: BenchConfig, page: Path | None) -> str:
    """Three lines: what to start from and how much it brings, where the report is, what to type next."""
    section = compare_rows(rows, read_details(_rows_csv(config), config.experiment, "per_image"))[0]
    first = f"{verdict(section)} {largest_gain(section)}".strip()
    where = f"Report: {page.as_uri()}" if page else f"Rows: {_rows_csv(config)}"
    why, command = next_steps(section)[0]
    return "\n".join([first, where, f"Next: {command or why}"])


def _explain(failed: Mapping[str, Outcome], runs: int, logs: Path) -> str:
    lines = "\n".join(f"  {name}: {outcome.failure}" for name, outcome in list(failed.items())[:3])
    more = f" (and {len(failed) - 3} more)" if len(failed) > 3 else ""
    ours = " An unexpected error is a fault of segae; please report it." if any(o.ours for o in failed.values()) else ""
    return f"{len(failed)} of {runs} runs failed{more}:\n{lines}\nLogs: {logs}.{ours} Repeat to try these again"
