"""The shape of the package: who may import whom, and what importing may cost."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "segae"
ALLOWED = {
    "": {"errors", "files", "data", "models", "objectives", "training", "tasks", "bench", "segae"},
    "errors": set(),
    "files": {"errors"},
    "data": {"errors", "files", "data"},
    "models": {"errors", "files", "models"},
    "objectives": {"errors", "objectives"},
    "training": {"errors", "files", "data", "models", "objectives", "training", "segae"},
    "tasks": {"errors", "files", "data", "models", "objectives", "training", "tasks"},
    "bench": {"errors", "files", "data", "models", "objectives", "training", "tasks", "bench"},
}
ONLY_HERE = {
    "albumentations": {"data/transforms.py"},
    "datasets": {"data/table_shards.py"},
    "webdataset": {"data/tar_shards.py"},
    "fastai": {
        "training/learner.py",
        "training/loaders.py",
        "training/callbacks.py",
        "training/pretraining_callbacks.py",
        "training/pretraining_watch.py",
        "training/recording.py",
        "training/fit.py",
        "training/micro_batches.py",
        "training/unhurried.py",
    },
}
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    names = set()
    gc.disable()  # CPython 3.11 miscounts its depth where a collection lets another thread run (python/cpython#106905)
    try:
        tree = ast.parse(path.read_text())
    finally:
        gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return path.stem if path.stem in ALLOWED else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upward(path):
    for name in imported(path):
        if name.split(".")[0] == "segae":
            target = name.split(".")[1] if "." in name else "segae"
            assert target in ALLOWED[room(path)], f"{path.name} must not import {name}"


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_library_has_one_door(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= ONLY_HERE[library]
    assert users


def test_help_does_not_load_torch():
    code = "import sys, segae.cli; print(sorted({'torch', 'timm', 'fastai', 'albumentations'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_every_public_name_can_be_had():
    import segae

    for name in segae.__all__:
        assert getattr(segae, name) is not None
    with pytest.raises(AttributeError, match="create_encoder"):
        _ = segae.no_such_name


def test_recipes_use_public_names_and_the_command_line_only():
    for path in (PACKAGE.parent / "recipes").glob("*.py"):
        for name in imported(path):
            if name.split(".")[0] == "segae":
                assert name in ("segae", "segae.cli"), f"{path.name} imports {name}"
