"""Draw the README's figure and write the tables of docs/results.md from results/*.csv: make figures."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from segae.bench.report_figures import efficiency_figure, save
from segae.bench.results import pixel_counts, read_details, read_rows
from segae.bench.statistics import Comparison, compare, mean_interval
from segae.errors import DataError

ROOT = Path(__file__).parents[1]
PETS, NUCLEI = "oxford-iiit-pet-sample", "nuclei-dsb2018"
RANDOM, IMAGENET = "random weights", "ImageNet weights"
KEYS = ["labels", "epochs", "epoch_images"]


def load(name: str, dataset: str = PETS) -> pd.DataFrame:
    """Read the fine-tuned U-Net rows of one study on one data set, with a name for each variant."""
    rows = read_rows(ROOT / "results" / f"{name}.csv")
    rows["study"] = name
    rows = rows[(rows["dataset"] == dataset) & (rows["decoder"] == "unet") & (rows["freeze_epochs"] == 1)].copy()
    rows["name"] = [variant_name(row) for row in rows.to_dict("records")]
    rows["epoch_images"] = rows["epoch_images"].fillna(rows["labels"]).astype(int)
    return rows


def variant_name(row: dict) -> str:
    """Name a variant for readers: the start, the method and what was transferred."""
    start = IMAGENET if row["weights"] == "imagenet" else RANDOM
    if not row["method"] or pd.isna(row["method"]):
        return start
    method = str(row["method"])
    if method == "pseudo_masks":
        method += f" ({re.search(r'source.*?: .*?(color|features|brightness)', row['method_args'])[1]})"
    return f"{start} + {method}" + (" with decoder" if row["transfer"] == "encoder+decoder" else "")


def difference(a: pd.DataFrame, b: pd.DataFrame) -> Comparison:
    """Compare two variants, by seed and test image where pixel counts are published, else by seed."""
    study = a["study"].iloc[0]
    per_image = read_details(ROOT / "results" / f"{study}.csv", study, "per_image")
    try:
        return compare(*(pixel_counts(pd.DataFrame() if per_image is None else per_image, one) for one in (a, b)))
    except (DataError, KeyError):  # the oldest studies kept one score per image
        return compare(*(one.sort_values("seed")["miou"].to_numpy() for one in (a, b)))


def table(rows: pd.DataFrame) -> str:
    """Make a Markdown table: a line per schedule and variant, its mean, and its gain over the weights it began with."""
    lines = ["| labels | epochs | variant | mIoU | gain over its start (95 % interval) |", "|---|---|---|---|---|"]
    for (labels, epochs, images), part in rows.groupby(KEYS):
        for name in sorted(part["name"].unique(), key=lambda name: (name.count("+"), name)):
            mine = part[part["name"] == name].drop_duplicates("seed")
            start = part[part["name"] == name.split(" + ")[0]].drop_duplicates("seed")
            gain = ""
            if " + " in name and len(mine) > 1 and set(mine["seed"]) == set(start["seed"]):
                found = difference(mine, start).difference
                gain = f"{found.estimate:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            schedule = f"1 + {epochs}" + (f", {images:,} images each" if images > 1000 else "")
            miou = mine["miou"]
            spread = f" ± {miou.std():.3f}" if len(mine) > 1 else " (one seed)"
            lines.append(f"| {labels} | {schedule} | {name} | {miou.mean():.3f}{spread} | {gain} |")
    return "\n".join(lines)


def label_figure() -> None:
    """Draw mean IoU against labels: docs/figures/labels.svg."""
    rows = load("bench")
    rows = rows[(rows["encoder"] == "tf_efficientnet_lite0") & (rows["epochs"] == 3)]
    gpu = load("pretraining_gpu")
    gpu = gpu[(gpu["epochs"] == 3) & (gpu["epoch_images"] == 300)]
    short = {
        IMAGENET: "ImageNet",
        RANDOM: "random",
        f"{RANDOM} + denoise": "denoising autoencoder",
        f"{IMAGENET} + pseudo_masks (features) with decoder": "ImageNet + pseudo-masks",
    }
    own = f"{RANDOM} + pseudo_masks (color) with decoder"
    chosen = pd.concat([rows[rows["name"].isin(short)], gpu[gpu["name"] == own]])
    points = []
    for (name, labels), part in chosen.groupby(["name", "labels"]):
        interval = mean_interval(part["miou"].to_numpy())
        line = {"name": short.get(name, "pseudo-masks, label-free"), "labels": labels, "miou": interval.estimate}
        points.append(line | {"low": interval.low, "high": interval.high})
    names = ["ImageNet + pseudo-masks", "ImageNet", "pseudo-masks, label-free", "denoising autoencoder", "random"]
    figure = efficiency_figure(pd.DataFrame(points), names, "labels").figure
    (ROOT / "docs" / "figures" / "labels.svg").write_bytes(save(figure, "svg"))


def fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between its markers in a page."""
    text = page.read_text()
    for name, content in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        if not re.search(pattern, text, re.S):
            raise SystemExit(f"{page} must have the markers of the table {name}, got none")
        text = re.sub(pattern, lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text, flags=re.S)
    page.write_text(text)


def main() -> None:
    """Write the figure and all tables."""
    label_figure()
    bench = load("bench")
    lite0 = bench[bench["encoder"] == "tf_efficientnet_lite0"]
    nuclei = load("bench", NUCLEI)
    nuclei = nuclei[~((nuclei["method"] == "pseudo_masks") & (nuclei["pretrain_epochs"] != 120))]
    facade = load("labelme_facade", "labelme-facade")
    fill(
        ROOT / "docs" / "results.md",
        {
            **{f"facade {size}": table(part) for size, part in facade.groupby("image_size")},
            "gpu": table(load("pretraining_gpu")),
            "cpu": table(lite0),
            "lite2": table(bench[bench["encoder"] == "tf_efficientnet_lite2"]),
            "nuclei": table(nuclei),
            "methods": table(
                load("pretraining").query(
                    "pretrain_images_seen != pretrain_images_seen or pretrain_images_seen < 10000"
                )
            ),
        },
    )


if __name__ == "__main__":
    main()
