"""Tiles: their geometry, decoding as a stream of frames, encoding in pieces."""

import itertools
import random

import pytest
import torch

from ltx_core.errors import InputError, ShapeError
from ltx_core.model.video_vae import (
    AUTO_TILING,
    SOURCE_TILING,
    DimensionSizeConfig,
    SpatialTilingConfig,
    TemporalTilingConfig,
    TileSizeConfig,
    TilingConfig,
    VideoDecoder,
    VideoDecoderConfigurator,
    VideoEncoder,
    VideoEncoderConfigurator,
    decode_video,
    get_video_chunks_number,
)
from ltx_core.model.video_vae.decoder import to_uint8
from ltx_core.model.video_vae.tiling import (
    Interval,
    decode_axes,
    decode_groups,
    encode_tiles,
    frames_of,
    overlap_add,
    pixels_of,
    spatial_weights,
    split,
    split_time,
    trapezoid,
)

SECTION = {
    "latent_channels": 4,
    "decoder_base_channels": 2,
    "timestep_conditioning": False,
    "spatial_padding_mode": "replicate",
    "encoder_blocks": [
        ["compress_space_res", {}],
        ["compress_all_res", {}],
        ["compress_all_res", {}],
        ["compress_time_res", {}],
    ],
    "decoder_blocks": [
        ["compress_all", {"multiplier": 2}],
        ["compress_all", {}],
        ["compress_all", {"multiplier": 2}],
    ],
}
CPU = torch.device("cpu")


def fill(module: torch.nn.Module, tap: int | None = None) -> torch.nn.Module:
    """Random weights. tap: only this time tap and the centre in space, so that no position sees another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.2 * noise.clamp(-2, 2) if "std" in name else noise * 0.2)
            if tap is not None and tensor.dim() == 5:
                kept = tensor[:, :, tap, 1, 1].clone()
                tensor.zero_()[:, :, tap, 1, 1] = kept
    return module.eval().requires_grad_(False)


def decoder(*, local: bool = False, **changes) -> VideoDecoder:
    return fill(VideoDecoderConfigurator.from_config({"vae": SECTION | changes}), 1 if local else None)


def encoder(*, local: bool = False) -> VideoEncoder:
    return fill(VideoEncoderConfigurator.from_config({"vae": SECTION}), 2 if local else None)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tiling(pixels: tuple[int, int] | None = None, frames: tuple[int, int] | None = None) -> TilingConfig:
    return TilingConfig(pixels and SpatialTilingConfig(*pixels), frames and TemporalTilingConfig(*frames))


def sizes(frames=(0, 0), height=(0, 0), width=(0, 0)) -> TileSizeConfig:
    return TileSizeConfig(*(DimensionSizeConfig(*size) for size in (frames, height, width)))


# Geometry


def splits() -> list[tuple[int, int, int]]:
    """(length, tile size, overlap) at random, with some edges."""
    rng = random.Random(0)
    drawn = [(rng.randint(1, 60), size := rng.randint(1, 20), rng.randint(0, size - 1)) for _ in range(200)]
    return [*drawn, (8, 8, 2), (9, 8, 7), (2, 1, 0)]


def test_intervals_cover_their_axis_and_overlap_as_told():
    for length, size, overlap in splits():
        intervals = split(length, size, overlap)
        assert (intervals[0].start, intervals[-1].end) == (0, length)
        assert (intervals[0].left, intervals[-1].right) == (0, 0)
        for a, b in itertools.pairwise(intervals):
            assert a.end - b.start == overlap == a.right == b.left
            assert a.length == size >= b.length > overlap
    assert split(10, 0, 0) == [Interval(0, 10)]


def test_later_times_start_one_latent_early():
    for length, size, overlap in splits():
        first, *rest = split(length, size, overlap)
        moved = [Interval(i.start - 1, i.end, i.left + 1, i.right) for i in rest]
        assert split_time(length, size, overlap) == [first, *moved]


def test_pixels_of_intervals():
    assert frames_of(Interval(0, 4, 0, 2)) == Interval(0, 25, 0, 16)
    assert frames_of(Interval(3, 8, 3, 0)) == Interval(24, 57, 17, 0)
    assert pixels_of(Interval(1, 5, 2, 1)) == Interval(32, 160, 64, 32)


def test_ramps():
    assert trapezoid(5, 0, 0, from_zero=True, device=CPU).tolist() == [1] * 5
    space = trapezoid(6, 3, 1, from_zero=False, device=CPU)
    torch.testing.assert_close(space, torch.tensor([0.25, 0.5, 0.75, 1, 1, 0.5]))
    time = trapezoid(6, 4, 1, from_zero=True, device=CPU)
    torch.testing.assert_close(time, torch.tensor([0, 0.25, 0.5, 0.75, 1, 0.5]))
    assert trapezoid(2, 8, 0, from_zero=True, device=CPU).tolist() == [0, 0.5]


def test_masks_of_neighbours_sum_to_one():
    for length, size, overlap in splits():
        if 2 * overlap > size - 1:
            continue  # ramps of one tile collide; the blend divides by the sum instead
        for time in (False, True):
            cut, widen = (split_time, frames_of) if time else (split, pixels_of)
            intervals = [widen(i) for i in cut(length, size, overlap)]
            total = torch.zeros(intervals[-1].end)
            for i in intervals:
                total[i.start : i.end] += trapezoid(i.length, i.left, i.right, from_zero=time, device=CPU)
            torch.testing.assert_close(total, torch.ones_like(total))


def test_masks_of_tiles_of_all_axes_sum_to_one():
    for group in decode_groups(tiling((128, 32), (32, 8)), (7, 10, 12)):
        weights = spatial_weights(group.tiles, 320, 384, CPU)
        torch.testing.assert_close(weights, torch.ones(320, 384))
    total = torch.zeros(12, 10, 14)
    for tile in encode_tiles(sizes((48, 16), (192, 64), (192, 64)), (12, 10, 14)):
        total[tile.latents[2:]] += tile.mask(CPU)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_shorter_side_gets_proportional_tiles():
    _, rows, columns = decode_axes(tiling((256, 64)), (1, 8, 16))
    assert [i.length for i in columns] == [8, 8, 4]
    assert [i.length for i in rows] == [4, 4, 4]
    _, rows, _ = decode_axes(tiling((256, 64)), (1, 3, 64))
    assert [i.length for i in rows] == [3]  # at least one more than the overlap
    _, rows, columns = decode_axes(sizes(height=(256, 64), width=(128, 0)), (1, 9, 16))
    assert [i.length for i in rows] == [8, 3]
    assert [i.length for i in columns] == [4] * 4


def test_tiling_that_is_automatic():
    assert decode_axes(AUTO_TILING, (40, 20, 40)) == decode_axes(tiling((768, 64), (80, 24)), (40, 20, 40))
    assert decode_axes(None, (40, 20, 40)) == ([Interval(0, 40)], [Interval(0, 20)], [Interval(0, 40)])
    assert TilingConfig.default() == tiling((512, 64), (64, 24))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: SpatialTilingConfig(32), "A tile of 32 pixels is too small; the least is 64"),
        (lambda: SpatialTilingConfig(100), "Tile size 100 and overlap 0 must be multiples of 32 pixels"),
        (lambda: SpatialTilingConfig(128, 16), "Tile size 128 and overlap 16 must be multiples of 32 pixels"),
        (
            lambda: SpatialTilingConfig(128, 128),
            "overlap of 128 pixels must be at least 0 and less than the tile, 128",
        ),
        (lambda: SpatialTilingConfig(128, -32), "overlap of -32 pixels must be at least 0"),
        (lambda: TemporalTilingConfig(8), "A tile of 8 frames is too small; the least is 16"),
        (lambda: TemporalTilingConfig(20), "must be multiples of 8 frames"),
        (
            lambda: TemporalTilingConfig(16, 16),
            "overlap of 16 frames must be at least 0 and less than the tile, 16",
        ),
    ],
)
def test_tiles_that_cannot_be(config, message):
    with pytest.raises(InputError, match=message):
        config()


# A stream of frames

TILINGS = [
    tiling((128, 64), (32, 16)),
    tiling((64, 0), (16, 0)),
    tiling((96, 64), (16, 8)),
    tiling(None, (24, 8)),
    tiling((64, 32), None),
    sizes((16, 8), (64, 32), (96, 0)),
]


def test_pixels_are_clamped_and_truncated():
    x = torch.tensor([-3.0, -1.0, 0.0, 0.999, 1.0, 2.0]).view(1, 1, 1, 6).expand(3, 2, 1, 6)
    frames = to_uint8(x)
    assert (frames.shape, frames.dtype) == ((2, 1, 6, 3), torch.uint8)
    assert frames[1, 0, :, 2].tolist() == [0, 0, 127, 254, 255, 255]
    low = torch.linspace(-1, 1, 513).bfloat16().expand(3, 1, 1, 513)
    assert torch.equal(to_uint8(low), to_uint8(low.float()))  # bfloat16 has no 256 steps between 0 and 1


def test_decode_video_gives_the_first_sample_in_one_chunk():
    model, latent = decoder(), randn(2, 4, 2, 2, 3)
    (frames,) = decode_video(latent, model)
    assert frames.shape == (9, 64, 96, 3)
    assert torch.equal(frames, to_uint8(model(latent)[0]))


@pytest.mark.parametrize("config", TILINGS)
def test_tiles_of_a_local_network_blend_into_the_whole(config):
    model, latent = decoder(local=True), randn(2, 4, 6, 3, 5)
    whole, chunks = model(latent), list(model.tiled_decode(latent, config))
    torch.testing.assert_close(torch.cat(chunks, dim=2), whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    frames = torch.cat(list(decode_video(latent, model, config)))
    (expected,) = decode_video(latent, model)
    assert frames.shape == expected.shape == (41, 96, 160, 3)
    assert (frames.int() - expected.int()).abs().max() <= 1


def test_outside_of_overlaps_a_tile_is_the_whole():
    model, latent = decoder(), randn(1, 4, 1, 1, 20)
    whole = model(latent)
    got = torch.cat(
        list(model.tiled_decode(latent, tiling((448, 256)))), dim=2
    )  # 14 latents overlapping by 8
    left, right = slice(0, 6 * 32), slice(14 * 32, None)
    torch.testing.assert_close(got[..., left], whole[..., left])
    torch.testing.assert_close(got[..., right], whole[..., right])
    middle = slice(6 * 32, 14 * 32)
    assert not torch.equal(got[..., middle], whole[..., middle])
    one, two = model(latent[..., :14])[..., 192:], model(latent[..., 6:])[..., :256]
    low, high = torch.minimum(one, two) - 1e-5, torch.maximum(one, two) + 1e-5
    assert ((got[..., middle] >= low) & (got[..., middle] <= high)).all()


def test_chunks_follow_the_starts_of_temporal_tiles():
    model, latent = decoder(local=True), randn(1, 4, 8, 1, 1)
    for config, lengths in (
        (tiling(None, (32, 16)), [8, 16, 33]),  # tiles start at latents 0, 1, 3
        (tiling(None, (24, 0)), [16, 24, 17]),
        (tiling((64, 0)), [57]),
        (None, [57]),
    ):
        assert [c.shape[2] for c in model.tiled_decode(latent, config)] == lengths


def test_there_is_a_chunk_for_each_temporal_tile_even_if_it_is_empty():
    chunks = list(decoder(local=True).tiled_decode(randn(1, 4, 4, 1, 1), tiling(None, (16, 8))))
    assert [c.shape[2] for c in chunks] == [0, 8, 17]  # tiles start at latents 0, 0 and 1


def test_frames_come_before_later_tiles_are_decoded(monkeypatch):
    model, seen = decoder(local=True), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda z, *rest: seen.append(tuple(z.shape[2:])) or forward(z, *rest)
    )
    chunks = model.tiled_decode(randn(1, 4, 8, 2, 3), sizes((24, 0), (32, 0), (64, 0)))
    assert seen == []
    next(chunks)
    tiles = [(3, 1, 2), (3, 1, 1)] * 2
    later = [(4, *tile[1:]) for tile in tiles]
    assert seen == tiles + later
    list(chunks)
    assert seen == tiles + later + [(3, *tile[1:]) for tile in tiles]


def test_tiles_draw_from_one_generator_in_order():
    model = decoder(timestep_conditioning=True, local=True)
    model.timestep_scale_multiplier.fill_(1000.0)
    latent = randn(1, 4, 1, 2, 4)
    generator = torch.Generator().manual_seed(3)
    tiles = [model(latent[..., r : r + 1, c : c + 2], None, generator) for r in (0, 1) for c in (0, 2)]
    expected = torch.cat([torch.cat(tiles[:2], dim=4), torch.cat(tiles[2:], dim=4)], dim=3)
    config = sizes(height=(32, 0), width=(64, 0))
    got = model.tiled_decode(latent, config, None, torch.Generator().manual_seed(3))
    torch.testing.assert_close(next(got), expected)
    other = model.tiled_decode(latent, config, torch.tensor([0.5]), torch.Generator().manual_seed(3))
    assert not torch.allclose(next(other), expected, atol=1e-3)


@pytest.mark.parametrize("config", [None, TILINGS[0]])
def test_decode_video_leaves_the_grad_mode_alone(config, monkeypatch):
    model, calls = decoder(local=True).requires_grad_(True), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda *args: calls.append(torch.is_grad_enabled()) or forward(*args)
    )
    chunks = decode_video(randn(1, 4, 6, 1, 1), model, config)
    assert calls == []
    for chunk in chunks:
        assert torch.is_grad_enabled()
        assert not chunk.requires_grad
    assert not any(calls)
    assert calls


def test_chunks_keep_the_dtype_of_the_latent():
    model, latent = decoder(local=True), randn(1, 4, 6, 1, 2)
    exact = torch.cat(list(model.tiled_decode(latent, TILINGS[3])), dim=2)
    rough = torch.cat(list(model.bfloat16().tiled_decode(latent.bfloat16(), TILINGS[3])), dim=2)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.1 * exact.norm()


def test_tiles_do_not_follow_the_callers_defaults(strange_defaults):
    model, latent, config = decoder(), randn(1, 4, 3, 5, 5), tiling((64, 32), (16, 8))
    expected = torch.cat(list(model.tiled_decode(latent, config)), dim=2)
    with strange_defaults():
        assert torch.equal(torch.cat(list(model.tiled_decode(latent, config)), dim=2), expected)


def test_overlap_add_weighs_by_the_masks():
    one, two = torch.full((1, 1, 5, 1, 1), 2.0), torch.full((1, 1, 4, 1, 1), 6.0)
    groups = [(Interval(0, 5, 0, 2), one), (Interval(3, 7, 2, 0), two)]
    first, second = overlap_add(iter(groups))
    assert first.flatten().tolist() == [2, 2, 2]
    # ramps: 2/3, 1/3 going and 0, 1/2 coming
    torch.testing.assert_close(second.flatten(), torch.tensor([2, (2 / 3 + 3) / (1 / 3 + 1 / 2), 6, 6]))


@pytest.mark.parametrize(
    ("frames", "config", "chunks"),
    [
        (121, TilingConfig.default(), 3),
        (57, TilingConfig.default(), 2),
        (1, TilingConfig.default(), 0),
        (121, AUTO_TILING, 16),
        (121, sizes((80, 24)), 3),
        (121, sizes(height=(512, 64)), 1),
        (121, tiling((512, 64)), 1),
        (121, None, 1),
    ],
)
def test_chunk_numbers_for_progress_bars(frames, config, chunks):
    assert get_video_chunks_number(frames, config) == chunks


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sizes(height=(64, 64)), "A tile of 64 pixels must be larger than its overlap, 64"),
        (sizes((16, 16)), "A tile of 16 frames must be larger than its overlap, 16"),
        (sizes((16, 24)), "A tile of 16 frames must be larger than its overlap, 24"),
        (sizes((16, -8)), "overlap, -8, which must be at least 0"),
        (sizes(width=(90, 80)), r"A tile of 90 pixels .* its overlap, 80, .* \(both count in steps of 32\)"),
        (sizes(width=(31, 0)), "A tile of 31 pixels is too small; the least is 32, and 0 is no tiling"),
        (sizes((7, 0)), "A tile of 7 frames is too small; the least is 8"),
        (sizes(height=(-64, 0)), "A tile of -64 pixels is too small"),
    ],
)
def test_sizes_that_leave_no_tile(config, message):
    with pytest.raises(InputError, match=message):
        list(decoder(local=True).tiled_decode(randn(1, 4, 5, 4, 4), config))


@pytest.mark.parametrize("shape", [(1, 5, 2, 2, 2), (1, 4, 0, 2, 2), (1, 4, 2, 0, 2), (2, 2, 2)])
def test_latents_that_cannot_be_decoded_in_tiles(shape):
    with pytest.raises(
        ShapeError, match=r"takes \(batch, 4, frames, height, width\) latents, not "
    ) as caught:
        list(decode_video(torch.zeros(shape), decoder(), TilingConfig.default()))
    assert str(shape) in str(caught.value)


def test_tiles_too_thin_to_reflect_are_refused_before_any_is_decoded(monkeypatch):
    model, latent = decoder(spatial_padding_mode="reflect"), randn(1, 4, 1, 2, 5)
    monkeypatch.setattr(model, "forward", lambda *args: pytest.fail("decoded"))
    with pytest.raises(
        ShapeError, match="a side of 1 latent does not allow; use sides, and tiles, of 64 pixels"
    ):
        list(model.tiled_decode(latent, tiling((64, 0))))


def test_a_latent_without_batch_is_decoded_in_tiles_too():
    model, latent = decoder(local=True), randn(1, 4, 3, 2, 2)
    (one,), (other,) = (model.tiled_decode(x, tiling((64, 32))) for x in (latent, latent[0]))
    assert torch.equal(one, other)


# Encoding in pieces


def test_encoding_without_tiles_is_the_forward_pass():
    model, video = encoder(), randn(2, 3, 17, 64, 96)
    whole = model(video)
    for config in (None, AUTO_TILING, SOURCE_TILING, tiling((128, 64), (32, 16)), TilingConfig()):
        torch.testing.assert_close(model.tiled_encode(video, config), whole)


@pytest.mark.parametrize(
    "config",
    [
        tiling((128, 64), (24, 16)),
        tiling((96, 64), None),
        sizes((32, 16)),
        sizes((24, 16), (96, 64), (128, 64)),
    ],
)
def test_encoded_tiles_of_a_local_network_blend_into_the_whole(config):
    model, video = encoder(local=True), randn(1, 3, 41, 160, 192)
    whole, got = model(video), model.tiled_encode(video, config)
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    assert len(encode_tiles(config, whole.shape[2:])) > 1


def test_tiles_are_encoded_one_by_one(monkeypatch):
    model, seen = encoder(), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda v: seen.append(tuple(v.shape[2:])) or forward(v))
    model.tiled_encode(randn(1, 3, 33, 128, 32), sizes((24, 16), (96, 64)))
    assert seen == [(t, h, 32) for t in (17, 25, 25) for h in (96, 96)]


def test_encoding_in_tiles_casts_and_crops(caplog):
    model, video = encoder(local=True), randn(1, 3, 12, 64, 64)
    got = model.tiled_encode(video.double(), None)
    assert "Cropping 12 frames to 9" in caplog.text
    assert torch.equal(got, model(video[:, :, :9]))
    assert model.bfloat16().tiled_encode(video).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sizes((24, 8)), "needs an overlap of at least 16 frames, not 8"),
        (sizes(height=(128, 32)), "needs an overlap of at least 64 pixels, not 32"),
        (tiling((128, 0)), "needs an overlap of at least 64 pixels, not 0"),
        (sizes((16, 16)), "A tile of 16 frames must be larger than its overlap, 16"),
        (sizes(width=(64, 96)), "A tile of 64 pixels must be larger than its overlap, 96"),
    ],
)
def test_overlaps_too_small_for_encoding(config, message):
    with pytest.raises(InputError, match=message):
        encoder().tiled_encode(randn(1, 3, 33, 128, 128), config)


def test_sizes_that_round_to_their_overlap():
    with pytest.raises(InputError, match="A tile of 90 pixels must be larger than its overlap, 80"):
        encoder().tiled_encode(randn(1, 3, 9, 160, 64), sizes(height=(90, 80)))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 3, 9, 48, 64), torch.float32, "video of 64x48 pixels cannot be cut .* multiples of 32"),
        ((1, 3, 9, 64, 65), torch.float32, "video of 65x64 pixels"),
        ((1, 3, 9, 64, 64), torch.uint8, "takes floating-point pixels, not torch.uint8"),
        ((1, 4, 9, 64, 64), torch.float32, r"takes \(batch, 3, frames, height, width\) pixels, not \(1, 4,"),
        ((3, 10, 64, 64), torch.float32, r"not \(3, 10, 64, 64\)"),
        ((1, 3, 0, 64, 64), torch.float32, "no size may be 0"),
    ],
)
def test_videos_that_cannot_be_encoded_in_tiles(shape, dtype, message, caplog):
    with pytest.raises(InputError, match=message):
        encoder().tiled_encode(torch.zeros(shape, dtype=dtype))
    assert "Cropping" not in caplog.text


@pytest.mark.parametrize("blocks", [["space"] * 3, ["time"] * 3, ["all"] * 2, ["all"] * 4])
def test_networks_of_other_factors_say_that_tiles_are_not_for_them(blocks):
    section = {"latent_channels": 4, "decoder_base_channels": 2, "timestep_conditioning": False}
    section["spatial_padding_mode"] = "zeros"
    section["decoder_blocks"] = [[f"compress_{axes}", {}] for axes in blocks]
    section["encoder_blocks"] = section["decoder_blocks"]
    decode = VideoDecoderConfigurator.from_config({"vae": section})
    with pytest.raises(ShapeError, match=r"this video decoder makes .* use it without tiles"):
        list(decode.tiled_decode(randn(1, 4, 3, 3, 3), tiling((64, 32), (16, 8))))
    encode = VideoEncoderConfigurator.from_config({"vae": section})
    with pytest.raises(ShapeError, match=r"this video encoder makes .* use it without tiles"):
        encode.tiled_encode(randn(1, 3, 33, 96, 96), tiling(None, (24, 16)))
