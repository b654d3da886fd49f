"""Counting frames: lengths that a video VAE can hold, and where to put generated keyframes."""

from __future__ import annotations

from collections.abc import Sequence

from ltx_core.errors import InputError
from ltx_core.types import VIDEO_SCALE_FACTORS, SpatioTemporalScaleFactors


def snap_frames_to_grid(frames: int, scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS) -> int:
    """The largest number of frames up to `frames` that is a whole number of latent frames: 8k + 1.

    Raises `InputError` for fewer than 1 frame.
    """
    if frames < 1:
        raise InputError(f"A video of {frames} frames is impossible; give at least 1.")
    return (frames - 1) // scale_factors.time * scale_factors.time + 1


def seconds_to_clamped_num_frames(
    seconds: float,
    *,
    frame_rate: float,
    min_frames: int = 1,
    max_frames: int = 1024,
    scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS,
) -> int:
    """The frames of `seconds` of video, within limits, of a length the VAE can hold if they allow."""
    frames = min(max(round(seconds * frame_rate), min_frames), max_frames)
    snapped = snap_frames_to_grid(frames, scale_factors)
    return snapped if snapped >= min_frames else min(snapped + scale_factors.time, max_frames)


def evenly_spaced_keyframe_positions(num_keyframes: int, num_frames: int) -> list[int]:
    """Pixel frames that cut a video of `num_frames` into equal parts, its first and last frame left out.

    Raises `InputError` for a negative number, or for more keyframes than there are frames between the ends.
    """
    if num_keyframes < 0 or num_frames < num_keyframes + 2:
        raise InputError(
            f"{num_keyframes} keyframes do not fit between the ends of {num_frames} frames; "
            f"give 0 to {max(num_frames - 2, 0)}."
        )
    return [round(k * (num_frames - 1) / (num_keyframes + 1)) for k in range(1, num_keyframes + 1)]


def resolve_generated_keyframes(keyframes: int | Sequence[int], num_frames: int) -> list[int]:
    """Ascending pixel frames of generated keyframes, from how many there shall be or from where they are.

    Raises `InputError` for frames that the video does not have.
    """
    if isinstance(keyframes, int):
        return evenly_spaced_keyframe_positions(keyframes, num_frames)
    positions = sorted(set(keyframes))
    if positions and not 0 <= positions[0] <= positions[-1] < num_frames:
        raise InputError(f"Keyframes at {positions} are outside of frames 0 to {num_frames - 1}.")
    return positions
