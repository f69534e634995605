"""The page says what the rows say: numbers, doubts, missing files, and names that are no markup."""

from __future__ import annotations

import csv
import gzip
import html
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from segae.bench.report import Report, run, write_report
from segae.bench.report_arms import sections_of
from segae.bench.report_findings import answers, headline, worth_findings
from segae.bench.report_numbers import numbers_of
from segae.bench.report_text import methods, worth_text
from segae.bench.worth import Worth
from segae.data.drawn_pets import draw_pets
from segae.errors import SegaeError
from segae.tasks.rows import COLUMNS, read_rows, write_rows

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CLASSES = ("pet", "background", "border")
IMAGES = 40
PIXELS = 1000
SKILL = {"random": 0.40, "imagenet": 0.69, "ae:denoise": 0.43, "imagenet+ae:denoise": 0.69}
_DEFAULTS = {
    **{"split": "test", "encoder": "tf_efficientnet_lite0", "transfer": "encoder", "image_size": 128},
    **{"batch_size": 16, "lr": 0.004, "lr_ratio": 1.0, "bn_mode": "strict", "warmup": 0.3, "recalibrate": 0},
    **{"device": "cpu (1 threads)", "peak_memory_mb": 1900, "commit": "0123456789ab", "versions": "torch 2.15.0"},
    **{"date": "2026-11-22", "loss": "cross_entropy"},
}


def simulate(
    folder: Path,
    *,
    budgets: Sequence[int] = (30, 300),
    seeds: Sequence[int] = (0, 1, 2),
    inits: Sequence[str] = tuple(SKILL),
    dataset: str = "oxford-iiit-pet-sample",
    classes: Sequence[str] = CLASSES,
    variants: Sequence[tuple[str, str, int, int]] = (),
    skill: dict[str, float] | None = None,
    side_files: bool = True,
    changes: dict[str, object] | None = None,
    append: bool = False,
) -> Path:
    """Write the files of a finished benchmark called `bench`: rows, counts of single images, curves, confusion.

    Args:
        folder: where they go.
        variants: further (init, decoder, frozen epochs, full epochs), at the largest budget.
        skill: expected IoU of each init with the most labels; a tenth of the labels costs 0.1.
        changes: columns that are other than usual.
        append: add to the files that are there.
    """
    runs = [(init, "unet", 1, 3, budget) for budget in budgets for init in inits]
    runs += [(*variant, max(budgets)) for variant in variants]
    generator = np.random.default_rng(len(dataset))
    easy = generator.normal(0, 0.08, IMAGES)  # an image is as hard for one arm as for the others
    made: dict[str, list[dict[str, object]]] = {"rows": [], "per_image": [], "curves": [], "confusion": []}
    for init, decoder, frozen, full, budget in runs:
        level = (skill or SKILL)[init] + 0.1 * np.log10(budget / max(budgets)) + (0.02 if full > 3 else 0)
        for seed in seeds:
            settings = f"{generator.integers(16**10):010x}"
            iou = level + easy[:, None] + np.array([0.1, 0.15, -0.25])[None, : len(classes)] + generator.normal(0, 0.01)
            union = generator.integers(PIXELS // 2, PIXELS, (IMAGES, len(classes)))
            inter = np.round(union * np.clip(iou + generator.normal(0, 0.02, iou.shape), 0.01, 0.99)).astype(int)
            key = {"dataset": dataset, "split": "test", "settings": settings, "init": init, "seed": seed}
            key |= {"labels": budget, "freeze_epochs": frozen, "epochs": full}
            per_class = inter.sum(axis=0) / union.sum(axis=0)
            row = {**dict.fromkeys(COLUMNS, ""), **_DEFAULTS, **key, "experiment": "bench", "decoder": decoder}
            row |= {
                "miou": round(float(per_class.mean()), 6),
                "dice": 0.7,
                "pixel_accuracy": 0.8,
                "seconds": 60 + budget,
            }
            row |= {"per_image_miou": 0.6, "boundary_iou": round(float(per_class.mean()) / 2, 6), "label_fraction": 1.0}
            row |= {f"iou_{name}": round(float(value), 6) for name, value in zip(classes, per_class, strict=True)}
            row["epoch_images"] = "" if budget == max(budgets) else max(budgets)
            row["label_subset"] = f"{budget:06d}{seed:010d}"
            if "ae:" in init:
                row |= {"pretrain_objective": "denoise", "pretrain_dataset": dataset, "pretrain_images": 900}
                row |= {"pretrain_epochs": 40, "pretrain_images_seen": 36000, "pretrain_image_size": 96}
                row |= {"pretrain_batch_size": 32, "pretrain_lr": 0.001, "pretrain_decoder": "plain"}
                row |= {"pretrain_seed": seed, "pretrain_seconds": 900, "pretrain_commit": "0123456789ab"}
            made["rows"].append(row | (changes or {}))
            for image in range(IMAGES):
                counts = {f"intersection_{name}": inter[image, k] for k, name in enumerate(classes)}
                counts |= {f"union_{name}": union[image, k] for k, name in enumerate(classes)}
                miou = float(np.mean(inter[image] / union[image]))
                made["per_image"].append({**key, "image": f"image_{image}", "miou": round(miou, 6), **counts})
            for epoch in range(1, frozen + full + 1):
                phase = "frozen" if epoch <= frozen else "full"
                loss = {"train_loss": round(1.2 / epoch + 0.02 * seed, 4), "valid_loss": "", "miou": ""}
                made["curves"].append({"settings": settings, "seed": seed, "epoch": epoch, "phase": phase, **loss})
            for true, truth in enumerate(classes):
                for predicted, prediction in enumerate(classes):
                    pixels = 700 if true == predicted else 100
                    cell = {"settings": settings, "seed": seed, "truth": truth, "prediction": prediction}
                    made["confusion"].append({**cell, "pixels": pixels})
    path = folder / "bench.csv"
    write_rows(path, [*(read_rows(path) if append else []), *made.pop("rows")])
    for kind, lines in made.items() if side_files else ():
        _write(folder / kind / "bench.csv.gz", lines, append)
    return path


def _write(path: Path, lines: list[dict[str, object]], append: bool) -> None:
    old: list[dict[str, object]] = []
    if append:
        with gzip.open(path, "rt", newline="") as file:
            old = list(csv.DictReader(file))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for line in [*old, *lines] for name in line))
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows([*old, *lines])


def words(page: Path) -> str:
    """The page without its markup, spaces made one."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    variants = [("imagenet", "unet", 4, 0), ("imagenet", "linear", 4, 0), ("random", "unet", 1, 12)]
    rows = simulate(folder, variants=variants)
    return run(Report(rows=rows))


def test_the_numbers_of_the_page_are_those_of_the_rows(page):
    said = words(page)
    rows = read_rows(page.parent / "bench.csv")
    for init in SKILL:
        for labels in ("30", "300"):
            mine = [row for row in rows if (row["init"], row["labels"], row["decoder"]) == (init, labels, "unet")]
            mine = [row for row in mine if row["epochs"] == "3"]
            assert len(mine) == 3
            for column in ("miou", "iou_pet", "iou_border", "boundary_iou"):
                assert f"{np.mean([float(row[column]) for row in mine]):.3f}" in said
    random, imagenet = (
        {
            row["seed"]: float(row["miou"])
            for row in rows
            if (row["init"], row["labels"], row["epochs"]) == (init, "300", "3")
        }
        for init in ("random", "imagenet")
    )
    assert f"{np.mean([imagenet[seed] - random[seed] for seed in random]):+.3f}" in said
    assert "6.0" in said  # (60 + 300) seconds
    assert "15.0" in said  # pretraining


def test_arms_of_one_name_are_told_apart_by_what_differs(tmp_path):
    rows = read_rows(simulate(tmp_path, budgets=(300,), inits=("random", "ae:denoise")))
    longer = [row | {"pretrain_epochs": "160"} for row in rows if row["init"] == "ae:denoise"]
    (section,) = sections_of([*rows, *longer])
    assert [arm.name for arm in section.arms][1:] == [
        "autoencoder (denoise) [pretraining epochs 160]",
        "autoencoder (denoise) [pretraining epochs 40]",
    ]


def test_variants_stand_beside_the_arms_that_they_vary(page):
    (section,) = sections_of(read_rows(page.parent / "bench.csv"))
    assert [arm.name for arm in section.at(300)] == [
        *("random", "ImageNet", "autoencoder (denoise)", "ImageNet + autoencoder (denoise)"),
        *("ImageNet with a frozen encoder", "ImageNet with a linear head", "random for 1 + 12 epochs"),
    ]
    assert all(name in words(page) for name in ("ImageNet with a frozen encoder", "random for 1 + 12 epochs"))


def test_the_page_is_alone_and_its_pictures_have_words(page):
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv)', text)
    pictures = re.findall(r"<img [^>]*>", text)
    assert len(pictures) > 8
    assert all(re.search(r'alt="[^"]{10,}"', picture) for picture in pictures)
    assert page.stat().st_size < 3e6


def test_every_figure_is_a_file_of_its_own(tmp_path):
    rows = simulate(tmp_path, inits=("random",), dataset="../pets/of mine")
    write_report(rows, tmp_path / "page.html", figures=tmp_path / "figures")
    files = {path.name: path for path in (tmp_path / "figures").iterdir()}
    stems = {path.stem for path in files.values()}
    kinds = ("labels", "classes", "boundaries", "confusion-1", "curves-train-loss", "cost")
    assert stems == {f"1-pets-of-mine-{kind}" for kind in kinds}
    assert set(files) == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "pdf")}
    curve = files["1-pets-of-mine-labels.svg"].read_text()
    assert "labelled training images" in curve
    assert ">random<" in curve
    assert files["1-pets-of-mine-labels.pdf"].read_bytes().startswith(b"%PDF")


def test_no_difference_is_claimed_whose_interval_contains_zero(tmp_path):
    rows = simulate(tmp_path, budgets=(300,), skill=SKILL | {"imagenet+ae:denoise": 0.692})
    (section,) = sections_of(read_rows(rows))
    numbers = numbers_of(section, tmp_path / "per_image" / "bench.csv.gz")
    said = headline(numbers, 300)
    _, _, rest = said.partition("cannot be told apart from")
    assert rest, said
    assert "ImageNet" in rest.partition("; it is ahead of")[0]
    assert "random" in rest.partition("; it is ahead of")[2]
    for result in numbers.results:
        for comparison in result.against.values():
            ends = comparison.difference
            if ends.low <= 0 <= ends.high:
                assert f"ahead of {result.arm.name} " not in said


def test_a_section_begins_with_its_largest_budget_and_folds_the_smaller_ones(tmp_path):
    rows = simulate(tmp_path, budgets=(30, 300))
    text = words(write_report(rows, tmp_path / "page.html"))
    places = [text.index(part) for part in ("With 300 labelled images of oxford", "With 300 labels, ")]
    places += [
        text.index("Which start is best with fewer labels"),
        text.index("With 30 labels, "),
        text.index("Scores"),
    ]
    assert places == sorted(places)
    one = words(write_report(simulate(tmp_path / "one", budgets=(300,)), tmp_path / "one.html"))
    assert "With 300 labels, " in one
    assert "fewer labels" not in one


def test_many_starts_are_told_together(tmp_path):
    gains = {"mask": 0.02, "denoise": 0.03, "sparse_mask": 0.12, "a2mim": 0.13, "mixture": 0.14}
    inits = {f"ae:{name}": SKILL["random"] + gain for name, gain in gains.items()}
    rows = simulate(tmp_path, budgets=(30, 300), inits=("random", *inits), skill=SKILL | inits)
    (section,) = sections_of(read_rows(rows))
    said = answers(numbers_of(section, tmp_path / "per_image" / "bench.csv.gz"))
    assert all(sentence.startswith(("With 300 labels, ", "With 30 labels, ")) for sentence in said)
    for labels in (300, 30):
        counts = [int(one.split(", ")[1].split()[0]) for one in said if one.startswith(f"With {labels} ")]
        assert sum(counts) == len(gains)
    assert "the best of them autoencoder (mixture) (+" in said[0]
    two = tuple(inits)[:2]
    rows = simulate(tmp_path / "few", budgets=(300,), inits=("random", *two), skill=SKILL | inits)
    (section,) = sections_of(read_rows(rows))
    said = answers(numbers_of(section, tmp_path / "few" / "per_image" / "bench.csv.gz"))
    assert [one.split(" (")[0] for one in said] == ["Autoencoder", "Autoencoder"]


def test_drawn_pictures_are_said_to_be_drawn(tmp_path):
    rows = simulate(tmp_path, budgets=(300,), inits=("random",), dataset="drawn")
    draw_pets(tmp_path / "drawn", train=4, test=2, size=32, progress=False)
    (tmp_path / "runs").mkdir()
    said = words(write_report(rows, tmp_path / "page.html", data=tmp_path / "drawn", runs=tmp_path / "runs"))
    assert "The pictures of drawn were drawn by a program" in said
    assert "drawn by a program" not in words(write_report(rows, tmp_path / "page.html"))


def test_a_clear_difference_is_claimed_with_its_interval(tmp_path):
    rows = simulate(tmp_path, budgets=(300,), inits=("random", "imagenet"))
    (section,) = sections_of(read_rows(rows))
    numbers = numbers_of(section, tmp_path / "per_image" / "bench.csv.gz")
    gain = numbers.results[1].against["random"].difference
    assert numbers.comparisons == 1  # ImageNet against random is not counted twice
    assert "cannot be told apart" not in headline(numbers, 300)
    expected = f"ahead of random (+{gain.estimate:.3f}, +{gain.low:.3f} to +{gain.high:.3f})"
    assert expected in headline(numbers, 300)


def test_one_seed_claims_nothing(tmp_path):
    rows = simulate(tmp_path, budgets=(300,), seeds=(0,), inits=("random", "imagenet"))
    said = words(write_report(rows, tmp_path / "page.html"))
    assert "No difference could be tested: that takes two seeds or more" in said
    assert "ahead of" not in said
    assert "no spread between seeds is known" in said


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    rows = simulate(tmp_path, budgets=(300,), inits=("random", "imagenet"), side_files=False)
    said = words(write_report(rows, tmp_path / "page.html"))
    for kind in ("curves", "confusion"):
        assert f"There is no {kind}/bench.csv.gz beside bench.csv: `segae bench` writes it" in said
    assert "segae report --rows bench.csv --data FOLDER --runs FOLDER" in said
    assert "intervals are over seeds alone (there is no per_image/bench.csv.gz" in said
    assert "intervals (over seeds)" in said


def test_names_are_no_markup_and_no_formula(tmp_path):
    hostile, dataset = "<script>alert(1)</script>$\\frac{", "pets\"'><img src=x onerror=alert(2)>"
    rows = simulate(tmp_path, budgets=(300,), inits=("random",), classes=(hostile, "NA", "c"), dataset=dataset)
    out = write_report(rows, tmp_path / "page.html")
    text = out.read_text()
    assert "<script" not in text
    assert "<img src=x" not in text
    assert html.escape(f"IoU {hostile}", quote=False) in text
    assert "NA 78 %" in html.unescape(text)  # a class of that name is no missing value


def test_doubts_are_computed_from_the_rows(tmp_path):
    rows = read_rows(simulate(tmp_path, budgets=(30, 300), inits=("random", "ae:denoise")))
    rows[0]["commit"] = "fedcba987654+changes"
    rows[1]["label_subset"] = "other"
    for row in rows:
        row["pretrain_seed"] = "0" if row["pretrain_seed"] else ""
    write_rows(tmp_path / "bench.csv", rows)
    said = words(write_report(tmp_path / "bench.csv", tmp_path / "page.html"))
    doubts = said[said.rindex("What would invalidate this") :]
    assert "had different labelled images (oxford-iiit-pet-sample, 30 labels" in doubts
    assert "2 commits (0123456789ab and fedcba987654+changes)" in doubts
    assert "not committed (fedcba987654+changes)" in doubts
    assert "One pretraining served several seeds" in doubts
    assert "No arm started from ImageNet weights" in doubts
    assert "still falling by 5 % or more" in doubts
    assert f"{IMAGES} scored images" in doubts


def test_the_methods_say_what_the_rows_say(tmp_path):
    path = simulate(tmp_path, budgets=(30, 300), changes={"batch_size": 24, "image_size": 160})
    numbers = [numbers_of(one, tmp_path / "none.csv.gz") for one in sections_of(read_rows(path))]
    said = methods(numbers)
    for text in ("batch size was 24", "160 px", "30 and 300 labelled", "with 3 seeds", "1 frozen and 3 full epochs"):
        assert text in said
    assert "pretrained on 900 images of oxford-iiit-pet-sample for 40 epochs at 96 px" in said
    assert "torch 2.15.0" in said
    assert "AdamW" in said


@pytest.mark.parametrize(("augment", "wanted"), [(1, "were mirrored, moved"), (0, "not augmented"), ("", "")])
def test_the_methods_say_how_training_images_were_changed(augment, wanted, tmp_path):
    path = simulate(tmp_path, budgets=(30,), changes={"augment": augment})
    said = methods([numbers_of(one, tmp_path / "none.csv.gz") for one in sections_of(read_rows(path))])
    assert ("Training images" in said) == bool(wanted)
    assert wanted in said


def test_data_sets_and_schedules_have_sections_of_their_own(tmp_path):
    longer = [(init, "unet", 1, 12) for init in SKILL]
    simulate(tmp_path, budgets=(30, 300), variants=longer, inits=tuple(SKILL))
    rows = simulate(tmp_path, budgets=(400,), dataset="nuclei", classes=("nucleus", "background"), append=True)
    found = sections_of(read_rows(rows))
    assert [(one.dataset, one.schedule, one.budgets) for one in found] == [
        ("oxford-iiit-pet-sample", "1 + 3", (30, 300)),
        ("oxford-iiit-pet-sample", "1 + 12", (300,)),
        ("nuclei", "1 + 3", (400,)),
    ]
    assert "random for 1 + 12 epochs" in [arm.name for arm in found[0].arms]  # the longer scratch arm is a baseline too
    assert set(found[2].classes) == {"nucleus", "background"}


def test_unusable_rows_are_refused_with_what_to_type(tmp_path):
    rows = read_rows(simulate(tmp_path, budgets=(300,), inits=("random",)))
    with pytest.raises(SegaeError, match="no result rows"):
        write_report(tmp_path / "none.csv", tmp_path / "page.html")
    write_rows(tmp_path / "two.csv", [*rows, rows[0] | {"experiment": "other"}])
    with pytest.raises(SegaeError, match="bench, other: choose one with --experiment"):
        write_report(tmp_path / "two.csv", tmp_path / "page.html")
    write_rows(tmp_path / "twice.csv", [*rows, rows[0]])
    with pytest.raises(SegaeError, match="share a seed"):
        write_report(tmp_path / "twice.csv", tmp_path / "page.html")
    write_rows(tmp_path / "lr.csv", [*rows, *(row | {"lr": "0.1"} for row in rows)])
    with pytest.raises(SegaeError, match="more than one arm of random"):
        write_report(tmp_path / "lr.csv", tmp_path / "page.html")


def test_published_rows_make_a_page(tmp_path):
    said = words(write_report(REPOSITORY / "results" / "pretraining.csv", tmp_path / "page.html"))
    rows = read_rows(REPOSITORY / "results" / "pretraining.csv")
    scores = [float(row["miou"]) for row in rows if row["init"] == "imagenet"]
    assert f"{np.mean(scores):.3f}" in said


def test_equal_scores_of_all_seeds_can_be_drawn(tmp_path):
    rows = read_rows(simulate(tmp_path, budgets=(300,)))
    for row in rows:  # the mean of three times this number is not this number
        row |= {"iou_background": "0.980002", "boundary_iou": "0.980002"}
    write_rows(tmp_path / "bench.csv", rows)
    assert "0.980" in words(write_report(tmp_path / "bench.csv", tmp_path / "page.html"))


def test_seeds_that_only_one_arm_has_do_not_turn_the_sentence_round(tmp_path):
    rows = read_rows(simulate(tmp_path, budgets=(300,), inits=("random", "imagenet"), side_files=False))
    scores = {("random", "0"): 0.50, ("random", "1"): 0.52, ("random", "2"): 0.51}
    scores |= {("imagenet", "0"): 0.45, ("imagenet", "1"): 0.471, ("imagenet", "2"): 0.46, ("imagenet", "3"): 0.90}
    rows += [row | {"seed": "3", "settings": "more"} for row in rows if (row["init"], row["seed"]) == ("imagenet", "2")]
    for row in rows:
        row["miou"] = str(scores[row["init"], row["seed"]])
    (section,) = sections_of(rows)
    said = headline(numbers_of(section, tmp_path / "none.csv.gz"), 300)
    assert "ImageNet has the highest mean IoU" in said
    assert "ahead of" not in said
    assert "with the seeds that both have it is behind random (−0.050" in said


def test_without_a_reference_nothing_is_compared(tmp_path):
    skill = {"ae:denoise": 0.43, "ae:mask": 0.6}
    rows = read_rows(simulate(tmp_path, budgets=(300,), inits=tuple(skill), skill=skill))
    (section,) = sections_of(rows)
    said = headline(numbers_of(section, tmp_path / "per_image" / "bench.csv.gz"), 300)
    assert "no arm started from random or from ImageNet weights" in said
    assert "two seeds" not in said


def test_an_autoencoder_must_beat_the_harder_baselines_too(tmp_path):
    """Above random weights, it is below random weights that were trained for longer; and ImageNet's frozen encoder."""
    variants = [("random", "unet", 1, 12), *((init, "unet", 4, 0) for init in ("imagenet", "ae:denoise"))]
    skill = {"random": 0.42, "imagenet": 0.69, "ae:denoise": 0.43, "imagenet+ae:denoise": 0.69}
    page = write_report(simulate(tmp_path, budgets=(300,), variants=variants, skill=skill), tmp_path / "page.html")
    (section,) = sections_of(read_rows(tmp_path / "bench.csv"))
    numbers = numbers_of(section, tmp_path / "per_image" / "bench.csv.gz")
    found = {(one.arm.name, one.other.name): one.comparison for one in numbers.further}
    ours = "autoencoder (denoise)"
    assert set(found) == {
        (ours, "random for 1 + 12 epochs"),
        (f"{ours} with a frozen encoder", "ImageNet with a frozen encoder"),
        (f"ImageNet + {ours}", ours),
    }
    for (first, second), comparison in found.items():
        means = [next(one.miou for one in numbers.results if one.arm.name == name) for name in (first, second)]
        assert comparison.difference.estimate == pytest.approx(means[0] - means[1], abs=5e-3)
        assert comparison.p_adjusted >= comparison.p  # corrected together with the others
    assert numbers.comparisons == len(found) + sum(len(one.against) for one in numbers.results)
    assert "Further comparisons" in words(page)
    assert re.search(r"autoencoder \(denoise\) random for 1 [+] 12 epochs 300 [−+]0[.]0", words(page))
    assert "The settings of ImageNet with a frozen encoder were carried over" in words(page)


@pytest.mark.parametrize(
    ("note", "low", "high", "expected"),
    [
        ("above the largest budget", 42.4, None, "> 300 (42 to > 300)"),
        ("above the largest budget; interval open below", None, None, "> 300 (< 30 to > 300)"),
        ("above the largest budget", 300.0, None, "> 300"),
        ("below the smallest budget", None, 70.0, "< 30 (< 30 to 70)"),
        ("below the smallest budget; interval open above", None, None, "< 30 (< 30 to > 300)"),
        ("below the smallest budget", None, 30.0, "< 30"),
    ],
)
def test_the_worth_in_labels_keeps_its_interval_where_the_number_lies_outside(note, low, high, expected):
    assert worth_text(Worth(None, low, high, 300, note), (30, 90, 300)) == expected


def test_a_page_can_be_of_some_runs_of_a_study(tmp_path):
    """The others were made with other settings, and no page can hold two arms of random weights to compare with."""
    first = read_rows(simulate(tmp_path, budgets=(300,), inits=("random", "imagenet")))
    other = [row | {"batch_size": "24", "settings": f"b{row['settings']}"} for row in first if row["init"] == "random"]
    rows = tmp_path / "bench.csv"
    write_rows(rows, [*first, *other])
    with pytest.raises(SegaeError, match="more than one arm of random weights"):
        write_report(rows, tmp_path / "page.html")
    page = write_report(rows, tmp_path / "page.html", settings={row["settings"] for row in first})
    assert "the batch size was 16" in words(page)
    assert "6 rows of bench.csv" in words(page)


def test_the_worth_in_labels_claims_no_more_than_the_references_own_budgets(tmp_path):
    inits = ("random", "ae:denoise")
    rows = read_rows(simulate(tmp_path, budgets=(30, 90, 300), inits=inits, skill=SKILL | {"ae:denoise": 0.9}))
    rows = [row for row in rows if (row["init"], row["labels"]) != ("random", "300")]
    write_rows(tmp_path / "bench.csv", rows)
    said = words(write_report(tmp_path / "bench.csv", tmp_path / "page.html"))
    assert "> 90" in said
    assert "> 300" not in said


def said_of_worth(folder: Path, imagenet: float) -> list[str]:
    """What the findings say in labels of random weights with 0.40, and of ImageNet weights that are so good."""
    inits, skill = ("random", "imagenet"), {"random": 0.40, "imagenet": imagenet}
    rows = simulate(folder, budgets=(30, 90, 300), inits=inits, skill=skill, variants=[("random", "unet", 1, 12)])
    (section,) = sections_of(read_rows(rows))
    said = worth_findings(numbers_of(section, folder / "per_image" / "bench.csv.gz"))
    page = words(write_report(rows, folder / "page.html"))
    assert all(sentence in page for sentence in said)
    return said


def test_the_first_sentences_count_a_start_in_labels_of_random_weights(tmp_path):
    """A tenth of the labels costs 0.1, so 0.06 above random is worth four times the labels, 119 for 30."""
    first, second = said_of_worth(tmp_path, 0.46)
    found = re.fullmatch(
        r"With random one needs (\d+) \((\d+) to (\d+)\) labels to get as far as ImageNet with 30[.]", first
    )
    labels, low, high = (int(one) for one in found.groups())
    assert 60 < labels < 240
    assert low < 119 < high < 300
    assert second.startswith("With ImageNet one needs ")


def test_the_first_sentences_count_weak_starts_by_their_most_labels(tmp_path):
    assert said_of_worth(tmp_path, 0.70) == [
        "With random one needs more than 300 labels to get as far as ImageNet with 30.",
        "With ImageNet one needs fewer than 30 labels to get as far as random with 300.",
    ]


def test_the_sections_of_a_data_set_stand_together_whatever_was_run_in_between(tmp_path):
    first = read_rows(simulate(tmp_path / "pets", budgets=(300,), inits=("random", "imagenet")))
    between = [{**row, "dataset": "nuclei", "settings": f"n{row['settings']}"} for row in first]
    later = [{**row, "encoder": "tf_efficientnet_lite2", "settings": f"e{row['settings']}"} for row in first]
    found = [(section.dataset, section.encoder) for section in sections_of([*first, *between, *later])]
    pets = "oxford-iiit-pet-sample"
    assert found == [
        (pets, "tf_efficientnet_lite0"),
        (pets, "tf_efficientnet_lite2"),
        ("nuclei", "tf_efficientnet_lite0"),
    ]


def test_settings_that_were_carried_over_to_another_encoder_are_told_with_its_name(tmp_path):
    simulate(tmp_path, budgets=(300,), inits=("random", "imagenet"))
    rows = tmp_path / "bench.csv"
    first = read_rows(rows)
    write_rows(rows, [*first, *({**row, "encoder": "resnet18"} for row in first)])
    said = words(write_report(rows, tmp_path / "page.html"))
    assert "The settings of ImageNet with resnet18 were carried over" in said
    for encoder in ("tf_efficientnet_lite0", "resnet18"):
        assert f"in the last epoch (oxford-iiit-pet-sample, {encoder}, 1 + 3 epochs: random and ImageNet)" in said


def test_one_label_budget_is_worth_no_sentence(tmp_path):
    simulate(tmp_path, budgets=(300,))
    (section,) = sections_of(read_rows(tmp_path / "bench.csv"))
    assert worth_findings(numbers_of(section, tmp_path / "per_image" / "bench.csv.gz")) == []


@pytest.mark.parametrize("damage", ["folder", "counts"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, damage):
    rows = simulate(tmp_path, budgets=(300,), inits=("random",))
    counts = tmp_path / "per_image" / "bench.csv.gz"
    counts.write_bytes(b"version of a file that is kept elsewhere")
    wrong = tmp_path if damage == "folder" else rows
    with pytest.raises(SegaeError, match=f"{tmp_path if damage == 'folder' else counts} cannot be read"):
        write_report(wrong, tmp_path / "page.html")
