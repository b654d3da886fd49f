"""Rectified flow on two streams: what is noised, how much, and what is given, so that every task is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import VideoConditionByKeyframeIndex, VideoConditionByReferenceLatent
from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig, Perturbation, PerturbationConfig
from ltx_core.guidance.plan import CROSS_ATTENTION
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import AudioLatentShape, LatentState, Modality, VideoLatentShape

BEYOND = 0.25  # of a clip's length, by which a stretch may begin before it or end after it


@dataclass(frozen=True)
class TasksConfig:
    """Chances, from 0 to 1, of what is given to the model instead of being generated.

    caption: that the caption is left out, for guidance. image: the first latent frame. keyframes: some of the
    cache's stills, as extra tokens, for the whole batch. audio: the sound; video: the picture, to generate the
    sound. region: all but a stretch of time; cut: of these, that what is given is of another clip, so that a new
    prompt prevails over its surroundings: of the original where the cache has originals, else of the next clip of
    the batch. isolated: that the streams do not see each other, for modality guidance. reference: the clip to
    follow, as extra tokens, for the whole batch.
    """

    caption: float = 0.1
    image: float = 0.25
    keyframes: float = 0.25
    audio: float = 0.1
    video: float = 0.0
    region: float = 0.1
    cut: float = 0.0
    isolated: float = 0.1
    reference: float = 0.0

    def __post_init__(self) -> None:
        for name, chance in vars(self).items():
            if not 0 <= chance <= 1:
                raise ConfigError(f"tasks.{name} is {chance}; a chance lies between 0 and 1.")
        if self.audio + self.video > 1:
            raise ConfigError(f"tasks.audio and tasks.video are {self.audio + self.video} together, above 1.")


class Levels(Enum):
    """How noise levels are drawn."""

    LOGIT_NORMAL = "logit-normal"
    UNIFORM = "uniform"


@dataclass(frozen=True)
class NoiseConfig:
    """Distribution of noise levels: sigmoid(mean + deviation n), of which `uniform` of the draws are uniform."""

    levels: Levels = Levels.LOGIT_NORMAL
    mean: float = 0.5
    deviation: float = 1.0
    uniform: float = 0.1

    def __post_init__(self) -> None:
        if self.deviation < 0 or not 0 <= self.uniform <= 1:
            raise ConfigError(
                f"noise.deviation is {self.deviation} and noise.uniform {self.uniform}; the one must not be "
                "negative, the other lie between 0 and 1."
            )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float32 in (0, 1)."""
        flat = _uniform(count, generator)
        if self.levels is Levels.UNIFORM:
            return flat
        normal = torch.randn(count, generator=generator, device=generator.device)
        bent = torch.sigmoid(self.mean + self.deviation * normal)
        return torch.where(_uniform(count, generator) < self.uniform, flat, bent)


class LevelSource(Protocol):
    """Anything that draws noise levels."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Drawn:
    """A training example: both states and their noise, by stream.

    noise: like the state's latent. sigma: (B,). latents: the noisy tokens; None mixes them from state and noise.
    """

    states: Mapping[str, LatentState]
    noise: Mapping[str, Tensor]
    sigma: Mapping[str, Tensor]
    perturbations: BatchedPerturbationConfig
    latents: Mapping[str, Tensor] | None = None

    def timesteps(self, stream: str) -> Tensor:
        """Each token's own noise level, (B, T, 1)."""
        return self.states[stream].denoise_mask * self.sigma[stream].view(-1, 1, 1)

    def noisy(self, stream: str) -> Tensor:
        """x = (1 - t) x0 + t noise, (B, T, D)."""
        if self.latents is not None:
            return self.latents[stream]
        return torch.lerp(self.states[stream].clean_latent, self.noise[stream], self.timesteps(stream))

    def modality(self, stream: str, context: Tensor, context_mask: Tensor | None = None) -> Modality:
        """The stream as the model sees it."""
        state = self.states[stream]
        return Modality(
            latent=self.noisy(stream),
            sigma=self.sigma[stream],
            timesteps=self.timesteps(stream),
            positions=state.positions,
            context=context,
            context_mask=context_mask,
            attention_mask=state.attention_mask,
            keyframes_mask=state.keyframes_mask,
        )

    def loss(self, stream: str, velocity: Tensor) -> Tensor:
        """Mean squared error of the velocity over the tokens that are generated."""
        target = self.noise[stream] - self.states[stream].clean_latent
        return mean_over((velocity.float() - target).square(), self.timesteps(stream) > 0)


def mean_over(error: Tensor, wanted: Tensor) -> Tensor:
    """Mean of (B, T, D) over the tokens that are `wanted` (B, T, 1); 0 if none is."""
    kept = wanted.float()
    return (error.mean(dim=-1, keepdim=True) * kept).sum() / kept.sum().clamp(min=1)


def draw(
    latents: Mapping[str, Any],
    keyframes: tuple[int, ...],
    fps: float,
    tasks: TasksConfig,
    noise: LevelSource,
    generator: torch.Generator,
) -> Drawn:
    """Noise a batch of a `LatentCache` and draw what is given, on the device of `generator`.

    keyframes: the pixel frames of the batch's "keyframes".
    """
    video, audio = latents["video"].float(), latents["audio"].float()
    batch = len(video)
    tools = VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape.from_torch_shape(video.shape), fps)
    sound = AudioLatentTools(AudioPatchifier(1), AudioLatentShape.from_torch_shape(audio.shape))
    device = video.device
    states = {
        "video": tools.create_initial_state(device, torch.float32, video),
        "audio": sound.create_initial_state(device, torch.float32, audio),
    }
    if "original_video" in latents:
        others = {
            "video": tools.patchifier.patchify(latents["original_video"].float()),
            "audio": sound.patchifier.patchify(latents["original_audio"].float()),
        }
    else:
        others = {name: state.clean_latent.roll(1, dims=0) for name, state in states.items()}
    given, cut = _happens(tasks.region, batch, generator), _happens(tasks.cut, batch, generator)
    states = _give_regions(states, others, given, cut, generator)
    states["video"] = _give_image(states["video"], video, _happens(tasks.image, batch, generator))
    given = _uniform(batch, generator)
    kept = {"audio": given < tasks.audio, "video": given > 1 - tasks.video}
    if tasks.keyframes and "keyframes" in latents and _chance(tasks.keyframes, generator):
        states["video"] = _give_keyframes(
            states["video"], tools, latents["keyframes"].float(), keyframes, generator
        )
    if tasks.reference and "reference" in latents and _chance(tasks.reference, generator):
        item = VideoConditionByReferenceLatent(latents["reference"].float())
        states["video"] = item.apply_to(states["video"], tools)
    level = noise.draw(batch, generator)
    for name, keep in kept.items():
        mask = states[name].denoise_mask * (~keep).float().view(-1, 1, 1)
        states[name] = replace(states[name], denoise_mask=mask)
    return Drawn(
        states=states,
        noise={name: _normal_like(state.clean_latent, generator) for name, state in states.items()},
        sigma={name: level * (~kept[name]).float() for name in states},
        perturbations=_isolated(_happens(tasks.isolated, batch, generator)),
    )


def _give_image(state: LatentState, video: Tensor, given: Tensor) -> LatentState:
    """Keep the first latent frame of the samples that are `given` it."""
    first = video.shape[3] * video.shape[4]
    mask = state.denoise_mask.clone()
    mask[:, :first] *= (~given).float().view(-1, 1, 1)
    return replace(state, denoise_mask=mask)


def _give_regions(
    states: dict[str, LatentState],
    others: Mapping[str, Tensor],
    given: Tensor,
    cut: Tensor,
    generator: torch.Generator,
) -> dict[str, LatentState]:
    """Of the samples that are `given` their surroundings, keep what lies outside a stretch of time.

    Tokens that overlap the stretch are generated, in both streams alike. It may begin before the clip or
    end after it, as those of retakes do. Where there is a `cut`, the surroundings are those of the `others`.
    """
    low, high = torch.stack([_uniform(len(given), generator) for _ in range(2)]).sort(dim=0).values
    bounds = (1 + BEYOND) * low - BEYOND, (1 + BEYOND) * high
    end = states["video"].positions[:, 0, :, 1].amax(dim=1)
    start, stop = ((bound * end)[:, None] for bound in bounds)
    changed = {}
    for name, state in states.items():
        first, last = state.positions[:, 0, :, 0], state.positions[:, 0, :, 1]
        inside = (last > start) & (first < stop)
        keep = (given[:, None] & ~inside)[..., None]
        clean = state.clean_latent
        changed[name] = replace(
            state,
            clean_latent=torch.where(keep & cut[:, None, None], others[name], clean),
            denoise_mask=state.denoise_mask * (~keep).float(),
        )
    return changed


def _give_keyframes(
    state: LatentState,
    tools: VideoLatentTools,
    latents: Tensor,
    frames: tuple[int, ...],
    generator: torch.Generator,
) -> LatentState:
    """Append some of the keyframes (B, K, C, H, W), at least one, the same ones for all samples."""
    chosen = _uniform(len(frames), generator) < 0.5
    chosen[int(_uniform(1, generator) * len(frames))] = True
    for k, frame in enumerate(frames):
        if chosen[k]:
            item = VideoConditionByKeyframeIndex(latents[:, k, :, None], frame, 1.0)
            state = item.apply_to(state, tools)
    return state


def _isolated(samples: Tensor) -> BatchedPerturbationConfig:
    """Samples whose streams do not attend to each other."""
    alone = PerturbationConfig([Perturbation(kind, None) for kind in CROSS_ATTENTION])
    together = PerturbationConfig.empty()
    return BatchedPerturbationConfig([alone if is_alone else together for is_alone in samples.tolist()])


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _happens(chance: float, count: int, generator: torch.Generator) -> Tensor:
    return _uniform(count, generator) < chance


def _chance(chance: float, generator: torch.Generator) -> bool:
    return bool(_uniform(1, generator) < chance)


def _normal_like(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)
