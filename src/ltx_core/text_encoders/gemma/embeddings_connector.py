"""The small transformer between text features and diffusion transformer, with registers for padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ltx_core.config import parse_config, section_of
from ltx_core.errors import ConfigError, InputError, ShapeError
from ltx_core.model.transformer.attention import Attention
from ltx_core.model.transformer.feed_forward import FeedForward
from ltx_core.model.transformer.rope import (
    LTXRopeType,
    RotaryTable,
    generate_freq_grid_np,
    generate_freq_grid_pytorch,
    precompute_freqs_cis,
)
from ltx_core.utils import rms_norm

VALID = -9000.0  # an additive mask below this hides its position


class ConnectorBlock(nn.Module):
    """Pre-norm self-attention and feed-forward; the norms have no weights."""

    def __init__(
        self, heads: int, head_dim: int, rope_type: LTXRopeType, apply_gated_attention: bool, ff_bias: bool
    ) -> None:
        super().__init__()
        dim = heads * head_dim
        self.attn1 = Attention(
            dim,
            heads=heads,
            dim_head=head_dim,
            rope_type=rope_type,
            apply_gated_attention=apply_gated_attention,
        )
        self.ff = FeedForward(dim, bias=ff_bias)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, pe: RotaryTable) -> torch.Tensor:
        """x (B, S, C), same shape out."""
        x = x + self.attn1(rms_norm(x), mask=mask, pe=pe)
        return x + self.ff(rms_norm(x))


class Embeddings1DConnector(nn.Module):
    """A transformer over S positions of width C = num_attention_heads * attention_head_dim.

    With registers (R of them, none if 0 or None) the valid rows come first, in order, and every later
    position p holds register p mod R; all positions see each other.
    `causal_temporal_positioning` has no effect.
    Raises `ConfigError` unless `positional_embedding_max_pos` has one entry.
    """

    def __init__(
        self,
        attention_head_dim: int = 128,
        num_attention_heads: int = 30,
        num_layers: int = 2,
        positional_embedding_theta: float = 10000.0,
        positional_embedding_max_pos: Sequence[float] = (1,),
        causal_temporal_positioning: bool = False,
        num_learnable_registers: int | None = 128,
        rope_type: LTXRopeType = LTXRopeType.SPLIT,
        double_precision_rope: bool = False,
        apply_gated_attention: bool = False,
        ff_bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.inner_dim = num_attention_heads * attention_head_dim
        self.causal_temporal_positioning = causal_temporal_positioning
        self.positional_embedding_theta = positional_embedding_theta
        self.positional_embedding_max_pos = tuple(positional_embedding_max_pos)
        if len(self.positional_embedding_max_pos) != 1:
            raise ConfigError(
                f"The connector's maximum position is {list(self.positional_embedding_max_pos)}; text has "
                "one axis, so one number is expected."
            )
        self.rope_type = rope_type
        self.double_precision_rope = double_precision_rope
        self.num_learnable_registers = num_learnable_registers or 0
        self.learnable_registers: nn.Parameter | None = None
        if self.num_learnable_registers:
            registers = torch.empty(self.num_learnable_registers, self.inner_dim)
            self.learnable_registers = nn.Parameter(nn.init.uniform_(registers, -1, 1))
        self.transformer_1d_blocks = nn.ModuleList(
            ConnectorBlock(num_attention_heads, attention_head_dim, rope_type, apply_gated_attention, ff_bias)
            for _ in range(num_layers)
        )

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoded sequence (B, S, C) and its additive mask.

        hidden_states: (B, S, C), padded on any side. attention_mask: (B, 1, 1, S), 0 valid, very negative
        padding; with registers the mask that comes back is all zeros.
        Raises `ShapeError` (an AssertionError) if S is not a multiple of the number of registers.
        """
        if self.learnable_registers is None:
            return self._transform(hidden_states, attention_mask), attention_mask
        batch, length = hidden_states.shape[:2]
        valid = attention_mask.reshape(-1, length).expand(batch, -1) >= VALID
        return self.encode_valid(hidden_states, valid, length), torch.zeros_like(attention_mask)

    def encode_valid(self, hidden_states: torch.Tensor, valid: torch.Tensor, length: int) -> torch.Tensor:
        """The encoded sequence (B, `length`, C) of rows (B, N, C), N <= length.

        valid: (B, N), which rows are text. Equals `forward` on the rows padded to `length`. Needs registers.
        """
        order = torch.argsort((~valid).to(torch.uint8), dim=1, stable=True)
        rows = hidden_states.gather(1, order[..., None].expand_as(hidden_states))
        is_text = torch.arange(rows.shape[1], device=valid.device) < valid.sum(dim=1, keepdim=True)
        registers = self._registers(length, hidden_states.dtype)
        filled = torch.where(is_text[..., None], rows, registers[: rows.shape[1]])
        rest = registers[rows.shape[1] :].expand(len(rows), -1, -1)
        return self._transform(torch.cat([filled, rest], dim=1))

    def _registers(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """The register of each position, (length, C)."""
        if self.learnable_registers is None or length % self.num_learnable_registers:
            raise ShapeError(
                f"The text has {length} positions; expected a multiple of the {self.num_learnable_registers} "
                "registers."
            )
        repeats = length // self.num_learnable_registers
        return self.learnable_registers.to(dtype).repeat(repeats, 1)

    def _transform(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[-1] != self.inner_dim:
            raise InputError(
                f"The text features are {x.shape[-1]} wide, the connector is {self.inner_dim} wide; text "
                "projection and connector are of different models."
            )
        pe = self._rotary_table(x)
        for block in self.transformer_1d_blocks:
            x = block(x, mask, pe)
        return rms_norm(x)

    def _rotary_table(self, x: torch.Tensor) -> RotaryTable:
        positions = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)[None, None]
        return precompute_freqs_cis(
            positions,
            dim=self.inner_dim,
            out_dtype=x.dtype,
            theta=self.positional_embedding_theta,
            max_pos=self.positional_embedding_max_pos,
            num_attention_heads=self.num_attention_heads,
            rope_type=self.rope_type,
            freq_grid_generator=generate_freq_grid_np
            if self.double_precision_rope
            else generate_freq_grid_pytorch,
        )


@dataclass(frozen=True)
class ConnectorConfig:
    """The connectors' part of ``config.transformer``; audio values that are missing are the video's."""

    connector_num_attention_heads: int = 30
    connector_attention_head_dim: int = 128
    connector_num_layers: int = 2
    audio_connector_num_attention_heads: int | None = None
    audio_connector_attention_head_dim: int | None = None
    audio_connector_num_layers: int | None = None
    connector_positional_embedding_max_pos: tuple[float, ...] = (1,)
    connector_apply_gated_attention: bool = False
    connector_ff_bias: bool = True
    rope_type: LTXRopeType = LTXRopeType.SPLIT
    frequencies_precision: Any = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ConnectorConfig:
        """config: the parsed ``config`` metadata of a checkpoint. Raises `ConfigError` for a wrong value."""
        return parse_config(cls, section_of(config, "transformer"), "config.transformer")

    def for_audio(self) -> ConnectorConfig:
        """The audio connector's sizes in the place of the video's."""
        own = {
            name: getattr(self, f"audio_{name}") or getattr(self, name)
            for name in (
                "connector_num_attention_heads",
                "connector_attention_head_dim",
                "connector_num_layers",
            )
        }
        return replace(self, **own)

    def build(self) -> Embeddings1DConnector:
        return Embeddings1DConnector(
            attention_head_dim=self.connector_attention_head_dim,
            num_attention_heads=self.connector_num_attention_heads,
            num_layers=self.connector_num_layers,
            positional_embedding_max_pos=self.connector_positional_embedding_max_pos,
            rope_type=self.rope_type,
            double_precision_rope=self.frequencies_precision == "float64",
            apply_gated_attention=self.connector_apply_gated_attention,
            ff_bias=self.connector_ff_bias,
        )


class Embeddings1DConnectorConfigurator:
    """Builds the video connector of a checkpoint's configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Embeddings1DConnector:
        return ConnectorConfig.from_config(config).build()


class AudioEmbeddings1DConnectorConfigurator:
    """Builds the audio connector of a checkpoint's configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Embeddings1DConnector:
        return ConnectorConfig.from_config(config).for_audio().build()
