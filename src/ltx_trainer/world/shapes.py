"""Signed distances to the shapes, from which renderer and oracle draw antialiased coverage."""

from __future__ import annotations

from math import cos, pi, sin, sqrt

import torch
from torch import Tensor

# Proportions for radius 1, chosen so that all shapes look about equally large and none exceeds REACH.
SQUARE_HALF = 0.886
TRIANGLE_CIRCUMRADIUS = 1.3
STAR_OUTER, STAR_INNER = 1.3, 0.62
RING_OUTER, RING_INNER = 1.1, 0.58
DIAMOND_HALF_WIDTH, DIAMOND_HALF_HEIGHT = 0.82, 1.25

# How far each upright shape reaches below its centre, for radius 1: what touches the floor.
FOOT = {
    "ball": 1.0,
    "square": SQUARE_HALF,
    "triangle": TRIANGLE_CIRCUMRADIUS / 2,
    "star": STAR_OUTER * cos(pi / 5),
    "ring": RING_OUTER,
    "diamond": DIAMOND_HALF_HEIGHT,
}

# A turn by 2 pi / SYMMETRY maps the shape on itself; 0: any turn does.
SYMMETRY = {"ball": 0, "square": 4, "triangle": 3, "star": 5, "ring": 0, "diamond": 2}

# Area for radius 1.
AREA = {
    "ball": pi,
    "square": 4 * SQUARE_HALF**2,
    "triangle": 0.75 * sqrt(3) * TRIANGLE_CIRCUMRADIUS**2,
    "star": 5 * STAR_OUTER * STAR_INNER * sin(pi / 5),
    "ring": pi * (RING_OUTER**2 - RING_INNER**2),
    "diamond": 2 * DIAMOND_HALF_WIDTH * DIAMOND_HALF_HEIGHT,
}


def _ball(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - (RING_OUTER + RING_INNER) / 2).abs_() - (RING_OUTER - RING_INNER) / 2


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()).sub_(SQUARE_HALF)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(y, x.abs().mul_(sqrt(3) / 2).sub_(y, alpha=0.5)).sub_(TRIANGLE_CIRCUMRADIUS / 2)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    slope = sqrt(DIAMOND_HALF_WIDTH**2 + DIAMOND_HALF_HEIGHT**2)
    a, b = DIAMOND_HALF_HEIGHT / slope, DIAMOND_HALF_WIDTH / slope
    return x.abs().mul_(a).add_(y.abs(), alpha=b).sub_(DIAMOND_HALF_WIDTH * a)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Fold the plane into half of one point, then take the distance to that point's edge."""
    up, x = -y, x.abs()
    for side in (1.0, -1.0):
        nx, ny = side * cos(pi / 5), -sin(pi / 5)
        away = (x * nx).add_(up, alpha=ny).clamp_(min=0).mul_(2)
        x, up = x - away * nx, up - away * ny
    x = x.abs()
    ex, ey = STAR_INNER * sin(pi / 5), STAR_INNER * cos(pi / 5) - STAR_OUTER
    length = sqrt(ex * ex + ey * ey)
    return x.mul_(-ey / length).add_(up.sub_(STAR_OUTER), alpha=ex / length)


_DISTANCE = {
    "ball": _ball,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "diamond": _diamond,
}


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance from (x, y) to the edge of the upright `shape` of radius 1 around the origin; y points down.

    Negative inside. Exact beside edges, a lower bound beyond corners. Same shape as x and y, which it leaves
    alone.
    """
    return _DISTANCE[shape](x, y)
