"""The denoising loop and its samplers: exactness, seeds, masks, absent streams, events, cancelling."""

import math

import pytest
import torch

from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerCfgPpDiffusionStep,
    EulerDiffusionStep,
    Res2sDiffusionStep,
)
from ltx_core.errors import InputError
from ltx_core.types import LatentState
from ltx_pipelines.events import Cancelled
from ltx_pipelines.utils.res2s import _fixpoint, extended, get_res2s_coefficients, normalized_noise, phi
from ltx_pipelines.utils.samplers import (
    euler_ancestral_denoising_loop,
    euler_cfg_pp_denoising_loop,
    euler_denoising_loop,
    gradient_estimating_euler_denoising_loop,
    res2s_audio_video_denoising_loop,
)
from ltx_pipelines.utils.states import freeze
from ltx_pipelines.utils.types import DenoisedLatentResult

F32 = {"model_dtype": torch.float32}
LOOPS = {
    "euler": (euler_denoising_loop, EulerDiffusionStep(), {}),
    "gradient": (gradient_estimating_euler_denoising_loop, EulerDiffusionStep(), {}),
    "res2s": (res2s_audio_video_denoising_loop, Res2sDiffusionStep(), F32),
    "ancestral": (euler_ancestral_denoising_loop, EulerAncestralDiffusionStep(), F32),
    "cfg++": (euler_cfg_pp_denoising_loop, EulerCfgPpDiffusionStep(), F32),
}
SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.0])
TARGETS = (torch.full((1, 6, 4), 2.0), torch.full((1, 3, 4), -1.0))


def state(tokens, seed, mask=None):
    noise = torch.randn(1, tokens, 4, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(1, tokens, 1) if mask is None else mask
    return LatentState(noise, mask, torch.zeros(1, 1, tokens, 2), torch.full_like(noise, 9.0))


def states():
    return state(6, 0), state(3, 1)


def perfect(video_state, audio_state, sigmas, step_index):
    """A model that knows the answer."""
    given = (video_state, audio_state)
    return tuple(None if s is None else DenoisedLatentResult(t, t) for s, t in zip(given, TARGETS))


def nonlinear(video_state, audio_state, sigmas, step_index):
    return tuple(
        None if s is None else DenoisedLatentResult(torch.tanh(s.latent + 0.3), s.latent * 0.5)
        for s in (video_state, audio_state)
    )


@pytest.fixture(params=list(LOOPS))
def loop(request):
    function, stepper, options = LOOPS[request.param]

    def run(video, audio, denoise_fn, sigmas=SIGMAS, **more):
        return function(sigmas, video, audio, stepper, denoise_fn, **options, **more)

    return run


def test_a_perfect_model_is_followed_to_its_answer(loop):
    for got, want in zip(loop(*states(), perfect), TARGETS):
        assert torch.allclose(got.latent, want, atol=1e-5)


def test_tokens_kept_in_part_end_in_the_blend(loop):
    got, _ = loop(state(6, 0, torch.full((1, 6, 1), 0.25)), state(3, 1), perfect)
    assert torch.allclose(got.latent, 0.25 * TARGETS[0] + 0.75 * 9.0, atol=1e-5)


def test_kept_tokens_stay_clean(loop):
    mask = torch.ones(1, 6, 1)
    mask[:, :2] = 0
    video = state(6, 0, mask)
    video.latent[:, :2] = video.clean_latent[:, :2]
    seen = []

    def denoise(video_state, *rest):
        seen.append(video_state.latent[:, :2])
        return nonlinear(video_state, *rest)

    got, _ = loop(video, state(3, 1), denoise)
    for latent in (*seen, got.latent[:, :2]):
        assert torch.allclose(latent, torch.full((1, 2, 4), 9.0), atol=1e-5)


def test_frozen_streams_stay_as_they_are(loop):
    video, audio = states()
    audio.latent.copy_(audio.clean_latent)
    got = loop(video, freeze(audio), nonlinear)[1]
    assert torch.allclose(got.latent, audio.clean_latent, atol=1e-5)


@pytest.mark.parametrize("absent", [0, 1])
def test_absent_streams_are_passed_through(loop, absent):
    given = list(states())
    given[absent] = None
    got = loop(*given, perfect)
    assert got[absent] is None
    assert torch.allclose(got[1 - absent].latent, TARGETS[1 - absent], atol=1e-5)


def test_a_stream_that_is_there_needs_an_estimate(loop):
    with pytest.raises(InputError, match="returned None in place of an estimate of the audio"):
        loop(*states(), lambda *given: (perfect(*given)[0], None))


def test_same_inputs_same_result_and_nothing_global_moves(loop):
    before = torch.random.get_rng_state()
    first, second = loop(*states(), nonlinear), loop(*states(), nonlinear)
    assert torch.equal(first[0].latent, second[0].latent)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_callers_tensors_are_left_alone(loop):
    video, audio = states()
    sigmas, latent = SIGMAS.clone(), video.latent.clone()
    loop(video, audio, nonlinear, sigmas)
    assert torch.equal(sigmas, SIGMAS)
    assert torch.equal(video.latent, latent)


def test_no_gradients(loop):
    weight = torch.ones(1, requires_grad=True)

    def denoise(v, a, sigmas, i):
        return tuple(DenoisedLatentResult(s.latent * weight, s.latent * weight) for s in (v, a))

    assert not loop(*states(), denoise)[0].latent.requires_grad


def test_events_tell_every_evaluation(loop):
    events = []
    loop(*states(), perfect, callback=events.append, stage="stage 1")
    assert {event.stage for event in events} == {"stage 1"}
    assert [event.sigma for event in events] == sorted((e.sigma for e in events), reverse=True)
    assert events[-1].step == events[-1].of - 1
    assert torch.equal(events[0].video_x0, TARGETS[0])


def test_a_callback_cancels(loop):
    calls = []

    def stop(event):
        calls.append(event)
        return False

    with pytest.raises(Cancelled, match="denoise"):
        loop(*states(), perfect, callback=stop)
    assert len(calls) == 1


def test_denoiser_call_form(loop):
    function, stepper, options = LOOPS["res2s"]
    seen = []

    def denoiser(transformer, v, a, sigmas, i):
        seen.append(transformer)
        return nonlinear(v, a, sigmas, i)

    plain = function(SIGMAS, *states(), stepper, nonlinear, **options)
    for call in (("model", denoiser), ("model",), ()):
        keywords = dict(zip(("denoiser", "transformer"), (denoiser, "model")[: 2 - len(call)]))
        got = function(SIGMAS, *states(), stepper, *call, **keywords, **options)
        assert torch.equal(got[0].latent, plain[0].latent)
    assert set(seen) == {"model"}


@pytest.mark.parametrize("name", ["res2s", "ancestral", "cfg++"])
def test_noise_follows_its_seed(name):
    function, stepper, options = LOOPS[name]
    runs = [function(SIGMAS, *states(), stepper, nonlinear, noise_seed=s, **options) for s in (1, 1, 2)]
    assert torch.equal(runs[0][0].latent, runs[1][0].latent)
    assert not torch.equal(runs[0][0].latent, runs[2][0].latent)


@pytest.mark.parametrize("name", ["res2s", "ancestral", "cfg++"])
def test_foreign_steppers_are_refused(name):
    function, _, options = LOOPS[name]
    with pytest.raises(InputError, match="EulerDiffusionStep"):
        function(SIGMAS, *states(), EulerDiffusionStep(), perfect, **options)


def test_cfg_pp_needs_the_unconditional_estimate():
    function, stepper, options = LOOPS["cfg++"]
    with pytest.raises(InputError, match="force_uncond_pass"):
        function(SIGMAS, *states(), stepper, lambda v, a, s, i: TARGETS, **options)


def test_gradient_estimation_with_gamma_1_is_euler():
    euler = euler_denoising_loop(SIGMAS, *states(), EulerDiffusionStep(), nonlinear)
    other = gradient_estimating_euler_denoising_loop(SIGMAS, *states(), EulerDiffusionStep(), nonlinear, 1.0)
    assert torch.allclose(euler[0].latent, other[0].latent, atol=1e-5)


def test_res2s_evaluates_twice_a_step_and_once_at_the_end():
    levels = []

    def denoise(v, a, sigmas, i):
        levels.append(round(float(sigmas[i]), 4))
        return perfect(v, a, sigmas, i)

    res2s_audio_video_denoising_loop(SIGMAS, *states(), Res2sDiffusionStep(), denoise)
    middles = [math.sqrt(a * b) for a, b in ((1, 0.8), (0.8, 0.5), (0.5, 0.0011))]
    expected = [1.0, middles[0], 0.8, middles[1], 0.5, middles[2], 0.0011]
    assert levels == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("levels", "corrected"), [((1.0, 0.61), 1), ((1.0, 0.6), 0), ((0.031, 0.02), 1), ((0.029, 0.02), 0)]
)
def test_res2s_corrects_the_start_of_small_steps_above_a_level(levels, corrected):
    results = [
        res2s_audio_video_denoising_loop(
            torch.tensor(levels), *states(), Res2sDiffusionStep(), nonlinear, bongmath=bongmath, **F32
        )[0].latent
        for bongmath in (False, True)
    ]
    assert torch.equal(*results) != bool(corrected)


def test_res2s_works_in_model_dtype():
    got = res2s_audio_video_denoising_loop(SIGMAS, *states(), Res2sDiffusionStep(), perfect)
    assert got[0].latent.dtype == torch.bfloat16


@pytest.mark.parametrize("iterations", [-1, 0, 1, 3, 100])
def test_fixpoint_in_closed_form(iterations):
    start, middle, estimate = (torch.tensor([x], dtype=torch.float64) for x in (0.3, -1.2, 0.7))
    x = start
    for _ in range(iterations):
        x = middle - 0.2 * (estimate - x)
    assert torch.allclose(_fixpoint(start, middle, estimate, 0.2, iterations), x, atol=1e-14)


def test_coefficients_sum_to_phi_1_and_use_the_cache():
    cache = {}
    a21, b1, b2 = get_res2s_coefficients(0.3, cache)
    assert b1 + b2 == pytest.approx(phi(1, -0.3))
    assert 0.3 * a21 == pytest.approx(1 - math.exp(-0.15))
    assert get_res2s_coefficients(0.3, cache) == (a21, b1, b2)
    assert len(cache) == 3


def test_phi_is_continuous_at_0():
    for j in (1, 2):
        assert phi(j, 1e-4) == pytest.approx(phi(j, 0.0), rel=1e-3)


def test_normalized_noise_has_unit_deviation_per_item():
    noise = normalized_noise(torch.empty(2, 5, 4), torch.Generator().manual_seed(0))
    assert noise.dtype == torch.float64
    assert noise.mean(dim=(1, 2)).abs().max() < 1e-12
    assert torch.allclose(noise.std(dim=(1, 2)), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["gradient", "ancestral", "cfg++"])
def test_once_level_0_is_reached_nothing_is_left_to_do(name):
    function, stepper, options = LOOPS[name]
    results = [
        function(torch.tensor(sigmas), *states(), stepper, nonlinear, **options)
        for sigmas in ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0, 0.0])
    ]
    for one, two in zip(*results):
        assert torch.equal(one.latent, two.latent)


@pytest.mark.parametrize(
    "sigmas",
    [
        [],
        [1.0, 0.5, 0.5, 0.0],
        [1.0, 0.0, 0.0],
        [0.0, 0.5],
        [0.5, 0.0011, 0.0],  # where the last step ends
        [1.0, -0.5],
        [math.inf, 1.0, 0.0],
        [1.0, math.nan, 0.0],
    ],
)
def test_res2s_refuses_levels_without_a_step_between_them(sigmas):
    with pytest.raises(InputError, match="res_2s cannot step along"):
        res2s_audio_video_denoising_loop(torch.tensor(sigmas), *states(), Res2sDiffusionStep(), nonlinear)


@pytest.mark.parametrize("name", ["res2s", "ancestral", "cfg++"])
def test_noise_needs_a_stream(name):
    function, stepper, options = LOOPS[name]
    with pytest.raises(InputError, match="neither a video nor an audio state"):
        function(SIGMAS, None, None, stepper, nonlinear, **options)


def test_extended_schedule():
    assert extended(SIGMAS).tolist() == pytest.approx([1.0, 0.8, 0.5, 0.0011, 0.0])
    open_ended = torch.tensor([1.0, 0.5])
    assert torch.equal(extended(open_ended), open_ended)
