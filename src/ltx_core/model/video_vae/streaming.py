"""Decoding as a stream over time: exactly the untiled result, in memory that does not grow with length.

Every layer of a plain decoder sees one frame before and one after. So each convolution keeps a chunk and a frame,
each shortcut what its branch has not answered yet, and frames flow through all layers as they come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.model.video_vae.blocks import ResBlock, ResBlocks, Upsample
from ltx_core.model.video_vae.layers import CausalConv3d, depth_to_space

Chunks = Iterable[torch.Tensor]
"""(B, C, f, H, W) each, together the whole time axis."""

Layer = Callable[[Chunks], Iterator[torch.Tensor]]


def can_stream(blocks: Iterable[nn.Module]) -> bool:
    """Whether each layer is local in time and draws no noise: no group norms, timesteps or noise injection."""
    parts = [part for block in blocks for part in block.modules()]
    return not any(
        isinstance(part, nn.GroupNorm) or (isinstance(part, ResBlock) and (part.noise or part.timestep))
        for part in parts
    )


def regrouped(chunks: Chunks, size: int) -> Iterator[torch.Tensor]:
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


def convolved(conv: CausalConv3d, chunks: Chunks, causal: bool) -> Iterator[torch.Tensor]:
    """`conv` of each chunk, with its neighbours' edge frames, or its own repeated at both ends of the whole.

    Where it looks ahead it answers for a chunk when the next one has come.
    """
    before: torch.Tensor | None = None
    waiting: torch.Tensor | None = None
    for chunk in chunks:
        if before is None:
            before = chunk[:, :, :1].repeat(1, 1, 2 if causal else 1, 1, 1)
        if causal:
            window = torch.cat([before, chunk], dim=2)
            before = window[:, :, -2:].clone()  # a view would keep all of it
            yield conv.conv(window)
        elif waiting is not None:
            window = torch.cat([before, waiting, chunk[:, :, :1]], dim=2)
            before = waiting[:, :, -1:].clone()
            yield conv.conv(window)
        waiting = chunk
    if waiting is not None and before is not None and not causal:
        yield conv.conv(torch.cat([before, waiting, waiting[:, :, -1:]], dim=2))


def added(
    shortcut: Callable[[torch.Tensor], torch.Tensor], branch: Layer, chunks: Chunks
) -> Iterator[torch.Tensor]:
    """``shortcut(x) + branch(x)`` of each chunk, the branch answering later than it is asked."""
    waiting: deque[torch.Tensor] = deque()

    def asked() -> Iterator[torch.Tensor]:
        for chunk in chunks:
            waiting.append(chunk)
            yield chunk

    for answer in branch(asked()):
        yield shortcut(waiting.popleft()) + answer


def residual(block: ResBlock, chunks: Chunks, causal: bool) -> Iterator[torch.Tensor]:
    def branch(given: Chunks) -> Iterator[torch.Tensor]:
        inner = convolved(block.conv1, (F.silu(block.norm1(x)) for x in given), causal)
        return convolved(block.conv2, (F.silu(block.norm2(x)) for x in inner), causal)

    return added(lambda x: x, branch, chunks)


def upsampled(block: Upsample, chunks: Chunks, causal: bool) -> Iterator[torch.Tensor]:
    def unfold(x: torch.Tensor) -> torch.Tensor:
        return depth_to_space(x, block.stride)

    def branch(given: Chunks) -> Iterator[torch.Tensor]:
        return (unfold(x) for x in convolved(block.conv, given, causal))

    if block.repeats:
        chunks = added(lambda x: unfold(x).repeat(1, block.repeats, 1, 1, 1), branch, chunks)
    else:
        chunks = branch(chunks)
    surplus = block.stride[0] - 1  # the first frame of the whole stands for itself alone
    for chunk in chunks:
        if chunk.shape[2] > surplus:
            yield chunk[:, :, surplus:]
        surplus = 0


def through(block: nn.Module, chunks: Chunks, causal: bool, size: int) -> Iterator[torch.Tensor]:
    """The stream behind one block of a decoder, computed `size` frames at a time."""
    chunks = regrouped(chunks, size)
    if isinstance(block, ResBlocks):
        for part in block.res_blocks:
            chunks = residual(part, chunks, causal)  # type: ignore[arg-type]
        return iter(chunks)
    if isinstance(block, Upsample):
        return upsampled(block, chunks, causal)
    assert isinstance(block, ResBlock)
    return residual(block, chunks, causal)


__all__ = ["can_stream", "convolved", "regrouped", "through"]
