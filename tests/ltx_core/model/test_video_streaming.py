"""Decoding as a stream over time: the untiled result in bounded memory."""

import pytest
import torch

from ltx_core.errors import InputError, ShapeError
from ltx_core.model.video_vae import AUTO_TILING, TilingConfig, VideoDecoderConfigurator, decode_video
from ltx_core.model.video_vae.layers import CausalConv3d
from ltx_core.model.video_vae.streaming import regrouped
from ltx_core.model.video_vae.tiling import FRAMES_AT_A_TIME

RESIDUAL = [["res_x", {"num_layers": 1}], ["compress_all", {"multiplier": 2, "residual": True}]] * 3
PLAIN = [
    ["res_x", {"num_layers": 2}],
    ["compress_space", {"multiplier": 2}],
    ["compress_time", {"multiplier": 2}],
    ["res_x", {"num_layers": 1}],
    ["compress_all", {"multiplier": 1}],
    ["compress_all", {"multiplier": 2}],
]


def decoder(blocks=PLAIN, seed=0, **changes):
    section = {
        "dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "patch_size": 4,
        "norm_layer": "pixel_norm",
        "latent_log_var": "uniform",
        "decoder_base_channels": 4,
        "decoder_blocks": blocks,
        "causal_decoder": False,
        "timestep_conditioning": False,
    }
    model = VideoDecoderConfigurator.from_config({"vae": section | changes}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 4
            values = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
            tensor.copy_(values.abs() + 0.5 if "std" in name else values)
    return model


def latent(frames, height=2, width=3):
    return torch.randn(1, 4, frames, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
@pytest.mark.parametrize("piece_bytes", [1, 4000, 2**23])
@pytest.mark.parametrize("causal", [False, True], ids=["both sides", "causal"])
@pytest.mark.parametrize("blocks", [PLAIN, RESIDUAL], ids=["plain", "residual"])
def test_it_is_the_untiled_decode(blocks, causal, piece_bytes, frames):
    model, z = decoder(blocks, causal_decoder=causal), latent(frames)
    with torch.no_grad():
        whole, chunks = model(z), list(model.streamed_decode(z, piece_bytes))
    together = torch.cat(chunks, dim=2)
    assert together.shape == whole.shape
    assert (together - whole).norm() <= 1e-5 * whole.norm()
    assert [chunk.shape[2] for chunk in chunks[:-1]] == [FRAMES_AT_A_TIME] * (len(chunks) - 1)


@pytest.mark.parametrize("piece_bytes", [1, 4000])
def test_no_layer_takes_or_gives_more_of_a_longer_clip(piece_bytes):
    def largest(frames: int) -> tuple[int, int]:
        model, seen = decoder(), []
        for module in model.modules():
            if isinstance(module, CausalConv3d):
                module.conv.register_forward_hook(lambda _, given, made: seen.extend((given[0], made)))
        with torch.no_grad():
            for _ in model.streamed_decode(latent(frames), piece_bytes):
                seen = [x if isinstance(x, tuple) else (x.nbytes, x.nbytes // x.shape[2]) for x in seen]
        # Beside the piece there are the two frames that every layer keeps, and at the end two more.
        assert all(size <= max(piece_bytes, 2 * frame) + 4 * frame for size, frame in seen)
        return max(seen)

    assert largest(20) == largest(10)


def test_it_starts_before_the_end():
    model, computed = decoder(), []
    model.conv_out.register_forward_hook(lambda *_: computed.append(1))
    model.conv_out.conv.register_forward_hook(lambda *_: computed.append(1))
    with torch.no_grad():
        stream = model.streamed_decode(latent(30), 1)
        next(stream)
        early = len(computed)
        rest = sum(1 for _ in stream)
    assert early * 5 < rest


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_layer": "group_norm", "decoder_base_channels": 32},
        {"timestep_conditioning": True},
        {"decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}], *PLAIN[1:]]},
        {"decoder_blocks": [["res_x_y", {"multiplier": 2}], *PLAIN[1:]]},
    ],
    ids=["group norm", "timestep", "noise", "widening"],
)
def test_decoders_that_are_not_local_are_refused(changes):
    model = decoder(**changes)
    assert not model.can_stream
    with pytest.raises(InputError, match="one piece or in tiles"):
        next(model.streamed_decode(latent(3)))


def test_automatic_decoding_has_no_seams_and_tiles_stay_available():
    model, z = decoder(), latent(12)
    whole, auto, tiled = (
        torch.cat(list(decode_video(z, model, tiling))).int()
        for tiling in (None, AUTO_TILING, TilingConfig.default())
    )
    assert (auto - whole).abs().max() <= 1
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() > 1


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match=r"takes .batch, 4, frames"):
        next(decoder().streamed_decode(torch.zeros(1, 3, 2, 2, 2)))


@pytest.mark.parametrize("sizes", [[1], [3, 1, 1], [7], [2, 2, 2]])
def test_regrouping_keeps_all_frames_in_order(sizes):
    frames = torch.arange(sum(sizes)).view(1, 1, -1, 1, 1)
    chunks = list(regrouped(frames.split(sizes, dim=2), 2))
    assert torch.equal(torch.cat(chunks, dim=2), frames)
    assert all(chunk.shape[2] == 2 for chunk in chunks[:-1])
