"""Which start is better for these images and this many labels, and by how much: a grid of runs, and what it says."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segae.bench.presets import PRESETS, Acceptance
from segae.errors import SegaeError

if TYPE_CHECKING:
    from segae.bench.files import BenchFiles
    from segae.bench.grid import Cell
    from segae.bench.jobs import Job, Outcome


@dataclass(frozen=True)
class Bench:
    """Compare inits over label budgets, encoders, decoders, schedules and seeds, and make a page of the result.

    A finished run is not repeated: the same command goes on after an interruption, in whatever state it was left.
    What is left out is the preset's value; without a preset: random, imagenet, ae and imagenet+ae at 10, 30, 100 %
    of the labels, 1 + 3 epochs, three seeds.
    """

    data: Path | None = None
    """A data set: the official Oxford-IIIT Pets layout, or a folder with images/ and masks/."""
    preset: Literal["own", "quick", "sample", "full", "smp"] = "own"
    """own: your --data. quick: drawn pets, minutes on two CPU cores. sample: --data of a few hundred images, hours on
    two cores. full: Oxford-IIIT Pets, a day or more on a GPU. smp: a published protocol of segmentation_models.pytorch
    on the same images, to see whether we agree with it. Without --data, full and smp download them to data/pets."""
    unlabelled: tuple[Path, ...] = ()
    """Further folders of images for pretraining."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their mask values; not needed for Pets or when the folder has a classes.txt."""
    merge: tuple[str, ...] | None = None
    """Classes to be taken as one, such as foreground=pet+border."""
    out: Path = Path("runs/bench")
    """Folder for the runs, one file for each finished one, the tables and the page."""
    rows: Path | None = None
    """CSV file that the rows are added to; none writes <experiment>.csv in the run folder. Tables named after the
    experiment stand beside it."""
    experiment: str = "bench"
    """Name of the study in the rows."""
    arms: tuple[str, ...] | None = None
    """random, imagenet, ae:<objective>, imagenet+ae:<objective>; +decoder behind the last two transfers the decoder
    too; @frozen, @linear (one layer on frozen features) or @long (four times the full epochs) behind any."""
    encoders: tuple[str, ...] | None = None
    """Names of convolutional networks in timm."""
    decoders: tuple[str, ...] | None = None
    """Decoders of segmentation-models-pytorch, or linear."""
    budgets: tuple[str, ...] | None = None
    """Labelled training images, as numbers or shares: 30, 10%. Below 100% an epoch is as many images as the whole
    training split has, drawn with repetition, so that every budget gets the same number of steps."""
    schedules: tuple[str, ...] | None = None
    """Frozen + full epochs: 1+3."""
    seeds: tuple[int, ...] | None = None
    """Each cell is run once with each seed; three or more for an interval that can be trusted."""
    image_size: int | None = None
    """Side of the square input in pixels while fine-tuning."""
    batch_size: int | None = None
    """Images per fine-tuning step."""
    tune: tuple[str, ...] = ()
    """Settings to choose on validation images, the same candidates for every arm: lr=0.002,0.004 lr_ratio=1,0.1. Tried
    with the largest budget and the first schedule, for all. None takes, for each kind of init, what was best on the Pet
    sample (docs/training.md)."""
    tune_seeds: tuple[int, ...] = (0,)
    """Seeds of the search: each candidate is tried with each of them, and the best mean is taken."""
    pretrain_config: Path | None = None
    """Settings of the pretraining: a JSON file such as recipes/pretrain_gpu.json. What is given below wins over it."""
    pretrain_image_size: int | None = None
    """Side of the square input while pretraining."""
    pretrain_epochs: int | None = None
    """Epochs of the pretraining."""
    pretrain_batch_size: int | None = None
    """Images per pretraining step."""
    pretrain_lr: float | None = None
    """Peak learning rate of the pretraining."""
    pretrain_decoder: str | None = None
    """Decoder of the pretraining; where it is transferred it is the segmenter's."""
    pretrain_seed: int | None = None
    """One pretraining, with this seed, for all seeds; none pretrains anew for each."""
    allow_near_duplicates: bool = False
    """Go on where more than 2 % of the test images look like training images; equal images are never let through."""
    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: a Ray cluster, whose machines see the same folders."""
    jobs: int | None = None
    """Runs at once; none takes one for each device."""
    devices: tuple[str, ...] = ("auto",)
    """Where they compute, in turn: cuda:0 cuda:1."""
    threads: int | None = None
    """CPU threads of each; none shares the cores out."""
    address: str | None = None
    """Address of a running Ray cluster, such as auto; none starts one of this machine."""
    estimate: bool = True
    """Say how long it will take before it starts, from about ten seconds of each kind of run; the quick one starts."""
    page: bool = True
    """Make the page at the end; segae report makes it again."""


def run(config: Bench) -> list[dict[str, str]]:
    """Run every cell that has no row yet, and put rows, tables and page together.

    Returns:
        The rows of exactly these cells.

    Raises:
        SegaeError: a setting is not possible, a test image is among the training images, or runs failed; what
            finished is kept, and the same command tries the others again.
    """
    from segae.bench.files import BenchFiles
    from segae.bench.guards import require_sound_rows
    from segae.bench.planning import cells_of, grids_of, in_place, jobs_of, refuse_leaks, with_data
    from segae.bench.report import write_report
    from segae.data.open import open_dataset
    from segae.tasks.rows import summary_table

    jobs_of(config)  # before anything is downloaded
    config = in_place(with_data(config))
    base, grids = grids_of(config)
    data = open_dataset(base.data, base.classes, base.merge)
    cells = cells_of(base, grids, len(data.splits["train"]))
    near = refuse_leaks(data, cells, allow_near=config.allow_near_duplicates)
    files = BenchFiles(config.out / "cells", rows_of(config), config.experiment)
    files.old_rows()  # a file that cannot be added to is told before anything is trained
    files.note_near_duplicates(data.name, len(data.splits["test"]), near)
    if config.tune:
        cells = _tuned(config, cells)
    rows, failed = _run_all(config, cells, files)
    if rows:
        require_sound_rows(rows)
        print(f"\n{summary_table(rows)}\n\nrows in {files.rows}")
        if (accept := PRESETS[config.preset].accept) is not None:
            print(verdict(accept, rows, len(data.splits["test"])))
        if config.page:
            page = config.out / "index.html"
            shown: dict[str, Any] = {
                "data": base.data,
                "classes": base.classes,
                "merge": base.merge,
                "runs": config.out,
            }
            try:
                write_report(files.rows, page, experiment=config.experiment, **shown)
            except SegaeError as error:  # earlier runs of the study that were made with other settings
                own = {row["settings"] for row in rows}
                write_report(files.rows, page, experiment=config.experiment, settings=own, **shown)
                print(f"The page is of these runs alone, without the study's earlier ones: {error}")
            print(f"open {page.resolve().as_uri()}")
    if failed:
        raise SegaeError(_what_failed(cells, failed, config.out / "logs"))
    return rows


def verdict(accept: Acceptance, rows: Sequence[Mapping[str, str]], test_images: int) -> str:
    """Whether the rows agree with a published result, in a sentence."""
    scores = [float(row[accept.column]) for row in rows if row["init"] == "imagenet" and row.get(accept.column)]
    if test_images != accept.test_images or not scores:
        return (
            f"Published ({accept.source}) on {accept.test_images} test images from ImageNet weights; here are "
            f"{test_images} and {len(scores)} such runs, so nothing follows from a comparison."
        )
    mean, (low, high) = statistics.fmean(scores), accept.interval(len(scores))
    agrees = "agrees with" if low <= mean <= high else "does not agree with"
    return (
        f"{accept.column} {mean:.4f} over {len(scores)} runs {agrees} what was published ({accept.source}): between "
        f"{low:.4f} and {high:.4f} is wanted. {accept.differences}"
    )


def rows_of(config: Bench) -> Path:
    """The CSV file of the benchmark's rows."""
    return config.rows or config.out / f"{config.experiment}.csv"


def _tuned(config: Bench, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the settings that validation images choose for each arm."""
    from segae.bench.files import BenchFiles
    from segae.bench.tuning import Tuning, read_candidates

    tuning = Tuning(read_candidates(config.tune), config.tune_seeds)
    trials = tuning.cells(cells)
    print(f"{len(trials)} validation runs choose the settings of {len({cell.arm for cell in cells})} arms")
    experiment = trials[0].config.experiment
    files = BenchFiles(config.out / "cells", rows_of(config).with_name(f"{experiment}.csv"), experiment)
    rows, failed = _run_all(config, trials, files)
    if failed:
        raise SegaeError(_what_failed(trials, failed, config.out / "logs"))
    chosen = tuning.chosen(cells, rows)
    for place, values in chosen.items():
        print(f"{', '.join(place)}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    return tuning.settle(cells, chosen)


def _run_all(
    config: Bench, cells: Sequence[Cell], files: BenchFiles
) -> tuple[list[dict[str, str]], dict[str, Outcome]]:
    """Run what is missing; the rows of all that is finished, and what failed."""
    from segae.bench.engine import make_engine
    from segae.bench.estimate import tell_estimate
    from segae.bench.planning import jobs_of
    from segae.bench.scheduling import run_cells

    missing = files.missing(cells)
    print(f"{len(cells)} runs, {len(cells) - len(missing)} of them finished already")
    if missing and config.estimate and config.preset != "quick":
        tell_estimate(config, missing)
    done = len(cells) - len(missing)

    def ended(job: Job, outcome: Outcome) -> None:
        nonlocal done
        if outcome.failure:
            print(f"failed: {job.name}: {outcome.failure}", flush=True)
        elif job.pretraining:
            print(f"done: {job.name}", flush=True)
        else:
            files.keep(job.cell, outcome)
            done += 1
            print(f"{done} of {len(cells)}: {job.name}: mIoU {outcome.row['miou']:.3f}", flush=True)

    failed: dict[str, Outcome] = {}
    try:
        if missing:
            engine = make_engine(
                config.engine,
                jobs=jobs_of(config),
                devices=config.devices,
                threads=config.threads,
                address=config.address,
            )
            failed = run_cells(missing, engine, config.out / "logs", ended)
    finally:
        rows = files.assemble(cells)
    return rows, failed


def _what_failed(cells: Sequence[Cell], failed: Mapping[str, Outcome], logs: Path) -> str:
    shown = [f"{cell.name}: {failed[cell.settings].failure}" for cell in cells if cell.settings in failed]
    more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""
    ours = "An unexpected error is a fault of segae; please report it. " if any(o.ours for o in failed.values()) else ""
    return (
        f"{len(failed)} of {len(cells)} runs failed{more}:\n" + "\n".join(f"  {line}" for line in shown[:3]) + "\n"
        f"{f'What the processes printed is in {logs}. ' if logs.is_dir() else ''}{ours}The other runs are kept; repeat "
        "the command to try these again."
    )
