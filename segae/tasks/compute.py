"""How a training computes: how much at once, what is kept, what is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from segae.errors import SegaeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from segae.objectives.presets import Objective
    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment

_Task = TypeVar("_Task", "Pretrain", "Segment")


def loader_batch(config: Pretrain | Segment) -> int:
    """Images of a loader's batch: ``micro_batch``, or all of an optimizer step.

    Raises:
        SegaeError: the step is no multiple of it.
    """
    if config.micro_batch is None:
        return config.batch_size
    if config.micro_batch < 1 or config.batch_size % config.micro_batch:
        raise SegaeError(
            f"micro_batch is {config.micro_batch} and batch_size {config.batch_size}; a divisor of the batch size is "
            f"wanted, for example --micro-batch {max(config.batch_size // 2, 1)}."
        )
    return config.micro_batch


def set_up(model: nn.Module, config: Pretrain | Segment, *, dense: bool = True) -> None:
    """Switch on what was asked for; ``dense`` says that no hooks work inside the encoder.

    Raises:
        SegaeError: activation checkpointing with an encoder that hides pixels inside.
    """
    if config.activation_checkpointing:
        from segae.models.recompute import recompute_activations

        if not dense:
            raise SegaeError(
                "activation_checkpointing computes the encoder a second time, and this objective hides pixels inside "
                "it only the first time. Leave it out, or use --objective mask, denoise or mixture."
            )
        recompute_activations(model)
    if config.compile:
        model.compile()  # in place: names and files stay as they are


def pretraining_of_items(
    config: Pretrain,
    items: tuple[Any, Any],
    model: nn.Module,
    objective: Objective,
    device: torch.device,
    *,
    train_indices: Sequence[int] | None = None,
    probe: Callable[[nn.Module], float] | None = None,
) -> Any:
    """The Learner of a resolved pretraining; ``items`` are those to train on and those to validate on."""
    from segae.training.learner import pretraining_learner
    from segae.training.loaders import make_loaders

    loading = _loading(config, device, items[0])

    def make(batch: int) -> Any:
        loading["accumulate"] = steps = config.batch_size // max(batch, 1)  # of 0 the loaders complain
        return pretraining_learner(
            make_loaders(*items, batch_size=batch, train_indices=train_indices, **loading),
            model,
            objective,
            weight_decay=config.weight_decay,
            precision=config.precision,
            seed=config.seed,
            bn_mode=config.bn_mode,
            distance_penalty=config.distance_penalty,
            hard_mask_share=config.hard_mask_share,
            skip_dropout=config.skip_dropout or 0.0,
            patience=config.patience,
            probe=probe,
            probe_every=config.probe_every,
            accumulate=steps,
        )

    return _that_fits(make, config, device, (config.image_size, None))


def segmentation_of_items(
    config: Segment, items: tuple[Any, Any], model: nn.Module, classes: int, size: int, device: torch.device
) -> Any:
    """The Learner of a resolved segmentation; ``items`` are those to train on and those to validate on."""
    from segae.training.learner import segmentation_learner
    from segae.training.loaders import make_loaders

    loading = _loading(config, device, items[0])

    def make(batch: int) -> Any:
        loading["accumulate"] = steps = config.batch_size // max(batch, 1)  # of 0 the loaders complain
        return segmentation_learner(
            make_loaders(*items, batch_size=batch, epoch_images=config.epoch_images, **loading),
            model,
            classes=classes,
            loss=config.loss,
            bn_mode=str(config.bn_mode),
            precision=config.precision,
            seed=config.seed,
            accumulate=steps,
        )

    return _that_fits(make, config, device, (size, classes))


def as_computed(config: _Task, learner: Any, data_path: str) -> _Task:
    """The configuration with the precision, images at once, workers and data path that a training came to."""
    halved = hasattr(learner, "bfloat16_autocast")
    batches = learner.accumulate.batches if hasattr(learner, "accumulate") else 1
    outcome: dict[str, Any] = {"precision": "bfloat16" if halved else "float32", "data_path": data_path}
    workers = learner.dls.train.num_workers
    return replace(config, micro_batch=config.batch_size // batches, workers=workers, **outcome)


def as_recorded(config: Pretrain, learner: Any) -> Pretrain:
    """The configuration for the run folder: with the number of workers where it decides the order, as of a stream."""
    return replace(config, workers=learner.dls.train.num_workers) if _is_stream(learner.dls.train.dataset) else config


def _loading(config: Pretrain | Segment, device: torch.device, train: Any) -> dict[str, Any]:
    workers = config.workers
    if workers is None and config.resume and _is_stream(train):
        from segae.training.distributed import once
        from segae.training.run import read_config
        from segae.training.workers import shards_of_process

        before = once(lambda: (read_config(config.out / "config.json") or {}).get("workers"))
        workers = None if before is None else min(before, shards_of_process(train))
    return {"device": device, "workers": workers, "seed": config.seed}


def _is_stream(data: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(data, IterableDataset)


def _that_fits(
    make: Callable[[int], Any], config: Pretrain | Segment, device: torch.device, sample: tuple[int, int | None]
) -> Any:
    """A Learner whose batch the device has the memory for; only a CUDA device says that its memory is full."""
    wanted = loader_batch(config)
    learner = make(wanted)
    if device.type != "cuda" or config.micro_batch is not None:
        return learner
    from segae.training.distributed import gathered, this_place
    from segae.training.micro_batches import largest_that_fits
    from segae.training.trial_step import trial_step

    world = this_place().world  # each process has its share of a batch, and all must agree on one size
    found = min(gathered(largest_that_fits(wanted // world, lambda count: trial_step(learner, count, *sample)))) * world
    if found == wanted:
        return learner
    print(f"{wanted} images do not fit into the device's memory at once: {found} at a time")
    return make(found)
