"""How long a clip of a prompt should be: a small network on its contexts (LTX-2.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.config import parse_config, section_of
from ltx_core.errors import InputError
from ltx_core.sd_ops import DURATION_HEAD_KEY_OPS
from ltx_core.types import VIDEO_SCALE_FACTORS

__all__ = ["DURATION_HEAD_KEY_OPS", "AutoDuration", "DurationHead", "DurationHeadConfigurator"]

FRAME_STEP = VIDEO_SCALE_FACTORS.time  # a video has 8 k + 1 frames


@dataclass(frozen=True)
class AutoDuration:
    """Bounds, in seconds, of a duration that the model chooses. Raises `InputError` if they cross."""

    min_seconds: float = 1.0
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.max_seconds:
            raise InputError(
                f"The duration's bounds are {self.min_seconds:g} to {self.max_seconds:g} s; expected "
                "0 < minimum <= maximum."
            )

    def num_frames(self, seconds: float, fps: float) -> int:
        """`seconds` within the bounds as 8 k + 1 frames, rounded down between two such numbers."""
        low, high = round(self.min_seconds * fps), round(self.max_seconds * fps)
        wanted = min(max(round(seconds * fps), low), high)
        frames = (wanted - 1) // FRAME_STEP * FRAME_STEP + 1
        return frames if frames >= low else min(frames + FRAME_STEP, high)


class AttentionPooler(nn.Module):
    """Learned queries (Q, D) that attend to all tokens (B, T, D). Returns (B, Q * D)."""

    def __init__(self, dim: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(num_queries, dim))
        self.cross_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        return self.cross_attn(queries, tokens, tokens, need_weights=False)[0].flatten(1)


class DurationHead(nn.Module):
    """Contexts of a prompt to the seconds its clip should last."""

    def __init__(
        self,
        video_dim: int = 4096,
        audio_dim: int = 2048,
        pooler_hidden_dim: int = 256,
        num_queries: int = 1,
        num_pooler_heads: int = 4,
        mlp_hidden: int = 256,
    ) -> None:
        super().__init__()
        self.video_input_proj = nn.Linear(video_dim, pooler_hidden_dim)
        self.audio_input_proj = nn.Linear(audio_dim, pooler_hidden_dim)
        self.video_modality_emb = nn.Parameter(torch.zeros(pooler_hidden_dim))
        self.audio_modality_emb = nn.Parameter(torch.zeros(pooler_hidden_dim))
        self.attention_pooler = AttentionPooler(pooler_hidden_dim, num_queries, num_pooler_heads)
        self.mlp_hidden = nn.Linear(num_queries * pooler_hidden_dim, mlp_hidden)
        self.mlp_out = nn.Linear(mlp_hidden, 1)

    def forward(
        self, video_encoding: torch.Tensor | None = None, audio_encoding: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Seconds (B,) from contexts (B, S, video_dim), (B, S, audio_dim) or both.

        Raises `InputError` if both are None.
        """
        tokens = []
        if video_encoding is not None:
            tokens.append(self.video_input_proj(video_encoding) + self.video_modality_emb)
        if audio_encoding is not None:
            tokens.append(self.audio_input_proj(audio_encoding) + self.audio_modality_emb)
        if not tokens:
            raise InputError("The duration head was given no context; give the video's, the audio's or both.")
        pooled = self.attention_pooler(torch.cat(tokens, dim=1))
        return self.mlp_out(F.gelu(self.mlp_hidden(pooled), approximate="tanh")).squeeze(-1).exp()


@dataclass(frozen=True)
class _Contexts:
    cross_attention_dim: int = 4096
    audio_cross_attention_dim: int = 2048


@dataclass(frozen=True)
class _Head:
    pooler_hidden_dim: int = 256
    num_queries: int = 1
    num_pooler_heads: int = 4
    mlp_hidden: int = 256


class DurationHeadConfigurator:
    """Builds the duration head of a checkpoint's configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DurationHead:
        """config: the parsed ``config`` metadata. Raises `ConfigError` for a wrong value."""
        contexts = parse_config(_Contexts, section_of(config, "transformer"), "config.transformer")
        head = parse_config(_Head, section_of(config, "duration_head"), "config.duration_head")
        return DurationHead(contexts.cross_attention_dim, contexts.audio_cross_attention_dim, **vars(head))
