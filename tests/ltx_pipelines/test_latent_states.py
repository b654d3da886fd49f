"""States over a stage: order of random draws, what a stage returns, small formulas."""

import pytest
import torch

from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.conditioning import VideoConditionByKeyframeIndex
from ltx_core.errors import ShapeError
from ltx_core.types import VideoPixelShape
from ltx_pipelines.utils.samplers import euler_denoising_loop
from ltx_pipelines.utils.states import (
    denoise_audio_video,
    denoise_video_only,
    noise_audio_state,
    noise_video_state,
    post_process_latent,
    timesteps_from_mask,
)
from ltx_pipelines.utils.types import PipelineComponents

CPU, SHAPE = torch.device("cpu"), VideoPixelShape(1, 9, 64, 64, 24.0)
COMPONENTS = PipelineComponents(dtype=torch.float32, device=CPU)
COMMON = (COMPONENTS, torch.float32, CPU)


def noiser(seed=3):
    return GaussianNoiser(torch.Generator().manual_seed(seed))


def run(function, conditionings=(), **given):
    seen = []

    def loop(sigmas, video, audio, stepper):
        seen.extend((video, audio))
        return euler_denoising_loop(
            sigmas, video, audio, stepper, lambda v, a, s, i: (v.latent * 0.5, a.latent * 0.5)
        )

    sigmas = torch.tensor([1.0, 0.5, 0.0])
    result = function(
        SHAPE, list(conditionings), noiser(), sigmas, EulerDiffusionStep(), loop, *COMMON, **given
    )
    return result, seen


def test_shapes_of_a_stage():
    (video, audio), (start, _) = run(denoise_audio_video)
    assert video.latent.shape == (1, 128, 2, 2, 2)
    assert audio.latent.shape == (1, 8, 9, 16)
    assert start.latent.shape == (1, 8, 128)


def test_appended_tokens_are_noised_and_dropped():
    keyframe = VideoConditionByKeyframeIndex(torch.ones(1, 128, 1, 2, 2), 8, 1.0)
    (video, _), (start, _) = run(denoise_audio_video, [keyframe])
    assert start.latent.shape == (1, 12, 128)
    assert start.latent[:, 8:].min() == 1
    assert video.latent.shape == (1, 128, 2, 2, 2)


def test_video_only_keeps_the_sound_and_its_place_in_the_random_stream():
    sound = torch.full((1, 8, 9, 16), 2.0)
    video, (noised, audio) = run(denoise_video_only, initial_audio_latent=sound)
    assert audio.frozen
    assert audio.denoise_mask.sum() == 0
    assert audio.latent.unique().tolist() == [2.0]
    both = run(denoise_audio_video)[1]
    assert torch.equal(noised.latent, both[0].latent)
    assert video.latent.shape == (1, 128, 2, 2, 2)


def test_video_noise_is_drawn_before_audio_noise():
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(1, 8, 128, generator=generator), torch.randn(1, 9, 128, generator=generator)
    one = noiser()
    assert torch.equal(noise_video_state(SHAPE, one, [], *COMMON)[0].latent, first)
    assert torch.equal(noise_audio_state(SHAPE, one, [], *COMMON)[0].latent, second)


def test_initial_latent_of_another_length():
    with pytest.raises(ShapeError, match="9"):
        noise_audio_state(SHAPE, noiser(), [], *COMMON, 1.0, torch.zeros(1, 8, 5, 16))


def test_timesteps_take_one_sigma_or_one_per_item_or_token():
    mask = torch.tensor([1.0, 0.5]).view(1, 2, 1).expand(2, 2, 1)
    assert timesteps_from_mask(mask, 0.5)[0, :, 0].tolist() == [0.5, 0.25]
    assert timesteps_from_mask(mask, torch.tensor([1.0, 2.0]))[:, 1, 0].tolist() == [0.5, 1.0]
    assert timesteps_from_mask(mask, torch.tensor([[[0.5], [1.0]]]))[:, :, 0].tolist() == [[0.5, 0.5]] * 2


def test_post_process_blends_in_float32():
    denoised, clean = torch.full((1, 1, 1), 3.0).bfloat16(), torch.full((1, 1, 1), 1.0).bfloat16()
    got = post_process_latent(denoised, torch.full((1, 1, 1), 0.25), clean)
    assert got.dtype == torch.bfloat16
    assert got.item() == 1.5
