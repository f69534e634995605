"""What a second quickstart says of the runs it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

import segae
from segae.tasks import quickstart
from segae.tasks.page import commits_of


def test_finished_runs_are_reused_and_the_page_says_from_which_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segae.draw_pets(tmp_path / "pets", train=8, test=2, size=64, progress=False)
    monkeypatch.setattr(quickstart, "available_arms", lambda *_: (("random", "ae:mask"), ""))
    config = quickstart.Quickstart(
        data=tmp_path / "pets",
        out=tmp_path / "q",
        encoder="test_resnet",
        image_size=64,
        pretrain_images=8,
        labels=4,
        device="cpu",
    )
    shown, pages = [], []
    for commit in ("aaaaaaaaaaaa", "aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        monkeypatch.setattr("segae.training.provenance.commit", lambda *_, commit=commit: commit)
        pages.append(quickstart.run(config).read_text())
        shown.append(capsys.readouterr().out)
    assert "are reused" not in shown[0]
    assert f"finished runs are reused: random, ae:mask. To start afresh, remove {tmp_path / 'q'}" in shown[1]
    assert "frozen" not in shown[1]
    for page in pages[:2]:
        assert "aaaaaaaaaaaa" in page
        assert "are reused" not in page
    assert "commit\naaaaaaaaaaaa and are reused; the code is now at bbbbbbbbbbbb" in pages[2]
    assert "1 epochs" not in pages[0]
    assert "1 epoch(s)" not in pages[0]


def test_every_commit_behind_the_rows_is_named_once() -> None:
    rows = [
        {"pretrain_commit": "", "commit": "new"},
        {"pretrain_commit": "old", "commit": "new"},
        {"pretrain_commit": "", "commit": ""},
    ]
    assert commits_of(rows) == ["new", "old"]
