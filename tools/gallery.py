"""Draw docs/gallery: every member of the family of autoencoders, and every use.

    python tools/gallery.py [--runs FOLDER] [--restoring FOLDER]

The members learn scikit-learn's handwritten digits, in minutes on a CPU; the uses show the drawn pets of segae. Runs
that are finished are not repeated. The networks that restore photographs are those of benchmarks/family.py restore, in
the folder that its --runs names; without them that picture stays as it is.
"""

from __future__ import annotations

import argparse
import io
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data as public_images
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import segae
from segae.applications.generation import encode_images, interpolate
from segae.data import drawn_pets, find_images, read_image, read_resized, resize_image
from segae.evaluation import contact_sheet, denormalize, normalize
from segae.methods import create_method

GALLERY, SIDE, SHOWN, TRAINED = Path(__file__).parent.parent / "docs" / "gallery", 28, 8, 1500
MEMBERS: dict[str, dict[str, Any]] = {
    "linear": {"encoder": "linear_32", "method": "reconstruct"},
    "dense": {"encoder": "dense_256_32", "method": "reconstruct"},
    "convolutional": {"encoder": "conv_16_8_4", "method": "reconstruct", "lr": 1e-2},
    "sparse": {"encoder": "dense_256_32", "method": "sparse"},
    "contractive": {"encoder": "dense_256_32", "method": "contractive", "method_args": {"weight": 1e-3}},
    "variational": {
        **{"encoder": "dense_256_32", "method": "variational"},
        "method_args": {"criterion": "binary_cross_entropy"},
    },
}
RESTORING: dict[str, dict[str, Any]] = {
    "denoise": {"sigma": 0.4},
    "inpaint": {"patch_size": 8, "mask_ratio": 0.25},
    "colorize": {},
    "super_resolution": {"factor": 4},
    "sharpen": {"sigma": 1.5},
}


def save(columns: dict[str, list[np.ndarray]], name: str) -> None:
    """Draw a contact sheet and write it as a JPEG of some hundred kilobytes."""
    sheet = GALLERY / f"{name}.png"
    contact_sheet(columns, sheet)
    shrink(sheet, name)
    sheet.unlink()


def shrink(sheet: Path, name: str) -> None:
    """Write a picture into the gallery as JPEG, at most 1,200 pixels wide."""
    content = io.BytesIO()
    with Image.open(sheet) as picture:
        small = picture.convert("RGB")
        small.thumbnail((1200, 1600))
        small.save(content, "JPEG", quality=80)
    (GALLERY / f"{name}.jpg").write_bytes(content.getvalue())


def pretrain(args: argparse.Namespace, name: str, images: Any, **settings: Any) -> Any:
    """Train an autoencoder of gray images of 28 px, or load what an earlier call trained."""
    out = args.runs / name
    if not (out / "metrics.json").exists():
        usual: dict[str, Any] = {"image_size": SIDE, "in_channels": 1, "epochs": 60, "batch_size": 64}
        usual |= {"augment": "none", "weight_decay": 0.0, "lr": 2e-3, "near_duplicates": False}
        trainer = segae.TrainerConfig(device="cpu", cache="disk" if "domain_decoders" in settings else "gpu")
        segae.pretrain(images, out=out, trainer=trainer, resume=True, **{**usual, **settings})
    return segae.load(out / "autoencoder.safetensors")


def reconstruct(model: Any, images: np.ndarray, *domain: int) -> list[np.ndarray]:
    """What a model makes of images uint8 (N, S, S, 3)."""
    about = model.encoder.info
    made = model.reconstruct(normalize(images, about.mean, about.std, "cpu"), *domain)
    return [denormalize(one, about.mean, about.std) for one in made]


def make_digits(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Write the digits for training, and return the others with their labels."""
    digits = load_digits()
    scaled = [
        cv2.resize((16 * one).clip(max=255), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for one in digits.images
    ]
    images = np.repeat(np.stack(scaled).clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
    args.digits.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images[:TRAINED]):
        Image.fromarray(image).save(args.digits / f"{place:04d}.png")
    return images[TRAINED:], digits.target[TRAINED:]


def members(args: argparse.Namespace, digits: np.ndarray) -> None:
    """Draw what each member makes of the same eight images."""
    columns = {"image": list(digits[:SHOWN])}
    for name, settings in MEMBERS.items():
        columns[name] = reconstruct(pretrain(args, name, args.digits, **settings), digits[:SHOWN])
    save(columns, "codes")


def codes(args: argparse.Namespace, digits: np.ndarray, labels: np.ndarray) -> None:
    """Draw a map of plain and variational codes, ways between two codes, and images of another kind."""
    models = {name: segae.load(args.runs / name / "autoencoder.safetensors") for name in ("dense", "variational")}
    figure = Figure((10, 4.5), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, 2), models.items(), strict=True):
        points = PCA(2).fit_transform(encode_images(digits, model).flatten(1))
        for digit in range(10):
            axes.scatter(*points[labels == digit].T, s=14, label=str(digit))
        axes.set(title=f"{name}: two principal components of the code")
        axes.legend(ncols=2, fontsize="small")
    figure.savefig(GALLERY / "latents.png", dpi=120)
    shrink(GALLERY / "latents.png", "latents")
    (GALLERY / "latents.png").unlink()
    steps = [interpolate(models["variational"], *pair) for pair in zip(digits[:4], digits[4:8], strict=True)]
    save({f"{place / 7:.2f}": [row[place] for row in steps] for place in range(8)}, "interpolation")
    pet = read_image(find_images([drawn_pets() / "images"])[0])
    others = [resize_image(one, SIDE) for one in (pet, public_images.chelsea())]  # the latter is CC0
    gray = [np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) for one in others]
    shown = np.stack([*digits[:3], *gray])
    save({"image": [*shown], "reconstruction": reconstruct(models["dense"], shown)}, "specificity")


def domains(args: argparse.Namespace, digits: np.ndarray) -> None:
    """Draw digits and pets by the decoder of the digits and by that of the pets, behind one encoder."""
    folders = [args.digits, drawn_pets() / "unlabeled"]
    how: dict[str, Any] = {"encoder": "dense_256_32", "method": "reconstruct", "domain_decoders": True}
    model = pretrain(args, "domains", folders, **how)
    pets = [read_resized(path, SIDE) for path in find_images([drawn_pets() / "images"])[:4]]
    gray = [np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2) for one in pets]
    shown = np.stack([*digits[:4], *gray])
    columns = {"image": [*shown]}
    for place, kind in enumerate(("digits", "pets")):
        columns[f"decoder of {kind}"] = reconstruct(model, shown, place)
    save(columns, "domains")


def restoring(args: argparse.Namespace, images: np.ndarray) -> None:
    """Draw what the networks of benchmarks/family.py restore make of another photograph and of drawings."""
    columns = {"image": list(images)}
    for name, given in RESTORING.items():
        model = segae.load(args.restoring / f"restore-{name}-0" / "autoencoder.safetensors")
        method, about = create_method(name, **given), model.encoder.info
        clean = normalize(images, about.mean, about.std, "cpu")
        corrupted = method.corrupt(clean, torch.Generator().manual_seed(0))
        made = method.to_image(model.reconstruct(corrupted.image), corrupted.image, clean)
        hidden = torch.ones(1) if corrupted.mask is None else corrupted.mask
        made = torch.where(hidden > 0, made, clean)
        for title, batch in ((f"before {name}", corrupted.image), (name, made)):
            columns[title] = [denormalize(one, about.mean, about.std) for one in batch]
    save(columns, "restoration")


def uses(args: argparse.Namespace) -> None:
    """Draw a picture of each use by its public function."""
    runs, pets = args.runs, [*map(str, find_images([drawn_pets() / "images"]))]
    photos, about = drawn_pets() / "unlabeled", {"overwrite": True}
    segae.fit_anomaly_detector(photos, image_size=128, out=runs / "anomaly", **about)
    odd = runs / "odd"
    odd.mkdir(exist_ok=True)
    for number, path in enumerate(pets[:12]):
        picture = read_image(Path(path)).copy()
        if number % 2:  # a stripe that no drawn pet has
            picture[48:64] = (255, 0, 255)
        Image.fromarray(picture).save(odd / f"{number:02d}.png")
    detector = runs / "anomaly" / "detector.safetensors"
    segae.score_anomalies(odd, detector=detector, out=runs / "scores", **about)
    shrink(runs / "scores" / "sheet.png", "anomaly")
    segae.search_images(pets[:6], images=photos, out=runs / "search", **about)
    shrink(runs / "search" / "sheet.png", "search")
    segae.cluster_images(photos, k=6, out=runs / "cluster", **about)
    shrink(runs / "cluster" / "cluster_0.png", "cluster_0")
    model = runs / "variational" / "autoencoder.safetensors"
    segae.generate(model, count=32, images=args.digits, out=runs / "generation", **about)
    shrink(runs / "generation" / "sheet.png", "generation")
    how: dict[str, Any] = {"encoder": "conv_32_32_16_8", "method": "reconstruct", "in_channels": 3, "image_size": 64}
    model = pretrain(args, "pets", photos, **how)
    shown = [read_resized(Path(path), 64) for path in pets[:: len(pets) // SHOWN][:SHOWN]]
    columns = {"image": shown}
    for bits in (0.2, 0.4, 0.8):
        coded = [segae.compress(image, model, bits_per_pixel=bits) for image in shown]
        mean = 8 * np.mean([len(one) for one in coded]) / 64**2
        columns[f"{mean:.2f} bits per pixel"] = [segae.decompress(one, model) for one in coded]
    save(columns, "compression")


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--restoring", type=Path)
    args = parser.parse_args()
    args.digits = args.runs / "digits"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    GALLERY.mkdir(exist_ok=True)
    digits, labels = make_digits(args)
    members(args, digits)
    codes(args, digits, labels)
    domains(args, digits)
    if args.restoring:
        pets = find_images([drawn_pets() / "images"])
        photo = resize_image(public_images.chelsea()[:, 60:360], 64)
        restoring(args, np.stack([photo, *(read_resized(path, 64) for path in pets[:: len(pets) // 4][:4])]))
    uses(args)


if __name__ == "__main__":
    main()
