"""The vocoder: log-mel spectrograms to waveforms, with leaky ReLUs (LTX-2.0) or anti-aliased snakes (2.3).

Its layers take signals (B, C, 1, N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.config import GeneratorConfig
from ltx_core.model.audio_vae.signals import Conv1d, ConvTranspose1d, as_signal
from ltx_core.model.common.checks import check_tensor

T = TypeVar("T")

MEL_CHANNELS = 128  # two channels of 64 bands
FILTER_TAPS, CUTOFF, HALF_WIDTH = 12, 0.25, 0.3  # of the low-pass filter, in cycles a sample
INNER_SLOPE, FINAL_SLOPE = 0.1, 0.01


def kaiser_sinc_filter() -> torch.Tensor:
    """Low-pass filter (1, 1, 12) of unit sum: a sinc under a Kaiser window (BigVGAN's design for half the rate)."""
    return torch.tensor(_kaiser_sinc(), dtype=torch.float32).view(1, 1, FILTER_TAPS)


@lru_cache
def _kaiser_sinc() -> tuple[float, ...]:
    attenuation = 2.285 * (FILTER_TAPS // 2 - 1) * math.pi * 4 * HALF_WIDTH + 7.95
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's formula for more than 50 dB
    with torch.device("cpu"):  # models are built on the meta device, where there are no values
        window = torch.kaiser_window(FILTER_TAPS, periodic=False, beta=beta, dtype=torch.float32)
        time = torch.arange(FILTER_TAPS, dtype=torch.float32) - (FILTER_TAPS - 1) / 2
        kernel = 2 * CUTOFF * window * torch.sinc(2 * CUTOFF * time)
        return tuple((kernel / kernel.sum()).tolist())


def _snake(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """x + sin(a x)^2 / b per channel of (B, C, 1, N), from the logarithms of a and b."""
    a, b = alpha.exp()[:, None, None], beta.exp()[:, None, None]
    return torch.addcmul(x, (x * a).sin_().square_(), 1 / (b + 1e-9))


class Snake(nn.Module):
    """x + sin(a x)^2 / a per channel, a stored as its logarithm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _snake(x, self.alpha, self.alpha)


class SnakeBeta(Snake):
    """x + sin(a x)^2 / b per channel, a and b stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _snake(x, self.alpha, self.beta)


SNAKES = {"snake": Snake, "snakebeta": SnakeBeta}


class Filter(nn.Module):
    """The file's low-pass filter for a change of rate."""

    filter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", kaiser_sinc_filter())

    def phase(self, first: int, x: torch.Tensor) -> torch.Tensor:
        """Every second tap from `first` on, the same (C, 1, 1, taps / 2) for each channel of x."""
        return self.filter[:, :, None, first::2].to(x.dtype).expand(x.shape[1], -1, -1, -1).contiguous()


class AntiAliased(nn.Module):
    """A snake activation at twice the rate, so that the harmonics it makes do not fold back.

    The even and the odd samples of the doubled signal are made, activated and filtered apart, which multiplies no
    zeros and makes nothing that is dropped. At either rate edges are repeated.
    """

    def __init__(self, channels: int, snake: type[Snake] = SnakeBeta) -> None:
        super().__init__()
        self.act = snake(channels)
        self.upsample = Filter()
        self.downsample = nn.ModuleDict({"lowpass": Filter()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded, lowering = F.pad(x, (5, 5, 0, 0), mode="replicate"), cast(Filter, self.downsample["lowpass"])
        # Flipped, a correlation convolves; twice, as every second sample that the filter meets would be zero.
        even, odd = (self.act(_each(padded, 2 * self.upsample.phase(n, x).flip(-1))) for n in (1, 0))
        # Both reach over the edges, where the first (even) and the last (odd) sample are repeated.
        even[..., :2] = odd[..., :3] = even[..., 2:3]
        even[..., -3:] = odd[..., -2:] = odd[..., -3:-2]
        return _each(odd, lowering.phase(0, x)) + _each(even, lowering.phase(1, x))


def _each(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Each channel with its own kernel, without padding."""
    return F.conv2d(x, kernel, groups=x.shape[1])


class ResBlock(nn.Module):
    """Pairs of (dilated, plain) convolutions, each pair added to its input.

    snake: the kind of the anti-aliased activations before every convolution; None for leaky ReLUs.
    """

    def __init__(
        self, channels: int, kernel: int, dilations: Sequence[int], *, snake: type[Snake] | None
    ) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same(channels, kernel, 1) for _ in dilations)
        self.snakes = snake is not None
        if snake is not None:
            self.acts1 = nn.ModuleList(AntiAliased(channels, snake) for _ in dilations)
            self.acts2 = nn.ModuleList(AntiAliased(channels, snake) for _ in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, (first, second) in enumerate(zip(self.convs1, self.convs2)):
            before: Callable = self.acts1[i] if self.snakes else _leaky
            between: Callable = self.acts2[i] if self.snakes else _leaky
            x = x + second(between(first(before(x))))
        return x


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, INNER_SLOPE)


def _same(channels: int, kernel: int, dilation: int) -> Conv1d:
    return Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)


def _check_pairs(**lists: Sequence) -> None:
    (first, values), (second, others) = lists.items()
    if not values or len(values) != len(others):
        raise ConfigError(
            f"config.vocoder: {first} has {len(values)} values and {second} {len(others)}; expected as many "
            "in both, at least 1."
        )


def _check_stages(width: int, rates: Sequence[int], kernels: Sequence[int]) -> None:
    if width >> len(rates) < 1:
        raise ConfigError(
            f"config.vocoder.upsample_initial_channel is {width}, which {len(rates)} stages cannot halve; expected "
            f"at least {1 << len(rates)}."
        )
    for rate, kernel in zip(rates, kernels):
        if not 1 <= rate <= kernel:
            raise ConfigError(
                f"config.vocoder: upsample_rates has {rate} with {kernel} in upsample_kernel_sizes; expected "
                "at least 1, and a kernel that is not smaller."
            )


def _or(sizes: T | None, default: T) -> T:
    return default if sizes is None else sizes


class Vocoder(nn.Module):
    """(B, 2, T, 64) log-mel to (B, 2, T x product of upsample_rates) in [-1, 1] (HiFi-GAN; BigVGAN for AMP1).

    Sizes that are None are those of LTX-2.0. activation: of AMP1's residual blocks, "snake" or "snakebeta"; before
    the last convolution it is the latter.
    """

    def __init__(
        self,
        resblock_kernel_sizes: Sequence[int] | None = None,
        upsample_rates: Sequence[int] | None = None,
        upsample_kernel_sizes: Sequence[int] | None = None,
        resblock_dilation_sizes: Sequence[Sequence[int]] | None = None,
        upsample_initial_channel: int = 1024,
        resblock: str = "1",
        output_sampling_rate: int = 24000,
        activation: str = "snake",
        use_tanh_at_final: bool = True,
        apply_final_activation: bool = True,
        use_bias_at_final: bool = True,
    ) -> None:
        super().__init__()
        if resblock not in ("1", "AMP1"):
            raise ConfigError(f"config.vocoder.resblock is {resblock!r}; expected '1' or 'AMP1'.")
        if resblock == "AMP1" and activation not in SNAKES:
            raise ConfigError(
                f"config.vocoder.activation is {activation!r}; expected {' or '.join(map(repr, SNAKES))}."
            )
        rates = _or(upsample_rates, GeneratorConfig.upsample_rates)
        kernels = _or(upsample_kernel_sizes, GeneratorConfig.upsample_kernel_sizes)
        sizes = _or(resblock_kernel_sizes, GeneratorConfig.resblock_kernel_sizes)
        dilations = _or(resblock_dilation_sizes, GeneratorConfig.resblock_dilation_sizes)
        _check_pairs(upsample_rates=rates, upsample_kernel_sizes=kernels)
        _check_pairs(resblock_kernel_sizes=sizes, resblock_dilation_sizes=dilations)
        _check_stages(upsample_initial_channel, rates, kernels)
        if even := [size for size in sizes if size % 2 == 0]:
            raise ConfigError(f"config.vocoder.resblock_kernel_sizes has {even[0]}; expected odd sizes.")
        self.output_sampling_rate = output_sampling_rate
        self.snakes = resblock == "AMP1"
        snake = SNAKES[activation] if self.snakes else None
        self.use_tanh_at_final, self.apply_final_activation = use_tanh_at_final, apply_final_activation
        self.blocks_per_stage = len(sizes)
        width = upsample_initial_channel
        self.conv_pre = Conv1d(MEL_CHANNELS, width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(rates, kernels):
            self.ups.append(ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2))
            width //= 2
            self.resblocks.extend(ResBlock(width, k, d, snake=snake) for k, d in zip(sizes, dilations))
        if self.snakes:
            self.act_post = AntiAliased(width)
        self.conv_post = Conv1d(width, 2, 7, padding=3, bias=use_bias_at_final)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raises `ShapeError`, or `InputError` for another dtype than the network's."""
        sizes = ("batch", 2, "frames", MEL_CHANNELS // 2)
        check_tensor(x, "The vocoder", "log-mel", sizes, self.conv_pre.weight.dtype)
        x = self.conv_pre(as_signal(x.transpose(2, 3).flatten(1, 2)))
        for i, up in enumerate(self.ups):
            x = up(x if self.snakes else _leaky(x))
            start = i * self.blocks_per_stage
            total = self.resblocks[start](x)
            for block in self.resblocks[start + 1 : start + self.blocks_per_stage]:
                total = total + block(x)
            x = total / self.blocks_per_stage
        x = self.act_post(x) if self.snakes else F.leaky_relu(x, FINAL_SLOPE)
        x = self.conv_post(x).squeeze(2)
        if not self.apply_final_activation:
            return x
        return x.tanh() if self.use_tanh_at_final else x.clamp(-1, 1)
