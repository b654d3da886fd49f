"""Long sounds decoded in pieces: the same as the whole, never more at once than a piece with its neighbours."""

import pytest
import torch
from tests.ltx_core.model import test_audio_vae, test_vocoder

from ltx_core.model.audio_vae import VocoderConfigurator, decode_audio
from ltx_core.model.audio_vae.pieces import (
    PIECE,
    decode_in_pieces,
    equal_pieces,
    frames_around,
    latents_before,
    samples_per_frame,
)
from ltx_core.model.audio_vae.vocoder import Snake, Vocoder

# At the rates of the real vocoders, on 64 mel bins as they take.
PLAIN = test_vocoder.PUBLISHED_20 | {"upsample_initial_channel": 32}
EXTENDED = {name: part | {"upsample_initial_channel": 64} for name, part in test_vocoder.PUBLISHED_23.items()}
VOCODERS = {"plain": PLAIN, "extended": EXTENDED}
DECODER = test_audio_vae.TINY | {"mel_bins": 64}


def parts(vocoder: dict, ddconfig: dict = DECODER):
    voice = test_vocoder.fill(VocoderConfigurator.from_config({"vocoder": vocoder}), 0.5)
    if hasattr(voice, "mel_stft"):
        voice.mel_stft.mel_basis.abs_()  # as real ones: the logarithm of sums that cancel is mostly rounding
    return test_audio_vae.decoder(ddconfig), voice


def latents(frames: int) -> torch.Tensor:
    return test_audio_vae.randn(1, 2, frames, 16)


@pytest.fixture(scope="module", params=VOCODERS.values(), ids=VOCODERS)
def decoded(request: pytest.FixtureRequest) -> tuple:
    """Both networks, a latent, and what they make of it in one piece."""
    decoder, voice = parts(request.param)
    latent = latents(90)
    with torch.no_grad():
        whole = voice(decoder(latent))
    assert whole.std() > 1e-2
    return decoder, voice, latent, whole


@pytest.mark.parametrize(("piece", "signal_bytes"), [(7, 1), (40, 2**17), (90, 2**16)])
@torch.no_grad()
def test_pieces_sound_like_the_whole(decoded: tuple, piece: int, signal_bytes: int) -> None:
    decoder, voice, latent, whole = decoded
    taken = lengths_taken(*generators(voice))
    got = decode_in_pieces(latent, decoder, voice, piece, signal_bytes)
    assert len(taken) > len(generators(voice))
    assert got.shape == whole.shape
    torch.testing.assert_close(got, whole, rtol=0, atol=3e-6 * float(whole.abs().max()))


@torch.no_grad()
def test_pieces_end_where_the_whole_does() -> None:
    """Some samples later, with kernels of such sizes."""
    decoder, voice = parts(PLAIN | {"upsample_kernel_sizes": [15, 14, 8, 4, 4]})
    latent = latents(90)
    whole = voice(decoder(latent))
    assert whole.shape[-1] > 240 * 357
    for signal_bytes in (2**16, 2**30):
        got = decode_in_pieces(latent, decoder, voice, 90, signal_bytes)
        torch.testing.assert_close(got, whole, rtol=0, atol=3e-6 * float(whole.abs().max()))


@pytest.mark.parametrize("vocoder", VOCODERS.values(), ids=VOCODERS)
def test_networks_of_other_classes_take_the_whole(vocoder: dict) -> None:
    """As compiled ones are."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.output_sampling_rate = inner, getattr(inner, "output_sampling_rate", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    decoder, voice = parts(vocoder)
    latent = latents(3)
    sound = decode_audio(latent, Wrapped(decoder), Wrapped(voice))
    assert torch.equal(sound.waveform, voice(decoder(latent))[0])
    assert sound.sampling_rate == voice.output_sampling_rate


def generators(voice) -> list[Vocoder]:
    return [part for part in voice.modules() if isinstance(part, Vocoder)]


def lengths_taken(*networks) -> list[int]:
    """Fills with the lengths that networks are given."""
    taken: list[int] = []
    for network in networks:
        network.register_forward_pre_hook(lambda _, given: taken.append(given[0].shape[2]))
    return taken


def test_a_mel_frame_depends_on_no_more_latents_than_the_reach_and_on_most_of_it() -> None:
    decoder, _ = parts(PLAIN)
    reach = latents_before(decoder)
    assert reach is not None
    middle = reach + 2
    latent = latents(middle + 3).requires_grad_()
    decoder(latent)[:, :, 4 * middle - 3 : 4 * middle + 1].square().sum().backward()
    (seen,) = latent.grad.abs().sum(dim=(0, 1, 3)).nonzero(as_tuple=True)
    assert middle - reach <= seen.min() <= middle - 0.8 * reach
    assert seen.max() == middle


@pytest.mark.parametrize("vocoder", VOCODERS.values(), ids=VOCODERS)
def test_a_sample_depends_on_no_more_frames_than_the_reach_and_on_most_of_it(vocoder: dict) -> None:
    for voice in generators(parts(vocoder)[1]):
        reach, samples = frames_around(voice), samples_per_frame(voice)
        middle = reach + 2
        mel = test_audio_vae.randn(1, 2, 2 * middle + 1, 64).requires_grad_()
        voice(mel)[..., samples * middle : samples * (middle + 1)].square().sum().backward()
        (seen,) = mel.grad.abs().sum(dim=(0, 1, 3)).nonzero(as_tuple=True)
        assert middle - reach <= seen.min() <= middle - 0.7 * reach
        assert middle + 0.7 * reach <= seen.max() <= middle + reach


@torch.no_grad()
def test_long_sounds_are_never_decoded_at_once() -> None:
    decoder, voice = parts(PLAIN)
    reach = latents_before(decoder)
    assert reach is not None
    taken = lengths_taken(decoder)
    decode_audio(latents(PIECE + 1), decoder, voice)
    assert taken == [PIECE + 1]  # a last piece of one frame would have to decode its neighbours
    decode_audio(latents(3 * PIECE), decoder, voice)
    assert taken[1:] == [PIECE, reach + PIECE, reach + PIECE]
    decode_audio(latents(PIECE * 3 // 2), decoder, voice)
    assert taken[4:] == [PIECE * 3 // 4, reach + PIECE * 3 // 4 + 1]


@pytest.mark.parametrize("vocoder", VOCODERS.values(), ids=VOCODERS)
@torch.no_grad()
def test_signals_in_a_vocoder_do_not_grow_with_the_sound(vocoder: dict) -> None:
    decoder, voice = parts(vocoder)
    largest: list[int] = []
    for part in voice.modules():
        if isinstance(part, torch.nn.ConvTranspose1d | Snake):
            part.register_forward_hook(lambda _, __, signal: largest.append(signal.nbytes))
    decode_in_pieces(latents(100), decoder, voice, PIECE, 2**19)
    few = max(largest)
    decode_in_pieces(latents(300), decoder, voice, PIECE, 2**19)
    assert max(largest) <= 1.6 * 2**19
    assert max(largest) < 2 * few


@pytest.mark.parametrize("length", [1, 7, 10, 14, 15, 16, 100, 101])
def test_pieces_are_equal(length: int) -> None:
    pieces = list(equal_pieces(length, 10))
    sizes = [stop - start for start, stop in pieces]
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= 15


@pytest.mark.parametrize(
    "ddconfig",
    [
        DECODER | {"mid_block_add_attention": True},
        DECODER | {"ch": 32, "norm_type": "group", "causality_axis": None},
        DECODER | {"causality_axis": "width"},
        DECODER | {"ch_mult": [1, 2]},
    ],
    ids=["attention", "group norm", "no causality in time", "other levels"],
)
def test_what_depends_on_all_of_the_sound_is_decoded_at_once(ddconfig: dict) -> None:
    decoder, voice = parts(PLAIN, ddconfig)
    assert latents_before(decoder) is None
    bins = len(decoder.per_channel_statistics.get_buffer("mean-of-means")) // 2
    latent = test_audio_vae.randn(1, 2, 12, bins)
    assert torch.equal(decode_in_pieces(latent, decoder, voice, 5), voice(decoder(latent)))
