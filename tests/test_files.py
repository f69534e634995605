"""Files are replaced whole, together, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from segae.errors import SegaeError
from segae.files import write_atomically, write_json, write_together


def test_files_that_belong_together_fail_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_together({first: lambda file: file.write(b"old a"), second: lambda file: file.write(b"old b")})
    calls = []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SegaeError, match="No space left on device.*--out"):
        write_together({first: lambda file: file.write(b"new a"), second: lambda file: file.write(b"new b")})
    assert (first.read_bytes(), second.read_bytes()) == (b"old a", b"old b")
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_an_interruption_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupted(file) -> None:
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_json(tmp_path / "new" / "ours.json", {})
    assert (tmp_path / "new" / "ours.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="links need rights")
def test_a_link_goes_on_leading_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "deep" / "rows.csv", tmp_path / "rows.csv"
    write_atomically(real, lambda file: file.write(b"old"))
    link.symlink_to(real)
    write_atomically(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 251 + ".png")
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
