"""Settings chosen on validation images: the same candidates for every variant, the test split unread."""

from __future__ import annotations

from pathlib import Path

import pytest

import segae
from segae._settings import make_config
from segae.bench import runner
from segae.bench.grid import Contents
from segae.bench.results import read_rows
from segae.bench.tuning import read_candidates, tune
from segae.config import BenchConfig
from segae.data import open_dataset
from segae.errors import SegaeError
from tests.fabricate import make_pets
from tests.pictures import draw_nothing


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return make_pets(tmp_path_factory.mktemp("data") / "pets", 10, 2)


def choose(pets, texts, best, **settings):
    """Tune with made-up scores, higher where the learning rate is nearer to the best: choices by variant, trials."""
    trials = []

    def score(runs):
        trials.extend(runs)
        return {run.run_id: -abs(run.finetune["lr"] - best(run)) for run in runs}

    config = make_config(BenchConfig, pets, split="val", **settings)
    chosen = tune(config, open_dataset(pets), Contents(), read_candidates(texts), score)
    return {variant: values for (_, _, variant), values in chosen.items()}, trials


@pytest.mark.parametrize(
    "texts", [["lr"], ["lr="], ["lr=fast"], ["speed=1"], ["bn_mode=maybe"], ["recalibrate=2"], ["lr=1", "lr=2"]]
)
def test_candidates_that_cannot_be_read_are_refused(texts):
    assert read_candidates(["lr-ratio=1, 0.1", "recalibrate=True"]) == {"lr_ratio": (1.0, 0.1), "recalibrate": (True,)}
    with pytest.raises(SegaeError, match=f"tune must .*{texts[-1]}"):
        read_candidates(texts)


def test_every_variant_gets_the_same_candidates_and_its_own_best(pets):
    rates = {"random": 0.001, "random+denoise": 0.01}
    grid = {"weights": list(rates), "labels": [2, 1.0, 0.5], "schedules": ["1+3", "1+6"], "tune_seeds": 2}
    texts = ["lr=0.001,0.01", "bn_mode=train,strict"]
    chosen, trials = choose(pets, texts, lambda run: rates[run.variant], **grid)
    assert chosen == {variant: {"lr": rate, "bn_mode": "train"} for variant, rate in rates.items()}
    tried = [(run.variant, run.finetune["lr"], run.finetune["bn_mode"], run.seed) for run in trials]
    assert len(set(tried)) == len(tried) == 2 * 2 * 2 * 2
    assert {(run.finetune["labels"], run.schedule) for run in trials} == {(None, (1, 3))}
    assert all(run.finetune["val_fraction"] > 0 for run in trials)
    with pytest.raises(SegaeError, match="lr must .* -1"):
        choose(pets, ["lr=-1"], lambda run: 0.1)


def test_the_baselines_of_a_preset_are_tuned_too(pets):
    chosen, trials = choose(pets, ["lr=0.001,0.01"], lambda run: 0.01, preset="sample")
    assert {"random@long", "imagenet@linear"} <= set(chosen)
    assert {run.finetune["encoder"] for run in trials} == {"tf_efficientnet_lite0", "tf_efficientnet_lite2"}


def test_the_better_candidate_is_taken_and_the_test_split_is_scored_once(pets, tmp_path, monkeypatch):
    scored = []
    evaluate = runner.evaluate
    monkeypatch.setattr(
        runner, "evaluate", lambda model, *a, **k: scored.append(str(model)) or evaluate(model, *a, **k)
    )
    draw_nothing(monkeypatch)
    out = tmp_path / "out"
    how = {"out": out, "weights": "random", "labels": 1.0, "seeds": 1, "encoders": "test_resnet"}
    how |= {"schedules": "0+2", "finetune": {"image_size": 32, "batch_size": 4}, "tune": "lr=0.000001,0.01"}
    how |= {"device": "cpu", "threads": 1, "report": False}
    result = segae.benchmark(pets, **how)
    trials = read_rows(out / "bench_validation.csv").set_index("lr")
    assert [set(trials["split"]), set(trials.index)] == [{"val"}, {1e-6, 0.01}]
    assert list(result.runs["lr"]) == [trials["miou"].idxmax()]
    assert [Path(model).parent.name.partition("-")[0] for model in scored] == ["test"]
    (out / "bench_validation.csv").unlink()
    for path in out.glob("val-*/validation.json"):  # as if it was killed just before it noted its scores
        path.unlink()
    assert segae.benchmark(pets, **how).runs["run_id"].equals(result.runs["run_id"])
    assert read_rows(out / "bench_validation.csv").set_index("lr")["miou"].equals(trials["miou"])
