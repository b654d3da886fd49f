"""Long sounds decoded in pieces: the same as the whole, never more at once than a piece with its neighbours."""

import pytest
import torch
from tests.ltx_core.model import test_audio_vae, test_vocoder

from ltx_core.model.audio_vae import VocoderConfigurator, decode_audio
from ltx_core.model.audio_vae.pieces import PIECE, decode_in_pieces, find_reach

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


@pytest.mark.parametrize("vocoder", VOCODERS.values(), ids=VOCODERS)
@pytest.mark.parametrize("piece", [7, 40])
def test_pieces_sound_like_the_whole(vocoder: dict, piece: int) -> None:
    decoder, voice = parts(vocoder)
    latent = latents(90)
    whole = voice(decoder(latent))
    assert whole.std() > 1e-2
    got = decode_in_pieces(latent, decoder, voice, piece)
    assert got.shape == whole.shape
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("vocoder", VOCODERS.values(), ids=VOCODERS)
def test_a_sample_depends_on_no_more_than_the_reach_and_on_most_of_it(vocoder: dict) -> None:
    decoder, voice = parts(vocoder)
    reach = find_reach(decoder, voice)
    assert reach is not None
    middle = reach.before + 2
    latent = latents(middle + 1 + reach.after + 2).requires_grad_()
    wave = voice(decoder(latent))
    samples = 4 * wave.shape[-1] // (4 * latent.shape[2] - 3)
    own = wave[..., samples * middle - 3 * samples // 4 : samples * middle + samples // 4]
    own.square().sum().backward()
    (seen,) = latent.grad.abs().sum(dim=(0, 1, 3)).nonzero(as_tuple=True)
    assert middle - reach.before <= seen.min() <= middle - 0.8 * reach.before
    assert middle + 0.55 * reach.after <= seen.max() <= middle + reach.after


def test_long_sounds_are_never_decoded_at_once() -> None:
    decoder, voice = parts(PLAIN)
    reach = find_reach(decoder, voice)
    assert reach is not None
    taken: list[int] = []
    decoder.register_forward_pre_hook(lambda _, given: taken.append(given[0].shape[2]))
    decode_audio(latents(PIECE + 1), decoder, voice)
    assert taken == [PIECE + 1]  # a last piece of one frame would have to decode its neighbours
    decode_audio(latents(3 * PIECE), decoder, voice)
    assert len(taken) == 4
    assert max(taken) == reach.before + PIECE + reach.after
    decode_audio(latents(PIECE * 3 // 2), decoder, voice)
    assert taken[4:] == [PIECE * 3 // 4 + reach.after, reach.before + PIECE * 3 // 4 + 1]


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
    assert find_reach(decoder, voice) is None
    bins = len(decoder.per_channel_statistics.get_buffer("mean-of-means")) // 2
    latent = test_audio_vae.randn(1, 2, 12, bins)
    assert torch.equal(decode_in_pieces(latent, decoder, voice, 5), voice(decoder(latent)))
