"""What a benchmark will run: its data, its grids, its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

from segae.bench.benchmark import Bench
from segae.bench.engine import require_some
from segae.bench.grid import Cell, make_cells, unique
from segae.bench.guards import require_no_leak
from segae.bench.presets import DIMENSIONS, PRESETS
from segae.data.dataset import SegmentationData
from segae.data.near_duplicates import Duplicate
from segae.data.pretraining import find_pretraining_images
from segae.errors import SegaeError
from segae.tasks.arms import parse_arm, require_transferable
from segae.tasks.compare import Compare


def with_data(config: Bench) -> Bench:
    """The configuration with a data set: drawn or downloaded where the preset says so and none was given.

    Raises:
        SegaeError: there is none, and the preset brings none.
    """
    if config.data is None:
        if config.preset == "quick":
            from segae.tasks.quickstart import draw

            config = replace(config, data=draw(config.out / "drawn-pets", seed=0))
        elif config.preset in ("full", "smp"):
            from segae.bench.estimate import told_before_download
            from segae.tasks.data import DataPets, run_pets

            pets = DataPets()
            config = told_before_download(config, pets.root)
            config = replace(config, data=run_pets(pets))
        else:
            raise SegaeError(
                f"the preset {config.preset} needs images; give --data FOLDER, or see the command at work on drawn "
                "pets: segae bench --preset quick."
            )
    assert config.data is not None
    own = config.data / "unlabelled"
    return replace(config, unlabelled=config.unlabelled or ((own,) if own.is_dir() else ()))


def in_place(config: Bench) -> Bench:
    """The configuration with absolute paths: a worker on another machine starts in another folder.

    The images of a pretraining count in the order of their paths. Where relative folders stand beside absolute ones
    that order may become another one; on this machine they then stay as typed, so that earlier runs are found.
    """
    assert config.data is not None
    roots = (config.data, *config.unlabelled)
    there = tuple(root.absolute() for root in roots)
    if config.engine == "ray" or _order(roots) == _order(there):
        config = replace(config, data=there[0], unlabelled=there[1:])
    named = {name: path.absolute() for name in ("out", "rows", "pretrain_config") if (path := getattr(config, name))}
    return replace(config, **named)


def _order(roots: Sequence[Path]) -> tuple[list[int], list[bool]]:
    """In which order the folders come, and which of them lie within which."""
    numbers = range(len(roots))
    within = [roots[one].is_relative_to(roots[other]) for one in numbers for other in numbers]
    return sorted(numbers, key=lambda number: roots[number]), within


def grids_of(config: Bench) -> tuple[Compare, list[dict[str, tuple[str, ...]]]]:
    """What all runs share, and the dimensions of each grid.

    The preset's further grids are run only where no dimension was given by hand.
    """
    preset = PRESETS[config.preset]
    from_file = {name for name in preset.settings if name.startswith("pretrain_")} if config.pretrain_config else set()
    values = {name: value for name, value in preset.settings.items() if name not in from_file}
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    values |= {name: value for name, value in given.items() if value is not None}
    dimensions = {name: tuple(values[name]) for name in DIMENSIONS}
    if config.arms is None and "linear" in dimensions["decoders"]:  # which has nothing to take along
        dimensions["arms"] = tuple(arm.removesuffix("+decoder") for arm in dimensions["arms"])
    known = {field.name for field in fields(Compare)}
    base = Compare(**{name: value for name, value in values.items() if name in known})
    further = () if any(given[name] is not None for name in DIMENSIONS) else preset.also
    return base, [dimensions, *({**dimensions, **grid} for grid in further)]


def cells_of(base: Compare, grids: Sequence[Mapping[str, tuple[str, ...]]], train_images: int) -> list[Cell]:
    """The cells of all grids, each once.

    Raises:
        SegaeError: an arm takes along a decoder that no pretraining trains.
    """
    cells: list[Cell] = []
    for grid in grids:
        for arm, decoder in product(grid["arms"], grid["decoders"]):
            require_transferable(parse_arm(arm).transfer, decoder)
        rest = {name: grid[name] for name in ("encoders", "decoders", "budgets", "schedules")}
        cells += make_cells(replace(base, arms=grid["arms"]), train_images, **rest)
    return unique(cells)


def jobs_of(config: Bench) -> int:
    """Runs at once.

    Raises:
        SegaeError: the number, or that of threads, is below 1.
    """
    jobs = len(config.devices) if config.jobs is None else config.jobs
    require_some(jobs, config.threads)
    return jobs


def refuse_leaks(data: SegmentationData, cells: Sequence[Cell], *, allow_near: bool) -> list[Duplicate]:
    """Look for test images among the training and pretraining images.

    Returns:
        The near-duplicates that were let through.

    Raises:
        SegaeError: there are some.
    """
    roots = dict.fromkeys((cell.config.data, *cell.config.unlabelled) for cell in cells if cell.pretraining is not None)
    unlabelled = {path for found in roots for path in find_pretraining_images(found)}
    return require_no_leak(data.splits["train"], data.splits["test"], sorted(unlabelled), allow_near=allow_near)
