"""Guidance: neutral scales, linearity, rescaling, bins of sigmas."""

from types import SimpleNamespace

import pytest
import torch

from ltx_core.components.guiders import (
    CFGGuider,
    CFGStarRescalingGuider,
    LegacyStatefulAPGGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderFactory,
    MultiModalGuiderParams,
    STGGuider,
    create_multimodal_guider_factory,
    projection_coef,
)
from ltx_core.errors import InputError


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 5, 4, generator=generator) for _ in range(2))


def test_neutral_scales_are_disabled_and_do_nothing(pair):
    for guider in (CFGGuider(1.0), CFGStarRescalingGuider(1.0), STGGuider(0.0), LtxAPGGuider(1.0)):
        assert not guider.enabled()
        assert guider.delta(*pair).abs().max() == 0


def test_apg_without_options_is_cfg(pair):
    assert torch.allclose(LtxAPGGuider(4.0).delta(*pair), CFGGuider(4.0).delta(*pair), atol=1e-5)


def test_apg_is_per_batch_item(pair):
    cond, uncond = pair
    whole = LtxAPGGuider(4.0, eta=0.3).delta(cond, uncond)
    for b in range(2):
        alone = LtxAPGGuider(4.0, eta=0.3).delta(cond[b : b + 1], uncond[b : b + 1])
        assert torch.allclose(whole[b : b + 1], alone, atol=1e-5)


def test_apg_limits_the_norm(pair):
    delta = LtxAPGGuider(2.0, norm_threshold=0.5).delta(*pair)
    assert delta.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_projection_of_a_multiple(pair):
    assert torch.allclose(projection_coef(3 * pair[0], pair[0]), torch.full((2, 1), 3.0))


def test_legacy_apg_remembers(pair):
    guider = LegacyStatefulAPGGuider(2.0, 1.0, norm_threshold=0.0, momentum=0.5)
    first = guider.delta(*pair)
    assert torch.allclose(guider.delta(*pair), 1.5 * first, atol=1e-5)


def test_neutral_multimodal_guider_returns_cond(pair):
    guider = MultiModalGuider(MultiModalGuiderParams())
    assert torch.equal(guider.calculate(pair[0], pair[1], 0.0, 0.0), pair[0])
    assert not guider.do_unconditional_generation()
    assert not guider.do_perturbed_generation()
    assert not guider.do_isolated_modality_generation()


def test_full_rescale_restores_the_deviation(pair):
    guider = MultiModalGuider(MultiModalGuiderParams(cfg_scale=5.0, rescale_scale=1.0))
    assert guider.calculate(*pair, 0.0, 0.0).std().item() == pytest.approx(pair[0].std().item(), rel=1e-4)


def test_bfloat16_is_guided_in_float32(pair):
    guider = MultiModalGuider(MultiModalGuiderParams(cfg_scale=3.0, rescale_scale=0.7))
    low = [x.bfloat16() for x in pair]
    got = guider.calculate(*low, 0.0, 0.0)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, guider.calculate(*(x.float() for x in low), 0.0, 0.0).bfloat16())


def test_skip_step():
    guider = MultiModalGuider(MultiModalGuiderParams(skip_step=2))
    assert [guider.should_skip_step(i) for i in range(5)] == [False, True, True, False, True]
    assert not MultiModalGuider(MultiModalGuiderParams()).should_skip_step(1)


def test_factory_bins():
    bins = {0.5: MultiModalGuiderParams(cfg_scale=2), 1.0: MultiModalGuiderParams(cfg_scale=3)}
    factory = MultiModalGuiderFactory.from_dict(bins)
    found = [factory.params(s).cfg_scale for s in (1.5, 1.0, 0.51, 0.5, 0.0)]
    assert found == [3, 3, 3, 2, 2]
    assert factory.build_from_sigma(torch.tensor(0.7)).params.cfg_scale == 3


def test_empty_factories():
    with pytest.raises(InputError, match="at least one"):
        MultiModalGuiderFactory.from_dict({})
    with pytest.raises(InputError, match="no parameters"):
        MultiModalGuiderFactory().params(0.5)


def test_create_factory_takes_params_or_factory():
    params, context = MultiModalGuiderParams(cfg_scale=2), torch.zeros(1)
    made = create_multimodal_guider_factory(params, context)
    assert made.params(0.3) is params
    assert made.negative_context is context
    assert create_multimodal_guider_factory(made) is made
    assert create_multimodal_guider_factory(made, context) is made
    own = SimpleNamespace(cfg_scale=2)  # parameters of a class of the caller's
    assert create_multimodal_guider_factory(own).build_from_sigma(0.3).params is own
    other = create_multimodal_guider_factory(made, torch.ones(1))
    assert other.negative_context == 1
    assert other.params(0.3) is params
