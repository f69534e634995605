"""The cells of a benchmark, and the order in which they are run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segae.bench.benchmark import Bench, verdict
from segae.bench.grid import Cell, make_cells, read_budget, read_schedule
from segae.bench.jobs import Job, Outcome
from segae.bench.planning import cells_of, grids_of, with_data
from segae.bench.presets import DIMENSIONS, PRESETS
from segae.bench.scheduling import run_cells
from segae.bench.tuning import Tuning, read_candidates
from segae.data.drawn_pets import draw_pets
from segae.errors import SegaeError
from segae.tasks.compare import Compare

GRID = {"encoders": ["test_resnet"], "decoders": ["unet"], "budgets": ["25%", "100%"], "schedules": ["1+1"]}


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pets") / "pets"
    draw_pets(root, train=8, test=2, size=32, seed=0, unlabelled=2, progress=False)
    return root


def cells(pets: Path, out: Path, arms=("random", "ae:mask"), seeds=(0, 1), **grid) -> list[Cell]:
    base = Compare(data=pets, out=out, arms=arms, seeds=seeds, image_size=64, pretrain_epochs=1)
    return make_cells(base, 8, **{**GRID, **grid})


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_number_of_labels_is_itself_and_all_of_them_are_none(count, train):
    if count > train:
        with pytest.raises(SegaeError, match=f"with {train} training images"):
            read_budget(str(count), train)
    else:
        assert read_budget(str(count), train) == (None if count == train else count)


@given(st.floats(0.1, 100), st.integers(1, 10_000))
def test_a_share_of_the_labels_is_at_least_one_image_and_within_half_an_image(share, train):
    count = read_budget(f"{share:.4f}%", train)
    taken = train if count is None else count
    assert 1 <= taken <= train
    assert abs(taken - max(1, share / 100 * train)) <= 0.51


@pytest.mark.parametrize("text", ["", "ten", "0", "-5", "1.5", "0%", "101%", "5%%", "1e3"])
def test_an_impossible_budget_is_refused(text):
    with pytest.raises(SegaeError, match="--budgets"):
        read_budget(text, 100)


@pytest.mark.parametrize("text", ["3", "1+", "1+3+5", "0+0", "one+three", "1-3"])
def test_an_impossible_schedule_is_refused(text):
    with pytest.raises(SegaeError, match="--schedules 1[+]3"):
        read_schedule(text)


def test_every_combination_is_one_cell_and_every_budget_has_the_same_number_of_images_an_epoch(pets, tmp_path):
    found = cells(pets, tmp_path)
    assert len(found) == len({cell.settings for cell in found}) == 2 * 2 * 2
    assert {(cell.config.labels, cell.config.epoch_images) for cell in found} == {(2, 8), (None, None)}
    assert [cell.arm for cell in found[:4]] == ["random", "random", "ae:mask", "ae:mask"]


def test_one_pretraining_serves_all_label_budgets_and_each_seed_has_its_own(pets, tmp_path):
    folders = {(cell.config.labels, cell.seed): cell.pretraining for cell in cells(pets, tmp_path, arms=("ae:mask",))}
    assert folders[2, 0] == folders[None, 0] != folders[2, 1]


def test_what_is_asked_for_twice_is_refused(pets, tmp_path):
    with pytest.raises(SegaeError, match="budgets hold all images 2 times"):
        cells(pets, tmp_path, budgets=["8", "100%"])
    with pytest.raises(SegaeError, match="arms hold random 2 times"):
        cells(pets, tmp_path, arms=("random", "random"))


@pytest.mark.parametrize("name", sorted(set(PRESETS)))
def test_every_preset_gives_cells_for_a_given_data_set(name, pets, tmp_path):
    base, grids = grids_of(with_data(Bench(data=pets, preset=name, out=tmp_path)))
    found = cells_of(base, grids, 300)
    assert len({cell.settings for cell in found}) == len(found) >= len(base.seeds)
    assert "imagenet" in {cell.arm for cell in found}
    assert base.unlabelled == (pets / "unlabelled",)


def test_a_dimension_given_by_hand_takes_the_place_of_the_further_grids(pets, tmp_path):
    whole = grids_of(Bench(data=pets, preset="sample", out=tmp_path))[1]
    one = grids_of(Bench(data=pets, preset="sample", out=tmp_path, budgets=("10",)))[1]
    assert len(whole) > 1
    assert one == [{**{name: whole[0][name] for name in DIMENSIONS}, "budgets": ("10",)}]


def test_a_linear_decoder_has_nothing_to_take_along(pets, tmp_path):
    base, grids = grids_of(with_data(Bench(data=pets, out=tmp_path, decoders=("unet", "linear"))))
    assert {cell.arm for cell in cells_of(base, grids, 300)} == {
        *("random", "imagenet", "ae:layers", "imagenet+ae:feature_layers")
    }
    asked = with_data(Bench(data=pets, out=tmp_path, decoders=("linear",), arms=("ae:layers+decoder",)))
    with pytest.raises(SegaeError, match="linear decoder is its head.*arms without [+]decoder"):
        cells_of(*grids_of(asked), 300)


def test_a_pretraining_file_is_not_overruled_by_the_preset(pets, tmp_path):
    config = Bench(data=pets, out=tmp_path, pretrain_config=tmp_path / "p.json", pretrain_lr=0.5)
    base, _ = grids_of(config)
    assert (base.pretrain_epochs, base.pretrain_lr) == (None, 0.5)


@pytest.mark.parametrize(("score", "said"), [(0.9150, "agrees with"), (0.9050, "does not agree with")])
def test_the_published_protocol_is_judged_on_the_whole_test_split_only(score, said):
    accept = PRESETS["smp"].accept
    rows = [{"init": "imagenet", "iou_foreground": str(score + shift)} for shift in (-0.001, 0, 0.001)]
    assert said in verdict(accept, rows, 3669)
    assert "nothing follows" in verdict(accept, rows, 298)
    assert "nothing follows" in verdict(accept, [{"init": "random", "iou_foreground": "0.9"}], 3669)
    assert "nothing follows" in verdict(accept, [{"init": "imagenet", "iou_pet": "0.9"}], 3669)


class FakeEngine:
    """Ends jobs in the order they were given, and fails those it is told to."""

    def __init__(self, room: int, fails: tuple[str, ...] = ()) -> None:
        self.room, self.fails = room, fails
        self.running: list[Job] = []
        self.order: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def has_room(self) -> bool:
        return len(self.running) < self.room

    def submit(self, job: Job) -> None:
        assert self.has_room()
        self.running.append(job)
        self.order.append(job.key)

    def next(self) -> tuple[Job, Outcome]:
        job = self.running.pop(0)
        return job, Outcome(failure="no luck") if job.key in self.fails else Outcome({"miou": 0.5})


@pytest.mark.parametrize("room", [1, 3, 100])
def test_a_run_waits_for_its_pretraining_and_each_is_done_once(room, pets, tmp_path):
    found, engine, ended = cells(pets, tmp_path), FakeEngine(room), []
    failed = run_cells(found, engine, tmp_path, lambda job, outcome: ended.append(job.key))
    assert not failed
    assert sorted(engine.order) == sorted(ended)
    assert sorted(set(engine.order)) == sorted(engine.order)
    for cell in found:
        if cell.pretraining is not None:
            assert engine.order.index(str(cell.pretraining)) < engine.order.index(cell.settings)


def test_a_failed_pretraining_costs_the_runs_that_need_it_and_no_other(pets, tmp_path):
    found = cells(pets, tmp_path)
    bad = next(cell.pretraining for cell in found if cell.pretraining and cell.seed == 1)
    lonely = next(cell.settings for cell in found if cell.arm == "random")
    ended: list[str] = []
    failed = run_cells(found, FakeEngine(2, (str(bad), lonely)), tmp_path, lambda job, _: ended.append(job.key))
    assert set(failed) == {lonely, *(cell.settings for cell in found if cell.pretraining == bad)}
    assert set(ended) >= {cell.settings for cell in found} - set(failed)


def test_a_finished_pretraining_is_not_done_again(pets, tmp_path):
    found, engine = cells(pets, tmp_path, arms=("ae:mask",)), FakeEngine(1)
    for cell in found:
        cell.pretraining.mkdir(exist_ok=True)
        (cell.pretraining / "metrics.json").write_text("{}")
    run_cells(found, engine, tmp_path, lambda *_: None)
    assert engine.order == [cell.settings for cell in found]


def test_every_arm_is_tuned_with_the_same_candidates_on_validation_images_only(pets, tmp_path):
    found = cells(pets, tmp_path)
    tuning = Tuning(read_candidates(["lr=0.001,0.01", "bn_mode=strict,train"]), (0, 1))
    trials = tuning.cells(found)
    assert {cell.config.split for cell in trials} == {"val"}
    assert {cell.config.labels for cell in trials} == {None}, "the largest budget decides"
    tried = {
        arm: sorted((c.config.lr, c.config.bn_mode, c.seed) for c in trials if c.arm == arm)
        for arm in ("random", "ae:mask")
    }
    assert tried["random"] == tried["ae:mask"]
    assert len(tried["random"]) == 2 * 2 * 2


def test_the_best_candidate_of_each_arm_settles_its_cells(pets, tmp_path):
    found = cells(pets, tmp_path)
    tuning = Tuning(read_candidates(["lr=0.001,0.01"]), (0, 1))
    best = {"random": 0.001, "ae:mask": 0.01}
    rows = [
        {"settings": cell.settings, "miou": str(0.5 + 0.1 * (cell.config.lr == best[cell.arm]))}
        for cell in tuning.cells(found)
    ]
    settled = tuning.settle(found, tuning.chosen(found, rows))
    assert {(cell.arm, cell.config.lr) for cell in settled} == set(best.items())
    assert [(cell.arm, cell.seed, cell.config.labels) for cell in settled] == [
        (c.arm, c.seed, c.config.labels) for c in found
    ]
    assert {cell.config.split for cell in settled} == {"test"}
    with pytest.raises(SegaeError, match="misses the run with"):
        tuning.chosen(found, rows[1:])


@pytest.mark.parametrize("text", ["lr", "lr=", "lr=fast", "speed=1", "bn_mode=maybe", "recalibrate=2"])
def test_candidates_that_cannot_be_read_are_refused(text):
    with pytest.raises(SegaeError, match="--tune"):
        read_candidates([text])
