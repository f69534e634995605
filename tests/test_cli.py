"""What the command line shows beside what its tasks print."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from segae.cli import main

_COMMAND = """
import warnings
from segae import cli

def work(config):
    import segae.training.fit  # and fastai, which scripts functions when it is imported
    warnings.warn("something that a user should know", FutureWarning)

cli._TASKS = {"data-drawn": (cli.data.DataDrawn, work)}
cli.main(["data", "drawn"])

import torch
warnings.simplefilter("always")
torch.jit.script(torch.nn.Identity())
print("done")
"""


def test_one_warning_of_a_library_is_not_shown_and_all_others_are():
    done = subprocess.run([sys.executable, "-c", _COMMAND], capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr
    command, _, after = done.stderr.partition("something that a user should know")
    assert "torch.jit.script" not in command
    assert after, "another FutureWarning was hidden"
    assert "torch.jit.script" in after  # outside the command line nothing is silenced


def test_a_reader_that_has_seen_enough_is_no_fault():
    command = [sys.executable, "-m", "segae.cli", "compare", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        complaint = process.stderr.read()
    assert complaint == ""


def test_a_file_name_that_is_no_text_can_be_told(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8", errors="strict"))
    with pytest.raises(SystemExit):
        main(["report", "--rows", "none.csv"])
    print(os.fsdecode(b"a\xff.jpg"), "cannot be read")
    sys.stdout.flush()
    assert b"a\\udcff.jpg cannot be read" in written.getvalue()
