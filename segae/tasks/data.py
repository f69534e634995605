"""Get a data set onto the disk; nothing is downloaded unless one of these commands is typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segae.errors import SegaeError


@dataclass(frozen=True)
class DataPets:
    """Download Oxford-IIIT Pets (7,349 images with trimaps, about 800 MB) from the official site.

    Shows progress, goes on after an interruption, verifies checksums.
    """

    root: Path = Path("data/pets")
    """Folder that will hold images/ and annotations/."""


@dataclass(frozen=True)
class DataDrawn:
    """Draw cats and dogs with trimaps in the layout of Oxford-IIIT Pets: no network, no licence questions."""

    root: Path = Path("data/drawn-pets")
    """Folder that will hold images/, annotations/ and unlabelled/."""
    train: int = 240
    """Training images with masks."""
    test: int = 120
    """Test images with masks."""
    unlabelled: int = 480
    """Images without masks, for pretraining."""
    size: int = 128
    """Side of the square pictures in pixels."""
    seed: int = 0
    """The same seed draws the same pictures."""


def run_pets(config: DataPets) -> Path:
    """Download, verify and unpack; done already: say so and return."""
    from segae.data.drawn_pets import is_drawn
    from segae.data.oxford_pets import OxfordPets, download

    if is_drawn(config.root):
        raise SegaeError(
            f"{config.root} holds drawn pets. The real ones want another folder: "
            "segae data pets --root data/oxford-pets."
        )
    download(config.root)
    data = OxfordPets(config.root)
    print(f"{config.root}: {len(data.splits['train'])} training and {len(data.splits['test'])} test images")
    return config.root


def run_drawn(config: DataDrawn) -> Path:
    """Draw the pictures; done already: return."""
    from segae.data.drawn_pets import draw_pets

    draw_pets(
        config.root, config.train, config.test, config.size, config.seed, unlabelled=config.unlabelled, progress=True
    )
    print(f"{config.root}: {config.train} training, {config.test} test and {config.unlabelled} unlabelled images")
    return config.root
