"""Decoding as a stream over time: exactly the untiled result, in memory that does not grow with length.

Every layer of a plain decoder sees one frame before and one after. So each keeps two frames of what it was given, and
answers for a frame when the next one has come. A piece goes through all layers before the next one begins; where it
grows too large, at a higher resolution, it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.model.common.folding import depth_to_space
from ltx_core.model.video_vae.blocks import ResBlock, ResBlocks, Upsample
from ltx_core.model.video_vae.layers import CausalConv3d

PIECE_BYTES = 8 * 2**20  # of what a layer takes or gives at once
LEAST_FRAMES = 2  # of a piece, however large they are: as many as a layer keeps


def can_stream(blocks: Iterable[nn.Module]) -> bool:
    """Whether each layer is local in time and draws no noise: no group norms, timesteps or noise injection."""
    parts = [part for block in blocks for part in block.modules()]
    return not any(
        isinstance(part, nn.GroupNorm) or (isinstance(part, ResBlock) and (part.noise or part.timestep))
        for part in parts
    )


class Window:
    """A piece between the two frames before it; at the ends of the whole, copies of the edge frames."""

    def __init__(self, causal: bool) -> None:
        self.causal = causal
        self.kept: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor:
        before = [x[:, :, :1]] * (2 if self.causal else 1) if self.kept is None else [self.kept]
        after = [x[:, :, -1:]] if last and not self.causal else []
        window = torch.cat([*before, x, *after], dim=2)
        if self.kept is None:
            self.kept = torch.empty_like(window[:, :, :2])
        self.kept.copy_(window[:, :, -2:])
        return window

    def centre(self, window: torch.Tensor) -> torch.Tensor:
        """The frames for which a convolution of `window` answers."""
        return window[:, :, 2:] if self.causal else window[:, :, 1:-1]


class Layer:
    """One step of a stream. `growth`: bytes of a frame that it gives, over those of one that it takes."""

    growth = 1.0

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        """Answer to the next frames (B, C, f, H, W) as far as is possible; None if for none of them.

        last: there are no more, and everything is answered.
        """
        raise NotImplementedError


class Convolution(Layer):
    """`conv` of what `before` makes of each position."""

    def __init__(
        self, conv: CausalConv3d, causal: bool, before: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self.conv, self.before, self.window = conv.conv, before, Window(causal)
        self.growth = self.conv.out_channels / self.conv.in_channels

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        window = self.window(x if self.before is None else self.before(x), last)
        return self.conv(window) if window.shape[2] > 2 else None


class Residual(Layer):
    """A residual block. What its first convolution sees is computed from the frames kept for the shortcut."""

    def __init__(self, block: ResBlock, causal: bool) -> None:
        self.block, self.outer, self.inner = block, Window(causal), Window(causal)

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        block = self.block
        x = self.outer(x, last)
        if x.shape[2] < 3:
            return None
        h = self.inner(activated(block.norm2, block.conv1.conv(activated(block.norm1, x))), last)
        if h.shape[2] < 3:
            return None
        h = block.conv2.conv(h)
        end = x.shape[2] - (0 if self.outer.causal else 1 if last else 2)
        return h.add_(x[:, :, end - h.shape[2] : end])


class Upsampling(Layer):
    """An upsampling block, which drops the first frame of the whole where it doubles time."""

    def __init__(self, block: Upsample, causal: bool) -> None:
        self.block, self.window, self.surplus = block, Window(causal), block.stride[0] - 1
        self.growth = block.conv.conv.out_channels / block.conv.conv.in_channels

    def __call__(self, x: torch.Tensor, last: bool) -> torch.Tensor | None:
        block, window = self.block, self.window(x, last)
        if window.shape[2] < 3:
            return None
        y = depth_to_space(block.conv.conv(window), block.stride)
        if block.repeats:
            shortcut = depth_to_space(self.window.centre(window), block.stride)
            y = y.add_(shortcut.repeat(1, block.repeats, 1, 1, 1))
        surplus, self.surplus = self.surplus, 0
        return y[:, :, surplus:]


def activated(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.silu(norm(x), inplace=True)


def layers_of(block: nn.Module, causal: bool) -> list[Layer]:
    """The steps of one block of a decoder."""
    if isinstance(block, ResBlocks):
        return [Residual(part, causal) for part in block.res_blocks]  # type: ignore[arg-type]
    if isinstance(block, Upsample):
        return [Upsampling(block, causal)]
    assert isinstance(block, ResBlock)
    return [Residual(block, causal)]


def stream(
    layers: Sequence[Layer], x: torch.Tensor, piece_bytes: int, last: bool = True
) -> Iterator[torch.Tensor]:
    """What comes out behind all layers, as it comes; no layer takes or gives more than `piece_bytes` at once, unless
    two frames are more."""
    for i, layer in enumerate(layers):
        frames = x.shape[2]
        most = max(LEAST_FRAMES, int(piece_bytes * frames / (x.nbytes * max(layer.growth, 1))))
        *pieces, x = x.tensor_split(-(-frames // most), dim=2)
        for piece in pieces:
            yield from stream(layers[i:], piece, piece_bytes, last=False)
        del pieces
        answer = layer(x, last)
        if answer is None:
            return
        x = answer
    yield x


def regrouped(chunks: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """The same frames in chunks of `size`, the last one shorter."""
    held: torch.Tensor | None = None
    for chunk in chunks:
        held = chunk if held is None else torch.cat([held, chunk], dim=2)
        *full, held = held.split(size, dim=2)
        held = held.clone()
        yield from full
        del full, chunk
    if held is not None:
        yield held


__all__ = ["PIECE_BYTES", "Convolution", "activated", "can_stream", "layers_of", "regrouped", "stream"]
