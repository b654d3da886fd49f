"""Multi-head attention with normalised queries and keys, rotary positions and per-head gates."""

from collections.abc import Callable
from enum import Enum
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.errors import InputError
from ltx_core.model.common.normalization import RMSNorm
from ltx_core.model.transformer.rope import LTXRopeType, RotaryTable, apply_rotary_emb

Kernel = Callable[..., torch.Tensor]


class AttentionFunction(Enum):
    """softmax(q k^T / sqrt(d) + bias) v, by one of several kernels.

    PYTORCH, also the default, picks the fastest of PyTorch's own kernels. The others are packages to install;
    choosing one that is not there raises `InputError` when the model is built. SAGE (Zhang et al. 2024,
    arXiv:2410.02367) multiplies in 8 bits: quicker, and not exact.
    """

    PYTORCH = "pytorch"
    XFORMERS = "xformers"
    FLASH_ATTENTION_3 = "flash_attention_3"
    FLASH_ATTENTION_4 = "flash_attention_4"
    SAGE = "sage"
    DEFAULT = "default"

    def check(self) -> "AttentionFunction":
        """Itself, if the package it needs is installed."""
        if self in PACKAGES and (missing := _missing(PACKAGES[self])):
            raise InputError(
                f"Attention type {self.value!r} needs a package that is not installed ({missing}); "
                f"install it or use {AttentionFunction.DEFAULT.value!r}."
            )
        return self

    @property
    def takes_bias(self) -> bool:
        """Whether its kernel can add a bias."""
        return self not in PACKAGES

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """q (B, T, I), k and v (B, S, I). Returns (B, T, I).

        mask: a bias (T, S), (B, T, S) or (B, heads, T, S) up to broadcasting.
        Raises NotImplementedError for a bias that the kernel cannot add, `InputError` without its package.
        """
        if mask is not None and not self.takes_bias:
            raise NotImplementedError(f"Attention type {self.value!r} takes no mask; use 'default'.")
        return _by_heads(KERNELS[self.check()], q, k, v, heads, mask)


def attention_named(name: str) -> AttentionFunction:
    """The kernel of this name; raises `InputError` for one that there is not."""
    try:
        return AttentionFunction(name)
    except ValueError:
        known = ", ".join(function.value for function in AttentionFunction)
        raise InputError(f"attention is {name!r}; choose one of {known}.") from None


def best_attention(device: torch.device, dtype: torch.dtype) -> AttentionFunction:
    """The quickest exact kernel that is installed for a device: see `BEST_BY_GENERATION`."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        major = torch.get_device_module(device).get_device_capability(device)[0]
        best = BEST_BY_GENERATION.get(major, AttentionFunction.DEFAULT)
        if best in PACKAGES and not _missing(PACKAGES[best]):
            return best
    return AttentionFunction.DEFAULT


def _missing(package: str) -> str:
    """Why a package cannot be imported; empty if it can."""
    try:
        import_module(package)
    except Exception as error:  # a package for another GPU or another PyTorch fails in ways of its own
        return str(error) or type(error).__name__
    return ""


def _by_heads(
    kernel: Kernel, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, bias: torch.Tensor | None
) -> torch.Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
    if bias is not None and bias.ndim == 3:
        bias = bias.unsqueeze(1)  # one bias of each sample for all heads
    return kernel(q, k, v, bias).flatten(-2)


# Each (B, T, H, d) attention, with a bias that broadcasts to (B, H, T, S) or None.


def _pytorch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def _xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v)


def _flash_3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    from flash_attn_interface import flash_attn_func

    return _first(flash_attn_func(q, k, v))


def _flash_4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    from flash_attn.cute import flash_attn_func

    return _first(flash_attn_func(q, k, v))


def _sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="NHD", is_causal=False)


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The attention itself: some versions return its log-sum-exp as well."""
    return output[0] if isinstance(output, tuple) else output


KERNELS: dict[AttentionFunction, Kernel] = {
    AttentionFunction.DEFAULT: _pytorch,
    AttentionFunction.PYTORCH: _pytorch,
    AttentionFunction.XFORMERS: _xformers,
    AttentionFunction.FLASH_ATTENTION_3: _flash_3,
    AttentionFunction.FLASH_ATTENTION_4: _flash_4,
    AttentionFunction.SAGE: _sage,
}
PACKAGES = {
    AttentionFunction.XFORMERS: "xformers.ops",
    AttentionFunction.FLASH_ATTENTION_3: "flash_attn_interface",
    AttentionFunction.FLASH_ATTENTION_4: "flash_attn.cute",
    AttentionFunction.SAGE: "sageattention",
}
# By the major number of the compute capability: Hopper, then data-centre Blackwell (not consumer cards, 12).
BEST_BY_GENERATION = {
    9: AttentionFunction.FLASH_ATTENTION_3,
    10: AttentionFunction.FLASH_ATTENTION_4,
    11: AttentionFunction.FLASH_ATTENTION_4,
}


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
        self.q_norm = RMSNorm(inner_dim, eps=norm_eps)
        self.k_norm = RMSNorm(inner_dim, eps=norm_eps)
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
        perturbation_mask: torch.Tensor | None = None,
        all_perturbed: bool = False,
    ) -> torch.Tensor:
        """The attention's output, (B, T, query_dim).

        context: what to attend to; x itself if None.
        mask: additive bias (T, S), (B, T, S) or (B, heads, T, S) up to broadcasting.
        pe, k_pe: rotary tables of the queries and of the keys (of both, if only `pe` is given).
        perturbation_mask: (B, 1, 1); samples where it is 0 have each token's own value vector as its result
            (self-attention only). all_perturbed: all samples have.
        """
        context = x if context is None else context
        if all_perturbed:
            return self._gated(x, self.to_v(context))
        keys_and_values = self.keys_and_values(context, pe if k_pe is None else k_pe)
        return self.attend(x, keys_and_values, mask, pe, perturbation_mask)

    def keys_and_values(
        self, context: torch.Tensor, pe: RotaryTable | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `attend` reads of a context (B, S, context_dim): keys and values, each (B, S, I)."""
        return self._rotated(self.k_norm(self.to_k(context)), pe), self.to_v(context)

    def attend(
        self,
        x: torch.Tensor,
        keys_and_values: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None = None,
        pe: RotaryTable | None = None,
        perturbation_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`forward` with a context's `keys_and_values`, which many queries can share."""
        k, v = keys_and_values
        q = self._rotated(self.q_norm(self.to_q(x)), pe)
        out = _by_heads(KERNELS[self._function(mask)], q, k, v, self.heads, mask)
        if perturbation_mask is not None:
            out = out * perturbation_mask + v * (1 - perturbation_mask)
        return self._gated(x, out)

    def _rotated(self, x: torch.Tensor, pe: RotaryTable | None) -> torch.Tensor:
        return x if pe is None else apply_rotary_emb(x, pe, self.rope_type)

    def _gated(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The heads' results (B, T, I), scaled by their gates, as output."""
        if self.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(self.to_gate_logits(x))
            out = (out.unflatten(-1, (self.heads, -1)) * gates[..., None]).flatten(-2)
        return self.to_out[0](out)

    def _function(self, mask: torch.Tensor | None) -> AttentionFunction:
        """The chosen kernel, or PyTorch's where a mask is asked for that it cannot apply."""
        if mask is None or self.attention_function.takes_bias:
            return self.attention_function
        return AttentionFunction.PYTORCH
