"""Draw docs/gallery: every member of the family of autoencoders, and every use, on the drawn pets.

    python tools/gallery.py [--runs FOLDER] [--restoring FOLDER]

Autoencoders are trained here, on the 800 unlabeled drawn pets, in about half an hour on two cores; runs that are
finished are not repeated. The networks that restore photographs are those of benchmarks/family.py restore, in the
folder that its --runs names; without them that picture stays as it is.
"""

from __future__ import annotations

import argparse
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data as public_images
from sklearn.decomposition import PCA

import segae
from segae.applications.generation import encode_images, interpolate
from segae.data import drawn_pets, find_images, read_image, read_resized, resize_image
from segae.evaluation import contact_sheet, denormalize, normalize
from segae.methods import create_method

GALLERY, SIZE, SHOWN = Path(__file__).parent.parent / "docs" / "gallery", 64, 8
CODES: dict[str, dict[str, Any]] = {
    "linear": {"encoder": "linear_64", "method": "reconstruct"},
    "dense": {"encoder": "dense_256_64", "method": "reconstruct"},
    "convolutional": {"encoder": "conv_32_32_16_8", "method": "reconstruct"},
    "sparse": {"encoder": "dense_256_64", "method": "sparse"},
    "contractive": {"encoder": "dense_256_64", "method": "contractive", "method_args": {"weight": 1e-4}},
    "variational": {
        **{"encoder": "dense_256_64", "method": "variational"},
        "method_args": {"beta": 0.1, "criterion": "binary_cross_entropy"},
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


def pretrain(args: argparse.Namespace, name: str, **settings: Any) -> Any:
    """Train an autoencoder, or load what an earlier call trained."""
    out = args.runs / name
    if not (out / "metrics.json").exists():
        usual: dict[str, Any] = {"image_size": SIZE, "epochs": 100, "batch_size": 32}
        trainer = segae.TrainerConfig(device="cpu", cache="disk")
        segae.pretrain(args.photos, out=out, trainer=trainer, resume=True, **{**usual, **settings})
    return segae.load(out / "autoencoder.safetensors")


def members(args: argparse.Namespace, images: np.ndarray) -> None:
    """Draw what each member makes of the same eight images."""
    columns = {"image": list(images)}
    for name, settings in CODES.items():
        model = pretrain(args, name, weight_decay=0.0, augment=False, **settings)
        about = model.encoder.info
        made = model.reconstruct(normalize(images, about.mean, about.std, "cpu"))
        columns[name] = [denormalize(one, about.mean, about.std) for one in made]
    save(columns, "codes")


def restoring(args: argparse.Namespace, images: np.ndarray) -> None:
    """Draw what the networks of benchmarks/family.py restore, which know photographs, make of drawn pets."""
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


def codes(args: argparse.Namespace) -> None:
    """Draw a map of plain and variational codes, ways between two codes, and images of another kind."""
    models = {name: segae.load(args.runs / name / "autoencoder.safetensors") for name in ("dense", "variational")}
    paths = find_images([drawn_pets() / "images"])
    pets = np.stack([read_resized(path, SIZE) for path in paths])
    cats = np.array([path.name[0].isupper() for path in paths])  # as in the Oxford-IIIT Pet set
    figure = Figure((10, 4.5), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, 2), models.items(), strict=True):
        points = PCA(2).fit_transform(encode_images(pets, model).flatten(1))
        for kind, chosen in {"cats": cats, "dogs": ~cats}.items():
            axes.scatter(*points[chosen].T, s=14, label=kind)
        axes.set(title=f"{name}: two principal components of the code")
        axes.legend()
    figure.savefig(GALLERY / "latents.png", dpi=120)
    shrink(GALLERY / "latents.png", "latents")
    (GALLERY / "latents.png").unlink()
    steps = [interpolate(models["variational"], *pair, steps=8) for pair in zip(pets[:4], pets[100:104], strict=True)]
    save({f"{place / 7:.2f}": [row[place] for row in steps] for place in range(8)}, "interpolation")
    photographs = [public_images.chelsea(), public_images.astronaut()]  # CC0 and public domain
    shown = np.stack([*pets[:3], *(resize_image(one, SIZE) for one in photographs)])
    model = models["dense"]
    about = model.encoder.info
    made = model.reconstruct(normalize(shown, about.mean, about.std, "cpu"))
    columns = {"image": [*shown], "reconstruction": [denormalize(one, about.mean, about.std) for one in made]}
    errors = [float(np.square(a.astype(float) - b).mean()) for a, b in zip(*columns.values(), strict=True)]
    print("mean squared error:", ", ".join(f"{error:.0f}" for error in errors))
    save(columns, "specificity")


def domains(args: argparse.Namespace) -> None:
    """Draw cats and dogs decoded by the decoder of the cats and by that of the dogs, behind one encoder."""
    pets = find_images([drawn_pets() / "images"])
    kinds = {"cats": [path for path in pets if path.name[0].isupper()], "dogs": []}
    kinds["dogs"] = [path for path in pets if path not in set(kinds["cats"])]
    folders = {kind: args.runs / "domain-folders" / kind for kind in kinds}
    for kind, paths in kinds.items():
        folders[kind].mkdir(parents=True, exist_ok=True)
        for path in paths:
            (folders[kind] / path.name).write_bytes(path.read_bytes())
    how: dict[str, Any] = {"encoder": "dense_256_64", "method": "reconstruct", "augment": False, "weight_decay": 0.0}
    args.photos, unlabeled = [*folders.values()], args.photos
    model = pretrain(args, "domains", epochs=200, domain_decoders=True, **how)
    args.photos = unlabeled
    shown = np.stack([read_resized(path, SIZE) for kind in kinds for path in kinds[kind][:4]])
    about = model.encoder.info
    columns = {"image": [*shown]}
    for place, kind in enumerate(kinds):
        made = model.reconstruct(normalize(shown, about.mean, about.std, "cpu"), place)
        columns[f"decoder of {kind}"] = [denormalize(one, about.mean, about.std) for one in made]
    save(columns, "domains")


def uses(args: argparse.Namespace, images: np.ndarray) -> None:
    """Draw a picture of each use by its public function."""
    runs, pets = args.runs, [*map(str, find_images([drawn_pets() / "images"]))]
    conv = runs / "convolutional" / "autoencoder.safetensors"
    about: dict[str, Any] = {"overwrite": True}
    segae.fit_anomaly_detector(args.photos, image_size=128, out=runs / "anomaly", **about)
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
    segae.search_images(pets[:6], images=args.photos, out=runs / "search", **about)
    shrink(runs / "search" / "sheet.png", "search")
    segae.cluster_images(args.photos, k=6, out=runs / "cluster", **about)
    shrink(runs / "cluster" / "cluster_0.png", "cluster_0")
    segae.generate(
        runs / "variational" / "autoencoder.safetensors", count=32, images=args.photos, out=runs / "gen", **about
    )
    shrink(runs / "gen" / "sheet.png", "generation")
    columns: dict[str, list[np.ndarray]] = {"image": list(images)}
    for bits in (0.05, 0.1, 0.2):
        coded = [segae.compress(image, conv, bits_per_pixel=bits) for image in images]
        mean = 8 * np.mean([len(one) for one in coded]) / SIZE**2
        columns[f"{mean:.2f} bits per pixel"] = [segae.decompress(one, conv) for one in coded]
    save(columns, "compression")


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--restoring", type=Path)
    args = parser.parse_args()
    args.photos = drawn_pets() / "unlabeled"
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    GALLERY.mkdir(exist_ok=True)
    chosen = find_images([drawn_pets() / "images"])[:: len(find_images([drawn_pets() / "images"])) // SHOWN][:SHOWN]
    images = np.stack([read_resized(path, SIZE) for path in chosen])
    members(args, images)
    if args.restoring:
        restoring(args, images)
    codes(args)
    domains(args)
    uses(args, images)


if __name__ == "__main__":
    main()
