"""Numbers of results/applications.csv: anomalies, retrieval, clusters and maps.

    python benchmarks/discovery.py --data FOLDER --fashion FOLDER [--autoencoder FILE ...] [--train 400] [--test 100]

FOLDER holds oxford-iiit-pet-sample and nuclei-dsb2018; the other one train/ and test/ with a folder of images for each
class of Fashion-MNIST. Anomalies: each class against the others, and pets against nuclei, drawn pets and clothes. The
best score is chosen on other images (validation) than those of the AUROC that is reported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from application_rows import write_rows
from scipy.stats import t as student
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest
from sklearn.manifold import trustworthiness
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

import segae
from segae.data import drawn_pets, open_dataset, read_resized

Images = Sequence[Path]
Scorer = Callable[[Images, int], Callable[[Images], np.ndarray]]
CLASSES, SIDE = 10, 28
IMAGENET: segae.Encoder


def pixels(images: Images) -> np.ndarray:
    return np.stack([read_resized(path, SIDE)[..., :1].ravel() for path in images]) / np.float32(255)


def forest(normal: Images, seed: int) -> Callable[[Images], np.ndarray]:
    fitted = IsolationForest(random_state=seed).fit(pixels(normal))
    return lambda images: -fitted.score_samples(pixels(images))


def neighbors(normal: Images, _: int) -> Callable[[Images], np.ndarray]:
    fitted = NearestNeighbors(n_neighbors=5).fit(pixels(normal))
    return lambda images: fitted.kneighbors(pixels(images))[0].mean(axis=1)


def patches(size: int) -> Scorer:
    """The nearest of 4,096 positions of ImageNet maps, the largest distance in an image (after arXiv 2106.08265)."""

    def fit(normal: Images, seed: int) -> Callable[[Images], np.ndarray]:
        def rows(images: Images) -> np.ndarray:
            maps = segae.extract_features(images, IMAGENET, layer=3, pool="none", image_size=size).values
            return maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1)

        known = np.concatenate(rows(normal))
        kept = np.random.default_rng(seed).permutation(len(known))[:4096]
        fitted = NearestNeighbors(n_neighbors=1).fit(known[kept])

        def score(images: Images) -> np.ndarray:
            found = rows(images)
            return fitted.kneighbors(np.concatenate(found))[0].reshape(len(found), -1).max(axis=1)

        return score

    return fit


def ours(model: Any, size: int | None) -> Scorer:
    return lambda normal, seed: segae.AnomalyDetector.fit(normal, model, seed=seed, image_size=size).score


def auroc(score: Callable[[Images], np.ndarray], normal: Images, others: Images) -> float:
    values = np.concatenate([score(normal), score(others)])
    return float(roc_auc_score(np.repeat([0, 1], [len(normal), len(others)]), values))


def over(values: Sequence[float]) -> dict[str, Any]:
    """Mean of seeds with the 95 % interval of Student's t."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = np.clip([np.mean(values) - half, np.mean(values) + half], -1, 1)
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "seeds": len(values)}


def anomalies(given: argparse.Namespace) -> list[dict[str, Any]]:
    folders = sorted(path for path in (given.fashion / "train").iterdir() if path.is_dir())[:CLASSES]
    train = {path.name: sorted(path.iterdir()) for path in folders}
    test = {name: sorted((given.fashion / "test" / name).iterdir()) for name in train}
    scorers: dict[str, Scorer] = {
        "imagenet": ours(IMAGENET, 64),
        "pets_pseudo_masks": ours(segae.load_encoder("pets_pseudo_masks"), 64),
        "isolation forest": forest,
        "pixels, nearest neighbors": neighbors,
        "imagenet, nearest patches": patches(64),
    }
    for file in given.autoencoder:
        model = segae.load(file)
        # the autoencoder of a class saw its folder's name in the file's name, or every class
        scorers |= {f"{file.stem}, reconstruction": ours(model, None), f"{file.stem}, code": ours(model.encoder, None)}
    rows: list[dict[str, Any]] = []
    best: dict[int, list[float]] = {}
    chosen: list[str] = []
    for seed in range(given.seeds):
        generator = np.random.default_rng(seed)
        for name in train:
            normal = [train[name][place] for place in generator.permutation(len(train[name]))]
            several = {one: generator.permutation(np.array(files, object)).tolist() for one, files in test.items()}
            half = given.test // 2
            valid, tested = (
                {one: files[part] for one, files in several.items()} for part in (slice(half), slice(half, 2 * half))
            )
            results = {}
            for title, fit in scorers.items():
                started = time.perf_counter()
                score = fit(normal[: given.train], seed)
                pairs = [
                    auroc(score, part[name], [one for other in part if other != name for one in part[other]])
                    for part in (valid, tested)
                ]
                results[title] = (*pairs, time.perf_counter() - started)
            mine = {one: found for one, found in results.items() if "forest" not in one and "nearest" not in one}
            winner = max(mine, key=lambda one: mine[one][0])
            chosen.append(winner)
            best.setdefault(seed, []).append(mine[winner][1])
            rows += [
                {"seed": seed, "model": one, "value": found[1], "seconds": found[2]} for one, found in results.items()
            ]
            print(seed, name, {one: round(found[1], 3) for one, found in results.items()}, flush=True)
    about = {
        "study": "anomaly",
        "dataset": "fashion-mnist",
        "metric": "auroc_one_class",
        "n": given.test // 2 * CLASSES,
    }
    note = f"mean of {CLASSES} classes, {given.train} normal training images each; intervals over seeds"
    out = []
    for title in scorers:
        means = [
            np.mean([row["value"] for row in rows if row["model"] == title and row["seed"] == seed]) for seed in best
        ]
        seconds = sum(row["seconds"] for row in rows if row["model"] == title)
        out.append({**about, "model": title, **over(means), "seconds": seconds, "note": note})
        out[-1]["baseline"] = any(word in title for word in ("forest", "nearest"))
    counts = ", ".join(f"{one} {chosen.count(one)}" for one in sorted(set(chosen)))
    out.append({**about, "model": "best on validation", **over([float(np.mean(part)) for part in best.values()])})
    out[-1]["note"] = f"{note}; chosen on other images: {counts}"
    return out + pets_against(given, test)


def pets_against(given: argparse.Namespace, fashion: dict[str, list[Path]]) -> list[dict[str, Any]]:
    pets = open_dataset(given.data / "oxford-iiit-pet-sample").splits
    others: dict[str, Images] = {
        "nuclei": [pair.image for pair in open_dataset(given.data / "nuclei-dsb2018").splits["test"]],
        "drawn pets": [pair.image for pair in open_dataset(drawn_pets()).splits["test"]],
        "clothes": [path for files in fashion.values() for path in files[:12]],
    }
    normal, tested = ([pair.image for pair in pets[split]][: given.train] for split in ("train", "test"))
    scorers = {"imagenet": ours(IMAGENET, 128), "pets_pseudo_masks": ours(segae.load_encoder("pets_pseudo_masks"), 128)}
    scorers |= {"isolation forest": forest, "imagenet, nearest patches": patches(128)}
    rows = []
    for title, fit in scorers.items():
        values: dict[str, list[float]] = {}
        started = time.perf_counter()
        for seed in range(given.seeds):
            score = fit(normal, seed)
            for kind, images in others.items():
                values.setdefault(kind, []).append(auroc(score, tested, images[: given.test]))
        for kind, found in values.items():
            rows.append({"study": "anomaly", "dataset": "oxford-iiit-pet-sample", "model": title, **over(found)})
            rows[-1] |= {
                "metric": f"auroc_against_{kind.replace(' ', '_')}",
                "n": len(tested) + len(others[kind][: given.test]),
            }
            rows[-1] |= {"baseline": "forest" in title or "nearest" in title, "seconds": time.perf_counter() - started}
            rows[-1]["note"] = f"{len(normal)} normal training images, 128 px; intervals over seeds"
    return rows


def vectors(images: Images, size: int) -> dict[str, np.ndarray]:
    found = {"pixels": np.stack([read_resized(path, SIDE).ravel() for path in images]) / np.float32(255)}
    for name, encoder in {"imagenet": IMAGENET, "pets_pseudo_masks": segae.load_encoder("pets_pseudo_masks")}.items():
        found[name] = segae.extract_features(images, encoder, image_size=size).values
    return found


def groups(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Precision at 10, adjusted Rand index of k-means, trustworthiness of the reductions."""
    splits = open_dataset(given.data / "oxford-iiit-pet-sample").splits
    pets = [pair.image for split in ("train", "test") for pair in splits[split][: given.train]]
    folders = sorted(path for path in (given.fashion / "test").iterdir() if path.is_dir())
    clothes = [path for folder in folders for path in sorted(folder.iterdir())[: given.test]]
    rows = []
    for dataset, images, size, kind, truth in (
        ("oxford-iiit-pet-sample", pets, 128, "breed", [path.name.rpartition("_")[0] for path in pets]),
        ("fashion-mnist", clothes, 64, "class", [path.parent.name for path in clothes]),
    ):
        labels = np.unique(truth, return_inverse=True)[1]
        for name, values in vectors(images, size).items():
            about = {"dataset": dataset, "model": name, "baseline": name == "pixels", "n": len(images)}
            index = segae.ImageIndex(segae.Features(values, tuple(map(str, range(len(values))))), IMAGENET)
            started = time.perf_counter()
            found = NearestNeighbors(n_neighbors=11, metric="cosine").fit(index._vectors).kneighbors(index._vectors)[1]
            rate = len(values) / (time.perf_counter() - started)
            right = (labels[found[:, 1:]] == labels[:, None]).mean(axis=1)  # the first is the query itself
            half = 1.96 * right.std() / np.sqrt(len(right))
            place = {"value": right.mean(), "low": right.mean() - half, "high": right.mean() + half}
            note = {"note": f"{size} px; interval over queries"}
            rows.append({**about, **place, **note, "study": "retrieval", "metric": f"precision_at_10_{kind}"})
            rows.append({**about, "study": "retrieval", "metric": "queries_per_second", "value": rate})
            k, seeds = len(np.unique(labels)), range(given.seeds)
            aris = [adjusted_rand_score(labels, segae.cluster(values, k=k, seed=seed)) for seed in seeds]
            rows.append({**about, **over(aris), "study": "clustering", "metric": f"adjusted_rand_{kind}"})
            plain = [
                adjusted_rand_score(labels, KMeans(k, n_init=10, random_state=seed).fit_predict(values))
                for seed in seeds
            ]
            rows.append({**about, **over(plain), "study": "clustering", "metric": f"adjusted_rand_{kind}_plain_kmeans"})
            for how in given.how:
                started = time.perf_counter()
                kept = [trustworthiness(values, segae.project(values, how=how, seed=seed)) for seed in seeds]
                rows.append({**about, **over(kept), "study": "map", "metric": f"trustworthiness_{how}"})
                rows[-1]["seconds"] = (time.perf_counter() - started) / len(seeds)
            print(dataset, name, [(row["metric"], round(float(row["value"]), 3)) for row in rows[-4:]], flush=True)
    return rows


def main() -> None:
    """Measure, print the rows, and with --write put them into results/applications.csv."""
    global IMAGENET
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, nargs="*", default=[])
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--how", nargs="*", default=["pca", "tsne", "umap"])
    parser.add_argument("--only", choices=("anomalies", "groups"))
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(2)
    IMAGENET = segae.create_encoder("tf_efficientnet_lite0", weights="imagenet")
    rows = [] if given.only == "groups" else anomalies(given)
    rows += [] if given.only == "anomalies" else groups(given)
    for row in rows:
        print({name: row.get(name) for name in ("study", "dataset", "model", "metric", "value", "low", "high")})
    if given.write:
        write_rows(rows)


if __name__ == "__main__":
    main()
