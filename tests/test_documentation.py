"""The Python in the documentation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import segae

ROOT = Path(__file__).resolve().parent.parent
ENCODER = "tf_efficientnet_lite0"


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("snippet", snippets("docs/encoders.md"))
def test_the_snippets_on_encoders_run(snippet, tmp_path, monkeypatch):
    """On a small network's file, so that they take no time; a snippet that imports or defines too little fails."""
    assert ENCODER in snippet or "load_state_dict" not in snippet
    segae.save_encoder(tmp_path / "encoder.safetensors", *segae.create_encoder("test_resnet"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(snippet.replace(ENCODER, "test_resnet"), "docs/encoders.md", "exec"), names)
    if "logits" in names:
        assert names["logits"].shape == (2, 3, 96, 96)
    elif "features" in names:
        assert [len(names["features"]), names["features"][-1].shape[-1]] == [5, 3]
    else:
        assert names["objective"].name == "mine"


def test_the_readmes_snippet_gives_a_segmenter_with_imagenet_weights():
    (snippet,) = snippets("README.md")
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["description"].init == "imagenet"
    assert names["model"].segmentation_head[0].out_channels == 3


@pytest.mark.parametrize("snippet", snippets("docs/pretraining.md"))
def test_the_snippets_about_pretraining_run(snippet):
    names: dict = {}
    exec(compile(snippet, "docs/pretraining.md", "exec"), names)
    assert names["objective"].name == "mine"
