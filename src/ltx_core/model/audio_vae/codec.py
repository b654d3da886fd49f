"""Waveform to latent and latent to waveform."""

from __future__ import annotations

import torch

from ltx_core.model.audio_vae.autoencoder import AudioDecoder, AudioEncoder
from ltx_core.model.audio_vae.bandwidth_extension import VocoderWithBWE
from ltx_core.model.audio_vae.pieces import decode_in_pieces
from ltx_core.model.audio_vae.processor import AudioProcessor, match_channels
from ltx_core.model.audio_vae.vocoder import Vocoder
from ltx_core.model.common.convolution import full_float32
from ltx_core.types import Audio


def encode_audio(
    audio: Audio, audio_encoder: AudioEncoder, audio_processor: AudioProcessor | None = None
) -> torch.Tensor:
    """A waveform (B, channels, N) of any rate and number of channels to a normalised latent (B, z, L, F / 4).

    The log-mel is computed in the waveform's dtype, which should be float32; the latent has the encoder's.
    Raises `ShapeError`, or `InputError` for integers, a sound too short for one frame, or an impossible rate.
    """
    weight = audio_encoder.conv_in.conv.weight
    if audio_processor is None:
        audio_processor = AudioProcessor(
            audio_encoder.sample_rate,
            audio_encoder.bands,
            audio_encoder.mel_hop_length,
            audio_encoder.n_fft,
        ).to(weight.device)
    waveform = match_channels(audio.waveform.to(weight.device), audio_encoder.in_channels)
    with full_float32():
        mel = audio_processor.waveform_to_mel(Audio(waveform, audio.sampling_rate))
    return audio_encoder(mel.to(weight.dtype))


def decode_audio(
    latent: torch.Tensor, audio_decoder: AudioDecoder, vocoder: Vocoder | VocoderWithBWE
) -> Audio:
    """A normalised latent to a float32 waveform: (channels, N) for a batch of one, else (B, channels, N).

    Longer sounds are decoded in pieces of a few seconds, with the same result. What is float32 stays so on a GPU.
    """
    with full_float32():
        waveform = decode_in_pieces(latent, audio_decoder, vocoder)
    return Audio(waveform.squeeze(0).float(), vocoder.output_sampling_rate)
