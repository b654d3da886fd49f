"""The audio VAE: shapes, causality, statistics, its primitive operations, waveforms to latents and back."""

import math

import pytest
import torch
from torch.nn import functional as F

from ltx_core.errors import ConfigError, InputError, ShapeError, UnsupportedConfigError
from ltx_core.loader import Checkpoint, build_model, save_checkpoint
from ltx_core.model.audio_vae import (
    AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    AudioDecoder,
    AudioDecoderConfigurator,
    AudioEncoder,
    AudioEncoderConfigurator,
    AudioProcessor,
    VocoderConfigurator,
    decode_audio,
    encode_audio,
)
from ltx_core.model.audio_vae.attention import AttentionBlock
from ltx_core.model.audio_vae.causality_axis import CausalityAxis
from ltx_core.model.audio_vae.layers import CausalConv2d, Downsample, ResBlock, Upsample
from ltx_core.model.common.convolution import full_float32
from ltx_core.model.common.normalization import NormType
from ltx_core.model.common.statistics import LatentStatistics
from ltx_core.types import Audio, AudioLatentShape

TINY = {
    "ch": 8,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "z_channels": 2,
    "mel_bins": 16,
    "attn_resolutions": [],
    "mid_block_add_attention": False,
}
GROUPED = TINY | {"ch": 32, "ch_mult": [1, 1, 1], "norm_type": "group", "causality_axis": None}
AXES = list(CausalityAxis)


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights that keep activations near unit size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name or "std" in name:
                tensor.copy_(1 + 0.2 * noise.clamp(-2, 2))
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5 if tensor.dim() > 1 else 0.2 * noise)
    return module.eval().requires_grad_(False)


def config(ddconfig: dict, n_fft: int = 256, hop: int = 160, rate: int = 16000) -> dict:
    stft = {"filter_length": n_fft, "hop_length": hop, "causal": True}
    params = {"ddconfig": ddconfig, "sampling_rate": rate}
    return {"audio_vae": {"model": {"params": params}, "preprocessing": {"stft": stft}}}


def encoder(ddconfig: dict = TINY, **changes) -> AudioEncoder:
    return fill(AudioEncoderConfigurator.from_config(config(ddconfig | changes)))


def decoder(ddconfig: dict = TINY, **changes) -> AudioDecoder:
    return fill(AudioDecoderConfigurator.from_config(config(ddconfig | changes)))


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# Whole networks


@pytest.mark.parametrize(("mel", "latent"), [(1, 1), (4, 1), (5, 2), (13, 4), (14, 4)])
def test_four_mel_frames_make_a_latent(mel, latent):
    got = encoder()(randn(2, 2, mel, 16))
    assert got.shape == (2, 2, latent, 4)
    assert decoder()(got).shape == (2, 2, 4 * latent - 3, 16)


@pytest.mark.parametrize("axis", AXES)
def test_only_an_axis_without_causality_keeps_all_frames(axis):
    model = decoder(GROUPED if axis is CausalityAxis.NONE else TINY, causality_axis=axis.value)
    frames = 20 if axis is CausalityAxis.NONE else 17
    assert model(randn(1, 2, 5, 4)).shape == (1, 2, frames, 16)


def test_a_latent_sees_its_own_mel_frames_and_those_before():
    model, mel = encoder(), randn(1, 2, 13, 16)
    whole = model(mel)
    torch.testing.assert_close(model(mel[:, :, :9]), whole[:, :, :3])
    for frame in (9, 12):
        changed = mel.clone()
        changed[:, :, frame] += 1
        got = model(changed)
        assert torch.equal(got[:, :, :3], whole[:, :, :3])
        assert not torch.allclose(got[:, :, 3], whole[:, :, 3], atol=1e-4)


def test_a_mel_frame_sees_latents_up_to_a_quarter_of_its_index():
    model, latent = decoder(), randn(1, 2, 4, 4)
    whole = model(latent)
    torch.testing.assert_close(model(latent[:, :, :3]), whole[:, :, :9])
    changed = latent.clone()
    changed[:, :, 2] += 1
    got = model(changed)
    assert torch.equal(got[:, :, :5], whole[:, :, :5])
    assert not torch.allclose(got[:, :, 5], whole[:, :, 5], atol=1e-4)


def test_encoding_is_deterministic_and_normalised():
    model, mel = encoder(), randn(1, 2, 9, 16)
    means, variances = model.encode_moments(mel)
    assert means.shape == variances.shape == (1, 2, 3, 4)
    mean, std = (
        model.per_channel_statistics.get_buffer(f"{k}-of-means").view(1, 2, 1, 4) for k in ("mean", "std")
    )
    torch.testing.assert_close(model(mel), (means - mean) / std)
    assert torch.equal(model(mel), model(mel))


def test_a_decoder_un_normalises_first():
    model, latent = decoder(), randn(1, 2, 3, 4)
    expected = model(model.per_channel_statistics.normalize(latent))
    model.per_channel_statistics.get_buffer("std-of-means").fill_(1)
    model.per_channel_statistics.get_buffer("mean-of-means").fill_(0)
    torch.testing.assert_close(model(latent), expected)


def test_a_batch_is_its_samples():
    for model, x in ((encoder(), randn(2, 2, 9, 16)), (decoder(), randn(2, 2, 3, 4))):
        torch.testing.assert_close(model(x), torch.cat([model(x[:1]), model(x[1:])]))


def test_bfloat16_is_near_float32():
    for model, x in ((encoder(), randn(1, 2, 13, 16)), (decoder(), randn(1, 2, 4, 4))):
        exact = model(x)
        rough = model.bfloat16()(x.bfloat16())
        assert rough.dtype == torch.bfloat16
        assert 0 < (rough.float() - exact).norm() < 0.1 * exact.norm()


def test_without_double_z_half_of_the_channels_remain():
    model = encoder(z_channels=4, double_z=False)
    assert model.conv_out.conv.out_channels == 4
    assert model(randn(1, 2, 5, 16)).shape == (1, 2, 2, 4)


def test_spectrograms_are_cropped_or_padded_to_the_bands_of_the_file():
    latent = randn(1, 2, 3, 4)
    full = decoder()(latent)
    narrow, wide = decoder(), decoder()
    narrow.mel_bins, wide.mel_bins = 13, 18
    assert torch.equal(narrow(latent), full[..., :13])
    padded = wide(latent)
    assert torch.equal(padded[..., :16], full)
    assert padded.shape[-1] == 18
    assert not padded[..., 16:].any()


@pytest.mark.parametrize("bins", [13, 24])
def test_files_have_as_many_statistics_as_features_whatever_their_bands(tmp_path, bins):
    path, full = tmp_path / "x.safetensors", decoder()
    whole = {"audio_encoder": encoder(), "audio_decoder": full}
    save_checkpoint(path, whole, config(TINY | {"mel_bins": bins}), "2.3.0", torch.float32)
    made = build_model(AudioDecoderConfigurator, Checkpoint(path), AUDIO_VAE_DECODER_COMFY_KEYS_FILTER)
    latent = randn(1, 2, 3, 4)
    common = min(bins, 16)
    assert made(latent).shape[-1] == bins
    assert torch.equal(made(latent)[..., :common], full(latent)[..., :common])
    taker = build_model(AudioEncoderConfigurator, Checkpoint(path), AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER)
    assert encode_audio(Audio(randn(1, 2, 4000), 16000), taker).shape[-1] == 4


# Statistics


def test_a_causal_frequency_axis_halves_bands_upwards():
    coder, decode = (make(causality_axis="width", mel_bins=18) for make in (encoder, decoder))
    latent = coder(randn(1, 2, 8, 18))
    assert latent.shape == (1, 2, 2, 5)
    assert decode(latent).shape == (1, 2, 5, 18)


@pytest.mark.parametrize("axis", [None, "width", "width-compatibility"])
def test_without_causal_time_an_encoder_needs_the_frames_of_a_latent(axis):
    model = encoder(causality_axis=axis)
    assert model(randn(1, 2, 4, 16)).shape[2] == 1
    with pytest.raises(ShapeError, match="makes a latent of 4 mel frames, not of 3; use a longer sound"):
        model(randn(1, 2, 3, 16))


def test_features_count_channels_then_bins():
    statistics = LatentStatistics(6)
    assert torch.equal(statistics.normalize(randn(1, 2, 4, 3)), randn(1, 2, 4, 3))
    statistics.get_buffer("std-of-means").copy_(torch.arange(1, 7))
    statistics.get_buffer("mean-of-means").copy_(torch.arange(6) * 10)
    x = torch.zeros(1, 2, 4, 3)
    assert statistics.un_normalize(x)[0, :, 1].tolist() == [[0, 10, 20], [30, 40, 50]]
    assert statistics.un_normalize(x + 1)[0, :, 3].tolist() == [[1, 12, 23], [34, 45, 56]]
    noise = randn(2, 2, 4, 3)
    torch.testing.assert_close(statistics.normalize(statistics.un_normalize(noise)), noise)
    assert statistics.normalize(noise.bfloat16()).dtype == torch.bfloat16


def test_both_halves_have_one_statistic_for_each_feature():
    assert len(encoder().per_channel_statistics.get_buffer("mean-of-means")) == 2 * 4
    assert len(decoder().per_channel_statistics.get_buffer("std-of-means")) == 2 * 4


# Primitive operations


@pytest.mark.parametrize("axis", AXES)
def test_convolutions_look_back_on_the_causal_axis(axis):
    layer, x = fill(CausalConv2d(2, 3, 3, axis)), randn(1, 2, 5, 6)
    got = layer(x)
    assert got.shape == (1, 3, 5, 6)
    changed = x.clone()
    changed[:, :, 3, 3] += 1
    touched = (layer(changed) - got).abs().sum(dim=(0, 1)) > 1e-5
    frames, bins = (torch.nonzero(touched.any(dim=d)).flatten().tolist() for d in (1, 0))
    assert frames == ([3, 4] if axis is CausalityAxis.HEIGHT else [2, 3, 4])
    sideways = axis in (CausalityAxis.WIDTH, CausalityAxis.WIDTH_COMPATIBILITY)
    assert bins == ([3, 4, 5] if sideways else [2, 3, 4])


@pytest.mark.parametrize(
    ("axis", "padding"),
    [
        (CausalityAxis.NONE, (0, 1, 0, 1)),
        (CausalityAxis.WIDTH, (2, 0, 0, 1)),
        (CausalityAxis.HEIGHT, (0, 1, 2, 0)),
        (CausalityAxis.WIDTH_COMPATIBILITY, (1, 0, 0, 1)),
    ],
)
def test_downsampling_pads_with_zeros(axis, padding):
    layer, x = fill(Downsample(2, axis, with_conv=True)), randn(1, 2, 8, 8)
    expected = F.conv2d(F.pad(x, padding), layer.conv.weight, layer.conv.bias, stride=2)
    torch.testing.assert_close(layer(x), expected)


def test_downsampling_by_averages():
    layer = Downsample(1, CausalityAxis.NONE, with_conv=False)
    assert layer(torch.arange(8.0).view(1, 1, 2, 4)).tolist() == [[[[2.5, 4.5]]]]


@pytest.mark.parametrize("axis", AXES)
def test_upsampling_drops_the_first_on_the_causal_axis(axis):
    layer, x = fill(Upsample(2, axis)), randn(1, 2, 3, 4)
    doubled = layer.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    drop = {CausalityAxis.HEIGHT: (1, 0), CausalityAxis.WIDTH: (0, 1)}.get(axis, (0, 0))
    assert torch.equal(layer(x), doubled[:, :, drop[0] :, drop[1] :])


def test_residual_blocks_project_where_the_width_changes():
    x = randn(1, 4, 3, 5)
    for out in (4, 6):
        block = fill(ResBlock(4, out, NormType.PIXEL, CausalityAxis.HEIGHT))
        block.conv2.conv.weight.zero_()
        block.conv2.conv.bias.zero_()
        expected = x
        if out != 4:
            shortcut = block.nin_shortcut.conv
            mixed = torch.einsum("oc,bctf->botf", shortcut.weight[..., 0, 0], x)
            expected = mixed + shortcut.bias.view(1, out, 1, 1)
        torch.testing.assert_close(block(x), expected)


def test_pixel_norm_does_not_blow_up_what_is_small():
    small = ResBlock(4, 4, NormType.PIXEL, CausalityAxis.HEIGHT).norm1(torch.full((1, 4, 1, 1), 1e-3))
    torch.testing.assert_close(small, torch.full_like(small, 0.5**0.5))  # the square is as large as epsilon


def test_attention_is_softmax_over_all_positions():
    block, x = fill(AttentionBlock(32, NormType.GROUP)), randn(2, 32, 3, 4)
    normed = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6).flatten(2)

    def project(layer: torch.nn.Conv2d, v: torch.Tensor) -> torch.Tensor:
        return layer.weight[..., 0, 0] @ v + layer.bias[:, None]

    q, k, v = (project(layer, normed) for layer in (block.q, block.k, block.v))
    weights = (q.mT @ k / math.sqrt(32)).softmax(dim=-1)
    expected = x + project(block.proj_out, v @ weights.mT).view_as(x)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_attention_stands_where_the_configuration_asks_for_it():
    model = encoder(GROUPED, resolution=16, attn_resolutions=[8], mid_block_add_attention=True)
    assert [len(level.attn) for level in model.down] == [0, 1, 0]
    assert "mid.attn_1.q.weight" in model.state_dict()
    other = decoder(GROUPED, resolution=16, attn_resolutions=[16])
    assert [len(level.attn) for level in other.up] == [2, 0, 0]
    assert "mid.attn_1.q.weight" not in other.state_dict()
    assert model(randn(1, 2, 8, 16)).shape == (1, 2, 2, 4)
    # A decoder doubles from the lowest resolution on: 19 // 4 = 4, 8, 16, where an encoder has 19, 9, 4.
    odd = decoder(GROUPED, resolution=19, attn_resolutions=[8])
    assert [len(level.attn) for level in odd.up] == [0, 2, 0]
    quiet = encoder(GROUPED, mid_block_add_attention=True, attn_type="none")
    assert not any("attn" in key for key in quiet.state_dict())


# Waveforms


def test_latent_frames_of_a_waveform():
    model = encoder()
    for samples, rate in ((16000, 16000), (44100, 44100), (24000, 48000)):
        latent = encode_audio(Audio(randn(1, 2, samples), rate), model)
        resampled = samples * 16000 // rate
        assert latent.shape == (1, 2, -(-(resampled // 160 + 1) // 4), 4)
    assert (
        AudioLatentShape.from_duration(1, 1.0, channels=2, mel_bins=4).frames == 25
    )  # the encoder may have one more


def test_encoding_is_the_mel_of_the_waveform():
    model, audio = encoder(), Audio(randn(1, 2, 4000), 24000)
    processor = AudioProcessor(16000, 16, 160, 256)
    expected = model(processor.waveform_to_mel(audio))
    assert torch.equal(encode_audio(audio, model), expected)
    assert torch.equal(encode_audio(audio, model, processor), expected)
    assert not torch.equal(encode_audio(audio, model, AudioProcessor(16000, 16, 160, 512)), expected)


def test_mono_and_surround_are_encoded_as_stereo():
    model, mono = encoder(), randn(1, 1, 4000) * 0.1
    stereo = encode_audio(Audio(mono.expand(1, 2, -1), 16000), model)
    assert torch.equal(encode_audio(Audio(mono, 16000), model), stereo)
    surround = torch.zeros(1, 6, 4000)
    surround[:, :2] = mono * (1 + math.sqrt(2))
    torch.testing.assert_close(encode_audio(Audio(surround, 16000), model), stereo, rtol=0, atol=1e-3)
    surround[:, 3] = 5  # the low channel is left out
    torch.testing.assert_close(encode_audio(Audio(surround, 16000), model), stereo, rtol=0, atol=1e-3)


def test_the_mel_of_a_half_precision_encoder_is_float32():
    audio, model = Audio(randn(1, 2, 4000), 44100), encoder().bfloat16()
    mel = AudioProcessor(16000, 16, 160, 256).waveform_to_mel(audio)
    latent = encode_audio(audio, model)
    assert latent.dtype == torch.bfloat16
    assert torch.equal(latent, model(mel.bfloat16()))


def test_decoding_gives_sound_at_the_rate_of_the_vocoder():
    vocoder = {
        "resblock": "1",
        "stereo": True,
        "upsample_initial_channel": 16,
        "upsample_rates": [5, 2],
        "upsample_kernel_sizes": [11, 4],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1]],
    }
    voice = fill(VocoderConfigurator.from_config({"vocoder": vocoder | {"output_sampling_rate": 8000}}))
    model = decoder(mel_bins=64)
    latent = randn(2, 2, 3, 16)
    one, two = decode_audio(latent[:1], model, voice), decode_audio(latent, model, voice)
    assert one.sampling_rate == 8000
    assert one.waveform.shape == (2, 90)
    assert two.waveform.shape == (2, 2, 90)
    torch.testing.assert_close(two.waveform[0], one.waveform)
    assert torch.equal(one.waveform, voice(model(latent[:1]))[0])
    rough = decode_audio(latent[:1].bfloat16(), model.bfloat16(), voice.bfloat16())
    assert rough.waveform.dtype == torch.float32


def test_a_gpu_takes_all_of_float32_while_a_spectrogram_is_made(monkeypatch):
    """With TF32, noise above the floor of the quiet bands would fill them."""
    seen = []

    class Recorded(AudioProcessor):
        def waveform_to_mel(self, audio):
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().waveform_to_mel(audio)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model = encoder(TINY)
    encode_audio(Audio(randn(1, 2, 16000), 16000), model, Recorded(16000, model.bands, 160, 1024))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


def test_a_gpu_takes_all_of_float32_while_a_sound_is_decoded(monkeypatch):
    """By default PyTorch lets its convolutions have 10 bits of each number."""
    model, seen = decoder(TINY), []
    model.conv_in.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    latent = randn(1, 2, 9, 4)

    def voice(mel):
        raise RuntimeError("no more")

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(RuntimeError, match="no more"):
        decode_audio(latent, model, voice)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="an older PyTorch has one switch for all"
)
def test_what_is_set_for_convolutions_alone_counts():
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "ieee"  # of which allow_tf32 cannot tell
        with full_float32():
            assert convolutions.fp32_precision == "ieee"
        assert convolutions.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision = before


# Configurations


def test_rates_are_read_from_their_sections():
    with torch.device("meta"):
        model = AudioEncoderConfigurator.from_metadata(
            {"config": config(TINY, n_fft=512, hop=120, rate=24000)}
        )
        other = AudioDecoderConfigurator.from_metadata(
            {"config": config(TINY, n_fft=512, hop=120, rate=24000)}
        )
        plain = AudioEncoderConfigurator.from_config({})
    assert (model.sample_rate, model.mel_hop_length, model.n_fft, model.mel_bins) == (24000, 120, 512, 16)
    seconds = model.patchifier.get_patch_grid_bounds(AudioLatentShape(1, 2, 3, 4))
    torch.testing.assert_close(seconds[0, 0, :, 1], torch.tensor([1.0, 5.0, 9.0]) * 120 / 24000)
    assert (other.sample_rate, other.mel_hop_length, other.is_causal, other.mel_bins) == (
        24000,
        120,
        True,
        16,
    )
    assert (plain.sample_rate, plain.mel_hop_length, plain.n_fft, plain.mel_bins) == (16000, 160, 1024, None)
    assert plain.conv_in.conv.weight.shape == (128, 2, 3, 3)


def test_without_bands_the_width_tells_how_many_an_encoder_takes():
    told, untold = encoder(), encoder(mel_bins=None)
    spectrogram, sound = randn(1, 2, 13, 16), Audio(randn(1, 2, 4000), 16000)
    assert untold.mel_bins is None
    assert torch.equal(untold(spectrogram), told(spectrogram))
    assert torch.equal(encode_audio(sound, untold), encode_audio(sound, told))


@pytest.mark.parametrize("place", ["ddconfig", "mel", "variables"])
def test_bands_may_stand_in_three_places(place):
    given = config(TINY | {"mel_bins": 32 if place == "ddconfig" else None})
    section = given["audio_vae"]
    section["preprocessing"]["mel"] = {"n_mel_channels": {"ddconfig": 64, "mel": 32}.get(place)}
    section["variables"] = {"mel_bins": 32 if place == "variables" else 64}
    assert AudioDecoderConfigurator.from_config(given).mel_bins == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "group"}, "norm_type 'group' looks ahead; it needs causality_axis null"),
        ({"resamp_with_conv": False}, "resamp_with_conv false looks ahead; it needs causality_axis null"),
        (
            {"causality_axis": "depth"},
            r"ddconfig.causality_axis is 'depth'; expected one of None, 'width', 'height'",
        ),
        ({"norm_type": "group", "causality_axis": None}, "32 groups of norm_type 'group' do not divide 8"),
        ({"norm_type": "batch"}, r"ddconfig.norm_type is 'batch'; expected one of 'group', 'pixel'"),
        ({"ch": "wide"}, r"config.audio_vae.model.params.ddconfig.ch is 'wide'; expected int"),
        ({"num_res_blocks": 0}, r"ddconfig.num_res_blocks is 0; expected a whole number, at least 1"),
        ({"ch_mult": [1, 0]}, r"ddconfig.ch_mult\[1\] is 0; expected a whole number, at least 1"),
        ({"ch_mult": []}, r"ddconfig.ch_mult is empty; expected at least one level"),
    ],
)
def test_configurations_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        encoder(**changes)


def test_linear_attention_is_named_as_unsupported():
    with pytest.raises(
        UnsupportedConfigError, match="attn_type 'linear' is not implemented; expected 'vanilla'"
    ):
        encoder(attn_type="linear", mid_block_add_attention=True)


# Bad input


MEL = r"audio encoder takes \(batch, 2, frames, 16\) log-mel, not "
LATENTS = r"audio decoder takes \(batch, 2, frames, 4\) latents, not "
WAVEFORMS = r"takes \(batch, channels, samples\) waveforms, not "


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 1, 8, 16), torch.float32, MEL + r"\(1, 1, 8, 16\)\.$"),
        ((2, 8, 16), torch.float32, MEL + r"\(2, 8, 16\)"),
        ((1, 2, 8, 20), torch.float32, MEL + r"\(1, 2, 8, 20\)"),
        ((1, 2, 8, 17), torch.float32, MEL + r"\(1, 2, 8, 17\)"),  # would end at the same latent
        ((1, 2, 0, 16), torch.float32, MEL + r"\(1, 2, 0, 16\); no size may be 0"),
        ((1, 2, 8, 16), torch.bfloat16, "is torch.float32 and does not take torch.bfloat16 log-mel"),
    ],
)
def test_spectrograms_that_an_encoder_cannot_take(shape, dtype, message):
    with pytest.raises(InputError, match=message):
        encoder()(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 3, 4, 4), torch.float32, LATENTS + r"\(1, 3, 4, 4\)\.$"),
        ((2, 4, 4), torch.float32, LATENTS + r"\(2, 4, 4\)"),
        ((1, 2, 4, 5), torch.float32, LATENTS + r"\(1, 2, 4, 5\)"),
        ((1, 2, 0, 4), torch.float32, LATENTS + r"\(1, 2, 0, 4\); no size may be 0"),
        ((1, 2, 4, 4), torch.bfloat16, "is torch.float32 and does not take torch.bfloat16 latents"),
    ],
)
def test_latents_that_a_decoder_cannot_take(shape, dtype, message):
    with pytest.raises(InputError, match=message):
        decoder()(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 2, 100), torch.float32, "too short"),
        ((2, 4000), torch.float32, WAVEFORMS + r"\(2, 4000\)"),
        ((4000,), torch.float32, WAVEFORMS + r"\(4000,\)"),
        ((1, 0, 4000), torch.float32, WAVEFORMS + r"\(1, 0, 4000\); no size may be 0"),
        ((1, 1, 4000), torch.int16, "takes floating-point waveforms, not torch.int16; .* by 32768"),
    ],
)
def test_waveforms_that_cannot_be_encoded(shape, dtype, message):
    with pytest.raises(InputError, match=message):
        encode_audio(Audio(torch.zeros(shape, dtype=dtype), 16000), encoder())
