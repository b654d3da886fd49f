"""The audio VAE's two halves: log-mel spectrograms (B, 2, T, F) to normalised latents and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.components.patchifiers import AudioPatchifier
from ltx_core.errors import ShapeError
from ltx_core.model.audio_vae.attention import AttentionType, make_attention
from ltx_core.model.audio_vae.causality_axis import CausalityAxis
from ltx_core.model.audio_vae.layers import (
    CausalConv2d,
    Downsample,
    ResBlock,
    Upsample,
    make_norm,
)
from ltx_core.model.common.checks import check_tensor
from ltx_core.model.common.normalization import NormType
from ltx_core.model.common.statistics import LatentStatistics

TIME_FACTOR = 4  # mel frames per latent frame; fixed, whatever the number of levels


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the configuration asks for it."""

    def __init__(
        self,
        widths: Iterable[tuple[int, int]],
        norm_type: NormType,
        axis: CausalityAxis,
        attention: AttentionType | None,
    ) -> None:
        super().__init__()
        pairs = list(widths)
        self.block = nn.ModuleList(ResBlock(a, b, norm_type, axis) for a, b in pairs)
        wanted = pairs if attention is not None else []
        self.attn = nn.ModuleList(make_attention(attention, b, norm_type) for _, b in wanted)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


def _middle(
    width: int, norm_type: NormType, axis: CausalityAxis, attention: AttentionType | None
) -> nn.ModuleDict:
    """Two residual blocks around optional attention."""
    parts: dict[str, nn.Module] = {"block_1": ResBlock(width, width, norm_type, axis)}
    if attention is not None:
        parts["attn_1"] = make_attention(attention, width, norm_type)
    parts["block_2"] = ResBlock(width, width, norm_type, axis)
    return nn.ModuleDict(parts)


class _Half(nn.Module):
    """What both halves know: the rates of the spectrogram and the geometry of their tokens."""

    def __init__(self, sample_rate: int, mel_hop_length: int, is_causal: bool, mel_bins: int | None) -> None:
        super().__init__()
        self.sample_rate, self.mel_hop_length = sample_rate, mel_hop_length
        self.is_causal, self.mel_bins = is_causal, mel_bins
        self.patchifier = AudioPatchifier(
            patch_size=1,
            sample_rate=sample_rate,
            hop_length=mel_hop_length,
            audio_latent_downsample_factor=TIME_FACTOR,
            is_causal=is_causal,
        )


def _features(channels: int, mel_bins: int | None, halvings: int, axis: CausalityAxis) -> int | None:
    """Latent features (channel x frequency bin) of a spectrogram of `mel_bins` bands."""
    if not mel_bins:
        return None
    # A causal axis has a first bin of its own, so odd numbers are halved upwards.
    return channels * (-(-mel_bins >> halvings) if axis is CausalityAxis.WIDTH else mel_bins >> halvings)


class AudioEncoder(_Half):
    """(B, 2, T, F) log-mel to the normalised latent (B, z, ceil(T / 4), F / 4). Deterministic."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: tuple[int, ...] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Iterable[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        attn_type: AttentionType = AttentionType.VANILLA,
        mid_block_add_attention: bool = True,
        norm_type: NormType = NormType.GROUP,
        causality_axis: CausalityAxis = CausalityAxis.WIDTH,
        sample_rate: int = 16000,
        mel_hop_length: int = 160,
        n_fft: int = 1024,
        is_causal: bool = True,
        mel_bins: int | None = 64,
        features: int | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__(sample_rate, mel_hop_length, is_causal, mel_bins)
        self.n_fft, self.in_channels = n_fft, in_channels
        common = (norm_type, causality_axis)
        outputs = 2 * z_channels if double_z else z_channels
        self.latent_channels = outputs // 2  # the second half is log variance, whatever double_z says
        last = len(ch_mult) - 1
        told = _features(self.latent_channels, mel_bins, last, causality_axis)
        features = features or told or ch
        self.per_channel_statistics = LatentStatistics(features)
        self.bands = mel_bins if mel_bins and features == told else features // self.latent_channels << last
        # Only a causal time axis has a latent for fewer mel frames than make one.
        self.least_frames = 1 if causality_axis is CausalityAxis.HEIGHT else 1 << last
        self.conv_in = CausalConv2d(in_channels, ch, 3, causality_axis)
        self.down = nn.ModuleList()
        width, attended = ch, set(attn_resolutions)
        for i, multiple in enumerate(ch_mult):
            widths = [(width, ch * multiple)] + [(ch * multiple, ch * multiple)] * (num_res_blocks - 1)
            level = Level(widths, *common, attn_type if resolution >> i in attended else None)
            if i < last:
                level.downsample = Downsample(ch * multiple, causality_axis, with_conv=resamp_with_conv)
            self.down.append(level)
            width = ch * multiple
        self.mid = _middle(width, *common, attn_type if mid_block_add_attention else None)
        self.norm_out = make_norm(norm_type, width)
        self.conv_out = CausalConv2d(width, outputs, 3, causality_axis)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        """Normalised latent means. Raises `ShapeError`, or `InputError` for another dtype than the network's."""
        means, _ = self.encode_moments(spectrogram)
        return self.per_channel_statistics.normalize(means)

    def encode_moments(self, spectrogram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(means, log variances) before normalisation."""
        sizes = ("batch", self.in_channels, "frames", self.bands)
        check_tensor(spectrogram, "The audio encoder", "log-mel", sizes, self.conv_in.conv.weight.dtype)
        if spectrogram.shape[2] < self.least_frames:
            raise ShapeError(
                f"The audio encoder makes a latent of {self.least_frames} mel frames, not of {spectrogram.shape[2]}; "
                "use a longer sound."
            )
        x = self.conv_in(spectrogram)
        for level in self.down:
            x = level(x)
            if isinstance(resample := getattr(level, "downsample", None), nn.Module):
                x = resample(x)
        for part in self.mid.values():
            x = part(x)
        means, variances = self.conv_out(F.silu(self.norm_out(x))).chunk(2, dim=1)
        return means, variances


class AudioDecoder(_Half):
    """Normalised latent (B, z, L, F / 4) to log-mel (B, 2, 4 L - 3, F)."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: tuple[int, ...] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Iterable[int],
        resolution: int,
        z_channels: int,
        norm_type: NormType = NormType.GROUP,
        causality_axis: CausalityAxis = CausalityAxis.WIDTH,
        dropout: float = 0.0,
        mid_block_add_attention: bool = True,
        sample_rate: int = 16000,
        mel_hop_length: int = 160,
        is_causal: bool = True,
        mel_bins: int | None = None,
        features: int | None = None,
    ) -> None:
        super().__init__(sample_rate, mel_hop_length, is_causal, mel_bins)
        self.out_ch, self.causality_axis = out_ch, causality_axis
        common = (norm_type, causality_axis)
        last = len(ch_mult) - 1
        features = features or _features(z_channels, mel_bins, last, causality_axis) or ch
        self.per_channel_statistics = LatentStatistics(features)
        width, attended = ch * ch_mult[-1], set(attn_resolutions)
        self.conv_in = CausalConv2d(z_channels, width, 3, causality_axis)
        self.mid = _middle(width, *common, AttentionType.VANILLA if mid_block_add_attention else None)
        levels: list[nn.Module] = []
        for i in range(last, -1, -1):
            target = ch * ch_mult[i]
            widths = [(width, target)] + [(target, target)] * num_res_blocks
            # Doubled from the lowest level on: odd sizes are not those that the encoder halves to.
            is_attended = (resolution >> last) << (last - i) in attended
            level = Level(widths, *common, AttentionType.VANILLA if is_attended else None)
            if i:
                level.upsample = Upsample(target, causality_axis)
            levels.insert(0, level)
            width = target
        self.up = nn.ModuleList(levels)
        self.norm_out = make_norm(norm_type, width)
        self.conv_out = CausalConv2d(width, out_ch, 3, causality_axis)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Raises `ShapeError`, or `InputError` for another dtype than the network's."""
        weight, features = self.conv_in.conv.weight, self.per_channel_statistics.get_buffer("mean-of-means")
        sizes = ("batch", weight.shape[1], "frames", len(features) // weight.shape[1])
        check_tensor(sample, "The audio decoder", "latents", sizes, weight.dtype)
        x = self.conv_in(self.per_channel_statistics.un_normalize(sample))
        for part in self.mid.values():
            x = part(x)
        for level in reversed(self.up):
            x = level(x)
            if isinstance(resample := getattr(level, "upsample", None), nn.Module):
                x = resample(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return self._fit(x, sample)

    def _fit(self, x: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Crop or zero-pad to the spectrogram that belongs to the latent's length."""
        frames = TIME_FACTOR * sample.shape[2]
        if self.causality_axis is not CausalityAxis.NONE:
            frames = max(frames - (TIME_FACTOR - 1), 1)
        bins = self.mel_bins or sample.shape[3]
        x = x[:, : self.out_ch, :frames, :bins]
        return F.pad(x, (0, bins - x.shape[3], 0, frames - x.shape[2]))
