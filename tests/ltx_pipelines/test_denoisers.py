"""Denoising functions: which passes reach the transformer, and what becomes of them."""

from types import SimpleNamespace

import pytest
import torch

from ltx_core.components.guiders import (
    CFGGuider,
    MultiModalGuider,
    MultiModalGuiderFactory,
    MultiModalGuiderParams,
)
from ltx_core.errors import InputError
from ltx_core.types import LatentState
from ltx_pipelines.generate import guided_denoising_func
from ltx_pipelines.utils.denoisers import (
    FactoryGuidedDenoiser,
    GuidedDenoiser,
    guider_denoising_func,
    multi_modal_guider_denoising_func,
    multi_modal_guider_factory_denoising_func,
    simple_denoising_func,
)
from ltx_pipelines.utils.states import freeze

POSITIVE, NEGATIVE = torch.full((1, 2, 3), 1.0), torch.full((1, 2, 3), -1.0)
SIGMAS = torch.tensor([1.0, 0.7, 0.4, 0.0])


def state(tokens):
    latent = torch.ones(1, tokens, 4)
    return LatentState(latent, torch.ones(1, tokens, 1), torch.zeros(1, 1, tokens, 2), latent)


VIDEO, AUDIO = state(6), state(3)


class Recorder:
    """A transformer whose estimate is the mean of its context; keeps the calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, video, audio, perturbations=None):
        self.calls.append((video, audio, perturbations))
        return tuple(m and torch.full_like(m.latent, m.context.mean().item()) for m in (video, audio))


def guider(negative=NEGATIVE, **params):
    return MultiModalGuider(MultiModalGuiderParams(**params), negative)


def multimodal(video, audio, model):
    return multi_modal_guider_denoising_func(video, audio, POSITIVE, POSITIVE, model)


def test_simple_is_one_pass_without_perturbations():
    model = Recorder()
    video, audio = simple_denoising_func(POSITIVE, NEGATIVE, model)(VIDEO, AUDIO, SIGMAS, 1)
    assert (video.mean(), audio.mean()) == (1, -1)
    (call,) = model.calls
    assert call[0].sigma == SIGMAS[1]
    assert torch.equal(call[0].timesteps, torch.full((1, 6, 1), SIGMAS[1].item()))
    assert call[2] is None


def test_frozen_streams_are_shown_at_sigma_0():
    model = Recorder()
    simple_denoising_func(POSITIVE, POSITIVE, model)(VIDEO, freeze(AUDIO), SIGMAS, 0)
    video, audio, _ = model.calls[0]
    assert (video.sigma, audio.sigma) == (1, 0)
    assert audio.timesteps.abs().max() == 0


def test_single_guider():
    model = Recorder()
    denoise = guider_denoising_func(CFGGuider(3.0), POSITIVE, NEGATIVE, POSITIVE, NEGATIVE, model)
    video, audio = denoise(VIDEO, AUDIO, SIGMAS, 0)
    assert video.mean() == 1 + 2 * 2
    assert audio.mean() == 5
    off = guider_denoising_func(CFGGuider(1.0), POSITIVE, NEGATIVE, POSITIVE, NEGATIVE, model)
    off(VIDEO, AUDIO, SIGMAS, 0)
    assert len(model.calls) == 3


def test_multimodal_cfg_uses_each_streams_negative_context():
    model = Recorder()
    denoise = multimodal(guider(cfg_scale=3.0), guider(negative=None), model)
    video, audio = denoise(VIDEO, AUDIO, SIGMAS, 0)
    assert len(model.calls) == 2
    assert model.calls[1][1].context is POSITIVE
    assert (video.mean(), audio.mean()) == (5, 1)


def test_skipped_steps_reuse_the_last_estimate():
    model = Recorder()
    denoise = multimodal(guider(cfg_scale=3.0, skip_step=1), guider(skip_step=2), model)
    first = denoise(VIDEO, AUDIO, SIGMAS, 0)
    assert len(model.calls) == 2
    second = denoise(VIDEO, AUDIO, SIGMAS, 1)
    assert len(model.calls) == 2
    assert second[0] is first[0]
    third = denoise(VIDEO, AUDIO, SIGMAS, 2)
    video, audio, _ = model.calls[-1]
    assert (video.enabled, audio.enabled) == (True, False)
    assert third[1] is first[1]
    assert third[0] is not first[0]


def test_a_skipped_first_step_is_computed_unless_a_last_estimate_is_given():
    model, last = Recorder(), torch.full((1, 6, 4), 7.0)
    plain = (guider(skip_step=1), guider(skip_step=1), POSITIVE, POSITIVE, model)
    assert multi_modal_guider_denoising_func(*plain)(VIDEO, AUDIO, SIGMAS, 1)[0].mean() == 1
    denoise = multi_modal_guider_denoising_func(*plain, last_denoised_video=last, last_denoised_audio=last)
    assert denoise(VIDEO, AUDIO, SIGMAS, 1)[0] is last


def test_cfg_without_negative_context():
    with pytest.raises(InputError, match="negative"):
        multimodal(guider(negative=None, cfg_scale=3.0), guider(), Recorder())(VIDEO, AUDIO, SIGMAS, 0)


def test_factory_follows_sigma():
    bins = {1.0: MultiModalGuiderParams(cfg_scale=3.0), 0.5: MultiModalGuiderParams()}
    factory, model = MultiModalGuiderFactory.from_dict(bins, NEGATIVE), Recorder()
    denoise = multi_modal_guider_factory_denoising_func(factory, None, POSITIVE, POSITIVE, model)
    counts = []
    for i in range(3):
        denoise(VIDEO, AUDIO, SIGMAS, i)
        counts.append(len(model.calls))
    assert counts == [2, 4, 5]


@pytest.mark.parametrize("kind", [GuidedDenoiser, FactoryGuidedDenoiser])
def test_results_tell_the_passes(kind):
    denoiser = kind(POSITIVE, POSITIVE, force_uncond_pass=True)
    video, audio = denoiser(Recorder(), VIDEO, AUDIO, SIGMAS, 0)
    assert video.cond is not None
    assert video.uncond is not None
    assert video.ptb is None
    assert torch.equal(audio.denoised, audio.cond)


def test_absent_stream():
    model = Recorder()
    denoiser = GuidedDenoiser(POSITIVE, None, guider(cfg_scale=2.0), guider(stg_scale=1.0))
    video, audio = denoiser(model, VIDEO, None, SIGMAS, 0)
    assert audio is None
    assert video.denoised.mean() == 3
    assert len(model.calls) == 2
    assert all(call[1] is None for call in model.calls)


def contexts(*tensors):
    return [SimpleNamespace(video_encoding=t, audio_encoding=t) for t in tensors]


def test_guided_denoising_func_of_a_stage():
    model = Recorder()
    plain = guided_denoising_func(model, contexts(POSITIVE), None)
    assert plain(VIDEO, AUDIO, SIGMAS, 0)[0].mean() == 1
    guidance = SimpleNamespace(video=MultiModalGuiderParams(cfg_scale=2.0), audio=MultiModalGuiderParams())
    guided = guided_denoising_func(model, contexts(POSITIVE, NEGATIVE), guidance)
    assert guided(VIDEO, AUDIO, SIGMAS, 0)[0].mean() == 3
    unguided = SimpleNamespace(video=MultiModalGuiderParams(), audio=MultiModalGuiderParams())
    assert guided_denoising_func(model, contexts(POSITIVE), unguided)(VIDEO, AUDIO, SIGMAS, 0)[0].mean() == 1
