"""The pieces that drawn animals and things are made of, and how they are placed and filled.

Animals stand in a frame of their own: x forward, y down, the ground at y = 0, one torso length = 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np

_SHIFT = 4  # OpenCV's fixed-point bits: coordinates to 1/16 pixel


@dataclass(frozen=True)
class Part:
    """A tube around a curve, or a filled outline.

    Attributes:
        points: (N, 2) float; the curve of a tube, or the corners of a simple polygon.
        radii: (N,) tube radius at each point; None for a polygon.
        zone: What it is made of, one of ``coats.ZONES``.
        tone: Brightness factor; far limbs are darker.
        over: True hides the relief below it; False melts into it (thigh and torso).
    """

    points: np.ndarray
    radii: np.ndarray | None
    zone: str = "coat"
    tone: float = 1.0
    over: bool = False

    def moved(self, matrix: np.ndarray, offset: np.ndarray) -> Part:
        """The part under x -> matrix @ x + offset; radii grow by the root of the determinant."""
        (a, b), (c, d) = matrix.tolist()
        radii = None if self.radii is None else self.radii * abs(a * d - b * c) ** 0.5
        return replace(self, points=self.points @ matrix.T + offset, radii=radii)


def tube(
    points: Iterable[tuple[float, float]],
    radii: Iterable[float],
    zone: str = "coat",
    tone: float = 1.0,
    over: bool = False,
) -> Part:
    """A smooth tapered tube through a few points (Catmull-Rom), about five samples a piece."""
    knots = np.asarray(list(points), np.float64)
    widths = np.asarray(list(radii), np.float64)
    pieces = len(knots) - 1
    ends = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0, pieces, 5 * pieces + 1)
    k = np.minimum(t.astype(int), pieces - 1)
    s = (t - k)[:, None]
    a, b, c, d = ends[k], ends[k + 1], ends[k + 2], ends[k + 3]
    curve = b + 0.5 * s * (c - a + s * (2 * a - 5 * b + 4 * c - d + s * (3 * (b - c) + d - a)))
    return Part(curve, np.interp(t, np.arange(pieces + 1), widths), zone, tone, over)


def ellipse(
    centre: tuple[float, float],
    width: float,
    height: float,
    zone: str = "coat",
    *,
    angle: float = 0.0,
    tone: float = 1.0,
    over: bool = False,
) -> Part:
    """A filled ellipse of half axes ``width`` and ``height``, turned by ``angle`` radians."""
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    ring = np.stack([width * np.cos(t), height * np.sin(t)], 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Part(ring @ turn.T + np.asarray(centre), None, zone, tone, over)


def polygon(points: Iterable[tuple[float, float]], zone: str = "coat", tone: float = 1.0, over: bool = False) -> Part:
    """A filled simple polygon."""
    return Part(np.asarray(list(points), np.float64), None, zone, tone, over)


def fixed_point(values: np.ndarray) -> np.ndarray:
    """Pixel coordinates as OpenCV's fixed-point integers, kept clear of overflow."""
    scaled = np.rint(values * (1 << _SHIFT))
    return np.minimum(np.maximum(scaled, -(1 << 20)), 1 << 20).astype(np.int32)


def fill(mask: np.ndarray, part: Part, origin: tuple[int, int] = (0, 0)) -> None:
    """Draw a part into a uint8 (H, W) mask as 255, antialiased; ``origin`` is the mask's corner x, y."""
    path = part.points - origin
    if part.radii is None:
        cv2.fillPoly(mask, [fixed_point(path)], 255, cv2.LINE_AA, _SHIFT)
        return
    # A tube is a chain of discs and quads: unlike one outline it stays whole when it bends on itself.
    tangent = np.empty_like(path)
    tangent[1:-1] = path[2:] - path[:-2]
    tangent[0], tangent[-1] = path[1] - path[0], path[-1] - path[-2]
    width = part.radii / (np.hypot(tangent[:, 0], tangent[:, 1]) + 1e-9)
    normal = np.stack([-tangent[:, 1] * width, tangent[:, 0] * width], 1)
    centres, left, right = fixed_point(np.stack([path, path + normal, path - normal]))
    for centre, radius in zip(centres.tolist(), fixed_point(part.radii).tolist(), strict=True):
        cv2.circle(mask, centre, max(radius, 4), 255, -1, cv2.LINE_AA, _SHIFT)
    for quad in np.stack([left[:-1], left[1:], right[1:], right[:-1]], 1):
        cv2.fillConvexPoly(mask, quad, 255, cv2.LINE_AA, _SHIFT)


def silhouette(parts: Iterable[Part], size: int) -> np.ndarray:
    """Everything the parts cover, uint8 (size, size), 0 to 255."""
    mask = np.zeros((size, size), np.uint8)
    for part in parts:
        fill(mask, part)
    return mask


def box(points: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest rectangle around points: x0, y0, x1, y1, whole pixels."""
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int)
    return int(low[0]), int(low[1]), int(high[0]) + 1, int(high[1]) + 1
