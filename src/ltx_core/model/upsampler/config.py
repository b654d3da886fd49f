"""The configuration of a latent upsampler file; its keys stand at the top level."""

from __future__ import annotations

from dataclasses import dataclass

from ltx_core.config import Count
from ltx_core.errors import ConfigError

# spatial scale -> (numerator, denominator) of the rational resampler
RATIOS = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}


@dataclass(frozen=True)
class UpsamplerConfig:
    """Names and defaults are the file's."""

    in_channels: Count = 128
    mid_channels: Count = 512
    num_blocks_per_stage: int = 4
    dims: int = 3
    spatial_upsample: bool = True
    temporal_upsample: bool = False
    spatial_scale: float = 2.0
    rational_resampler: bool = False

    def __post_init__(self) -> None:
        if not (self.spatial_upsample or self.temporal_upsample):
            raise ConfigError("Either spatial_upsample or temporal_upsample must be True")
        if self.mid_channels % 32:
            raise ConfigError(f"mid_channels is {self.mid_channels}; expected a multiple of 32.")
        if self.dims not in (2, 3) or (
            self.dims == 2 and (self.temporal_upsample or self.rational_resampler)
        ):
            raise ConfigError("dims must be 3, or 2 with plain spatial upsampling.")
        if self.uses_ratio and self.spatial_scale not in RATIOS:
            known = ", ".join(map(str, RATIOS))
            raise ConfigError(f"spatial_scale is {self.spatial_scale}; the rational resampler has {known}.")

    @property
    def uses_ratio(self) -> bool:
        """Only purely spatial upsampling looks at the ratio."""
        return self.rational_resampler and self.spatial_upsample and not self.temporal_upsample
