"""Fixtures shared by all tests: real images where they exist, tiny drawn ones everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes on a CPU: run pytest --slow"))


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("SEGAE_CACHE", str(tmp_path / "segae-cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, from $SEGAE_TEST_DATA or beside the checkout."""
    folder = Path(os.environ.get("SEGAE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "oxford-iiit-pet-sample").is_dir():
        pytest.skip(f"no real images in {folder}: set SEGAE_TEST_DATA to a folder that has them")
    return folder
