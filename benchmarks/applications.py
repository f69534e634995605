"""Numbers of results/applications.csv: probes of frozen encoders, choosing images to label, trust in masks.

    python benchmarks/applications.py STUDY --data FOLDER [--write]

FOLDER holds oxford-iiit-pet-sample and, for trust, nuclei-dsb2018. Studies:

- probe: k nearest neighbors and logistic regression on frozen features, and a linear probe of pixels; test images are
  scored once, settings are chosen by cross-validation on training images.
- suggest: 10 labeled images at random, 20 more chosen by ``segae suggest`` or at random, then a fine-tuning of 1 + 3
  epochs; five seeds, the same test images.
- trust: distance to the training images of test pets against test nuclei and drawn pets, and against IoU; three seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from application_rows import write_rows
from scipy.stats import spearmanr
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import segae
from segae.applications.trust import FLAGGED_BELOW, TrustScore, compute_statistics
from segae.data import SkippedFiles, cache_pairs, drawn_pets, open_dataset, read_resized
from segae.evaluation import predict_logits

PETS, NUCLEI = "oxford-iiit-pet-sample", "nuclei-dsb2018"
ENCODER, SIZE = "tf_efficientnet_lite0", 128
Row = dict[str, Any]


def bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> tuple[float, float, float]:
    """Return a statistic of the rows with its 95 % interval over resampled rows."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile([statistic(values[drawn]) for drawn in draws], (2.5, 97.5))
    return statistic(values), float(low), float(high)


def over_seeds(values: list[float], bounds: tuple[float, float] = (-1, 1)) -> tuple[float, float, float]:
    """Return the mean of a few seeds with the 95 % interval of Student's t, within bounds."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), *np.clip([np.mean(values) - half, np.mean(values) + half], *bounds).tolist()


def encoders() -> Iterator[tuple[str, int, segae.Encoder]]:
    """Yield name, seed and encoder of each start."""
    for seed in range(3):
        torch.manual_seed(seed)
        yield "random", seed, segae.create_encoder(ENCODER)
    yield "pets_pseudo_masks", 0, segae.load_encoder("pets_pseudo_masks")
    yield "imagenet", 0, segae.create_encoder(ENCODER, weights="imagenet")


def probe(data: Path) -> list[Row]:
    """Measure accuracy by breed and species and the mean IoU of a linear probe of pixels, all on test images."""
    splits = open_dataset(data / PETS).splits
    breeds = {name: np.array([pair.name.rpartition("_")[0] for pair in splits[name]]) for name in ("train", "test")}
    labels = {"breed": breeds, "species": {name: np.char.islower(breeds[name]) for name in breeds}}
    cached = {name: cache_pairs(splits[name], SIZE, (1, 2, 3), SkippedFiles()) for name in breeds}
    images, masks = (np.concatenate([getattr(cached[name], part) for name in breeds]) for part in ("images", "masks"))
    count = len(cached["train"].images)
    correct: dict[tuple[str, str], list[np.ndarray]] = {}
    mious: dict[str, list[float]] = {}
    started = time.perf_counter()
    for start, _, encoder in encoders():
        features = segae.EncoderFeatures(encoder, image_size=SIZE)
        train, test = (features.fit_transform(images[part]) for part in (slice(count), slice(count, None)))
        for kind, by_split in labels.items():
            for name, model in {
                "knn": GridSearchCV(
                    make_pipeline(StandardScaler(), KNeighborsClassifier()),
                    {"kneighborsclassifier__n_neighbors": [1, 5, 10, 20]},
                ),
                "linear": GridSearchCV(
                    make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
                    {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1]},
                ),
            }.items():
                right = model.fit(train, by_split["train"]).predict(test) == by_split["test"]
                correct.setdefault((start, f"{kind}_{name}_accuracy"), []).append(right)
        places = {"train_indices": range(count), "valid_indices": range(count, len(images))}
        score = segae.evaluation.linear_probe(encoder, images=images, masks=masks, num_classes=3, **places)
        mious.setdefault(start, []).append(score)
        print(start, {metric: right[-1].mean() for (one, metric), right in correct.items() if one == start}, score)
    rows = []
    for (start, metric), right in correct.items():
        value, low, high = bootstrap(np.mean(right, axis=0), np.mean)
        rows.append({"model": start, "metric": metric, "value": value, "low": low, "high": high, "seeds": len(right)})
    for start, values in mious.items():
        value, low, high = over_seeds(values) if len(values) > 1 else (values[0], None, None)
        rows.append({"model": start, "metric": "pixel_miou", "value": value, "low": low, "high": high})
        rows[-1]["seeds"] = len(values)
    about = {"study": "probe", "dataset": PETS, "n": len(images) - count, "seconds": time.perf_counter() - started}
    note = (
        f"{ENCODER}, {SIZE} px, frozen, {count} training images; intervals over test images, of pixel_miou over seeds"
    )
    return [{**about, "baseline": row["model"] == "imagenet", **row, "note": note} for row in rows]


def suggest(data: Path) -> list[Row]:
    """Compare the mean IoU after labeling 20 images that were suggested with that of 20 random ones."""
    pets = open_dataset(data / PETS)
    train = {pair.name: pair for pair in pets.splits["train"]}
    scores: dict[str, list[float]] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)

        def finetune(names: list[str], seed: int, kind: str) -> Path:
            folder = root / f"{kind}{seed}"
            for pair in [*(train[one] for one in names), *pets.splits["test"]]:
                for place, file in {"images": pair.image, "annotations/trimaps": pair.mask}.items():
                    (folder / place).mkdir(parents=True, exist_ok=True)
                    (folder / place / file.name).symlink_to(file.resolve())
            (folder / "annotations/trainval.txt").write_text("\n".join(names))
            (folder / "annotations/test.txt").write_text("\n".join(pair.name for pair in pets.splits["test"]))
            how = {"image_size": SIZE, "epoch_images": 240, "val_fraction": 0.0, "seed": seed}
            return segae.finetune(folder, weights="imagenet", out=folder / "run", **how).path

        for seed in range(5):
            order = np.random.default_rng(seed).permutation(sorted(train)).tolist()
            first, pool = order[:10], order[10:]
            model = finetune(first, seed, "first")
            lists = {"random": np.random.default_rng(seed + 100).permutation(pool)[:20].tolist()}
            for kind, more in {"coverage": {}, "coverage_uncertainty": {"model": model, "encoder": "imagenet"}}.items():
                rows = segae.suggest(
                    [train[one].image for one in pool],
                    labeled=[train[one].image for one in first],
                    **{"count": 20, "image_size": SIZE, "out": root / f"{kind}{seed}-list", **more},
                )
                lists[kind] = [Path(file).stem for file in rows["image"]]
            for kind, chosen in lists.items():
                path = finetune([*first, *chosen], seed, kind)
                found = segae.evaluate(path, data / PETS, out=root / f"{kind}{seed}-scores")
                scores.setdefault(kind, []).append(found.miou)
                print(seed, kind, found.miou, flush=True)
    seconds = time.perf_counter() - started
    rows = []
    for kind, values in scores.items():
        value, low, high = over_seeds(values)
        rows.append({"model": kind, "metric": "miou", "value": value, "low": low, "high": high})
        if kind != "random":
            value, low, high = over_seeds(list(np.subtract(values, scores["random"])))
            rows.append({"model": kind, "metric": "miou_minus_random", "value": value, "low": low, "high": high})
    about = {"study": "suggest", "dataset": PETS, "n": len(pets.splits["test"]), "seeds": 5, "seconds": seconds}
    note = (
        "10 random labeled images and 20 chosen ones, ImageNet start, 1 + 3 epochs of 240 images; intervals over seeds"
    )
    return [{**about, "baseline": row["model"] == "random", **row, "note": note} for row in rows]


def trust(data: Path) -> list[Row]:
    """Measure how well the distance to the training images tells strange images and bad masks."""
    sets = {
        "pets": open_dataset(data / PETS),
        "nuclei": open_dataset(data / NUCLEI),
        "drawn": open_dataset(drawn_pets()),
    }
    found: dict[tuple[str, str], list[float]] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        for start, transfer in (("imagenet", "encoder"), ("pets_pseudo_masks", "encoder+decoder")):
            for seed in range(3):
                how = {"weights": start, "transfer": transfer, "image_size": SIZE, "seed": seed}
                path = segae.finetune(data / PETS, out=Path(name) / f"{start}{seed}", **how).path
                model = segae.load_segmenter(path)
                score = TrustScore.load(path.with_name("trust.npz"), model)
                seen = {
                    one: compute_statistics(model, np.stack([read_resized(pair.image, SIZE) for pair in kept]))
                    for one, kept in ((one, dataset.splits["test"]) for one, dataset in sets.items())
                }
                far = {one: score.distances(features) for one, features in seen.items()}
                values = {"flagged_pets": float((score.scores(seen["pets"]) < FLAGGED_BELOW).mean())}
                for strange in ("nuclei", "drawn"):
                    truth = np.repeat([0, 1], [len(far["pets"]), len(far[strange])])
                    values[f"auroc_{strange}"] = roc_auc_score(truth, np.concatenate([far["pets"], far[strange]]))
                    values[f"flagged_{strange}"] = float((score.scores(seen[strange]) < FLAGGED_BELOW).mean())
                ious = {
                    one: segae.evaluate(model, sets[one].root, out=None).per_image["miou"].to_numpy()
                    for one in ("pets", "drawn")
                }
                values["spearman_iou_pets"] = float(spearmanr(far["pets"], ious["pets"]).statistic)
                pixels = np.stack([read_resized(pair.image, SIZE) for pair in sets["pets"].splits["test"]])
                sure = [logits.softmax(dim=1).amax(dim=1).mean(dim=(1, 2)) for logits in predict_logits(model, pixels)]
                values["spearman_iou_confidence_pets"] = float(spearmanr(torch.cat(sure), ious["pets"]).statistic)
                both = [np.concatenate([part["pets"], part["drawn"]]) for part in (far, ious)]
                values["spearman_iou_pets_and_drawn"] = float(spearmanr(*both).statistic)
                for metric, value in values.items():
                    found.setdefault((start, metric), []).append(value)
                print(start, seed, values, {one: part.mean() for one, part in ious.items()}, flush=True)
    about = {"study": "trust", "dataset": PETS, "seeds": 3, "seconds": time.perf_counter() - started}
    note = "cosine distance to 5 nearest training images, mean and maximum of all maps; intervals over seeds"
    counts = {one: len(dataset.splits["test"]) for one, dataset in sets.items()}
    rows = []
    for (start, metric), values in found.items():
        value, low, high = over_seeds(values, (-1 if "spearman" in metric else 0, 1))
        count = sum(size for one, size in counts.items() if one in metric or (one == "pets" and "auroc" in metric))
        rows.append({**about, "model": start, "metric": metric, "value": value, "low": low, "high": high, "n": count})
    return [{**row, "note": note} for row in rows]


def main() -> None:
    """Run a study; print its rows and, with --write, put them into results/applications.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("probe", "suggest", "trust"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    rows = {"probe": probe, "suggest": suggest, "trust": trust}[given.study](given.data)
    for row in rows:
        print({name: row[name] for name in ("model", "metric", "value", "low", "high")})
    if given.write:
        write_rows(rows)


if __name__ == "__main__":
    main()
