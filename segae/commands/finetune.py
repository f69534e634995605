"""Fine-tune a segmenter or a classifier on labeled images: freeze the encoder for one epoch, then train everything."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader

from segae import data, models, training
from segae._notebook import ShownInNotebooks, html_run, log_facts
from segae._settings import takes_settings_of
from segae.applications.trust import TRUST_FILE, TrustScore
from segae.commands._data import (
    LabeledData,
    keep_best,
    load_labeled,
    load_start,
    make_learner,
    set_up_model,
    settings_taken_by,
    write_skipped,
)
from segae.config import FinetuneConfig, FinetuneSettings
from segae.errors import SegaeError, argument_named
from segae.evaluation import SegmentationScores, draw_curves, evaluate_model, predict_masks, segmentation_sheet
from segae.evaluation.classification import ClassificationScores, evaluate_classifier
from segae.methods import create_method, method_names
from segae.training.losses import balanced_weights, supervised_loss
from segae.training.run import RESUME_FILE

logger = logging.getLogger("segae")

_SHEET_ROWS = 8


@dataclass(frozen=True, repr=False)
class FinetuneResult(ShownInNotebooks):
    """What a fine-tuning made.

    Attributes:
        model: the trained segmenter or classifier, as after the last epoch.
        path: model.safetensors in the run folder.
        log: one row per epoch.
        scores: of the validation images, as from ``evaluate``; None where there are none. Test images are neither
            trained on nor scored; only their masks are checked.
        best_path: best.safetensors, the weights after the epoch of the best validation score; None without it.
    """

    model: models.Segmenter | models.Classifier
    path: Path
    log: pd.DataFrame
    scores: SegmentationScores | ClassificationScores | None
    best_path: Path | None = None

    def _facts(self) -> dict[str, Any]:
        scores = {} if self.scores is None else self.scores.as_row()
        best = {f"validation {name}": f"{scores[name]:.3f}" for name in ("miou", "accuracy") if name in scores}
        return {"path": self.path} | log_facts(self.log) | best

    def _pictures(self) -> dict[str, Any]:
        return html_run(self.model, self.path.parent)


@takes_settings_of(FinetuneConfig)
def finetune(config: FinetuneConfig) -> FinetuneResult:
    """Fine-tune a segmenter on labeled images; all settings are those of ``segae.config.FinetuneConfig``.

    Raises:
        SegaeError: an argument cannot be used, the data cannot be read, or a file cannot be written; what was finished
            stays, and ``resume=True`` continues.

    Example:
        >>> model = finetune("pets", weights="runs/pretrain/encoder.safetensors").model  # doctest: +SKIP
    """
    with training.limit_threads(config.trainer.threads), training.init_distributed(config.trainer.device) as device:
        return _Finetuning(config, device).run()


class _Finetuning:
    """One fine-tuning, built and checked before any image is decoded or anything is written."""

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        training.check_loggers(config.trainer.log)
        self.config, self.classify = config, config.task == "classify"
        chosen = {name: "" if value == "auto" else value for name, value in config.reading.items()}
        refused = {**chosen, "lpft_head": config.lpft_head, "transfer": config.transfer.partition("+")[2]}
        if self.classify and any(refused.values()):
            raise SegaeError(f"{', '.join(refused)} must be left out where task is classify, got {refused}")
        self.dataset = self.open_data()
        training.seed_everything(config.trainer.seed)
        encoder = load_start(config, self.dataset.splits["train"].images)
        weights = replace(encoder.info.weights, transfer=config.transfer)
        self.device, self.start = device, replace(encoder.info, weights=weights)
        self.config = config = _resolve(config, self.start)
        self.class_weights = config.class_weights
        self.size = size = config.image_size or self.start.image_size
        self.form = replace(self.start.format, size=size, resize=config.resize or self.start.resize)
        models.require_image_size(size, encoder.output_stride)
        models.require_decoder_size(config.decoder, size)
        look = self.form, self.start.mean, self.start.std
        data.train_transform(*look, augment=config.augment)  # refuses one that cannot be applied
        if config.balance_classes and (config.class_weights or not isinstance(config.loss, str)):
            given = f"class_weights {config.class_weights}, loss {self.loss_name}"
            raise SegaeError(f"balance_classes must be False where class weights or an own loss are given, got {given}")
        self.make_loss()  # refuses one that cannot be used
        if config.patience is not None and not config.epochs:
            raise SegaeError(f"patience must be None where epochs is 0, got {config.patience}: it counts full epochs")
        self.phases = training.freeze_finetune_phases(**settings_taken_by(training.freeze_finetune_phases, config))
        if not self.classify:
            data.check_masks(self.dataset)
        training.seed_everything(config.trainer.seed)  # the decoder must not depend on where the encoder comes from
        fitted: Any = {"image_size": size, "resize": self.form.resize}
        self.model: Any = (
            models.create_classifier(encoder, num_classes=self.dataset.classes, **fitted)
            if self.classify
            else models.create_segmenter(
                encoder,
                num_classes=self.dataset.classes,
                decoder=config.decoder,
                decoder_weights=models.decoder_file(config.weights) if config.transfer == "encoder+decoder" else None,
                palette=self.dataset.palette,
                mask_values=self.dataset.mask_values,
                **fitted,
            )
        ).to(device)
        set_up_model(self.model, config)

    def open_data(self) -> data.SegmentationDataset:
        """Open the data set: a folder, an address, or a stream of labeled shards."""
        source, config = os.fspath(self.config.data), self.config
        if config.layout == "shards" or source.endswith(".tar") or config.val_shards is not None:
            if self.classify:
                raise SegaeError(f"data must be a folder with a folder per class where task is classify, got {source}")
            if not data.is_stream(source):
                raise SegaeError(f"data must be labeled shards where layout or val_shards say so, got {source}")
            chosen = {name: getattr(config, name) for name in ("classes", "merge", "ignore")}
            with argument_named("data", instead_of="sources"):
                return data.open_labeled_shards(source, **chosen)
        return data.ClassFolders(Path(source)) if self.classify else data.open_dataset(source, **config.reading)

    @property
    def loss_name(self) -> str:
        """The loss as a text, of a function its name."""
        loss = self.config.loss
        return loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__)

    def make_loss(self) -> Any:
        """Make the loss, where classes are balanced with equal weights until the masks are known."""
        config, count = self.config, len(self.dataset.classes)
        weights = self.class_weights or ((1.0,) * count if config.balance_classes else None)
        how: dict[str, Any] = {"class_weights": weights, "label_smoothing": config.label_smoothing}
        return supervised_loss(config.loss, num_classes=count, whole_images=self.classify, **how)

    def run(self) -> FinetuneResult:
        """Train and write everything."""
        config, model, start, device, skipped = self.config, self.model, self.start, self.device, data.SkippedFiles()
        images = load_labeled(config, self.dataset, start, self.form, device, skipped)
        if config.balance_classes:
            self.class_weights = balanced_weights(images.sample.masks, len(self.dataset.classes))
            listed = zip(self.dataset.classes, self.class_weights, strict=True)
            logger.info("class weights: %s", ", ".join(f"{name} {weight:.3g}" for name, weight in listed))
        parts = model, images, config, device, self.size
        own: dict[str, Any] = {"loss": self.make_loss(), "class_weights": None, "label_smoothing": 0.0}
        learner = make_learner(training.segmentation_learner, *parts, **own)
        folder, source = Path(config.out), dict[str, str]()
        score = "accuracy" if self.classify else "miou"
        kept = keep_best(config, images, lambda file: self.save_epoch(file, images, source, learner), "best", score)
        how: dict[str, Any] = {"resume": config.resume, "overwrite": config.overwrite}
        augment = data.describe_augmentation(config.augment)
        settings = asdict(replace(config, encoder=start.architecture, loss=self.loss_name, augment=augment))
        kind = settings.pop("task")  # config.json has the command under this name
        how["task"] = f"finetune {kind}" if self.classify else "finetune"
        with (
            training.open_run_folder(folder, settings, **how) as run,
            training.ExperimentLogger(config.trainer.log, folder) as experiment,
        ):
            names = data.split_hash(images.names)
            facts: dict[str, Any] = {"cache": images.cache}
            facts |= {"workers": learner.dls.train.num_workers} if images.cache == "stream" else {}
            source |= run.start(device, images=names, weights=os.fspath(config.weights), **facts)
            write_skipped(folder, skipped)
            logger.info("encoder %s from %s (%s)", start.architecture, start.weights, start.source)
            epochs = f"{config.freeze_epochs} + {config.epochs} epochs on {device}"
            logger.info("%d training and %d validation images, %s", images.count, images.held_out, epochs)
            if not run.resume:
                self.initialize(images)
            draw = partial(draw_curves, folder / "log.csv", folder / "curves.png")
            learner.add_cbs([training.DrawPictures([draw]), experiment, *([kept] if kept else [])])
            files = {"log_csv": folder / "log.csv", "resume_file": folder / RESUME_FILE}
            with training.measure_cost(device) as cost:
                log = training.fit(learner, self.phases, resume=run.resume, **files)  # type: ignore[arg-type]
            write_skipped(folder, skipped, images.failures())
            best = kept.finish() if kept else {}
            if config.reconstruction_weight:
                learner.reconstruction_task.detach()
            details = self.describe(images, source, learner)
            model.info = replace(model.info, encoder=start, training=details)
            path, best_path = folder / "model.safetensors", next(iter(kept.files), None) if kept else None
            if training.rank() != 0:
                return FinetuneResult(model, path, log, None, best_path)
            checked, scores = images.checked, None
            if checked is not None:
                evaluate: Any = evaluate_classifier if self.classify else evaluate_model
                scores = evaluate(model, checked.images, checked.masks, device=device)
            self.save(path)
            if not self.classify:
                shown = images.sample if checked is None else checked
                pictures, truths = shown.images[:_SHEET_ROWS], shown.masks[:_SHEET_ROWS]
                masks = predict_masks(model, pictures, device=device)
                look = {"classes": model.info.classes, "palette": model.info.palette}
                segmentation_sheet(list(pictures), list(truths), list(masks), folder / "sheet.png", **look)
                if checked is not None:
                    TrustScore.fit(model, images.sample.images, checked.images).save(folder / TRUST_FILE)
                    if (count := len(checked.images)) < 20:
                        few = f"that takes 20 validation images, not {count}"
                        logger.info("segae predict cannot warn of strange images: %s", few)
            draw()
            run.write_metrics(
                {
                    "split": "train" if scores is None else "val",
                    "last_epoch": log.iloc[-1].dropna().to_dict(),
                    **best,
                    **details,
                    "seconds": float(log["seconds"].sum()),
                    "energy_wh": None if run.resume else cost.energy_wh,
                    "peak_memory_mb": cost.peak_memory_mb,
                    "workers": learner.dls.train.num_workers,
                    **source,
                }
            )
            experiment.log_results(path)
            logger.info("wrote %s", path)
            return FinetuneResult(model, path, log, scores, best_path)

    def save(self, path: Path) -> None:
        """Write the model."""
        (models.save_classifier if self.classify else models.save_segmenter)(self.model, path)

    def save_epoch(self, path: Path, images: LabeledData, source: dict[str, str], learner: Any) -> None:
        """Write the model as it is after an epoch, without the head of a multi-task training."""
        details = {**self.describe(images, source, learner), "epoch": learner.epoch_clock.log[-1]["epoch"]}
        self.model.info = replace(self.model.info, encoder=self.start, training=details)
        task = getattr(learner, "reconstruction_task", None)
        with task.without_head() if task else nullcontext():
            self.save(path)

    def initialize(self, images: LabeledData) -> None:
        """Recalibrate BatchNorm and fit the head (LP-FT), in one pass each over clean training images."""
        config, model, sample = self.config, self.model, images.sample
        plain = data.eval_transform(self.form, self.start.mean, self.start.std)
        if config.recalibrate:
            clean = data.CachedImageDataset(sample.images, plain, config.trainer.seed)
            # a last batch of one image has no variance to measure
            batches = DataLoader(clean, config.batch_size, drop_last=len(clean) > config.batch_size)
            part = model if config.transfer == "encoder+decoder" else model.encoder
            training.recalibrate_batchnorm(part, batches, self.device)
        if config.lpft_head:
            labeled = data.CachedPairDataset(sample.images, sample.masks, plain, config.trainer.seed)
            training.fit_lpft_head(model, DataLoader(labeled, config.batch_size), model.num_classes, self.device)

    def describe(self, images: LabeledData, source: dict[str, str], learner: Any) -> dict[str, Any]:
        """Say in the model's file and the metrics what was trained: nothing that differs between equal runs."""
        config, weights, dataset = self.config, self.start.weights, self.dataset
        details = {
            **{"weights": weights.start, "weights_source": self.start.source},
            **{"method": weights.method, "method_args": weights.method_args, "transfer": weights.transfer},
            **{f"pretrain_{name}": value for name, value in self.start.pretraining.items() if name != "method"},
            **{"dataset": dataset.name, "labels": images.labels, "training_images": images.count},
            "label_fraction": images.labels / (len(dataset.splits["train"]) or images.labels),
            "split_hash": data.split_hash(images.names),
            **{"encoder": self.start.architecture, "decoder": "" if self.classify else config.decoder},
            **{"freeze_epochs": config.freeze_epochs, "epochs": config.epochs, "steps": learner.epoch_clock.steps},
            **{one.name: getattr(config, one.name) for one in fields(FinetuneSettings)},
            **{"loss": self.loss_name, "class_weights": self.class_weights},
            "augment": data.describe_augmentation(config.augment),
            **{"image_size": self.size, "val_fraction": config.val_fraction, "merge": list(config.merge)},
            "colors": list(config.colors),
            "ignore": [*(set(config.ignore) - {"none"} or (dataset.ignore_values if dataset.values_inferred else ()))],
            "precision": "bfloat16" if hasattr(learner, "bfloat16_autocast") else "float32",
            **{"cache": images.cache, "seed": config.trainer.seed},
        }
        return {**details, **{name: source[name] for name in ("commit", "versions")}}


def _resolve(config: FinetuneConfig, start: models.EncoderInfo) -> FinetuneConfig:
    """Fill in every setting that was left open with what suits the weights."""
    method = start.weights.method
    if config.transfer == "encoder" and method in method_names() and create_method(method).frozen_encoder:
        raise SegaeError(
            f"transfer must be encoder+decoder for weights of {method}, which trains the decoder alone, got "
            f"{config.transfer}; or give the weights that it began with, {start.weights.start}"
        )
    defaults = asdict(training.finetune_defaults(start.weights, config.transfer)) | {
        name: getattr(start, name) for name in ("image_size", "resize")
    }
    config = replace(config, augment=data.load_augmentation(config.augment))
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})
