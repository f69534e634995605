"""Whole animals: each pose joins torso, legs, tail and head, back to front, facing +x on the ground."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tools.draw_pets.breeds import Breed
from tools.draw_pets.heads import front_head, profile_head
from tools.draw_pets.parts import Part, ellipse, tube

Point = tuple[float, float]


@dataclass(frozen=True)
class Animal:
    """Parts from back to front, where the head is, and how much of a picture such a pose usually fills."""

    parts: list[Part]
    head: np.ndarray
    share: tuple[float, float]
    turn: float  # largest rotation in radians that looks natural


def pose_animal(breed: Breed, generator: np.random.Generator) -> Animal:
    """An animal of a breed in a random pose."""
    poses: tuple[Callable[[Breed, np.random.Generator], Animal], ...]
    poses = (_standing, _sitting, _sitting_front, _lying, _curled, _sprawling, _close_up)
    choice = generator.choice(len(poses), p=(0.2, 0.13, 0.15, 0.15, 0.08, 0.09, 0.2))
    return poses[choice](breed, generator)


def _placed_head(
    breed: Breed, centre: Point, generator: np.random.Generator, *, profile: float, tilt: float = 0.25
) -> list[Part]:
    """A head at a place in the body's frame; ``profile`` is the chance of a side view."""
    radius = (0.24 if breed.is_cat else 0.235) * generator.uniform(0.9, 1.15)
    if generator.random() < profile:
        parts = profile_head(breed, generator)
    else:
        parts = front_head(breed, generator.uniform(-0.8, 0.8), generator)
    angle = generator.uniform(-tilt, tilt)
    matrix = radius * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return [part.moved(matrix, np.asarray(centre)) for part in parts]


def _tail(breed: Breed, root: Point, generator: np.random.Generator, *, grounded: bool) -> list[Part]:
    x, y = root
    thick = 0.05 + 0.07 * breed.hair * (breed.tail in ("plume", "curled"))
    if breed.tail == "stub":
        return [tube([(x, y), (x - 0.12, y - 0.08)], [0.06, 0.04])]
    if breed.tail == "curled" and not grounded:
        ring = [(x, y), (x - 0.16, y - 0.2), (x - 0.02, y - 0.38), (x + 0.16, y - 0.24)]
        return [tube(ring, [0.06, thick + 0.02, thick + 0.02, thick], "tail")]
    bend, rise = generator.uniform(-0.25, 0.25), generator.uniform(-0.5, 0.7)
    long = generator.uniform(0.5, 0.8) if breed.is_cat else generator.uniform(0.35, 0.6)
    if grounded:
        floor = -0.05
        curve = [(x, y), (x - 0.5 * long, floor), (x - long, floor - 0.05), (x - long - bend, floor - 0.12)]
    else:
        end = (x - long * 0.8 + bend, y - rise * long)
        curve = [(x, y), (x - 0.4 * long, y - 0.1 + 0.2 * bend), end, (end[0] + bend, end[1] - 0.2 * long)]
    return [tube(curve, [0.06, thick, thick, 0.6 * thick], "tail")]


def _leg(joints: list[Point], radii: list[float], tone: float) -> list[Part]:
    """A tapered leg whose last joint is the toe; the lower half has its own zone for socks."""
    return [
        tube(joints, radii, "coat", tone, tone < 1),
        tube(joints[-2:], [radii[-2] * 1.03, radii[-1] * 1.1], "paw", tone, True),
    ]


def _standing(breed: Breed, generator: np.random.Generator) -> Animal:
    long, bulk = breed.legs * generator.uniform(0.9, 1.1), breed.bulk * (1 + 0.15 * breed.hair)
    chest, hips = 0.21 * bulk, 0.18 * bulk
    crouch = generator.uniform(-0.12, 0.1)
    hip, shoulder = (-0.5, -long - hips + crouch), (0.45, -long - chest)
    thick = 0.065 * (0.6 + 0.4 * bulk)
    legs: list[list[Part]] = []
    for tone in (0.72, 1.0):
        swing, back = generator.uniform(-0.2, 0.22), generator.uniform(-0.22, 0.2)
        fx, hx = 0.42 + 0.05 * (tone < 1), -0.46 + 0.05 * (tone < 1)
        front = [(fx, -long - 0.08), (fx - 0.04 + 0.3 * swing, -0.55 * long)]
        front += [(fx + 0.7 * swing, -0.16 * long), (fx + 0.7 * swing + 0.07, -0.03)]
        hind = [(hx, hip[1] + 0.05), (hx + 0.09 + 0.4 * back, -0.62 * long)]
        hind += [(hx - 0.08 + back, -0.32 * long), (hx - 0.02 + back, -0.08), (hx + 0.07 + back, -0.03)]
        legs.append(_leg(hind, [0.17 * bulk, 1.7 * thick, 0.9 * thick, thick, 0.9 * thick], tone))
        legs.append(_leg(front, [0.14 * bulk, 1.35 * thick, thick, thick], tone))
    raised = generator.uniform(0.05, 0.42)
    head = (0.45 + generator.uniform(0.3, 0.42), shoulder[1] - raised)
    torso = [hip, (-0.05, -long - 0.95 * hips + 0.02), shoulder]
    parts = [*legs[0], *legs[1], *_tail(breed, (hip[0] - 0.1, hip[1] - 0.05), generator, grounded=False)]
    parts.append(tube(torso, [hips, 0.92 * hips, chest], over=True))
    parts.append(tube([(-0.35, hip[1] + 0.6 * hips), (0.35, shoulder[1] + 0.6 * chest)], [0.06, 0.1], "belly"))
    parts.append(tube([shoulder, head], [0.95 * chest, 0.15 * bulk]))
    parts += [*legs[2], *legs[3], *_placed_head(breed, head, generator, profile=0.55)]
    return Animal(parts, np.asarray(head), (0.18, 0.42), 0.2)


def _sitting(breed: Breed, generator: np.random.Generator) -> Animal:
    bulk = breed.bulk * (1 + 0.15 * breed.hair)
    lean = generator.uniform(-0.08, 0.1)
    shoulder = (0.1 + lean, -0.5 - 0.35 * breed.legs)
    head = (shoulder[0] + generator.uniform(0.08, 0.24), shoulder[1] - generator.uniform(0.28, 0.4))
    arm = 0.07 * (0.5 + 0.5 * bulk)
    parts = _tail(breed, (-0.5, -0.1), generator, grounded=True)
    for dx, tone in ((0.09, 0.74), (0.0, 1.0)):
        x = shoulder[0] + dx
        leg = [(x, shoulder[1] + 0.08), (x + 0.04, -0.32), (x + 0.07, -0.08), (x + 0.14, -0.04)]
        front = _leg(leg, [0.14 * bulk, 1.2 * arm, arm, arm], tone)
        parts += front if tone < 1 else []
    back = [(-0.34, -0.24 * bulk), (-0.22, -0.5), shoulder]
    parts.append(tube(back, [0.25 * bulk, 0.24 * bulk, 0.19 * bulk], over=True))
    parts.append(tube([shoulder, head], [0.18 * bulk, 0.15 * bulk]))
    chest = [(shoulder[0] + 0.1, shoulder[1] - 0.02), (shoulder[0] + 0.06, shoulder[1] + 0.28)]
    parts += [tube(chest, [0.08 * bulk, 0.07 * bulk], "belly"), *front]
    parts.append(tube([(-0.36, -0.2), (-0.12, -0.22)], [0.18 * bulk, 0.16 * bulk], "coat", 1.04, True))
    parts += _leg([(-0.2, -0.08), (-0.02, -0.05), (0.12, -0.04)], [0.08, 0.06, 0.055], 1.0)
    parts += _placed_head(breed, head, generator, profile=0.4)
    return Animal(parts, np.asarray(head), (0.18, 0.55), 0.2)


def _sitting_front(breed: Breed, generator: np.random.Generator) -> Animal:
    bulk = breed.bulk * (1 + 0.15 * breed.hair)
    top = -0.5 - 0.35 * breed.legs
    sway = generator.uniform(-0.1, 0.1)
    head = (sway, top - generator.uniform(0.2, 0.32))
    stands = generator.random() < 0.35
    parts = _tail(breed, (-0.2, -0.15), generator, grounded=not stands)
    for side in (-1, 1):
        if stands:
            hind = [(0.16 * side, -0.5), (0.2 * side, -0.2), (0.2 * side, -0.08), (0.21 * side, -0.05)]
            parts += _leg(hind, [0.12, 0.07, 0.06, 0.06], 0.65)
        else:
            parts.append(ellipse((0.24 * side * bulk, -0.2), 0.18 * bulk, 0.2, tone=0.86, over=True))
            parts += _leg([(0.24 * side, -0.1), (0.3 * side, -0.05)], [0.07, 0.065], 0.9)
    low = -0.48 if stands else -0.26
    torso = [(0, low), (0.4 * sway, 0.5 * (low + top)), (sway, top)]
    parts.append(tube(torso, [0.25 * bulk, 0.24 * bulk, 0.17 * bulk], over=True))
    parts.append(tube([(sway, top + 0.05), (0.5 * sway, top + 0.3)], [0.12 * bulk, 0.07], "belly"))
    arm = 0.068 * (0.5 + 0.5 * bulk)
    for side in (-1, 1):
        x, foot = 0.11 * side * bulk, generator.normal(0.1 * side * bulk, 0.03)
        leg = [(x + 0.7 * sway, top + 0.2), (x, -0.3), (foot, -0.1), (foot, -0.04)]
        parts += _leg(leg, [0.09 * bulk, 1.1 * arm, arm, 1.15 * arm], 1.02)
    parts.append(tube([(sway, top + 0.02), head], [0.18 * bulk, 0.16 * bulk]))
    parts += _placed_head(breed, head, generator, profile=0.12)
    return Animal(parts, np.asarray(head), (0.18, 0.6), 0.2)


def _lying(breed: Breed, generator: np.random.Generator) -> Animal:
    bulk = breed.bulk * (1 + 0.15 * breed.hair)
    body = 0.22 * bulk
    shoulder = (0.36, -0.27 * bulk)
    up = generator.uniform(0.06, 0.36)
    head = (shoulder[0] + generator.uniform(0.14, 0.32), shoulder[1] - up)
    reach = generator.uniform(0.25, 0.5)
    arm = 0.06 * (0.5 + 0.5 * bulk)
    parts = _tail(breed, (-0.62, -0.12), generator, grounded=True)
    far = [(0.45, -0.12), (0.6, -0.12), (0.36 + 1.1 * reach, -0.09), (0.42 + 1.1 * reach, -0.08)]
    parts += _leg(far, [0.1, 1.1 * arm, arm, arm], 0.75)
    parts.append(tube([(-0.45, -body), (-0.05, -body - 0.02), shoulder], [body, 0.95 * body, body], over=True))
    parts.append(tube([(-0.3, -0.1), (0.3, -0.1)], [0.07, 0.09], "belly"))
    parts.append(tube([shoulder, head], [0.9 * body, 0.16 * bulk]))
    parts.append(ellipse((-0.36, -0.2 * bulk), 0.24 * bulk, 0.19 * bulk, angle=-0.4, tone=1.04, over=True))
    parts += _leg([(-0.28, -0.08), (-0.1, -0.05), (0.02, -0.05)], [0.08, 0.06, 0.055], 1.0)
    near = [(0.4, -0.18), (0.46, -0.08), (0.34 + reach, -0.05), (0.42 + reach, -0.04)]
    parts += [*_leg(near, [0.12 * bulk, 1.2 * arm, arm, arm], 1.0)]
    parts += _placed_head(breed, head, generator, profile=0.35)
    return Animal(parts, np.asarray(head), (0.18, 0.5), 0.25)


def _curled(breed: Breed, generator: np.random.Generator) -> Animal:
    bulk = breed.bulk * (1 + 0.15 * breed.hair)
    angles = np.linspace(2.6, 6.6, 6) + generator.normal(0, 0.1)
    ring = [(0.36 * np.cos(a), 0.3 * np.sin(a)) for a in angles]
    body = 0.24 * bulk
    tail = [(0.36 * np.cos(a), 0.32 * np.sin(a)) for a in np.linspace(2.7, 1.4, 4)]
    head = (0.26 + generator.normal(0, 0.04), 0.2)
    thick = 0.06 + 0.06 * breed.hair
    parts = [ellipse((0.02, 0.04), 0.3, 0.26, "belly", tone=0.8)]
    parts.append(tube(ring, [0.2 * bulk, body, body, body, 0.22 * bulk, 0.18 * bulk]))
    parts.append(ellipse((-0.26, 0.06), 0.26 * bulk, 0.2 * bulk, angle=0.8, tone=1.04, over=True))
    parts += _leg([(-0.25, 0.18), (-0.05, 0.26), (0.06, 0.27)], [0.1, 0.06, 0.055], 1.0)
    if breed.tail != "stub":
        parts.append(tube(tail, [0.07, thick, thick, 0.7 * thick], "tail", 1.0, True))
    parts += _leg([(0.38, 0.1), (0.2, 0.34), (0.08, 0.36)], [0.09, 0.065, 0.06], 0.95)
    parts += _placed_head(breed, head, generator, profile=0.3, tilt=0.9)
    return Animal(parts, np.asarray(head), (0.2, 0.55), np.pi)


def _sprawling(breed: Breed, generator: np.random.Generator) -> Animal:
    bulk = breed.bulk * (1 + 0.15 * breed.hair)
    body = 0.2 * bulk
    bend = generator.uniform(-0.15, 0.15)
    arm = 0.06 * (0.5 + 0.5 * bulk)
    parts = _tail(breed, (-0.58, 0.0), generator, grounded=False)
    parts.append(tube([(-0.45, 0), (0, bend), (0.42, 0)], [body, 0.95 * body, body]))
    parts.append(tube([(-0.3, 0.08), (0, bend + 0.1), (0.32, 0.08)], [0.09, 0.1, 0.1], "belly"))
    head = (0.78, generator.uniform(-0.2, 0.15))
    parts.append(tube([(0.42, 0), head], [0.9 * body, 0.15 * bulk]))
    long = 0.35 + 0.4 * breed.legs
    for x, spread in ((-0.48, -0.25), (-0.36, 0.15), (0.36, -0.1), (0.46, 0.35)):
        slant = spread + generator.normal(0, 0.2)
        knee = (x + 0.4 * slant * long + generator.normal(0, 0.06), 0.5 * long)
        foot = (x + slant * long, long * generator.uniform(0.8, 1.05))
        toe = (foot[0] + 0.05, foot[1] + 0.03)
        parts += _leg([(x, 0.05), knee, foot, toe], [0.14 * bulk, 1.3 * arm, arm, arm], 0.9 if spread < 0 else 1.0)
    parts += _placed_head(breed, head, generator, profile=0.4, tilt=0.8)
    return Animal(parts, np.asarray(head), (0.18, 0.45), np.pi)


def _close_up(breed: Breed, generator: np.random.Generator) -> Animal:
    bulk = breed.bulk * (1 + 0.15 * breed.hair)
    side = generator.uniform(-0.2, 0.2)
    parts = [
        tube([(0, 0.1), (side, 0.5), (1.5 * side, 1.0)], [0.2 * bulk, 0.27 * bulk, 0.36 * bulk]),
        tube([(0.3 * side, 0.28), (side, 0.75)], [0.12 * bulk, 0.16 * bulk], "belly"),
        *_placed_head(breed, (0.0, 0.0), generator, profile=0.3),
    ]
    return Animal(parts, np.zeros(2), (0.3, 0.66), 0.3)
