"""Shapes and states: arithmetic, round trips, independence of copies."""

import pytest
import torch

from ltx_core.types import (
    Audio,
    AudioLatentShape,
    GeneratedKeyframeLayout,
    LatentState,
    Modality,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
)


def test_video_latent_shape_of_default_size():
    shape = VideoLatentShape.from_pixel_shape(VideoPixelShape(1, 121, 512, 768, 24.0))
    assert shape == (1, 128, 16, 16, 24)
    assert shape.token_count() == 16 * 16 * 24
    assert shape.upscale() == (1, 3, 121, 512, 768)


def test_scale_factors_are_used_by_axis():
    factors = SpatioTemporalScaleFactors(time=4, height=16, width=8)
    shape = VideoLatentShape.from_pixel_shape(VideoPixelShape(1, 9, 64, 64, 24.0), 16, factors)
    assert shape == (1, 16, 3, 4, 8)
    assert shape.upscale(factors) == (1, 3, 9, 64, 64)


def test_audio_frames_round_half_to_even():
    assert [AudioLatentShape.from_duration(1, d).frames for d in (0.02, 0.06, 0.1, 5.0)] == [0, 2, 2, 125]


def test_audio_lasts_as_long_as_the_video():
    video = VideoPixelShape(2, 121, 64, 64, 24.0)
    assert AudioLatentShape.from_video_pixel_shape(video) == (2, 8, 126, 16)
    assert AudioLatentShape.from_video_pixel_shape(video, 4, 32, 24000, 240, 2) == (2, 4, 252, 32)


def test_scale_factors_from_config():
    blocks = [["res_x", {}], ["compress_space_res", {}], ["compress_time_res", {}], ["compress_all_res", {}]]
    config = {"vae": {"encoder_blocks": blocks, "patch_size": 2}}
    assert SpatioTemporalScaleFactors.from_model_config(config) == (4, 8, 8)
    assert SpatioTemporalScaleFactors.from_model_config({}) == (8, 32, 32)


def test_torch_shape_round_trip():
    for shape in (VideoLatentShape(1, 2, 3, 4, 5), AudioLatentShape(1, 2, 3, 4)):
        assert type(shape).from_torch_shape(shape.to_torch_shape()) == shape


def test_clone_shares_no_memory():
    latent = torch.zeros(1, 2, 3)
    state = LatentState(latent, latent[..., :1], torch.zeros(1, 3, 2, 2), latent, frozen=True)
    copy = state.clone()
    copy.latent.fill_(1)
    assert state.latent.sum() == 0
    assert copy.frozen
    assert copy.attention_mask is None


def test_audio_to_returns_a_copy():
    audio = Audio(torch.zeros(2, 4), 24000)
    assert audio.to(dtype=torch.float64).waveform.dtype == torch.float64
    assert audio.waveform.dtype == torch.float32


def test_keyframe_layout():
    layout = GeneratedKeyframeLayout((4, 11), tokens_per_keyframe=6, first_token=30)
    assert (layout.num_keyframes, layout.num_tokens, layout.token_slice) == (2, 12, slice(30, 42))


@pytest.mark.parametrize("shape", [VideoLatentShape(1, 4, 2, 3, 5), AudioLatentShape(1, 4, 2, 3)])
def test_mask_shape_has_one_channel(shape):
    assert shape.mask_shape().channels == 1
    assert shape.mask_shape().frames == shape.frames


def test_a_modality_splits_along_its_batch():
    given = Modality(
        latent=torch.randn(3, 4, 2),
        sigma=torch.tensor(0.5),
        timesteps=torch.rand(3, 4, 1),
        positions=torch.rand(1, 3, 4, 2),
        context=torch.randn(3, 5, 2),
        context_mask=torch.ones(3, 5),
        enabled=False,
    )
    first, second = given.split([1, 2])
    for name in ("latent", "timesteps", "context", "context_mask"):
        assert torch.equal(getattr(first, name), getattr(given, name)[:1])
        assert torch.equal(getattr(second, name), getattr(given, name)[1:])
    assert second.sigma is given.sigma
    assert second.positions is given.positions
    assert second.attention_mask is None
    assert not second.enabled
