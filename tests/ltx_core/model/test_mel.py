"""The mel front end: resampling, mel bands, log-mel spectrograms, channel layouts."""

import math

import pytest
import torch

from ltx_core.errors import InputError
from ltx_core.model.audio_vae import AudioProcessor
from ltx_core.model.audio_vae import processor as processor_module
from ltx_core.model.audio_vae.processor import log_mel, match_channels, mel_filterbank, resample
from ltx_core.types import Audio

RATE, HOP, N_FFT, BANDS = 16000, 160, 1024, 64
SILENCE = math.log(1e-5)


@pytest.fixture(scope="module")
def processor() -> AudioProcessor:
    return AudioProcessor(RATE, BANDS, HOP, N_FFT)


def sine(frequency: float, rate: int = RATE, samples: int = 8000, amplitude: float = 0.5) -> torch.Tensor:
    """(1, 1, samples) float32, rounded once."""
    time = torch.arange(samples, dtype=torch.float64) / rate
    return (amplitude * torch.sin(2 * math.pi * frequency * time)).float()[None, None]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# Resampling


@pytest.mark.parametrize(
    ("samples", "source", "length"),
    [
        (44100, 44100, 16000),
        (48000, 48000, 16000),
        (0, 48000, 0),
        (1, 48000, 1),
        (7, 8000, 14),
        (203188, 44100, 73719),  # the quotient is rounded to float32 before the ceiling
    ],
)
def test_lengths_after_resampling(samples, source, length):
    assert resample(torch.zeros(1, samples), source, RATE).shape == (1, length)


@pytest.mark.parametrize("source", [8000, 44100, 48000])
def test_a_kernel_of_many_phases_is_applied_where_it_is_not_zero(source, monkeypatch):
    x = randn(2, source + 7)
    expected = resample(x, source, RATE)
    monkeypatch.setattr(processor_module, "DENSE_KERNEL", 0)
    torch.testing.assert_close(resample(x, source, RATE), expected, rtol=0, atol=2e-6)


def test_rates_without_a_common_divisor_have_small_kernels(monkeypatch):
    kernels, make = [], processor_module._resampling_kernel

    def recorded(*given):
        kernels.append(make(*given))
        return kernels[-1]

    monkeypatch.setattr(processor_module, "_resampling_kernel", recorded)
    assert resample(randn(1, 12347), 12347, RATE).shape == (1, RATE)
    assert kernels[0].numel() < 2**20


def test_a_sound_whose_length_float32_rounds_up():
    samples = 3 * 33_554_438  # 35 minutes; a third of it, in float32, is 2 more
    assert resample(torch.zeros(1, samples, device="meta"), 48000, RATE).shape == (1, samples // 3 + 1)


def test_the_same_rate_changes_nothing():
    x = randn(2, 100)
    assert resample(x, RATE, RATE) is x


@pytest.mark.parametrize("source", [8000, 22050, 24000, 44100, 48000])
def test_a_tone_keeps_its_pitch_phase_and_strength(source):
    got = resample(sine(440.0, source, source // 4), source, RATE)
    expected = sine(440.0, RATE, got.shape[-1])
    middle = slice(100, -100)  # beyond the ends there are zeros
    torch.testing.assert_close(got[..., middle], expected[..., middle], rtol=0, atol=2e-3)


def test_a_whole_rate_may_be_a_float():
    x = randn(2, 900)
    assert torch.equal(resample(x, 44100.0, RATE), resample(x, 44100, RATE))


def test_what_the_new_rate_cannot_carry_is_removed():
    got = resample(sine(12000.0, 48000, 12000), 48000, RATE)
    assert got[..., 50:-50].abs().max() < 1e-3
    kept = resample(sine(4000.0, 48000, 12000), 48000, RATE)
    assert kept[..., 50:-50].abs().max() > 0.49


def test_resampling_is_linear_and_row_by_row():
    x = randn(2, 3, 900)
    y = resample(x, 44100, RATE)
    torch.testing.assert_close(resample(x[1, 2] * 3, 44100, RATE), y[1, 2] * 3)
    torch.testing.assert_close(resample(x[:1] + x[1:], 44100, RATE), y[:1] + y[1:])
    assert resample(x.double(), 44100, RATE).dtype == torch.float64


@pytest.mark.parametrize("rate", [0, -16000])
def test_rates_are_positive(rate):
    with pytest.raises(InputError, match=f"Cannot resample from {rate} to 16000 Hz"):
        resample(torch.zeros(1, 100), rate, RATE)


# Bands


def test_bands_are_triangles_of_unit_area():
    bank = mel_filterbank(N_FFT, BANDS, RATE)
    assert (bank.shape, bank.dtype) == ((513, BANDS), torch.float32)
    assert bank.ge(0).all()
    assert not bank[0].any()
    width = RATE / N_FFT
    areas = (
        bank.sum(dim=0)[40:] * width
    )  # the narrow bands below span too few bins for a sum to be an integral
    torch.testing.assert_close(areas, torch.ones_like(areas), rtol=0.02, atol=0)
    assert bank.argmax(dim=0).diff().ge(0).all()


def test_bands_are_even_below_a_kilohertz_and_even_in_logarithms_above():
    bank = mel_filterbank(2**16, 40, RATE).double()
    frequencies = torch.linspace(0, RATE / 2, 2**15 + 1, dtype=torch.float64)
    peaks = frequencies[bank.argmax(dim=0)]
    low, high = peaks[peaks < 950], peaks[peaks > 1050]
    steps, ratios = low.diff(), high[1:] / high[:-1]
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=0.01, atol=0)
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=0.001, atol=0)
    # Slaney's scale: 200 / 3 Hz a mel below 1 kHz, 27 mels for a factor of 6.4 above; 40 bands have 41 steps
    step = (15 + 27 * math.log(8) / math.log(6.4)) / 41
    assert steps.mean().item() == pytest.approx(step * 200 / 3, rel=0.01)
    assert ratios.mean().item() == pytest.approx(6.4 ** (step / 27), rel=0.001)


# Spectrograms


@pytest.mark.parametrize(("samples", "frames"), [(513, 4), (1599, 10), (1600, 11), (16000, 101)])
def test_a_frame_every_hop_and_one_more(processor, samples, frames):
    mel = processor.waveform_to_mel(Audio(randn(2, 3, samples), RATE))
    assert mel.shape == (2, 3, frames, BANDS)
    assert mel.isfinite().all()


def test_frames_are_counted_after_resampling(processor):
    assert processor.waveform_to_mel(Audio(randn(1, 2, 44100), 44100)).shape == (1, 2, 101, BANDS)
    audio = processor.resample_audio(Audio(randn(1, 2, 48000), 48000))
    assert (audio.sampling_rate, audio.waveform.shape) == (RATE, (1, 2, 16000))


def test_silence_is_the_floor(processor):
    mel = processor.waveform_to_mel(Audio(torch.zeros(1, 2, 1600), RATE))
    torch.testing.assert_close(mel, torch.full_like(mel, SILENCE))
    assert log_mel(torch.tensor([0.0, 1e-9, 1.0])).tolist() == pytest.approx([SILENCE, SILENCE, 0.0])


@pytest.mark.parametrize("frequency", [500.0, 1000.0, 3000.0, 6500.0])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_sine_peaks_in_the_band_around_it(processor, frequency, rate):
    mel = processor.waveform_to_mel(Audio(sine(frequency, rate, rate // 2), rate))
    band = mel[0, 0, 20:30].mean(dim=0).argmax().item()

    def to_mel(f: float) -> float:
        return 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)

    centre = to_mel(frequency) / to_mel(8000) * (BANDS + 1) - 1
    assert abs(band - centre) <= 1


def test_the_peak_has_the_height_of_the_tone(processor):
    loud = processor.waveform_to_mel(Audio(sine(1000.0), RATE))[0, 0, 20]
    quiet = processor.waveform_to_mel(Audio(sine(1000.0, amplitude=0.125), RATE))[0, 0, 20]
    top = loud.argmax()
    assert (loud[top] - quiet[top]).item() == pytest.approx(math.log(4), abs=1e-4)
    # 1 kHz is bin 64: a Hann window spreads the tone over bins 63 to 65 with weights 1/2, 1, 1/2 of A N / 4
    bins = 0.5 * N_FFT / 4 * torch.tensor([0.5, 1.0, 0.5])
    expected = (bins @ processor.filterbank[63:66]).max().log().item()
    assert loud[top].item() == pytest.approx(expected, abs=1e-3)


def test_a_frame_is_a_windowed_spectrum_in_bands(processor):
    x = randn(1, 1, 4000)
    mel = processor.waveform_to_mel(Audio(x, RATE))
    n = torch.arange(N_FFT, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * math.pi * n / N_FFT)
    part = x[0, 0, 10 * HOP - 512 : 10 * HOP + 512].double() * window
    spectrum = torch.fft.rfft(part).abs()
    expected = (spectrum @ mel_filterbank(N_FFT, BANDS, RATE).double()).log()
    torch.testing.assert_close(mel[0, 0, 10].double(), expected, rtol=0, atol=1e-4)


def test_the_ends_are_reflected(processor):
    x = randn(1, 1, 2000)
    mel = processor.waveform_to_mel(Audio(x, RATE))
    longer = torch.cat([x[..., 1:961].flip(-1), x], dim=-1)
    later = processor.waveform_to_mel(Audio(longer, RATE))
    torch.testing.assert_close(mel[:, :, :3], later[:, :, 6:9], rtol=0, atol=1e-4)


def test_channels_and_samples_are_apart(processor):
    x = randn(2, 2, 2000)
    mel = processor.waveform_to_mel(Audio(x, RATE))
    for b, c in ((0, 0), (1, 0), (1, 1)):
        alone = processor.waveform_to_mel(Audio(x[b : b + 1, c : c + 1], RATE))
        torch.testing.assert_close(mel[b, c], alone[0, 0])
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(processor.waveform_to_mel(Audio(strided, RATE)), mel)


def test_the_dtype_of_the_waveform_is_kept_and_all_is_computed_in_float32(processor):
    x = randn(1, 1, 2000).bfloat16()
    rough = processor.waveform_to_mel(Audio(x, RATE))
    assert rough.dtype == torch.bfloat16
    assert torch.equal(rough, processor.waveform_to_mel(Audio(x.float(), RATE)).bfloat16())


def test_a_processor_has_nothing_to_load(processor):
    assert processor.state_dict() == {}


# Channels


def test_mono_is_copied_and_the_rest_stays():
    mono, stereo = randn(2, 1, 10), randn(2, 2, 10)
    assert torch.equal(match_channels(mono, 2), torch.cat([mono, mono], dim=1))
    assert match_channels(stereo, 2) is stereo
    assert torch.equal(match_channels(stereo, 1), stereo.mean(dim=1, keepdim=True))


SIDE = math.sqrt(0.5)
FRONT, BEHIND = [(1, 0), (0, 1), (SIDE, SIDE)], [(SIDE, 0), (0, SIDE)]


@pytest.mark.parametrize(
    "weights",
    [FRONT, FRONT + BEHIND, [*FRONT, (0, 0), *BEHIND], [*FRONT, (0, 0), *BEHIND, *BEHIND]],
    ids=["3.0", "5.0", "5.1", "7.1"],
)
def test_surround_is_mixed_to_stereo(weights):
    mix = torch.tensor(weights).T / sum(left for left, _ in weights)
    x = randn(2, len(weights), 10)
    torch.testing.assert_close(match_channels(x, 2), mix @ x)
    assert match_channels(torch.ones(1, len(weights), 4), 2).max() <= 1


def test_other_layouts_take_turns():
    x = randn(1, 4, 10)
    expected = torch.stack([(x[:, 0] + x[:, 2]) / 2, (x[:, 1] + x[:, 3]) / 2], dim=1)
    torch.testing.assert_close(match_channels(x, 2), expected)


# Bad input


@pytest.mark.parametrize(
    ("shape", "rate", "message"),
    [
        ((2, 2000), RATE, r"takes \(batch, channels, samples\) waveforms, not \(2, 2000\)"),
        ((2000,), RATE, r"not \(2000,\)"),
        ((1, 2, 512), RATE, r"too short \(0.032 s\); use 0.033 s or more"),
        ((1, 2, 0), RATE, r"not \(1, 2, 0\); no size may be 0"),
        ((1, 2, 1400), 44100, "too short"),
        ((1, 2, 2000), 0, "Cannot resample from 0 to 16000 Hz"),
        ((1, 2, 0), 44100, r"not \(1, 2, 0\); no size may be 0"),
        ((1, 0, 2000), RATE, r"not \(1, 0, 2000\); no size may be 0"),
        ((1, 2, 2000), 44100.5, "Cannot resample from 44100.5 to 16000 Hz; rates are positive whole numbers"),
    ],
)
def test_waveforms_without_a_spectrogram(processor, shape, rate, message):
    with pytest.raises(InputError, match=message):
        processor.waveform_to_mel(Audio(torch.zeros(shape), rate))


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_samples_are_floating(processor, rate):
    with pytest.raises(InputError, match=r"not torch.int16; divide 16-bit samples by 32768"):
        processor.waveform_to_mel(Audio(torch.ones(1, 2, 4000, dtype=torch.int16), rate))


def test_integers_are_a_type_error_also_where_they_are_only_resampled():
    processor, sound = AudioProcessor(16000, 8, 160, 256), Audio(torch.ones(2, 400, dtype=torch.int16), 44100)
    with pytest.raises(TypeError, match=r"not torch.int16; divide 16-bit samples by 32768"):
        processor.resample_audio(sound)
