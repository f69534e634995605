"""Draw docs/gallery/numbers.svg from results/applications.csv: what was measured of the family and its uses.

python tools/gallery_numbers.py
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent


def curve(axes: Axes, rows: pd.DataFrame, values: list[float], label: str) -> None:
    """Draw values with their intervals."""
    axes.plot(values, rows["value"], marker="o", ms=4, label=label)
    axes.fill_between(values, rows["low"], rows["high"], alpha=0.2)


def bottleneck(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the error over the numbers of the code."""
    found = rows[rows["model"].str.contains("code ")]
    sizes = [int(name.rsplit(" ", 1)[1]) for name in found["model"]]
    curve(axes, found, [*map(float, sizes)], "conv_32_32_16")
    axes.set(title="Size of the code, Fashion-MNIST", xlabel="numbers", ylabel="mean squared error", xscale="log")
    axes.set_xticks(sizes, [*map(str, sizes)])
    axes.minorticks_off()


def penalties(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw the error over what the penalties ask for."""
    for study, metric in {"sparse": "active_share", "contractive": "jacobian_norm"}.items():
        mine = rows[(rows["study"] == study) & ~rows["model"].str.contains("kl")]
        strength = mine.loc[mine["metric"] == metric, "value"]
        error = mine.loc[mine["metric"] == "mse", "value"]
        axes.plot(strength / strength.iloc[0], error, marker="o", ms=4, label=f"{study}: {metric.replace('_', ' ')}")
    axes.set(title="Penalty on the code, Fashion-MNIST", xlabel="over that without it", ylabel="mean squared error")
    axes.set_xscale("log")
    axes.legend(frameon=False)


def compression(axes: Axes, rows: pd.DataFrame, metric: str) -> None:
    """Draw a score over the bits per pixel."""
    for kind in ("conv_32_32_16", "JPEG", "WEBP"):
        mine = rows[rows["model"].str.startswith(kind)]
        rate = mine.loc[mine["metric"] == "bits_per_pixel", "value"]
        curve(axes, mine[mine["metric"] == metric], [*rate], kind)
    axes.set(title="Compression, pets", xlabel="bits per pixel", ylabel=metric.upper().replace("_", "-"))
    axes.legend(frameon=False)


def bars(axes: Axes, rows: pd.DataFrame, title: str, starts: dict[str, str]) -> None:
    """Draw a bar with its interval for each score and each start of the encoder."""
    metrics = [*rows["metric"].unique()]
    for place, (start, label) in enumerate(starts.items()):
        mine = rows[rows["model"] == start].set_index("metric").reindex(metrics)
        left = [index + 0.2 * (place - len(starts) / 2 + 0.5) for index in range(len(metrics))]
        spread = [mine["value"] - mine["low"], mine["high"] - mine["value"]]
        axes.bar(left, mine["value"], 0.18, yerr=spread, capsize=2, label=label)
    axes.set_xticks(range(len(metrics)), [name.replace("_", " ") for name in metrics])
    axes.set_title(title)
    axes.legend(frameon=False)


def main() -> None:
    """Draw all panels."""
    rows = pd.read_csv(ROOT / "results" / "applications.csv")

    def of(study: str, dataset: str = "") -> pd.DataFrame:
        return rows[(rows["study"] == study) & rows["dataset"].str.contains(dataset)]

    starts = {
        "random": "random",
        "autoencoder": "autoencoder",
        "pets_pseudo_masks": "published",
        "imagenet": "ImageNet",
    }
    pets = {name: label for name, label in starts.items() if name != "autoencoder"}
    panels: list[Callable[[Axes], None]] = [
        lambda axes: bottleneck(axes, of("bottleneck")),
        lambda axes: penalties(axes, rows),
        lambda axes: compression(axes, of("compression"), "psnr"),
        lambda axes: compression(axes, of("compression"), "ms_ssim"),
        lambda axes: bars(axes, of("classification", "fashion"), "Classification, Fashion-MNIST", starts),
        lambda axes: bars(axes, of("classification", "pet"), "Breeds of pets", pets),
        lambda axes: bars(axes, of("detection"), "Heads of pets, frozen features", pets),
        lambda axes: bars(axes, of("multitask"), "Reconstruction as second task", {"pets_pseudo_masks": "gain"}),
    ]
    figure = Figure((12, 14), layout="constrained")
    for axes, draw in zip(figure.subplots(4, 2).flat, panels, strict=True):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "gallery" / "numbers.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
