"""Noise: what a seed fixes, what a mask keeps, what is not touched."""

import torch

from ltx_core.components.noisers import GaussianNoiser
from ltx_core.types import LatentState


def state(mask=1.0, latent=0.0, clean=0.0):
    shape = (1, 6, 4)
    tokens = torch.full(shape, clean)
    return LatentState(
        torch.full(shape, latent), torch.full((1, 6, 1), mask), torch.zeros(1, 3, 6, 2), tokens
    )


def noiser(seed=1):
    return GaussianNoiser(torch.Generator().manual_seed(seed))


def test_same_seed_same_noise_and_global_state_untouched():
    before = torch.random.get_rng_state()
    expected = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        assert torch.equal(noiser()(state(latent=3.0)).latent, expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mask_0_keeps_the_clean_latent():
    assert torch.equal(noiser()(state(mask=0.0, clean=3.0)).latent, torch.full((1, 6, 4), 3.0))


def test_scale_0_keeps_the_latent_but_draws():
    one = noiser()
    assert torch.equal(one(state(latent=2.0), 0.0).latent, torch.full((1, 6, 4), 2.0))
    fresh = noiser()
    fresh(state())
    assert torch.equal(one(state()).latent, fresh(state()).latent)


def test_scale_mixes_before_the_mask():
    noise = noiser()(state()).latent
    mixed = noiser()(state(mask=0.5, latent=2.0, clean=4.0), torch.tensor(0.25)).latent
    assert torch.allclose(mixed, 0.5 * 4 + 0.5 * (0.25 * noise + 0.75 * 2), atol=1e-6)


def test_noise_has_the_dtype_of_the_latent():
    base = state()
    low = LatentState(base.latent.bfloat16(), base.denoise_mask, base.positions, base.clean_latent.bfloat16())
    assert noiser()(low).latent.dtype == torch.bfloat16
