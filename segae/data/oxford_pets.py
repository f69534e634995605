"""The Oxford-IIIT Pet data set (Parkhi, Vedaldi, Zisserman, Jawahar, CVPR 2012): its official splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from segae.data.dataset import SegmentationData
from segae.data.download import fetch_archive
from segae.data.packed import PackedPairs, Pair
from segae.errors import SegaeError

logger = logging.getLogger("segae")

CLASSES = ("pet", "background", "border")
PALETTE = ((230, 85, 13), (49, 54, 80), (255, 221, 87))
TRIMAP_VALUES = (1, 2, 3)  # raw values of the trimaps; the class index is one less

BASE_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"
ARCHIVES: Mapping[str, str] = MappingProxyType(
    {
        "images.tar.gz": "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c",
        "annotations.tar.gz": "md5:95a8c909bbe2e81eed6a22bccdf3f68f",
    }
)

_SPLIT_FILES = {"train": "trainval.txt", "test": "test.txt"}


class OxfordPets(SegmentationData):
    """The data set in its official layout, whole or in part.

    `root` holds images/<name>.jpg, annotations/trimaps/<name>.png, annotations/trainval.txt and
    annotations/test.txt. Of a partial copy the listed files that are there are used; `missing` counts the
    others, and one log line says so.

    Raises:
        SegaeError: a folder or a list is missing, none of the listed files is there, or a name stands in both
            splits.
    """

    def __init__(self, root: Path) -> None:
        annotations = root / "annotations"
        for folder in (root, root / "images", annotations, annotations / "trimaps"):
            if not folder.is_dir():
                raise _broken(root, f"there is no folder {folder}")
        listed = {split: _read_names(root, annotations / file) for split, file in _SPLIT_FILES.items()}
        both = sorted(set(listed["train"]) & set(listed["test"]))
        if both:
            raise _broken(root, f"trainval.txt and test.txt both list {both[0]}")
        splits = {split: _pairs_there(root, names) for split, names in listed.items()}
        wanted = sum(map(len, listed.values()))
        there = sum(map(len, splits.values()))
        if not there:
            raise _broken(root, f"none of the {wanted} listed images is there with its trimap")
        if there < wanted:
            logger.warning("%s: using %d of %d listed images, %d missing", root, there, wanted, wanted - there)
        super().__init__(
            name=root.resolve().name,
            root=root,
            classes=CLASSES,
            palette=PALETTE,
            mask_values=TRIMAP_VALUES,
            splits=splits,
            missing=wanted - there,
        )


def download(root: Path, base_url: str = BASE_URL, archives: Mapping[str, str] = ARCHIVES) -> OxfordPets:
    """Fetch the data set from its official site (about 810 MB), check and unpack it, and open it.

    A broken transfer goes on where it stopped; what is already unpacked is not fetched again. The archives
    stay in `root` and may be deleted.

    Args:
        root: the folder that will hold images/ and annotations/.
        base_url: where the archives lie, for a mirror.
        archives: file name of each archive and its checksum, as `md5:<hex>` or `sha256:<hex>`.

    Raises:
        SegaeError: no connection, wrong checksum, a dangerous archive member, or a full disk.
    """
    for archive, checksum in archives.items():
        fetch_archive(base_url.rstrip("/") + "/" + archive, checksum, root, again=f"segae data pets --root {root}")
    return OxfordPets(root)


def test_images(root: Path) -> tuple[Path, ...]:
    """Every image of the official test split that is on the disk, whether or not its trimap is there too.

    Raises:
        SegaeError: annotations/test.txt cannot be read or is empty.
    """
    names = _read_names(root, root / "annotations" / "test.txt")
    return tuple(image for name in names if (image := root / "images" / f"{name}.jpg").is_file())


def _read_names(root: Path, path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(root, f"the list {path} cannot be read ({error})") from error
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise _broken(root, f"the list {path} is empty")
    return list(dict.fromkeys(names))


def _pairs_there(root: Path, names: list[str]) -> PackedPairs:
    pairs = (
        Pair(name, root / "images" / f"{name}.jpg", root / "annotations" / "trimaps" / f"{name}.png") for name in names
    )
    return PackedPairs(pair for pair in pairs if pair.image.is_file() and pair.mask.is_file())


def _broken(root: Path, problem: str) -> SegaeError:
    return SegaeError(
        f"{root} is no Oxford-IIIT Pet data set: {problem}. Wanted images/, annotations/trimaps/, "
        f"annotations/trainval.txt and annotations/test.txt; fetch them with `segae data pets --root {root}`."
    )
