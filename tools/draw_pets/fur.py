"""From parts to pixels: markings and hair strands, round relief under a light, rough outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tools.draw_pets.coats import FURRY, ZONES, Coat
from tools.draw_pets.parts import Part, box, fill, fixed_point
from tools.draw_pets.textures import blend, fractal_noise, sharpen, strands, tinted

_TILE = 128  # side of the repeating tiles of hair and markings


@dataclass(frozen=True)
class Layer:
    """A painted thing: float32 colors (S, S, 3); coverage (S, S), 0 to 1; the same without loose hairs."""

    color: np.ndarray
    cover: np.ndarray
    body: np.ndarray


@dataclass
class _Canvas:
    """Per-pixel state while parts are painted one over the other; all (S, S)."""

    zone: np.ndarray
    tone: np.ndarray
    height: np.ndarray
    along: np.ndarray
    across: np.ndarray
    cover: np.ndarray


def paint(
    parts: Sequence[Part],
    coat: Coat,
    size: int,
    unit: float,
    light: np.ndarray,
    generator: np.random.Generator,
) -> Layer:
    """Paint parts, in pixel coordinates and back to front, with a coat.

    Args:
        parts: What to paint.
        coat: Its colors.
        size: Side of the picture in pixels.
        unit: Length of the animal's torso in pixels: markings scale with it.
        light: (3,) direction towards the light: right, down, towards the camera.
        generator: Source of randomness.
    """
    line = np.arange(size, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    canvas = _Canvas(
        np.zeros((size, size), np.uint8),
        np.ones((size, size), np.float32),
        np.zeros((size, size), np.float32),
        x.copy(),
        y.copy(),
        np.zeros((size, size), np.uint8),
    )
    for part in parts:
        _stamp(canvas, part)
    body = canvas.cover.astype(np.float32) / 255
    hairs = _hairs(canvas.cover, hair_length(coat) * unit, unit, generator)
    color = tinted(_shading(canvas.height, light, unit), _fur(canvas, coat, unit, generator))
    return Layer(color, np.maximum(body, hairs), body)


def hair_length(coat: Coat) -> float:
    """Longest hair that stands off the outline, in torso lengths."""
    return 0.012 + 0.05 * coat.hair


def _stamp(canvas: _Canvas, part: Part) -> None:
    """Write one part into the canvas, inside the part's own rectangle only."""
    size = len(canvas.zone)
    reach = 1.0 if part.radii is None else part.radii.max() + 1
    x0, y0, x1, y1 = box(np.vstack([part.points - reach, part.points + reach]))
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, size), min(y1, size)
    if x0 >= x1 or y0 >= y1:
        return
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    fill(mask, part, (x0, y0))
    window = (slice(y0, y1), slice(x0, x1))
    np.maximum(canvas.cover[window], mask, out=canvas.cover[window])
    inside = mask > 127
    np.copyto(canvas.zone[window], ZONES.index(part.zone), where=inside, casting="unsafe")
    np.copyto(canvas.tone[window], part.tone, where=inside)
    if part.zone not in FURRY:
        return
    axis = part.points[-1] - part.points[0] if part.radii is not None else np.array([0.0, 1.0])
    cos, sin = (axis / (np.hypot(*axis) + 1e-9)).tolist()  # plain floats keep float32 arrays float32
    dx = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(part.points[0, 0])
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(part.points[0, 1])
    np.copyto(canvas.along[window], dx * cos + dy * sin, where=inside)
    np.copyto(canvas.across[window], dy * cos - dx * sin, where=inside)
    depth = np.minimum(cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3), np.float32(size))
    peak = max(float(depth.max()), 1.0)
    rise = np.sqrt(depth * (2 * peak - depth))  # a round cross-section
    below = canvas.height[window]
    np.copyto(below, rise if part.over else np.maximum(below, rise), where=inside)


def _hairs(cover: np.ndarray, length: float, unit: float, generator: np.random.Generator) -> np.ndarray:
    """Short hairs that stand out over the outline of a uint8 cover; float32 (S, S), 0 to 1."""
    hairs = np.zeros_like(cover)
    outlines = cv2.findContours((cover > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    for outline in outlines:
        points = outline[:, 0].astype(np.float32)
        if len(points) < 12:
            continue
        tangent = np.roll(points, -4, 0) - np.roll(points, 4, 0)
        normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6
        drift = generator.normal(0, 0.4, (len(points), 2)) + generator.normal(0, 0.3, 2) + (0, 0.45)
        spread = generator.uniform(0.1, 1.0, (len(points), 1))
        strokes = fixed_point(np.stack([points, points + length * spread * (drift - normal)], 1))
        cv2.polylines(hairs, list(strokes), False, 190, max(1, round(unit / 120)), cv2.LINE_AA, 4)
    return hairs.astype(np.float32) / 255


def _fur(canvas: _Canvas, coat: Coat, unit: float, generator: np.random.Generator) -> np.ndarray:
    """Colors of every pixel before lighting, float32 (S, S, 3)."""
    size = len(canvas.zone)
    # Hair is not combed straight: bend the strands' coordinates a little.
    bend = np.float32(0.035 * unit) * fractal_noise(generator, size, max(2, round(4 * size / unit)), 2)
    canvas.across += bend
    canvas.along += bend
    marks = _markings(canvas, coat, unit, generator) * np.take(coat.strength, canvas.zone)
    color = blend(np.take(coat.colors, canvas.zone, axis=0), coat.marking, marks)
    fine = max(0.7, unit / 130)  # a strand's width in pixels: seen nearer, hair is coarser
    tile = strands(generator, _TILE, 4 + int(6 * coat.hair))
    hair = cv2.remap(tile, canvas.along / fine, canvas.across / fine, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    clouds = fractal_noise(generator, size, max(2, min(size // 2, round(6 * size / unit))))
    depth = np.where(canvas.zone < len(FURRY), np.float32(0.04 + 0.08 * coat.hair), np.float32(0.02))
    glossy = tinted(canvas.tone * (1 + depth * (hair + 0.5 * clouds)), color)
    return glossy + cv2.merge([0.12 * depth * hair] * 3)  # black hair has highlights, too


def _markings(canvas: _Canvas, coat: Coat, unit: float, generator: np.random.Generator) -> np.ndarray:
    """Where the marking color shows, float32 (S, S), 0 to 1."""
    size = len(canvas.zone)
    if coat.pattern in ("patches", "saddle"):
        cells = max(2, min(size // 2, round(1.7 * size / unit)))
        return sharpen(fractal_noise(generator, size, cells, 2) - np.float32(generator.uniform(-0.3, 0.6)), 4)
    if coat.pattern in ("solid", "points"):
        return np.zeros((size, size), np.float32)
    if coat.pattern == "spots":
        tile = sharpen(fractal_noise(generator, _TILE, 26, 1) - np.float32(generator.uniform(0.5, 1.0)), 2.5)
    else:
        turns = 15 if coat.pattern == "tabby" else 30
        line = np.linspace(0, 2 * np.pi * turns, _TILE, dtype=np.float32)
        warp = fractal_noise(generator, _TILE, 10, 2)
        tile = sharpen(np.sin(line + 1.3 * warp) - np.float32(0.3), 1.2)
        tile *= sharpen(fractal_noise(generator, _TILE, 8, 1) + 0.5, 1.5)
    scale = np.float32(_TILE / (2.2 * unit))
    return cv2.remap(tile, canvas.along * scale, canvas.across * scale, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _shading(height: np.ndarray, light: np.ndarray, unit: float) -> np.ndarray:
    """Brightness of the relief under a distant light and some sky, float32 (S, S), about 0.4 to 1.3."""
    smooth = cv2.GaussianBlur(height, (0, 0), max(0.8, unit / 80))
    gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=0.125)
    gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=0.125)
    right, down, near = light.tolist()
    facing = (near - right * gx - down * gy) / np.sqrt(1 + gx * gx + gy * gy)
    return 0.55 + 0.6 * np.maximum(facing, 0)
