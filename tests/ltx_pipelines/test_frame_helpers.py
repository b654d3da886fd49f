"""Counting frames: grids, durations, keyframe positions; and the names that helpers offers."""

import pytest

from ltx_core.errors import InputError
from ltx_pipelines.utils import helpers
from ltx_pipelines.utils.frames import (
    evenly_spaced_keyframe_positions,
    resolve_generated_keyframes,
    seconds_to_clamped_num_frames,
    snap_frames_to_grid,
)


def test_snap():
    assert [snap_frames_to_grid(n) for n in (1, 8, 9, 120, 121)] == [1, 1, 9, 113, 121]
    with pytest.raises(InputError, match="0 frames"):
        snap_frames_to_grid(0)


def test_seconds():
    assert seconds_to_clamped_num_frames(5.0, frame_rate=24.0) == 113
    assert seconds_to_clamped_num_frames(0.0, frame_rate=24.0) == 1
    assert seconds_to_clamped_num_frames(0.3, frame_rate=25.0, min_frames=10) == 17
    assert seconds_to_clamped_num_frames(0.3, frame_rate=25.0, min_frames=10, max_frames=12) == 12


def test_keyframes():
    assert evenly_spaced_keyframe_positions(3, 121) == [30, 60, 90]
    assert evenly_spaced_keyframe_positions(0, 121) == []
    assert resolve_generated_keyframes(1, 121) == [60]
    assert resolve_generated_keyframes([40, 8, 8], 121) == [8, 40]
    for number in (-1, 4):
        with pytest.raises(InputError, match="do not fit"):
            evenly_spaced_keyframe_positions(number, 5)
    assert evenly_spaced_keyframe_positions(3, 5) == [1, 2, 3]
    assert resolve_generated_keyframes([0, 120], 121) == [0, 120]
    for position in (-1, 121):
        with pytest.raises(InputError, match="outside"):
            resolve_generated_keyframes([position], 121)


@pytest.mark.parametrize("name", ["denoise_audio_video", "simple_denoising_func", "euler_denoising_loop"])
def test_helpers_offer_the_official_names(name):
    assert callable(getattr(helpers, name))
    assert name in helpers.__all__


def test_helpers_refuse_other_names():
    with pytest.raises(AttributeError, match="nonsense"):
        helpers.nonsense  # noqa: B018
