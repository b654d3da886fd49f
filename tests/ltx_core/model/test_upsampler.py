"""The latent upsampler: sizes, its formula, resampling, configurations, bad input."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from ltx_core.errors import ConfigError, InputError
from ltx_core.model.common.folding import depth_to_space
from ltx_core.model.upsampler import LatentUpsampler, LatentUpsamplerConfigurator, upsample_video
from ltx_core.model.upsampler.model import BlurDown, RationalResampler
from ltx_core.model.video_vae import VideoEncoderConfigurator

SPATIAL = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}
RATIONAL = SPATIAL | {"rational_resampler": True}
TEMPORAL = SPATIAL | {"spatial_upsample": False, "temporal_upsample": True}
BOTH = SPATIAL | {"temporal_upsample": True}
FLAT = SPATIAL | {"dims": 2}


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights that keep activations near unit size; constants stay."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("kernel"):
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name or "std" in name:
                tensor.copy_(1 + 0.2 * noise.clamp(-2, 2))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.2 * noise)
    return module.eval().requires_grad_(False)


def build(section: dict, **changes) -> LatentUpsampler:
    return fill(LatentUpsamplerConfigurator.from_config(section | changes))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# Sizes


@pytest.mark.parametrize(
    ("section", "size"),
    [
        (SPATIAL, (3, 10, 8)),
        (RATIONAL, (3, 10, 8)),
        (RATIONAL | {"spatial_scale": 1.5}, (3, 8, 6)),  # an odd side is rounded up
        (RATIONAL | {"spatial_scale": 0.75}, (3, 4, 3)),
        (RATIONAL | {"spatial_scale": 4.0}, (3, 20, 16)),
        (TEMPORAL, (5, 5, 4)),
        (BOTH, (5, 10, 8)),
        (FLAT, (3, 10, 8)),
    ],
)
def test_sizes(section, size):
    assert build(section)(randn(2, 4, 3, 5, 4)).shape == (2, 4, *size)


def test_one_frame_stays_one():
    for section in (SPATIAL, TEMPORAL, BOTH):
        assert build(section)(randn(1, 4, 1, 2, 3)).shape[2] == 1


def test_settings_that_other_settings_silence():
    latent = randn(1, 4, 2, 3, 3)
    assert torch.equal(build(SPATIAL, spatial_scale=1.5)(latent), build(SPATIAL)(latent))
    quiet = build(TEMPORAL, spatial_scale=1.0, rational_resampler=True)
    assert torch.equal(quiet(latent), build(TEMPORAL)(latent))


def test_a_batch_is_its_samples():
    latent = randn(2, 4, 2, 3, 4)
    for section in (SPATIAL, RATIONAL, TEMPORAL, BOTH, FLAT):
        model = build(section)
        near(model(latent), torch.cat([model(latent[:1]), model(latent[1:])]))


def test_two_dimensions_take_frames_one_by_one():
    model, latent = build(FLAT), randn(1, 4, 3, 4, 4)
    frames = [model(latent[:, :, i : i + 1]) for i in range(3)]
    near(model(latent), torch.cat(frames, dim=2))
    other = build(SPATIAL)  # in three, norms and convolutions look at all frames
    assert not torch.allclose(other(latent)[:, :, :1], other(latent[:, :, :1]), atol=1e-2)


def test_bfloat16_is_near_float32():
    for section in (SPATIAL, RATIONAL | {"spatial_scale": 1.5}, TEMPORAL):
        model, latent = build(section), randn(1, 4, 3, 4, 4)
        exact = model(latent)
        rough = model.bfloat16()(latent.bfloat16())
        assert rough.dtype == torch.bfloat16
        assert 0 < (rough.float() - exact).norm() < 0.1 * exact.norm()


def test_autocast_converts_what_a_network_would_refuse():
    model, latent = build(SPATIAL), randn(1, 4, 2, 3, 3)
    exact = model(latent)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(latent.bfloat16())
    assert (rough.float() - exact).norm() < 0.1 * exact.norm()


# The formula


def by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor, resample) -> torch.Tensor:
    """One block a stage around `resample`, from the weights by their names in the file."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        h = F.silu(norm(f"{name}.norm1", conv(f"{name}.conv1", x)))
        return F.silu(norm(f"{name}.norm2", conv(f"{name}.conv2", h)) + x)

    x = block("res_blocks.0", F.silu(norm("initial_norm", conv("initial_conv", x))))
    return conv("final_conv", block("post_upsample_res_blocks.0", resample(weights, x)))


def twice_in_space(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    key = "upsampler.conv" if "upsampler.conv.weight" in weights else "upsampler.0"
    frames = [F.conv2d(f, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=1) for f in x.unbind(2)]
    return torch.stack([F.pixel_shuffle(frame, 2) for frame in frames], dim=2)


def twice_in_time(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = F.conv3d(x, weights["upsampler.0.weight"], weights["upsampler.0.bias"], padding=1)
    return torch.stack([x[:, 0::2], x[:, 1::2]], dim=3).flatten(2, 3)[:, :, 1:]


@pytest.mark.parametrize(
    ("section", "resample"),
    [(SPATIAL, twice_in_space), (RATIONAL, twice_in_space), (TEMPORAL, twice_in_time)],
)
def test_the_network_is_its_formula(section, resample):
    model, latent = build(section), randn(2, 4, 3, 3, 4)
    near(model(latent), by_hand(model.state_dict(), latent, resample))


def test_stages_have_as_many_blocks_as_told():
    latent = randn(1, 4, 2, 3, 3)
    for count in (0, 2):
        model = build(SPATIAL, num_blocks_per_stage=count)
        assert (len(model.res_blocks), len(model.post_upsample_res_blocks)) == (count, count)
        assert model(latent).shape == (1, 4, 2, 6, 6)


def test_shuffling_has_time_as_the_slowest_index():
    x = randn(1, 16, 2, 3, 3)
    y = depth_to_space(x, (2, 2, 2))
    assert y.shape == (1, 2, 4, 6, 6)
    for c, t, u, v in itertools.product(range(2), repeat=4):
        assert torch.equal(y[0, c, t::2, u::2, v::2], x[0, 8 * c + 4 * t + 2 * u + v])
    frames = x.transpose(1, 2).flatten(0, 1)
    expected = F.pixel_shuffle(frames, 2).unflatten(0, (1, 2)).transpose(1, 2)
    assert torch.equal(depth_to_space(x, (1, 2, 2)), expected)


# Rational resampling


def test_blurring_is_binomial_and_strided():
    x = torch.zeros(1, 2, 9, 9)
    x[0, 1, 4, 4] = 256
    y = BlurDown(2)(x)
    assert y.shape == (1, 2, 5, 5)
    assert not y[0, 0].any()
    assert y[0, 1, 1:4, 1:4].tolist() == [[1, 6, 1], [6, 36, 6], [1, 6, 1]]
    assert y[0, 1].sum() == 64


def test_blurring_keeps_constants_away_from_the_zeros_outside():
    y = BlurDown(2)(torch.ones(1, 1, 9, 9))
    assert y[0, 0, 1:-1, 1:-1].eq(1).all()
    assert y[0, 0, 0, 0] == (11 / 16) ** 2
    x = torch.ones(1, 1, 3, 3)
    assert BlurDown(1)(x) is x


def test_resampling_is_a_shuffle_then_a_blur():
    model, x = fill(RationalResampler(4, 1.5)), randn(2, 4, 5, 4)
    up = F.pixel_shuffle(F.conv2d(x, model.conv.weight, model.conv.bias, padding=1), 3)
    kernel = torch.tensor([1.0, 4, 6, 4, 1]).outer(torch.tensor([1.0, 4, 6, 4, 1])) / 256
    blurred = F.conv2d(up.flatten(0, 1)[:, None], kernel[None, None], stride=2, padding=2)
    near(model(x), blurred.view(2, 4, 8, 6))


def test_the_blur_is_a_constant_even_without_weights():
    with torch.device("meta"):
        model = LatentUpsamplerConfigurator.from_config(RATIONAL | {"spatial_scale": 1.5})
    kernel = model.state_dict()["upsampler.blur_down.kernel"]
    assert (kernel.shape, kernel.device.type, kernel.sum().item()) == ((1, 1, 5, 5), "cpu", 1)
    assert model.initial_conv.weight.is_meta


# Around the network


def test_the_network_sees_un_normalised_latents():
    blocks = {"latent_channels": 4, "encoder_blocks": []}
    encoder = fill(VideoEncoderConfigurator.from_config({"vae": blocks}))
    model, latent = build(SPATIAL), randn(1, 4, 2, 3, 4)
    statistics = encoder.per_channel_statistics
    mean, std = (statistics.get_buffer(f"{which}-of-means").view(1, 4, 1, 1, 1) for which in ("mean", "std"))
    got = upsample_video(latent, encoder, model)
    near(got, (model(latent * std + mean) - mean) / std)
    assert not torch.allclose(got, model(latent), atol=1e-2)
    assert torch.equal(upsample_video(latent, encoder, lambda x: model(x)), got)


# Configurations

PUBLISHED = {
    "spatial x2 1.0": (
        {"mid_channels": 1024, "rational_resampler": True},
        "upsampler.conv",
        (4096, 1024, 3, 3),
    ),
    "spatial x2": ({"mid_channels": 1024}, "upsampler.0", (4096, 1024, 3, 3)),
    "spatial x1.5": (
        {"mid_channels": 1024, "rational_resampler": True, "spatial_scale": 1.5},
        "upsampler.conv",
        (9216, 1024, 3, 3),
    ),
    "temporal x2": (
        {
            "spatial_upsample": False,
            "temporal_upsample": True,
            "spatial_scale": 1.0,
            "rational_resampler": True,
        },
        "upsampler.0",
        (1024, 512, 3, 3, 3),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_tensors(name):
    section, resampler, weight = PUBLISHED[name]
    with torch.device("meta"):
        model = LatentUpsamplerConfigurator.from_metadata(
            {"config": section | {"_class_name": "LatentUpsampler"}}
        )
    mid = section.get("mid_channels", 512)
    expected = {"initial_norm.weight": (mid,), "initial_norm.bias": (mid,)}
    layers = {"initial_conv": (mid, 128, 3, 3, 3), "final_conv": (128, mid, 3, 3, 3), resampler: weight}
    for stage, block, which in itertools.product(
        ("res_blocks", "post_upsample_res_blocks"), range(4), (1, 2)
    ):
        layers[f"{stage}.{block}.conv{which}"] = (mid, mid, 3, 3, 3)
        expected |= {f"{stage}.{block}.norm{which}.{kind}": (mid,) for kind in ("weight", "bias")}
    for key, shape in layers.items():
        expected |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
    if resampler == "upsampler.conv":
        expected["upsampler.blur_down.kernel"] = (1, 1, 5, 5)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected


def test_attributes_are_the_settings():
    model = LatentUpsampler(4, 32, 1, spatial_scale=1.5, rational_resampler=True)
    for name, value in (RATIONAL | {"spatial_scale": 1.5, "dims": 3, "temporal_upsample": False}).items():
        assert getattr(model, name) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_upsample": False}, "Either spatial_upsample or temporal_upsample must be True"),
        ({"mid_channels": 48}, "mid_channels is 48; expected a multiple of 32"),
        ({"dims": 4}, "dims must be 3, or 2 with plain spatial upsampling"),
        ({"dims": 2, "temporal_upsample": True}, "dims must be 3, or 2"),
        ({"dims": 2, "rational_resampler": True}, "dims must be 3, or 2"),
        ({"rational_resampler": True, "spatial_scale": 3.0}, "spatial_scale is 3.0; .* 0.75, 1.5, 2.0, 4.0"),
        ({"mid_channels": "big"}, "config.mid_channels is 'big'; expected int"),
        ({"mid_channels": -32}, "config.mid_channels is -32; expected a whole number, at least 1"),
        ({"in_channels": 0}, "config.in_channels is 0; expected a whole number, at least 1"),
        ({"temporal_upsample": 1}, "config.temporal_upsample is 1; expected bool"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        LatentUpsamplerConfigurator.from_config(SPATIAL | changes)


# Bad input


TAKES = r"The upsampler takes \(batch, 4, frames, height, width\) latents, not "


@pytest.mark.parametrize("section", [SPATIAL, FLAT])
@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 5, 2, 3, 3), torch.float32, TAKES + r"\(1, 5, 2, 3, 3\)\.$"),
        ((4, 2, 3, 3), torch.float32, TAKES + r"\(4, 2, 3, 3\)"),
        ((1, 4, 0, 3, 3), torch.float32, TAKES + r"\(1, 4, 0, 3, 3\); no size may be 0"),
        ((1, 4, 2, 0, 3), torch.float32, TAKES + r"\(1, 4, 2, 0, 3\); no size may be 0"),
        ((1, 4, 2, 3, 3), torch.bfloat16, "is torch.float32 and does not take torch.bfloat16 latents"),
        ((1, 4, 2, 3, 3), torch.int64, "takes floating-point latents, not torch.int64"),
    ],
)
def test_latents_that_do_not_fit(section, shape, dtype, message):
    model, latent = build(section), torch.zeros(shape, dtype=dtype)
    with pytest.raises(InputError, match=message):
        model(latent)
    with pytest.raises(InputError, match=message):  # before the statistics are applied
        upsample_video(latent, VideoEncoderConfigurator.from_config({"vae": {"latent_channels": 4}}), model)
