"""Does a training lose anything if 30 % of the pixels of its masks do not count? Rows of results/ignored_pixels.csv.

    python benchmarks/ignored_pixels.py --data oxford-iiit-pet-sample --out FOLDER [--write]

The masks of the training images of a copy get the value 255 at random pixels; images and test masks are the same. Both
sets are trained by segae.benchmark from ImageNet weights with the same seeds, and scored on all pixels of the test
images.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import segae
from segae.bench.results import merge_rows
from segae.data import open_dataset, read_mask, to_class_indices

SHARE, RESULTS = 0.3, Path(__file__).parent.parent / "results" / "ignored_pixels.csv"


def write_sets(source: Path, out: Path) -> list[Path]:
    """Write the data set as images/ and masks/ twice, with all pixels and with some ignored in training masks."""
    dataset = open_dataset(source)
    folders = [out / source.name, out / f"{source.name}-{SHARE * 100:.0f}-percent-ignored"]
    for folder, share in zip(folders, (0.0, SHARE), strict=True):
        random = np.random.default_rng(0)
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "classes.txt").write_text("\n".join(dataset.classes))
        for split in ("train", "test"):
            pairs = dataset.splits[split]
            (folder / f"{split}.txt").write_text("\n".join(pair.image.stem for pair in pairs))
            for pair in pairs:
                mask = to_class_indices(read_mask(pair.mask), dataset.mask_values, pair.mask)
                hidden = random.random(mask.shape) < (share if split == "train" else 0)
                shutil.copy(pair.image, folder / "images" / pair.image.name)
                target = folder / "masks" / f"{pair.image.stem}.png"
                Image.fromarray(np.where(hidden, 255, mask).astype(np.uint8)).save(target)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="add the rows to results/ignored_pixels.csv")
    args = parser.parse_args()
    found = []
    for folder in write_sets(args.data, args.out / "data"):
        how = {"weights": "imagenet", "labels": 1.0, "seeds": args.seeds, "threads": args.threads, "device": "cpu"}
        runs = segae.benchmark(folder, out=args.out / folder.name, experiment="ignored_pixels", **how).runs
        found.append(runs["miou"])
        if args.write:
            merge_rows(RESULTS, runs.to_dict("records"))
    gain = found[1].mean() - found[0].mean()
    error = np.sqrt(sum(one.var(ddof=1) / len(one) for one in found))
    print(f"mIoU {found[0].mean():.4f} with all pixels, {found[1].mean():.4f} without {SHARE:.0%}: {gain:+.4f}")
    print(f"standard error of the difference over seeds {error:.4f}, so {abs(gain) / error:.1f} standard errors")


if __name__ == "__main__":
    main()
