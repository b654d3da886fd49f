"""Decoding sounds in pieces: the waveform of the whole, in memory that does not grow with its length.

What a network makes depends only on what is near it, unless it attends or its norms look at all of time. So each
network takes a piece together with the neighbours that it depends on, and what is made of these is cut off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from ltx_core.model.audio_vae.attention import AttentionBlock
from ltx_core.model.audio_vae.autoencoder import TIME_FACTOR, AudioDecoder
from ltx_core.model.audio_vae.bandwidth_extension import VocoderWithBWE
from ltx_core.model.audio_vae.causality_axis import CausalityAxis
from ltx_core.model.audio_vae.layers import CausalConv2d
from ltx_core.model.audio_vae.vocoder import Vocoder

PIECE = 250  # latent frames, 10 seconds, of a piece of the decoder on the average
# Of the largest signal in a vocoder: small enough for the C library to use its memory again.
SIGNAL_BYTES = 16 * 2**20
FILTERS = 6  # samples before and after that an anti-aliased activation sees


def decode_in_pieces(
    latent: torch.Tensor,
    decoder: AudioDecoder,
    vocoder: Vocoder | VocoderWithBWE,
    piece: int = PIECE,
    signal_bytes: int = SIGNAL_BYTES,
) -> torch.Tensor:
    """``vocoder(decoder(latent))`` of (B, z, L, F).

    The decoder takes about `piece` latent frames at once, vocoders what makes signals of about `signal_bytes`.
    Networks of another class, as compiled ones are, take all at once.
    """
    mel = _draw_in_pieces(latent, decoder, piece) if isinstance(decoder, AudioDecoder) else decoder(latent)
    generate = partial(_generate_in_pieces, signal_bytes=signal_bytes)
    if isinstance(vocoder, VocoderWithBWE):
        return vocoder(mel, generate)
    return generate(vocoder, mel) if isinstance(vocoder, Vocoder) else vocoder(mel)


def equal_pieces(length: int, piece: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of pieces of about `piece`: equally long, since each takes neighbours too; none of more
    than 1.5 `piece`."""
    count = max(1, math.floor(length / piece + 0.5))
    return itertools.pairwise(length * k // count for k in range(count + 1))


# -- the decoder -----------------------------------------------------------------------------------------


def _draw_in_pieces(latent: torch.Tensor, decoder: AudioDecoder, piece: int) -> torch.Tensor:
    """``decoder(latent)``. It is causal, so a piece takes only what comes before."""
    reach = latents_before(decoder)
    if reach is None:
        return decoder(latent)
    drawn = []
    for start, stop in equal_pieces(latent.shape[2], piece):
        first = max(0, start - reach)
        begin = _first_frame(start) - TIME_FACTOR * first
        drawn.append(decoder(latent[:, :, first:stop])[:, :, begin:])
    return torch.cat(drawn, dim=2)


def _first_frame(latent: int) -> int:
    """The first mel frame of a latent frame: the very first one has but one, the others `TIME_FACTOR`."""
    return max(0, TIME_FACTOR * latent - (TIME_FACTOR - 1))


def latents_before(decoder: AudioDecoder) -> int | None:
    """How many latent frames before its own a mel frame depends on; None for all, or if pieces do not begin at
    whole frames."""
    unbounded = any(isinstance(part, AttentionBlock | nn.GroupNorm) for part in decoder.modules())
    levels = math.log2(TIME_FACTOR)
    if unbounded or decoder.causality_axis is not CausalityAxis.HEIGHT or len(decoder.up) != levels + 1:
        return None

    def seen(module: nn.Module) -> int:
        return sum(
            part.conv.kernel_size[0] - 1 for part in module.modules() if isinstance(part, CausalConv2d)
        )

    # From the output to the input: a convolution sees two frames before, an upsampling halves.
    reach = seen(decoder.conv_out)
    level: Any
    for level in decoder.up:
        if hasattr(level, "upsample"):
            reach = math.ceil((reach + seen(level.upsample)) / 2) + 1
        reach += seen(level.block)
    return reach + seen(decoder.mid) + seen(decoder.conv_in)


# -- vocoders --------------------------------------------------------------------------------------------


def _generate_in_pieces(vocoder: Vocoder, mel: torch.Tensor, signal_bytes: int) -> torch.Tensor:
    """``vocoder(mel)`` of (B, 2, T, bands)."""
    reach, samples = frames_around(vocoder), samples_per_frame(vocoder)
    piece = max(signal_bytes // (_signal_per_frame(vocoder) * mel.shape[0] * mel.itemsize), 2 * reach)
    waves = []
    for start, stop in equal_pieces(mel.shape[2], piece):
        first = max(0, start - reach)
        wave = vocoder(mel[:, :, first : stop + reach])
        # Odd kernels at even rates, and even ones at odd rates, make a sample more at the very end.
        end = None if stop == mel.shape[2] else (stop - first) * samples
        waves.append(wave[..., (start - first) * samples : end])
    return torch.cat(waves, dim=-1)


def samples_per_frame(vocoder: Vocoder) -> int:
    """Of the waveform, for each mel frame."""
    return math.prod(up.stride[0] for up in vocoder.ups)  # type: ignore[union-attr, index, misc]


def _signal_per_frame(vocoder: Vocoder) -> int:
    """Values of the largest signal inside, for each mel frame."""
    up: Any
    rate, largest = 1, 0
    for up in vocoder.ups:
        rate *= up.stride[0]
        largest = max(largest, rate * up.out_channels)
    return largest


def frames_around(vocoder: Vocoder) -> int:
    """The mel frames before and after its own that a sample depends on."""
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
