"""A clip's own frames and samples, put back where a retake has kept its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch.nn import functional as F

from ltx_core.model.audio_vae.processor import match_channels, resample
from ltx_core.model.video_vae.tiling import FRAMES_AT_A_TIME
from ltx_core.types import Audio, LatentState, SpatioTemporalScaleFactors
from ltx_pipelines.media.video import fitted_frames
from ltx_pipelines.recipe import Source
from ltx_pipelines.sources import SourceLatents

PutBack = Callable[[Callable[[], Iterator[torch.Tensor]]], Iterator[torch.Tensor]]
"""From what decodes chunks (f, H, W, 3), uint8, to chunks with frames of the clip."""


def remade(latent: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """(T,) which frames of a latent (1, C, T, ...) are not the source's: what a stage keeps has the same bits."""
    return (latent != source).movedim(2, 0).flatten(1).any(dim=1).cpu()


def original_frames(source: Source, latents: SourceLatents, latent: torch.Tensor) -> PutBack:
    """What puts the frames of a clip in place of those that are decoded from what it shares with `latent`."""
    path, clip = source.video_path, source.clip
    assert path is not None
    assert clip is not None
    assert latents.video is not None
    first, later = remade(latent, latents.video).split([1, latent.shape[2] - 1])
    is_new = torch.cat([first, later.repeat_interleave(SpatioTemporalScaleFactors.default().time)])

    def put_back(decode: Callable[[], Iterator[torch.Tensor]]) -> Iterator[torch.Tensor]:
        originals = fitted_frames(path, clip, source.fit)
        if not is_new.any():
            while frames := list(islice(originals, FRAMES_AT_A_TIME)):
                yield torch.cat(frames)
            return
        done = 0
        for chunk in decode():
            given = torch.cat(list(islice(originals, len(chunk)))).to(chunk.device)
            yield torch.where(
                is_new[done : done + len(chunk), None, None, None].to(chunk.device), chunk, given
            )
            done += len(chunk)

    return put_back


def with_original_sound(decode: Callable[[], Audio], source: SourceLatents, state: LatentState) -> Audio:
    """The decoded sound (2, N), with the source's, if it has any, where the latents (1, C, T, F) of `state` are the
    same.

    One latent frame next to each that differs stays as decoded, and within the next one (40 ms) one fades into the
    other: cut hard, they would click.
    """
    if source.audio is None or source.waveform is None:
        return decode()
    is_new = remade(state.latent, source.audio)
    if not is_new.any():
        return source.waveform
    decoded = decode()
    rate, samples = decoded.sampling_rate, decoded.waveform.shape[-1]
    waveform = match_channels(source.waveform.waveform[None], len(decoded.waveform))[0]
    waveform = resample(waveform.to(decoded.waveform), source.waveform.sampling_rate, rate)
    waveform = F.pad(waveform, (0, max(0, samples - waveform.shape[-1])))[:, :samples]
    is_new = F.max_pool1d(is_new[None].float(), 3, stride=1, padding=1)[0]
    times = state.positions[0, 0].float().mean(dim=-1).cpu()
    share = np.interp(np.arange(samples) / rate, times.numpy(), is_new.numpy())
    return Audio(torch.lerp(waveform, decoded.waveform, torch.from_numpy(share).to(waveform)), rate)
