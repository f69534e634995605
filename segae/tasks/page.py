"""One self-contained HTML page of a comparison: headline, table, curves, reconstructions, masks."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segae.tasks.compare import Compare, pretrain_arm, segment_folder

if TYPE_CHECKING:
    from segae.data.cache import CachedPairs
    from segae.data.dataset import SegmentationData

_NAMES = {"random": "random", "imagenet": "ImageNet"}
_SHOWN = 6


def write_page(
    path: Path, comparison: Compare, rows: Sequence[dict[str, str]], *, note: str = "", drawn: bool = False
) -> Path:
    """Write the page of a finished comparison; every picture is inside the file.

    Args:
        path: the HTML file.
        comparison: what was run; its run folders are read.
        rows: its result rows.
        note: a sentence on what is missing, or empty.
        drawn: whether the pictures are drawn ones.
    """
    from jinja2 import Environment, PackageLoader

    from segae.data.open import open_dataset
    from segae.files import write_atomically
    from segae.training.provenance import commit

    data = open_dataset(comparison.data, comparison.classes, comparison.merge)
    seed = comparison.seeds[0]
    pretrained = [arm for arm in comparison.arms if "ae:" in arm]
    folders = {name_of(arm): segment_folder(comparison, arm, seed) for arm in comparison.arms}
    encoders = {name_of(arm): pretrain_arm(comparison, arm, seed).parent for arm in pretrained}
    template = Environment(loader=PackageLoader("segae.tasks", "."), autoescape=True).get_template("page.html.jinja")
    html = template.render(
        headline=headline(rows),
        note=note,
        drawn=drawn,
        data=data,
        rows=table(rows),
        classes=data.classes,
        palette=[f"rgb{colour}" for colour in data.palette],
        comparison=comparison,
        test_images=len(data.splits["test"]),
        curves=_inline(curves_figure(folders, encoders, path.parent / "curves.png")),
        reconstructions=[(name, _inline(folder / "reconstructions.png")) for name, folder in encoders.items()],
        masks=_inline(masks_figure(folders, data, comparison.image_size, path.parent / "masks.png")),
        run=rows[0],
        commits=commits_of(rows),
        current=commit(),
    )
    write_atomically(path, lambda file: file.write(html.encode()))
    return path


def name_of(arm: str) -> str:
    """An init, or an arm that takes its decoder along, as a person says it."""
    arm, with_decoder, _ = arm.partition("+decoder")
    start, _, objective = arm.rpartition("ae:")
    if not objective or arm in _NAMES:
        return _NAMES.get(arm, arm)
    return f"{'ImageNet + ' if start else ''}autoencoder ({objective})" + with_decoder.replace("+", " with its ")


def headline(rows: Sequence[dict[str, str]]) -> str:
    """The result in one plain sentence."""
    best_first = table(rows)
    parts = ", ".join(f"{row['name']} {row['miou']:.3f}" for row in best_first)
    schedule = f"{rows[0]['freeze_epochs']} + {rows[0]['epochs']} epochs on {rows[0]['labels']} labelled images"
    return f"Mean IoU after {schedule}: {parts}."


def commits_of(rows: Sequence[dict[str, str]]) -> list[str]:
    """The commits whose code made the rows, pretraining included, each once; none outside a checkout."""
    return list(dict.fromkeys(row[name] for row in rows for name in ("pretrain_commit", "commit") if row[name]))


def table(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Means over seeds for each init and transfer, best first.

    Each has name, miou, dice, pixel_accuracy, iou (by class), minutes, seeds.
    """
    by_init: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        arm = row["init"] + ("+decoder" if row.get("transfer") == "encoder+decoder" else "")
        by_init.setdefault(arm, []).append(row)

    def mean(members: list[dict[str, str]], column: str) -> float:
        return sum(float(row[column]) for row in members) / len(members)

    result = [
        {
            "name": name_of(init),
            "seeds": len(members),
            "minutes": mean(members, "seconds") / 60,
            "iou": {name.removeprefix("iou_"): mean(members, name) for name in members[0] if name.startswith("iou_")},
            **{name: mean(members, name) for name in ("miou", "dice", "pixel_accuracy", "boundary_iou")},
        }
        for init, members in by_init.items()
    ]
    return sorted(result, key=lambda row: -row["miou"])


def curves_figure(folders: dict[str, Path], encoders: dict[str, Path], path: Path) -> Path:
    """Pretraining losses on the left, fine-tuning losses of all inits on the right."""
    import pandas as pd

    from segae.training.comparison import compare_curves

    pretraining = {name: pd.read_csv(folder / "log.csv") for name, folder in encoders.items()}
    fine_tuning = {name: pd.read_csv(folder / "log.csv") for name, folder in folders.items()}
    compare_curves({"pretraining loss": pretraining, "fine-tuning loss": fine_tuning}, path)
    return path


def masks_figure(folders: dict[str, Path], data: SegmentationData, size: int, path: Path) -> Path:
    """The same test images with the truth and every init's prediction side by side."""
    from segae.data.cache import cache_pairs
    from segae.data.quarantine import Quarantine
    from segae.models.segmenter import load_segmenter
    from segae.training.colour import colour_mask
    from segae.training.evaluation import predict_masks
    from segae.training.figures import contact_sheet

    test = data.splits["test"]
    chosen = [test[index * len(test) // _SHOWN] for index in range(min(_SHOWN, len(test)))]
    cached: CachedPairs = cache_pairs(chosen, size, data.mask_values, Quarantine())
    columns = {"image": list(cached.images), "truth": [colour_mask(mask, data.palette) for mask in cached.masks]}
    for name, folder in folders.items():
        model, description = load_segmenter(folder / "model.safetensors")
        predicted = predict_masks(model, cached.images, description.mean, description.std)
        columns[name] = [colour_mask(mask, data.palette) for mask in predicted]
    contact_sheet(columns, path, legend=dict(zip(data.classes, data.palette, strict=True)))
    return path


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"
