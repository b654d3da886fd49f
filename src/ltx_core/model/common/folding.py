"""Frames, rows and columns folded into channels, and back."""

from __future__ import annotations

import torch

Stride = tuple[int, int, int]


def space_to_depth(x: torch.Tensor, stride: Stride) -> torch.Tensor:
    """(B, C, F st, H sh, W sw) -> (B, C st sh sw, F, H, W); time is the slowest of the new indices."""
    b, c, f, h, w = x.shape
    t, u, v = stride
    x = x.reshape(b, c, f // t, t, h // u, u, w // v, v).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * t * u * v, f // t, h // u, w // v)


def depth_to_space(x: torch.Tensor, stride: Stride) -> torch.Tensor:
    """The inverse of `space_to_depth`."""
    b, c, f, h, w = x.shape
    t, u, v = stride
    x = x.reshape(b, c // (t * u * v), t, u, v, f, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // (t * u * v), f * t, h * u, w * v)
