"""Multi-head attention with normalised queries and keys, rotary positions and per-head gates."""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.errors import InputError
from ltx_core.model.transformer.rope import LTXRopeType, RotaryTable, apply_rotary_emb


class AttentionFunction(Enum):
    """softmax(q k^T / sqrt(d) + bias) v, by one of several kernels.

    PYTORCH, also the default, picks the fastest kernel of the machine itself. The other two are packages to
    install; choosing one that is not there raises `InputError` when the model is built.
    """

    PYTORCH = "pytorch"
    XFORMERS = "xformers"
    FLASH_ATTENTION_3 = "flash_attention_3"
    DEFAULT = "default"

    def check(self) -> "AttentionFunction":
        """Itself, if the package it needs is installed."""
        try:
            if self is AttentionFunction.XFORMERS:
                import xformers.ops  # noqa: F401
            elif self is AttentionFunction.FLASH_ATTENTION_3:
                import flash_attn_interface  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"Attention type {self.value!r} needs a package that is not installed ({error}); "
                f"install it or use {AttentionFunction.DEFAULT.value!r}."
            ) from error
        return self

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """q (B, T, I), k and v (B, S, I); bias broadcasts to (B, heads, T, S). Returns (B, T, I).

        Raises NotImplementedError for FLASH_ATTENTION_3 with a bias.
        """
        q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        if self is AttentionFunction.XFORMERS:
            out = _xformers(q, k, v, bias)
        elif self is AttentionFunction.FLASH_ATTENTION_3:
            out = _flash_attention_3(q, k, v, bias)
        else:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        return out.flatten(-2)


def _xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(B, T, H, d) attention by xformers, which wants the bias at full size."""
    from xformers.ops import memory_efficient_attention

    if bias is not None:
        bias = bias.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    return memory_efficient_attention(q, k, v, attn_bias=bias)


def _flash_attention_3(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(B, T, H, d) attention by FlashAttention 3, which takes no bias."""
    from flash_attn_interface import flash_attn_func

    if bias is not None:
        raise NotImplementedError("Attention type 'flash_attention_3' takes no mask; use 'default'.")
    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out


class Attention(nn.Module):
    """Attention of x (B, T, query_dim) to a context (B, S, context_dim), inner width I = heads * dim_head.

    Queries and keys are RMS-normalised over the whole inner width, then rotated, then split into heads. With
    `apply_gated_attention` each head's result is scaled by 2 sigmoid(a linear function of x).
    """

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        heads: int = 8,
        dim_head: int = 64,
        norm_eps: float = 1e-6,
        rope_type: LTXRopeType = LTXRopeType.SPLIT,
        attention_function: AttentionFunction = AttentionFunction.DEFAULT,
        apply_gated_attention: bool = False,
    ) -> None:
        super().__init__()
        context_dim = query_dim if context_dim is None else context_dim
        inner_dim = heads * dim_head
        self.heads = heads
        self.rope_type = rope_type
        self.attention_function = attention_function.check()
        self.q_norm = nn.RMSNorm(inner_dim, eps=norm_eps)
        self.k_norm = nn.RMSNorm(inner_dim, eps=norm_eps)
        self.to_q = nn.Linear(query_dim, inner_dim)
        self.to_k = nn.Linear(context_dim, inner_dim)
        self.to_v = nn.Linear(context_dim, inner_dim)
        self.to_out = nn.ModuleList([nn.Linear(inner_dim, query_dim)])
        self.to_gate_logits = nn.Linear(query_dim, heads) if apply_gated_attention else None

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        pe: RotaryTable | None = None,
        k_pe: RotaryTable | None = None,
        keep: bool | torch.Tensor = True,
    ) -> torch.Tensor:
        """The attention's output, (B, T, query_dim).

        context: what to attend to; x itself if None.
        mask: additive bias, broadcastable to (B, heads, T, S).
        pe, k_pe: rotary tables of the queries and of the keys (of both, if only `pe` is given).
        keep: False replaces each token's result by its own value vector (self-attention only), a (B, 1, 1)
            mask does so for the samples where it is 0.
        """
        context = x if context is None else context
        v = self.to_v(context)
        out = v
        if keep is not False:
            q, k = self.q_norm(self.to_q(x)), self.k_norm(self.to_k(context))
            if pe is not None:
                q = apply_rotary_emb(q, pe, self.rope_type)
                k = apply_rotary_emb(k, pe if k_pe is None else k_pe, self.rope_type)
            out = self.attention_function(q, k, v, self.heads, mask)
            if isinstance(keep, torch.Tensor):
                out = out * keep + v * (1 - keep)
        if self.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(self.to_gate_logits(x))
            out = (out.unflatten(-1, (self.heads, -1)) * gates[..., None]).flatten(-2)
        return self.to_out[0](out)
