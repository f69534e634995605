"""Rows of results/applications.csv: classification, multi-task training and detection.

    python benchmarks/tasks.py STUDY --data FOLDER --fashion FOLDER [--write] [--tiny]

FOLDER of --data holds oxford-iiit-pet-sample, that of --fashion train/ and test/ with a folder per class. Studies:

- fashion: accuracy of 1,000 test images after a fine-tuning of 1 + 3 epochs with 100 and 1,000 labels, three seeds;
  an epoch has 400 images. Encoders: conv_16_8_4 and tf_efficientnet_lite0 at 32 px, random and after the pretraining
  of an autoencoder on 3,000 training images; pets_pseudo_masks; ImageNet.
- breeds: the same of three breeds of the Pet sample, at 64 px, with 30 and 300 labels.
- multitask: mIoU with reconstruction minus mIoU without, at 64 px, 30 and 300 labels, three seeds, Student's interval.
- detect: average precision of heads on a frozen encoder, at 96 px; random, pets_pseudo_masks, ImageNet, three seeds.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from application_rows import write_rows
from scipy.stats import t as student

import segae

SEEDS = range(3)
PETS, ENCODER = "oxford-iiit-pet-sample", "tf_efficientnet_lite0"
Row = dict[str, Any]


def over_seeds(values: list[float]) -> Row:
    """Return the mean of a few seeds with the 95 % interval of Student's t."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return {
        "value": np.mean(values),
        "low": np.mean(values) - half,
        "high": np.mean(values) + half,
        "seeds": len(values),
    }


def link_some(source: Path, target: Path, each: int) -> Path:
    """Link the first images of each class folder."""
    for folder in (path for path in source.iterdir() if path.is_dir()):
        (target / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:each]:
            (target / folder.name / image.name).symlink_to(image)
    return target


def link_breeds(data: Path, target: Path) -> Path:
    """Link the images of the Pet sample into a folder per breed."""
    for split, pairs in segae.data.open_dataset(data / PETS).splits.items():
        for pair in pairs:
            folder = target / split / pair.name.rpartition("_")[0]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / pair.image.name).symlink_to(pair.image)
    return target


def classify(
    study: str, root: Path, work: Path, starts: dict[str, Row], budgets: tuple[int, ...], **how: Any
) -> Iterator[Row]:
    """Fine-tune from each start with each label budget and seed, and score the test images."""
    for name, start in starts.items():
        for labels in budgets:
            accuracies, started = [], time.perf_counter()
            for seed in SEEDS:
                out = work / f"{name}-{labels}-{seed}"
                settings = {"labels": labels, "val_fraction": 0.0, "seed": seed, **how, **start}
                model = segae.finetune(root, task="classify", out=out, **settings).path
                accuracies.append(segae.evaluate(model, root).as_row()["accuracy"])
            count = len(segae.data.ClassFolders(root).splits["test"])
            about = {"study": "classification", "dataset": study, "model": name, "metric": f"accuracy_{labels}_labels"}
            yield {**about, **over_seeds(accuracies), "n": count, "seconds": time.perf_counter() - started}


def fashion(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    tiny = arguments.tiny
    root = work / "fashion"
    link_some(arguments.fashion / "train", root / "train", 20 if tiny else 300)
    link_some(arguments.fashion / "test", root / "test", 5 if tiny else 100)
    pretrained = {}
    for name, size in (("conv_16_8_4", 28), (ENCODER, 32)):
        how = {"encoder": name, "image_size": size, "method": "reconstruct", "batch_size": 64}
        how |= {"epochs": 1 if tiny else 10 if size == 28 else 3}
        pretrained[name] = segae.pretrain(root / "train", out=work / f"pretrain-{name}", **how).path
    starts = {
        "conv_16_8_4 random": {"encoder": "conv_16_8_4", "image_size": 28},
        "conv_16_8_4 autoencoder": {"weights": pretrained["conv_16_8_4"], "image_size": 28},
        "random": {"encoder": ENCODER},
        "autoencoder": {"weights": pretrained[ENCODER]},
        "pets_pseudo_masks": {"weights": "pets_pseudo_masks"},
        "imagenet": {"encoder": ENCODER, "weights": "imagenet"},
    }
    starts = {name: {"image_size": 32, **start} for name, start in starts.items()}
    how = {"epoch_images": 40 if tiny else 400, "batch_size": 32, "epochs": 1 if tiny else 3}
    yield from classify("fashion-mnist", root, work, starts, (20, 40) if tiny else (100, 1000), **how)


def breeds(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    root, tiny = link_breeds(arguments.data, work / "breeds"), arguments.tiny
    starts = {
        "random": {"encoder": ENCODER},
        "pets_pseudo_masks": {"weights": "pets_pseudo_masks"},
        "imagenet": {"encoder": ENCODER, "weights": "imagenet"},
    }
    how = {"image_size": 32 if tiny else 64, "epoch_images": 30 if tiny else 150, "epochs": 1 if tiny else 3}
    yield from classify(PETS, root, work, starts, (30,) if tiny else (30, 300), **how)


def multitask(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:
    tiny, root = arguments.tiny, arguments.data / PETS
    how = {"weights": "pets_pseudo_masks", "val_fraction": 0.0, "image_size": 32 if tiny else 64}
    how |= {"epoch_images": 30 if tiny else 150, "epochs": 1 if tiny else 3}
    for labels in (10,) if tiny else (30, 300):
        differences, started = [], time.perf_counter()
        for seed in SEEDS:
            mious = []
            for weight in (0.0, 0.1):
                out = work / f"multitask-{labels}-{seed}-{weight}"
                settings = {"labels": labels, "seed": seed, "reconstruction_weight": weight, **how}
                mious.append(segae.evaluate(segae.finetune(root, out=out, **settings).path, root).miou)
            differences.append(mious[1] - mious[0])
        about = {
            "study": "multitask",
            "dataset": PETS,
            "model": "pets_pseudo_masks",
            "metric": f"miou_gain_{labels}_labels",
        }
        count = len(segae.data.open_dataset(root).splits["test"])
        yield {**about, **over_seeds(differences), "n": count, "seconds": time.perf_counter() - started}


def detect(arguments: argparse.Namespace, work: Path) -> Iterator[Row]:  # noqa: ARG001
    train = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "15_detect.py"))["main"]
    how = {"image_size": 64, "epochs": 1} if arguments.tiny else {"image_size": 96, "epochs": 3}
    boxes = [segae.data.Pair(f.stem, f, f) for f in (arguments.data / PETS / "annotations" / "xmls").glob("*.xml")]
    count = len(segae.data.train_val_split(boxes, 0.2, seed=0)[1])  # as the recipe splits them
    for name in ("random", "pets_pseudo_masks", "imagenet"):
        started = time.perf_counter()
        scores = [train(arguments.data / PETS, weights=name, seed=seed, **how) for seed in SEEDS]
        for metric in ("map_50", "map"):
            about = {"study": "detection", "dataset": PETS, "model": name, "metric": metric}
            seconds = time.perf_counter() - started
            yield {**about, **over_seeds([one[metric] for one in scores]), "n": count, "seconds": seconds}


NOTES = {
    "fashion": "tf_efficientnet_lite0 at 32 px unless named, 1 + 3 epochs of 400 images; interval over seeds",
    "breeds": "three breeds, 64 px, 1 + 3 epochs of 150 images; interval over seeds",
    "multitask": "reconstruction weight 0.1 minus 0, 64 px, 1 + 3 epochs of 150 images; interval over seeds",
    "detect": "FCOS on a frozen tf_efficientnet_lite0, 96 px, 3 epochs; interval over seeds",
}
STUDIES = {"fashion": fashion, "breeds": breeds, "multitask": multitask, "detect": detect}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="*", choices=[*STUDIES, []], help="default: all")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write the rows into results/applications.csv")
    parser.add_argument("--tiny", action="store_true", help="see that it works, in a minute")
    arguments = parser.parse_args()
    arguments.data, arguments.fashion = arguments.data.resolve(), arguments.fashion.resolve()
    for study in arguments.study or STUDIES:
        with tempfile.TemporaryDirectory() as work:
            rows = list(STUDIES[study](arguments, Path(work)))
        for row in rows:
            print({name: value if isinstance(value, str) else round(float(value), 3) for name, value in row.items()})
        if arguments.write:
            write_rows([{"note": NOTES[study], **row} for row in rows])


if __name__ == "__main__":
    main()
