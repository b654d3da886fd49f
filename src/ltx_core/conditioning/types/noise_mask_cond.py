"""Items that only say where to denoise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltx_core.conditioning.exceptions import ConditioningError
from ltx_core.tools import LatentTools, VideoLatentTools
from ltx_core.types import LatentState


@dataclass(frozen=True)
class TemporalRegionMask:
    """Denoise the tokens that touch the time window (start_time, end_time) in seconds, keep all others.

    Works on video and audio. A window from 0 to 0 keeps everything. fps: of the video, whatever its tools say.
    """

    start_time: float
    end_time: float
    fps: float

    def apply_to(self, latent_state: LatentState, latent_tools: LatentTools) -> LatentState:
        """Raises `ConditioningError` if tokens have been appended: apply it before other items."""
        device = latent_state.denoise_mask.device
        if isinstance(latent_tools, VideoLatentTools):
            times = latent_tools.pixel_coords(latent_tools.target_shape, device)[:, 0] / self.fps
        else:
            times = latent_tools.positions(device)[:, 0]
        if times.shape[1] != latent_state.denoise_mask.shape[1]:
            raise ConditioningError(
                f"The state has {latent_state.denoise_mask.shape[1]} tokens, its target "
                f"{times.shape[1]}; a time window must be the first item."
            )
        start, end = times.unbind(-1)
        inside = (end > self.start_time) & (start < self.end_time)
        return replace(latent_state, denoise_mask=inside[..., None].to(latent_state.denoise_mask.dtype))
