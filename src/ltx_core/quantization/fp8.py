"""The arithmetic of 8-bit floats: casting, scales, and linear layers that compute with them."""

from __future__ import annotations

import torch
from torch import nn

FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


def to_fp8(x: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    """Round to nearest even, saturating at the largest finite value (448 for e4m3fn)."""
    if x.dtype is dtype:
        return x
    limit = torch.finfo(dtype).max
    x = x.float() if x.dtype in FP8_DTYPES else x
    return x.clamp(-limit, limit).to(dtype)


def requantize_scaled(
    weight: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn, by_row: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp8 codes, scale) with ``codes * scale`` nearest to `weight` (out, in), in float32.

    One scale for the whole tensor, (), or one for each row, (out, 1).
    """
    top = (weight.abs().amax(dim=1, keepdim=True) if by_row else weight.abs().max()).float()
    factor = torch.where(top > 0, torch.finfo(dtype).max / top, torch.ones_like(top))
    return to_fp8(weight * factor, dtype), 1 / factor


def as_factor(scale: torch.Tensor) -> torch.Tensor:
    """A weight's scale as what the weight (out, in) is multiplied by: (), or (out, 1) for one of each row."""
    return scale.float().reshape((-1, 1) if scale.numel() > 1 else ())


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``weight * scale`` computed in float32, rounded once to `dtype`."""
    return (weight.float() * as_factor(scale)).to(dtype)


def quantize_activation(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``fp8(clamp(x * (1 / scale)))``; the quotient is rounded to the dtype of x before (v1.2.0's rule)."""
    return to_fp8(x * (1 / scale))


class CastLinear(nn.Linear):
    """A linear layer whose weights rest in 8 bits and are widened to the input's dtype for each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)


class ScaledLinear(nn.Linear):
    """A linear layer with fp8 weights (out, in), their scale, and a static scale of its input, if there is one.

    y = round(input_scale * weight_scale * (q(x) @ W^T)) + bias, for x (..., in). weight_scale: () or (out, 1).
    input_scale: (); None gives each token the scale of its largest value. Uses PyTorch's scaled matmul where the
    device has it, else the same sum on widened operands. `scale_linears` makes linear layers such.
    """

    SCALES = ("weight_scale", "input_scale")

    weight_scale: torch.Tensor
    input_scale: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, scale = x.reshape(-1, x.shape[-1]), self.input_scale
        if scale is None:
            q, scale = requantize_scaled(tokens, by_row=True)
        else:
            q = quantize_activation(tokens, scale)
        y = scaled_matmul(q, self.weight, scale, self.weight_scale, x.dtype)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def scaled_matmul(
    q: torch.Tensor,
    weight: torch.Tensor,
    q_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``q_scale * weight_scale * (q @ weight^T)`` in `dtype`; q (n, in) and weight (out, in) in fp8.

    The scales are () or by row, (n, 1) and (out, 1).
    """
    by_row = q_scale.ndim > 0 or weight_scale.ndim > 0
    if has_scaled_matmul(q, weight, dtype, by_row):
        if by_row:  # then it wants both so
            q_scale, weight_scale = (
                scale.expand(len(rows), 1).contiguous()
                for scale, rows in ((q_scale, q), (weight_scale, weight))
            )
        return torch._scaled_mm(
            q, weight.t(), scale_a=q_scale, scale_b=weight_scale.t(), out_dtype=dtype, use_fast_accum=True
        )
    product = q.float() @ weight.float().t()
    return (product * (q_scale * weight_scale.t())).to(dtype)


def has_scaled_matmul(
    q: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, by_row: bool = False
) -> bool:
    """Whether `torch._scaled_mm` serves: a GPU of compute capability 8.9, sides in multiples of 16.

    by_row: with scales of rows it takes 9.0, and bfloat16 results.
    Elsewhere the float32 product of the widened operands is exact but slow: there fp8-cast serves better.
    """
    if q.device.type != "cuda" or torch.version.hip is not None or dtype is torch.float32:
        return False
    if q.shape[1] % 16 or weight.shape[0] % 16 or (by_row and dtype is not torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(q.device) >= ((9, 0) if by_row else (8, 9))
