"""From the hidden states of all text encoder layers to one feature vector per token and modality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ltx_core.errors import InputError

EPS = 1e-6
RANGE = 8.0  # a prompt's values are brought to this range

HiddenStates = torch.Tensor | Sequence[torch.Tensor]
"""L tensors (B, T, D), or one (B, T, D, L)."""


def norm_and_concat_per_prompt_range(
    hidden_states: HiddenStates, attention_mask: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Each layer centred and scaled over a prompt's valid tokens: 8 (x - mean) / (max - min). LTX-2.0.

    attention_mask: (B, T), 0 = padding, which may hold anything and becomes 0.
    Returns (B, T, D * L) in `dtype`, layer index fastest. Sum, maximum and minimum are taken in the dtype of
    the input, the rest is float32.
    """
    layers = _layers(hidden_states)
    valid = attention_mask.bool()[..., None]
    count = (valid.sum(dim=(1, 2), keepdim=True) * layers[0].shape[-1]).float() + EPS
    return _concat([_scale_to_range(x, valid, count).to(dtype) for x in layers])


def _scale_to_range(x: torch.Tensor, valid: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    mean = x.masked_fill(~valid, 0).sum((1, 2), keepdim=True) / count
    low = x.masked_fill(~valid, math.inf).amin((1, 2), keepdim=True)
    high = x.masked_fill(~valid, -math.inf).amax((1, 2), keepdim=True)
    return (RANGE * (x - mean) / (high - low + EPS)).masked_fill(~valid, 0)


def norm_and_concat_per_token_rms(encoded_text: HiddenStates, attention_mask: torch.Tensor) -> torch.Tensor:
    """Each token's vector in each layer divided by its root mean square. LTX-2.3.

    attention_mask: (B, T), 0 = padding, which may hold anything and becomes 0.
    Returns (B, T, D * L) in the dtype of the input, in which all is computed; layer index fastest.
    """
    layers = _layers(encoded_text)
    normed = _concat([x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + EPS) for x in layers])
    return normed.masked_fill(~attention_mask.bool()[..., None], 0)


def _layers(hidden_states: HiddenStates) -> Sequence[torch.Tensor]:
    return hidden_states.unbind(-1) if isinstance(hidden_states, torch.Tensor) else hidden_states


def _concat(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tuple(layers), dim=-1).flatten(-2)


def size_projections(module: nn.Module, features: int) -> None:
    """Give new text projections, which fit any Gemma, the number of values per token of one, hidden size x layers."""
    for part in module.modules():
        if isinstance(part, nn.LazyLinear) and is_lazy(part.weight):
            part.initialize_parameters(torch.empty(1, features, device="meta"))


def _check_side(padding_side: str) -> None:
    if padding_side not in ("left", "right"):
        raise InputError(f"padding_side is {padding_side!r}; expected 'left' or 'right'.")


def _project(features: torch.Tensor, projection: Any, hidden_states: HiddenStates) -> torch.Tensor:
    """The linear `projection` of features (B, T, D * L).

    Raises `InputError` if the checkpoint's projection was made for another text encoder.
    """
    weight = projection.weight
    if not is_lazy(weight) and weight.shape[-1] != features.shape[-1]:
        layers = _layers(hidden_states)
        raise InputError(
            f"The text encoder gives {len(layers)} hidden states of width {layers[0].shape[-1]}, "
            f"{features.shape[-1]} values per token; the checkpoint's text projection takes "
            f"{weight.shape[-1]}. Use the Gemma model that the checkpoint was trained with."
        )
    return projection(features)


class FeatureExtractorV1(nn.Module):
    """LTX-2.0: `norm_and_concat_per_prompt_range` and one projection; audio features are the video's.

    aggregate_embed: linear, D * L -> D, no bias. is_av: whether there is audio.
    """

    def __init__(self, aggregate_embed: nn.Module, is_av: bool = False) -> None:
        super().__init__()
        self.aggregate_embed = aggregate_embed
        self.is_av = is_av

    def forward(
        self, hidden_states: HiddenStates, attention_mask: torch.Tensor, padding_side: str = "left"
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and audio features (B, T, D). The mask alone says what is valid; `padding_side` is checked.

        Raises `InputError` (a ValueError) for another padding side than left and right, and where the widths
        do not fit.
        """
        _check_side(padding_side)
        dtype = _layers(hidden_states)[0].dtype
        normed = norm_and_concat_per_prompt_range(hidden_states, attention_mask, dtype)
        features = _project(normed, self.aggregate_embed, hidden_states)
        return features, features if self.is_av else None


class FeatureExtractorV2(nn.Module):
    """LTX-2.3: `norm_and_concat_per_token_rms` and a projection with bias for each modality.

    embedding_dim: hidden size D of the text encoder; None takes it from the hidden states. Each projection
    sees its input scaled by sqrt(own width / D).
    """

    def __init__(
        self,
        video_aggregate_embed: nn.Module,
        embedding_dim: int | None,
        audio_aggregate_embed: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.video_aggregate_embed = video_aggregate_embed
        self.audio_aggregate_embed = audio_aggregate_embed
        self.embedding_dim = embedding_dim

    def forward(
        self, hidden_states: HiddenStates, attention_mask: torch.Tensor, padding_side: str = "left"
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video (B, T, video width) and audio (B, T, audio width) features; at padding they are the bias.

        Raises `InputError` like `FeatureExtractorV1.forward`.
        """
        _check_side(padding_side)
        dim = self.embedding_dim or _layers(hidden_states)[0].shape[-1]
        normed = norm_and_concat_per_token_rms(hidden_states, attention_mask)

        def features(projection: Any) -> torch.Tensor:
            scale = math.sqrt(projection.out_features / dim)
            return _project(normed * scale, projection, hidden_states)

        audio = self.audio_aggregate_embed
        return features(self.video_aggregate_embed), None if audio is None else features(audio)
