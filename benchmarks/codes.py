"""Numbers of results/applications.csv: compression, generation, and decoders of two domains.

    python benchmarks/codes.py [compression generation domains] --data FOLDER --fashion FOLDER [--write] [--tiny]

FOLDER holds oxford-iiit-pet-sample and cats-dogs-unlabelled; that of --fashion train/CLASS/*.png and test/CLASS/*.png.

- compression: an autoencoder of photographs of 128 x 128 pixels against JPEG and WebP on test pets.
- generation: a variational autoencoder of Fashion-MNIST against random codes of a plain one, three seeds.
- domains: errors of both decoders, of cats and dogs and of photographs and drawings, on held-out images, three seeds.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from application_rows import write_rows
from applications import bootstrap, over_seeds
from PIL import Image
from scipy.linalg import sqrtm
from torch.nn.functional import binary_cross_entropy
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

import segae
from segae.data import drawn_pets, open_dataset, read_resized
from segae.methods.penalties import gaussian_kl

Row = dict[str, Any]
SIDE = 128


def link(files: Sequence[Path], folder: Path) -> Path:
    """Make a folder of links to files."""
    folder.mkdir(parents=True)
    for place, file in enumerate(files):
        (folder / f"{place:05d}{file.suffix}").symlink_to(file.resolve())
    return folder


def train(data: Any, out: Path, **settings: Any) -> segae.Autoencoder:
    """Pretrain an autoencoder without crops."""
    given = {"augment": False, "val_fraction": 0.02, "lr": 3e-3, "near_duplicates": False, "overwrite": True}
    return segae.pretrain(data, out=out, **{**given, **settings}).autoencoder


def compression(args: argparse.Namespace, work: Path) -> list[Row]:
    """Measure bits per pixel, PSNR and MS-SSIM (7 x 7 windows) of test pets at several fidelities."""
    started, few = time.perf_counter(), 40 if args.tiny else None
    splits = open_dataset(args.data / "oxford-iiit-pet-sample").splits
    files = [pair.image for pair in splits["train"]] + sorted((args.data / "cats-dogs-unlabelled").glob("*.jpg"))
    how: Row = {"encoder": "conv_32_32_16", "method": "reconstruct", "image_size": SIDE, "batch_size": 16}
    model = train(link(files[:few], work / "photos"), work / "run", epochs=1 if args.tiny else 10, **how)
    images = [read_resized(pair.image, SIDE) for pair in splits["test"][: 4 if args.tiny else 100]]

    def lossy(kind: str, quality: int) -> Callable[[np.ndarray], tuple[int, np.ndarray]]:
        def both(image: np.ndarray) -> tuple[int, np.ndarray]:
            Image.fromarray(image).save(file := io.BytesIO(), kind, quality=quality)
            return file.tell(), np.asarray(Image.open(file).convert("RGB"))

        return both

    def ours(bits: float) -> Callable[[np.ndarray], tuple[int, np.ndarray]]:
        def both(image: np.ndarray) -> tuple[int, np.ndarray]:
            data = segae.compress(image, model, bits_per_pixel=bits)
            return len(data), segae.decompress(data, model)

        return both

    coders = {f"conv_32_32_16 {bits} bpp": ours(bits) for bits in (0.15, 0.3, 0.6, 1.2)}
    for quality in (1, 10, 30, 60):
        coders |= {f"{kind} {quality}": lossy(kind, quality) for kind in ("JPEG", "WEBP")}
    rows: list[Row] = []
    for name, coder in coders.items():
        made = [coder(image) for image in images]
        tensors = (
            torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) / 255 for part in (images, [m[1] for m in made])
        )
        similar = ms_ssim(*tensors, kernel_size=7, data_range=1.0, reduction="none").numpy()
        values = {
            "bits_per_pixel": np.array([8 * size / SIDE**2 for size, _ in made]),
            "psnr": np.array([cv2.PSNR(image, other) for image, (_, other) in zip(images, made, strict=True)]),
            "ms_ssim": similar,
        }
        for metric, found in values.items():
            value, low, high = bootstrap(found, lambda drawn: float(np.mean(drawn)))
            about: Row = {"study": "compression", "dataset": "oxford-iiit-pet-sample", "model": name, "metric": metric}
            about |= {"value": value, "low": low, "high": high, "n": len(images), "seeds": 1}
            rows.append(
                about | {"baseline": not name.startswith("conv"), "note": f"{SIDE} px, {len(files[:few])} images"}
            )
    return [row | {"seconds": time.perf_counter() - started} for row in rows]


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the squared Frechet distance of Gaussians fitted to features (N, C) (arXiv 1706.08500)."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    cross = np.trace(sqrtm(first @ second).real)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * cross)


def generation(args: argparse.Namespace, work: Path) -> list[Row]:
    """Measure the evidence lower bound, and the distance of samples from test images in features of ImageNet."""
    started, count = time.perf_counter(), 64 if args.tiny else 2000
    draw = np.random.default_rng(0)
    files = {split: sorted((args.fashion / split).rglob("*.png")) for split in ("train", "test")}
    order = {split: draw.permutation(len(found)) for split, found in files.items()}
    chosen = [files["train"][place] for place in order["train"][: 200 if args.tiny else 6000]]
    folder = link(chosen, work / "fashion")
    pixels = np.stack([read_resized(files["test"][place], 28) for place in order["test"][: 2 * count]])
    features = segae.EncoderFeatures("imagenet", image_size=64)
    real, other = (features.fit_transform(part) for part in (pixels[:count], pixels[count:]))
    found: dict[tuple[str, str], list[float]] = {
        ("held-out images", "frechet_distance"): [frechet_distance(real, other)]
    }
    how: Row = {"encoder": "dense_256_32", "image_size": 28, "in_channels": 1, "batch_size": 64, "lr": 1e-3}
    how |= {"method_args": {"criterion": "binary_cross_entropy"}, "epochs": 1 if args.tiny else 12}
    images = torch.from_numpy(pixels[:count, ..., :1]).permute(0, 3, 1, 2).float() / 255
    for seed in range(3):
        for method in ("variational", "reconstruct"):
            model = train(folder, work / f"{method}{seed}", method=method, seed=seed, **how)
            codes = (
                None
                if method == "variational"
                else segae.encode_images(np.stack([read_resized(p, 28) for p in chosen[:4096]]), model)
            )
            made = features.transform(segae.sample(model, count, seed=seed, codes=codes))
            values = {"frechet_distance": frechet_distance(real, made)}
            if method == "variational":
                with torch.no_grad():
                    divergence = float(gaussian_kl(model.bottleneck(model.encode(images)[-1])).mean())
                    prediction = model.from_code(model.code(images, "sample")).clamp(1e-6, 1 - 1e-6)
                error = float(binary_cross_entropy(prediction, images, reduction="sum")) / count
                values |= {"reconstruction_nats": error, "kl_nats": divergence, "elbo_nats": -error - divergence}
            for metric, value in values.items():
                found.setdefault((method, metric), []).append(value)
    rows: list[Row] = []
    for (name, metric), values in found.items():
        value, low, high = over_seeds(values, (-1e9, 1e9)) if len(values) > 1 else (values[0], None, None)
        about: Row = {"study": "generation", "dataset": "fashion-mnist", "model": name, "metric": metric, "n": count}
        about |= {"value": value, "low": low, "high": high, "seeds": len(values), "baseline": name != "variational"}
        rows.append(about | {"note": f"dense_256_32, {len(chosen)} images"})
    return [row | {"seconds": time.perf_counter() - started} for row in rows]


def domains(args: argparse.Namespace, work: Path) -> list[Row]:
    """Measure the squared error of pixels in [0, 1] of each decoder on held-out images of each domain."""
    photos = args.data / "cats-dogs-unlabelled"
    drawn = drawn_pets()
    pairs = {
        "cats and dogs": [sorted(photos.glob("cat.*.jpg")), sorted(photos.glob("dog.*.jpg"))],
        "photographs and drawings": [sorted(photos.glob("*.jpg")), sorted((drawn / "unlabeled").glob("*.*"))],
    }
    rows: list[Row] = []
    for name, both in pairs.items():
        started = time.perf_counter()
        both = [[files[place] for place in np.random.default_rng(0).permutation(len(files))] for files in both]
        count, held_out = (24, 8) if args.tiny else (400, 100)
        folders = [link(files[held_out:][:count], work / name / str(place)) for place, files in enumerate(both)]
        how: Row = {"encoder": "conv_32_32_16", "method": "reconstruct", "image_size": 64, "domain_decoders": True}
        errors: dict[tuple[int, int], list[float]] = {}
        for seed in range(3):
            model = train(folders, work / f"{name} {seed}", seed=seed, epochs=1 if args.tiny else 15, **how)
            for own, files in enumerate(both):
                pixels = np.stack([read_resized(file, 64) for file in files[:held_out]])
                images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
                for place in (0, 1):
                    error = (model.reconstruct(images, place) - images).square().mean()
                    errors.setdefault((own, place), []).append(float(error))
        for (own, place), values in errors.items():
            value, low, high = over_seeds(values)
            about: Row = {"study": "domains", "dataset": name, "model": f"decoder {place} on domain {own}", "seeds": 3}
            about |= {
                "metric": "mse",
                "value": value,
                "low": low,
                "high": high,
                "n": held_out,
                "baseline": own != place,
            }
            rows.append(about | {"seconds": time.perf_counter() - started, "note": f"64 px, {count} images each"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = {"compression": compression, "generation": generation, "domains": domains}
    parser.add_argument("studies", nargs="*", default=list(studies), metavar="STUDY")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--write", action="store_true", help="write into results/applications.csv")
    parser.add_argument("--tiny", action="store_true", help="a few images and one epoch: only to see that it runs")
    args = parser.parse_args()
    if args.write and args.tiny:
        parser.error("--write must not be given with --tiny, whose numbers mean nothing")
    for study in args.studies:
        with tempfile.TemporaryDirectory() as work:
            rows = studies[study](args, Path(work))
        for row in rows:
            print(*(row.get(name) for name in ("study", "dataset", "model", "metric", "value", "low", "high")))
        if args.write:
            write_rows(rows)


if __name__ == "__main__":
    main()
