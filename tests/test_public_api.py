"""The public names: all there, listed once in the stub, and loaded when they are first used."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import segae
from tests.fabricate import make_images

IMPORTS = ast.parse(Path(segae.__file__).with_suffix(".pyi").read_text()).body
NAMES = [alias.asname for node in IMPORTS if isinstance(node, ast.ImportFrom) for alias in node.names]
PROMISED = {
    *("create_encoder", "load_encoder", "save_encoder", "list_encoders", "create_autoencoder", "create_segmenter"),
    *("load_segmenter", "save_segmenter", "list_decoders", "load", "create_method", "list_methods", "register_method"),
    *("pretrain", "finetune", "evaluate", "predict", "benchmark", "TrainerConfig", "data", "evaluation", "statistics"),
    *("pretraining_learner", "segmentation_learner", "freeze_finetune_phases", "fit", "SegaeError"),
}


def test_the_stub_names_what_is_promised_once() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert set(NAMES) >= PROMISED
    assert set(dir(segae)) >= set(NAMES)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = segae.no_such_name


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_had(name: str) -> None:
    found = getattr(segae, name)
    if callable(found):
        assert found.__name__ == name
        assert found.__module__.startswith("segae.")
        assert (found.__doc__ or "").strip(), f"{name} has no docstring"


def test_importing_is_fast_and_loads_no_torch() -> None:
    code = """if True:
        import sys, time
        start = time.perf_counter()
        from segae import SegaeError, TrainerConfig
        print(time.perf_counter() - start < 1, sorted({"torch", "numpy", "timm", "fastai"} & set(sys.modules)))
    """  # 0.05 s on an idle machine
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"


def test_functions_print_what_the_commands_print_unless_logging_is_set_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, shown = segae.create_segmenter("test_resnet", num_classes=3, image_size=64), []
    photos, logger = make_images(tmp_path / "photos", 1), logging.getLogger("segae")
    for level, handlers in ((logging.NOTSET, []), (logging.WARNING, []), (logging.NOTSET, [logging.NullHandler()])):
        with monkeypatch.context() as patch, caplog.at_level(level, "segae"):
            patch.setattr(logging.root, "handlers", [])  # pytest's own
            patch.setattr(logger, "handlers", handlers)
            segae.predict(model, photos, out=tmp_path / f"{len(shown)}", device="cpu", threads=1)
        shown.append(capsys.readouterr().out)
    assert shown == [f"wrote 1 mask to {tmp_path / '0'}\n", "", ""]
