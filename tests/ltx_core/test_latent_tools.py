"""Latent tools: initial states, round trips between grid and tokens, clearing."""

from dataclasses import replace

import pytest
import torch

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import ConditioningItemAttentionStrengthWrapper, VideoConditionByKeyframeIndex
from ltx_core.errors import ShapeError
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, GeneratedKeyframeLayout, VideoLatentShape

CPU = torch.device("cpu")
VIDEO = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(2, 4, 3, 2, 3), fps=24.0)
AUDIO = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(2, 4, 5, 3))


@pytest.mark.parametrize("tools", [VIDEO, AUDIO])
def test_initial_state_round_trip(tools):
    latent = torch.randn(tools.target_shape)
    state = tools.create_initial_state(CPU, torch.bfloat16, latent)
    assert state.latent.dtype == torch.float32
    assert state.latent.shape[1] == tools.target_shape.token_count()
    assert state.positions.dtype == torch.float32
    back = tools.unpatchify(state)
    assert torch.equal(back.latent, latent)
    assert back.denoise_mask.shape == tools.target_shape.mask_shape()
    assert torch.equal(tools.patchify(back).latent, state.latent)


@pytest.mark.parametrize("tools", [VIDEO, AUDIO])
def test_initial_state_without_latent_is_zero_and_unmasked(tools):
    state = tools.create_initial_state(CPU, torch.bfloat16)
    assert state.latent.dtype == torch.bfloat16
    assert state.latent.abs().sum() == 0
    assert state.denoise_mask.dtype == torch.float32
    assert state.denoise_mask.min() == 1


def test_wrong_initial_latent_names_both_shapes():
    with pytest.raises(ShapeError, match=r"\(1, 4, 2, 2, 2\).*frames=3") as caught:
        VIDEO.create_initial_state(CPU, torch.float32, torch.zeros(1, 4, 2, 2, 2))
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, ValueError)


def test_clean_latent_is_independent_of_the_latent():
    state = VIDEO.create_initial_state(CPU, torch.float32, torch.zeros(VIDEO.target_shape))
    state.latent.add_(1)
    assert state.clean_latent.sum() == 0


def test_positions_are_seconds_and_pixels():
    positions = VIDEO.create_initial_state(CPU, torch.bfloat16).positions
    assert positions[0, 0, 0].tolist() == pytest.approx([0, 1 / 24])
    assert positions[0, 0, -1].tolist() == pytest.approx([9 / 24, 17 / 24])
    assert positions[0, 1:, -1].tolist() == [[32, 64], [64, 96]]
    even = replace(VIDEO, causal_fix=False).positions()
    assert torch.equal(even[0, 0, ::6] * 24, torch.tensor([[0.0, 8.0], [8.0, 16.0], [16.0, 24.0]]))


def test_keyframes_mask_marks_latent_frame_0():
    state = VIDEO.create_initial_state(CPU, torch.float32)
    assert state.keyframes_mask[0, :, 0].tolist() == [1.0] * 6 + [0.0] * 12


def test_clear_conditioning_drops_appended_tokens():
    state = VIDEO.create_initial_state(CPU, torch.float32)
    keyframe = VideoConditionByKeyframeIndex(torch.ones(2, 4, 1, 2, 3), 8, 1.0)
    more = ConditioningItemAttentionStrengthWrapper(keyframe, 0.5).apply_to(state, VIDEO)
    assert more.attention_mask is not None
    cleared = VIDEO.clear_conditioning(more)
    assert cleared.latent.shape == state.latent.shape
    assert torch.equal(cleared.positions, state.positions)
    assert cleared.denoise_mask.min() == 1
    assert cleared.attention_mask is None
    assert cleared.keyframes_mask is None


@pytest.mark.parametrize("layout", [((0,), 5, 18), ((0,), 6, 18)])
def test_keyframe_slots_that_do_not_fit(layout):
    state = VIDEO.create_initial_state(CPU, torch.float32)
    state = replace(state, generated_keyframe_layout=GeneratedKeyframeLayout(*layout))
    with pytest.raises(ShapeError, match="slot"):
        VIDEO.clear_conditioning(state)
