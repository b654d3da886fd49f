"""From the text encoder's hidden states to the contexts that the diffusion transformer attends to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ltx_core.errors import InputError
from ltx_core.text_encoders.gemma.embeddings_connector import Embeddings1DConnector
from ltx_core.text_encoders.gemma.feature_extractor import HiddenStates


class EmbeddingsProcessorOutput(NamedTuple):
    """Contexts (B, S, video width) and (B, S, audio width) or None, and the mask (B, S), int64, all ones."""

    video_encoding: torch.Tensor
    audio_encoding: torch.Tensor | None
    attention_mask: torch.Tensor


def convert_to_additive_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A 1/0 mask (B, S) as an attention bias (B, 1, 1, S): 0 for valid, the lowest of `dtype` for padding."""
    bias = (attention_mask.to(torch.int64) - 1).to(dtype) * torch.finfo(dtype).max
    return bias.reshape(attention_mask.shape[0], 1, -1, attention_mask.shape[-1])


class EmbeddingsProcessor(nn.Module):
    """Feature extractor, then one connector per modality. Without an audio connector there is no audio."""

    def __init__(
        self,
        *,
        feature_extractor: nn.Module | None = None,
        video_connector: Embeddings1DConnector,
        audio_connector: Embeddings1DConnector | None = None,
    ) -> None:
        super().__init__()
        self.feature_extractor = feature_extractor
        self.video_connector = video_connector
        self.audio_connector = audio_connector

    def process_hidden_states(
        self, hidden_states: HiddenStates, attention_mask: torch.Tensor, padding_side: str = "left"
    ) -> EmbeddingsProcessorOutput:
        """Contexts of padded prompts.

        hidden_states: L tensors (B, S, D), or (B, S, D, L). attention_mask: (B, S), 1 valid, 0 padding.
        Raises `InputError` without feature extractor, and where extractor and connectors do not fit.
        """
        video, audio = self._extract(hidden_states, attention_mask, padding_side)
        bias = convert_to_additive_mask(attention_mask, video.dtype)
        return EmbeddingsProcessorOutput(*self.create_embeddings(video, audio, bias))

    def process_valid(
        self, hidden_states: HiddenStates, attention_mask: torch.Tensor, length: int = 1024
    ) -> EmbeddingsProcessorOutput:
        """Contexts of prompts given without most of their padding, equal to those of the padded prompts.

        hidden_states: L tensors (B, N, D), or (B, N, D, L). attention_mask: (B, N). length: the
        contexts' positions S >= N.
        Raises `InputError` as `process_hidden_states` does.
        """
        video, audio = self._extract(hidden_states, attention_mask)
        self._check_audio(audio)
        valid = attention_mask.bool()
        video = self.video_connector.encode_valid(video, valid, length)
        if self.audio_connector is not None and audio is not None:
            audio = self.audio_connector.encode_valid(audio, valid, length)
        return EmbeddingsProcessorOutput(video, audio, _ones(video))

    def create_embeddings(
        self,
        video_features: torch.Tensor,
        audio_features: torch.Tensor | None,
        additive_attention_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Contexts and mask from features (B, S, width) and their additive mask (B, 1, 1, S).

        Raises `InputError` for audio features without audio connector, or the other way round.
        """
        self._check_audio(audio_features)
        video, _ = self.video_connector(video_features, additive_attention_mask)
        audio = audio_features
        if self.audio_connector is not None:
            audio, _ = self.audio_connector(audio_features, additive_attention_mask)
        return video, audio, _ones(video)

    def _extract(
        self, hidden_states: HiddenStates, mask: torch.Tensor, padding_side: str = "left"
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.feature_extractor is None:
            raise InputError("This embeddings processor has no feature extractor; use create_embeddings.")
        return self.feature_extractor(hidden_states, mask, padding_side)

    def _check_audio(self, features: torch.Tensor | None) -> None:
        if self.audio_connector is not None and features is None:
            raise InputError("There is an audio connector but no audio features; give both or neither.")
        if self.audio_connector is None and features is not None:
            raise InputError("There are audio features but no audio connector; give both or neither.")


def _ones(contexts: torch.Tensor) -> torch.Tensor:
    return torch.ones(contexts.shape[:2], dtype=torch.int64, device=contexts.device)
