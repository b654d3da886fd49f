"""From a checkpoint's configuration to the audio networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ltx_core.config import Configurator, T, parse_config, section_of
from ltx_core.model.audio_vae.autoencoder import AudioDecoder, AudioEncoder
from ltx_core.model.audio_vae.bandwidth_extension import MelSTFT, VocoderWithBWE
from ltx_core.model.audio_vae.config import DDCONFIG, ExtensionConfig, parse_audio_vae, parse_generator
from ltx_core.model.audio_vae.vocoder import Vocoder

HIFI_GAN = {"resblock": "1", "stereo": True}
BIG_VGAN = {"resblock": "AMP1", "stereo": True, "activation": "snakebeta"}
ENCODER_ONLY = ("double_z", "in_channels", "attn_type", "resamp_with_conv")


class _HalfConfigurator(Configurator[T]):
    @classmethod
    def completed(cls, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Mapping[str, Any]:
        """The number of statistics is the file's: no key of the configuration states it."""
        features, *_ = shapes.get("per_channel_statistics.mean-of-means") or (None,)
        changed: Mapping[str, Any] = {**section_of(config, *DDCONFIG), "features": features}
        for depth in reversed(range(len(DDCONFIG))):
            changed = {**section_of(config, *DDCONFIG[:depth]), DDCONFIG[depth]: changed}
        return changed


class AudioEncoderConfigurator(_HalfConfigurator[AudioEncoder]):
    """Makes an `AudioEncoder` from a checkpoint's whole configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AudioEncoder:
        network, spectrogram = parse_audio_vae(config)
        return AudioEncoder(**vars(network), **vars(spectrogram))


class AudioDecoderConfigurator(_HalfConfigurator[AudioDecoder]):
    """Makes an `AudioDecoder` from a checkpoint's whole configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AudioDecoder:
        network, spectrogram = parse_audio_vae(config)
        given = {key: value for key, value in vars(network).items() if key not in ENCODER_ONLY}
        rates = {key: value for key, value in vars(spectrogram).items() if key != "n_fft"}
        return AudioDecoder(**given, **rates)


class VocoderConfigurator(Configurator[Vocoder | VocoderWithBWE]):
    """Makes a `Vocoder`, or a `VocoderWithBWE` where the section has a ``bwe`` part."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Vocoder | VocoderWithBWE:
        section = section_of(config, "vocoder")
        if "bwe" not in section:
            return Vocoder(**vars(parse_generator(section, "config.vocoder", HIFI_GAN)))
        bwe = section_of(config, "vocoder", "bwe")
        extension = parse_config(ExtensionConfig, bwe, "config.vocoder.bwe")
        first = parse_generator(section_of(config, "vocoder", "vocoder"), "config.vocoder.vocoder", BIG_VGAN)
        second = parse_generator(bwe, "config.vocoder.bwe", BIG_VGAN)
        first = replace(first, output_sampling_rate=extension.input_sampling_rate)
        return VocoderWithBWE(
            Vocoder(**vars(first)),
            Vocoder(**vars(second), apply_final_activation=False),
            MelSTFT(extension.n_fft, extension.hop_length, extension.num_mels),
            extension.input_sampling_rate,
            extension.output_sampling_rate,
            extension.hop_length,
        )
