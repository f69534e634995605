"""What a pretraining needs before it starts: its images, its model, and the labelled images of its probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segae.errors import SegaeError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from segae.data.quarantine import Quarantine
    from segae.models.encoder import EncoderDescription
    from segae.objectives.presets import Objective
    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment


def objective_of(config: Pretrain) -> Objective:
    """What a configuration asks of the autoencoder.

    Raises:
        SegaeError: a name is unknown, or a value out of range.
    """
    from segae.objectives.catalogue import Values
    from segae.objectives.presets import make_objective

    settings: dict[str, Any] = {name: getattr(config, name) for name in Values.__annotations__}
    return make_objective(config.objective, target=config.target, **settings)


def resolve(config: Pretrain, init: str) -> Pretrain:
    """The configuration with every setting that was left open filled in.

    Args:
        config: what was asked for.
        init: the init as the encoder's description names it.

    Raises:
        SegaeError: the objective is unknown, or has no use for a value that was given.
    """
    from segae.objectives.catalogue import DEFAULTS, learning_rate, require_use

    objective = objective_of(config)
    values = {name: getattr(config, name) for name in DEFAULTS[config.objective]}
    used = require_use(config.objective, config.target, values)
    imagenet = init.startswith("imagenet")
    encoder_lr_ratio = 0.1 if imagenet else 1.0
    if objective.frozen_encoder:
        require_frozen_use(config, objective.decoder, encoder_lr_ratio)
    defaults: dict[str, Any] = {
        **{name: value for name, value in DEFAULTS[config.objective].items() if name in used},
        "decoder": objective.decoder,
        "freeze_epochs": 1 if imagenet and not objective.frozen_encoder else 0,
        "encoder_lr_ratio": encoder_lr_ratio,
        "skip_dropout": 0.0,
        "lr": learning_rate(config.objective),
    }
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


def build_pretrainer(
    config: Pretrain, encoder: nn.Module, description: EncoderDescription, objective: Objective
) -> nn.Module:
    """The model that is pretrained, its size and its objective checked before anything is written."""
    import torch
    from torch import nn

    from segae.models.autoencoder import ImageRange
    from segae.models.encoder import output_stride, require_size
    from segae.models.pretrainer import create_pretrainer
    from segae.models.segmenter import require_decoder_size
    from segae.training.run import seed_everything

    require_size(config.image_size, output_stride(encoder))
    require_decoder_size(str(config.decoder), config.image_size)
    _check_patches(config, objective)
    probe = torch.zeros(2, description.in_channels, config.image_size, config.image_size)
    corrupted = objective.corruption(probe, torch.Generator())  # refuses a patch that hides nothing
    seed_everything(config.seed)  # the decoder's start must not depend on where the encoder's weights came from
    model = create_pretrainer(
        encoder,
        config.encoder,
        image_channels=description.in_channels,
        out_channels=objective.reconstruction.out_channels(description.in_channels),
        masking=objective.masking,
        decoder=config.decoder or objective.decoder,
        upsampling=config.upsampling,
        code_channels=config.code_channels,
    )
    if config.output_activation != "none":
        _require_pixels(config, objective)
        model.head = nn.Sequential(model.head, ImageRange(config.output_activation, description.mean, description.std))
        model.to(next(encoder.parameters()).device)
    was_training = model.training
    with torch.no_grad():
        model.eval()(corrupted.image_bchw, corrupted.hidden_b1hw)  # refuses a patch that the encoder cannot mask
    return model.train(was_training)


def require_start(objective: Objective, description: EncoderDescription) -> None:
    """Refuse random weights where the objective asks the encoder that it starts from."""
    if objective.prepare is not None and description.init == "random":
        raise SegaeError(
            f"objective {objective.name} asks the encoder that it starts from where the objects are, and the init is "
            "random, which has learnt nothing. Use --init imagenet, a file or a published encoder's name, or "
            "--objective layers."
        )


def _check_patches(config: Pretrain, objective: Objective) -> None:
    if objective.masking == "sparse" and config.patch and config.image_size % config.patch:
        raise SegaeError(
            f"the patch is {config.patch} px in images of {config.image_size} px: {config.objective} needs whole "
            f"patches. Use --patch 32, or an image size that is a multiple of {config.patch}."
        )
    if config.upsampling != "nearest" and config.decoder != "plain":
        raise SegaeError(
            f"upsampling is {config.upsampling} with decoder {config.decoder}; only plain has a choice. Leave "
            "--upsampling out, or use --decoder plain."
        )


def require_frozen_use(config: Pretrain, own_decoder: str, encoder_lr_ratio: float) -> None:
    """Refuse settings that do nothing where the encoder rests: a decoder that no file keeps, and how an encoder trains.

    Args:
        config: of an objective that freezes the encoder.
        own_decoder: the objective's own decoder.
        encoder_lr_ratio: what a resolved configuration holds where nothing was asked for.
    """
    from segae.models.segmenter import DECODERS

    decoder = config.decoder or own_decoder
    if decoder not in DECODERS or decoder == "linear":  # here linear is no segmenter's
        segmenters = ", ".join(name for name in DECODERS if name != "linear")
        raise SegaeError(
            f"{config.objective} trains the decoder alone, and the decoder is {decoder}, which no segmenter can "
            f"take over: nothing would be left of the run. Use --decoder {own_decoder}, or another of {segmenters}."
        )
    idle = {"distance_penalty": 0.0, "bn_mode": "train", "encoder_lr_ratio": encoder_lr_ratio}
    for name, value in idle.items():
        if (given := getattr(config, name)) not in (None, value):
            raise SegaeError(
                f"{name} is {given}, and {config.objective} leaves the encoder as it is. Leave "
                f"--{name.replace('_', '-')} out, or choose an --objective that trains the encoder, such as denoise."
            )


def _require_pixels(config: Pretrain, objective: Objective) -> None:
    from segae.objectives.reconstruction import MeanSquaredError

    if isinstance(objective.reconstruction, MeanSquaredError) and not objective.frozen_encoder:
        return
    raise SegaeError(
        f"output_activation is {config.output_activation}, which bounds an output to image values, and objective "
        f"{config.objective} asks for something else. Leave it out, or judge pixels: --target pixels."
    )


def keeps_statistics(config: Pretrain, objective: Objective) -> bool:
    """Whether the encoder's BatchNorm statistics are those that it began with, to the end."""
    return objective.frozen_encoder or config.bn_mode == "eval"


def make_probe(
    config: Pretrain, description: EncoderDescription, objective: Objective, device: torch.device
) -> Callable[[nn.Module], float] | None:
    """A function from an encoder to the mIoU of its linear probe on training images of ``config.probe``.

    It looks at a copy with the BatchNorm statistics that the encoder will have at the end of training: of clean
    images, or its own where these are to stay.
    """
    if config.probe is None:
        return None
    import copy

    from torch.utils.data import DataLoader, Subset

    from segae.data.batches import UnlabelledImages
    from segae.data.cache import cache_pairs
    from segae.data.dataset import choose_by_hash
    from segae.data.open import open_dataset
    from segae.data.quarantine import Quarantine
    from segae.data.transforms import eval_transform
    from segae.training.batchnorm import recalibrate_batchnorm
    from segae.training.distributed import first_on_machine
    from segae.training.probe import linear_probe

    data = open_dataset(config.probe, config.classes)
    with first_on_machine():
        cached = cache_pairs(data.splits["train"], config.image_size, data.mask_values, Quarantine())
    held_out = choose_by_hash([pair.name for pair in cached.pairs], 0.2, config.seed, "validation")
    valid = [index for index, pair in enumerate(cached.pairs) if pair.name in held_out]
    fitted = sorted(set(range(len(cached.pairs))) - set(valid))
    clean = UnlabelledImages(
        cached.images, eval_transform(config.image_size, description.mean, description.std), config.seed
    )
    batches = DataLoader(Subset(clean, fitted), 16, drop_last=len(fitted) > 16)

    def probe(encoder: nn.Module) -> float:
        copied = copy.deepcopy(encoder)
        if not keeps_statistics(config, objective):
            recalibrate_batchnorm(copied, batches, device)
        return linear_probe(
            copied,
            images=cached.images,
            masks=cached.masks,
            train_indices=fitted,
            valid_indices=valid,
            classes=len(data.classes),
            mean=description.mean,
            std=description.std,
            device=device,
        )

    return probe


def open_run(
    config: Pretrain | Segment, device: torch.device, names: Sequence[str], quarantine: Quarantine, data_path: str
) -> tuple[bool, dict[str, str]]:
    """Open the run folder, once for all processes: whether to resume, and the provenance."""
    from segae.data.dataset import split_hash
    from segae.training.distributed import once
    from segae.training.provenance import start_provenance
    from segae.training.run import open_run_folder

    resume = once(lambda: open_run_folder(config.out, config, resume=config.resume, overwrite=config.overwrite))
    about: dict[str, Any] = {"init": config.init, "data_path": data_path, "resume": resume}
    source = once(lambda: start_provenance(config.out, device, split_hash(names), **about))
    quarantine.report()
    once(lambda: quarantine.write(config.out))
    return resume, source


def list_failures(quarantine: Quarantine, failures: Iterable[tuple[Any, str]], folder: Path) -> None:
    """Report and write what could not be read while training; each process has read other images and knows its own."""
    from segae.training.distributed import gathered, once

    found = gathered(list(failures))
    once(lambda: quarantine.take((failure for part in found for failure in part), folder))
