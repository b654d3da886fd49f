"""Bandwidth extension: a second generator adds what the first one's low rate cannot carry."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ltx_core.errors import ShapeError
from ltx_core.model.audio_vae.processor import ROLLOFF, ZERO_CROSSINGS, log_mel
from ltx_core.model.audio_vae.vocoder import Vocoder

Generate = Callable[[Vocoder, torch.Tensor], torch.Tensor]


class MelSTFT(nn.Module):
    """Causal log-mel of (B, C, N) with the bases of the file: (B, C, N / hop, bands)."""

    mel_basis: torch.Tensor

    def __init__(self, n_fft: int, hop_length: int, num_mels: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        bins = n_fft // 2 + 1
        self.register_buffer("mel_basis", torch.empty(num_mels, bins))
        self.stft_fn = nn.Module()
        self.stft_fn.register_buffer("forward_basis", torch.empty(2 * bins, 1, n_fft))
        # Part of every file, not needed here.
        self.stft_fn.register_buffer("inverse_basis", torch.empty(2 * bins, 1, n_fft))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        batch, channels, _ = waveform.shape
        padded = F.pad(waveform.flatten(0, 1)[:, None], (max(0, self.n_fft - self.hop_length), 0))
        basis = self.stft_fn.get_buffer("forward_basis")
        real, imaginary = F.conv1d(padded, basis, stride=self.hop_length).chunk(2, dim=1)
        magnitude = (real.square() + imaginary.square()).sqrt()
        return log_mel(self.mel_basis @ magnitude).transpose(1, 2).unflatten(0, (batch, channels))


def hann_sinc_filter(ratio: int) -> torch.Tensor:
    """Filter (1, 1, 14 ratio + 1) of `upsample_by`: a sinc under a Hann window, rolloff 0.99."""
    reach = math.ceil(ZERO_CROSSINGS / ROLLOFF)
    samples = torch.arange(2 * reach * ratio + 1, dtype=torch.float32, device="cpu")
    time = (samples / ratio - reach) * ROLLOFF
    window = torch.cos(time.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS) * math.pi / ZERO_CROSSINGS / 2) ** 2
    return (torch.sinc(time) * window * ROLLOFF / ratio).view(1, 1, -1)


def upsample_by(x: torch.Tensor, ratio: int) -> torch.Tensor:
    """(B, C, N) to (B, C, N x ratio); edges are repeated (where `resample` has zeros)."""
    channels = x.shape[1]
    kernel = hann_sinc_filter(ratio).to(x)
    reach = (kernel.shape[-1] - 1) // (2 * ratio)
    padded = F.pad(x, (reach, reach), mode="replicate")
    y = ratio * F.conv_transpose1d(padded, kernel.expand(channels, -1, -1), stride=ratio, groups=channels)
    return y[..., 2 * reach * ratio : y.shape[-1] - (kernel.shape[-1] - ratio)]


class VocoderWithBWE(nn.Module):
    """Log-mel to waveform at the output rate: an upsampled first generator plus a generated residual.

    All arithmetic is float32, whatever the dtype of the weights, and the waveform is not rounded.
    Raises `ShapeError` (an AssertionError) if the residual is not as long as what it is added to.
    """

    def __init__(
        self,
        vocoder: Vocoder,
        bwe_generator: Vocoder,
        mel_stft: MelSTFT,
        input_sampling_rate: int,
        output_sampling_rate: int,
        hop_length: int,
    ) -> None:
        super().__init__()
        self.vocoder, self.bwe_generator, self.mel_stft = vocoder, bwe_generator, mel_stft
        self.input_sampling_rate, self.output_sampling_rate = input_sampling_rate, output_sampling_rate
        self.hop_length = hop_length

    @property
    def conv_pre(self) -> nn.Module:
        return self.vocoder.conv_pre

    @property
    def conv_post(self) -> nn.Module:
        return self.vocoder.conv_post

    def forward(self, mel_spec: torch.Tensor, generate: Generate = nn.Module.__call__) -> torch.Tensor:
        """(B, 2, T, 64) log-mel to (B, 2, N). generate: applies a generator to a log-mel, by default at once."""
        if self.conv_pre.weight.dtype is not torch.float32:
            widened = {name: tensor.float() for name, tensor in self.state_dict(keep_vars=True).items()}
            return functional_call(self, widened, (mel_spec, generate))
        stage = generate(self.vocoder, mel_spec.float())
        length = stage.shape[-1]
        padded = F.pad(stage, (0, -length % self.hop_length))
        residual = generate(self.bwe_generator, self.mel_stft(padded))
        skip = upsample_by(padded, self.output_sampling_rate // self.input_sampling_rate)
        if residual.shape != skip.shape:
            raise ShapeError(
                f"The bandwidth extension generates {residual.shape[-1]} samples for the {skip.shape[-1]} of the "
                "upsampled sound; upsample_rates and hop_length of config.vocoder.bwe do not fit the rates."
            )
        kept = length * self.output_sampling_rate // self.input_sampling_rate
        return (residual + skip).clamp(-1, 1)[..., :kept]
