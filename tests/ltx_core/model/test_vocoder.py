"""The vocoders: lengths, rates, filters, activations, bandwidth extension, configurations, bad input."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from ltx_core.errors import ConfigError, InputError
from ltx_core.model.audio_vae import (
    Vocoder,
    VocoderConfigurator,
    VocoderWithBWE,
)
from ltx_core.model.audio_vae.bandwidth_extension import MelSTFT, hann_sinc_filter, upsample_by
from ltx_core.model.audio_vae.processor import mel_filterbank, resample
from ltx_core.model.audio_vae.signals import Conv1d, ConvTranspose1d, as_signal
from ltx_core.model.audio_vae.vocoder import (
    AntiAliased,
    ResBlock,
    SnakeBeta,
    kaiser_sinc_filter,
)

DILATIONS = [[1, 3, 5]] * 3
PUBLISHED_20 = {
    "resblock": "1",
    "stereo": True,
    "upsample_initial_channel": 1024,
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": DILATIONS,
}
BIG = {
    "resblock": "AMP1",
    "stereo": True,
    "activation": "snakebeta",
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": DILATIONS,
}
PUBLISHED_23 = {
    "vocoder": BIG
    | {
        "upsample_initial_channel": 1536,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    },
    "bwe": BIG
    | {
        "upsample_initial_channel": 512,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}
SMALL = PUBLISHED_20 | {"upsample_initial_channel": 32}
FEW = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}
TINY = (
    SMALL | FEW | {"upsample_rates": [3, 2], "upsample_kernel_sizes": [7, 4], "upsample_initial_channel": 8}
)
# 4 samples a mel frame at 8 kHz, extended to 24 kHz by a generator with 12 samples a frame of hop 4
TINY_BWE = {
    "vocoder": BIG
    | FEW
    | {"upsample_initial_channel": 8, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4]},
    "bwe": PUBLISHED_23["bwe"]
    | FEW
    | {
        "upsample_initial_channel": 8,
        "upsample_rates": [6, 2],
        "upsample_kernel_sizes": [12, 4],
        "input_sampling_rate": 8000,
        "output_sampling_rate": 24000,
        "hop_length": 4,
        "n_fft": 16,
    },
}


def fill(module: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """Random weights that keep activations near unit size; filters stay."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("filter"):
                continue
            noise = torch.randn(tensor.shape, generator=generator) * scale
            tensor.copy_(noise / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.2 * noise)
    return module.eval().requires_grad_(False)


def build(section: dict, **changes) -> Vocoder | VocoderWithBWE:
    return fill(VocoderConfigurator.from_config({"vocoder": section | changes}))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# Generators


@pytest.mark.parametrize("frames", [1, 5])
def test_each_mel_frame_makes_as_many_samples_as_the_rates_multiply_to(frames):
    model = build(SMALL)
    assert model.output_sampling_rate == 24000
    waveform = model(randn(2, 2, frames, 64))
    assert waveform.shape == (2, 2, 240 * frames)
    assert waveform.abs().max() < 1


def test_the_rate_is_the_files():
    assert build(TINY, output_sampling_rate=44100).output_sampling_rate == 44100


def test_batches_and_bfloat16():
    model, mel = build(TINY), randn(2, 2, 4, 64)
    exact = model(mel)
    torch.testing.assert_close(exact, torch.cat([model(mel[:1]), model(mel[1:])]))
    rough = model.bfloat16()(mel.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.float() - exact).norm() < 0.1 * exact.norm()


def test_samples_hear_eighteen_frames_around_them():
    model, mel = build(SMALL), randn(1, 2, 48, 64)
    changed = mel.clone()
    changed[:, :, 24] += 1
    touched = (model(changed) - model(mel)).abs().amax(dim=1)[0].view(48, 240).amax(dim=1) > 0
    frames = torch.nonzero(touched).flatten()
    assert frames[0] >= 24 - 18
    assert frames[-1] <= 24 + 18
    assert {22, 23, 24, 25, 26} <= set(frames.tolist())


def test_channels_of_the_spectrogram_are_stacked_left_first():
    model, mel = build(TINY), randn(1, 2, 4, 64)
    seen = []
    model.conv_pre.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(mel)
    assert torch.equal(seen[0].squeeze(2), torch.cat([mel[:, 0].mT, mel[:, 1].mT], dim=1))


@pytest.mark.parametrize(("tanh", "apply"), [(True, True), (False, True), (True, False)])
def test_the_final_activation(tanh, apply):
    settings = {key: value for key, value in TINY.items() if key not in ("stereo",)}
    model = Vocoder(**settings, use_tanh_at_final=tanh, apply_final_activation=apply)
    bare = Vocoder(**settings, apply_final_activation=False)
    mel = randn(1, 2, 4, 64) * 30
    raw, got = fill(bare)(mel), fill(model)(mel)
    assert raw.abs().max() > 1
    expected = (raw.tanh() if tanh else raw.clamp(-1, 1)) if apply else raw
    assert torch.equal(got, expected)


def on_signal(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A layer of the vocoder on (B, C, N)."""
    return layer(x[:, :, None]).squeeze(2)


def leaky(x: torch.Tensor, slope: float) -> torch.Tensor:
    return torch.where(x > 0, x, slope * x)


def test_the_first_generation_is_its_formula():
    model, mel = (
        build(TINY, resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 3], [1, 2]]),
        randn(1, 2, 4, 64),
    )
    x = model.conv_pre(mel.mT.reshape(1, 128, 1, 4))
    for stage in range(2):
        x = model.ups[stage](leaky(x, 0.1))
        branches = []
        for block in model.resblocks[2 * stage : 2 * stage + 2]:
            y = x
            for first, second in zip(block.convs1, block.convs2):
                y = y + second(leaky(first(leaky(y, 0.1)), 0.1))
            branches.append(y)
        x = torch.stack(branches).mean(dim=0)
    torch.testing.assert_close(model(mel), model.conv_post(leaky(x, 0.01)).squeeze(2).tanh())


def test_dilated_convolutions_keep_the_length():
    block = fill(ResBlock(2, 3, [1, 5], snake=None))
    assert [conv.dilation for conv in block.convs1] == [(1,), (5,)]
    assert [conv.dilation for conv in block.convs2] == [(1,), (1,)]
    assert on_signal(block, randn(1, 2, 9)).shape == (1, 2, 9)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (Conv1d, torch.nn.Conv1d, {"kernel_size": 5, "padding": 6, "dilation": 3}),
        (Conv1d, torch.nn.Conv1d, {"kernel_size": 3, "stride": 2, "groups": 2}),
        (ConvTranspose1d, torch.nn.ConvTranspose1d, {"kernel_size": 7, "stride": 3, "padding": 2}),
        (
            ConvTranspose1d,
            torch.nn.ConvTranspose1d,
            {"kernel_size": 4, "stride": 5, "output_padding": 1, "groups": 2},
        ),
    ],
)
def test_signals_are_convolved_as_by_pytorch(ours, theirs, options):
    layer, x = fill(ours(6, 4, **options)), randn(2, 6, 11)
    reference = theirs(6, 4, **options)
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(as_signal(x)).squeeze(2), reference(x))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_a_vocoder_keeps_channels_side_by_side_on_a_cpu():
    """Once in another order, all that follows would be slow, with the same results."""
    model, strides = build(TINY_BWE), []
    for layer in model.modules():
        if isinstance(layer, Conv1d | ConvTranspose1d | AntiAliased):
            layer.register_forward_hook(lambda layer, given, made: strides.append(made.stride(1)))
    model(randn(1, 2, 4, 64))
    assert strides
    assert set(strides) == {1}


# Filters and snakes


def test_the_low_pass_filter():
    kernel = kaiser_sinc_filter()
    half = [0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.44320980]
    assert kernel.shape == (1, 1, 12)
    assert kernel.flatten()[:6].tolist() == pytest.approx(half, abs=1e-7)
    assert torch.equal(kernel, kernel.flip(-1))
    assert kernel.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("length", [1, 2, 5, 7, 40])
def test_the_activation_is_the_snake_between_two_changes_of_rate(length):
    """Zeros between the samples, filter, snake, filter, every second sample; edges repeated at both rates."""
    layer, x = AntiAliased(3).requires_grad_(False), randn(2, 3, length)
    layer.act.alpha.copy_(torch.tensor([0.0, 0.5, 1.0]))
    layer.act.beta.copy_(torch.tensor([0.3, -0.5, 0.0]))
    lopsided = randn(2, 12) / 4  # so that a filter that is turned round is seen
    layer.upsample.filter.copy_(lopsided[:1])
    layer.downsample["lowpass"].filter.copy_(lopsided[1:])
    raising, lowering = (each.expand(3, 1, 12) for each in lopsided)
    padded = F.pad(x, (5, 5), mode="replicate")
    raised = 2 * F.conv_transpose1d(padded, raising, stride=2, groups=3)[..., 15:-15]
    expected = F.conv1d(
        F.pad(on_signal(layer.act, raised), (5, 6), mode="replicate"), lowering, stride=2, groups=3
    )
    assert expected.shape == x.shape
    torch.testing.assert_close(on_signal(layer, x), expected)


def test_gradients_of_the_activation_are_those_of_its_formula():
    layer = AntiAliased(2).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, randn(1, 2, 1, 9).double().requires_grad_())


def test_the_activation_keeps_constants_and_what_is_slow():
    layer = AntiAliased(1).requires_grad_(False)
    layer.act.beta.fill_(30.0)  # no harmonics
    tone = torch.sin(2 * math.pi * 0.05 * torch.arange(200.0))[None, None]
    torch.testing.assert_close(on_signal(layer, tone)[..., 10:-10], tone[..., 10:-10], rtol=0, atol=0.002)
    level = torch.full((1, 1, 9), 0.7)
    torch.testing.assert_close(on_signal(layer, level), level)


def test_filters_are_those_of_the_file():
    layer, x = AntiAliased(2), randn(1, 2, 20)
    before = on_signal(layer, x)
    layer.upsample.filter.mul_(1.1)
    assert not torch.allclose(on_signal(layer, x), before, atol=1e-3)
    layer.upsample.filter.div_(1.1)
    layer.downsample["lowpass"].filter.mul_(1.1)
    torch.testing.assert_close(on_signal(layer, x), before * 1.1)


def test_snakes_have_logarithmic_parameters():
    snake, x = SnakeBeta(2), randn(1, 2, 9)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([0.0, 1.0]))
        snake.beta.copy_(torch.tensor([0.5, -0.5]))
    a, b = torch.tensor([1.0, math.e])[:, None], torch.tensor([0.5, -0.5]).exp()[:, None]
    torch.testing.assert_close(on_signal(snake, x), x + (a * x).sin() ** 2 / b)


def test_plain_snakes_have_one_parameter_in_the_residual_blocks_alone():
    sizes = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1]]}
    sizes |= {"upsample_rates": [2], "upsample_kernel_sizes": [4], "upsample_initial_channel": 8}
    plain, beta = (fill(Vocoder(**sizes, resblock="AMP1", activation=a)) for a in ("snake", "snakebeta"))
    assert set(beta.state_dict()) - set(plain.state_dict()) == {
        "resblocks.0.acts1.0.act.beta",
        "resblocks.0.acts2.0.act.beta",
    }
    shared = plain.state_dict()
    for name in ("acts1", "acts2"):
        shared[f"resblocks.0.{name}.0.act.beta"] = shared[f"resblocks.0.{name}.0.act.alpha"]
    beta.load_state_dict(shared)
    assert torch.equal(plain(randn(1, 2, 4, 64)), beta(randn(1, 2, 4, 64)))


def test_anti_aliasing_keeps_harmonics_from_folding_back():
    layer, tone = AntiAliased(1), 0.5 * torch.sin(2 * math.pi * 0.3 * torch.arange(400.0))[None, None]

    def folded(y: torch.Tensor) -> float:
        """Share of the tone that its second harmonic, 0.6 of the rate, leaves at 0.4."""
        spectrum = torch.fft.rfft(y[0, 0, 100:300] * torch.hann_window(200)).abs()
        return (spectrum[80] / spectrum[60]).item()

    with torch.no_grad():
        assert folded(on_signal(layer.act, tone)) > 0.1
        assert folded(on_signal(layer, tone)) < 0.5 * folded(on_signal(layer.act, tone))


# Bandwidth extension


@pytest.mark.parametrize("frames", [1, 5])
def test_extension_multiplies_the_samples_by_the_ratio_of_the_rates(frames):
    model = build(TINY_BWE)
    assert (model.input_sampling_rate, model.output_sampling_rate) == (8000, 24000)
    waveform = model(randn(2, 2, frames, 64))
    assert waveform.shape == (2, 2, 12 * frames)
    assert waveform.abs().max() <= 1


def test_lengths_that_are_no_multiple_of_the_hop_are_padded_and_cut():
    first = TINY_BWE["vocoder"] | {"upsample_rates": [3, 1], "upsample_kernel_sizes": [3, 3]}
    model = build(TINY_BWE | {"vocoder": first})
    assert model.vocoder(randn(1, 2, 5, 64)).shape[-1] == 15
    assert model(randn(1, 2, 5, 64)).shape == (1, 2, 45)


def test_without_a_residual_the_extension_is_a_resampler():
    model, mel = build(TINY_BWE), randn(1, 2, 10, 64)
    model.bwe_generator.conv_post.weight.zero_()
    stage = model.vocoder(mel)
    assert stage.abs().max() > 0.01
    expected = upsample_by(stage, 3).clamp(-1, 1)
    torch.testing.assert_close(model(mel), expected)


def test_the_residual_comes_from_the_mel_of_the_first_stage():
    model, mel = build(TINY_BWE), randn(1, 2, 6, 64)
    stage = model.vocoder(mel)
    spectrum = model.mel_stft(stage)
    assert spectrum.shape == (1, 2, 6, 64)
    residual = model.bwe_generator(spectrum)
    assert not model.bwe_generator.apply_final_activation
    torch.testing.assert_close(model(mel), (residual + upsample_by(stage, 3)).clamp(-1, 1))


def test_extension_is_float32_whatever_the_weights():
    model, mel = build(TINY_BWE), randn(1, 2, 6, 64)
    halved = build(TINY_BWE).bfloat16()
    widened = build(TINY_BWE)
    widened.load_state_dict({k: v.float() for k, v in halved.state_dict().items()})
    got = halved(mel.bfloat16())
    assert got.dtype == torch.float32
    assert torch.equal(got, widened(mel.bfloat16().float()))
    assert halved.conv_pre.weight.dtype == torch.bfloat16
    assert not torch.equal(got, model(mel))


def test_a_residual_of_another_length_is_refused():
    model = build(TINY_BWE | {"bwe": TINY_BWE["bwe"] | {"upsample_rates": [3, 2]}})
    with pytest.raises(AssertionError, match="generates 38 samples for the 72 of the upsampled sound"):
        model(randn(1, 2, 6, 64))


def test_the_wrapper_shows_the_first_generators_ends():
    model = build(TINY_BWE)
    assert model.conv_pre is model.vocoder.conv_pre
    assert model.conv_post is model.vocoder.conv_post
    assert not any(name.startswith("conv_") for name in model.state_dict())


def real_stft(n_fft: int, hop: int) -> MelSTFT:
    """A `MelSTFT` with a Hann window's Fourier basis and Slaney bands."""
    stft = MelSTFT(n_fft, hop, 8)
    turn = 2 * math.pi * torch.arange(n_fft // 2 + 1)[:, None] * torch.arange(n_fft) / n_fft
    basis = torch.cat([turn.cos(), -turn.sin()]) * torch.hann_window(n_fft)
    stft.stft_fn.forward_basis.copy_(basis[:, None])
    stft.mel_basis.copy_(mel_filterbank(n_fft, 8, 16000).T)
    return stft


def test_the_mel_of_the_extension_is_causal():
    stft, x = real_stft(64, 16), randn(2, 2, 160)
    mel = stft(x)
    assert mel.shape == (2, 2, 10, 8)
    padded = F.pad(x, (48, 0)).flatten(0, 1)
    window = torch.hann_window(64)
    magnitude = torch.stft(padded, 64, 16, window=window, center=False, return_complex=True).abs()
    expected = (magnitude.mT @ mel_filterbank(64, 8, 16000)).clamp(min=1e-5).log().view(2, 2, 10, 8)
    torch.testing.assert_close(mel, expected, rtol=1e-4, atol=1e-4)
    changed = x.clone()
    changed[..., 80:] += 1
    assert torch.equal(stft(changed)[:, :, :5], mel[:, :, :5])
    assert not torch.allclose(stft(changed)[:, :, 5], mel[:, :, 5])


@pytest.mark.parametrize("ratio", [2, 3])
def test_integer_upsampling_repeats_edges_and_else_is_the_resampler(ratio):
    x = randn(1, 2, 60)
    got = upsample_by(x, ratio)
    assert got.shape == (1, 2, 60 * ratio)
    expected, inner = resample(x, 8000, 8000 * ratio), slice(8 * ratio, -8 * ratio)
    torch.testing.assert_close(got[..., inner], expected[..., inner], rtol=0, atol=1e-5)
    flat = torch.ones(1, 1, 30)
    torch.testing.assert_close(upsample_by(flat, ratio), torch.ones(1, 1, 30 * ratio), rtol=0, atol=5e-3)
    assert (resample(flat, 8000, 8000 * ratio) - 1).abs().max() > 0.05
    assert hann_sinc_filter(ratio).shape == (1, 1, 14 * ratio + 1)


# Configurations


def parameters(model: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values())


def test_published_vocoders_have_the_published_tensors():
    with torch.device("meta"):
        old = VocoderConfigurator.from_metadata({"config": {"vocoder": PUBLISHED_20}})
        new = VocoderConfigurator.from_config({"vocoder": PUBLISHED_23})
    shapes = {key: tuple(tensor.shape) for key, tensor in old.state_dict().items()}
    assert len(shapes) == 194
    assert round(parameters(old), -5) == 55_600_000
    ups = [(1024, 512, 16), (512, 256, 15), (256, 128, 8), (128, 64, 4), (64, 32, 4)]
    expected = {"conv_pre": (1024, 128, 7), "conv_post": (2, 32, 7)} | {
        f"ups.{i}": s for i, s in enumerate(ups)
    }
    for block, which, index in itertools.product(range(15), (1, 2), range(3)):
        width = ups[block // 3][1]
        expected[f"resblocks.{block}.convs{which}.{index}"] = (width, width, (3, 7, 11)[block % 3])
    assert {key: shapes[f"{key}.weight"] for key in expected} == expected
    assert set(shapes) == {f"{key}.{kind}" for key in expected for kind in ("weight", "bias")}

    shapes = {key: tuple(tensor.shape) for key, tensor in new.state_dict().items()}
    assert len(shapes) == 1227
    assert round(parameters(new), -5) == 129_100_000
    for key, shape in {
        "vocoder.conv_pre.weight": (1536, 128, 7),
        "vocoder.ups.0.weight": (1536, 768, 11),
        "vocoder.ups.5.weight": (48, 24, 4),
        "vocoder.resblocks.17.convs2.2.bias": (24,),
        "vocoder.resblocks.0.acts1.2.act.alpha": (768,),
        "vocoder.resblocks.0.acts2.0.upsample.filter": (1, 1, 12),
        "vocoder.act_post.downsample.lowpass.filter": (1, 1, 12),
        "vocoder.conv_post.weight": (2, 24, 7),
        "bwe_generator.ups.4.weight": (32, 16, 4),
        "bwe_generator.resblocks.14.acts2.2.act.beta": (16,),
        "mel_stft.mel_basis": (64, 257),
        "mel_stft.stft_fn.forward_basis": (514, 1, 512),
        "mel_stft.stft_fn.inverse_basis": (514, 1, 512),
    }.items():
        assert shapes[key] == shape
    assert "vocoder.conv_post.bias" not in shapes
    assert (new.vocoder.output_sampling_rate, new.output_sampling_rate, new.hop_length) == (16000, 48000, 80)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "config.vocoder.resblock is None, expected '1'"),
        (TINY | {"resblock": "2"}, "config.vocoder.resblock is '2', expected '1'"),
        (TINY | {"stereo": False}, "config.vocoder.stereo is False, expected True"),
        (TINY | {"upsample_rates": "fast"}, "config.vocoder.upsample_rates is 'fast'; expected"),
        (TINY_BWE | {"vocoder": TINY}, "config.vocoder.vocoder.resblock is '1', expected 'AMP1'"),
        (
            TINY_BWE | {"bwe": {}},
            "config.vocoder.bwe.input_sampling_rate is missing; expected a whole number",
        ),
        (
            TINY_BWE | {"bwe": TINY_BWE["bwe"] | {"activation": "snake"}},
            "config.vocoder.bwe.activation is 'snake', expected 'snakebeta'",
        ),
        (TINY | {"upsample_kernel_sizes": [7]}, "upsample_rates has 2 values and upsample_kernel_sizes 1;"),
        (
            TINY | {"resblock_dilation_sizes": DILATIONS},
            "resblock_kernel_sizes has 1 values and resblock_dilation_sizes 3; expected as many in both",
        ),
        (
            TINY | {"resblock_kernel_sizes": [], "resblock_dilation_sizes": []},
            "resblock_kernel_sizes has 0 values .* at least 1",
        ),
        (TINY | {"upsample_initial_channel": 3}, "is 3, which 2 stages cannot halve; expected at least 4"),
        (TINY | {"upsample_kernel_sizes": [7, 1]}, "upsample_rates has 2 with 1 in upsample_kernel_sizes"),
        (TINY | {"resblock_kernel_sizes": [4]}, "resblock_kernel_sizes has 4; expected odd sizes"),
        (TINY | {"upsample_rates": [3, 0]}, r"upsample_rates\[1\] is 0; expected a whole number, at least 1"),
        (TINY_BWE | {"bwe": TINY_BWE["bwe"] | {"hop_length": 0}}, "bwe.hop_length is 0; expected a whole"),
    ],
)
def test_configurations_that_cannot_be(section, message):
    with pytest.raises(ConfigError, match=message):
        VocoderConfigurator.from_config({"vocoder": section})


def test_without_sizes_a_generator_is_that_of_ltx_2_0():
    with torch.device("meta"):
        named = VocoderConfigurator.from_config({"vocoder": {"resblock": "1", "stereo": True}}).state_dict()
        default = Vocoder().state_dict()
        untold = Vocoder(None, None, None, None).state_dict()
    assert {k: v.shape for k, v in default.items()} == {k: v.shape for k, v in named.items()}
    assert {k: v.shape for k, v in untold.items()} == {k: v.shape for k, v in default.items()}
    assert default["ups.1.weight"].shape == (512, 256, 15)


def test_a_generators_kind_is_checked_without_a_configuration_too():
    with pytest.raises(ConfigError, match=r"config.vocoder.resblock is 'AMP2'; expected '1' or 'AMP1'"):
        Vocoder([3], [2], [4], [[1]], resblock="AMP2")
    with pytest.raises(ConfigError, match=r"activation is 'relu'; expected 'snake' or 'snakebeta'"):
        Vocoder([3], [2], [4], [[1]], resblock="AMP1", activation="relu")


# Bad input


@pytest.mark.parametrize("section", [TINY, TINY_BWE])
@pytest.mark.parametrize("shape", [(1, 1, 5, 64), (1, 2, 5, 32), (2, 5, 64), (1, 6, 5, 64)])
def test_spectrograms_are_stereo_with_64_bands(section, shape):
    with pytest.raises(InputError, match=r"takes \(batch, 2, frames, 64\) log-mel, not ") as caught:
        build(section)(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 2, 0, 64), torch.float32, r"not \(1, 2, 0, 64\); no size may be 0"),
        ((1, 2, 5, 64), torch.bfloat16, "is torch.float32 and does not take torch.bfloat16 log-mel"),
    ],
)
def test_spectrograms_that_a_vocoder_cannot_take(shape, dtype, message):
    with pytest.raises(InputError, match=message):
        build(TINY)(torch.zeros(shape, dtype=dtype))
