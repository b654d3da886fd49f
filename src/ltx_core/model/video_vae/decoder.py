"""The video decoder: normalised latents to pixels, whole or tile by tile as a stream of frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import InputError, ShapeError
from ltx_core.model.common.checks import check_tensor
from ltx_core.model.common.statistics import LatentStatistics
from ltx_core.model.common.timesteps import TimestepEmbedding
from ltx_core.model.video_vae.blocks import Flow, Style, decoder_block, modulate, modulation
from ltx_core.model.video_vae.config import VideoVAEConfig, parse_blocks
from ltx_core.model.video_vae.enums import PaddingModeType
from ltx_core.model.video_vae.layers import make_norm, unpatchify
from ltx_core.model.video_vae.streaming import (
    PIECE_BYTES,
    Convolution,
    activated,
    can_stream,
    layers_of,
    regrouped,
    stream,
)
from ltx_core.model.video_vae.tiling import (
    FRAMES_AT_A_TIME,
    AnyTiling,
    AutoTiling,
    check_tile,
    decode_groups,
    overlap_add,
    spatial_weights,
)
from ltx_core.types import SpatioTemporalScaleFactors


class VideoDecoder(nn.Module):
    """(B, C, F, H, W) to (B, 3, 8 (F - 1) + 1, 32 H, 32 W), nominally in [-1, 1], not clamped."""

    decode_noise_scale = 0.025
    decode_timestep = 0.05
    video_downscale_factors = SpatioTemporalScaleFactors.default()

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.patch_size, self.causal = config.patch_size, config.causal_decoder
        self.timestep_conditioning = config.timestep_conditioning
        self.latent_channels, self.out_channels = config.latent_channels, config.out_channels
        padding = config.spatial_padding_mode or PaddingModeType.REFLECT
        style = Style(config.norm_layer, padding, config.timestep_conditioning)
        width = config.decoder_bottleneck_channels or 8 * config.decoder_base_channels
        self.per_channel_statistics = LatentStatistics(config.latent_channels)
        self.conv_in = style.conv(config.latent_channels, width)
        self.up_blocks = nn.ModuleList()
        for entry in reversed(parse_blocks(config.decoder_blocks)):
            block, width = decoder_block(entry, width, style)
            self.up_blocks.append(block)
        self.conv_norm_out = make_norm(config.norm_layer, width)
        self.conv_out = style.conv(width, config.out_channels * config.patch_size**2)
        if self.timestep_conditioning:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
            self.last_time_embedder = TimestepEmbedding(2 * width)
            self.last_scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Decode in one piece.

        timestep: one for each sample, or one for all, only for decoders conditioned on it; default 0.05.
        generator: source of the noise that such decoders, and those with noise injection, draw. A latent
        (C, F, H, W) is a batch of one. The result has the latent's dtype, whatever the network's is. Raises
        `ShapeError`, or `InputError` for integers.
        """
        dtype, sample = sample.dtype, self._batched(sample)
        self.check_sides(sample.shape[3:])
        if self.timestep_conditioning:
            noise = torch.randn(sample.shape, dtype=sample.dtype, device=sample.device, generator=generator)
            sample = self.decode_noise_scale * noise + (1 - self.decode_noise_scale) * sample
        z = self.per_channel_statistics.un_normalize(sample)
        flow = Flow(self.causal, self._scaled_timestep(z, timestep), generator)
        x = self.conv_in(z, self.causal)
        for block in self.up_blocks:
            x = block(x, flow)
        x = self._last_modulation(self.conv_norm_out(x), flow.timestep)
        return unpatchify(self.conv_out(F.silu(x), self.causal), self.patch_size).to(dtype)

    def _batched(self, latent: torch.Tensor) -> torch.Tensor:
        """`latent` with its batch axis, in the network's dtype."""
        latent = latent[None] if latent.dim() == 4 else latent
        sizes = ("batch", self.latent_channels, "frames", "height", "width")
        check_tensor(latent, "The video decoder", "latents", sizes)
        return latent.to(self.conv_in.conv.weight.dtype)

    def check_sides(self, sides: Iterable[int]) -> None:
        """Refuse a video or tile whose edge has nothing to reflect."""
        if self.conv_in.conv.padding_mode == "reflect" and min(sides) < 2:
            least = 2 * self.video_downscale_factors.height
            raise ShapeError(
                "The video decoder reflects edges, which a side of 1 latent does not allow; "
                f"use sides, and tiles, of {least} pixels or more."
            )

    def _scaled_timestep(self, z: torch.Tensor, timestep: torch.Tensor | float | None) -> torch.Tensor | None:
        if not self.timestep_conditioning:
            return None
        given = self.decode_timestep if timestep is None else timestep
        levels = torch.as_tensor(given, dtype=z.dtype, device=z.device).flatten()
        if len(levels) not in (1, len(z)):
            raise ShapeError(
                f"The video decoder takes one timestep, or one for each of {len(z)} samples, not {len(levels)}."
            )
        return levels.expand(len(z)) * self.timestep_scale_multiplier.to(z)

    def _last_modulation(self, x: torch.Tensor, timestep: torch.Tensor | None) -> torch.Tensor:
        if timestep is None:
            return x
        embedding = self.last_time_embedder(timestep, x.dtype)
        return modulate(x, *modulation(self.last_scale_shift_table, embedding, x.dtype))

    @property
    def can_stream(self) -> bool:
        """Whether `streamed_decode` serves: all layers are local in time, and none draws noise."""
        return not self.timestep_conditioning and can_stream([*self.up_blocks, self.conv_norm_out])

    def streamed_decode(self, latent: torch.Tensor, piece_bytes: int = PIECE_BYTES) -> Iterator[torch.Tensor]:
        """Chunks (B, 3, f, H, W) of 8 frames whose concatenation is `forward`'s result: no seams, and memory that
        does not grow with the number of frames.

        piece_bytes: what a layer takes or gives at once, if that is not less than two frames. Raises what
        `forward` raises, and `InputError` for a decoder that is not `can_stream`.
        """
        if not self.can_stream:
            raise InputError(
                "This video decoder looks at the whole clip at once; decode it in one piece or in tiles."
            )
        dtype, latent = latent.dtype, self._batched(latent)
        self.check_sides(latent.shape[3:])
        layers = [
            Convolution(self.conv_in, self.causal),
            *(layer for block in self.up_blocks for layer in layers_of(block, self.causal)),
            Convolution(self.conv_out, self.causal, partial(activated, self.conv_norm_out)),
        ]
        pieces = stream(layers, self.per_channel_statistics.un_normalize(latent), piece_bytes)
        yield from regrouped((unpatchify(x, self.patch_size).to(dtype) for x in pieces), FRAMES_AT_A_TIME)

    def tiled_decode(
        self,
        latent: torch.Tensor,
        tiling_config: AnyTiling | None = None,
        timestep: torch.Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[torch.Tensor]:
        """Chunks (B, 3, f, H, W) whose concatenation is the whole video; memory is bounded by one temporal
        tile of it. Tiles are decoded in the order time, height, width, and blended where they overlap.

        Raises what `forward` raises, and `InputError` for sizes that leave no tile, at the first chunk."""
        dtype, latent = latent.dtype, self._batched(latent)
        factors = self.video_downscale_factors
        groups = decode_groups(tiling_config, tuple(latent.shape[2:]))
        self.check_sides([side.length for tile in groups[0].tiles for side in (tile.height, tile.width)])
        height, width = latent.shape[3] * factors.height, latent.shape[4] * factors.width

        def decoded() -> Iterator[tuple]:
            for group in groups:
                weights = spatial_weights(group.tiles, height, width, latent.device)
                shape = (latent.shape[0], self.out_channels, group.time.length, height, width)
                frames = torch.zeros(shape, dtype=torch.float32, device=latent.device)
                for tile in group.tiles:
                    part = self(latent[tile.latents], timestep, generator)
                    place = frames[(..., *tile.place)]
                    check_tile("decoder", part, place)
                    place += part * tile.spatial_mask(latent.device)
                yield group.time, frames / weights

        for frames in overlap_add(decoded()):
            yield frames.to(dtype)


@torch.no_grad()
def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """(3, F, H, W) in [-1, 1] to uint8 (F, H, W, 3): floor(255 clamp((x + 1) / 2, 0, 1))."""
    return ((video.float() + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(1, 2, 3, 0)


def decode_video(
    latent: torch.Tensor,
    video_decoder: VideoDecoder,
    tiling_config: AnyTiling | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[torch.Tensor]:
    """uint8 chunks (f, height, width, 3) of the first sample; lazy, and without gradients.

    latent: (1, C, F, H, W) normalised. tiling_config: None decodes in one piece, `AUTO_TILING` in exact ones
    if the decoder allows it, else, as sizes ask for, in blended tiles.
    """
    if tiling_config is None:
        with torch.no_grad():
            chunk = video_decoder(latent, None, generator)
        yield to_uint8(chunk[0])
        return
    if isinstance(tiling_config, AutoTiling) and video_decoder.can_stream:
        chunks = video_decoder.streamed_decode(latent)
    else:
        chunks = video_decoder.tiled_decode(latent, tiling_config, None, generator)
    while True:
        with torch.no_grad():  # only while decoding: a generator must not leave the caller's mode changed
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield to_uint8(chunk[0])
