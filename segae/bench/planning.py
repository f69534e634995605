"""What a benchmark will run: its data, its grids, and how long they will take."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from segae.bench.benchmark import Bench
from segae.bench.grid import Cell, make_cells, unique
from segae.bench.guards import require_no_leak
from segae.bench.presets import DIMENSIONS, PRESETS
from segae.data.dataset import SegmentationData
from segae.data.pretraining import find_pretraining_images
from segae.errors import SegaeError
from segae.tasks.arms import own_settings, parse_arm, pretraining_of
from segae.tasks.compare import Compare
from segae.tasks.plan import Plan
from segae.tasks.plan import run as plan


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
            from segae.tasks.data import DataPets, run_pets

            config = replace(config, data=run_pets(DataPets()))
        else:
            raise SegaeError(
                f"the preset {config.preset} needs images; give --data FOLDER, or see the command at work on drawn "
                "pets: segae bench --preset quick."
            )
    assert config.data is not None
    own = config.data / "unlabelled"
    return replace(config, unlabelled=config.unlabelled or ((own,) if own.is_dir() else ()))


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
    known = {field.name for field in fields(Compare)}
    base = Compare(**{name: value for name, value in values.items() if name in known})
    further = () if any(given[name] is not None for name in DIMENSIONS) else preset.also
    return base, [dimensions, *({**dimensions, **grid} for grid in further)]


def cells_of(base: Compare, grids: Sequence[Mapping[str, tuple[str, ...]]], train_images: int) -> list[Cell]:
    """The cells of all grids, each once."""
    cells: list[Cell] = []
    for grid in grids:
        rest = {name: grid[name] for name in ("encoders", "decoders", "budgets", "schedules")}
        cells += make_cells(replace(base, arms=grid["arms"]), train_images, **rest)
    return unique(cells)


def refuse_leaks(data: SegmentationData, cells: Sequence[Cell], *, allow_near: bool) -> None:
    """Look for test images among the training and pretraining images.

    Raises:
        SegaeError: there are some.
    """
    roots = dict.fromkeys((cell.config.data, *cell.config.unlabelled) for cell in cells if cell.pretraining is not None)
    unlabelled = {path for found in roots for path in find_pretraining_images(found)}
    require_no_leak(data.splits["train"], data.splits["test"], sorted(unlabelled), allow_near=allow_near)


def estimate(cells: Sequence[Cell], device: str) -> tuple[float, int]:
    """(seconds of all cells one after the other with the pretrainings they miss, number of those pretrainings).

    About ten seconds of each kind of run are tried out on this device.
    """
    from segae.training.run import DONE_FILE

    runs: dict[tuple[Any, ...], float] = {}
    total, pretrainings = 0.0, set()
    for cell in cells:
        tried = own_settings(cell.config, parse_arm(cell.arm))
        kind = (tried.encoder, tried.decoder, tried.freeze_epochs, tried.epochs)
        if kind not in runs:
            runs[kind] = _seconds(
                kind="segment",
                data=(tried.data,),
                classes=tried.classes,
                encoder=tried.encoder,
                decoder=tried.decoder,
                image_size=tried.image_size,
                batch_size=tried.batch_size,
                freeze_epochs=tried.freeze_epochs,
                epochs=tried.epochs,
                val_fraction=0.0,
                device=device,
            )
        total += runs[kind]
        if cell.pretraining and cell.pretraining not in pretrainings and not (cell.pretraining / DONE_FILE).exists():
            pretrainings.add(cell.pretraining)
            how = (cell.config.encoder, cell.arm.partition("@")[0])
            if how not in runs:
                wanted = pretraining_of(cell.config, parse_arm(cell.arm), cell.seed)
                runs[how] = _seconds(
                    kind="pretrain",
                    data=wanted.data,
                    encoder=wanted.encoder,
                    decoder=wanted.decoder,
                    objective=wanted.objective,
                    image_size=wanted.image_size,
                    batch_size=wanted.batch_size,
                    epochs=wanted.epochs,
                    repeats=wanted.repeats,
                    device=device,
                )
            total += runs[how]
    return total, len(pretrainings)


def _seconds(**planned: Any) -> float:
    """What ``segae plan`` forecasts, without its table."""
    with contextlib.redirect_stdout(io.StringIO()):
        return plan(Plan(**planned)).total_s
