"""Rotary position embedding over one to three continuous axes: frequency grids, tables, rotation."""

from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from math import log, pi

import numpy as np
import torch
import torch.nn.functional as F

from ltx_core.errors import InputError, ShapeError
from ltx_core.utils import linspace

RotaryTable = tuple[torch.Tensor, torch.Tensor]
"""(cos, sin), each (B, H, T, d/2) for split or (B, T, D) for interleaved rotation; B may be 1."""

DEFAULT_MAX_POS = (20, 2048, 2048)
FrequencyGrid = Callable[[float, int, int], torch.Tensor]


class LTXRopeType(Enum):
    """How channels pair up: neighbours over the whole width, or the two halves of each head."""

    INTERLEAVED = "interleaved"
    SPLIT = "split"


def generate_freq_grid_np(
    positional_embedding_theta: float, positional_embedding_max_pos_count: int, inner_dim: int
) -> torch.Tensor:
    """The K = D // 2n angular frequencies pi/2 * theta^y, y from 0 to 1, evaluated in float64.

    positional_embedding_max_pos_count: n, the number of axes. inner_dim: D, the width to rotate.
    Returns (K,) float32 on the CPU.
    """
    theta, count = positional_embedding_theta, inner_dim // (2 * positional_embedding_max_pos_count)
    exponents = np.linspace(log(1.0) / log(theta), log(theta) / log(theta), count)
    return torch.tensor(np.power(theta, exponents) * pi / 2, dtype=torch.float32, device="cpu")


def generate_freq_grid_pytorch(
    positional_embedding_theta: float, positional_embedding_max_pos_count: int, inner_dim: int
) -> torch.Tensor:
    """The frequencies of `generate_freq_grid_np` evaluated in float32. Returns (K,) float32 on the CPU."""
    count = inner_dim // (2 * positional_embedding_max_pos_count)
    exponents = linspace(0.0, 1.0, count)
    return positional_embedding_theta**exponents * pi / 2


@lru_cache(maxsize=64)
def _grid_and_extent(
    generator: FrequencyGrid, theta: float, max_pos: tuple[float, ...], dim: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The frequency grid (K,) and the axes' extents (n,), both float32 on `device`.

    Made on the CPU, so that every device sees the same bits. The extents are a tensor because a GPU divides
    by a host number through its reciprocal, one ulp off: 1e-3 radians in the highest frequencies.
    """
    with torch.inference_mode(False):
        extent = torch.tensor(max_pos, dtype=torch.float32, device="cpu")
        return generator(theta, len(max_pos), dim).to(device), extent.to(device)


def precompute_freqs_cis(
    indices_grid: torch.Tensor,
    dim: int,
    out_dtype: torch.dtype = torch.float32,
    theta: float = 10000.0,
    max_pos: Sequence[float] | None = None,
    use_middle_indices_grid: bool = False,
    num_attention_heads: int = 32,
    rope_type: LTXRopeType = LTXRopeType.SPLIT,
    freq_grid_generator: FrequencyGrid = generate_freq_grid_pytorch,
) -> RotaryTable:
    """(cos, sin) of the rotation angles at given positions.

    indices_grid: (B, n, T, 2) intervals [start, end) or (B, n, T) points, on n axes.
    dim: width D of the vectors to rotate.
    max_pos: extent of each axis, 20 s and 2048 x 2048 pixels by default; positions 0 to max_pos become -1 to 1.
    use_middle_indices_grid: take the middle of each interval, else its start.

    The angles run over the frequencies, and over the axes inside each frequency. Where they do not fill the
    width, its front is left unrotated. All is evaluated in the dtype of `indices_grid` up to the product with
    the float32 grid; angles reach 1.6e4 radians, so that rounding, hence the order of operations, is part of
    the definition.

    Raises `ShapeError` (an AssertionError) if `indices_grid` does not have one axis per entry of `max_pos`, or no
    [start, end).
    """
    max_pos = DEFAULT_MAX_POS if max_pos is None else max_pos
    positions = _points(indices_grid, len(max_pos), use_middle_indices_grid)
    grid, extent = _grid_and_extent(freq_grid_generator, theta, tuple(max_pos), dim, positions.device)
    centred = (positions / extent.to(positions.dtype)) * 2 - 1
    angles = (grid[:, None] * centred[..., None, :]).flatten(-2)  # (B, T, K * n)
    cos, sin = angles.cos(), angles.sin()
    if rope_type is LTXRopeType.INTERLEAVED:
        cos, sin = cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
        width = dim
    else:
        width = dim // 2
    unrotated = (width - cos.shape[-1], 0)
    cos, sin = F.pad(cos, unrotated, value=1.0).to(out_dtype), F.pad(sin, unrotated, value=0.0).to(out_dtype)
    if rope_type is LTXRopeType.SPLIT:
        heads = (num_attention_heads, width // num_attention_heads)
        cos, sin = (table.unflatten(-1, heads).transpose(1, 2) for table in (cos, sin))
    return cos, sin


def _points(indices_grid: torch.Tensor, num_axes: int, middle: bool) -> torch.Tensor:
    """One coordinate per token and axis, (B, T, n)."""
    if indices_grid.ndim not in (3, 4) or indices_grid.shape[1] != num_axes:
        raise ShapeError(
            f"Positions have shape {tuple(indices_grid.shape)}; expected (batch, {num_axes}, tokens, 2), "
            f"one axis for each of the {num_axes} maximum positions."
        )
    if middle:
        if indices_grid.ndim != 4 or indices_grid.shape[-1] != 2:
            raise ShapeError(
                f"Positions have shape {tuple(indices_grid.shape)}; their middle needs [start, end) last."
            )
        indices_grid = (indices_grid[..., 0] + indices_grid[..., 1]) / 2
    elif indices_grid.ndim == 4:
        indices_grid = indices_grid[..., 0]
    return indices_grid.transpose(1, 2)


def apply_rotary_emb(
    input_tensor: torch.Tensor, freqs_cis: RotaryTable, rope_type: LTXRopeType = LTXRopeType.SPLIT
) -> torch.Tensor:
    """(B, T, D) rotated by a table of `precompute_freqs_cis` in the same dtype. Same shape and dtype.

    Split rotation also takes (B, H, T, D / H). Raises `InputError` if cos and sin differ in shape or do not fit.
    """
    x, (cos, sin) = input_tensor, freqs_cis
    if x.ndim == 4 and rope_type is LTXRopeType.SPLIT:
        by_token = x.transpose(1, 2)
        rotated = apply_rotary_emb(by_token.flatten(2), freqs_cis, rope_type)
        return rotated.view(by_token.shape).transpose(1, 2)
    _check_table(x, cos, sin, rope_type)
    if rope_type is LTXRopeType.INTERLEAVED:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin
    cos, sin = cos.transpose(1, 2), sin.transpose(1, 2)  # (B, T, H, d/2)
    first, second = x.unflatten(-1, (cos.shape[2], 2, -1)).unbind(-2)
    halves = (
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    )
    return torch.cat(halves, dim=-1).flatten(-2)


def _check_table(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rope_type: LTXRopeType) -> None:
    if rope_type is LTXRopeType.SPLIT:
        fits = cos.ndim == 4 and (cos.shape[2], 2 * cos.shape[1] * cos.shape[3]) == x.shape[1:]
    else:
        fits = cos.ndim == 3 and cos.shape[1:] == x.shape[1:]
    if not fits or cos.shape != sin.shape or cos.shape[0] not in (1, len(x)):
        raise InputError(
            f"Rotary tables of shapes {tuple(cos.shape)} and {tuple(sin.shape)} do not fit "
            f"{rope_type.value} rotation of {tuple(x.shape)} (batch, tokens, width)."
        )
