"""What a running generation tells its caller, and how the caller stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ltx_core.errors import LTXError
from ltx_core.types import LatentState


class Cancelled(LTXError):
    """The callback asked to stop. The pipeline stays usable and no file is left behind."""


@dataclass(frozen=True)
class Event:
    """One edge of the work.

    stage: "encode prompt", "stage 1", "stage 2", "decode audio" or "write", which decodes
    frames chunk by chunk.
    step, of: how far the stage is, counted from 0; `of` is 0 where it is not known.
    sigma, video_x0, audio_x0: in a denoising stage the noise level and the current estimates, as tokens
    (1, T, 128); else None.
    result: at the end of a denoising stage its (video, audio) latents; else None.
    """

    stage: str
    step: int = 0
    of: int = 0
    sigma: float | None = None
    video_x0: torch.Tensor | None = None
    audio_x0: torch.Tensor | None = None
    result: tuple[LatentState, LatentState] | None = None


# Called at every edge; answering False cancels, anything else (None) goes on.
Callback = Callable[[Event], bool | None]


def tell(callback: Callback | None, event: Event) -> None:
    """Hand `event` to the callback. Raises `Cancelled` if it returns False."""
    if callback is not None and callback(event) is False:
        raise Cancelled(f"Cancelled by the callback in {event.stage}, step {event.step}.")
