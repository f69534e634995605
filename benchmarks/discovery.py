"""Numbers of results/applications.csv: anomalies, retrieval, clusters and maps.

    python benchmarks/discovery.py --data FOLDER --fashion FOLDER [--train 300] [--valid 30] [--test 50] [--seeds 3]

FOLDER holds oxford-iiit-pet-sample and nuclei-dsb2018; the other one train/ and test/ with a folder of images for each
class of Fashion-MNIST. Anomalies: each class against the others, and pets against nuclei, drawn pets and clothes. The
score, the layer and the pooling are chosen on training images that nothing was fitted to; test images are scored once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import application_rows
import numpy as np
import torch
from scipy.stats import t as student
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.manifold import trustworthiness
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

import segae
from segae.data import drawn_pets, open_dataset, read_resized
from segae.evaluation import normalize

Score = Callable[[np.ndarray], np.ndarray]
Pools = Mapping[str, tuple[Sequence[Path], Sequence[Path]]]  # of training and of test images, by group
SIDE, LAYERS, PATCHES, EPOCHS = 28, (3, 4, 5), 1000, 20
ENCODERS: dict[str, segae.Encoder] = {}


def neighbors(known: np.ndarray, count: int = 5) -> Score:
    fitted = NearestNeighbors(n_neighbors=count).fit(known)
    return lambda rows: fitted.kneighbors(rows)[0].mean(axis=1)


def mahalanobis(known: np.ndarray) -> Score:
    return LedoitWolf().fit(known).mahalanobis


def patches(maps: np.ndarray, seed: int) -> Score:
    """The nearest of 1,000 positions of normal maps, the largest distance in an image (after arXiv 2106.08265)."""
    flat = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
    nearest = neighbors(np.random.default_rng(seed).permutation(flat)[:PATCHES], 1)
    return lambda rows: (
        nearest(rows.transpose(0, 2, 3, 1).reshape(-1, rows.shape[1])).reshape(len(rows), -1).max(axis=1)
    )


def reconstruction(images: np.ndarray, seed: int) -> Score:
    """The mean squared error of a small convolutional autoencoder that is trained on normal images, (N, S, S, 3)."""
    torch.manual_seed(seed)
    encoder = segae.create_encoder("conv_16_8_4", image_size=images.shape[1])
    model = segae.create_autoencoder(encoder)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def prepare(part: np.ndarray) -> torch.Tensor:
        return normalize(part, encoder.info.mean, encoder.info.std, "cpu")

    seen = prepare(images)
    for _ in range(EPOCHS):
        for batch in seen[torch.randperm(len(seen))].split(64):
            optimizer.zero_grad()
            (model(batch) - batch).square().mean().backward()
            optimizer.step()
    model.eval()

    @torch.inference_mode()
    def score(part: np.ndarray) -> np.ndarray:
        errors = [(model(batch) - batch).square().mean(dim=(1, 2, 3)) for batch in prepare(part).split(256)]
        return torch.cat(errors).numpy()

    return score


@torch.inference_mode()
def feature_maps(encoder: segae.Encoder, images: np.ndarray) -> dict[int, np.ndarray]:
    """All maps of all images, computed once for every class and seed."""
    parts = [images[start : start + 64] for start in range(0, len(images), 64)]
    found = [encoder.eval()(normalize(part, encoder.info.mean, encoder.info.std, "cpu")) for part in parts]
    return {layer: np.concatenate([maps[layer].numpy() for maps in found]) for layer in LAYERS}


def over(values: Sequence[float], lowest: float = 0) -> dict[str, Any]:
    """Mean of seeds with the 95 % interval of Student's t."""
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = np.clip([np.mean(values) - half, np.mean(values) + half], lowest, 1)
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "seeds": len(values)}


def detect(given: argparse.Namespace, pools: Pools, normals: Sequence[str], size: int, small: int) -> dict[Any, Any]:
    """AUROC of validation and test for each seed, by (model, setting) and by (normal, other group)."""
    paths = [path for train, test in pools.values() for path in (*train, *test)]
    owner = np.repeat([*pools], [len(train) + len(test) for train, test in pools.values()])
    tested = np.concatenate([np.repeat([False, True], [len(train), len(test)]) for train, test in pools.values()])
    images, little = (np.stack([read_resized(path, side) for path in paths]) for side in (size, small))
    started = time.perf_counter()
    maps = {name: feature_maps(encoder, images) for name, encoder in ENCODERS.items()}
    print(f"features of {len(paths)} images: {time.perf_counter() - started:.0f} s", flush=True)
    pooled = {
        f"{name}|layer {layer}, {pool}": (one.mean(axis=(2, 3)) if pool == "avg" else one.max(axis=(2, 3)))
        for name, layers in maps.items()
        for layer, one in layers.items()
        for pool in ("avg", "max")
    }
    found: dict[Any, Any] = {}
    for seed in range(given.seeds):
        for normal in normals:
            generator = np.random.default_rng(seed)
            shuffled = generator.permutation(len(paths))
            valid = [
                row for name in pools for row in shuffled[(owner[shuffled] == name) & ~tested[shuffled]][: given.valid]
            ]
            left = np.setdiff1d(np.flatnonzero((owner == normal) & ~tested), valid)
            fit, queries = left[: given.train], np.concatenate([valid, np.flatnonzero(tested)]).astype(int)
            values: dict[tuple[str, str], np.ndarray] = {}
            for key, rows in pooled.items():
                name, setting = key.split("|")
                values[f"{name}, Mahalanobis", setting] = mahalanobis(rows[fit])(rows[queries])
                values[f"{name}, k-NN", setting] = neighbors(rows[fit])(rows[queries])
            detector = segae.AnomalyDetector.fit([*images[fit]], ENCODERS["imagenet"], image_size=size, seed=seed)
            values["imagenet, AnomalyDetector", ""] = detector.score([*images[queries]])
            forest = IsolationForest(random_state=seed).fit(little[fit].reshape(len(fit), -1))
            values["isolation forest of pixels", ""] = -forest.score_samples(little[queries].reshape(len(queries), -1))
            values["imagenet, k-NN of patches", ""] = patches(maps["imagenet"][3][fit], seed)(
                maps["imagenet"][3][queries]
            )
            values["conv_16_8_4, reconstruction", ""] = reconstruction(little[fit], seed)(little[queries])
            for key, scores in values.items():
                for part in (False, True):
                    chosen = tested[queries] == part
                    inside, outside = (scores[chosen & (owner[queries] == normal)], owner[queries])
                    others = [name for name in pools if name != normal]
                    groups = (
                        {"rest": np.isin(outside, others)}
                        if len(normals) > 1
                        else {name: outside == name for name in others}
                    )
                    for group, mask in groups.items():
                        outliers = scores[chosen & mask]
                        truth = np.repeat([0, 1], [len(inside), len(outliers)])
                        area = float(roc_auc_score(truth, np.concatenate([inside, outliers])))
                        found.setdefault(key, {}).setdefault((seed, group, part), []).append(area)
            print(seed, normal, f"{time.perf_counter() - started:.0f} s", flush=True)
    return found


def anomaly_rows(found: dict[Any, Any], about: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Test AUROC of each model, whose layer and pooling were chosen on validation, and of the model chosen there."""
    keys = sorted({key for parts in found.values() for key in parts})
    seeds, groups = sorted({key[0] for key in keys}), sorted({key[1] for key in keys})

    def mean(key: tuple[str, str], seed: int, group: str, part: bool) -> float:
        return float(np.mean(found[key][seed, group, part]))

    def choose(among: Sequence[tuple[str, str]], seed: int) -> tuple[str, str]:
        return max(among, key=lambda key: np.mean([mean(key, seed, group, False) for group in groups]))

    baselines = [name for name, _ in found if "forest" in name or "patches" in name]
    ours = [key for key in found if key[0] not in baselines]
    models = {name: [key for key in found if key[0] == name] for name, _ in found} | {"best on validation": ours}
    rows = []
    for name, among in models.items():
        winners = [choose(among, seed) for seed in seeds]
        told = "; ".join(" ".join(winner) if among is ours else winner[1] for winner in dict.fromkeys(winners))
        for group in groups:
            values = [mean(winner, seed, group, True) for winner, seed in zip(winners, seeds, strict=True)]
            metric = f"{prefix}{'' if group == 'rest' else group.replace(' ', '_')}"
            note = f"{about['note']}{told and f'; chosen on training images: {told}'}"
            row = {**about, "study": "anomaly", "model": name, "metric": metric, **over(values), "note": note}
            rows.append({**row, "baseline": name in baselines})
    return rows


def anomalies(given: argparse.Namespace) -> list[dict[str, Any]]:
    names, spare = sorted(path.name for path in (given.fashion / "train").iterdir() if path.is_dir()), 2 * given.valid
    counts = {"train": given.train + spare, "test": given.test}
    clothes = {
        name: tuple(sorted((given.fashion / split / name).iterdir())[:count] for split, count in counts.items())
        for name in names
    }
    note = f"{given.train} normal training images; intervals over seeds"
    about = {"dataset": "fashion-mnist", "n": len(names) * given.test, "note": f"{len(names)} classes, {note}, 64 px"}
    rows = anomaly_rows(detect(given, clothes, names, 64, 32), about, "auroc_one_class")
    pools: dict[str, Any] = {
        "clothes": tuple(
            [path for part in zip(*parts, strict=True) for path in part][:count]
            for parts, count in zip(zip(*clothes.values(), strict=True), (spare, given.test), strict=True)
        )
    }
    for name, root in {
        "pets": given.data / "oxford-iiit-pet-sample",
        "nuclei": given.data / "nuclei-dsb2018",
        "drawn pets": drawn_pets(),
    }.items():
        splits = open_dataset(root).splits
        count = {"train": counts["train"] if name == "pets" else spare, "test": given.test}
        pools[name] = tuple([pair.image for pair in splits[split]][: count[split]] for split in count)
    normal = max(len(pools["pets"][0]) - given.valid, 0)
    about = {"dataset": "oxford-iiit-pet-sample", "n": sum(len(test) for _, test in pools.values())}
    about["note"] = f"{min(normal, given.train)} normal training images, 128 px; intervals over seeds"
    return rows + anomaly_rows(detect(given, pools, ["pets"], 128, 32), about, "auroc_against_")


def vectors(images: Sequence[Path], size: int) -> dict[str, np.ndarray]:
    found = {"pixels": np.stack([read_resized(path, SIDE).ravel() for path in images]) / np.float32(255)}
    for name in ("imagenet", "pets_pseudo_masks"):
        found[name] = segae.extract_features(images, ENCODERS[name], image_size=size).values
    return found


def groups(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Precision at 10, adjusted Rand index of k-means, trustworthiness of the reductions."""
    splits = open_dataset(given.data / "oxford-iiit-pet-sample").splits
    pets = [pair.image for split in ("train", "test") for pair in splits[split]]
    folders = sorted(path for path in (given.fashion / "test").iterdir() if path.is_dir())
    clothes = [path for folder in folders for path in sorted(folder.iterdir())[: given.test]]
    rows = []
    for dataset, images, size, kind, truth in (
        ("oxford-iiit-pet-sample", pets, 128, "breed", [path.name.rpartition("_")[0] for path in pets]),
        ("fashion-mnist", clothes, 64, "class", [path.parent.name for path in clothes]),
    ):
        labels = np.unique(truth, return_inverse=True)[1]
        names, kinds = [str(path) for path in images], dict(zip(map(str, images), truth, strict=True))
        for name, values in vectors(images, size).items():
            about = {"dataset": dataset, "model": name, "baseline": name == "pixels", "n": len(images)}
            started = time.perf_counter()
            if name == "pixels":
                read = np.stack([read_resized(path, SIDE).ravel() for path in images]) / np.float32(255)
                nearest = NearestNeighbors(n_neighbors=10, metric="cosine").fit(read).kneighbors()[1]
                hits = np.array([[kinds[names[place]] for place in row] for row in nearest])
                rate = len(values) / (time.perf_counter() - started)
            else:
                index = segae.ImageIndex.build(images, ENCODERS[name], image_size=size)
                started = time.perf_counter()
                table = index.search(images, k=11)
                rate = len(values) / (time.perf_counter() - started)
                table = table[table["image"] != table["query"]].groupby("query").head(10)
                hits = table["image"].map(kinds).to_numpy().reshape(-1, 10)
                truth_of = table["query"].map(kinds).to_numpy().reshape(-1, 10)
            right = (hits == (np.array(truth)[:, None] if name == "pixels" else truth_of)).mean(axis=1)
            half = 1.96 * right.std() / np.sqrt(len(right))
            place = {"value": right.mean(), "low": right.mean() - half, "high": right.mean() + half}
            note = {"note": f"{size} px; interval over queries"}
            rows.append({**about, **place, **note, "study": "retrieval", "metric": f"precision_at_10_{kind}"})
            timed = {
                "note": f"{size} px; reads the queries" + ("" if name == "pixels" else " and computes their features")
            }
            rows.append({**about, **timed, "study": "retrieval", "metric": "queries_per_second", "value": rate})
            k, seeds = len(np.unique(labels)), range(given.seeds)
            aris = [adjusted_rand_score(labels, segae.cluster(values, k=k, seed=seed)) for seed in seeds]
            rows.append({**about, **over(aris, -1), "study": "clustering", "metric": f"adjusted_rand_{kind}"})
            plain = [
                adjusted_rand_score(labels, KMeans(k, n_init=10, random_state=seed).fit_predict(values))
                for seed in seeds
            ]
            rows.append(
                {**about, **over(plain, -1), "study": "clustering", "metric": f"adjusted_rand_{kind}_plain_kmeans"}
            )
            for how in given.how:
                started = time.perf_counter()
                kept = [trustworthiness(values, segae.project(values, how=how, seed=seed)) for seed in seeds]
                rows.append({**about, **over(kept), "study": "map", "metric": f"trustworthiness_{how}"})
                rows[-1]["seconds"] = (time.perf_counter() - started) / len(seeds)
            print(dataset, name, [(row["metric"], round(float(row["value"]), 3)) for row in rows[-4:]], flush=True)
    return rows


def main() -> None:
    """Measure, print the rows, and with --write put them into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion", type=Path, required=True)
    for name, number in {"train": 300, "valid": 30, "test": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=number, help="images of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--how", nargs="*", default=["pca", "tsne", "umap"])
    parser.add_argument("--only", choices=("anomalies", "groups"))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--results", type=Path, default=application_rows.FILE)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    ENCODERS["imagenet"] = segae.create_encoder("tf_efficientnet_lite0", weights="imagenet")
    ENCODERS["pets_pseudo_masks"] = segae.load_encoder("pets_pseudo_masks")
    ENCODERS["random"] = segae.create_encoder("tf_efficientnet_lite0", weights="random")
    rows = [] if given.only == "groups" else anomalies(given)
    rows += [] if given.only == "anomalies" else groups(given)
    for row in rows:
        print({name: row.get(name) for name in ("study", "dataset", "model", "metric", "value", "low", "high")})
    if given.write:
        application_rows.FILE = given.results
        application_rows.write_rows(rows)


if __name__ == "__main__":
    main()
