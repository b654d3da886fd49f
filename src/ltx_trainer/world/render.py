"""Draws scenes: antialiased frames, coverage masks and outlines, batched, with plain torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ltx_trainer.world.scene import Scene, Track
from ltx_trainer.world.shapes import signed_distance
from ltx_trainer.world.vocabulary import BACKGROUNDS, COLOURS, FLOOR_LEVEL, FLOOR_SHADE, STRIPES

OUTLINE_WIDTH = 0.03  # of the shorter side
STRIPE = 1.1  # period of the stripes, in radii


def pixel_grid(height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Centres of pixels as y (H, 1) and x (1, W), in shorter sides from the frame's centre."""
    side = min(height, width)
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5 - height / 2) / side
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5 - width / 2) / side
    return y[:, None], x[None, :]


def _local(track: Track, rows: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Object coordinates (radius 1, upright) of every pixel, each (b, F, H, W), for the clips in `rows`."""
    y, x = pixel_grid(height, width, track.x.device)
    cx, cy, radius, angle = (v[rows, :, None, None] for v in (track.x, track.y, track.radius, track.angle))
    cos, sin = angle.cos() / radius, angle.sin() / radius
    across, down = x - cx, y - cy
    return cos * across + sin * down, cos * down - sin * across


def _by_shape(scenes: Sequence[Scene], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    for shape in sorted({scene.shape for scene in scenes}):
        yield shape, torch.tensor([i for i, s in enumerate(scenes) if s.shape == shape], device=device)


def _draw(
    scenes: Sequence[Scene],
    track: Track,
    height: int,
    width: int,
    paint: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """(B, F, H, W) of paint(distance, x, y, radius), called once a shape.

    distance (b, F, H, W) and radius (b, F, 1, 1) in pixels, x and y (b, F, H, W) in object coordinates.
    """
    batch, frames = track.x.shape
    out = track.x.new_empty(batch, frames, height, width)
    side = min(height, width)
    for shape, rows in _by_shape(scenes, track.x.device):
        x, y = _local(track, rows, height, width)
        radius = track.radius[rows, :, None, None] * side
        out[rows] = paint(signed_distance(shape, x, y).mul_(radius), x, y, radius)
    return out


def coverage(scenes: Sequence[Scene], track: Track, height: int, width: int) -> Tensor:
    """How much of each pixel the object covers, (B, F, H, W) float32 in [0, 1]."""
    return _draw(scenes, track, height, width, lambda d, *_: d.neg_().add_(0.5).clamp_(0, 1))


def outline(scenes: Sequence[Scene], track: Track, height: int, width: int) -> Tensor:
    """The object's edge as a white line on black, (B, F, H, W) float32 in [0, 1]."""
    half = max(OUTLINE_WIDTH * min(height, width), 1.0) / 2
    return _draw(scenes, track, height, width, lambda d, *_: d.abs_().neg_().add_(half + 0.5).clamp_(0, 1))


def _stripes(scenes: Sequence[Scene], track: Track, height: int, width: int) -> Tensor:
    """How much of each pixel is striped, (B, F, H, W) in [0, 1]; 0 for clips of other styles."""
    striped = torch.tensor([scene.style == "striped" for scene in scenes], device=track.x.device)

    def paint(_: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
        wave = torch.remainder((x + y) / STRIPE, 1.0).sub_(0.5).abs_().sub_(0.25)  # 0 at the stripes' edges
        return wave.mul_(radius * (STRIPE / 2**0.5)).add_(0.5).clamp_(0, 1)

    return _draw(scenes, track, height, width, paint) * striped[:, None, None, None]


def _palette(scenes: Sequence[Scene], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Colours of objects, walls and stripes, each (B, 3) in 0..255."""
    colours = [(COLOURS[s.colour], BACKGROUNDS[s.wall], STRIPES[s.wall]) for s in scenes]
    objects, walls, stripes = torch.tensor(colours, dtype=torch.float32, device=device).unbind(dim=1)
    return objects, walls, stripes


def _backdrop(walls: Tensor, height: int) -> Tensor:
    """Wall above floor, one colour a row with the boundary antialiased: (B, 3, H)."""
    row = torch.arange(height, device=walls.device, dtype=torch.float32)
    floor = (row + 1 - FLOOR_LEVEL * height).clamp(0, 1)
    return walls[:, :, None] * (1 - floor * (1 - FLOOR_SHADE))


def draw_frames(scenes: Sequence[Scene], track: Track, height: int, width: int) -> Tensor:
    """Render B scenes along `track` (B, F) as uint8 (B, F, H, W, 3)."""
    device = track.x.device
    objects, walls, stripe_colours = _palette(scenes, device)
    backdrop = _backdrop(walls, height)
    cover = coverage(scenes, track, height, width)
    stripes = None
    if any(scene.style == "striped" for scene in scenes):
        stripes = _stripes(scenes, track, height, width)
    frames = torch.empty(*cover.shape, 3, dtype=torch.uint8, device=device)
    for channel in range(3):
        behind = backdrop[:, channel, None, :, None]
        front = objects[:, channel, None, None, None]
        if stripes is not None:
            front = front + stripes * (stripe_colours[:, channel, None, None, None] - front)
        frames[..., channel] = (cover * (front - behind)).add_(behind + 0.5).to(torch.uint8)
    inverted = [i for i, scene in enumerate(scenes) if scene.style == "inverted"]
    if inverted:
        frames[inverted] = 255 - frames[inverted]
    return frames
