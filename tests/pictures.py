"""Runs without their pictures, which take half of a tiny run; tests of pictures, and shared runs, draw them."""

from __future__ import annotations

import importlib

import pytest

PICTURES = {
    "pretrain": ("draw_curves", "reconstruction_sheet"),
    "finetune": ("draw_curves", "segmentation_sheet"),
    "evaluate": ("confusion_figure", "segmentation_sheet"),
}


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let the trainings and evaluations that follow write no picture."""
    for verb, names in PICTURES.items():
        for name in names:
            patch.setattr(importlib.import_module(f"segae.commands.{verb}"), name, lambda *_, **__: None)
