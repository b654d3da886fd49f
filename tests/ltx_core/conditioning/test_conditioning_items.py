"""Conditioning items: what they write, what they append, what they refuse."""

from functools import partial

import pytest
import torch

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import (
    AudioConditionByReferenceLatent,
    ConditioningError,
    ConditioningItemAttentionStrengthWrapper,
    TemporalRegionMask,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByMask,
    VideoConditionByReferenceLatent,
    VideoGeneratedKeyframeSlots,
)
from ltx_core.errors import InputError
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, VideoLatentShape

TOOLS = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(1, 4, 3, 2, 2), fps=8.0)
FRAME = torch.ones(1, 4, 1, 2, 2)


@pytest.fixture
def state():
    return TOOLS.create_initial_state(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VideoConditionByLatentIndex(FRAME, 1.0, 0),
        lambda: VideoConditionByKeyframeIndex(FRAME, 0, 1.0),
        lambda: VideoConditionByReferenceLatent(FRAME),
        lambda: VideoConditionByMask(FRAME, FRAME[:, 0]),
        lambda: AudioConditionByReferenceLatent(FRAME, FRAME),
        lambda: VideoGeneratedKeyframeSlots([1], FRAME),
        lambda: ConditioningItemAttentionStrengthWrapper(VideoConditionByReferenceLatent(FRAME), FRAME),
    ],
)
def test_items_are_objects_of_their_own_not_values(make):
    """They hold tensors, which lists cannot compare; and callers set their strength."""
    one, other = make(), make()
    assert [one, other].index(other) == 1
    assert len({one, other}) == 2
    one.strength = 0.5
    assert one.strength == 0.5


def test_latent_index_writes_clean_latent_and_mask_only(state):
    got = VideoConditionByLatentIndex(FRAME, 0.75, latent_idx=1).apply_to(state, TOOLS)
    assert got.latent is state.latent
    assert got.clean_latent[0, :, 0].tolist() == [0] * 4 + [1] * 4 + [0] * 4
    assert got.denoise_mask[0, :, 0].tolist() == [1] * 4 + [0.25] * 4 + [1] * 4
    assert state.clean_latent.sum() == 0
    assert state.denoise_mask.min() == 1
    last = VideoConditionByLatentIndex(FRAME, 0.75, latent_idx=2).apply_to(state, TOOLS)
    assert last.denoise_mask[0, :, 0].tolist() == [1] * 8 + [0.25] * 4


def test_latent_index_refuses_other_grids_and_frames_past_the_end(state):
    for shape in ((1, 4, 1, 3, 2), (1, 3, 1, 2, 2), (2, 4, 1, 2, 2)):
        with pytest.raises(ConditioningError, match="does not fit"):
            VideoConditionByLatentIndex(torch.zeros(shape), 1.0, 0).apply_to(state, TOOLS)
    with pytest.raises(RuntimeError, match="latent frames 0 to 2"):
        VideoConditionByLatentIndex(FRAME, 1.0, 3).apply_to(state, TOOLS)
    more = VideoConditionByKeyframeIndex(FRAME, 8, 1.0).apply_to(state, TOOLS)
    with pytest.raises(ConditioningError, match="latent frames 0 to 2"):
        VideoConditionByLatentIndex(FRAME, 1.0, 3).apply_to(more, TOOLS)


def test_keyframe_is_appended_at_its_time(state):
    got = VideoConditionByKeyframeIndex(FRAME, 12, 0.5).apply_to(state, TOOLS)
    assert got.latent[0, 12:].abs().sum() == 0
    assert got.clean_latent[0, 12:].min() == 1
    assert got.denoise_mask[0, 12:, 0].tolist() == [0.5] * 4
    assert got.positions[0, 0, 12:].unique(dim=0).tolist() == [[12 / 8, 13 / 8]]
    assert got.keyframes_mask[0, 12:].sum() == 0
    assert got.attention_mask is None


def test_keyframe_clip_keeps_its_cells(state):
    clip = torch.ones(1, 4, 2, 2, 2)
    got = VideoConditionByKeyframeIndex(clip, 0, 1.0, num_pixel_frames=9).apply_to(state, TOOLS)
    assert got.positions[0, 0, 12:].unique(dim=0).tolist() == [[0, 1 / 8], [1 / 8, 9 / 8]]
    later = VideoConditionByKeyframeIndex(clip, 8, 1.0, num_pixel_frames=9).apply_to(state, TOOLS)
    assert later.positions[0, 0, 12:].unique(dim=0).tolist() == [[1, 2], [2, 3]]  # of eight frames each


def test_reference_at_half_size_spans_the_same_pixels(state):
    half = torch.ones(1, 4, 3, 1, 1)
    got = VideoConditionByReferenceLatent(half, downscale_factor=2).apply_to(state, TOOLS)
    assert got.positions[0, 1:, 12:].unique().tolist() == [0, 64]
    assert torch.equal(got.positions[0, 0, 12:], state.positions[0, 0, ::4])


def test_temporal_reference_ends_where_the_target_does(state):
    item = VideoConditionByReferenceLatent(torch.ones(1, 4, 2, 2, 2), temporal_scale_factor=2)
    times = item.apply_to(state, TOOLS).positions[0, 0, 12:]
    assert times[0].tolist() == [0, 1 / 8]
    assert times[-1].tolist() == [1 / 8, 17 / 8]


def test_times_of_a_temporal_reference_are_rounded_once():
    tools = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(1, 4, 9, 1, 1), fps=25.0)
    state = tools.create_initial_state(torch.device("cpu"), torch.float32)
    item = VideoConditionByReferenceLatent(torch.ones(1, 4, 4, 1, 1), temporal_scale_factor=3)
    ends = torch.tensor([1.0, 9.0, 17.0, 25.0]) / (25.0 / 3) - 2 * state.positions[0, 0, 0, 1]
    assert torch.equal(item.apply_to(state, tools).positions[0, 0, 9:, 1], ends)


@pytest.mark.parametrize(
    "item",
    [partial(VideoConditionByKeyframeIndex, frame_idx=0, strength=1.0), VideoConditionByReferenceLatent],
)
def test_clips_that_do_not_fit_the_state_are_refused(state, item):
    for shape, message in (
        ((2, 4, 1, 2, 2), r"shape \(2, 4, 4\); the state takes \(1, tokens, 4\)"),
        ((1, 3, 1, 2, 2), r"shape \(1, 4, 3\); the state takes \(1, tokens, 4\)"),
        ((1, 4, 2, 2), r"A video latent is .*, not \(1, 4, 2, 2\)"),
    ):
        with pytest.raises(InputError, match=message):
            item(torch.zeros(shape)).apply_to(state, TOOLS)


def test_sounds_that_do_not_fit_the_state_are_refused():
    tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(1, 2, 3, 2))
    state = tools.create_initial_state(torch.device("cpu"), torch.float32)
    for tokens, positions, message in (
        ((1, 2, 2, 2), (1, 1, 2, 2), r"tokens to append have shape \(1, 2, 2, 2\)"),
        ((1, 2, 4), (1, 1, 3, 2), r"positions of 2 tokens to append have shape \(1, 1, 3, 2\)"),
        ((1, 2, 4), (1, 3, 2, 2), r"expected \(1, 1, 2, 2\)"),
    ):
        with pytest.raises(ConditioningError, match=message):
            AudioConditionByReferenceLatent(torch.zeros(tokens), torch.zeros(positions)).apply_to(
                state, tools
            )


def test_audio_reference():
    tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(1, 2, 3, 2))
    state = tools.create_initial_state(torch.device("cpu"), torch.float32)
    item = AudioConditionByReferenceLatent(torch.ones(1, 2, 4), torch.ones(1, 1, 2, 2), 1.0)
    got = item.apply_to(state, tools)
    assert got.clean_latent.shape == (1, 5, 4)
    assert got.denoise_mask[0, :, 0].tolist() == [1, 1, 1, 0, 0]
    assert got.keyframes_mask is None


def test_mask_item_blends(state):
    latent, mask = torch.full((1, 4, 3, 2, 2), 2.0), torch.zeros(1, 3, 2, 2)
    mask[0, 0] = 1
    got = VideoConditionByMask(latent, mask, strength=0.75).apply_to(state, TOOLS)
    assert got.clean_latent[0, :, 0].tolist() == [2] * 4 + [0] * 8
    assert got.denoise_mask[0, :, 0].tolist() == [0.25] * 4 + [1] * 8
    assert state.clean_latent.sum() == 0
    assert state.denoise_mask.min() == 1
    chosen = VideoConditionByMask(latent, mask.bool(), strength=0.75).apply_to(state, TOOLS)
    assert torch.equal(chosen.denoise_mask, got.denoise_mask)
    with pytest.raises(ConditioningError, match="do not fit"):
        VideoConditionByMask(latent, mask[:, :2]).apply_to(state, TOOLS)


def test_window_keeps_what_it_does_not_touch(state):
    got = TemporalRegionMask(0.2, 1.0, fps=8.0).apply_to(state, TOOLS)
    assert got.denoise_mask[0, ::4, 0].tolist() == [0, 1, 0]
    assert got.denoise_mask.dtype is state.denoise_mask.dtype
    cell = TemporalRegionMask(1 / 8, 9 / 8, fps=8.0).apply_to(state, TOOLS)  # its neighbours only meet it
    assert cell.denoise_mask[0, ::4, 0].tolist() == [0, 1, 0]
    assert TemporalRegionMask(0, 0, 8.0).apply_to(state, TOOLS).denoise_mask.sum() == 0


def test_the_window_counts_frames_at_its_own_rate(state):
    """The second latent frame holds frames 1 to 8: up to 9/8 s at 8 a second, 9/16 s at 16."""
    masks = [TemporalRegionMask(0.6, 1.1, fps).apply_to(state, TOOLS).denoise_mask for fps in (8.0, 16.0)]
    assert [mask[0, ::4, 0].tolist() for mask in masks] == [[0, 1, 0], [0, 0, 1]]


def test_window_must_come_first(state):
    more = VideoConditionByKeyframeIndex(FRAME, 8, 1.0).apply_to(state, TOOLS)
    with pytest.raises(ConditioningError, match="first item"):
        TemporalRegionMask(0.2, 1.0, 8.0).apply_to(more, TOOLS)


def test_slots_are_generated_and_come_back(state):
    got = VideoGeneratedKeyframeSlots([4, 11]).apply_to(state, TOOLS)
    assert got.denoise_mask.min() == 1
    assert got.keyframes_mask[0, 12:].min() == 1
    assert got.positions[0, 0, 12:].unique(dim=0).tolist() == [[4 / 8, 5 / 8], [11 / 8, 12 / 8]]
    got = VideoConditionByKeyframeIndex(FRAME, 8, 1.0).apply_to(got, TOOLS)
    got.latent[0, 16:20] = 3
    cleared = TOOLS.clear_conditioning(got)
    assert cleared.latent.shape[1] == 12
    assert cleared.generated_keyframes.shape == (1, 4, 2, 2, 2)
    assert cleared.generated_keyframes[0, 0, :, 0, 0].tolist() == [0, 3]


def test_seeded_slots_start_from_their_seeds(state):
    seeds = torch.full((1, 4, 2, 2, 2), 5.0)
    got = VideoGeneratedKeyframeSlots([3, 9], seeds).apply_to(state, TOOLS)
    assert got.latent[0, 12:].min() == 5
    assert got.clean_latent[0, 12:].abs().sum() == 0
    with pytest.raises(ConditioningError, match="initial keyframes"):
        VideoGeneratedKeyframeSlots([3], seeds).apply_to(state, TOOLS)


@pytest.mark.parametrize("indices", [[], [-1], [4, 4], [5, 3], [17]])
def test_impossible_slots(state, indices):
    with pytest.raises(ConditioningError):
        VideoGeneratedKeyframeSlots(indices).apply_to(state, TOOLS)


def test_slots_only_once(state):
    with pytest.raises(ConditioningError, match="one item"):
        VideoGeneratedKeyframeSlots([3]).apply_to(
            VideoGeneratedKeyframeSlots([4]).apply_to(state, TOOLS), TOOLS
        )


def test_attention_strength_wraps_what_was_appended(state):
    item = VideoConditionByReferenceLatent(FRAME)
    got = ConditioningItemAttentionStrengthWrapper(item, 0.25).apply_to(state, TOOLS)
    assert got.attention_mask.shape == (1, 16, 16)
    assert got.attention_mask[0, 0, 12:].tolist() == [0.25] * 4
    assert got.attention_mask[0, 12:, 12:].min() == 1
    inner = VideoConditionByLatentIndex(FRAME, 1.0, 0)
    assert ConditioningItemAttentionStrengthWrapper(inner, 0.5).apply_to(state, TOOLS).attention_mask is None
