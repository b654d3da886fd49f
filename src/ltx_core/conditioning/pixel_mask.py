"""From a mask over pixels to weights of latent tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ltx_core.errors import ShapeError


def downsample_mask(mask: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """A pixel mask (B, 1, f, h, w) to the tokens (B, F * H * W) of a latent grid (F, H, W), by averages.

    The first pixel frame is the first latent frame; the others are averaged in F - 1 equal groups. With a
    single frame on either side only the first one counts.
    Raises `ShapeError` (an AssertionError) if the groups do not come out even.
    """
    batch, _, pixel_frames = mask.shape[:3]
    frames, height, width = grid
    small = F.interpolate(mask.flatten(0, 2)[:, None], size=(height, width), mode="area")
    small = small.reshape(batch, pixel_frames, height * width)
    first, rest = small[:, :1], small[:, 1:]
    if pixel_frames > 1 and frames > 1:
        if (pixel_frames - 1) % (frames - 1):
            raise ShapeError(
                f"A mask of {pixel_frames} frames cannot be split evenly over {frames} latent frames; "
                f"give it 1 + n * {frames - 1} frames."
            )
        first = torch.cat([first, rest.unflatten(1, (frames - 1, -1)).mean(dim=2)], dim=1)
    return first.flatten(1)
