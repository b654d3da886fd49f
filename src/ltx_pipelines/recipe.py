"""What a generation is made of, as data: a recipe is a short list of denoising stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch

from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.components.schedulers import LTX2Scheduler
from ltx_core.loader.switch import Loras
from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_core.types import VideoPixelShape
from ltx_core.utils import check_prompt
from ltx_pipelines.conditions import Condition, Images
from ltx_pipelines.media.video import VideoInfo
from ltx_pipelines.sampling import EULER, Sampler
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.constants import (
    DEFAULT_IMAGE_CRF,
    DISTILLED_SIGMA_VALUES,
    STAGE_2_DISTILLED_SIGMA_VALUES,
)
from ltx_pipelines.utils.validation import (
    assert_resolution,
    check_frame_rate,
    check_guider,
    check_images,
    check_kind,
    check_length,
    check_num_frames,
    check_seed,
    check_steps,
    number,
    sized,
)

GuiderArgument = MultiModalGuiderParams | MultiModalGuiderFactory


class Start(Enum):
    """Where a stream of a stage begins."""

    NOISE = "noise"
    PREVIOUS = "the stage before: video upsampled, audio as it is"
    SOURCE = "the encoded source media"


@dataclass(frozen=True)
class Stream:
    """One modality of a stage: where it begins, what conditions it, whether it is kept as it is."""

    start: Start = Start.NOISE
    conditions: tuple[Condition, ...] = ()
    frozen: bool = False


@dataclass(frozen=True)
class Guidance:
    """Guider parameters of both modalities; a factory varies them with sigma. audio: None is unguided."""

    video: GuiderArgument
    audio: GuiderArgument | None

    def __post_init__(self) -> None:
        for guider in (self.video, self.audio):
            for params in guider.all_params if isinstance(guider, MultiModalGuiderFactory) else (guider,):
                if params is not None:
                    check_guider(params)


@dataclass(frozen=True)
class Stage:
    """One denoising run: at which size, along which sigmas, with which weights, guidance and sampler.

    noise_scale: level of the initial noise (1.0 = pure noise, else the first sigma).
    guidance: None means a single unguided pass per step.
    """

    shape: VideoPixelShape
    sigmas: torch.Tensor
    video: Stream = field(default_factory=Stream)
    audio: Stream = field(default_factory=Stream)
    loras: Loras = ()
    guidance: Guidance | None = None
    sampler: Sampler = EULER
    noise_scale: float = 1.0


@dataclass(frozen=True)
class Source:
    """Media that enters as latents: the clip to retake, or the sound to film to.

    clip, fit: see `fitted_clip`. put_back: the result has its own frames and sound where its latents are kept.
    """

    video_path: str | None = None
    clip: VideoInfo | None = field(default=None, compare=False)
    fit: str | None = None
    put_back: bool = False
    audio_path: str | None = None
    audio_start_time: float = 0.0
    audio_max_duration: float | None = None


class AudioOutput(Enum):
    """Which sound goes with the video."""

    FIRST_STAGE = "decoded from the first stage"
    LAST_STAGE = "decoded from the last stage"
    SOURCE = "the source's own waveform"


@dataclass(frozen=True)
class Enhancement:
    """Rewriting of the prompt by the text encoder before it is encoded."""

    seed: int
    image_path: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything the engine needs to run one generation; made by a pipeline, run by `generate`."""

    prompt: str
    seed: int
    stages: tuple[Stage, ...]
    negative_prompt: str | None = None
    source: Source | None = None
    audio_output: AudioOutput = AudioOutput.LAST_STAGE
    enhancement: Enhancement | None = None
    tiling: TilingConfig | AutoTiling | None = AUTO_TILING

    @property
    def frame_rate(self) -> float:
        return self.stages[-1].shape.fps

    @property
    def loras(self) -> Loras:
        """The LoRAs of all stages, each once."""
        return tuple(dict.fromkeys(lora for stage in self.stages for lora in stage.loras))

    @property
    def stg_blocks(self) -> set[int]:
        """The blocks that guidance perturbs; those of factories are not known beforehand."""
        used = [stage.guidance for stage in self.stages if stage.guidance is not None]
        guiders = [guider for guidance in used for guider in (guidance.video, guidance.audio)]
        known = [g for g in guiders if isinstance(g, MultiModalGuiderParams) and g.stg_scale]
        return {block for guider in known for block in guider.stg_blocks or ()}

    @property
    def variant(self) -> str:
        """The kind of checkpoint that it is made for: "full" with guidance, "distilled" without."""
        return "distilled" if self.stages[0].guidance is None else "full"

    @property
    def components(self) -> list[str]:
        """Names of the components that it runs, in the order of their first use."""
        source, two = self.source, len(self.stages) > 1
        conditions = [condition for stage in self.stages for condition in stage.video.conditions]
        names = []
        if two or any(condition.encodes for condition in conditions) or (source and source.video_path):
            names.append("video_encoder")
        if source:
            names.append("audio_encoder")
        names += ["text_encoder", "gemma_embeddings_processor", "transformer"]
        names += ["spatial_upsampler"] if two else []
        if self.audio_output is not AudioOutput.SOURCE:
            names += ["audio_decoder", "vocoder"]
        return [*names, "video_decoder"]


@dataclass(frozen=True)
class Request:
    """What a user asks of a generation from text and images, checked when it is made.

    height, width: of the final video in pixels, multiples of 32 x `stages`. num_frames: 8k + 1.
    image_crf: of images that name none. stage_2_sigmas: noise levels of the refinement.
    enhance_seed: None leaves the prompt as it is. Guided pipelines set negative_prompt, num_inference_steps and
    guidance.
    Raises `InputError` (a ValueError) naming the value and what would fit.
    """

    prompt: str
    seed: int
    height: int
    width: int
    num_frames: int
    frame_rate: float
    images: Sequence[ImageConditioningInput] = ()
    image_crf: int = DEFAULT_IMAGE_CRF
    stages: int = 1
    stage_2_sigmas: tuple[float, ...] = tuple(STAGE_2_DISTILLED_SIGMA_VALUES)
    enhance_seed: int | None = None
    tiling: TilingConfig | AutoTiling | None = AUTO_TILING
    negative_prompt: str | None = None
    num_inference_steps: int = 0
    guidance: Guidance | None = None
    sampler: Sampler = EULER

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames", "num_inference_steps"):
            object.__setattr__(self, name, sized(name, getattr(self, name)))
        object.__setattr__(self, "frame_rate", number("frame_rate", self.frame_rate))
        assert_resolution(self.height, self.width, is_two_stage=self.stages > 1)
        check_num_frames(self.num_frames)
        check_frame_rate(self.frame_rate)
        check_length(self.num_frames, self.frame_rate)
        check_seed(self.seed)
        tilings = (TilingConfig, AutoTiling, type(None))
        check_kind(
            "tiling_config", self.tiling, tilings, "a TilingConfig, AUTO_TILING, or None for one piece"
        )
        check_prompt("prompt", self.prompt)
        check_prompt("negative_prompt", self.negative_prompt or "")
        object.__setattr__(self, "images", check_images(self.images, self.num_frames, self.image_crf))

    @property
    def first_shape(self) -> VideoPixelShape:
        """Pixel shape of the first stage: half of the final sides where there are two."""
        return VideoPixelShape(
            1, self.num_frames, self.height // self.stages, self.width // self.stages, self.frame_rate
        )

    def enhanced(self, wanted: bool, seed: int | None = None) -> Request:
        """The same request, its prompt to be rewritten, if `wanted`, with this seed or its own."""
        return replace(self, enhance_seed=self.seed if seed is None else seed) if wanted else self

    def recipe(self, *stages: Stage, **fields: Any) -> Recipe:
        """A recipe of these stages for this request."""
        enhancement = None
        if self.enhance_seed is not None:
            enhancement = Enhancement(self.enhance_seed, self.images[0].path if self.images else None)
        return Recipe(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            stages=stages,
            enhancement=enhancement,
            tiling=self.tiling,
            **fields,
        )


def scheduled_sigmas(steps: int, latent: torch.Tensor | None = None) -> torch.Tensor:
    """The LTX-2 schedule of `steps` steps; with a latent its shift depends on the number of tokens."""
    check_steps(steps)
    return LTX2Scheduler().execute(steps=steps, latent=latent)


def distilled_sigmas() -> torch.Tensor:
    """The eight predefined steps of the distilled model."""
    return torch.tensor(DISTILLED_SIGMA_VALUES, dtype=torch.float32, device="cpu")


def guided_stage(request: Request, images: Images, loras: Loras, sigmas: torch.Tensor | None = None) -> Stage:
    """The first stage of the guided pipelines: from noise, along the schedule, with all guidance."""
    return Stage(
        shape=request.first_shape,
        sigmas=scheduled_sigmas(request.num_inference_steps) if sigmas is None else sigmas,
        video=Stream(conditions=(images,)),
        loras=loras,
        guidance=request.guidance,
        sampler=request.sampler,
    )


def distilled_stage(request: Request, conditions: tuple[Condition, ...], loras: Loras) -> Stage:
    """The first stage of the distilled pipelines: from noise in eight unguided steps."""
    return Stage(
        shape=request.first_shape,
        sigmas=distilled_sigmas(),
        video=Stream(conditions=conditions),
        loras=loras,
        sampler=request.sampler,
    )


def refinement(request: Request, first: Stage, images: Images, loras: Loras) -> Stage:
    """The second stage of every two-stage pipeline.

    At full size from the upsampled video and the audio of `first`, both re-noised to the first of
    `request.stage_2_sigmas`, in unguided distilled steps. An audio stream that `first` keeps frozen stays
    frozen, at its source.
    """
    sigmas = torch.tensor(request.stage_2_sigmas, dtype=torch.float32, device="cpu")
    return replace(
        first,
        shape=first.shape._replace(height=request.height, width=request.width),
        sigmas=sigmas,
        video=Stream(Start.PREVIOUS, (images,)),
        audio=first.audio if first.audio.frozen else Stream(Start.PREVIOUS),
        loras=loras,
        guidance=None,
        sampler=first.sampler.refining or first.sampler,
        noise_scale=sigmas[0].item(),
    )
