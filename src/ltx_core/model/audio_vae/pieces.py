"""Decoding long sounds in pieces: the waveform of the whole, in memory that does not grow with its length.

A sample depends only on latents near it, unless the decoder attends or its norms look at all of time. So each piece
is decoded with the neighbours that it depends on, and what these sound like is cut off.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ltx_core.model.audio_vae.attention import AttentionBlock
from ltx_core.model.audio_vae.autoencoder import TIME_FACTOR, AudioDecoder
from ltx_core.model.audio_vae.bandwidth_extension import VocoderWithBWE
from ltx_core.model.audio_vae.causality_axis import CausalityAxis
from ltx_core.model.audio_vae.layers import CausalConv2d
from ltx_core.model.audio_vae.vocoder import Vocoder

PIECE = 250  # latent frames, 10 seconds, of a piece on the average
FILTERS = 6  # samples before and after that an anti-aliased activation sees


@dataclass(frozen=True)
class Reach:
    """How many latent frames before and after its own a sample depends on."""

    before: int
    after: int


def decode_in_pieces(
    latent: torch.Tensor, decoder: AudioDecoder, vocoder: Vocoder | VocoderWithBWE, piece: int = PIECE
) -> torch.Tensor:
    """``vocoder(decoder(latent))`` of (B, z, L, F), decoding about `piece` latent frames at once where possible.

    Pieces are equally long, since each has to decode its neighbours too: none is of more than 1.5 `piece`.
    """
    length = latent.shape[2]
    count = math.floor(length / piece + 0.5)
    if count <= 1 or (reach := find_reach(decoder, vocoder)) is None:
        return vocoder(decoder(latent))
    samples, waves = samples_per_frame(vocoder), []
    for start, stop in itertools.pairwise(length * k // count for k in range(count + 1)):
        first = max(0, start - reach.before)
        wave = vocoder(decoder(latent[:, :, first : stop + reach.after]))
        begin, end = (_first_frame(frame) - TIME_FACTOR * first for frame in (start, stop))
        waves.append(wave[..., begin * samples : end * samples])
    return torch.cat(waves, dim=-1)


def _first_frame(latent: int) -> int:
    """The first mel frame of a latent frame: the very first one has but one, the others `TIME_FACTOR`."""
    return max(0, TIME_FACTOR * latent - (TIME_FACTOR - 1))


def samples_per_frame(vocoder: Vocoder | VocoderWithBWE) -> int:
    """Of the waveform, for each mel frame."""
    if isinstance(vocoder, VocoderWithBWE):
        ratio = vocoder.output_sampling_rate // vocoder.input_sampling_rate
        return samples_per_frame(vocoder.vocoder) * ratio
    return math.prod(up.stride[0] for up in vocoder.ups)  # type: ignore[union-attr, index, misc]


def find_reach(decoder: AudioDecoder, vocoder: Vocoder | VocoderWithBWE) -> Reach | None:
    """Of the two together; None if a sample depends on the whole, or if pieces do not begin at whole frames."""
    unbounded = any(isinstance(part, AttentionBlock | nn.GroupNorm) for part in decoder.modules())
    levels = math.log2(TIME_FACTOR)
    if unbounded or decoder.causality_axis is not CausalityAxis.HEIGHT or len(decoder.up) != levels + 1:
        return None
    if isinstance(vocoder, VocoderWithBWE):
        step = TIME_FACTOR * samples_per_frame(vocoder.vocoder)
        if step % vocoder.hop_length or vocoder.output_sampling_rate % vocoder.input_sampling_rate:
            return None
    heard = _heard(vocoder)
    return Reach(before=_drawn(decoder, heard), after=math.ceil(heard / TIME_FACTOR) + 1)


def _drawn(decoder: AudioDecoder, frames: int) -> int:
    """The latent frames before its own that so many mel frames before one's own depend on.

    Followed from the output to the input: a convolution sees two frames before, an upsampling halves.
    """

    def seen(module: nn.Module) -> int:
        return sum(
            part.conv.kernel_size[0] - 1 for part in module.modules() if isinstance(part, CausalConv2d)
        )

    reach = frames + seen(decoder.conv_out)
    level: Any
    for level in decoder.up:
        if hasattr(level, "upsample"):
            reach = math.ceil((reach + seen(level.upsample)) / 2) + 1
        reach += seen(level.block)
    return reach + seen(decoder.mid) + seen(decoder.conv_in)


def _heard(vocoder: Vocoder | VocoderWithBWE) -> int:
    """The mel frames before and after its own that a sample depends on."""
    if isinstance(vocoder, VocoderWithBWE):
        mel = vocoder.mel_stft
        samples = _heard(vocoder.bwe_generator) * mel.hop_length + mel.n_fft
        return _heard(vocoder.vocoder) + math.ceil(samples / samples_per_frame(vocoder.vocoder))
    filters = FILTERS if vocoder.snakes else 0
    reach, count = filters + _side(vocoder.conv_post), vocoder.blocks_per_stage
    up: Any
    for i, up in reversed(list(enumerate(vocoder.ups))):
        blocks: Any = vocoder.resblocks[i * count : (i + 1) * count]
        reach += max(
            sum(_side(conv) + filters for conv in (*block.convs1, *block.convs2)) for block in blocks
        )
        reach = math.ceil((reach + up.kernel_size[0]) / up.stride[0])
    return reach + _side(vocoder.conv_pre)


def _side(conv: nn.Conv1d) -> int:
    """Samples on either side that a convolution sees."""
    return (conv.kernel_size[0] - 1) // 2 * conv.dilation[0]
