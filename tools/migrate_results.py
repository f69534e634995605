"""Convert the result tables of version 0.1 to the columns of 0.2; files that have them already stay as they are.

    python tools/migrate_results.py [FOLDER]

``init`` strings become weights, method, method_args, method_family and transfer; settings digests become run_id; files
and values whose words changed get the new ones. Scores, seeds and provenance are copied as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from segae.bench.results import COLUMNS, run_id, write_table

Row = dict[str, str]

FILES = {  # new names, and the experiments in them
    "layers_ablation": "pseudo_masks_ablation",
    "mask_settings": "inpaint_settings",
    "protocol_validation": "finetune_defaults_validation",
    "protocol": "finetune_defaults",
}
METHODS = {"mask": "inpaint", "sparse_mask": "spark", "decoder_denoise": "ddep"}
SOURCES = {"layers": "color", "feature_layers": "features", "otsu": "brightness"}
BOUNDARY = {"layers": 0.0, "feature_layers": 0.020833, "otsu": 0.010417}  # until layers had one too, in this commit:
LAYERS_WITH_BOUNDARY = ("78d58477e27b", 0.020833)
SETTINGS = {"noise_sigma": "sigma", "patch": "patch_size", "mask_ratio": "mask_ratio"}
USED = {  # settings that a method reads
    "denoise": ("sigma",),
    "ddep": ("sigma",),
    "mixture": ("sigma", "patch_size", "mask_ratio"),
    **dict.fromkeys(("inpaint", "spark", "a2mim"), ("patch_size", "mask_ratio")),
}
PRETRAIN_DEFAULTS: dict[str, Any] = {
    **{"hard_mask_share": 0.0, "skip_dropout": 0.0, "upsampling": "nearest", "output_activation": "none"},
    **{"code_channels": None, "repeats": 1, "warmup": 0.1, "weight_decay": 0.05, "freeze_epochs": 0},
    **{"encoder_lr_ratio": 1.0, "bn_mode": "train", "distance_penalty": 0.0, "val_fraction": 0.05, "patience": None},
}
PRETRAIN_WORDS = {"hard_mask_share": "hard_mask_fraction", "code_channels": "bottleneck"}
WORDS = {  # of whole cells in the throughput tables and in the ablation
    **{"segment": "finetune", "ceiling": "peak", "rate_over_ceiling": "rate_over_peak"},
    **{"activation_checkpointing": "gradient_checkpointing", "micro_batch": "gradient_accumulation"},
    **{"layers": "complete", "feature_layers": "complete", "pixels as much as layers": "pixels as much as masks"},
    **{"with noise and lost colour": "with noise and lost color"},
    **{"without colours: an ellipse": "without colors: an ellipse"},
}
PATHS = {"cache": "disk", "device": "gpu", "live": "none"}
ABLATION = {  # what the script of the ablation had as constants
    **{"experiment": "pseudo_masks_ablation", "dataset": "oxford-iiit-pet-sample", "split": "val"},
    **{"decoder": "unet", "image_size": "128", "freeze_epochs": "1", "epoch_images": "300", "batch_size": "16"},
}
HELD_IN = {"0": "241", "1": "236", "2": "244"}  # training images of a seed with a fifth kept apart
GONE = (
    *("init", "init_source", "fitted_head", "zero_head", "micro_batch", "settings"),
    *("pretrain_objective", "pretrain_target"),
)
NO_PART_OF_AN_ID = (
    *("seconds", "device", "peak_memory_mb", "commit", "versions", "date", "energy_wh", "run_id"),
    "finetune_settings",  # a later column, empty in all of these rows
)


def split_init(row: Mapping[str, str]) -> Row:
    """The columns that an ``init`` string such as ``imagenet+ae:mask`` was."""
    start, mark, objective = row["init"].rpartition("ae:")
    found = {"weights": start.rstrip("+") or "random" if mark else row["init"], "method": "", "method_args": ""}
    if not mark:
        return {**found, "method_family": ""}
    method, given = METHODS.get(objective, objective), settings_of(row)
    args: dict[str, Any] = {SETTINGS[name]: value for name, value in given.items() if name in SETTINGS}
    args = {name: args[name] for name in USED.get(method, ()) if args.get(name) is not None}
    if objective in SOURCES:
        reach = BOUNDARY[objective]
        if objective == "layers" and row.get("pretrain_commit") == LAYERS_WITH_BOUNDARY[0]:
            reach = LAYERS_WITH_BOUNDARY[1]
        method, args = "pseudo_masks", {"source": SOURCES[objective], "boundary": float(row.get("boundary") or reach)}
    family = "pseudo_masks" if method == "pseudo_masks" else "autoencoding"
    return {**found, "method": method, "method_args": json.dumps(args), "method_family": family}


def settings_of(row: Mapping[str, str]) -> dict[str, Any]:
    """The values of ``pretrain_settings``, such as ``patch 16; mask_ratio 0.6; patience None``."""
    found: dict[str, Any] = {}
    for part in filter(None, row.get("pretrain_settings", "").split("; ")):
        name, _, text = part.rpartition(" ")
        number = re.fullmatch(r"-?\d+(\.\d+)?", text)
        found[name] = None if text == "None" else json.loads(text) if number else text
    return found


def pretrain_settings(row: Mapping[str, str]) -> str:
    """What differs from the defaults, as JSON; empty where there was no pretraining."""
    given = settings_of(row)
    if "ae:" not in row["init"] or "pretrain_settings" not in row:
        return ""
    kept = {PRETRAIN_WORDS.get(name, name): given[name] for name, usual in PRETRAIN_DEFAULTS.items()
            if name in given and given[name] != usual}  # fmt: skip
    if given.get("precision") == "bfloat16":
        kept["precision"] = "bfloat16"
    return json.dumps(kept, sort_keys=True)


def steps_of(row: Mapping[str, str]) -> str:
    """Optimizer steps in all; an epoch has no batch of a single image."""
    images, batch = int(row.get("epoch_images") or row["labels"]), int(row["batch_size"])
    per_epoch = math.ceil((images - (images % batch == 1)) / batch)
    return str(per_epoch * (int(row["freeze_epochs"]) + int(row["epochs"])))


def result_row(old: Row) -> Row:
    """A segmentation row."""
    row = {**dict.fromkeys(COLUMNS, ""), **old, **split_init(old), "finetuning": "supervised", "steps": steps_of(old)}
    row["experiment"] = FILES.get(old["experiment"], old["experiment"])
    row["pretrain_settings"] = pretrain_settings(old)
    row["weights_source"] = old.get("init_source", "").replace("initialisation", "initialization")
    row["lpft_head"] = old.get("fitted_head") or "0"
    row["loss"], row["augment"] = old.get("loss") or "cross_entropy", old.get("augment") or "1"
    row["recalibrate"] = old.get("recalibrate") or "0"
    if "smp" in old:  # of the reference loop
        names = {"torch": "torch", "timm": "timm", "smp": "segmentation-models-pytorch"}
        row["versions"] = "; ".join(f"{name} {row.pop(column)}" for column, name in names.items())
        row["label_fraction"] = "1.0" if old["labels"] == "300" else "0.8"
    identity = {name: value for name, value in row.items() if name not in NO_PART_OF_AN_ID and "iou" not in name}
    row["run_id"] = old.get("settings") or run_id(identity)
    return {name: value for name, value in row.items() if name not in GONE}


def ablation_row(old: Row) -> Row:
    """A row of the ablation: an ``init`` is made of its variant, so that it can be read as the others."""
    objective = {"no pretraining": "", "feature_layers": "feature_layers"}.get(old["variant"], "layers")
    start = "imagenet+" if old["init"] == "imagenet" and objective else ""
    full = {**old, **ABLATION, "init": f"{start}ae:{objective}" if objective else old["init"]}
    full["labels"] = HELD_IN[old["seed"]]
    full["label_fraction"] = f"{int(full['labels']) / 300:.6f}"
    row = result_row(full)
    if not objective:
        row = {name: "" if name.startswith("pretrain_") else value for name, value in row.items()}
    else:
        row["pretrain_dataset"], row["pretrain_decoder"] = "oxford-iiit-pet-sample+cats-dogs-unlabelled", "unet"
    row["variant"] = WORDS.get(old["variant"], old["variant"])
    return {name: value for name, value in row.items() if name != "boundary"}


def level_row(old: Row) -> Row:
    """A row on how much a decoder uses each feature map: its run is known by the hash in its folder's name."""
    start = {"run_id": old["run"].rpartition("-")[2], **split_init(old)}
    return start | {name: value for name, value in old.items() if name not in ("run", "init")}


def throughput_row(old: Row) -> Row:
    """A row of speed: tasks, metrics, systems and data paths in the new words."""
    row = {
        name: WORDS.get(value, value) if name in ("task", "metric", "system") else value for name, value in old.items()
    }
    row |= {name: PATHS.get(old[name], old[name]) for name in ("data_path", "beside")}
    if old["benchmark"] == "decoding" and old["system"] == "live":
        row["system"] = "reduced"
    row["settings"] = old["settings"].replace("objective mask", "method inpaint").replace("ceiling", "peak")
    return row


def detail_row(old: Row) -> Row:
    """A line of a table beside the rows, which is found by its run."""
    row = {"run_id" if name == "settings" else name: value for name, value in old.items()}
    return {name: value for name, value in row.items() if name not in ("init", "labels", "freeze_epochs", "epochs")}


def without_border(confusion: pd.DataFrame) -> dict[str, str]:
    """For each run on the Pets the mIoU of pet and background over the pixels whose truth is one of these."""
    found: dict[str, str] = {}
    for run, lines in confusion.groupby("run_id"):
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for truth, prediction, pixels in lines[["truth", "prediction", "pixels"]].to_numpy():
            counts[truth, prediction] += int(pixels)
        names = ("pet", "background")
        if not {(one, "border") for one in names} <= counts.keys():
            continue
        ious = []
        for one in names:
            true = sum(pixels for (truth, _), pixels in counts.items() if truth == one)
            predicted = sum(counts[truth, one] for truth in names)
            ious.append(counts[one, one] / (true + predicted - counts[one, one]))
        found[str(run)] = f"{sum(ious) / 2:.6f}"
    return found


def convert(path: Path, change: Callable[[Row], Row]) -> None:
    """Write one file under its new name with changed rows."""
    old = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    # what a forecast said beside what a run took: there is no forecast any more
    old = [row for row in old if row.get("benchmark") != "plan_check"]
    rows = [change({str(name): value for name, value in row.items()}) for row in old]
    runs = [row["run_id"] for row in rows if "experiment" in row]
    if len(set(runs)) < len(runs):
        raise ValueError(f"{path}: two rows have one run_id")
    stem, dot, ending = path.name.partition(".")
    target = path.with_name(FILES.get(stem, stem) + dot + ending)
    write_table(target, rows)
    if target != path:
        path.unlink()
    print(f"{path} -> {target.name}: {len(rows)} rows")


def main() -> None:
    """Convert every table below the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent / "results")
    folder = parser.parse_args().folder
    kinds: dict[str, Callable[[Row], Row]] = {"layers_ablation": ablation_row, "level_use": level_row}
    for path in sorted([*folder.rglob("*.csv"), *folder.rglob("*.csv.gz")]):
        columns = set(pd.read_csv(path, nrows=0).columns)
        if "benchmark" in columns and "segment" in set(pd.read_csv(path)["task"]):
            convert(path, throughput_row)
        elif "settings" in columns and path.suffix == ".gz":
            convert(path, detail_row)
        elif "init" in columns:
            convert(path, kinds.get(path.stem, result_row))
    confusion = folder / "confusion" / "bench.csv.gz"
    if confusion.exists():
        scores = without_border(pd.read_csv(confusion, dtype=str, keep_default_na=False))
        rows = pd.read_csv(folder / "bench.csv", dtype=str, keep_default_na=False).to_dict("records")
        scored = [{**row, "miou_without_border": scores.get(str(row["run_id"]), "")} for row in rows]
        write_table(folder / "bench.csv", scored)


if __name__ == "__main__":
    main()
