"""Separates a clip's object from its background: colours, style, and coverage of each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ltx_trainer.world.vocabulary import BACKGROUNDS, COLOURS, FLOOR_LEVEL, STRIPES

NOTICED = 40.0  # RGB distance from the background at which a pixel belongs to an object
NAMED = 75.0  # RGB distance up to which a colour still goes by a name
SAMPLE = 100_000  # pixels at most that colours are taken from
PRESENT = 0.008  # area in squared shorter sides below which nothing is there


@dataclass(frozen=True)
class Sight:
    """What the frames show, the same for a whole clip.

    background, colour: names, or None where nothing in the world looks like it. style: "plain", "striped",
    "inverted". cover: (F, H, W) float32 in [0, 1], how much of each pixel the object covers.
    """

    background: str | None
    colour: str | None
    style: str
    cover: Tensor


def nearest_name(rgb: Tensor, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for `rgb` (3,), or None if nothing in it is within `NAMED`."""
    distance = (torch.tensor(list(palette.values()), dtype=torch.float32) - rgb).norm(dim=1)
    best = int(distance.argmin())
    return list(palette)[best] if distance[best] <= NAMED else None


def _backdrop(frames: Tensor) -> Tensor:
    """The background's colour in each row, (3, H): the median over time of the left and right edges."""
    edge = max(2, frames.shape[-1] // 32)
    border = torch.cat((frames[..., :edge], frames[..., -edge:]), dim=-1)
    return border.permute(1, 2, 0, 3).flatten(2).median(dim=-1).values


def _is_inverted(rows: Tensor) -> bool:
    """Floors are darker than walls, in negatives they are lighter."""
    height = rows.shape[1]
    luma = rows.mean(dim=0)
    floor = luma[int(height * (FLOOR_LEVEL + 1) / 2) :].median()
    return bool(floor > luma[: int(height * 0.7)].median() + 4)


def _core(distance: Tensor) -> Tensor:
    """Pixels (F, H, W) inside the object, its blended edge left out where it is thick enough for that."""
    mask = distance > NOTICED
    inner = -max_pool2d(-mask.float(), 3, stride=1, padding=1) > 0.5
    return inner if inner.sum() > 0.15 * mask.sum() else mask


def _ink(inside: Tensor, rows: Tensor, background: str | None) -> tuple[Tensor, bool]:
    """From pixels inside (3, n): the object's colour (3,), by the most colourful, and if it is striped."""
    inside = inside[:, :: 1 + inside.shape[1] // SAMPLE]
    chroma = inside.amax(dim=0) - inside.amin(dim=0)
    ink = inside[:, chroma >= 0.7 * chroma.quantile(0.9)].median(dim=1).values
    stripes = torch.tensor(STRIPES[background] if background else (0, 0, 0), dtype=torch.float32)
    known = torch.stack((stripes, ink, rows[:, 0], rows[:, -1]))
    share = (torch.cdist(inside.T[None], known[None])[0].argmin(dim=1) == 0).float().mean()
    return ink, bool(0.2 < share < 0.8)


def _cover_plain(residual: Tensor, ink: Tensor, rows: Tensor) -> Tensor:
    """Coverage by the mixing of two known colours: how far each pixel is from the backdrop to the ink."""
    way = (ink[:, None] - rows)[None, :, :, None]
    share = (residual * way).sum(dim=1) / way.square().sum(dim=1).clamp(min=1.0)
    return share.sub_(0.15).div_(0.7).clamp_(0, 1)


def look(frames: Tensor) -> Sight:
    """Take apart uint8 frames (F, H, W, 3)."""
    pixels = frames.movedim(-1, 1).float()
    rows = _backdrop(pixels)
    inverted = _is_inverted(rows)
    if inverted:
        pixels, rows = 255 - pixels, 255 - rows
    wall = rows[:, : int(rows.shape[1] * 0.7)].median(dim=1).values
    residual = pixels - rows[None, :, :, None]
    distance = residual.square().sum(dim=1).sqrt_()
    core = _core(distance)
    background = nearest_name(wall, BACKGROUNDS)
    colour, cover, style = None, torch.zeros_like(distance), "plain"
    if core.sum() > PRESENT * min(core.shape[1:]) ** 2:  # more than a speck in one frame
        ink, striped = _ink(pixels.movedim(1, 0)[:, core], rows, background)
        style = "striped" if striped else "plain"
        cover = ((distance - 15) / 25).clamp_(0, 1) if striped else _cover_plain(residual, ink, rows)
        colour = nearest_name(ink, COLOURS)
    return Sight(
        background=background,
        colour=colour,
        style="inverted" if inverted else style,
        cover=cover,
    )
