"""One picture: a breed's coat, a scene, a posed animal in it, perhaps something before it, and its trimap."""

from __future__ import annotations

import cv2
import numpy as np

from tools.draw_pets.breeds import Breed
from tools.draw_pets.coats import breed_coat
from tools.draw_pets.fur import Layer, hair_length, paint
from tools.draw_pets.parts import Part, silhouette
from tools.draw_pets.poses import Animal, pose_animal
from tools.draw_pets.scenes import background, occluder, over, photograph

LEAST_COVER = 0.15  # of the picture that the pet's outline encloses, even behind something
_RASTER = 96  # pixels of the sketch on which an animal's share of the picture is measured


def draw_breed(breed: Breed, generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 RGB (S, S, 3), and its trimap, uint8 (S, S): 1 pet, 2 background, 3 border."""
    coat = breed_coat(breed, generator)
    side = generator.normal(0, 0.6, 2) - (0, 0.5)
    light = np.append(side, 0.9) / np.linalg.norm(np.append(side, 0.9))
    scene = background(generator, size, coat, light)
    if generator.random() < 0.4:  # the camera is focused on the pet
        scene = cv2.GaussianBlur(scene, (0, 0), size / 128 * generator.uniform(0.6, 2.2))
    animal = pose_animal(breed, generator)
    parts, unit = _place(animal, generator, size)
    pet = paint(parts, coat, size, unit, light, generator)
    scene = over(scene, pet, generator)
    visible = _solid(pet, hair_length(coat) * unit)
    if generator.random() < 0.3:
        front = occluder(generator, size, coat)
        left = visible & (front.cover < 0.5)
        if left.mean() > max(LEAST_COVER, 0.7 * visible.mean()):
            scene, visible = over(scene, front, generator), left
    return photograph(generator, scene), _trimap(visible)


def _place(animal: Animal, generator: np.random.Generator, size: int) -> tuple[list[Part], float]:
    """Turn, mirror, scale and shift the animal into a picture; also returns the torso's length in pixels."""
    angle = generator.uniform(-1, 1) * animal.turn
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag([generator.choice([-1.0, 1.0]) * generator.uniform(0.88, 1.12), 1.0])
    turned = [part.moved(turn @ stretch, np.zeros(2)) for part in animal.parts]
    head = turn @ stretch @ animal.head
    corners = np.vstack([part.points for part in turned])
    low, high = corners.min(0) - 0.1, corners.max(0) + 0.1
    raster = _RASTER / float((high - low).max())
    sketch = silhouette([part.moved(np.eye(2) * raster, -low * raster) for part in turned], _RASTER)
    goal, aim = generator.uniform(*animal.share), generator.uniform(0.0, 1.0, 2)
    unit = size * 0.5
    for _ in range(10):  # the share of the picture follows from the scale, but not when parts are cut off
        offset = _offset(unit * low, unit * high, unit * head, aim, size)
        shrink = unit / raster
        move = np.array([[shrink, 0, offset[0] + low[0] * unit], [0, shrink, offset[1] + low[1] * unit]])
        share = cv2.warpAffine(sketch, move, (size, size)).mean() / 255
        if abs(share / goal - 1) < 0.08:
            break
        unit *= float(np.clip(np.sqrt(goal / max(share, 0.02)), 0.6, 1.7))
    return [part.moved(np.eye(2) * unit, offset) for part in turned], unit


def _offset(low: np.ndarray, high: np.ndarray, head: np.ndarray, aim: np.ndarray, size: int) -> np.ndarray:
    """Where the animal's origin goes: all of it in the frame, or, if it is too large, at least the head."""
    margin = 0.06 * size  # a little of it may be cut off
    free = size - (high - low) + 2 * margin
    on_head = size * (0.25 + 0.5 * aim) - head
    return np.where(free > 0, aim * free - margin - low, np.clip(on_head, size - margin - high, margin - low))


def _solid(pet: Layer, hair: float) -> np.ndarray:
    """The pet's outline through its hairs, which are ``hair`` pixels long at most: bool (S, S)."""
    reach = round(0.3 * hair)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(pet.body, kernel) > 0.5


def _trimap(visible: np.ndarray) -> np.ndarray:
    """Trimap with a border as wide as in the official ones: about 1/20 of the picture, half of it inside."""
    reach = max(1, round(len(visible) / 43))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    pet = visible.astype(np.uint8)
    trimap = np.where(cv2.erode(pet, kernel) > 0, 1, 3)
    return np.where(cv2.dilate(pet, kernel) > 0, trimap, 2).astype(np.uint8)
