"""Fashion-MNIST (arXiv 1708.07747): 70,000 gray images of 28 x 28 pixels in ten classes, as folders of PNG files."""

from pathlib import Path

from PIL import Image
from torchvision.datasets import FashionMNIST

from segae.errors import DataError


def download_fashion_mnist(root: Path) -> Path:
    """Write Fashion-MNIST as ``root``/train|test/<class>/<number>.png and return ``root``.

    The four idx files are downloaded (30 MB) unless they are in ``root``/FashionMNIST/raw, unpacked.
    DataError if there is no connection, a checksum is wrong, a file is damaged, or nothing can be written.
    """
    done = root / ".images.unpacked"
    if done.is_file():
        return root
    try:
        for split in ("train", "test"):
            found = FashionMNIST(root, train=split == "train", download=True)
            folders = [root / split / name.lower().replace("/top", "").replace(" ", "-") for name in found.classes]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            for number, (image, label) in enumerate(zip(found.data.numpy(), found.targets.tolist(), strict=True)):
                Image.fromarray(image).save(folders[label] / f"{number:05d}.png")
    except (OSError, RuntimeError, ValueError, AssertionError) as error:  # the last is torchvision's of a damaged file
        advice = "Check the connection and the free space, or put the unpacked idx files into FashionMNIST/raw there."
        raise DataError(f"Fashion-MNIST could not be put into {root}: {error!r}. {advice}") from error
    done.touch()  # last: it says that every image is on the disk
    return root
