"""Coats: the colors of every zone of an animal, and which marking lies over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.draw_pets.breeds import FUR, Breed, fur_color

# Index 0 is "coat": what hair outside every part is made of.
FURRY = ("coat", "belly", "muzzle", "ear", "paw", "tail")
ZONES = (*FURRY, "inner", "eye", "rim", "pupil", "nose", "mouth", "tongue", "gleam")


@dataclass(frozen=True)
class Coat:
    """Colors and pattern of one animal.

    Attributes:
        colors: float32 (len(ZONES), 3), the color of each zone before markings.
        marking: float32 (3,), the color of stripes, spots and patches.
        pattern: As in ``Breed.pattern``.
        strength: float32 (len(ZONES),), how strongly the pattern shows in each zone.
        hair: 0 bare to 1 very long.
    """

    colors: np.ndarray
    marking: np.ndarray
    pattern: str
    strength: np.ndarray
    hair: float


def jitter(generator: np.random.Generator, color: np.ndarray, amount: float = 0.05) -> np.ndarray:
    """The color, somewhat brighter or darker and somewhat off in hue; stays in 0.02 to 0.98."""
    shift = generator.normal(0, amount) + generator.normal(0, 0.4 * amount, 3)
    return np.clip(color + shift, 0.02, 0.98).astype(np.float32)


def breed_coat(breed: Breed, generator: np.random.Generator) -> Coat:
    """A coat that the breed may have."""
    main = jitter(generator, fur_color(str(generator.choice(breed.coats))))
    marking = jitter(generator, fur_color(breed.marking), 0.03)
    pale = jitter(generator, fur_color("white"), 0.03) if generator.random() < 0.4 else 0.6 * main + 0.35
    zones = dict.fromkeys(FURRY, main)
    strength = dict.fromkeys(ZONES, 0.0) | dict.fromkeys(FURRY, 0.9) | {"belly": 0.3, "muzzle": 0.2}
    if generator.random() < 0.65:
        zones |= {"belly": pale, "muzzle": pale}
    if breed.pattern != "points" and generator.random() < 0.3:
        zones["paw"] = pale
    if breed.pattern == "points":
        for zone in ("ear", "muzzle", "paw", "tail"):
            zones[zone] = marking
    elif breed.pattern == "saddle":
        zones["ear"] = marking
    zones |= _bare_colors(breed, main, generator)
    colors = np.stack([np.asarray(zones[zone], np.float32) for zone in ZONES])
    shown = np.asarray([strength[zone] for zone in ZONES], np.float32)
    return Coat(colors, marking, breed.pattern, shown, breed.hair)


def _bare_colors(breed: Breed, main: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
    cat_eyes = ((0.72, 0.72, 0.28), (0.45, 0.62, 0.3), (0.8, 0.55, 0.18), (0.45, 0.65, 0.82))
    eye = cat_eyes[generator.integers(4)] if breed.is_cat else (0.3, 0.18, 0.1)
    pink = breed.is_cat and generator.random() < 0.6
    return {
        "inner": np.asarray((0.78, 0.55, 0.52)) * (0.5 + 0.5 * main.mean()),
        "eye": np.asarray(eye),
        "rim": np.asarray((0.1, 0.08, 0.08)),
        "pupil": np.asarray((0.03, 0.03, 0.03)),
        "nose": np.asarray((0.75, 0.48, 0.45) if pink else (0.08, 0.07, 0.07)),
        "mouth": 0.35 * main,
        "tongue": np.asarray((0.85, 0.42, 0.45)),
        "gleam": np.asarray((0.95, 0.95, 0.95)),
    }


def stray_coat(generator: np.random.Generator, like: Coat | None) -> Coat:
    """A coat for things that are no pet: the colors of ``like``, or any fur colors."""
    names = generator.choice(list(FUR), 2)
    main, marking = fur_color(str(names[0])), fur_color(str(names[1]))
    if like is not None:
        main, marking = like.colors[0], like.marking
    colors = np.tile(jitter(generator, main, 0.06), (len(ZONES), 1))
    pattern = str(generator.choice(["solid", "tabby", "spots", "patches", "brindle"]))
    strength = np.full(len(ZONES), 0.9, np.float32)
    return Coat(colors, jitter(generator, marking, 0.05), pattern, strength, float(generator.uniform(0, 0.9)))
