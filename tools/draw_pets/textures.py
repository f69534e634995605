"""Noise and surfaces, vectorised: what walls, floors, cloth, grass and fur are filled with.

Colors are float32 RGB from 0 to 1; coordinates are in picture widths.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Mask = np.ndarray


def fractal_noise(
    generator: np.random.Generator, size: int, cells: int, octaves: int = 3, stretch: float = 1.0
) -> np.ndarray:
    """Smooth noise, float32 (size, size), mean about 0, standard deviation about 1.

    Args:
        generator: Source of randomness.
        size: Side in pixels.
        cells: Blobs across the picture in the coarsest octave.
        octaves: Each next one is twice as fine and 0.6 times as strong.
        stretch: Above 1 the blobs are longer along y by that factor.
    """
    total = np.zeros((size, size), np.float32)
    weight, power = 1.0, 0.0
    for octave in range(octaves):
        across = min(cells << octave, size)
        down = max(2, min(size, round(across / stretch)))
        grid = generator.standard_normal((down + 1, across + 1), dtype=np.float32)
        total += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        power += weight * weight
        weight *= 0.6
    return total * np.float32(1.3 / np.sqrt(power))  # interpolation takes about a quarter of the spread


def strands(generator: np.random.Generator, size: int, length: int = 9) -> np.ndarray:
    """Hair-like noise running along x, float32 (size, size), standard deviation about 1."""
    coarse = generator.standard_normal((size // 2, max(2, size // (2 * length))), dtype=np.float32)
    fine = generator.standard_normal((size, max(2, size // length)), dtype=np.float32)
    total = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return total + cv2.resize(fine, (size, size), interpolation=cv2.INTER_LINEAR)


def sharpen(values: np.ndarray, steepness: float) -> np.ndarray:
    """A soft threshold at 0: from 0 to 1, the steeper the harder the edge."""
    return np.clip(values * steepness + 0.5, 0, 1).astype(np.float32)


def tinted(mask: np.ndarray, color: np.ndarray) -> np.ndarray:
    """An (H, W) mask times a color of shape (3,) or (H, W, 3): float32 (H, W, 3).

    By OpenCV, as numpy's broadcasting over a last axis of three is several times slower.
    """
    mask = np.asarray(mask, np.float32)
    if color.ndim == 1:
        return cv2.transform(mask, np.asarray(color, np.float32)[:, None])
    return cv2.merge((mask, mask, mask)) * np.asarray(color, np.float32)


def blend(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``first`` where the (H, W) mask is 0, ``second`` where it is 1; both (3,) or (H, W, 3)."""
    below = tinted(1 - mask, first)
    return cv2.add(below, tinted(mask, second), dst=below)


def turned_grid(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every pixel under a random rotation, two float32 (size, size)."""
    angle = generator.choice([0.0, 0.0, np.pi / 2, generator.uniform(0, np.pi)])
    line = np.arange(size, dtype=np.float32) / size
    x, y = np.meshgrid(line, line)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def floor_grid(generator: np.random.Generator, size: int, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on a floor that recedes towards ``horizon`` (0 top, 1 bottom of the picture)."""
    line = np.arange(size, dtype=np.float32) / size
    x, y = np.meshgrid(line, line)
    depth = 0.5 / np.maximum(y - np.float32(horizon) + 0.12, 0.06)
    shift, slant = generator.uniform(-0.5, 0.5, 2).astype(np.float32)
    return (x - 0.5 - shift) * depth + slant * depth, depth * 1.2


def _plain(x: np.ndarray, _y: np.ndarray, _generator: np.random.Generator) -> Mask:
    return np.zeros_like(x)


def _stripes(x: np.ndarray, _y: np.ndarray, generator: np.random.Generator) -> Mask:
    wave = np.sin(2 * np.pi * generator.uniform(3, 16) * x) + np.float32(generator.uniform(-0.6, 0.6))
    return sharpen(wave, generator.uniform(0.6, 3))


def _plaid(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Mask:
    return 0.5 * _stripes(x, y, generator) + 0.5 * _stripes(y, x, generator)


def _tiles(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Mask:
    count, flat = generator.uniform(3, 9), generator.uniform(1, 3)
    row = np.floor(y * count * flat)
    across = x * count + 0.5 * (row % 2) * generator.integers(0, 2)
    tone = generator.random(97, dtype=np.float32)[(np.floor(across) * 7 + row * 31).astype(int) % 97]
    joint = (across % 1 < 0.08) | ((y * count * flat) % 1 < 0.08 * flat)
    return np.where(joint, np.float32(1), 0.45 * tone)


def _planks(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Mask:
    count = generator.uniform(4, 12)
    plank = np.floor(x * count)
    tone = generator.random(97, dtype=np.float32)[plank.astype(int) % 97]
    grain = np.sin(2 * np.pi * (x * count * 5 + 0.6 * np.sin(6 * y + 9 * tone)))
    return np.where((x * count) % 1 < 0.06, np.float32(1), 0.5 * tone + 0.12 * grain.astype(np.float32))


def _dots(x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Mask:
    count = generator.uniform(5, 14)
    row = np.floor(y * count)
    dx, dy = (x * count + 0.5 * (row % 2)) % 1 - 0.5, (y * count) % 1 - 0.5
    return sharpen(generator.uniform(0.15, 0.4) - np.hypot(dx, dy), 5)


def _blotches(x: np.ndarray, _y: np.ndarray, generator: np.random.Generator) -> Mask:
    noise = fractal_noise(generator, len(x), int(generator.integers(3, 14)))
    return sharpen(noise - np.float32(generator.uniform(-0.4, 0.8)), generator.uniform(0.5, 4))


def _tabby(x: np.ndarray, _y: np.ndarray, generator: np.random.Generator) -> Mask:
    warp = fractal_noise(generator, len(x), 4, 2)
    return sharpen(np.sin(2 * np.pi * generator.uniform(4, 11) * x + 1.4 * warp) - np.float32(0.2), 1.5)


def _folds(x: np.ndarray, _y: np.ndarray, generator: np.random.Generator) -> Mask:
    warp = fractal_noise(generator, len(x), 3, 2)
    return 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * x + 1.8 * warp)


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Mask]] = {
    "plain": _plain,
    "stripes": _stripes,
    "plaid": _plaid,
    "tiles": _tiles,
    "planks": _planks,
    "dots": _dots,
    "blotches": _blotches,
    "tabby": _tabby,
    "folds": _folds,
}


def grain(generator: np.random.Generator, size: int) -> np.ndarray:
    """Brightness structure of a material: fine, cloudy, or hairy; float32 (size, size), mean about 0."""
    kind = generator.integers(4)
    strength = np.float32(generator.uniform(0.02, 0.13))
    if kind == 0:
        return strength * generator.standard_normal((size, size), dtype=np.float32)
    if kind == 1:
        return strength * fractal_noise(generator, size, int(generator.integers(4, 40)))
    hair = strands(generator, size, int(generator.integers(5, 14)))
    angle = generator.uniform(0, 180)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), angle, 1.0)
    return 1.5 * strength * cv2.warpAffine(hair, turn, (size, size), borderMode=cv2.BORDER_WRAP)


def surface(
    generator: np.random.Generator,
    grid: tuple[np.ndarray, np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    kind: str | None = None,
) -> np.ndarray:
    """A patterned, grainy surface in two colors over the coordinates of ``grid``: float32 (S, S, 3)."""
    kind = kind or str(generator.choice(list(PATTERNS)))
    mask = PATTERNS[kind](grid[0], grid[1], generator) * np.float32(generator.uniform(0.3, 1.0))
    return tinted(1 + grain(generator, len(mask)), blend(first, second, mask))
