"""The video VAE: shapes, causality, its primitive operations, conditioning, configurations, bad input."""

import itertools
import logging

import pytest
import torch
from torch.nn import functional as F

from ltx_core.errors import ConfigError, InputError, ShapeError, UnsupportedConfigError
from ltx_core.loader import (
    Checkpoint,
    DummyRegistry,
    SingleGPUModelBuilder,
    StateDictRegistry,
    build_model,
    save_checkpoint,
    write_tensors,
)
from ltx_core.model.common import convolution
from ltx_core.model.common.folding import depth_to_space, space_to_depth
from ltx_core.model.common.statistics import LatentStatistics
from ltx_core.model.video_vae import (
    VAE_DECODER_COMFY_KEYS_FILTER,
    VAE_ENCODER_COMFY_KEYS_FILTER,
    TemporalTilingConfig,
    TilingConfig,
    VideoDecoder,
    VideoDecoderConfigurator,
    VideoEncoder,
    VideoEncoderConfigurator,
)
from ltx_core.model.video_vae.blocks import (
    Downsample,
    Flow,
    ResBlock,
    Strided,
    Style,
    Upsample,
    decoder_block,
    encoder_block,
)
from ltx_core.model.video_vae.config import Block
from ltx_core.model.video_vae.enums import NormLayerType, PaddingModeType
from ltx_core.model.video_vae.layers import (
    CausalConv3d,
    make_norm,
    patchify,
    unpatchify,
)

COMMON = {"latent_channels": 4, "decoder_base_channels": 4, "timestep_conditioning": False}
TIGHT = COMMON | {
    "encoder_blocks": [
        ["compress_space_res", {"multiplier": 2}],
        ["compress_time_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", 1],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 1}],
        *[["compress_all", {"multiplier": 2, "residual": True}]] * 3,
    ],
}
LAYOUT_20 = TIGHT
LAYOUT_23 = TIGHT | {
    "spatial_padding_mode": "zeros",
    "encoder_blocks": [*TIGHT["encoder_blocks"][:3], ["compress_all_res", {"multiplier": 1}], ["res_x", 1]],
    "decoder_blocks": [
        ["compress_space", {"multiplier": 2}],
        ["compress_time", {"multiplier": 2}],
        ["compress_all", {"multiplier": 1}],
        ["compress_all", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
    ],
}
CONDITIONED = TIGHT | {
    "timestep_conditioning": True,
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": True}],
        ["compress_all", {}],
        ["res_x", 1],
    ],
}
LAYOUTS = pytest.mark.parametrize("section", [LAYOUT_20, LAYOUT_23], ids=["2.0", "2.3"])


def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights that keep activations near unit size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("timestep_scale_multiplier"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "std-of-means" in name or "norm" in name:
                tensor.copy_(1 + 0.2 * noise.clamp(-2, 2))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.2 * noise)
    return module.eval().requires_grad_(False)


def encoder(section: dict, **changes) -> VideoEncoder:
    return fill(VideoEncoderConfigurator.from_config({"vae": section | changes}))


def decoder(section: dict, **changes) -> VideoDecoder:
    return fill(VideoDecoderConfigurator.from_config({"vae": section | changes}))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Whole networks


@LAYOUTS
@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (9, 2), (25, 4)])
def test_eight_frames_and_32_pixels_make_a_latent(section, frames, latent_frames):
    latent = encoder(section)(randn(2, 3, frames, 64, 96))
    assert latent.shape == (2, 4, latent_frames, 2, 3)
    assert decoder(section)(latent).shape == (2, 3, frames, 64, 96)


@pytest.mark.parametrize("frames", [2, 8, 12])
def test_surplus_frames_are_cropped_with_a_warning(frames, caplog):
    video, model = randn(1, 3, frames, 32, 32), encoder(TIGHT)
    kept = 1 + (frames - 1) // 8 * 8
    with caplog.at_level(logging.WARNING):
        latent = model(video)
    assert f"Cropping {frames} frames to {kept}" in caplog.text
    assert torch.equal(latent, model(video[:, :, :kept]))


@LAYOUTS
def test_a_latent_sees_its_own_frames_and_those_before(section):
    model, video = encoder(section), randn(1, 3, 17, 32, 32)
    whole = model(video)
    torch.testing.assert_close(model(video[:, :, :9]), whole[:, :, :2])
    for frame in (9, 16):
        changed = video.clone()
        changed[:, :, frame] += 1
        got = model(changed)
        assert torch.equal(got[:, :, :2], whole[:, :, :2])
        assert not torch.allclose(got[:, :, 2], whole[:, :, 2], atol=1e-4)


def test_only_a_causal_decoder_has_the_prefix_property():
    latent = randn(1, 4, 3, 2, 2)
    for causal in (True, False):
        model = decoder(TIGHT, causal_decoder=causal)
        assert model.causal is causal
        whole, prefix = model(latent), model(latent[:, :, :2])
        assert torch.allclose(prefix, whole[:, :, :9], atol=1e-5) is causal


def test_encoding_is_deterministic_and_normalised():
    model, video = encoder(TIGHT), randn(1, 3, 9, 32, 32)
    means, variances = model.encode_moments(video)
    assert variances.shape == (1, 1, 2, 1, 1)
    mean, std = (
        model.per_channel_statistics.get_buffer(f"{k}-of-means").view(1, 4, 1, 1, 1) for k in ("mean", "std")
    )
    torch.testing.assert_close(model(video), (means - mean) / std)
    assert torch.equal(model(video), model(video))


def test_a_batch_is_its_samples():
    video, latent = randn(2, 3, 9, 32, 64), randn(2, 4, 2, 2, 3)
    for model, x in ((encoder(TIGHT), video), (decoder(TIGHT), latent)):
        torch.testing.assert_close(model(x), torch.cat([model(x[:1]), model(x[1:])]))


def test_bfloat16_is_near_float32():
    for model, x in ((encoder(TIGHT), randn(1, 3, 9, 32, 64)), (decoder(TIGHT), randn(1, 4, 2, 2, 3))):
        exact = model(x)
        rough = model.bfloat16()(x.bfloat16())
        assert rough.dtype == torch.bfloat16
        assert 0 < (rough.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("is_conditioned", [False, True])
def test_a_decoder_converts_the_latent_and_its_result_back(is_conditioned):
    model = decoder(TIGHT, timestep_conditioning=is_conditioned).bfloat16()
    latent = randn(1, 4, 3, 2, 2).bfloat16()
    tiles = TilingConfig(None, TemporalTilingConfig(16, 8))
    decodes = [
        lambda x: model(x, generator=torch.Generator().manual_seed(0)),
        lambda x: torch.cat(list(model.tiled_decode(x, tiles, None, torch.Generator().manual_seed(0))), 2),
    ]
    if model.can_stream:
        decodes.append(lambda x: torch.cat(list(model.streamed_decode(x)), 2))
    for decode in decodes:
        result, expected = decode(latent.float()), decode(latent)
        assert (result.dtype, expected.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(result.bfloat16(), expected)


def test_a_decoder_takes_a_latent_without_batch():
    model, latent = decoder(TIGHT), randn(1, 4, 2, 2, 2)
    assert torch.equal(model(latent[0]), model(latent))


# Primitive operations


@pytest.mark.parametrize("mode", list(PaddingModeType))
@pytest.mark.parametrize("causal", [True, False])
def test_convolution_repeats_edge_frames_and_pads_space_as_told(mode, causal):
    layer, x = fill(CausalConv3d(2, 3, padding_mode=mode)), randn(1, 2, 4, 5, 6)
    last = x[:, :, -1:]
    padded = torch.cat([x[:, :, :1], x[:, :, :1], x] if causal else [x[:, :, :1], x, last], dim=2)
    name = "constant" if mode is PaddingModeType.ZEROS else mode.value
    padded = F.pad(padded.transpose(1, 2)[0], (1, 1, 1, 1), mode=name)[None].transpose(1, 2)
    expected = F.conv3d(padded, layer.conv.weight, layer.conv.bias)
    torch.testing.assert_close(layer(x, causal), expected)


def test_large_kernels_are_applied_in_slices_to_the_same_result(monkeypatch):
    module, x = convolution.Conv3d(5, 7, 3, padding=1), torch.randn(1, 5, 4, 6, 6)
    with torch.no_grad():
        whole = module(x)
        monkeypatch.setattr(convolution, "SLICE_BYTES", 3 * module.weight[0].nbytes)
        widths = []

        def one_slice(self, x, weight, bias):
            widths.append(len(weight))
            return F.conv3d(x, weight, bias, padding=1)

        monkeypatch.setattr(torch.nn.Conv3d, "_conv_forward", one_slice)
        torch.testing.assert_close(module(x), whole)
    assert widths == [3, 3, 1]


def kernels(model: torch.nn.Module) -> list[torch.Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv3d)]


def test_channels_of_16_bit_kernels_are_laid_side_by_side_to_the_same_result():
    model, latent = decoder(TIGHT).bfloat16(), randn(1, 4, 3, 2, 2).bfloat16()
    before, values = model(latent), [kernel.clone() for kernel in kernels(model)]
    convolution.with_channels_last(model)
    assert {kernel.stride(1) for kernel in kernels(model)} == {1}
    assert all(torch.equal(*pair) for pair in zip(kernels(model), values))
    torch.testing.assert_close(model(latent), before, atol=0.02, rtol=0.02)
    assert model.conv_in(latent).stride(1) == 1  # so that the next layer need not reorder it


def test_kernels_of_float32_keep_their_order():
    model = convolution.with_channels_last(decoder(TIGHT))
    assert all(kernel.is_contiguous() for kernel in kernels(model))


def test_patches_have_columns_as_the_slower_index():
    x = torch.arange(2 * 4 * 6.0).reshape(1, 2, 1, 4, 6)
    y = patchify(x, 2)
    assert y.shape == (1, 8, 1, 2, 3)
    for c, r, q in itertools.product(range(2), repeat=3):
        assert torch.equal(y[0, 4 * c + 2 * r + q, 0], x[0, c, 0, q::2, r::2])
    assert torch.equal(unpatchify(y, 2), x)


def test_folding_has_time_as_the_slowest_index():
    x = randn(1, 2, 4, 4, 6)
    y = space_to_depth(x, (2, 2, 2))
    for c, a, b, d in itertools.product(range(2), repeat=4):
        assert torch.equal(y[0, 8 * c + 4 * a + 2 * b + d], x[0, c, a::2, b::2, d::2])
    assert torch.equal(depth_to_space(y, (2, 2, 2)), x)
    assert torch.equal(depth_to_space(space_to_depth(x, (1, 2, 2)), (1, 2, 2)), x)


def test_statistics_are_per_channel_and_keep_the_dtype():
    statistics = LatentStatistics(2)
    assert torch.equal(statistics.un_normalize(torch.ones(1, 2, 1, 1, 1)), torch.ones(1, 2, 1, 1, 1))
    statistics.get_buffer("std-of-means").copy_(torch.tensor([2.0, 4.0]))
    statistics.get_buffer("mean-of-means").copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([5.0, 7.0]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 2)
    assert statistics.normalize(x)[0, :, 0, 0, 0].tolist() == [2.0, 2.0]
    assert statistics.un_normalize(x)[0, :, 2, 0, 1].tolist() == [11.0, 27.0]
    noise = randn(2, 2, 3, 2, 2)
    torch.testing.assert_close(statistics.un_normalize(statistics.normalize(noise)), noise)
    assert statistics.normalize(x.bfloat16()).dtype == torch.bfloat16


def test_pixel_norm_makes_unit_vectors_and_keeps_zeros():
    x = randn(1, 8, 2, 3, 3) * 50
    x[:, :, 0] = 0
    y = make_norm(NormLayerType.PIXEL_NORM, 8)(x)
    torch.testing.assert_close(y[:, :, 1].square().mean(dim=1), torch.ones(1, 3, 3))
    assert not y[:, :, 0].any()
    small = make_norm(NormLayerType.PIXEL_NORM, 8)(torch.full((1, 8, 1, 1, 1), 1e-4))
    torch.testing.assert_close(small, torch.full_like(small, 0.5**0.5))  # the square is as large as epsilon


def test_group_norm_has_32_groups():
    x = randn(1, 64, 2, 3, 3) * 50 + 7
    y = make_norm(NormLayerType.GROUP_NORM, 64)(x).view(32, -1)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.var(dim=1, unbiased=False), torch.ones(32), rtol=0, atol=1e-4)


STYLE = Style(NormLayerType.PIXEL_NORM, PaddingModeType.ZEROS)


def test_strided_blocks_are_causal_convolutions():
    block, x = fill(Strided(2, 3, (2, 2, 2), STYLE)), randn(1, 2, 5, 5, 4)
    padded = F.pad(torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2), (1, 1, 1, 1))
    expected = F.conv3d(padded, block.conv.weight, block.conv.bias, stride=2)
    assert expected.shape == (1, 3, 3, 3, 2)
    torch.testing.assert_close(block(x, Flow(causal=True)), expected)


@pytest.mark.parametrize(("stride", "out"), [((1, 2, 2), 8), ((2, 1, 1), 4), ((2, 2, 2), 16), ((2, 2, 2), 8)])
def test_downsampling_skips_to_group_means(stride, out):
    block, x = fill(Downsample(4, out, stride, STYLE)), randn(1, 4, 3, 4, 4)
    block.conv.conv.weight.zero_()
    block.conv.conv.bias.zero_()
    doubled = torch.cat([x[:, :, :1], x], dim=2) if stride[0] == 2 else x
    folded = space_to_depth(doubled, stride)
    expected = torch.stack([part.mean(dim=1) for part in folded.chunk(out, dim=1)], dim=1)
    torch.testing.assert_close(block(x, Flow(causal=True)), expected)


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 2)])
def test_upsampling_drops_the_first_of_doubled_frames(stride):
    block, x = fill(Upsample(8, 4, stride, STYLE)), randn(1, 8, 3, 2, 2)
    full = depth_to_space(block.conv(x, causal=False), stride)
    expected = full[:, :, 1:] if stride[0] == 2 else full
    assert torch.equal(block(x, Flow(causal=False)), expected)


def test_residual_upsampling_repeats_the_input():
    block, x = fill(Upsample(16, 8, (2, 2, 2), STYLE, residual=True)), randn(1, 16, 2, 2, 2)
    block.conv.conv.weight.zero_()
    block.conv.conv.bias.zero_()
    y = block(x, Flow(causal=False))
    assert y.shape == (1, 8, 3, 4, 4)
    once = depth_to_space(x, (2, 2, 2))[:, :, 1:]
    assert torch.equal(y, torch.cat([once] * 4, dim=1))


def test_a_widening_block_has_a_normalised_shortcut():
    block, x = fill(ResBlock(4, 6, STYLE)), randn(2, 4, 3, 3, 3)
    block.conv2.conv.weight.zero_()
    block.conv2.conv.bias.zero_()
    flat = x.flatten(1)
    normed = ((flat - flat.mean(1, True)) / (flat.var(1, False, keepdim=True) + 1e-6).sqrt()).view_as(x)
    normed = normed * block.norm3.weight.view(1, 4, 1, 1, 1) + block.norm3.bias.view(1, 4, 1, 1, 1)
    expected = torch.einsum("oc,bcfhw->bofhw", block.conv_shortcut.weight.flatten(1), normed)
    expected = expected + block.conv_shortcut.bias.view(1, 6, 1, 1, 1)
    torch.testing.assert_close(block(x, Flow(causal=True)), expected)


@pytest.mark.parametrize(("make", "widths"), [(encoder_block, {2: 16, 4: 32}), (decoder_block, {2: 4, 4: 2})])
def test_blocks_of_two_widths_widen_an_encoder_and_narrow_a_decoder(make, widths):
    for multiplier, width in widths.items():
        params = {} if multiplier == 2 else {"multiplier": multiplier}
        block, told = make(Block("res_x_y", params), 8, STYLE)
        assert told == width
        assert block(randn(1, 8, 2, 3, 3), Flow(causal=False)).shape == (1, width, 2, 3, 3)


# Timestep conditioning and injected noise


def test_a_block_is_shifted_and_scaled_after_its_norms():
    block, x, embedding = fill(ResBlock(3, 3, STYLE, timestep=True)), randn(2, 3, 2, 4, 4), randn(2, 12)
    rows = (block.scale_shift_table + embedding.view(2, 4, 3))[..., None, None, None].unbind(1)
    h = block.conv1(F.silu(block.norm1(x) * (1 + rows[1]) + rows[0]), causal=False)
    h = block.conv2(F.silu(block.norm2(h) * (1 + rows[3]) + rows[2]), causal=False)
    torch.testing.assert_close(block(x, Flow(causal=False), embedding), x + h)


def test_the_default_timestep_is_a_twentieth():
    model, latent = decoder(CONDITIONED), randn(2, 4, 2, 2, 2)
    default = model(latent, None, seeded())
    assert torch.equal(default, model(latent, torch.tensor([0.05, 0.05]), seeded()))
    assert torch.equal(default, model(latent, torch.tensor(0.05), seeded()))  # one for all
    other = model(latent, torch.tensor([0.05, 0.4]), seeded())
    assert torch.equal(other[0], default[0])
    assert not torch.allclose(other[1], default[1], atol=1e-3)


def test_the_default_timestep_does_not_follow_the_callers_defaults(strange_defaults):
    model, latent = decoder(CONDITIONED), randn(1, 4, 2, 2, 2)
    expected = model(latent, None, seeded())
    with strange_defaults():
        assert torch.equal(model(latent, None, seeded()), expected)


@pytest.mark.parametrize("given", [0.2, torch.tensor(0.2), torch.full((1,), 0.2), torch.full((2, 1), 0.2)])
def test_a_timestep_is_one_for_all_or_one_for_each_sample(given):
    model, latent = decoder(TIGHT, timestep_conditioning=True), randn(2, 4, 1, 2, 2)
    each = model(latent, torch.full((2,), 0.2), seeded(1))
    assert torch.equal(model(latent, given, seeded(1)), each)
    tiled = torch.cat(list(model.tiled_decode(latent, None, given, seeded(1))), dim=2)
    torch.testing.assert_close(tiled, each)


def test_timesteps_for_another_number_of_samples_are_refused():
    with pytest.raises(ShapeError, match="one timestep, or one for each of 2 samples, not 3"):
        decoder(CONDITIONED)(randn(2, 4, 1, 2, 2), torch.zeros(3))


def test_timesteps_are_scaled_by_the_files_multiplier():
    model, latent = decoder(CONDITIONED), randn(1, 4, 2, 2, 2)
    expected = model(latent, torch.tensor([0.4]), seeded())
    model.timestep_scale_multiplier.fill_(500.0)
    torch.testing.assert_close(model(latent, torch.tensor([0.8]), seeded()), expected)
    assert not torch.allclose(model(latent, torch.tensor([0.4]), seeded()), expected, atol=1e-3)


def test_a_conditioned_decoder_mixes_in_noise_before_un_normalising():
    model, latent = decoder(CONDITIONED), randn(1, 4, 2, 2, 2)
    expected = model(latent, None, seeded())
    mixed = 0.025 * torch.randn(latent.shape, generator=seeded()) + 0.975 * latent
    model.decode_noise_scale = 0.0
    assert torch.equal(model(mixed, None, seeded()), expected)
    assert not torch.allclose(model(latent, None, seeded()), expected, atol=1e-4)


def test_noise_comes_from_the_given_generator_alone():
    model, latent = decoder(CONDITIONED), randn(1, 4, 2, 2, 2)
    before = torch.get_rng_state()
    once = model(latent, None, seeded(1))
    assert torch.equal(model(latent, None, seeded(1)), once)
    assert not torch.allclose(model(latent, None, seeded(2)), once, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_block_injects_one_field_for_all_frames_and_samples():
    block, x = fill(ResBlock(3, 3, STYLE, noise=True)), randn(2, 3, 4, 5, 5)
    block.per_channel_scale1.zero_()
    block.conv1.conv.weight.zero_()
    block.conv2.conv.weight.zero_()
    generator = seeded()
    torch.randn(5, 5, generator=generator)  # drawn for the first scale, though that is zero
    field = torch.randn(5, 5, generator=generator)
    expected = x + block.conv2.conv.bias.view(1, 3, 1, 1, 1) + field * block.per_channel_scale2[:, None]
    torch.testing.assert_close(block(x, Flow(causal=True, generator=seeded())), expected)


def test_an_unconditioned_decoder_draws_nothing():
    model, latent, generator = decoder(TIGHT), randn(1, 4, 2, 2, 2), seeded()
    states = generator.get_state(), torch.get_rng_state()
    assert torch.equal(model(latent, None, generator), model(latent, torch.tensor([0.9])))
    assert torch.equal(generator.get_state(), states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


# Configurations


def test_defaults_are_those_of_a_missing_section():
    with torch.device("meta"):
        half = VideoEncoderConfigurator.from_config({})
        other = VideoDecoderConfigurator.from_metadata({"config": {}})
    assert (half.patch_size, half.latent_channels, half.norm_layer) == (4, 128, NormLayerType.PIXEL_NORM)
    assert half.conv_in.conv.padding_mode == "zeros"
    assert other.conv_in.conv.padding_mode == "reflect"
    assert (other.timestep_conditioning, other.causal) == (True, False)
    assert other.conv_in.conv.weight.shape == (1024, 128, 3, 3, 3)
    assert (other.decode_noise_scale, other.decode_timestep) == (0.025, 0.05)
    assert other.video_downscale_factors == (8, 32, 32)


@pytest.mark.parametrize(("log_var", "channels"), [("uniform", 5), ("constant", 5), ("per_channel", 8)])
def test_log_variances_take_channels_that_the_means_do_not(log_var, channels):
    model = encoder(TIGHT, latent_log_var=log_var)
    assert model.conv_out.conv.out_channels == channels
    assert model(randn(1, 3, 1, 32, 32)).shape == (1, 4, 1, 1, 1)


def test_keys_that_no_network_reads_are_ignored():
    modes = {f"{half}_spatial_padding_mode": "circular" for half in ("encoder", "decoder")}
    extra = modes | {"use_quant_conv": 1}
    latent = randn(1, 4, 1, 2, 2)
    assert torch.equal(decoder(TIGHT, **extra)(latent), decoder(TIGHT)(latent))
    assert not torch.allclose(decoder(TIGHT, spatial_padding_mode="circular")(latent), decoder(TIGHT)(latent))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_blocks": [["attention", {}]]}, "unknown block: attention"),
        ({"encoder_blocks": [["compress_time_x_y", {}]]}, "unknown block: compress_time_x_y"),
        ({"encoder_blocks": [["space", {}]]}, "unknown block: space"),
        ({"decoder_blocks": [["compress_all_res", {}]]}, "unknown layer: compress_all_res"),
        ({"decoder_blocks": [["space", {}]]}, "unknown layer: space"),
        ({"decoder_blocks": [["res_x", {}]]}, "res_x lacks num_layers"),
        ({"encoder_blocks": [["compress_all_res", {"multiplier": 3}]]}, "cannot fold 4 into 12 channels"),
        ({"dims": [2, 1]}, r"unsupported dimensions: config.vae.dims is \[2, 1\]"),
        (
            {"norm_layer": "layer"},
            "config.vae.norm_layer is 'layer'; expected one of 'group_norm', 'pixel_norm'",
        ),
        ({"spatial_padding_mode": "mirror"}, "config.vae.spatial_padding_mode is 'mirror'"),
        ({"latent_log_var": "none"}, "config.vae.latent_log_var is 'none'; expected uniform"),
        ({"latent_channels": "many"}, "config.vae.latent_channels is 'many'; expected int"),
        ({"norm_layer": "group_norm"}, "'group_norm', whose 32 groups do not divide 4 channels"),
        ({"encoder_blocks": [["res_x", None]]}, r"a block is \['res_x', None\]; expected \[name, param"),
        ({"decoder_blocks": ["res_x"]}, r"a block is 'res_x'; expected \[name, parameters\]"),
        ({"decoder_blocks": [["res_x", 1, 2]]}, r"a block is \['res_x', 1, 2\]"),
        ({"encoder_blocks": "res_x"}, r"a block list is 'res_x'; expected \[\[name, parameters\], ...\]"),
        ({"decoder_blocks": [["res_x", {"num_layers": "two"}]]}, "num_layers of the block res_x is 'two'"),
        ({"decoder_blocks": [["res_x", -1]]}, "num_layers of the block res_x is -1; .* at least 0"),
        ({"decoder_blocks": [["res_x_y", {"multiplier": 0}]]}, "res_x_y is 0; .* number, at least 1"),
        ({"encoder_blocks": [["res_x_y", {"multiplier": 1.5}]]}, "multiplier of the block res_x_y is 1.5"),
        (
            {"decoder_blocks": [["compress_all", {"multiplier": 99}]]},
            "compress_all is 99; .* at most its 32 ch",
        ),
        (
            {"decoder_blocks": [["compress_all", {"multiplier": 3, "residual": True}]]},
            r"a residual cannot unfold 32 into 10 channels by \(2, 2, 2\)",
        ),
        ({"decoder_blocks": [["res_x_y", {"inject_noise": True}]]}, "inject_noise .* from 32 to 16 channels"),
        ({"patch_size": 0}, "config.vae.patch_size is 0; expected a whole number, at least 1"),
        ({"latent_channels": 0}, "config.vae.latent_channels is 0; expected a whole number, at least 1"),
        ({"decoder_base_channels": -1}, "config.vae.decoder_base_channels is -1; expected a whole number"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):  # noqa: PT012 (which half raises depends on the key)
        encoder(TIGHT, **changes)
        decoder(TIGHT, **changes)


def test_the_diffusion_decoder_is_named_as_unsupported():
    with pytest.raises(UnsupportedConfigError, match=r"config.vae._class_name is 'CausalDiffusionVAE'"):
        VideoDecoderConfigurator.from_config({"vae": {"_class_name": "CausalDiffusionVAE"}})


def test_conditioned_and_noisy_decoders_have_more_tensors():
    model = decoder(CONDITIONED)
    plain = decoder(CONDITIONED, timestep_conditioning=False)
    more = {k: tuple(v.shape) for k, v in model.state_dict().items() if k not in plain.state_dict()}
    linears = {"linear_1.weight": 256, "linear_1.bias": None, "linear_2.weight": -1, "linear_2.bias": None}
    expected = {"timestep_scale_multiplier": (), "last_scale_shift_table": (2, 32)}
    blocks = [(f"up_blocks.{i}.time_embedder", 128) for i in (0, 2)]
    for prefix, width in [("last_time_embedder", 64), *blocks]:
        for key, inputs in linears.items():
            shape = (width,) if inputs is None else (width, width if inputs == -1 else inputs)
            expected[f"{prefix}.timestep_embedder.{key}"] = shape
    expected |= {f"up_blocks.{i}.res_blocks.0.scale_shift_table": (4, 32) for i in (0, 2)}
    assert more == expected
    noisy = [key for key in plain.state_dict() if "per_channel_scale" in key]
    assert noisy == [f"up_blocks.2.res_blocks.0.per_channel_scale{i}" for i in (1, 2)]
    assert plain.state_dict()[noisy[0]].shape == (32, 1, 1)


# Files

HALVES = {
    "video_encoder": (VideoEncoderConfigurator, VAE_ENCODER_COMFY_KEYS_FILTER),
    "video_decoder": (VideoDecoderConfigurator, VAE_DECODER_COMFY_KEYS_FILTER),
}


@pytest.mark.parametrize("width", [16, 24])
def test_the_first_width_of_a_decoder_is_the_files(tmp_path, width):
    section = TIGHT | {"decoder_blocks": TIGHT["decoder_blocks"][:2]}
    path, model = tmp_path / "x.safetensors", decoder(section, decoder_bottleneck_channels=width)
    assert model.conv_in.conv.out_channels == width
    save_checkpoint(path, {"video_decoder": model}, {"vae": section}, "2.3.0", torch.float32)
    latent = randn(1, 4, 2, 2, 2)
    configurator, key_map = HALVES["video_decoder"]
    for registry in (DummyRegistry(), StateDictRegistry()):
        builder = SingleGPUModelBuilder(configurator, str(path), key_map, registry=registry)
        assert torch.equal(builder.build()(latent), model(latent))
    assert torch.equal(build_model(configurator, Checkpoint(path), key_map)(latent), model(latent))


@pytest.mark.parametrize("name", HALVES)
def test_a_file_of_its_own_may_leave_out_the_prefix(tmp_path, name):
    whole = {"video_encoder": encoder(TIGHT), "video_decoder": decoder(TIGHT)}
    save_checkpoint(tmp_path / "x.safetensors", whole, {"vae": TIGHT}, "2.3.0", torch.float32)
    stored = Checkpoint(tmp_path / "x.safetensors")
    bare = {key.removeprefix("vae."): stored.read(key) for key in stored}
    path = write_tensors(tmp_path / "vae.safetensors", bare, stored.metadata)
    again = build_model(HALVES[name][0], Checkpoint(path), HALVES[name][1])
    assert all(torch.equal(value, whole[name].state_dict()[key]) for key, value in again.state_dict().items())


# Bad input

PIXELS = r"video encoder takes \(batch, 3, frames, height, width\) pixels, not "
LATENTS = r"video decoder takes \(batch, 4, frames, height, width\) latents, not "


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 4, 9, 32, 32), torch.float32, PIXELS + r"\(1, 4, 9, 32, 32\)\.$"),
        ((3, 10, 32, 32), torch.float32, PIXELS + r"\(3, 10, 32, 32\)"),  # nothing is cropped
        ((1, 3, 0, 32, 32), torch.float32, PIXELS + r"\(1, 3, 0, 32, 32\); no size may be 0"),
        ((1, 3, 9, 0, 32), torch.float32, PIXELS + r"\(1, 3, 9, 0, 32\); no size may be 0"),
        ((1, 3, 9, 50, 64), torch.float32, "video of 64x50 pixels cannot be cut .*; use sides that are mult"),
        ((1, 3, 9, 48, 32), torch.float32, "video of 32x48 pixels .* multiples of 32, at least 32"),
        ((1, 3, 9, 32, 32), torch.uint8, r"not torch.uint8; scale them to \[-1, 1\]"),
        ((1, 3, 9, 32, 32), torch.bfloat16, r"not take torch.bfloat16 pixels; .* \.to\(torch.float32\)"),
    ],
)
def test_videos_that_an_encoder_cannot_take(shape, dtype, message, caplog):
    video = torch.zeros(shape, dtype=dtype)
    for call in (encoder(TIGHT), encoder(TIGHT).encode_moments):
        with pytest.raises(InputError, match=message):
            call(video)
    assert "Cropping" not in caplog.text


def test_strided_convolutions_take_sides_that_are_no_multiples():
    strided = encoder(TIGHT, encoder_blocks=[["compress_space", {}]] * 3)
    assert strided(randn(1, 3, 1, 36, 68)).shape == (1, 4, 1, 2, 3)
    with pytest.raises(ShapeError, match="video of 68x38 pixels"):  # patches are cut, and come out even
        strided(randn(1, 3, 1, 38, 68))
    mixed = encoder(TIGHT, encoder_blocks=[["compress_space", {}], ["compress_space_res", {}]])
    assert mixed(randn(1, 3, 1, 12, 16)).shape == (1, 4, 1, 1, 1)
    with pytest.raises(ShapeError, match=r"video of 16x20 pixels .* multiples of 16"):
        mixed(randn(1, 3, 1, 20, 16))


def test_an_encoder_that_folds_16_frames_says_so_where_there_are_too_few():
    model = encoder(TIGHT, encoder_blocks=[["compress_time_res", {}]] * 4)
    assert model(randn(1, 3, 17, 8, 8)).shape == (1, 4, 2, 2, 2)
    with pytest.raises(ShapeError, match=r"folds more than 8 .* meets 2 of them, .*; use 16k \+ 1"):
        model(randn(1, 3, 9, 8, 8))


def test_an_encoder_that_reflects_needs_two_latents_a_side():
    model = encoder(TIGHT, spatial_padding_mode="reflect")
    assert model(randn(1, 3, 1, 64, 64)).shape == (1, 4, 1, 2, 2)
    with pytest.raises(ShapeError, match=r"video of 64x32 pixels .* multiples of 32, at least 64"):
        model(randn(1, 3, 1, 32, 64))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 5, 2, 2, 2), torch.float32, LATENTS + r"\(1, 5, 2, 2, 2\)\.$"),
        ((4, 2, 2), torch.float32, LATENTS + r"\(4, 2, 2\)"),
        ((1, 4, 0, 2, 2), torch.float32, LATENTS + r"\(1, 4, 0, 2, 2\); no size may be 0"),
        ((1, 4, 2, 0, 2), torch.float32, LATENTS + r"\(1, 4, 2, 0, 2\); no size may be 0"),
        ((1, 4, 2, 1, 2), torch.float32, "reflects edges, .* a side of 1 latent .* of 64 pixels or more"),
        ((1, 4, 2, 2, 2), torch.int32, "takes floating-point latents, not torch.int32"),
    ],
)
def test_latents_that_a_decoder_cannot_take(shape, dtype, message):
    model, latent = decoder(TIGHT), torch.zeros(shape, dtype=dtype)
    for call in (model, lambda x: next(model.streamed_decode(x)), lambda x: next(model.tiled_decode(x))):
        with pytest.raises(InputError, match=message):
            call(latent)
