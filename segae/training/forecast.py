"""What a training will cost, from what a few seconds of it cost here. Arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segae.errors import SegaeError


@dataclass(frozen=True)
class PhasePace:
    """What one phase costs.

    Attributes:
        name: as in the log.
        epochs: how many the phase has.
        seconds_per_image: of training, once it runs.
        warm_up_s: what the first steps take longer than later ones.
    """

    name: str
    epochs: int
    seconds_per_image: float
    warm_up_s: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """What was measured on this device.

    Attributes:
        phases: in their order.
        validation_s_per_image: 0 where there are no validation images.
        between_s: seconds of an epoch that are neither training nor validation: its files, its checks.
        start_s: from the command to the first step, without decoding.
        decode_s_per_image: to read, decode and resize a file, all threads together.
        finish_s: from the last epoch to the end of the process.
        peak_memory_mb: as ``segae.training.cost`` measures it, with ``sample_images`` images.
        bytes_per_image: by which the peak grows with each further image.
        sample_images: that the measurement held.
        watts: mean power while training; None where the device reports none.
        power_source: what reported it, or why nothing did.
        pictures_s: to draw what is drawn now and then while it trains.
        pictures_every_s: after an epoch, if so many seconds have passed since the last ones.
    """

    phases: tuple[PhasePace, ...]
    validation_s_per_image: float
    between_s: float
    start_s: float
    decode_s_per_image: float
    finish_s: float
    peak_memory_mb: float
    bytes_per_image: int
    sample_images: int
    watts: float | None
    power_source: str
    pictures_s: float = 0.0
    pictures_every_s: float = math.inf


@dataclass(frozen=True)
class Workload:
    """How much there is to do.

    Attributes:
        train_images: that a training epoch goes through.
        valid_images: that a validation goes through.
        files: to decode, and to hold.
        extra_passes: images that are looked at once more, without training, beside the epochs.
    """

    train_images: int
    valid_images: int
    files: int
    extra_passes: int = 0


@dataclass(frozen=True)
class Forecast:
    """What the training is expected to cost.

    Attributes:
        training_s: the sum of the log's column ``seconds``.
        validation_s: of all epochs.
        between_s: log, checkpoint, checks and pictures of all epochs.
        start_s: until the first step.
        decode_s: the first time that these files are used at this size; later runs find them in the cache.
        finish_s: weights, pictures and statistics at the end, and the end of the process.
        images_per_second: of training, over all epochs.
        peak_memory_mb: in 10^6 bytes.
        energy_wh: at the mean power of training; None where the device reports none.
    """

    training_s: float
    validation_s: float
    between_s: float
    start_s: float
    decode_s: float
    finish_s: float
    images_per_second: float
    peak_memory_mb: float
    energy_wh: float | None

    @property
    def total_s(self) -> float:
        """From the command to its end, with everything decoded anew."""
        return self.training_s + self.validation_s + self.between_s + self.start_s + self.decode_s + self.finish_s

    @property
    def training_energy_wh(self) -> float | None:
        """The part of ``training_s``: the sum of the log's column ``energy_wh``."""
        return None if self.energy_wh is None else self.energy_wh * self.training_s / self.total_s


def make_forecast(calibration: Calibration, workload: Workload) -> Forecast:
    """Scale a calibration up.

    Raises:
        SegaeError: there is no epoch or no training image.
    """
    epochs = sum(phase.epochs for phase in calibration.phases)
    if not epochs or workload.train_images < 1:
        raise SegaeError(
            f"{epochs} epochs of {workload.train_images} images are no training; wanted 1 or more of both, for example "
            "--epochs 3 --images 1000."
        )
    training_s = sum(
        phase.epochs * workload.train_images * phase.seconds_per_image + phase.warm_up_s for phase in calibration.phases
    )
    looked_at = epochs * workload.valid_images
    # a forward pass; without a validation to measure it on, the third of a step that it is about
    look_s = calibration.validation_s_per_image or min(phase.seconds_per_image for phase in calibration.phases) / 3
    validation_s = looked_at * calibration.validation_s_per_image
    between_s = epochs * calibration.between_s
    drawn = min(math.floor((training_s + validation_s + between_s) / calibration.pictures_every_s), epochs)
    further = max(workload.files - calibration.sample_images, 0)
    parts = {
        "training_s": training_s,
        "validation_s": validation_s,
        "between_s": between_s + drawn * calibration.pictures_s,
        "start_s": calibration.start_s,
        "decode_s": workload.files * calibration.decode_s_per_image,
        "finish_s": calibration.finish_s + workload.extra_passes * look_s,
    }
    watts = calibration.watts
    return Forecast(
        **parts,
        images_per_second=epochs * workload.train_images / max(training_s, 1e-9),
        peak_memory_mb=calibration.peak_memory_mb + further * calibration.bytes_per_image / 1e6,
        energy_wh=None if watts is None else watts * sum(parts.values()) / 3600,
    )


def as_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lines of label, value and remark; the values end in the same column."""
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{label:<{first}}  {value:>{second}}  {remark}".rstrip() for label, value, remark in rows)


def in_words(seconds: float) -> str:
    """A duration that can be read at a glance.

    Example:
        >>> in_words(3725)
        '1 h 02 min'
    """
    if math.isnan(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
