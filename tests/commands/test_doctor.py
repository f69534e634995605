"""``segae doctor`` finds what is there, and names what mends the rest."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

import segae
from segae.cli import main


def test_it_lists_versions_devices_data_and_weights(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "segae")
    rows = segae.doctor().set_index("part")
    assert rows.loc["torch", "found"] == torch.__version__.split("+")[0]
    assert "pets_pseudo_masks" in rows.loc["weights", "found"]
    assert "threads" in rows.loc["cpu", "found"]
    assert "torchvision" in caplog.text


@pytest.mark.parametrize(
    ("absent", "mend"),
    [("webdataset", "pip install 'segae[streaming]'"), ("timm", "pip install 'timm")],
)
def test_what_is_absent_comes_with_a_command(
    absent: str, mend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name == absent:
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    if absent == "timm":  # which segae needs
        with pytest.raises(SystemExit) as stop:
            main(["doctor"])
        assert stop.value.code == 2
    else:
        main(["doctor"])
    printed = capsys.readouterr()
    assert mend in printed.out
    assert ("timm" in printed.err) == (absent == "timm")


def test_a_full_or_closed_cache_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(segae.SegaeError, match="a problem with cache"):
        segae.doctor()


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    rows = segae.doctor(online=True).set_index("part")
    assert rows.loc["model hub", "state"] == "missing"
