"""Gemma 3's language model, as far as text encoding needs it: token ids to the hidden states of all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltx_core.config import parse_config
from ltx_core.errors import UnsupportedConfigError

FULL, SLIDING = "full_attention", "sliding_attention"
Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class GemmaTextSizes:
    """The fields of a ``text_config`` that the network reads; what a file leaves out has Gemma 3's usual value.

    layer_types: "full_attention" or "sliding_attention" for each layer; without it every
    `sliding_window_pattern`-th layer attends fully. rope_parameters: rotary settings by layer type, as newer files
    have them; older ones have `rope_theta` and `rope_scaling` for full, `rope_local_base_freq` for sliding attention.
    Raises `UnsupportedConfigError` for what Gemma 3 has not.
    """

    vocab_size: int = 262208
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    query_pre_attn_scalar: float = 256.0
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    sliding_window: int = 4096
    sliding_window_pattern: int = 6
    layer_types: tuple[str, ...] | None = None
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    hidden_activation: str = "gelu_pytorch_tanh"
    attn_logit_softcapping: float | None = None
    use_bidirectional_attention: bool | None = None

    def __post_init__(self) -> None:
        if self.hidden_activation != "gelu_pytorch_tanh":
            raise UnsupportedConfigError(
                f"hidden_activation is {self.hidden_activation!r}; Gemma 3 has gelu_pytorch_tanh."
            )
        if self.attn_logit_softcapping is not None or self.use_bidirectional_attention:
            raise UnsupportedConfigError(
                "attn_logit_softcapping and use_bidirectional_attention are not Gemma 3's; give a Gemma 3 model."
            )
        unknown = set(self.kinds) - {FULL, SLIDING}
        if unknown or len(self.kinds) != self.num_hidden_layers:
            raise UnsupportedConfigError(
                f"layer_types must name {FULL} or {SLIDING} for each of {self.num_hidden_layers} layers."
            )
        for kind in (FULL, SLIDING):
            self.rope(kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The attention of each layer."""
        if self.layer_types is not None:
            return self.layer_types
        pattern = self.sliding_window_pattern
        return tuple(SLIDING if (i + 1) % pattern else FULL for i in range(self.num_hidden_layers))

    def rope(self, kind: str) -> tuple[float, float]:
        """(base, factor by which positions are divided) of the rotary embedding of layers of this `kind`."""
        older = self.rope_scaling if kind == FULL else None
        settings = (older if self.rope_parameters is None else self.rope_parameters.get(kind)) or {}
        how = settings.get("rope_type", settings.get("type", "default"))
        if how not in ("default", "linear"):
            raise UnsupportedConfigError(f"rope_type is {how!r}; Gemma 3 has 'default' or 'linear'.")
        base = settings.get("rope_theta", self.rope_theta if kind == FULL else self.rope_local_base_freq)
        return float(base), float(settings["factor"]) if how == "linear" else 1.0


def read_sizes(values: Mapping[str, Any]) -> GemmaTextSizes:
    """values: a parsed Gemma ``config.json`` with its ``text_config``. Raises `ConfigError` for a wrong value."""
    return parse_config(GemmaTextSizes, values["text_config"], "text_config")


class GemmaLanguageModel(nn.Module):
    """The network, under the names that its weights have in transformers' ``Gemma3TextModel``, equal to that.

    Google 2025, "Gemma 3 technical report", arXiv:2503.19786. There is no cache and no output layer: text is
    encoded in one pass. For writing text see `Gemma.as_transformers`.
    """

    def __init__(self, sizes: GemmaTextSizes) -> None:
        super().__init__()
        self.sizes = sizes
        # Drawing random values on the meta device, as `nn.Embedding(...)` does, would import PyTorch's compiler.
        table = torch.empty(sizes.vocab_size, sizes.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(GemmaLayer(sizes) for _ in range(sizes.num_hidden_layers))
        self.norm = GemmaNorm(sizes.hidden_size, sizes.rms_norm_eps)

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """L + 1 hidden states (B, N, H) of L layers: the scaled embeddings, then each layer's; the last one normed.

        ids, mask: (B, N) int64, mask 0 for padding, whose states mean nothing. positions: (N,).
        """
        x = self.embed_tokens(ids)
        factor = torch.tensor(math.sqrt(self.sizes.hidden_size), dtype=x.dtype, device="cpu")
        x = x * factor  # rounded as the weights are
        kinds = set(self.sizes.kinds)
        rotary = {kind: rotary_table(self.sizes, kind, positions, x.dtype) for kind in kinds}
        windows = {FULL: mask.shape[1], SLIDING: self.sizes.sliding_window}
        visible = {kind: visibility(mask, windows[kind]) for kind in kinds}
        states = [x]
        for layer, kind in zip(self.layers, self.sizes.kinds):
            x = layer(x, rotary[kind], visible[kind])
            states.append(x)
        states[-1] = self.norm(x)
        return tuple(states)


class GemmaLayer(nn.Module):
    """Attention and gated MLP, each between two norms."""

    def __init__(self, sizes: GemmaTextSizes) -> None:
        super().__init__()
        width, eps = sizes.hidden_size, sizes.rms_norm_eps
        self.self_attn = GemmaAttention(sizes)
        self.mlp = GemmaMLP(width, sizes.intermediate_size)
        self.input_layernorm = GemmaNorm(width, eps)
        self.post_attention_layernorm = GemmaNorm(width, eps)
        self.pre_feedforward_layernorm = GemmaNorm(width, eps)
        self.post_feedforward_layernorm = GemmaNorm(width, eps)

    def forward(self, x: Tensor, rotary: Rotary, visible: Tensor) -> Tensor:
        """x: (B, N, H)."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotary, visible))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class GemmaAttention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    def __init__(self, sizes: GemmaTextSizes) -> None:
        super().__init__()
        width, bias, self.head_dim = sizes.hidden_size, sizes.attention_bias, sizes.head_dim
        queries, keys = sizes.num_attention_heads * self.head_dim, sizes.num_key_value_heads * self.head_dim
        self.group = sizes.num_attention_heads // sizes.num_key_value_heads
        self.scale = sizes.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(width, queries, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, width, bias=bias)
        self.q_norm = GemmaNorm(self.head_dim, sizes.rms_norm_eps)
        self.k_norm = GemmaNorm(self.head_dim, sizes.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Rotary, visible: Tensor) -> Tensor:
        """x: (B, N, H); visible: (B, 1, N, N), whether a query's row sees a key's column."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(self.q_norm(q), rotary), rotate(self.k_norm(k), rotary)
        k, v = (heads.repeat_interleave(self.group, dim=1) for heads in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.scale)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class GemmaMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), with the tanh form of GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class GemmaNorm(nn.Module):
    """RMS norm in float32 with the scale 1 + weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x.dtype)


def rotary_table(sizes: GemmaTextSizes, kind: str, positions: Tensor, dtype: torch.dtype) -> Rotary:
    """cos and sin, each (N, head_dim), computed in float32."""
    base, factor = sizes.rope(kind)
    halves = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32, device=positions.device)
    angles = positions[:, None].float() * (1.0 / base ** (halves / sizes.head_dim) / factor)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """x: (..., N, head_dim), whose first half pairs with its second."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def visibility(mask: Tensor, window: int) -> Tensor:
    """Which keys each query sees, (B, 1, N, N) bool: itself, and of what comes before it that is not padding the
    last `window` - 1."""
    place = torch.arange(mask.shape[1], device=mask.device)
    back = place[:, None] - place
    seen = (back >= 0) & (back < window)
    return ((seen & mask.bool()[:, None]) | (back == 0))[:, None]
