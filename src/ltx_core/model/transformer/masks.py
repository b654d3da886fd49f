"""Attention masks as additive biases."""

import math

import torch


def text_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Bias of text cross-attention, in `dtype`.

    mask: integer or boolean (B, S) or (B, T, S), 1 to attend and 0 not to; or floating, already a bias:
    (T, S), (B, T, S) or (B, heads, T, S) up to broadcasting.
    """
    if mask is None:
        return None
    if not mask.is_floating_point():
        bias = (mask.to(dtype) - 1) * torch.finfo(dtype).max
        return bias.view(mask.shape[0], 1, -1, mask.shape[-1])
    if mask.dtype == dtype:
        return mask
    # In a type of less range the lowest number becomes -inf, and a masked row would give NaN.
    return mask.to(dtype).clamp(min=torch.finfo(dtype).min)


def merge_repeats(context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of a context (B, S, D) with equal ones at its end as one, and the bias that gives it their weight.

    softmax counts a row k times if ln k is added to its score, so that attention to the result, which knows no
    positions, is the same. Equal rows are the registers of connectors without blocks. None if there are none;
    also where gradients are wanted, a GPU would have to be waited for, or ln k would be rounded (in bfloat16 by a
    weight of 1 %).
    """
    is_rounded = context.dtype.itemsize < 4
    if context.device.type != "cpu" or is_rounded or (torch.is_grad_enabled() and context.requires_grad):
        return context, None
    same = (context == context[:, -1:]).all(dim=-1)
    repeats = int(same.flip(1).long().cumprod(dim=1).sum(dim=1).amin())
    if repeats < 2:
        return context, None
    kept = context[:, : context.shape[1] - repeats + 1]
    bias = context.new_zeros(1, 1, 1, kept.shape[1])
    bias[..., -1] = math.log(repeats)
    return kept, bias


def self_attention_bias(weights: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Bias ln(w) of self-attention from weights w in [0, 1], (B, T, T) up to broadcasting, in `dtype`.

    Weight 0, and whatever is not above it, becomes the lowest finite number: a row of zeros attends evenly, and NaN
    bars a token instead of spreading to all.
    """
    if weights is None:
        return None
    info = torch.finfo(dtype)
    bias = weights.clamp(min=info.tiny).log().to(dtype)
    return bias.masked_fill(~(weights > 0), info.min)
