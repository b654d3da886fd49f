"""Patchifiers: round trips, order of tokens, coordinates."""

import pytest
import torch

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
from ltx_core.errors import InputError, LayoutError, ShapeError
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape


@pytest.mark.parametrize("patch", [1, 2])
def test_video_round_trip(patch):
    patchifier, shape = VideoLatentPatchifier(patch), VideoLatentShape(2, 3, 2, 4, 6)
    latent = torch.arange(2 * 3 * 2 * 4 * 6).reshape(shape)
    tokens = patchifier.patchify(latent)
    assert tokens.shape == (2, patchifier.get_token_count(shape), 3 * patch**2)
    assert tokens.is_contiguous()
    assert torch.equal(patchifier.unpatchify(tokens, shape), latent)


def test_video_tokens_go_by_frame_row_column():
    latent = torch.zeros(1, 1, 2, 2, 3)
    latent[0, 0, 1, 1, 2] = 7
    assert VideoLatentPatchifier(1).patchify(latent).flatten().argmax() == 1 * 6 + 1 * 3 + 2


def test_audio_round_trip():
    latent, patchifier = torch.randn(2, 3, 5, 4), AudioPatchifier(1)
    tokens = patchifier.patchify(latent)
    assert tokens.shape == (2, 5, 12)
    assert torch.equal(patchifier.unpatchify(tokens, AudioLatentShape(2, 3, 5, 4)), latent)


def test_audio_latents_have_four_axes():
    for shape in ((2, 3, 4), (2, 3, 4, 5, 1)):
        with pytest.raises(LayoutError, match=r"expected .batch, channels, frames, mel bins"):
            AudioPatchifier(1).patchify(torch.zeros(shape))
    assert issubclass(LayoutError, RuntimeError)  # what such a latent raised before


def test_video_latents_are_made_of_whole_patches():
    for shape in ((1, 4, 2, 3, 4), (1, 4, 2, 4, 3), (4, 2, 4, 4)):
        with pytest.raises(LayoutError, match=r"cannot be cut into tokens.*multiples of 2"):
            VideoLatentPatchifier(2).patchify(torch.zeros(shape))


@pytest.mark.parametrize(
    ("patchifier", "tokens", "shape"),
    [
        (VideoLatentPatchifier(1), (1, 7, 4), VideoLatentShape(1, 4, 2, 2, 2)),
        (VideoLatentPatchifier(2), (1, 2, 6), VideoLatentShape(1, 4, 2, 2, 2)),
        (VideoLatentPatchifier(1), (8, 4), VideoLatentShape(1, 4, 2, 2, 2)),
        (AudioPatchifier(1), (1, 7, 9), AudioLatentShape(1, 4, 7, 2)),
        (AudioPatchifier(1), (7, 8), AudioLatentShape(1, 4, 7, 2)),
    ],
)
def test_tokens_that_do_not_fill_their_latent(patchifier, tokens, shape):
    with pytest.raises(LayoutError, match="do not fill"):
        patchifier.unpatchify(torch.zeros(tokens), shape)


def test_first_latent_frame_covers_one_pixel_frame():
    bounds = VideoLatentPatchifier(1).get_patch_grid_bounds(VideoLatentShape(1, 4, 3, 1, 1))
    coords = get_pixel_coords(bounds, SpatioTemporalScaleFactors.default(), causal_fix=True)
    assert coords[0, 0].tolist() == [[0, 1], [1, 9], [9, 17]]
    assert coords.dtype == torch.int64


def test_scale_factors_apply_to_their_axes():
    bounds = VideoLatentPatchifier(1).get_patch_grid_bounds(VideoLatentShape(1, 4, 2, 2, 2))
    coords = get_pixel_coords(bounds, SpatioTemporalScaleFactors(time=4, height=16, width=8))
    assert coords[0, :, -1].tolist() == [[4, 8], [16, 32], [8, 16]]


def test_audio_seconds_are_contiguous():
    bounds = AudioPatchifier(1).get_patch_grid_bounds(AudioLatentShape(1, 8, 4, 16))[0, 0]
    assert bounds.dtype == torch.float32
    assert torch.equal(bounds[1:, 0], bounds[:-1, 1])
    assert bounds[0].tolist() == pytest.approx([0.0, 0.01])
    assert bounds[1].tolist() == pytest.approx([0.01, 0.05])


def test_foreign_and_empty_shapes():
    with pytest.raises(InputError, match="VideoLatentShape"):
        VideoLatentPatchifier(1).get_patch_grid_bounds(AudioLatentShape(1, 8, 4, 16))
    with pytest.raises(InputError, match="AudioLatentShape"):
        AudioPatchifier(1).get_patch_grid_bounds(VideoLatentShape(1, 8, 4, 2, 2))
    with pytest.raises(ShapeError, match="at least 1"):
        VideoLatentPatchifier(1).get_patch_grid_bounds(VideoLatentShape(1, 8, 4, 0, 2))
