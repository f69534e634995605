"""What is around a pet: rooms and gardens, things in its own colors, light, and the camera."""

from __future__ import annotations

import cv2
import numpy as np

from tools.draw_pets.breeds import FUR, fur_color
from tools.draw_pets.coats import Coat, jitter, stray_coat
from tools.draw_pets.fur import Layer, paint
from tools.draw_pets.parts import Part, ellipse, polygon, silhouette, tube
from tools.draw_pets.textures import (
    PATTERNS,
    blend,
    floor_grid,
    fractal_noise,
    sharpen,
    strands,
    surface,
    tinted,
    turned_grid,
)


def scene_color(generator: np.random.Generator, coat: Coat) -> np.ndarray:
    """A color of the surroundings: one of the pet's own, another fur's, or anything; float32 (3,)."""
    kind = generator.random()
    if kind < 0.34:
        return jitter(generator, coat.colors[generator.integers(2)] if kind < 0.24 else coat.marking, 0.07)
    if kind < 0.65:
        return jitter(generator, fur_color(str(generator.choice(list(FUR)))), 0.07)
    hue, saturation, value = generator.uniform(0, 360), generator.beta(1.3, 2), generator.uniform(0.15, 0.95)
    hsv = np.array([[[hue, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def background(generator: np.random.Generator, size: int, coat: Coat, light: np.ndarray) -> np.ndarray:
    """A cluttered scene without a pet, float32 RGB (size, size, 3)."""
    kind = generator.random()
    if kind < 0.5:
        scene = _room(generator, size, coat)
    elif kind < 0.85:
        scene = _outdoors(generator, size, coat)
    else:  # seen from above, on a blanket or carpet
        scene = _cloth(generator, size, coat)
    return _with_things(scene, generator, coat, light, int(generator.integers(2, 7)))


def _cloth(generator: np.random.Generator, size: int, coat: Coat) -> np.ndarray:
    pair = scene_color(generator, coat), scene_color(generator, coat)
    base = surface(generator, turned_grid(generator, size), *pair)
    relief = fractal_noise(generator, size, int(generator.integers(2, 5)), 2)
    return tinted(1 + np.float32(generator.uniform(0.03, 0.18)) * relief, base)


def _room(generator: np.random.Generator, size: int, coat: Coat) -> np.ndarray:
    def pair() -> tuple[np.ndarray, np.ndarray]:
        return scene_color(generator, coat), scene_color(generator, coat)

    scene = surface(generator, turned_grid(generator, size), *pair())
    for _ in range(generator.integers(0, 4)):
        scene = _furniture(scene, generator, coat)
    horizon = generator.uniform(0.25, 0.85)
    kind = str(generator.choice([name for name in PATTERNS if name != "tabby"]))
    floor = surface(generator, floor_grid(generator, size, horizon), *pair(), kind)
    line = np.arange(size, dtype=np.float32) / size
    slope = generator.normal(0, 0.08)
    edge = line[:, None] - np.float32(horizon) - np.float32(slope) * (line[None] - 0.5)
    scene = blend(scene, floor, sharpen(edge, 0.5 * size))
    for _ in range(generator.integers(0, 2)):
        scene = _furniture(scene, generator, coat)
    return scene


def _furniture(scene: np.ndarray, generator: np.random.Generator, coat: Coat) -> np.ndarray:
    """A block with its own surface, shaded from one side to the other: a cupboard, an armrest, a window."""
    size = len(scene)
    x, y = generator.uniform(-0.2, 0.9, 2)
    wide, high = generator.uniform(0.1, 0.6, 2)
    corners = np.array([(x, y), (x + wide, y), (x + wide, y + high), (x, y + high)])
    mask = silhouette([polygon((corners + generator.normal(0, 0.03, (4, 2))) * size)], size)
    cover = mask.astype(np.float32) / 255
    if generator.random() < 0.4:  # rounded, as cushions are
        cover = sharpen(cv2.GaussianBlur(cover, (0, 0), size * 0.05) - 0.5, 8)
    pair = scene_color(generator, coat), scene_color(generator, coat)
    block = surface(generator, turned_grid(generator, size), *pair)
    ramp = np.linspace(generator.uniform(0.6, 1.2), generator.uniform(0.6, 1.2), size, dtype=np.float32)
    shaded = tinted(np.tile(ramp, (size, 1)) if generator.random() < 0.5 else np.tile(ramp[:, None], size), block)
    shadow = np.roll(cv2.GaussianBlur(cover, (0, 0), size * 0.02), size // 40, (0, 1))
    return blend(tinted(1 - 0.35 * shadow, scene), shaded, cover)


def _outdoors(generator: np.random.Generator, size: int, coat: Coat) -> np.ndarray:
    line = np.linspace(0, 1, size, dtype=np.float32)
    sky = np.array([0.55, 0.7, 0.9]) * generator.uniform(0.6, 1.1) + generator.normal(0, 0.05, 3)
    clouds = sharpen(fractal_noise(generator, size, 3), 0.5) * (1 - 0.5 * line)[:, None]
    scene = blend(np.clip(sky, 0, 1).astype(np.float32), np.full(3, 0.95, np.float32), clouds)
    ground_line = generator.uniform(0.05, 0.75)
    rough = 0.05 * fractal_noise(generator, size, 6)
    leaves_line = ground_line - generator.uniform(0.1, 0.7)
    leaves = _foliage(generator, size, coat)
    scene = blend(scene, leaves, sharpen(line[:, None] - np.float32(leaves_line) + 2 * rough, 12))
    for _ in range(generator.integers(0, 4)):  # trunks and posts
        x, lean, wide = generator.uniform(0, 1), generator.normal(0, 0.08), generator.uniform(0.01, 0.06)
        trunk = tube([(x * size, -9), ((x + lean) * size, 1.1 * size)], [wide * size, 1.3 * wide * size])
        color = jitter(generator, fur_color(str(generator.choice(["brown", "chocolate", "charcoal", "fawn"]))))
        bark = tinted(0.8 + 0.4 * leaves[..., 1], color)
        scene = blend(scene, bark, silhouette([trunk], size) / np.float32(255))
    if generator.random() < 0.6:
        ground = _grass(generator, size, coat)
    else:
        pair = scene_color(generator, coat), scene_color(generator, coat)
        kind = str(generator.choice(["plain", "blotches", "tiles", "planks"]))
        ground = surface(generator, floor_grid(generator, size, ground_line), *pair, kind)
    return blend(scene, ground, sharpen(line[:, None] - np.float32(ground_line) + 0.5 * rough, 25))


def _green(generator: np.random.Generator) -> np.ndarray:
    hsv = [[[generator.uniform(45, 130), generator.uniform(0.2, 0.75), generator.uniform(0.2, 0.75)]]]
    return cv2.cvtColor(np.array(hsv, np.float32), cv2.COLOR_HSV2RGB)[0, 0]


def _foliage(generator: np.random.Generator, size: int, coat: Coat) -> np.ndarray:
    dark = generator.uniform(0.3, 0.6) * _green(generator)
    scene = tinted(np.ones((size, size), np.float32), dark)
    for cells in (6, 14, 30):
        color = _green(generator) if generator.random() < 0.75 else scene_color(generator, coat)
        leaf = fractal_noise(generator, size, cells, 2)
        scene = blend(scene, color * generator.uniform(0.5, 1.1), sharpen(leaf - np.float32(0.4), 1.5))
    return scene


def _grass(generator: np.random.Generator, size: int, coat: Coat) -> np.ndarray:
    blades = strands(generator, size, int(generator.integers(4, 12))).T
    base = _green(generator) if generator.random() < 0.7 else scene_color(generator, coat)
    bare = scene_color(generator, coat)
    scene = blend(base, bare, sharpen(fractal_noise(generator, size, 5) - np.float32(0.7), 0.8))
    return tinted(np.clip(1 + np.float32(generator.uniform(0.08, 0.3)) * blades, 0.2, 2), scene)


def _with_things(
    scene: np.ndarray, generator: np.random.Generator, coat: Coat, light: np.ndarray, count: int
) -> np.ndarray:
    """Put furry or smooth round things into the scene, about half of them in the pet's own coat.

    They have hair, markings and relief like a pet, so none of these gives a pet away: only its shape does.
    """
    size = len(scene)
    for _ in range(count):
        like = coat if generator.random() < 0.5 else None
        unit = size * generator.uniform(0.3, 0.9)
        radius = size * generator.uniform(0.04, 0.17)
        side = max(16, int(5 * radius))  # painted on a canvas of its own: a whole picture each costs too much
        layer = paint(_thing(generator, radius, side), stray_coat(generator, like), side, unit, light, generator)
        x, y = (generator.uniform(-0.05, 1.05, 2) * size - side / 2).astype(int)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, size), min(y + side, size)
        cut = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        piece = Layer(layer.color[cut], layer.cover[cut], layer.body[cut])
        scene[y0:y1, x0:x1] = over(scene[y0:y1, x0:x1], piece, generator)
    return scene


def _thing(generator: np.random.Generator, radius: float, side: int) -> list[Part]:
    """A blob, a triangle, a tail-like or a body-like tube in the middle of a canvas ``side`` pixels wide."""
    middle = side / 2
    kind = generator.integers(4)
    if kind == 0:
        wide, turn = radius * generator.uniform(0.8, 1.8), generator.uniform(0, np.pi)
        return [ellipse((middle, middle), wide, radius, angle=turn)]
    if kind == 1:
        return [Part(middle + radius * generator.uniform(-1.4, 1.4, (3, 2)), None)]
    reach = radius * (0.9 if kind == 2 else 0.4)
    steps = np.cumsum(np.clip(generator.normal(0, 1, (4, 2)), -1.2, 1.2), 0)
    path = [(middle + dx, middle + dy) for dx, dy in (reach * (steps - steps.mean(0))).tolist()]
    thick = radius * (generator.uniform(0.15, 0.4) if kind == 2 else generator.uniform(0.6, 1.0))
    return [tube(path, [thick, 1.2 * thick, thick, 0.6 * thick])]


def over(scene: np.ndarray, layer: Layer, generator: np.random.Generator) -> np.ndarray:
    """The layer on the scene, with the shadow it casts; both of one shape."""
    high, wide = layer.cover.shape
    blurred = cv2.GaussianBlur(layer.cover, (0, 0), max(1.0, 0.025 * max(high, wide)))
    dx, dy = generator.normal(0, 0.02) * wide, generator.uniform(0, 0.05) * high
    shadow = cv2.warpAffine(blurred, np.array([[1, 0, dx], [0, 1, dy]]), (wide, high))
    darkened = tinted(1 - np.float32(generator.uniform(0.15, 0.6)) * shadow, scene)
    return blend(darkened, layer.color, layer.cover)


def occluder(generator: np.random.Generator, size: int, coat: Coat) -> Layer:
    """Something in front of the pet: the edge of a box or blanket, a post, or blades of grass."""
    kind = generator.integers(3)
    parts: list[Part] = []
    if kind == 0:
        level = generator.uniform(0.7, 0.92)
        left, right = level + generator.normal(0, 0.06, 2)
        parts = [polygon([(-2, left * size), (size + 2, right * size), (size + 2, size + 9), (-2, size + 9)])]
    elif kind == 1:
        x, lean, wide = (
            generator.uniform(0.05, 0.95),
            generator.normal(0, 0.2),
            generator.uniform(0.01, 0.035),
        )
        parts = [tube([(x * size, -9), ((x + lean) * size, size + 9)], [wide * size, wide * size])]
    else:
        for _ in range(generator.integers(6, 30)):
            x, high = generator.uniform(0, 1), generator.uniform(0.1, 0.35)
            tip = (x + generator.normal(0, 0.08), 1 - high)
            blade = [(x * size, size + 3), (tip[0] * size, tip[1] * size)]
            parts.append(tube(blade, [0.012 * size, 0.003 * size]))
    cover = silhouette(parts, size).astype(np.float32) / 255
    first = _green(generator) if kind == 2 else scene_color(generator, coat)
    grid = turned_grid(generator, size)
    return Layer(surface(generator, grid, first, scene_color(generator, coat)), cover, cover)


def photograph(generator: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """Light the scene unevenly and take its picture: uint8 RGB of the same shape."""
    size = len(scene)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = line[None], line[:, None]
    slope = generator.normal(0, 0.16, 2).astype(np.float32)
    lit = 1 + slope[0] * x + slope[1] * y - np.float32(generator.uniform(0, 0.22)) * (x * x + y * y)
    if generator.random() < 0.3:  # sun through leaves or blinds
        patches = sharpen(fractal_noise(generator, size, int(generator.integers(2, 6)), 2), 1.2)
        lit = lit * (1 + np.float32(generator.uniform(0.1, 0.5)) * (patches - 0.5))
    warmth = generator.normal(0, 0.07)
    tint = np.array([1 + warmth, 1 + generator.normal(0, 0.02), 1 - warmth]) * np.exp(generator.normal(0.1, 0.17))
    picture = tinted(lit, scene)
    blur = generator.uniform(0.0, 0.9) * size / 128
    if blur > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    vivid = generator.uniform(0.6, 1.25)
    mixing = np.diag(tint) @ (vivid * np.eye(3) + (1 - vivid) / 3)  # saturation, then the light's color
    picture = np.clip(cv2.transform(picture, mixing), 0, 1)
    picture = cv2.pow(picture, float(np.exp(generator.normal(-0.05, 0.15))))
    noise = generator.standard_normal((size, size, 3), dtype=np.float32)
    picture = picture + np.float32(generator.uniform(0.005, 0.035)) * (0.5 + picture) * noise
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
