"""The plan of a guided step: which passes, with what, and how they are run."""

import pytest
import torch

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.errors import InputError
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.guidance.plan import TransformerCall, combine, plan_passes, run_passes
from ltx_core.types import Modality

CONTEXT = torch.zeros(1, 2, 3)
BOTH = (True, True)


def guider(**params):
    return MultiModalGuider(MultiModalGuiderParams(**params), CONTEXT)


PLAIN = guider()


def names(*args, **kwargs):
    return [planned.name for planned in plan_passes(*args, **kwargs)]


def test_a_plain_step_is_one_pass():
    assert names((PLAIN, PLAIN), BOTH) == ["cond"]


def test_one_stream_is_enough_to_ask():
    assert names((guider(cfg_scale=3.0), PLAIN), BOTH) == ["cond", "uncond"]
    assert names((PLAIN, guider(stg_scale=1.0)), BOTH) == ["cond", "perturbed"]
    assert names((PLAIN, guider(modality_scale=2.0)), BOTH) == ["cond", "isolated"]
    every = guider(cfg_scale=3.0, stg_scale=1.0, modality_scale=3.0)
    assert names((every, PLAIN), BOTH) == ["cond", "uncond", "perturbed", "isolated"]


def test_skipped_streams_are_disabled_everywhere_and_ask_for_nothing():
    every = guider(cfg_scale=3.0, stg_scale=1.0)
    assert names((every, PLAIN), (False, True)) == ["cond"]
    assert all(planned.enabled == (True, False) for planned in plan_passes((every, PLAIN), (True, False)))
    assert plan_passes((every, every), (False, False)) == []


def test_perturbations():
    first, second = guider(stg_scale=1.0, stg_blocks=[2]), guider(stg_scale=1.0, stg_blocks=None)
    config = plan_passes((first, second), BOTH)[1].perturbations
    video, audio = PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_AUDIO_SELF_ATTN
    assert [config.any_in_batch(video, b) for b in range(4)] == [False, False, True, False]
    assert all(config.any_in_batch(audio, b) for b in range(4))
    only_video = plan_passes((first, PLAIN), BOTH)[1].perturbations
    assert not only_video.any_in_batch(audio, 2)
    isolated = plan_passes((PLAIN, guider(modality_scale=2.0)), BOTH)[1].perturbations
    assert isolated.any_in_batch(PerturbationType.SKIP_A2V_CROSS_ATTN, 7)
    assert isolated.any_in_batch(PerturbationType.SKIP_V2A_CROSS_ATTN, 7)
    assert not isolated.any_in_batch(video, 7)


def test_cfg_without_negative_context():
    bare = MultiModalGuider(MultiModalGuiderParams(cfg_scale=3.0))
    with pytest.raises(InputError, match=r"audio cfg_scale is 3.0.*negative prompt"):
        plan_passes((PLAIN, bare), BOTH)


def test_unconditional_pass_on_demand():
    assert names((PLAIN, None), (True, False), force_uncond=True) == ["cond", "uncond"]


def modality():
    latent = torch.zeros(1, 3, 2)
    return Modality(latent, torch.tensor(1.0), latent[..., :1], torch.zeros(1, 3, 3, 2), CONTEXT)


def test_passes_share_all_but_context_and_flags():
    base, other = TransformerCall(modality(), modality()), torch.ones(1, 2, 3)
    planned = plan_passes((guider(cfg_scale=2.0), PLAIN), (True, False))[1]
    call = base.for_pass(planned, (other, CONTEXT))
    assert call.video.latent is base.video.latent
    assert call.video.timesteps is base.video.timesteps
    assert call.video.context is other
    assert (call.video.enabled, call.audio.enabled) == (True, False)


def test_a_call_counts_the_tokens_of_both_streams():
    assert TransformerCall(modality(), modality()).tokens == 6
    assert TransformerCall(None, modality()).tokens == 3


def test_run_one_by_one_or_together():
    calls = [TransformerCall(modality(), None), TransformerCall(None, modality())]
    assert run_passes(lambda video, audio, perturbations: (video, audio), calls) == [
        (call.video, call.audio) for call in calls
    ]

    class Sharing:
        def run_passes(self, given):
            return [("together", len(given))] * len(given)

    assert run_passes(Sharing(), calls) == [("together", 2)] * 2


def test_combine_uses_the_passes_by_name():
    x = torch.tensor([1.0, 3.0])
    got = combine(guider(cfg_scale=2.0, stg_scale=1.0), {"cond": x, "uncond": x * 0, "perturbed": x})
    assert torch.equal(got, 2 * x)


def test_batches_of_perturbations_have_the_newer_official_forms_too():
    samples = [
        PerturbationConfig([Perturbation(PerturbationType.SKIP_A2V_CROSS_ATTN, [i])]) for i in range(3)
    ]
    batch = BatchedPerturbationConfig(samples, 48, device="cpu", dtype=torch.float32)
    assert batch == BatchedPerturbationConfig(samples)
    assert batch.batch_slice(1, 3) == BatchedPerturbationConfig(samples[1:])
    assert BatchedPerturbationConfig.empty(2, 48, "cpu", torch.float32) == BatchedPerturbationConfig.empty(2)
    for_all = BatchedPerturbationConfig(samples[:1])
    assert for_all.batch_slice(1, 3) == for_all
