"""The ``audio_vae`` and ``vocoder`` sections of a checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx_core.config import Count, parse_config, section_of
from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.attention import AttentionType
from ltx_core.model.audio_vae.causality_axis import CausalityAxis
from ltx_core.model.common.normalization import NormType

DDCONFIG = ("audio_vae", "model", "params", "ddconfig")


@dataclass(frozen=True)
class AudioVAEConfig:
    """``audio_vae.model.params.ddconfig``, names and defaults as there.

    features: how many statistics the file has; None for what the other values lead to.
    """

    ch: Count = 128
    out_ch: Count = 2
    ch_mult: tuple[Count, ...] = (1, 2, 4)
    num_res_blocks: Count = 2
    attn_resolutions: tuple[int, ...] = (8, 16, 32)
    resolution: int = 256
    z_channels: Count = 8
    mid_block_add_attention: bool = True
    norm_type: NormType = NormType.PIXEL
    causality_axis: CausalityAxis = CausalityAxis.HEIGHT
    dropout: float = 0.0
    double_z: bool = True
    in_channels: Count = 2
    attn_type: AttentionType = AttentionType.VANILLA
    resamp_with_conv: bool = True
    features: int | None = None

    def __post_init__(self) -> None:
        if not self.ch_mult:
            raise ConfigError(f"config.{'.'.join(DDCONFIG)}.ch_mult is empty; expected at least one level.")


@dataclass(frozen=True)
class SpectrogramConfig:
    """Where the spectrogram's rates stand in the file."""

    sample_rate: Count
    mel_hop_length: Count
    n_fft: Count
    is_causal: bool
    mel_bins: Count | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SpectrogramConfig:
        params = section_of(config, "audio_vae", "model", "params")
        stft = section_of(config, "audio_vae", "preprocessing", "stft")
        values = {
            "sample_rate": params.get("sampling_rate", 16000),
            "mel_hop_length": stft.get("hop_length", 160),
            "n_fft": stft.get("filter_length", 1024),
            "is_causal": stft.get("causal", True),
            "mel_bins": section_of(config, *DDCONFIG).get("mel_bins")
            or section_of(config, "audio_vae", "preprocessing", "mel").get("n_mel_channels")
            or section_of(config, "audio_vae", "variables").get("mel_bins")
            or None,
        }
        return parse_config(cls, values, "config.audio_vae")


def parse_audio_vae(config: Mapping[str, Any]) -> tuple[AudioVAEConfig, SpectrogramConfig]:
    """Read ``config["audio_vae"]``; what is missing takes its default."""
    network = parse_config(AudioVAEConfig, section_of(config, *DDCONFIG), f"config.{'.'.join(DDCONFIG)}")
    return network, SpectrogramConfig.from_config(config)


@dataclass(frozen=True)
class GeneratorConfig:
    """One generator: the whole flat ``vocoder`` section, or one part of a nested one."""

    resblock_kernel_sizes: tuple[Count, ...] = (3, 7, 11)
    upsample_rates: tuple[Count, ...] = (6, 5, 2, 2, 2)
    upsample_kernel_sizes: tuple[Count, ...] = (16, 15, 8, 4, 4)
    resblock_dilation_sizes: tuple[tuple[Count, ...], ...] = ((1, 3, 5),) * 3
    upsample_initial_channel: Count = 1024
    resblock: str = "1"
    output_sampling_rate: Count = 24000
    activation: str = "snake"
    use_tanh_at_final: bool = True
    use_bias_at_final: bool = True


@dataclass(frozen=True)
class ExtensionConfig:
    """What the bandwidth extension needs beside its generator."""

    input_sampling_rate: Count
    output_sampling_rate: Count
    hop_length: Count
    n_fft: Count
    num_mels: Count


def parse_generator(section: Mapping[str, Any], where: str, required: Mapping[str, Any]) -> GeneratorConfig:
    """One generator's section. Raises `ConfigError` unless the `required` keys have exactly these values."""
    for key, expected in required.items():
        if section.get(key) != expected:
            raise ConfigError(f"{where}.{key} is {section.get(key)!r}, expected {expected!r}")
    return parse_config(GeneratorConfig, section, where)
