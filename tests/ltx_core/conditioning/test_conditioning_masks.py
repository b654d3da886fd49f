"""Attention masks of appended tokens, and pixel masks as token weights."""

import pytest
import torch

from ltx_core.conditioning.mask_utils import build_attention_mask, resolve_cross_mask, update_attention_mask
from ltx_core.conditioning.pixel_mask import downsample_mask
from ltx_core.errors import InputError, ShapeError
from ltx_core.types import LatentState

CPU = torch.device("cpu")


def resolve(mask):
    return resolve_cross_mask(mask, 3, 2, CPU, torch.float32)


def state(mask=None):
    latent = torch.zeros(2, 5, 4)
    return LatentState(latent, latent[..., :1], torch.zeros(2, 3, 5, 2), latent, mask)


@pytest.mark.parametrize(
    "mask", [0.5, torch.tensor(0.5), torch.full((3,), 0.5).double(), torch.full((1, 3), 0.5)]
)
def test_every_form_of_cross_mask(mask):
    assert torch.equal(resolve(mask), torch.full((2, 3), 0.5))
    assert resolve(mask).dtype is torch.float32


def test_a_number_is_not_rounded_to_the_callers_default_dtype(strange_defaults):
    with strange_defaults():
        mask = resolve(0.3)
    assert torch.equal(mask, torch.full((2, 3), 0.3))


@pytest.mark.parametrize("shape", [(4,), (2, 4), (3, 3), (2, 3, 3)])
def test_cross_masks_that_do_not_fit(shape):
    with pytest.raises(InputError, match="attention mask"):
        resolve(torch.ones(shape))


def test_built_mask_is_symmetric_and_separates_references():
    mask = build_attention_mask(None, 4, 3, 5, torch.full((2, 3), 0.3), CPU, torch.float32)
    assert torch.equal(mask, mask.transpose(1, 2))
    assert mask[0, 4, 5:].tolist() == [0, 0, 0]
    assert mask[0, :5, :5].min() == 1
    assert mask[0, 0, 5:].tolist() == pytest.approx([0.3] * 3)


def test_update_keeps_what_exists():
    assert update_attention_mask(state(), None, 4, 3, 2, CPU, torch.float32) is None
    existing = torch.rand(2, 5, 5)
    mask = update_attention_mask(state(existing), None, 4, 3, 2, CPU, torch.float32)
    assert torch.equal(mask[:, :5, :5], existing)
    assert mask[0, 0, 5:].tolist() == [1, 1, 1]


def test_pixel_mask_of_ones_and_its_first_frame():
    mask = torch.ones(1, 1, 9, 64, 64)
    mask[:, :, 0] = 0
    tokens = downsample_mask(mask, (2, 2, 2))
    assert tokens.tolist() == [[0] * 4 + [1] * 4]


def test_pixel_mask_averages_groups():
    mask = torch.zeros(1, 1, 9, 32, 32)
    mask[:, :, 1:3] = 1
    assert downsample_mask(mask, (2, 1, 1)).tolist() == [[0, 0.25]]


def test_single_frame_masks_count_alone():
    assert downsample_mask(torch.ones(1, 1, 1, 32, 32), (1, 1, 1)).tolist() == [[1]]
    assert downsample_mask(torch.ones(2, 1, 9, 32, 32), (1, 1, 1)).shape == (2, 1)


def test_uneven_groups():
    with pytest.raises(ShapeError, match="evenly"):
        downsample_mask(torch.ones(1, 1, 10, 32, 32), (3, 1, 1))
