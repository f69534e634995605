"""The report: a short answer on top, everything else folded, no number without its ground, every name escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from segae.bench.comparison import compare_rows
from segae.bench.next_steps import next_steps
from segae.bench.report import largest_gain, report, verdict, write_report
from segae.bench.results import details_path, merge_rows, read_details, read_rows
from segae.errors import SegaeError
from tests.command_lines import parse_command

RESULTS = Path(__file__).resolve().parent.parent.parent / "results"
STARTS = {  # weights, method, family, transfer: expected IoU with the most labels
    ("random", "", "", "encoder"): 0.40,
    ("imagenet", "", "", "encoder"): 0.60,
    ("random", "denoise", "autoencoding", "encoder"): 0.41,
    ("imagenet", "pseudo_masks", "pseudo_masks", "encoder+decoder"): 0.70,
}
IMAGES, CLASSES = 30, ("pet", "background")


def fabricate(folder: Path, seeds=3, budgets=(30, 100, 300), starts=tuple(STARTS), kinds=(), counts=True, **change):
    """Write the tables of a finished study called bench and return the path of its rows."""
    runs = [(start, budget, ("unet", 1, 3)) for budget in budgets for start in starts]
    runs += [(start, max(budgets), kind) for start, *kind in kinds]
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 0.08, (IMAGES, 1))  # an image is as hard for one variant as for the others
    rows, images, curves, confusion = [], [], [], []
    for number, (start, budget, (decoder, frozen, full)) in enumerate(runs):
        level = STARTS.get(start, 0.5) + 0.05 * np.log10(budget / max(budgets)) + (0.01 if full > 3 else 0)
        for seed in range(seeds):
            run = {"run_id": f"{number:04d}e{seed}", "seed": seed}
            union = rng.integers(500, 1000, (IMAGES, len(CLASSES)))
            iou = level + easy + rng.normal(0, 0.004) + rng.normal(0, 0.02, union.shape)
            inter = np.round(union * np.clip(iou, 0.01, 0.99)).astype(int)
            scores = inter.sum(axis=0) / union.sum(axis=0)
            row = {"experiment": "bench", "dataset": "pets", "split": "test", "labels": budget, "decoder": decoder}
            row |= {"encoder": "test_resnet", "image_size": 64, "freeze_epochs": frozen, "epochs": full, "lr": 0.004}
            row |= dict(zip(("weights", "method", "method_family", "transfer"), start, strict=True)) | run
            row |= {"miou": scores.mean(), "seconds": 60.0, "commit": "0123456789ab", "date": "2026-11-28"}
            row |= {f"iou_{name}": score for name, score in zip(CLASSES, scores, strict=True)}
            if start[1]:
                args = {"source": "features"} if start[1] == "pseudo_masks" else {"sigma": 0.5}
                row |= {"method_args": args, "pretrain_epochs": 20, "pretrain_seed": seed, "pretrain_dataset": "pets"}
            rows.append(row | change)
            for index in range(IMAGES):
                line = {"dataset": "pets", "split": "test", **run, "image": f"i{index}", "miou": 0.5}
                line |= {f"intersection_{name}": inter[index, k] for k, name in enumerate(CLASSES)}
                images.append(line | {f"union_{name}": union[index, k] for k, name in enumerate(CLASSES)})
            curves += [{**run, "epoch": epoch, "train_loss": 1 / epoch} for epoch in (1, 2)]
            confusion += [
                {**run, "truth": a, "prediction": b, "pixels": 9 - 8 * (a != b)} for a in CLASSES for b in CLASSES
            ]
    path = folder / "bench.csv"
    merge_rows(path, rows)
    for kind, lines in {"per_image": images, "curves": curves, "confusion": confusion}.items() if counts else ():
        merge_rows(details_path(path, "bench", kind), lines, key=("run_id",))
    return path


class Page(HTMLParser):
    """The tables and images of a page, and how deep in <details> each stands; all of its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source, self.depth, self.text = path.read_text(), 0, ""
        self.tables, self.images, self.open, self.h1 = [], [], [], ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.depth += tag == "details"
        if tag == "table":
            self.tables.append((self.depth, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][1][-1].append("")
        elif tag == "img":
            self.images.append((self.depth, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.depth -= tag == "details"

    def handle_data(self, data):
        self.text += data + " "
        if {"td", "th"} & set(self.open):
            self.tables[-1][1][-1][-1] += data + " "
        if "h1" in self.open:
            self.h1 += data

    @property
    def answer(self) -> list[list[str]]:
        (table,) = (rows for depth, rows in self.tables if depth == 0)
        return table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Rows of 3 seeds, 4 variants and 3 label budgets, and their page beside them."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGAE_CACHE", str(folder / "cache"))
        path = fabricate(folder)
    report(path)
    return path


def test_the_page_opens_with_one_verdict_one_figure_and_one_table(study):
    page = Page(study.with_suffix(".html"))
    assert len(page.h1.split()) <= 25
    assert [depth for depth, _ in page.images].count(0) == 1
    assert 3 <= len(page.answer[0]) <= 6
    assert len(page.answer) == 1 + len(STARTS)
    assert "autoencoding (denoise)" in page.text
    assert "pseudo-masks (features)" in page.text
    assert page.text.rstrip().endswith("segae predict IMAGES --model runs/finetune/model.safetensors")
    for title in ("100 labels", "30 labels", "Further comparisons", "Classes and boundaries", "Confusion", "Settings"):
        assert title in page.text
    assert not re.search(r'(src|href)="(?!data:)', page.source)
    assert all(len(attrs["alt"]) > 20 for _, attrs in page.images)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "dice"}, "dice loss"),
        ({"augment": False}, "no augmentation"),
        ({"augment": "strong"}, "strong augmentation"),
        ({"augment": '{"transform": {}}'}, "own augmentation"),
        ({"finetune_settings": {"weight_decay": 0.1}}, "weight_decay 0.1"),
    ],
)
def test_rows_of_other_settings_of_fine_tuning_are_a_section_of_their_own(tmp_path, change, said):
    few = {"seeds": 2, "budgets": (300,), "counts": False}
    usual, other = (read_rows(fabricate(tmp_path / name, **few, **how)) for name, how in (("a", {}), ("b", change)))
    rows = pd.concat([usual, other.assign(run_id="b" + other["run_id"])], ignore_index=True)
    assert len(compare_rows(rows)) == 2
    titles = Page(write_report(rows, tmp_path / "page.html")).text
    assert titles.count("test_resnet, unet, 64 px") == 2
    assert titles.count(said) == 1


def test_verdict_table_and_comparison_table_agree(study):
    rows, page = read_rows(study), Page(study.with_suffix(".html"))
    (section,) = compare_rows(rows, read_details(study, "bench", "per_image"))
    for _, one in section.at(300).iterrows():
        (line,) = (row for row in page.answer if row[0].strip() == one["name"])
        assert line[1].split()[0] == f"{one['miou']:.3f}"
        assert line[1].split()[1::2] == [f"{one['low']:.3f}", f"{one['high']:.3f}"]
        if one["start"]:
            assert line[2].split()[0] == f"{one['gain']:+.3f}".replace("-", "−")
            assert ("clear" in line[3]) == one["clear"] == (one["p"] < 0.05)
    best = section.at(300).iloc[-1]
    mine = rows[(rows["method"] == "pseudo_masks") & (rows["labels"] == 300)]
    assert best["miou"] == pytest.approx(mine["miou"].mean())
    assert best["name"] == "ImageNet + pseudo-masks (features) + decoder"
    assert best["start"] == "ImageNet"
    assert page.h1 == verdict(section)
    assert all(
        part in page.h1 for part in (best["name"], f"{best['miou']:.3f}", f"{best['gain']:.3f}", "clear of chance")
    )
    assert section.at(100)["worth"].iloc[-1] == "> 300"


def test_one_seed_has_no_p_value_and_no_interval(tmp_path):
    page = Page(report(fabricate(tmp_path, seeds=1, starts=tuple(STARTS)[:2], budgets=(30,))))
    assert "single seed" in page.h1
    assert [name.strip() for name in page.answer[0]] == ["encoder weights", "mIoU", "gain"]
    assert [re.sub(r"[\d.]+", "0", row[1].strip()) for row in page.answer[1:]] == ["0", "0"]
    assert page.answer[2][2].split()[1:] == ["over", "random"]
    assert not re.search(r"\d to [−+\d]|corrected|Holm|p below", page.text)
    assert "same segae bench command with --seeds 3" in page.text


def test_without_scores_of_images_intervals_are_over_seeds(study, tmp_path):
    rows = read_rows(study)
    with_counts, page = Page(study.with_suffix(".html")), Page(write_report(rows, tmp_path / "page.html"))
    assert "intervals over seeds." in page.text
    assert "no scores of single images" in page.text
    assert "intervals over seeds and test images" in with_counts.text
    (section,) = compare_rows(rows)
    scores = rows[(rows["weights"] == "random") & (rows["method"] == "") & (rows["labels"] == 300)]["miou"]
    half = 4.302653 * scores.std() / 3**0.5
    assert section.at(300)["high"].iloc[0] == pytest.approx(scores.mean() + half)


def test_frozen_linear_and_longer_variants_stand_beside_those_they_vary(tmp_path):
    random, imagenet = list(STARTS)[:2]
    kinds = [(imagenet, "unet", 4, 0), (imagenet, "linear", 4, 0), (random, "unet", 1, 12)]
    (section,) = compare_rows(read_rows(fabricate(tmp_path, kinds=kinds)))
    assert set(section.at(300)["kind"]) == {"", "frozen", "linear", "longer"}
    assert list(section.at(300)["name"])[-3:] == ["ImageNet, frozen", "ImageNet, linear head", "random, 12 epochs"]
    assert list(section.at(300)["start"])[-3:] == ["ImageNet", "ImageNet", "random"]
    pairs = set(zip(section.tests["name"], section.tests["other"], strict=True))
    assert ("random + autoencoding (denoise)", "random, 12 epochs") in pairs


def test_variants_of_one_name_differ_by_their_settings(study):
    rows = read_rows(study).query("labels == 30")
    longer = rows[rows["method"] == "denoise"].assign(pretrain_epochs=80, method_args='{"sigma": 0.2}')
    (section,) = compare_rows(pd.concat([rows, longer]))
    names = [name for name in section.results["name"] if "denoise" in name]
    assert all("[pretrain epochs " in name and "sigma" not in name for name in names)  # the first tells them apart
    assert len(set(names)) == 2


def test_published_weights_have_their_own_name(study):
    rows = read_rows(study).query("labels == 30")
    ours = rows[rows["method"] == "denoise"]
    theirs = ours.assign(
        pretrain_epochs=80, weights_source="published weights pets_denoise", run_id="p" + ours["run_id"]
    )
    (section,) = compare_rows(pd.concat([rows, theirs]))
    assert sum("[published pets_denoise]" in name for name in section.results["name"]) == 1


def test_two_files_of_equal_settings_are_two_variants(study):
    rows = read_rows(study).query("labels == 30")
    ours = rows[rows["method"] == "denoise"]
    others = [
        ours.assign(weights_file=f"runs/{name}/encoder.safetensors", run_id=name + ours["run_id"]) for name in "ab"
    ]
    (section,) = compare_rows(pd.concat([rows[rows["method"] != "denoise"], *others]))
    names = [name.partition(" [")[2] for name in section.results["name"] if "denoise" in name]
    assert sorted(names) == ["file a]", "file b]"]


def test_data_sets_and_schedules_are_folded_sections(study, tmp_path):
    rows = read_rows(study)
    other = rows[rows["labels"] > 30].assign(dataset="cells", run_id=lambda table: "x" + table["run_id"])
    page = Page(write_report(pd.concat([other, rows]), tmp_path / "page.html"))
    assert len(page.answer) == 1 + len(STARTS)
    assert page.text.index("pets, test split") < page.text.index("cells, test split")


def test_every_name_is_escaped(tmp_path):
    evil = "<script>alert(1)</script> $x^2$"
    path = fabricate(tmp_path, budgets=(30,), dataset=evil, encoder=evil, commit=evil, weights=evil, device=evil)
    rows = read_rows(path).drop_duplicates(["seed", "method"]).rename(columns={"iou_pet": f"iou_{evil}"})
    confusion = read_details(path, "bench", "confusion").replace("pet", evil)
    page = Page(write_report(rows, tmp_path / "p.html", confusion=confusion, notes=[evil]))
    assert "<script" not in page.source
    assert page.text.count(evil) > 5


def test_pictures_and_figures_come_from_the_disk(tmp_path):
    path = fabricate(tmp_path, budgets=(30,), seeds=2)
    for run in read_rows(path)["run_id"]:
        sheet = tmp_path / "runs" / f"pets-unet-{run}" / "test" / "sheet.png"
        sheet.parent.mkdir(parents=True)
        Image.new("RGB", (2000, 40), "red").save(sheet)
    first = report(path, runs=tmp_path / "runs", figures=tmp_path / "figures").read_bytes()
    assert first.count(b"data:image/jpeg") == len(STARTS)
    assert {one.suffix for one in (tmp_path / "figures").iterdir()} == {".svg", ".pdf"}
    sheet.write_bytes(b"no picture")  # the last seed's, which is not shown
    assert report(path, runs=tmp_path / "runs").read_bytes() == first
    (tmp_path / "runs" / "pets-unet-0000e0" / "test" / "sheet.png").write_bytes(b"no picture")
    with pytest.raises(SegaeError, match=r"sheet\.png"):
        report(path, runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 0}, "seed .*0000e0, 0000e1"),
        ({"method_args": "{"}, "method_args"),
        ({"labels": ""}, "row 2, column labels"),
        ({"experiment": ""}, "row 2, column experiment"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(tmp_path, change, words):
    with pytest.raises(SegaeError, match=words):
        report(fabricate(tmp_path, budgets=(30,), counts=False, **change))


def test_a_study_must_be_chosen_among_several(tmp_path):
    path = fabricate(tmp_path, budgets=(30,))
    fabricate(tmp_path, budgets=(30,), experiment="other")
    with pytest.raises(SegaeError, match="experiment .*bench, other"):
        report(path)
    assert "segae · other" in Page(report(path, experiment="other", out=tmp_path / "page.html")).text


def test_doubts_are_computed_from_the_rows(study, tmp_path):
    rows = read_rows(study).assign(pretrain_seed=0.0, split="val", versions="a")
    rows.loc[0, ["commit", "versions", "label_subset"]] = ["abc+changes", "b", "one"]
    rows.loc[3, "label_subset"] = "two"
    page = Page(write_report(rows[rows.index != 5], tmp_path / "page.html", notes=["Near-duplicates."]))
    for words in ("different labeled images", "same seeds", "Validation", "not committed", "2 commits", "2 sets of"):
        assert words in page.text
    assert all(words in page.text for words in ("Near-duplicates.", "One pretraining", "ImageNet weights rest"))


def test_committed_rows_make_a_page(tmp_path):
    page = Page(report(RESULTS / "pretraining_gpu.csv", out=tmp_path / "page.html"))
    assert "ImageNet + pseudo-masks (features) + decoder reaches 0.740 mIoU, 0.049 more than ImageNet" in page.h1
    assert json.dumps(page.answer).count("clear") >= 3


PRETRAINED = {  # what a benchmark notes of a pretraining
    **{"pretrain_image_size": "32x64", "pretrain_epochs": 4, "pretrain_batch_size": 8, "pretrain_lr": 0.002},
    **{"pretrain_decoder": "unet", "pretrain_seconds": 9.0},
    "pretrain_settings": {"encoder_lr_ratio": 0.1, "freeze_epochs": 1, "repeats": 3, "domain_decoders": True},
}


def commands(path: Path) -> list[str]:
    """The commands that a page prints below its answer; all of them can be parsed."""
    found = [command for _, command in next_steps(compare_rows(read_rows(path))[0]) if command]
    page = Page(report(path))
    assert all(command in page.text for command in found)
    return found


@pytest.mark.parametrize(
    ("method", "args", "kept"),
    [
        ("pseudo_masks", {"boundary": None, "source": "features"}, {"source": "features"}),
        ("denoise", {"sigma": 0.2, "residual": True}, {"sigma": 0.2, "residual": True}),
    ],
)
def test_the_printed_pretraining_is_that_of_the_best_variant(tmp_path, method, args, kept):
    start = [("imagenet", method, "", "encoder+decoder")]
    how = {"starts": start, "budgets": (30,), "counts": False, "method_args": args, **PRETRAINED}
    how |= {"loss": "dice", "augment": "strong", "finetune_settings": {"weight_decay": 0.02, "class_weights": [1, 2]}}
    pretraining, finetuning, prediction = commands(fabricate(tmp_path, decoder="fpn", encoder="resnet18", **how))
    found = parse_command(pretraining)
    expected = {"weights": "imagenet", "encoder": "resnet18", "method": method, "method_args": kept}
    expected |= {"image_size": (32, 64), "epochs": 3, "batch_size": 8, "lr": 0.002, "decoder": "unet"}
    expected |= {"encoder_lr_ratio": 0.1, "freeze_epochs": 1, "repeats": 3, "domain_decoders": True, "warmup": 0.1}
    assert {name: getattr(found, name) for name in expected} == expected
    found = parse_command(finetuning)
    assert (found.decoder, found.image_size, found.transfer) == ("fpn", 64, "encoder+decoder")
    assert (found.loss, found.augment, found.weight_decay) == ("dice", "strong", 0.02)
    assert found.class_weights == (1, 2)
    assert parse_command(prediction)


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        ({"weights_file": "my runs/encoder.safetensors"}, "my runs/encoder.safetensors"),
        ({"weights_source": "published weights pets_pseudo_masks"}, "pets_pseudo_masks"),
    ],
)
def test_weights_that_exist_are_not_pretrained_and_the_page_doubts_them(tmp_path, change, weights):
    few = {"budgets": (30,), "counts": False}
    path = fabricate(tmp_path, starts=tuple(STARTS)[3:], pretrain_dataset="other photos", **few, **change)
    finetuning, _ = commands(path)
    assert parse_command(finetuning).weights == weights
    assert f"{weights} (on other photos)" in Page(path.with_suffix(".html")).text
    # pretrained further by the benchmark, from these weights
    path = fabricate(tmp_path / "further", starts=tuple(STARTS)[3:], **few, **PRETRAINED | change)
    pretraining, finetuning, _ = commands(path)
    assert parse_command(pretraining).weights == weights
    assert parse_command(finetuning).weights == "runs/pretrain/encoder.safetensors"
    assert f"{weights}. segae cannot see" in Page(path.with_suffix(".html")).text
    assert "segae cannot see" not in Page(report(fabricate(tmp_path / "own", **few))).text


def test_intervals_of_a_mean_stay_in_their_range_and_those_of_gains_do_not(tmp_path):
    rows = read_rows(fabricate(tmp_path, seeds=2, starts=tuple(STARTS)[:2], budgets=(30,)))
    rows["miou"] = [0.1, 0.9, 0.99, 0.05]
    page = Page(write_report(rows, tmp_path / "page.html"))
    assert [row[1].split()[1:] for row in page.answer[1:]] == [["0.000", "to", "1.000"]] * 2
    assert float(page.answer[2][2].split()[1].replace("−", "-")) < -1


def test_labels_are_counted_for_a_gain_alone(tmp_path):
    """The start falls with more labels, so the closest rising curve is flat, and lies below it with few labels."""
    path = fabricate(tmp_path, starts=tuple(STARTS)[:2])
    rows, per_image = read_rows(path), read_details(path, "bench", "per_image")
    levels = {("random", 30): 60, ("random", 100): 50, ("random", 300): 40}
    levels |= {("imagenet", 30): 58, ("imagenet", 100): 58, ("imagenet", 300): 42}
    level = {one["run_id"]: levels[one["weights"], one["labels"]] + one["seed"] for _, one in rows.iterrows()}
    for name in ("pet", "background"):
        per_image[f"union_{name}"] = 100.0
        per_image[f"intersection_{name}"] = per_image["run_id"].map(level)
    rows["miou"] = rows["run_id"].map(level) / 100
    (section,) = compare_rows(rows, per_image)
    found = section.results[section.results["name"] == "ImageNet"].set_index("labels")
    assert list(found["gain"].round(2)) == [-0.02, 0.08, 0.02]
    assert [found.loc[30, "worth"], found.loc[100, "worth"][:5], found.loc[300, "worth"]] == ["", "> 300", ""]


def test_an_effect_of_zero_has_no_sign(study, tmp_path):
    rows = read_rows(study).query("labels == 30 and method == ''").assign(method_args="")
    rows.loc[rows["weights"] == "imagenet", "miou"] = rows.loc[rows["weights"] == "random", "miou"].to_numpy() - 1e-4
    page = Page(write_report(rows, tmp_path / "page.html"))
    assert page.answer[2][2].split()[0] == "0.000"
    assert not re.search(r"[−+]0\.0+(?!\d)", page.text)


@pytest.mark.parametrize(
    ("denoise", "imagenet", "said"),
    [
        ((0.50, 0.51), (0.50, 0.80), ("Largest gain whose interval excludes 0: random + auto", "+0.10", "95 %).")),
        ((0.40, 0.50), (0.50, 0.80), ("Largest gain: ImageNet over random, +0.245", "), within chance.")),
        ((0.39, 0.40), (0.38, 0.40), ("No gain; the smallest loss: random + auto", "-0.010", "95 %).")),
    ],
)
def test_a_gain_beyond_chance_is_named_before_a_larger_one(tmp_path, denoise, imagenet, said):
    rows = read_rows(fabricate(tmp_path, seeds=2, starts=tuple(STARTS)[:3], budgets=(30,), counts=False))
    rows["miou"] = [*((0.40, 0.4102) if denoise[0] != 0.39 else (0.40, 0.4101)), *imagenet, *denoise]
    (section,) = compare_rows(rows)
    assert all(part in largest_gain(section) for part in said), largest_gain(section)
