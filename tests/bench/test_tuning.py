"""Settings chosen on validation images: the same candidates for every variant, the test split unread."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import segae
from segae._settings import make_config
from segae.bench import runner
from segae.bench.grid import Contents, Run
from segae.bench.results import read_rows
from segae.bench.tuning import read_candidates, tune
from segae.config import BenchConfig
from segae.data import open_dataset
from segae.errors import SegaeError
from tests.fabricate import make_pets


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 training and 2 test images."""
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 10, 2)


def choose(pets: Path, texts: Sequence[str], best: Any, **settings: Any) -> tuple[dict[Any, Any], list[Run]]:
    """Tune with made-up scores: the higher, the nearer the learning rate is to that of ``best(run)``."""
    trials: list[Run] = []

    def score(runs: Sequence[Run]) -> Mapping[str, float]:
        trials.extend(runs)
        return {run.run_id: -abs(run.finetune["lr"] - best(run)) for run in runs}

    config = make_config(BenchConfig, pets, split="val", **settings)
    return tune(config, open_dataset(pets), Contents(), read_candidates(texts), score), trials


@pytest.mark.parametrize(
    "text", ["lr", "lr=", "lr=fast", "speed=1", "bn_mode=maybe", "recalibrate=2", "epochs=3", "lr=1,lr=2"]
)
def test_candidates_that_cannot_be_read_are_refused(text: str) -> None:
    assert read_candidates(["lr-ratio=1, 0.1", "recalibrate=True"]) == {"lr_ratio": (1.0, 0.1), "recalibrate": (True,)}
    with pytest.raises(SegaeError, match=f"tune must .*{text}"):
        read_candidates([text])
    with pytest.raises(SegaeError, match="tune must .* each once"):
        read_candidates(["lr=1", "lr=2"])


def test_a_candidate_out_of_range_is_refused(pets: Path) -> None:
    with pytest.raises(SegaeError, match="lr must .* -1"):
        choose(pets, ["lr=-1"], lambda run: 0.1)


def test_every_variant_gets_the_same_candidates_and_its_own_best(pets: Path) -> None:
    rates = {"random": 0.001, "random+denoise": 0.01}
    chosen, trials = choose(
        pets,
        ["lr=0.001,0.01", "bn_mode=train,strict"],
        lambda run: rates[run.variant],
        **{"weights": list(rates), "labels": [2, 1.0, 0.5], "schedules": ["1+3", "1+6"], "seeds": 2},
    )
    assert {place[2]: one for place, one in chosen.items()} == {
        variant: {"lr": rate, "bn_mode": "train"} for variant, rate in rates.items()
    }
    tried = {
        variant: sorted(
            (run.finetune["lr"], run.finetune["bn_mode"], run.seed) for run in trials if run.variant == variant
        )
        for variant in rates
    }
    assert tried["random"] == tried["random+denoise"]
    assert len(trials) == 2 * 2 * 2 * 2
    assert {(run.finetune["labels"], run.schedule) for run in trials} == {(None, (1, 3))}
    assert all(run.finetune["val_fraction"] > 0 for run in trials)


def test_the_baselines_of_a_preset_are_tuned_too(pets: Path) -> None:
    chosen, _ = choose(pets, ["lr=0.001,0.01"], lambda run: 0.01, preset="sample", seeds=1)
    assert {"random@long", "imagenet@linear"} <= {place[2] for place in chosen}
    assert "tf_efficientnet_lite2" in {place[0] for place in chosen}


def test_the_better_candidate_is_taken_and_the_test_split_is_scored_once(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[Path] = []
    evaluate = runner.evaluate
    monkeypatch.setattr(runner, "evaluate", lambda model, *a, **k: scored.append(model) or evaluate(model, *a, **k))
    for verb in ("evaluate", "finetune"):
        monkeypatch.setattr(
            importlib.import_module(f"segae.commands.{verb}"), "segmentation_sheet", lambda *_, **__: None
        )
    out = tmp_path / "out"
    how: dict[str, Any] = {"out": out, "weights": "random", "labels": 1.0, "seeds": 1, "encoders": "test_resnet"}
    how |= {"schedules": "0+2", "finetune": {"image_size": 64, "batch_size": 4}, "tune": "lr=0.000001,0.01"}
    how |= {"device": "cpu", "threads": 1, "report": False}
    result = segae.benchmark(pets, **how)
    trials = read_rows(out / "bench_validation.csv").set_index("lr")
    assert set(trials["split"]) == {"val"}
    assert set(trials.index) == {1e-6, 0.01}
    assert list(result.runs["lr"]) == [trials["miou"].idxmax()]
    assert [model.parent.name.partition("-")[0] for model in scored] == ["test"]
    # a search that was killed just before it noted its scores goes on
    (out / "bench_validation.csv").unlink()
    for path in out.glob("val-*/validation.json"):
        path.unlink()
    again = segae.benchmark(pets, **how)
    assert list(again.runs["run_id"]) == list(result.runs["run_id"])
    assert list(read_rows(out / "bench_validation.csv").set_index("lr")["miou"]) == list(trials["miou"])
