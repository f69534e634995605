"""What a finished training leaves in its run folder: weights, where they come from, pictures of what they do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.files import write_json
from segae.tasks.pictures import draw_curves

if TYPE_CHECKING:
    import torch
    from torch import nn

    from segae.data.dataset import SegmentationData
    from segae.models.encoder import EncoderDescription
    from segae.objectives.presets import Objective
    from segae.tasks.labelled import Labelled
    from segae.tasks.pretrain import Pretrain
    from segae.tasks.segment import Segment
    from segae.training.cost import Cost

_SETTINGS = (  # of a pretraining, beside those with a column of their own in the result rows
    *("noise_sigma", "patch", "mask_ratio", "boundary", "hard_mask_share", "skip_dropout", "upsampling"),
    *("output_activation", "code_channels"),
    *("repeats", "warmup", "weight_decay", "freeze_epochs", "encoder_lr_ratio", "bn_mode", "distance_penalty"),
    *("val_fraction", "patience", "precision", "micro_batch", "data_path"),
)


def finish_pretraining(
    config: Pretrain,
    model: Any,
    description: EncoderDescription,
    paths: Sequence[Path],
    images: int,
    log: list[dict[str, Any]],
    source: dict[str, str],
) -> Path:
    """Write the encoder, the decoder if it can segment, the curves and the metrics; return the encoder's path.

    ``paths`` are the image files, or a stream's shards; ``images`` is how many images there are.
    """
    from segae.models.decoder import DECODER_FILE, DecoderDescription, save_decoder
    from segae.models.encoder import save_encoder
    from segae.models.segmenter import DECODERS
    from segae.models.weights import fingerprint
    from segae.training.run import DONE_FILE

    described = replace(
        description,
        image_size=config.image_size,
        init=("" if description.init == "random" else f"{description.init}+") + f"ae:{config.objective}",
        source=f"segae pretrain --objective {config.objective} from {description.source}",
        pretraining=_pretraining(config, paths, images, log, source),
    )
    target = config.out / "encoder.safetensors"
    save_encoder(target, model.encoder, described)
    if config.decoder in DECODERS and config.decoder != "linear":  # here linear is no segmenter's
        whole = fingerprint(model.encoder.state_dict())
        about = DecoderDescription(config.encoder, config.decoder, config.objective, whole)
        save_decoder(config.out / DECODER_FILE, model.decoder, about)
    draw_curves(config.out)
    measured = {name: described.pretraining[name] for name in ("final_loss", "images_seen", "seconds", "energy_wh")}
    write_json(config.out / DONE_FILE, {**measured, "workers": config.workers, "data_path": config.data_path, **source})
    print(f"wrote {target}")
    return target


def measure_clean(config: Pretrain, model: Any, objective: Objective, measured: Any, device: torch.device) -> None:
    """BatchNorm statistics of clean images, in place of those of corrupted ones."""
    from segae.tasks.prepare import keeps_statistics
    from segae.training.batchnorm import recalibrate_batchnorm

    part = model.decoder if keeps_statistics(config, objective) else model
    recalibrate_batchnorm(part, _batches(config, measured), device, through=model)


def measure_untrained(
    config: Pretrain, model: Any, objective: Objective, init: str, measured: Any, device: torch.device
) -> None:
    """BatchNorm statistics of clean images for random weights that keep what they have: they came with none."""
    from segae.tasks.prepare import keeps_statistics
    from segae.training.batchnorm import recalibrate_batchnorm

    if init == "random" and keeps_statistics(config, objective):
        recalibrate_batchnorm(model.encoder, _batches(config, measured), device)


def prepare_objective(config: Pretrain, model: Any, objective: Objective, measured: Any) -> None:
    """Let an objective that asks the starting encoder look at clean images with it."""
    if objective.prepare is not None:
        objective.prepare(model.encoder, _batches(config, measured))


def _batches(config: Pretrain, measured: Any) -> Any:
    from torch.utils.data import DataLoader

    # a last batch of one image has no variance to measure
    return DataLoader(measured, config.batch_size, drop_last=len(measured) > config.batch_size)


def _pretraining(
    config: Pretrain, paths: Sequence[Path], images: int, log: list[dict[str, Any]], source: dict[str, str]
) -> dict[str, str | int | float]:
    from segae.data.dataset import split_hash
    from segae.training.cost import energy_of

    last = log[-1]
    return {
        "objective": config.objective,
        "decoder": str(config.decoder),
        "settings": "; ".join(f"{name} {getattr(config, name)}" for name in _SETTINGS),
        "target": config.target or "",
        "dataset": "+".join(root.name or str(root.resolve().name) for root in config.data),
        "images": images,
        "image_size": config.image_size,
        "epochs": len(log),
        "images_seen": sum(row["images"] for row in log),
        "batch_size": config.batch_size,
        "lr": config.lr,
        "seed": config.seed,
        "seconds": round(sum(row["seconds"] for row in log), 1),
        "energy_wh": energy_of(log),
        "split_hash": split_hash(path.name for path in paths),
        "commit": source["commit"],
        "versions": source["versions"],
        "final_loss": last.get("valid_loss", last["train_loss"]),
    }


def finish_segmentation(
    config: Segment,
    model: nn.Module,
    description: EncoderDescription,
    data: SegmentationData,
    images: Labelled,
    log: Sequence[dict[str, Any]],
    cost: Cost,
    source: dict[str, str],
    device: torch.device,
) -> Path:
    """Write the model, the pictures and the metrics of the last epoch; return the model's path."""
    from segae.data.dataset import split_hash
    from segae.models.segmenter import SegmenterDescription, save_segmenter
    from segae.training.cost import energy_of
    from segae.training.evaluation import predict_masks
    from segae.training.panels import segmentation_sheet
    from segae.training.run import DONE_FILE

    size = config.image_size or description.image_size
    details: dict[str, Any] = {
        "init": description.init,
        "source": description.source,
        **{f"pretrain_{name}": value for name, value in description.pretraining.items()},
        "transfer": config.transfer,
        "dataset": data.name,
        "labels": images.labels,
        "training_images": len(images.pairs),
        "label_fraction": images.labels / len(data.splits["train"]),
        "encoder": config.encoder,
        "decoder": config.decoder,
        "image_size": size,
        "split_hash": split_hash(pair.name for pair in images.pairs),
        "freeze_epochs": config.freeze_epochs,
        "epochs": config.epochs,
        "epoch_images": config.epoch_images or "",
        "batch_size": config.batch_size,
        "loss": config.loss,
        "augment": int(config.augment),
        "lr": config.lr,
        "lr_ratio": config.lr_ratio,
        "bn_mode": config.bn_mode,
        "warmup": config.warmup,
        "recalibrate": int(bool(config.recalibrate)),
        "fitted_head": int(bool(config.fitted_head)),
        "precision": config.precision,
        "micro_batch": config.micro_batch,
        "val_fraction": config.val_fraction,
        "data_path": config.data_path,
        "seed": config.seed,
        "seconds": sum(row["seconds"] for row in log),
        "energy_wh": energy_of(log),
        "peak_memory_mb": cost.peak_memory_mb,
        **({"merge": json.dumps(config.merge)} if config.merge else {}),
        **source,
    }
    target = config.out / "model.safetensors"
    described = SegmenterDescription(
        encoder=config.encoder,
        decoder=config.decoder,
        classes=data.classes,
        palette=data.palette,
        mask_values=data.mask_values,
        in_channels=description.in_channels,
        mean=description.mean,
        std=description.std,
        image_size=size,
        details=details,
    )
    save_segmenter(target, model, described)
    pictures, truths = images.shown.images[:8], images.shown.masks[:8]
    predictions = predict_masks(model, pictures, described.mean, described.std, device=device)
    segmentation_sheet(
        list(pictures), list(truths), list(predictions), data.classes, data.palette, config.out / "sheet.png"
    )
    draw_curves(config.out)
    last = {"last_epoch": log[-1], "split": "val" if "miou" in log[-1] else "train"}
    write_json(config.out / DONE_FILE, {**last, "workers": config.workers, **details})
    print(f"wrote {target}")
    return target
