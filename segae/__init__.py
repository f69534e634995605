"""segae: pretrain a convolutional autoencoder on unlabelled images, segment with its encoder, measure the gain.

The public names are loaded when first used, so that ``import segae`` and ``segae --help`` stay fast.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

_HOME = {
    "SegaeError": "segae.errors",
    "OxfordPets": "segae.data.oxford_pets",
    "FolderData": "segae.data.folder",
    "find_images": "segae.data.folder",
    "open_dataset": "segae.data.open",
    "find_pretraining_images": "segae.data.pretraining",
    "split_off_validation": "segae.data.dataset",
    "take_labels": "segae.data.dataset",
    "draw_pets": "segae.data.drawn_pets",
    "Quarantine": "segae.data.quarantine",
    "cache_images": "segae.data.cache",
    "cache_pairs": "segae.data.cache",
    "LabelledImages": "segae.data.batches",
    "UnlabelledImages": "segae.data.batches",
    "eval_transform": "segae.data.transforms",
    "pretrain_transform": "segae.data.transforms",
    "train_transform": "segae.data.transforms",
    "EncoderDescription": "segae.models.encoder",
    "create_encoder": "segae.models.encoder",
    "load_encoder": "segae.models.encoder",
    "save_encoder": "segae.models.encoder",
    "Autoencoder": "segae.models.autoencoder",
    "create_pretrainer": "segae.models.pretrainer",
    "SparseEncoder": "segae.models.sparse",
    "SegmenterDescription": "segae.models.segmenter",
    "create_segmenter": "segae.models.segmenter",
    "load_segmenter": "segae.models.segmenter",
    "save_segmenter": "segae.models.segmenter",
    "Objective": "segae.objectives.presets",
    "make_objective": "segae.objectives.presets",
    "choose_device": "segae.training.device",
    "seed_everything": "segae.training.run",
    "make_loaders": "segae.training.loaders",
    "pretraining_learner": "segae.training.learner",
    "segmentation_learner": "segae.training.learner",
    "protocol_of": "segae.training.schedule",
    "make_phases": "segae.training.schedule",
    "make_pretraining_phases": "segae.training.schedule",
    "fit": "segae.training.fit",
    "print_epoch": "segae.training.fit",
    "recalibrate_batchnorm": "segae.training.batchnorm",
    "linear_probe": "segae.training.probe",
    "evaluate_model": "segae.training.evaluation",
    "predict_masks": "segae.training.evaluation",
}

__all__ = ["__version__", *_HOME]

try:
    __version__ = metadata.version("segae")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'segae' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
