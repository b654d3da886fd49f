"""Latent states over a denoising stage: made, conditioned, noised, shown to the model, and taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ltx_core.components.noisers import Noiser
from ltx_core.components.protocols import DiffusionStepProtocol
from ltx_core.conditioning import ConditioningItem
from ltx_core.tools import AudioLatentTools, LatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, LatentState, Modality, VideoLatentShape, VideoPixelShape
from ltx_pipelines.utils.types import DenoisingLoopFunc, PipelineComponents


def timesteps_from_mask(denoise_mask: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
    """Per-token noise levels (B, T, 1): mask x sigma: one for all, one per batch item (B,), or (B, T, 1)."""
    if isinstance(sigma, torch.Tensor):  # with three axes a float64 level (a res_2s midpoint) stays float64
        sigma = sigma[(..., *[None] * (denoise_mask.ndim - sigma.ndim))]
    return denoise_mask * sigma


def post_process_latent(
    denoised: torch.Tensor, denoise_mask: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """The estimate where the mask is 1, the clean latent where it is 0, else a blend; in float32 at least."""
    return (denoised * denoise_mask + clean.float() * (1 - denoise_mask)).to(denoised.dtype)


def blended(state: LatentState, x0: torch.Tensor) -> torch.Tensor:
    """`post_process_latent` with the mask and the clean latent of `state`."""
    return post_process_latent(x0, state.denoise_mask, state.clean_latent)


def modality_from_latent_state(
    state: LatentState, context: torch.Tensor, sigma: torch.Tensor, enabled: bool = True
) -> Modality:
    """A state as the transformer sees it at noise level `sigma`, which for a frozen state is 0."""
    return Modality(
        latent=state.latent,
        sigma=torch.zeros_like(sigma) if state.frozen else sigma,
        timesteps=timesteps_from_mask(state.denoise_mask, sigma),
        positions=state.positions,
        context=context,
        enabled=enabled,
        attention_mask=state.attention_mask,
        keyframes_mask=state.keyframes_mask,
    )


def freeze(state: LatentState) -> LatentState:
    """A stream that is given and kept: nothing of it is denoised, and the other stream sees it as clean."""
    return replace(state, denoise_mask=torch.zeros_like(state.denoise_mask), frozen=True)


def state_with_conditionings(
    latent_state: LatentState, conditioning_items: Sequence[ConditioningItem], latent_tools: LatentTools
) -> LatentState:
    """The state after all items, applied in order."""
    for item in conditioning_items:
        latent_state = item.apply_to(latent_state, latent_tools)
    return latent_state


def create_noised_state(
    tools: LatentTools,
    conditionings: Sequence[ConditioningItem],
    noiser: Noiser,
    dtype: torch.dtype,
    device: torch.device,
    noise_scale: float = 1.0,
    initial_latent: torch.Tensor | None = None,
) -> LatentState:
    """The patchified state a stage starts from: initial latent (or zeros), conditionings, then noise.

    noise_scale: level of the noise, the first sigma of the schedule where `initial_latent` is refined.
    Raises `ShapeError` (an AssertionError) for an initial latent of another shape.
    """
    state = tools.create_initial_state(device, dtype, initial_latent)
    return noiser(state_with_conditionings(state, conditionings, tools), noise_scale)


def noise_video_state(
    output_shape: VideoPixelShape,
    noiser: Noiser,
    conditionings: Sequence[ConditioningItem],
    components: PipelineComponents,
    dtype: torch.dtype,
    device: torch.device,
    noise_scale: float = 1.0,
    initial_latent: torch.Tensor | None = None,
) -> tuple[LatentState, VideoLatentTools]:
    """The noised state of a video of `output_shape` (in pixels), and its tools; see `create_noised_state`."""
    factors = components.video_scale_factors
    shape = VideoLatentShape.from_pixel_shape(output_shape, components.video_latent_channels, factors)
    tools = VideoLatentTools(components.video_patchifier, shape, output_shape.fps, factors)
    state = create_noised_state(tools, conditionings, noiser, dtype, device, noise_scale, initial_latent)
    return state, tools


def noise_audio_state(
    output_shape: VideoPixelShape,
    noiser: Noiser,
    conditionings: Sequence[ConditioningItem],
    components: PipelineComponents,
    dtype: torch.dtype,
    device: torch.device,
    noise_scale: float = 1.0,
    initial_latent: torch.Tensor | None = None,
) -> tuple[LatentState, AudioLatentTools]:
    """The noised state of the sound that lasts as long as the video `output_shape`, and its tools."""
    shape = AudioLatentShape.from_video_pixel_shape(output_shape)
    tools = AudioLatentTools(components.audio_patchifier, shape)
    state = create_noised_state(tools, conditionings, noiser, dtype, device, noise_scale, initial_latent)
    return state, tools


def denoise_audio_video(
    output_shape: VideoPixelShape,
    conditionings: Sequence[ConditioningItem],
    noiser: Noiser,
    sigmas: torch.Tensor,
    stepper: DiffusionStepProtocol,
    denoising_loop_fn: DenoisingLoopFunc,
    components: PipelineComponents,
    dtype: torch.dtype,
    device: torch.device,
    noise_scale: float = 1.0,
    initial_video_latent: torch.Tensor | None = None,
    initial_audio_latent: torch.Tensor | None = None,
) -> tuple[LatentState, LatentState]:
    """One stage for video and audio together: noise both (video first), run the loop, drop what was appended.

    Returns states with latents (B, C, F, H, W) and (B, C, frames, mel bins).
    """
    common = (components, dtype, device)
    video, video_tools = noise_video_state(
        output_shape, noiser, conditionings, *common, noise_scale, initial_video_latent
    )
    audio, audio_tools = noise_audio_state(
        output_shape, noiser, [], *common, noise_scale, initial_audio_latent
    )
    denoised_video, denoised_audio = denoising_loop_fn(sigmas, video, audio, stepper)
    assert denoised_video is not None
    assert denoised_audio is not None
    return finished(denoised_video, video_tools), finished(denoised_audio, audio_tools)


def denoise_video_only(
    output_shape: VideoPixelShape,
    conditionings: Sequence[ConditioningItem],
    noiser: Noiser,
    sigmas: torch.Tensor,
    stepper: DiffusionStepProtocol,
    denoising_loop_fn: DenoisingLoopFunc,
    components: PipelineComponents,
    dtype: torch.dtype,
    device: torch.device,
    noise_scale: float = 1.0,
    initial_video_latent: torch.Tensor | None = None,
    initial_audio_latent: torch.Tensor | None = None,
) -> LatentState:
    """One stage for the video, to a given sound that stays as it is (its noise is drawn, and not used)."""
    common = (components, dtype, device)
    video, video_tools = noise_video_state(
        output_shape, noiser, conditionings, *common, noise_scale, initial_video_latent
    )
    audio, _ = noise_audio_state(output_shape, noiser, [], *common, 0.0, initial_audio_latent)
    denoised_video, _ = denoising_loop_fn(sigmas, video, freeze(audio), stepper)
    assert denoised_video is not None
    return finished(denoised_video, video_tools)


def finished(state: LatentState, tools: LatentTools) -> LatentState:
    """A denoised state without appended tokens, as a grid."""
    return tools.unpatchify(tools.clear_conditioning(state))
