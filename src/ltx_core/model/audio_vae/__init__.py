"""Audio: the mel front end, the audio VAE, and the vocoders."""

from ltx_core.model.audio_vae.autoencoder import AudioDecoder, AudioEncoder
from ltx_core.model.audio_vae.bandwidth_extension import VocoderWithBWE
from ltx_core.model.audio_vae.codec import decode_audio, encode_audio
from ltx_core.model.audio_vae.configurators import (
    AudioDecoderConfigurator,
    AudioEncoderConfigurator,
    VocoderConfigurator,
)
from ltx_core.model.audio_vae.processor import AudioProcessor
from ltx_core.model.audio_vae.vocoder import Vocoder
from ltx_core.sd_ops import (
    AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    VOCODER_COMFY_KEYS_FILTER,
)

__all__ = [
    "AUDIO_VAE_DECODER_COMFY_KEYS_FILTER",
    "AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER",
    "VOCODER_COMFY_KEYS_FILTER",
    "AudioDecoder",
    "AudioDecoderConfigurator",
    "AudioEncoder",
    "AudioEncoderConfigurator",
    "AudioProcessor",
    "Vocoder",
    "VocoderConfigurator",
    "VocoderWithBWE",
    "decode_audio",
    "encode_audio",
]
