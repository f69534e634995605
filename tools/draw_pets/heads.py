"""Heads of cats and dogs, seen from the front, turned aside, or in profile.

Head frame: centre of the skull at 0, skull radius about 1, x to the animal's front (profile) or to the
right of the picture (front view), y down.
"""

from __future__ import annotations

import numpy as np

from tools.draw_pets.breeds import Breed
from tools.draw_pets.parts import Part, ellipse, polygon, tube


def front_head(breed: Breed, yaw: float, generator: np.random.Generator) -> list[Part]:
    """A face looking at the camera, turned aside by ``yaw`` (-1 to 1), with ears, eyes, nose and mouth."""
    parts: list[Part] = []
    for side in (-1, 1):
        parts += _front_ear(breed, side, yaw, generator)
    fluff = 0.14 * breed.hair
    if breed.is_cat:
        parts.append(ellipse((0, 0), 1.02 + fluff, 0.88, over=True))
        parts.append(ellipse((0, 0.28), 0.92 + fluff, 0.55 + fluff))
    else:
        parts.append(ellipse((0, -0.12), 0.86 + fluff, 0.84, over=True))
        parts.append(ellipse((0.1 * yaw, 0.3), 0.72 + fluff, 0.62 + fluff))
    return parts + _front_face(breed, yaw, generator)


def _front_ear(breed: Breed, side: int, yaw: float, generator: np.random.Generator) -> list[Part]:
    near = 1 - 0.35 * max(0.0, side * yaw)  # the ear that turns away looks narrower
    lean = generator.normal(0, 0.07)

    def at(x: float, y: float) -> tuple[float, float]:
        return side * x * near + 0.12 * yaw, y

    if breed.ears == "floppy":
        long = generator.uniform(0.45, 1.0)
        curve = [at(0.62, -0.62), at(0.98 + lean, -0.25), at(1.05 + lean, long)]
        return [tube(curve, [0.2, 0.3, 0.24], "ear", 0.85, True)]
    if breed.ears == "button":
        flap = [at(0.3, -0.8), at(0.75, -1.15 + lean), at(1.25, -0.6 + lean), at(0.95, -0.35), at(0.75, -0.4)]
        return [polygon(flap, "ear", 0.85, True)]
    tall = (1.5 if breed.is_cat else 1.65) + generator.normal(0, 0.07)
    wide = 0.98 if breed.is_cat else 0.85
    ear = [at(wide, -0.1), at(0.86 + lean, -tall), at(0.74 + lean, -tall), at(0.12, -0.75)]
    inner = [at(0.85, -0.4), at(0.8 + lean, -tall + 0.22), at(0.36, -0.75)]
    return [polygon(ear, "ear", 1.0, True), polygon(inner, "inner")]


def _front_face(breed: Breed, yaw: float, generator: np.random.Generator) -> list[Part]:
    shift = 0.34 * yaw
    parts: list[Part] = []
    if breed.is_cat:
        nose_y, nose = 0.3, 0.13
        parts += [ellipse((0.2 * s + 1.2 * shift, 0.5), 0.3, 0.22, "muzzle") for s in (-1, 1)]
        parts.append(ellipse((1.1 * shift, 0.68), 0.2, 0.13, "muzzle"))
    else:
        nose_y, nose = 0.1 + 0.35 * min(breed.muzzle, 1), 0.24
        reach = 0.25 + 0.45 * breed.muzzle
        tip = (shift * (1 + breed.muzzle), nose_y + 0.12)
        parts.append(tube([(shift, 0.0), tip], [0.3, 0.36 + 0.1 * reach], "muzzle", 1.0, True))
        parts.append(ellipse((tip[0], tip[1] + 0.28), 0.36, 0.24, "muzzle"))
    centre = shift * (1.3 if breed.is_cat else 1 + breed.muzzle)
    mouth = [(centre - 0.3, nose_y + 0.36), (centre, nose_y + 0.3), (centre + 0.3, nose_y + 0.36)]
    parts.append(tube(mouth, [0.03, 0.035, 0.03], "mouth"))
    parts.append(tube([(centre, nose_y), (centre, nose_y + 0.3)], [0.03, 0.03], "mouth"))
    if not breed.is_cat and generator.random() < 0.3:
        tongue = [(centre, nose_y + 0.4), (centre + 0.04, nose_y + 0.72)]
        parts.append(tube(tongue, [0.15, 0.13], "tongue", 1.0, True))
    flat = 0.75 if breed.is_cat else 0.7
    parts.append(ellipse((centre, nose_y), nose, nose * flat, "nose", over=True))
    return parts + _front_eyes(breed, shift, generator)


def _front_eyes(breed: Breed, shift: float, generator: np.random.Generator) -> list[Part]:
    parts: list[Part] = []
    closed = generator.random() < 0.1
    pupil = generator.uniform(0.3, 0.9)
    for side in (-1, 1):
        x, y = 0.43 * side * (1 if breed.is_cat else 0.85) + shift, -0.12
        if closed:
            parts.append(tube([(x - 0.2, y), (x, y + 0.06), (x + 0.2, y)], [0.03, 0.05, 0.03], "mouth"))
            continue
        size = 0.21 if breed.is_cat else 0.16
        parts.append(ellipse((x, y), size + 0.06, size + 0.01, "rim", angle=0.25 * side))
        parts.append(ellipse((x, y), size, size * 0.85, "eye", angle=0.25 * side))
        parts.append(ellipse((x, y), size * pupil * (0.6 if breed.is_cat else 1.0), size * 0.8, "pupil"))
        parts.append(ellipse((x - 0.07, y - 0.08), 0.05, 0.05, "gleam"))
    return parts


def profile_head(breed: Breed, generator: np.random.Generator) -> list[Part]:
    """A head seen from the side, looking to +x."""
    reach = (0.42 if breed.is_cat else 0.75) + 0.75 * breed.muzzle
    drop = generator.uniform(0.28, 0.4)
    fluff = 0.12 * breed.hair
    parts = _profile_ear(breed, far=True, generator=generator)
    parts.append(ellipse((0, 0), 0.88 + fluff, 0.84 + fluff, over=True))
    parts.append(tube([(0.25, 0.2), (reach, drop)], [0.55, 0.3 if breed.is_cat else 0.34]))
    parts.append(tube([(0.6 * reach, drop), (reach, drop + 0.02)], [0.36, 0.3], "muzzle"))
    parts.append(tube([(0.45, 0.55), (reach - 0.1, drop + 0.18)], [0.03, 0.04], "mouth"))
    nose = 0.11 if breed.is_cat else 0.18
    parts.append(ellipse((reach + 0.22, drop - 0.12), nose, nose, "nose", over=True))
    size = 0.19 if breed.is_cat else 0.14
    parts.append(ellipse((0.42, -0.2), size + 0.06, size, "rim"))
    parts.append(ellipse((0.44, -0.2), size * 0.8, size * 0.85, "eye"))
    parts.append(ellipse((0.5, -0.2), size * 0.4, size * 0.7, "pupil"))
    if not breed.is_cat and generator.random() < 0.25:
        parts.append(tube([(reach - 0.25, drop + 0.2), (reach - 0.1, drop + 0.6)], [0.12, 0.13], "tongue"))
    return parts + _profile_ear(breed, far=False, generator=generator)


def _profile_ear(breed: Breed, *, far: bool, generator: np.random.Generator) -> list[Part]:
    x, tone = (0.28, 0.8) if far else (0.0, 1.0)
    lean = generator.normal(0, 0.08)
    if breed.ears == "floppy":
        if far:
            return []
        low = generator.uniform(0.5, 1.0)
        return [tube([(-0.25, -0.5), (-0.45, 0.05), (-0.38, low)], [0.22, 0.3, 0.24], "ear", 0.85, True)]
    if breed.ears == "button":
        flap = [(x - 0.5, -0.6), (x - 0.25, -1.15), (x + 0.3, -0.7 + lean), (x + 0.15, -0.35)]
        return [polygon(flap, "ear", tone * 0.9, True)]
    tip = x - 0.25 + lean
    ear = [(x - 0.55, -0.45), (tip - 0.08, -1.5), (tip + 0.06, -1.5), (x + 0.3, -0.6)]
    parts = [polygon(ear, "ear", tone, True)]
    if not far:
        parts.append(polygon([(x - 0.2, -0.7), (tip + 0.02, -1.3), (x + 0.18, -0.72)], "inner"))
    return parts
