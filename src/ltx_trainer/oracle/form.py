"""Finds the object in its coverage mask: place, area, shape by templates of the world's shapes, and angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from ltx_trainer.oracle.sight import PRESENT
from ltx_trainer.world.render import pixel_grid
from ltx_trainer.world.shapes import AREA, SYMMETRY, signed_distance
from ltx_trainer.world.vocabulary import SHAPES

WINDOW = 0.34  # half side of the square around the object in which pixels count, in shorter sides
PATCH = 32  # pixels a side of the normalised view
SPAN = 2.2  # half side of the normalised view, in root mean square radii of the mask
STEP = math.radians(6)  # between the angles of templates
STRAYED = 0.35  # share of the mask elsewhere from which on there is more than one object
ALIKE = 0.8  # correlation below which a mask looks like none of the shapes


@dataclass(frozen=True)
class Blob:
    """Where a mask is in each frame, each (F,): centre from the frame's centre, area, RMS radius.

    In (squared) shorter sides. stray: the area of what lies elsewhere in the frame, as a share of `area`.
    Where nothing is, the area is 0 and the rest meaningless.
    """

    x: Tensor
    y: Tensor
    area: Tensor
    spread: Tensor
    stray: Tensor

    @property
    def present(self) -> Tensor:
        """In which frames there is an object, (F,) bool."""
        return self.area > 0


@dataclass(frozen=True)
class Form:
    """What the object looks like: shape name or None, its likeness (a correlation), and per frame, each (F,):

    radius in shorter sides and angle in radians clockwise, unwrapped over time; zeros for round shapes.
    """

    shape: str | None
    likeness: float
    radius: np.ndarray
    angle: np.ndarray


def _within(centre: Tensor, axis: Tensor) -> Tensor:
    """1 where `axis` (n,) is at most WINDOW from `centre` (F,), else 0: (F, n)."""
    return ((axis[None] - centre[:, None]).abs() <= WINDOW).float()


def _densest(cover: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Where the mask is densest in each frame, roughly: x and y, each (F,)."""
    side = min(cover.shape[1:])
    step, reach = max(1, side // 32), 2 * round(0.1 * side) + 1
    dense = avg_pool2d(cover[:, None], reach, stride=step, padding=reach // 2)[:, 0]
    peak = dense.flatten(1).argmax(dim=1)
    return x[::step][peak % dense.shape[2]], y[::step][peak // dense.shape[2]]


def locate(cover: Tensor) -> Blob:
    """Find the object in masks (F, H, W).

    Only what lies in a window around the densest spot counts, so that specks elsewhere do not pull the
    centre.
    """
    height, width = cover.shape[1:]
    side = min(height, width)
    grid_y, grid_x = pixel_grid(height, width, cover.device)
    y, x = grid_y[:, 0], grid_x[0]
    cx, cy = _densest(cover, x, y)
    for _ in range(3):
        across, down = _within(cx, x), _within(cy, y)
        column = torch.einsum("fhw,fw->fh", cover, across) * down
        row = torch.einsum("fhw,fh->fw", cover, down) * across
        total = column.sum(dim=1).clamp(min=1e-6)
        cx, cy = (row @ x) / total, (column @ y) / total
    variance = (row @ x.square()) / total - cx.square() + (column @ y.square()) / total - cy.square()
    area = total / side**2
    stray = cover.sum(dim=(1, 2)) / total - 1
    return Blob(cx, cy, torch.where(area > PRESENT, area, 0.0), variance.clamp(min=1e-6).sqrt(), stray)


def normalised_view(cover: Tensor, blob: Blob) -> Tensor:
    """The masks (F, H, W) around their centres at a standard scale: (F, PATCH, PATCH)."""
    frames, height, width = cover.shape
    side = min(height, width)
    theta = torch.zeros(frames, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = blob.spread * (SPAN * 2 * side / width), blob.x * (2 * side / width)
    theta[:, 1, 1], theta[:, 1, 2] = blob.spread * (SPAN * 2 * side / height), blob.y * (2 * side / height)
    grid = affine_grid(theta, [frames, 1, PATCH, PATCH], align_corners=False)
    return grid_sample(cover[:, None], grid, padding_mode="zeros", align_corners=False)[:, 0]


def _standardised(views: Tensor) -> Tensor:
    flat = views.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-6)


@lru_cache(maxsize=1)
def _templates() -> tuple[Tensor, Tensor]:
    """Standardised views of all shapes at all angles, (T, PATCH^2), and the shape's number for each, (T,)."""
    views, labels = [], []
    y, x = (axis * 4.4 for axis in pixel_grid(96, 96, "cpu"))  # a radius is 22 pixels
    for number, shape in enumerate(SHAPES):
        turns = round(2 * math.pi / SYMMETRY[shape] / STEP) if SYMMETRY[shape] else 1
        angles = torch.arange(turns)[:, None, None] * STEP
        cos, sin = angles.cos(), angles.sin()
        distance = signed_distance(shape, cos * x + sin * y, cos * y - sin * x)
        cover = (0.5 - distance * 10).clamp(0, 1)  # edges as soft as those of a radius of 10 pixels
        views.append(normalised_view(cover, locate(cover)))
        labels += [number] * turns
    return _standardised(torch.cat(views)), torch.tensor(labels)


def _angles(views: Tensor, shape: str) -> np.ndarray:
    """Angle in each view, by the phase of the moment that has the shape's symmetry; unwrapped over time."""
    order = SYMMETRY[shape]
    if order == 0:
        return np.zeros(len(views))
    y, x = pixel_grid(PATCH, PATCH, "cpu")
    around = torch.atan2(y, x) * order
    weight = x.square() + y.square()
    real = torch.einsum("fhw,hw->f", views, weight * around.cos())
    imaginary = torch.einsum("fhw,hw->f", views, weight * around.sin())
    return np.unwrap(torch.atan2(imaginary, real).double().numpy()) / order


def recognise(cover: Tensor, blob: Blob) -> Form:
    """Name the one shape that the masks (F, H, W) show over the frames in which `blob` is present."""
    frames = len(cover)
    seen = blob.present
    if not seen.any():
        return Form(None, 0.0, np.zeros(frames), np.zeros(frames))
    views = normalised_view(cover, blob)
    templates, labels = _templates()
    match = _standardised(views[seen]) @ templates.T
    scores = torch.stack([match[:, labels == n].amax(dim=1).mean() for n in range(len(SHAPES))])
    best = int(scores.argmax())
    shape = SHAPES[best]
    radius = (blob.area / AREA[shape]).sqrt().double().numpy()
    likeness = float(scores[best])
    one = likeness >= ALIKE and bool(blob.stray[seen].median() < STRAYED)
    return Form(shape if one else None, likeness, radius, _angles(views, shape))
