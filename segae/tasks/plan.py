"""Say what a training will cost on this device before it is started, from a few seconds of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segae.errors import SegaeError

if TYPE_CHECKING:
    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment
    from segae.tasks.trial import Sample
    from segae.training.forecast import Calibration, Forecast


@dataclass(frozen=True)
class Plan:
    """Say what a training will cost on this device: time, memory and energy, from about ten seconds of the real thing.

    Trains in a temporary folder on a sample of the images; nothing is kept but --json. A setting that is left out is
    that of segae segment or segae pretrain.
    """

    kind: Literal["segment", "pretrain"] = "segment"
    """Which command is planned."""
    data: tuple[Path, ...] = ()
    """As of that command. Left out, drawn pictures stand in; then name the number of --images."""
    images: int | None = None
    """Images to train and validate on; none counts those of the data set."""
    encoder: str | None = None
    """Name of any convolutional network in timm."""
    init: str | None = None
    """random, imagenet, the path of an encoder.safetensors, or a published encoder's name."""
    decoder: str | None = None
    """As of that command."""
    objective: str | None = None
    """pretrain: the objective."""
    image_size: int | None = None
    """Side of the square input in pixels."""
    batch_size: int | None = None
    """Images per optimizer step."""
    freeze_epochs: int | None = None
    """Epochs with the encoder frozen."""
    epochs: int | None = None
    """Epochs after that."""
    repeats: int | None = None
    """pretrain: passes over the images in an epoch."""
    labels: int | None = None
    """segment: number of labelled images to use."""
    classes: tuple[str, ...] = ()
    """segment: class names, where the folder has no classes.txt."""
    val_fraction: float | None = None
    """Share of the images that is kept for validation."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of forward and loss; auto takes bfloat16 on CUDA."""
    workers: int | None = None
    """Processes that prepare images; none takes what that command takes."""
    data_path: Literal["auto", "cache", "device", "live"] = "auto"
    """Where the images are held, or decoded each time (live)."""
    micro_batch: int | None = None
    """Images at once; none takes all, or on CUDA as many as fit."""
    activation_checkpointing: bool = False
    """Less memory, more time."""
    compile: bool = False
    """Compile the model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    seconds: float = 10.0
    """Training to be timed; more is more exact."""
    json: Path | None = None
    """File for everything that was measured and forecast."""


def run(config: Plan) -> Forecast:
    """Calibrate, forecast, print.

    Raises:
        SegaeError: a setting that the planned command does not have or would refuse, or no data and no --images.
    """
    import tempfile
    import time

    started = time.perf_counter()  # the command that is planned loads torch too, which takes seconds
    from segae.tasks.plan_process import start_and_end_of_python
    from segae.tasks.trial import draw_stand_ins, sample_pretraining, sample_segmentation, within
    from segae.training.device import choose_device

    device = choose_device(config.device)
    _check(config)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        planned, place = planned_training(config), Path(folder)
        before_drawing = time.perf_counter()
        drawn = None if config.data else draw_stand_ins(place / "drawn", planned.image_size or 128)
        drawing_s = time.perf_counter() - before_drawing
        make: Any = sample_segmentation if config.kind == "segment" else sample_pretraining
        sample: Sample = make(within(planned, place / "run", drawn), device, config.images, drawn is not None)
        asked = time.perf_counter()
        before_s, after_s = start_and_end_of_python()
        start_s = asked - started - drawing_s - sample.apart_s + before_s
        calibration = _calibrate(sample, device, config.seconds, place / "run", start_s, after_s)
    return _tell(config, planned, calibration, sample, device)


def planned_training(config: Plan) -> Segment | Pretrain:
    """The configuration of the training that is planned; what was left out is the task's own default.

    Raises:
        SegaeError: something was set that the task does not know.
    """
    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment

    kind: Any = {"segment": Segment, "pretrain": Pretrain}[config.kind]
    known = {field.name for field in fields(kind)}
    own = {"kind", "data", "images", "seconds", "json"}
    given = {name: value for name, value in asdict(config).items() if name not in own and value not in (None, ())}
    for name in given:
        if name not in known:
            raise SegaeError(
                f"segae {config.kind} has no setting {name!r}, and it was set to {given[name]!r}. Leave "
                f"--{name.replace('_', '-')} out, or plan the other kind: --kind segment or --kind pretrain."
            )
    data: Any = config.data
    if config.kind == "segment":
        data = config.data[0] if config.data else Path()  # drawn pictures will take its place
    return kind(data=data, **given)


def _check(config: Plan) -> None:
    if not config.data and config.images is None:
        raise SegaeError(
            "there is neither data nor a number of images to plan for. Give --data FOLDER, or --images 1000 to plan "
            "with drawn pictures."
        )
    if config.kind == "segment" and len(config.data) > 1:
        raise SegaeError(f"{len(config.data)} folders were given and segae segment takes one: --data FOLDER.")
    if (config.images is not None and config.images < 2) or config.seconds <= 0:
        raise SegaeError(
            f"{config.images} images and {config.seconds} seconds were asked for; wanted 2 or more and above 0, such "
            "as --images 1000 --seconds 10."
        )


def _calibrate(
    sample: Sample, device: Any, seconds: float, folder: Path, start_s: float, after_s: float
) -> Calibration:
    import contextlib
    import io
    import time

    from segae.tasks.pictures import EVERY_S
    from segae.training.calibration import try_out
    from segae.training.cost import Cost, measured
    from segae.training.forecast import Calibration

    trial = try_out(sample.learner, sample.phases, device, seconds, folder)
    with contextlib.redirect_stdout(io.StringIO()), measured(device) as finish:  # what it says it wrote is not kept
        sample.finish(trial.log, Cost(0.0, trial.peak_memory_mb))
    before = time.perf_counter()
    sample.draw()  # again: the first time loads matplotlib
    pictures_s = time.perf_counter() - before
    on_device = getattr(sample.learner.dls.train.dataset, "device", None) is not None
    return Calibration(
        phases=trial.phases,
        validation_s_per_image=trial.validation_s_per_image,
        between_s=trial.between_s,
        start_s=start_s,
        decode_s_per_image=sample.decode_s_per_image,
        finish_s=finish.seconds + after_s,
        peak_memory_mb=max(trial.peak_memory_mb, finish.peak_memory_mb),
        # on a CPU the mapped cache counts as memory of the process; a GPU holds it only if it was put there
        bytes_per_image=sample.image_bytes if device.type != "cuda" or on_device else 0,
        sample_images=sample.images,
        watts=trial.watts,
        power_source=trial.power_source,
        pictures_s=pictures_s,
        pictures_every_s=EVERY_S,
    )


def _tell(config: Plan, planned: Any, calibration: Calibration, sample: Sample, device: Any) -> Forecast:
    """Print the forecast, and write it where that was asked for."""
    from segae.files import write_json
    from segae.training.forecast import as_table, make_forecast
    from segae.training.provenance import provenance

    forecast = make_forecast(calibration, sample.workload)
    epochs = " + ".join(f"{phase.epochs} ({phase.name})" for phase in calibration.phases)
    work = sample.workload
    print(f"segae {config.kind}: {planned.encoder}, batches of {planned.batch_size}, on {device}")
    print(f"{work.train_images:,} training and {work.valid_images:,} validation images, epochs: {epochs}\n")
    print(as_table(table_of(forecast, calibration, drawn=not config.data)))
    if config.json is not None:
        content = {
            "forecast": {
                **asdict(forecast),
                "total_s": forecast.total_s,
                "training_energy_wh": forecast.training_energy_wh,
            },
            "calibration": asdict(calibration),
            "workload": asdict(work),
            "planned": asdict(planned),
            **provenance(device),
        }
        write_json(config.json, content)
        print(f"\nwrote {config.json}")
    return forecast


def table_of(forecast: Forecast, calibration: Calibration, drawn: bool = False) -> list[tuple[str, str, str]]:
    """What, how much, and what is to be known about it."""
    from segae.training.forecast import in_words

    paces = ", ".join(f"{phase.name} {1 / phase.seconds_per_image:,.1f}" for phase in calibration.phases)
    source = calibration.power_source
    if forecast.energy_wh is None:
        energy = ("energy", "unknown", f"{source}; no number is guessed")
    else:
        energy = ("energy", f"{forecast.energy_wh:,.1f} Wh", f"{calibration.watts:,.0f} W while training ({source})")
    decoding = "drawn pictures stood in: yours may be larger" if drawn else "the first time only"
    return [
        ("time", in_words(forecast.total_s), "from the command to its end"),
        ("  start", in_words(forecast.start_s), "libraries and model"),
        ("  decoding", in_words(forecast.decode_s), decoding),
        ("  training", in_words(forecast.training_s), f"images/s: {paces}"),
        ("  validation", in_words(forecast.validation_s), ""),
        ("  log and checkpoints", in_words(forecast.between_s), "and a picture now and then"),
        ("  finish", in_words(forecast.finish_s), "weights, pictures, statistics, end of the process"),
        ("peak memory", f"{forecast.peak_memory_mb:,.0f} MB", "on a GPU what torch holds there, else the process"),
        energy,
    ]
