"""Numbers of results/applications.csv for the members of the family of autoencoders, and the gallery of all of them.

    python benchmarks/family.py STUDY --data FOLDER --fashion FOLDER [--runs FOLDER] [--write]

``--data`` holds oxford-iiit-pet-sample and cats-dogs-unlabelled; ``--fashion`` is what segae data fashion_mnist wrote.
Every model is trained by segae.pretrain. Studies:

- linear: reconstruction error and subspace of linear_32 against PCA, test images of Fashion-MNIST.
- small: test error of conv_16_8_4 (64 numbers) against PCA with 64 components.
- specificity: error of conv_16_8_4, trained on clothes, on pets, nuclei and drawn pets over that on clothes.
- bottleneck: test error over the size of the code; an overcomplete code with and without noise and penalty.
- sparse, contractive: active share of the code and norm of the Jacobian over the weight of the penalty.
- restore: PSNR of denoising, inpainting, colorization, super-resolution and sharpening on test images of the Pet
  sample against classical methods.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from application_rows import write_rows
from scipy.linalg import subspace_angles
from skimage.restoration import denoise_nl_means, estimate_sigma
from sklearn.decomposition import PCA

import segae
from segae.data import drawn_pets, find_images, open_dataset, read_resized
from segae.evaluation import normalize
from segae.methods import create_method, jacobian_norm

PETS, SIZE = "oxford-iiit-pet-sample", 64
Row = dict[str, Any]


def read(folder: Path | Sequence[Path], size: int = 28, count: int | None = None) -> np.ndarray:
    paths = find_images([folder] if isinstance(folder, Path) else list(folder))
    chosen = np.linspace(0, len(paths) - 1, count or len(paths)).astype(int)
    return np.stack([read_resized(paths[place], size) for place in chosen])


def fashion(args: argparse.Namespace, split: str, count: int | None = None) -> torch.Tensor:
    """Gray images in [0, 1], (N, 1, 28, 28)."""
    return normalize(read(args.fashion / split, count=count), (0.0,), (1.0,), "cpu").contiguous()


def pretrain(args: argparse.Namespace, name: str, images: Any, seed: int = 0, **settings: Any) -> tuple[Any, float]:
    """Train, or load what an earlier call trained; return the autoencoder and the seconds of its training."""
    out = args.runs / f"{name}-{seed}"
    if not (out / "metrics.json").exists():
        usual = {"in_channels": 1, "image_size": 28, "batch_size": 128, "augment": False, "weight_decay": 0.0}
        usual |= {"val_fraction": 0.02, "warmup": 0.1}
        trainer = segae.TrainerConfig(seed=seed, threads=args.threads, cache="gpu", device="cpu")
        segae.pretrain(images, out=out, trainer=trainer, resume=True, **{**usual, **settings})
    return segae.load(out / "autoencoder.safetensors"), json.loads((out / "metrics.json").read_text())["seconds"]


def error(model: Any, images: torch.Tensor) -> np.ndarray:
    """Mean squared error of each image."""
    made = torch.cat([model.reconstruct(batch) for batch in images.split(500)])
    return (made - images).square().flatten(1).mean(dim=1).numpy()


def interval(values: Sequence[float] | np.ndarray) -> Row:
    """Mean with a 95 % interval over images."""
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return {"value": np.mean(values), "low": np.mean(values) - half, "high": np.mean(values) + half, "n": len(values)}


def pca_error(train: torch.Tensor, test: torch.Tensor, components: int) -> tuple[PCA, np.ndarray]:
    pca = PCA(components, svd_solver="covariance_eigh").fit(train.flatten(1).numpy())
    flat = test.flatten(1).numpy()
    return pca, np.square(flat - pca.inverse_transform(pca.transform(flat))).mean(axis=1)


def linear(args: argparse.Namespace) -> list[Row]:
    train, test = fashion(args, "train"), fashion(args, "test")
    settings = {"encoder": "linear_32", "method": "reconstruct", "epochs": args.epochs, "lr": 2e-3}
    model, seconds = pretrain(args, "linear_32", args.fashion / "train", **settings)
    pca, best = pca_error(train, test, 32)
    with torch.no_grad():
        spanned = (
            model.from_code(torch.eye(32)[:, :, None, None]) - model.from_code(torch.zeros(1, 32, 1, 1))
        ).flatten(1)
    angles = np.degrees(subspace_angles(spanned.T.numpy(), pca.components_.T))
    own, shared = error(model, test), {"dataset": "fashion-mnist", "seeds": 1, "seconds": seconds}
    return [
        {**shared, "model": "linear_32", "metric": "mse", **interval(own)},
        {**shared, "model": "PCA 32", "baseline": True, "metric": "mse", **interval(best)},
        {**shared, "model": "linear_32", "metric": "mse_over_pca", "value": own.mean() / best.mean()},
        {**shared, "model": "linear_32", "metric": "largest_angle_degrees", "value": angles.max()},
        {**shared, "model": "linear_32", "metric": "second_angle_degrees", "value": np.sort(angles)[-2]},
        {**shared, "model": "linear_32", "metric": "mean_angle_degrees", "value": angles.mean()},
    ]


def small(args: argparse.Namespace) -> list[Row]:
    train, test = fashion(args, "train"), fashion(args, "test")
    rows = [{"model": "PCA 64", "baseline": True, **interval(pca_error(train, test, 64)[1])}]
    for upsampling in ("nearest", "transposed"):
        settings = {"encoder": "conv_16_8_4", "method": "reconstruct", "epochs": args.epochs, "lr": 1e-2}
        settings |= {"upsampling": upsampling, "output_activation": "sigmoid"}
        model, seconds = pretrain(args, f"conv_16_8_4-{upsampling}", args.fashion / "train", **settings)
        rows.append({"model": f"conv_16_8_4 {upsampling}", "seconds": seconds, **interval(error(model, test))})
    return [{"dataset": "fashion-mnist", "metric": "mse", "seeds": 1, **row} for row in rows]


def specificity(args: argparse.Namespace) -> list[Row]:
    """Measure how badly an autoencoder of clothes reconstructs other images, all gray and of 28 px."""
    settings = {"encoder": "conv_16_8_4", "method": "reconstruct", "epochs": args.epochs, "lr": 1e-2}
    settings |= {"upsampling": "nearest", "output_activation": "sigmoid"}
    model, seconds = pretrain(args, "conv_16_8_4-nearest", args.fashion / "train", **settings)
    own, rows = error(model, fashion(args, "test")), []
    others = {"pets": args.data / PETS / "images", "nuclei": args.data / "nuclei-dsb2018" / "images"}
    for name, folder in {"clothes": None, **others, "drawn pets": drawn_pets() / "images"}.items():
        images = None if folder is None else normalize(read(folder, count=250), (0.0,), (1.0,), "cpu").contiguous()
        found = own if images is None else error(model, images)
        row = {"model": "conv_16_8_4 of clothes", "dataset": name, "seeds": 1, "seconds": seconds}
        rows.append({**row, "metric": "mse", **interval(found)})
        rows.append({**row, "metric": "mse_over_clothes", "value": found.mean() / own.mean(), "n": len(found)})
    return rows


def bottleneck(args: argparse.Namespace) -> list[Row]:
    test, rows = fashion(args, "test", 2000), []
    folder = args.fashion / "train"
    for channels in (1, 2, 4, 8, 16):
        settings = {"encoder": "conv_32_32_16", "method": "reconstruct", "bottleneck": channels, "lr": 3e-3}
        model, seconds = pretrain(args, f"bottleneck-{channels}", folder, epochs=args.short, **settings)
        rows.append(
            {"model": f"conv_32_32_16, code {16 * channels}", "seconds": seconds, **interval(error(model, test))}
        )
    for name, settings in {
        "reconstruct": {"method": "reconstruct"},
        "denoise": {"method": "denoise", "method_args": {"sigma": 0.3}},
        "sparse": {"method": "sparse", "method_args": {"weight": 0.05}},
    }.items():
        model, seconds = pretrain(
            args, f"over-{name}", folder, epochs=args.short, encoder="linear_1024", lr=1e-3, **settings
        )
        noise = torch.rand(500, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        for what, images in (("mse", test), ("mse_of_noise", noise)):
            row = {"model": f"linear_1024 {name}", "metric": what, "seconds": seconds}
            rows.append({**row, **interval(error(model, images))})
    return [{"dataset": "fashion-mnist", "metric": "mse", "seeds": 1, **row} for row in rows]


def weights(args: argparse.Namespace, method: str) -> list[Row]:
    test, rows = fashion(args, "test", 1000), []
    kinds = {"l1": (0.0, 0.1, 1.0), "kl": (0.05, 0.2)} if method == "sparse" else {"estimate": (0.0, 1e-3, 1e-2)}
    for kind, values in kinds.items():
        for value in values:
            given = {"penalty_kind": kind, **({"rate": value, "weight": 1.0} if kind == "kl" else {"weight": value})}
            given = given if method == "sparse" else {"weight": value}
            settings = {"encoder": "dense_256_64", "method": method, "method_args": given, "epochs": args.short}
            model, seconds = pretrain(args, f"{method}-{kind}-{value}", args.fashion / "train", **settings)
            with torch.no_grad():
                code = model.code(test)
            if method == "contractive":
                metric, found = "jacobian_norm", float(jacobian_norm(model.code, test[:100]).detach())
            elif kind == "kl":
                metric, found = "mean_activation", float(code.mean())
            else:
                metric, found = "active_share", float((code > 1e-3).float().mean())
            name = f"dense_256_64 {kind} {value:g}"
            rows.append({"model": name, "metric": metric, "value": found, "seconds": seconds, "n": len(test)})
            rows.append({"model": name, "metric": "mse", "seconds": seconds, **interval(error(model, test))})
    return [{"dataset": "fashion-mnist", "seeds": 1, **row} for row in rows]


def psnr(made: np.ndarray, clean: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """PSNR in dB of images (N, H, W, 3) in [0, 255], at hidden pixels where a mask (N, H, W) is given."""
    squared = np.square(np.clip(made, 0, 255).astype(np.float64) - clean)
    parts = [one if mask is None else one[mask[place] > 0] for place, one in enumerate(squared)]
    return np.array([10 * np.log10(255**2 / max(part.mean(), 1e-9)) for part in parts])


def chroma_error(made: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Root mean squared distance in the a, b plane of CIELAB of each image."""
    both = [
        np.stack([cv2.cvtColor(np.clip(one, 0, 255).astype(np.uint8), cv2.COLOR_RGB2LAB) for one in part])
        for part in (made, clean)
    ]
    difference = both[0][..., 1:].astype(np.float64) - both[1][..., 1:]
    return np.sqrt(np.square(difference).sum(axis=-1).mean(axis=(1, 2)))


def restore(args: argparse.Namespace) -> list[Row]:
    splits = open_dataset(args.data / PETS).splits
    test = np.stack([read_resized(pair.image, SIZE) for pair in splits["test"]])
    train_paths = [pair.image for pair in splits["train"]]
    mean_chroma = np.stack([read_resized(path, SIZE) for path in train_paths]).mean(axis=(0, 1, 2))
    folders = [args.data / "cats-dogs-unlabelled", args.data / PETS]
    tasks: dict[str, dict[str, Any]] = {
        "denoise": {"sigma": 0.4},
        "inpaint": {"patch_size": 8, "mask_ratio": 0.25},
        "colorize": {},
        "super_resolution": {"factor": 4},
        "sharpen": {"sigma": 1.5},
    }
    rows = []
    for task, given in ((name, tasks[name]) for name in args.tasks or tasks):
        settings: dict[str, Any] = {"encoder": "resnet18", "method": task, "method_args": given}
        settings |= {"decoder": "unet_with_input", "in_channels": 3, "image_size": SIZE, "augment": True}
        settings |= {"batch_size": 8, "weight_decay": 0.01}
        settings |= {"epochs": args.restore_epochs, "lr": 1e-3, "val_fraction": 0.02}
        model, seconds = pretrain(args, f"restore-{task}", folders, **settings)
        about, method = model.encoder.info, create_method(task, **given)
        mean, std = (np.asarray(part, np.float32) for part in (about.mean, about.std))
        clean = normalize(test, about.mean, about.std, "cpu")
        corrupted = method.corrupt(clean, torch.Generator().manual_seed(0))
        made = torch.cat([model.reconstruct(batch) for batch in corrupted.image.split(64)])
        made = method.to_image(made, corrupted.image, clean)
        seen, own = (
            ((part.permute(0, 2, 3, 1).numpy() * std + mean) * 255).astype(np.float64)
            for part in (corrupted.image, made)
        )
        hidden = None if corrupted.mask is None else corrupted.mask[:, 0].numpy()
        metric, score = ("chroma_error", chroma_error) if task == "colorize" else ("psnr", partial(psnr, mask=hidden))
        peers = baselines(task, seen, test, hidden, mean_chroma)
        shared = {"dataset": PETS, "metric": f"{task}_{metric}", "seeds": 1}
        name = f"resnet18+unet_with_input {task}, {args.restore_epochs} epochs"
        rows.append({**shared, "model": name, "seconds": seconds, **interval(score(own, test))})
        for peer, images in {"corrupted": seen, **peers}.items():
            rows.append({**shared, "model": peer, "baseline": True, **interval(score(images, test))})
            gain = interval(score(own, test) - score(images, test))
            rows.append({**shared, "model": name, "metric": f"{task}_{metric}_over_{peer}", **gain})
    return rows


def baselines(
    task: str, seen: np.ndarray, clean: np.ndarray, hidden: np.ndarray | None, mean_chroma: np.ndarray
) -> dict[str, np.ndarray]:
    """What classical methods make of the corrupted images, float64 (N, H, W, 3) in [0, 255]."""
    if task == "denoise":

        def average(image: np.ndarray) -> np.ndarray:
            sigma = float(np.mean(estimate_sigma(image / 255, channel_axis=-1)))
            how = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "sigma": sigma, "channel_axis": -1}
            return 255 * denoise_nl_means(image / 255, h=0.8 * sigma, **how)

        return {"non-local means": np.stack([average(image) for image in seen])}
    as_bytes = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    if task == "inpaint" and hidden is not None:
        masks = (hidden * 255).astype(np.uint8)
        flags = {"OpenCV telea": cv2.INPAINT_TELEA, "OpenCV navier-stokes": cv2.INPAINT_NS}
        return {
            name: np.stack([cv2.inpaint(*pair, 3, flag) for pair in zip(as_bytes, masks, strict=True)]).astype(float)
            for name, flag in flags.items()
        }
    if task == "colorize":
        gray = np.array([0.299, 0.587, 0.114])
        return {"gray": seen, "mean chroma": seen + (mean_chroma - mean_chroma @ gray)}
    if task == "super_resolution":
        factor = {"fx": 1 / 4, "fy": 1 / 4, "interpolation": cv2.INTER_AREA}
        small = [cv2.resize(one, None, **factor) for one in clean.astype(np.float32)]
        large = [cv2.resize(one, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for one in small]
        return {"bicubic": np.stack(large).astype(float)}
    blurred = np.stack([cv2.GaussianBlur(one, (0, 0), 1.5) for one in seen])
    return {"unsharp masking": seen + 1.0 * (seen - blurred)}


def main() -> None:
    studies = {
        "specificity": specificity,
        "linear": linear,
        "small": small,
        "bottleneck": bottleneck,
        "restore": restore,
    }
    studies |= {name: partial(weights, method=name) for name in ("sparse", "contractive")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--fashion", type=Path, default=Path("data/fashion_mnist"))
    parser.add_argument("--runs", type=Path, default=Path("runs/family"))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--short", type=int, default=5, help="epochs of bottleneck, sparse and contractive")
    parser.add_argument("--restore-epochs", type=int, default=10)
    parser.add_argument("--tasks", nargs="+", default=[], help="of restore; all where none is named")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    short = args.study in ("bottleneck", "sparse", "contractive")
    epochs = args.restore_epochs if args.study == "restore" else args.short if short else args.epochs
    shared = {"study": args.study, "note": f"{epochs} epochs, one seed; intervals over images"}
    rows = [{**shared, **row} for row in studies[args.study](args)]
    for row in rows:
        print({name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()})
    if args.write:
        write_rows(rows)


if __name__ == "__main__":
    main()
