"""The arithmetic of 8-bit floats: casting, per-tensor scales, and linear layers that compute with them."""

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
    weight: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp8 codes, scale) with ``codes * scale`` nearest to a float32 `weight`; one scale per tensor."""
    top = weight.abs().max()
    factor = torch.where(top > 0, torch.finfo(dtype).max / top, torch.ones_like(top))
    return to_fp8(weight * factor, dtype), 1 / factor


def dequantize(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``weight * scale`` computed in float32, rounded once to `dtype`."""
    return (weight.float() * scale.float()).to(dtype)


def quantize_activation(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``fp8(clamp(x * (1 / scale)))``; the quotient is rounded to the dtype of x before (v1.2.0's rule)."""
    return to_fp8(x * (1 / scale))


class CastLinear(nn.Linear):
    """A linear layer whose weights rest in 8 bits and are widened to the input's dtype for each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)


class ScaledLinear(nn.Linear):
    """A linear layer with fp8 weights (out, in), a weight scale, and a static input scale.

    y = round(input_scale * weight_scale * (q(x) @ W^T)) + bias, for x (..., in). Uses PyTorch's scaled matmul
    where the device has it, else the same sum on widened operands.
    """

    SCALES = ("weight_scale", "input_scale")

    weight_scale: torch.Tensor
    input_scale: torch.Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        for buffer in self.SCALES:
            self.register_buffer(buffer, torch.ones((), dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = quantize_activation(x, self.input_scale).reshape(-1, x.shape[-1])
        y = scaled_matmul(q, self.weight, self.input_scale, self.weight_scale, x.dtype)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def scaled_matmul(
    q: torch.Tensor,
    weight: torch.Tensor,
    q_scale: torch.Tensor,
    weight_scale: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``q_scale * weight_scale * (q @ weight^T)`` in `dtype`; q (n, in) and weight (out, in) in fp8."""
    if has_scaled_matmul(q, weight, dtype):
        return torch._scaled_mm(
            q, weight.t(), scale_a=q_scale, scale_b=weight_scale, out_dtype=dtype, use_fast_accum=True
        )
    product = q.float() @ weight.float().t()
    return (product * (q_scale * weight_scale)).to(dtype)


def has_scaled_matmul(q: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether `torch._scaled_mm` serves: a GPU of compute capability 8.9, sides in multiples of 16.

    Elsewhere the float32 product of the widened operands is exact but slow: there fp8-cast serves better.
    """
    if q.device.type != "cuda" or torch.version.hip is not None or dtype is torch.float32:
        return False
    fits = q.shape[1] % 16 == 0 and weight.shape[0] % 16 == 0
    return fits and torch.cuda.get_device_capability(q.device) >= (8, 9)
