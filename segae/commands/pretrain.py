"""Pretrain an encoder on unlabeled images: folder in, encoder file and run folder out."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from segae import data, models, training
from segae._notebook import ShownInNotebooks, html_run, log_facts
from segae._settings import takes_settings_of
from segae.commands._data import (
    UnlabeledData,
    keep_best,
    load_start,
    load_unlabeled,
    make_learner,
    set_up_model,
    settings_taken_by,
    write_skipped,
)
from segae.config import PretrainConfig, PretrainSettings
from segae.errors import SegaeError
from segae.evaluation import draw_curves, linear_probe, reconstruction_sheet
from segae.methods import Method, create_autoencoder, create_method
from segae.training.distributed import world_size
from segae.training.run import RESUME_FILE

logger = logging.getLogger("segae")


@dataclass(frozen=True, repr=False)
class PretrainResult(ShownInNotebooks):
    """What a pretraining made.

    Attributes:
        encoder: the pretrained encoder, with BatchNorm statistics of clean images.
        autoencoder: the whole trained model; of a method that restores images with statistics of corrupted ones.
        path: encoder.safetensors in the run folder.
        decoder_path: decoder.safetensors, which a segmenter can take over; None for a decoder that cannot segment.
        log: one row per epoch.
        best_path: best_encoder.safetensors, the encoder after the epoch of the best validation loss; None without it.
    """

    encoder: models.Encoder
    autoencoder: models.Autoencoder
    path: Path
    decoder_path: Path | None
    log: pd.DataFrame
    best_path: Path | None = None

    def _facts(self) -> dict[str, Any]:
        decoder = {} if self.decoder_path is None else {"decoder": self.decoder_path}
        return {"path": self.path} | decoder | log_facts(self.log) | {"weights": str(self.encoder.info.weights)}

    def _pictures(self) -> dict[str, Any]:
        return html_run(self.encoder, self.path.parent)


@takes_settings_of(PretrainConfig)
def pretrain(config: PretrainConfig) -> PretrainResult:
    """Pretrain an encoder on unlabeled images; all settings are those of ``segae.config.PretrainConfig``.

    Raises:
        SegaeError: an argument cannot be used, the data cannot be read, or a file cannot be written; what was finished
            stays, and ``resume=True`` continues.

    Example:
        >>> result = pretrain("photos", method="spark", epochs=50)  # doctest: +SKIP
    """
    with training.limit_threads(config.trainer.threads), training.init_distributed(config.trainer.device) as device:
        return _Pretraining(config, device).run()


class _Pretraining:
    """One pretraining, built and checked before anything is read or written."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        training.check_loggers(config.trainer.log)
        training.seed_everything(config.trainer.seed)
        method, given = config.method, config.method_args
        self.config = config
        self.listed: data.ExclusionReport | None = None
        if isinstance(method, Method) and given:
            raise SegaeError(f"method_args must be empty for a method with its own settings, got {given}")
        self.device, self.method = device, method if isinstance(method, Method) else create_method(method, **given)
        encoder = load_start(config, self.list_images())
        self.config = config = _resolve(config, encoder.info, self.method)
        size = config.image_size
        models.require_image_size(size, encoder.output_stride)
        models.require_decoder_size(str(config.decoder), size)
        self.method.require_channels(encoder.info.in_channels)
        form = replace(encoder.info.format, size=size)
        data.pretrain_transform(form, encoder.info.mean, encoder.info.std, augment=config.augment)  # refuses a bad one
        black = self.method.corrupt(torch.zeros(2, encoder.info.in_channels, *form.shape), torch.Generator())
        training.seed_everything(config.trainer.seed)  # the decoder must not depend on where the encoder comes from
        choices = {name: getattr(config, name) for name in ("decoder", "bottleneck", "upsampling", "output_activation")}
        domains = tuple(Path(root).resolve().name for root in config.roots) if config.domain_decoders else ()
        self.model = create_autoencoder(encoder, method=self.method, domains=domains, **choices)
        self.start = self.model.encoder.info
        with models.evaluation_mode(self.model), torch.no_grad():  # refuses a patch that the encoder cannot mask
            self.model(black.image, black.mask)
        if self.method.has_penalty:  # refuses a code that is too large
            draw = "mean" if self.method.code == "gaussian" else None
            code = self.model.bottleneck(self.model.encode(black.image)[-1])
            self.method.penalty(code, partial(self.model.code, draw=draw), black.image)
        set_up_model(self.model.to(device), config)
        if self.method.needs_pretrained_encoder and not self.start.weights.pretrained:
            raise SegaeError(f"weights must be pretrained for {self.method}, which asks the encoder, got random")
        # BatchNorm statistics of the encoder stay those that it started with
        self.keeps_statistics = self.method.frozen_encoder or config.bn_mode == "eval"

    def run(self) -> PretrainResult:
        """Train and write everything."""
        config, model, method, start, device = self.config, self.model, self.method, self.start, self.device
        skipped, own = data.SkippedFiles(), {"method": method, "probe": self.make_probe()}
        images = load_unlabeled(config, start, method, device, skipped, self.listed)
        learner = make_learner(training.pretraining_learner, model, images, config, device, config.image_size, **own)
        planned = settings_taken_by(training.pretraining_phases, config)
        phases = training.pretraining_phases(frozen_encoder=method.frozen_encoder, **planned)
        folder, source = Path(config.out), dict[str, str]()

        def save_epoch(path: Path) -> None:
            info = self.describe(images, pd.DataFrame(learner.epoch_clock.log), source)
            models.save_encoder(model.encoder, path, info=info)

        kept = keep_best(config, images, save_epoch, "best_encoder", "valid_loss")
        how: dict[str, Any] = {"resume": config.resume, "overwrite": config.overwrite}
        named: Any = {"method": method.name, "augment": data.describe_augmentation(config.augment)}
        settings = asdict(replace(config, method_args=method.settings, encoder=start.architecture, **named))
        with (
            training.open_run_folder(folder, settings, task="pretrain", **how) as run,
            training.ExperimentLogger(config.trainer.log, folder) as experiment,
        ):
            facts = {"cache": images.cache, "workers": learner.dls.train.num_workers}
            names = data.split_hash(images.names)
            source |= run.start(device, images=names, weights=os.fspath(config.weights), **facts)
            write_skipped(folder, skipped, excluded=images.excluded)
            length = " + ".join(f"{phase.epochs} ({phase.name})" for phase in phases)
            logger.info("encoder %s from %s (%s), %s", start.architecture, start.weights, start.source, method)
            amounts = f"{images.count} training and {images.held_out} validation images"
            logger.info("%s, epochs: %s, on %s", amounts, length, device)
            batches = images.clean_batches(config.batch_size)
            if not run.resume and not start.weights.pretrained and self.keeps_statistics:
                # random weights come without statistics of any images
                training.recalibrate_batchnorm(model.encoder, batches, device)
            clean = (batch[0] if isinstance(batch, list) else batch for batch in batches)
            method.prepare(model.encoder, clean)  # before a resumed encoder replaces it
            draws: list[Callable[[], object]] = [partial(draw_curves, folder / "log.csv", folder / "curves.png")]
            if len(images.pictures):
                sheet = folder / "reconstructions.png"
                draws.append(partial(reconstruction_sheet, model, method, images.pictures, sheet))
            learner.add_cbs([training.DrawPictures(draws), experiment, *([kept] if kept else [])])
            files = {"log_csv": folder / "log.csv", "resume_file": folder / RESUME_FILE}
            with training.measure_cost(device) as cost:
                log = training.fit(learner, phases, resume=run.resume, **files)  # type: ignore[arg-type]
            write_skipped(folder, skipped, images.failures(), images.excluded)
            best = kept.finish() if kept else {}
            info = model.encoder.info = self.describe(images, log, source)
            transferable = config.decoder in models.SMP_DECODERS
            path, decoder = folder / "encoder.safetensors", folder / "decoder.safetensors" if transferable else None
            best_path = next(iter(kept.files), None) if kept else None
            result = PretrainResult(model.encoder, model, path, decoder, log, best_path)
            if training.rank() != 0:
                return result
            for draw in draws:  # before BatchNorm is measured on clean images: it was trained on corrupted ones
                draw()
            part = model.decoder if self.keeps_statistics else model
            training.recalibrate_batchnorm(part, batches, device, through=model)
            models.save_encoder(model.encoder, path)
            for file in kept.files if kept and not self.keeps_statistics else ():
                encoder = models.load_encoder(file).to(device)
                training.recalibrate_batchnorm(encoder, batches, device)
                models.save_encoder(encoder, file)
            if decoder is not None:
                models.save_decoder(model, decoder, method=method.name)
            if method.restores:  # unlike an encoder in a segmenter, the autoencoder will be given corrupted images
                result = replace(result, encoder=copy.deepcopy(model.encoder))
                training.recalibrate_batchnorm(part, self.corrupt(batches), device, through=model)
            models.save_autoencoder(model, folder / "autoencoder.safetensors")
            run.write_metrics(
                {
                    **{name: info.pretraining[name] for name in ("final_loss", "images_seen")},
                    **best,
                    "seconds": round(float(log["seconds"].sum()), 1),
                    "energy_wh": None if run.resume else cost.energy_wh,
                    "peak_memory_mb": cost.peak_memory_mb,
                    "excluded_images": len(images.excluded),
                    **facts,
                    "precision": "bfloat16" if hasattr(learner, "bfloat16_autocast") else "float32",
                    **source,
                }
            )
            experiment.log_results(path)
            logger.info("wrote %s", path)
            return result

    def list_images(self) -> Sequence[Path]:
        """The files that are looked at for their channels; none of a stream, which is 8-bit RGB or gray."""
        if data.is_stream(self.config.roots):
            return []
        roots = [Path(root) for root in self.config.roots]
        found = data.find_images(roots)
        if data.find_kind(found).plain:
            return found
        # what is measured must not be test images
        self.listed = data.find_pretraining_images(roots, near_duplicates=self.config.near_duplicates)
        return self.listed.kept

    def make_probe(self) -> Callable[[nn.Module], float] | None:
        """Make a function from an encoder to the mIoU of its linear probe on training images of ``config.probe``.

        It looks at a copy with BatchNorm statistics of clean images, as at the end of training, unless its own stay.
        """
        config, look = self.config, {"mean": self.start.mean, "std": self.start.std}
        if config.probe is None:
            return None
        dataset, skipped = data.open_dataset(os.fspath(config.probe), **config.reading), data.SkippedFiles()
        coding: Any = {"mask_values": dataset.mask_values, "ignore_values": dataset.ignore_values}
        form = replace(self.start.format, size=config.image_size, resize=config.resize)
        cached = data.cache_pairs(dataset.splits["train"], form, skipped=skipped, **coding)
        chosen = data.choose_by_hash([pair.name for pair in cached.pairs], 0.2, config.trainer.seed, "validation")
        valid = [index for index, pair in enumerate(cached.pairs) if pair.name in chosen]
        train = sorted(set(range(len(cached.pairs))) - set(valid))
        plain = data.eval_transform(config.image_size, **look)
        clean = data.CachedImageDataset(cached.images, plain, config.trainer.seed)
        batches = DataLoader(Subset(clean, train), 16, drop_last=len(train) > 16)
        parts: dict[str, Any] = {"images": cached.images, "masks": cached.masks, **look}
        parts |= {"train_indices": train, "valid_indices": valid, "num_classes": len(dataset.classes)}

        def probe(encoder: nn.Module) -> float:
            copied = copy.deepcopy(encoder)
            if not self.keeps_statistics:
                training.recalibrate_batchnorm(copied, batches, self.device)
            return linear_probe(copied, device=self.device, **parts)

        return probe

    def corrupt(self, batches: DataLoader) -> Iterator[list[Tensor]]:
        """Batches as the method shows them to the network, with the domains of the images, if they have some."""
        random = torch.Generator().manual_seed(self.config.trainer.seed)
        for batch in batches:
            images, *domains = batch if isinstance(batch, list) else [batch]
            yield [self.method.corrupt(images, random).image, *domains]

    def describe(self, images: UnlabeledData, log: pd.DataFrame, source: dict[str, str]) -> models.EncoderInfo:
        """Say in the encoder's file what it is: nothing that differs between equal runs."""
        config, method, last = self.config, self.method, log.iloc[-1]
        pretraining = {
            "method": method.name,
            "dataset": "+".join(Path(root).resolve().name for root in config.roots),
            "images": images.count + images.held_out,
            **{name: getattr(config, name) for name in ("decoder", "image_size", "batch_size", "lr")},
            **{"epochs": len(log), "images_seen": int(log["images"].sum()), "seed": config.trainer.seed},
            "split_hash": data.split_hash(images.names),
            **{name: source[name] for name in ("commit", "versions")},
            "final_loss": float(last.get("valid_loss", last["train_loss"])),
        }
        other = {one.name: getattr(config, one.name) for one in fields(PretrainSettings) if one.name not in pretraining}
        other["augment"] = data.describe_augmentation(config.augment)
        changed = {name: value for name, value in other.items() if value != getattr(PretrainSettings(), name)}
        return replace(
            self.start,
            image_size=config.image_size,
            resize=config.resize,
            weights=models.Weights(str(self.start.weights), method.name, method.settings),
            source=f"method {method.name} from {self.start.source}",
            pretraining={**pretraining, "settings": changed},
        )


def _resolve(config: PretrainConfig, start: models.EncoderInfo, method: Method) -> PretrainConfig:
    """Fill in every setting that was left open, and refuse those that would do nothing."""
    imagenet, decoder = start.weights.from_imagenet, config.decoder or method.decoder
    ratio = 0.1 if imagenet else 1.0
    if method.frozen_encoder:
        if decoder not in models.SMP_DECODERS:
            known = ", ".join(models.SMP_DECODERS)
            raise SegaeError(f"decoder must be one of {known} for {method.name}, which trains it alone, got {decoder}")
        for name, default in {"distance_penalty": 0.0, "bn_mode": "train", "encoder_lr_ratio": ratio}.items():
            if (given := getattr(config, name)) not in (None, default):
                raise SegaeError(f"{name} must be {default} for {method.name}, which freezes the encoder, got {given}")
    if config.domain_decoders:
        if len(config.roots) < 2 or data.is_stream(config.roots):
            raise SegaeError(f"data must be two folders or more for domain_decoders, got {', '.join(config.roots)}")
        if config.trainer.cache not in ("auto", "disk"):
            raise SegaeError(f"cache must be disk for domain_decoders, got {config.trainer.cache}")
        if (processes := world_size()) > 1:  # of which one may see images of one domain only
            raise SegaeError(f"domain_decoders must be False for {processes} processes, got True")
        config = replace(config, trainer=replace(config.trainer, cache="disk"))
    if config.upsampling != "nearest" and decoder != "plain":
        raise SegaeError(
            f"upsampling must be nearest for decoder {decoder}, got {config.upsampling}: only plain has it"
        )
    config = replace(config, augment=data.load_augmentation(config.augment))
    frozen = 1 if imagenet and not method.frozen_encoder else 0
    defaults: dict[str, Any] = {"decoder": decoder, "freeze_epochs": frozen, "encoder_lr_ratio": ratio, "lr": method.lr}
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})
