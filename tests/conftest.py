"""Fixtures and options of all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while libraries are imported, which make much that stays: a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes on a CPU: run pytest --slow"))
    on_gpu = [item for item in items if "gpu" in item.keywords]
    if on_gpu:
        import torch  # seconds, so only where a test asks for it

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> None:
    """Let garbage collections pass over the libraries that are imported: statsmodels asks for one per correction.

    A training with workers ends this, hence once per module.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own, so that none reads or fills the user's."""
    monkeypatch.setenv("SEGAE_CACHE", str(tmp_path / "segae-cache"))
    return tmp_path / "segae-cache"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, from $SEGAE_TEST_DATA or beside the checkout; for tests marked ``real``."""
    folder = Path(os.environ.get("SEGAE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "oxford-iiit-pet-sample").is_dir():
        pytest.skip(f"no real images in {folder}: set SEGAE_TEST_DATA to a folder that has them")
    return folder
