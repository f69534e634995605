"""Images per second of `segae features` and `segae predict` beside plain loops, taking turns in one process.

    python benchmarks/inference.py [--data FOLDER] [--write]

- features: segae with PyTorch and with an exported ONNX file, and what people write: a DataLoader that decodes and
  resizes each file, timm's network, the mean over positions.
- predict: the same, and a loop with smp's network that writes masks too: logits resized to the image's size, the most
  probable class, a PNG file.

The plain loops run with 0 and with 2 worker processes; ratios are to the faster one of each round. Each round times
every system once, from files to results; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import timm
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import segae
from segae.data import find_images
from segae.training import choose_device, limit_threads, prepare_device, provenance

ENCODER = "tf_efficientnet_lite0"


class Images(Dataset):
    """The data set of a plain loop: decode, resize, normalize; with the size of the file's image."""

    def __init__(self, paths: list[Path], size: int, info: segae.EncoderInfo) -> None:
        steps = [albumentations.Resize(size, size), albumentations.Normalize(info.mean, info.std), ToTensorV2()]
        self.paths, self.transform = paths, albumentations.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int], str]:
        pixels = np.asarray(Image.open(self.paths[index]).convert("RGB"))
        return self.transform(image=pixels)["image"], pixels.shape[:2], self.paths[index].name


def collate(items: list[Any]) -> tuple[torch.Tensor, list[Any], list[str]]:
    """Stack the images, and leave the rest as lists."""
    images, sizes, names = zip(*items, strict=True)
    return torch.stack(images), list(sizes), list(names)


def plain_features(loader: DataLoader, device: torch.device) -> Callable[[Path], None]:
    """Make the loop that computes pooled features."""
    network = timm.create_model(ENCODER, features_only=True, pretrained=False).to(device).eval()

    def run(out: Path) -> None:
        with torch.inference_mode():
            found = [network(images.to(device))[-1].mean(dim=(2, 3)).cpu() for images, *_ in loader]
        np.savez(out / "features.npz", values=torch.cat(found).numpy())

    return run


def plain_predict(loader: DataLoader, state: dict[str, Any], device: torch.device) -> Callable[[Path], None]:
    """Make the loop that writes masks."""
    network = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, classes=3).to(device).eval()
    network.load_state_dict(state)

    def run(out: Path) -> None:
        with torch.inference_mode():
            for images, sizes, names in loader:
                for logits, size, name in zip(network(images.to(device)), sizes, names, strict=True):
                    large = torch.nn.functional.interpolate(logits[None], size, mode="bilinear")
                    mask = large[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
                    Image.fromarray(mask).save((out / name).with_suffix(".png"))

    return run


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Time all systems and return the rows."""
    device = choose_device(given.device)
    prepare_device(device)
    paths, size, batch = list(find_images([given.data]))[: given.images], given.image_size, given.batch_size
    encoder = segae.create_encoder(ENCODER)
    model = segae.create_segmenter(encoder, num_classes=3, image_size=size).to(device)
    onnx = segae.export(model, to="onnx", out=folder / "onnx") / "model.onnx"
    onnx_encoder = segae.export(encoder, to="onnx", out=folder / "onnx-encoder") / "model.onnx"
    data = Images(paths, size, encoder.info)
    how: dict[str, Any] = {"batch_size": batch, "overwrite": True}
    common = {**how, "device": given.device}
    systems: dict[tuple[str, str], Callable[[Path], Any]] = {
        ("features", "segae"): lambda out: segae.extract_features(
            paths, encoder, image_size=size, out=out / "features.npz", **common
        ),
        ("features", "segae_onnx"): lambda out: segae.extract_features(
            paths, onnx_encoder, image_size=size, out=out / "features.npz", **how
        ),
        ("predict", "segae"): lambda out: segae.predict(model, paths, out=out, overlay=False, **common),
        ("predict", "segae_onnx"): lambda out: segae.predict(onnx, paths, out=out, overlay=False, **how),
    }
    for workers in (0, 2):
        loader = DataLoader(data, batch, num_workers=workers, collate_fn=collate)
        systems["features", f"plain_loop_workers_{workers}"] = plain_features(loader, device)
        systems["predict", f"plain_loop_workers_{workers}"] = plain_predict(loader, model.state_dict(), device)
    rounds: list[dict[tuple[str, str], float]] = []
    for turn in range(given.rounds + 1):
        rates = {}
        for name in list(systems)[:: 1 if turn % 2 else -1]:
            out = folder / f"{'-'.join(name)}-{turn}"
            out.mkdir()
            started = time.perf_counter()
            systems[name](out)
            rates[name] = len(paths) / (time.perf_counter() - started)
        if turn:  # the first round warms up
            rounds.append(rates)
    found = [("images_per_second", *name, [rates[name] for rates in rounds]) for name in systems]
    for task, system in systems:
        if system.startswith("segae"):
            plain = [max(rates[task, f"plain_loop_workers_{workers}"] for workers in (0, 2)) for rates in rounds]
            ratios = [rates[task, system] / other for rates, other in zip(rounds, plain, strict=True)]
            found.append(("ratio_to_plain_loop", task, system, ratios))
    about = {"benchmark": "inference", "encoder": ENCODER, "image_size": size, "batch_size": batch, "data_path": "none"}
    rows = []
    for metric, task, system, values in found:
        value = statistics.median(values)
        print(f"{task:9} {system:22} {metric:20} {value:8.3f}  ({min(values):.3f} to {max(values):.3f})")
        limits = {"lowest": round(min(values), 4), "highest": round(max(values), 4)}
        what = {"task": task, "system": system, "metric": metric, "value": round(value, 4)}
        rows.append({**about, **what, **limits, "settings": f"{len(paths)} images of {given.data.name}"})
    return [{**row, **provenance(device)} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=segae.data.drawn_pets() / "unlabeled")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help="add the rows to results/throughput_<device>.csv")
    given = parser.parse_args()
    with limit_threads(given.threads), tempfile.TemporaryDirectory() as name:
        rows = measure(given, Path(name))
    if given.write:
        target = Path(__file__).parents[1] / "results" / f"throughput_{choose_device(given.device).type}.csv"
        known = pd.read_csv(target) if target.exists() else pd.DataFrame()
        pd.concat([known, pd.DataFrame(rows)]).to_csv(target, index=False)
