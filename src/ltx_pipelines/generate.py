"""The one flow of every generation: encode, condition, denoise stage by stage, decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ltx_core.components.guiders import MultiModalGuiderParams, create_multimodal_guider_factory
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.errors import InputError
from ltx_core.model.video_vae import get_video_chunks_number
from ltx_core.types import Audio, LatentState
from ltx_pipelines.conditions import Encoding
from ltx_pipelines.engine import Engine
from ltx_pipelines.events import Callback, Event, tell
from ltx_pipelines.media.writer import encode_video
from ltx_pipelines.recipe import AudioOutput, Guidance, Recipe, Stage, Start, Stream
from ltx_pipelines.sources import SourceLatents, encode_source
from ltx_pipelines.splicing import PutBack, original_frames, with_original_sound
from ltx_pipelines.utils.denoisers import multi_modal_guider_factory_denoising_func, simple_denoising_func
from ltx_pipelines.utils.states import finished, freeze, noise_audio_state, noise_video_state
from ltx_pipelines.utils.types import DenoisingFunc, PipelineComponents
from ltx_pipelines.utils.validation import check_path


class Generated(NamedTuple):
    """The result of a call; unpacks to ``(video, audio)``.

    video: iterator of uint8 chunks (f, height, width, 3); decoding happens while it is read.
    audio: waveform (channels, samples), float32 in [-1, 1], with its rate.
    """

    video: VideoStream
    audio: Audio

    def save(self, path: str | Path, callback: Callback | None = None, settings: str | None = None) -> Path:
        """Write an MP4 (H.264, AAC) of the whole video, whatever was read of it; nothing is left at `path` unless all
        went well.

        settings: JSON kept in the file's metadata, for ``ltx rerun``. Raises `InputError` for what is no path.
        """
        check_path("path", path)

        def watch(step: int) -> None:
            tell(callback, Event("write", step, self.video.chunks))

        try:
            encode_video(
                self.video.restarted(),
                self.video.fps,
                self.audio,
                str(path),
                self.video.chunks,
                settings=settings,
                on_chunk=watch,
            )
        finally:
            self.video.restarted()  # also after an error or a callback that stopped it
        return Path(path)


class VideoStream(Iterator[torch.Tensor]):
    """A lazy video. When it has been read to the end, reading it again decodes again, to the same frames."""

    def __init__(
        self,
        engine: Engine,
        latent: torch.Tensor,
        recipe: Recipe,
        generator: torch.Generator,
        put_back: PutBack | None = None,
    ) -> None:
        self.fps = recipe.frame_rate
        self.chunks = get_video_chunks_number(recipe.stages[-1].shape.frames, recipe.tiling)
        self._engine, self._latent, self._tiling = engine, latent, recipe.tiling
        self._generator, self._put_back = generator, put_back
        self._random_state = generator.get_state()
        self._running: Iterator[torch.Tensor] | None = None

    def restarted(self) -> VideoStream:
        """The stream, whose next chunk is the first one."""
        self._running = None
        return self

    def _decode(self) -> Iterator[torch.Tensor]:
        self._generator.set_state(self._random_state)
        decode = partial(self._engine.decode_video, self._latent, self._tiling, self._generator)
        return decode() if self._put_back is None else self._put_back(decode)

    def __next__(self) -> torch.Tensor:
        try:
            with self._engine.turn():
                if self._running is None:
                    self._running = self._decode()
                return next(self._running)
        except BaseException:
            self._running = None
            raise


@dataclass(frozen=True)
class _Run:
    """One generation under way."""

    engine: Engine
    recipe: Recipe
    generator: torch.Generator
    callback: Callback | None

    def tell(self, stage: str, **fields: Any) -> None:
        tell(self.callback, Event(stage, **fields))


def generate(engine: Engine, recipe: Recipe, callback: Callback | None = None) -> Generated:
    """Run `recipe` on `engine`.

    The random draws of a call come from one generator on the engine's device, in this order: each stage's
    video noise, then its audio noise, and last whatever the video decoder draws.
    """
    with engine.call():
        engine.check(recipe)
        run = _Run(engine, recipe, torch.Generator(engine.device).manual_seed(recipe.seed), callback)
        source = encode_source(engine, recipe)
        run.tell("encode prompt")
        prompts = [text for text in (recipe.prompt, recipe.negative_prompt) if text is not None]
        contexts = engine.encode_prompts(prompts, recipe.enhancement)
        results: list[tuple[LatentState, LatentState]] = []
        for number, stage in enumerate(recipe.stages, start=1):
            previous = results[-1] if results else None
            results.append(_denoise(run, f"stage {number}", stage, contexts, previous, source))
        (video, sound), decode = results[-1], partial(_audio, run, results, source)
        if recipe.source and recipe.source.put_back:
            audio = with_original_sound(decode, source, sound)
            put_back = original_frames(recipe.source, source, video.latent)
        else:
            audio, put_back = decode(), None
        return Generated(VideoStream(engine, video.latent, recipe, run.generator, put_back), audio)


def _denoise(
    run: _Run,
    name: str,
    stage: Stage,
    contexts: Sequence[Any],
    previous: tuple[LatentState, LatentState] | None,
    source: SourceLatents,
) -> tuple[LatentState, LatentState]:
    """One stage: noised and conditioned states, the sampler's loop, clean latents (B, C, F, H, W), (B, C, T, M)."""
    engine = run.engine
    encoding = Encoding(engine.encode_video, engine.device, engine.dtype)
    noiser = GaussianNoiser(run.generator)
    common = (PipelineComponents(dtype=engine.dtype, device=engine.device), engine.dtype, engine.device)

    start = _start(stage.video, source.video, previous and engine.upsample(previous[0].latent))
    items = [item for condition in stage.video.conditions for item in condition.items(stage.shape, encoding)]
    scale = 0.0 if stage.video.frozen else stage.noise_scale
    video, video_tools = noise_video_state(stage.shape, noiser, items, *common, scale, start)

    start = _start(stage.audio, source.audio, previous and previous[1].latent)
    unconditioned = stage.audio.start is Start.SOURCE and source.audio is None
    conditions = () if unconditioned else stage.audio.conditions
    items = [item for condition in conditions for item in condition.items(stage.shape, encoding)]
    frozen = stage.audio.frozen and not unconditioned
    scale = 0.0 if frozen else stage.noise_scale
    audio, audio_tools = noise_audio_state(stage.shape, noiser, items, *common, scale, start)

    video = freeze(video) if stage.video.frozen else video
    audio = freeze(audio) if frozen else audio
    sampler = stage.sampler
    options: dict[str, Any] = {"model_dtype": engine.dtype} if sampler.needs_dtype else {}
    sigmas = stage.sigmas.to(engine.device)
    options |= {"callback": run.callback, "stage": name}
    with engine.transformer_for_stage(stage.loras, contexts) as transformer:
        denoise = guided_denoising_func(transformer, contexts, stage.guidance)
        states = sampler.loop(sigmas, video, audio, sampler.stepper, engine.with_room(denoise), **options)
    video, audio = finished(states[0], video_tools), finished(states[1], audio_tools)
    _check_finite(name, video.latent, audio.latent)
    run.tell(name, step=len(sigmas) - 1, of=len(sigmas) - 1, result=(video, audio))
    return video, audio


def guided_denoising_func(
    transformer: nn.Module, contexts: Sequence[Any], guidance: Guidance | None
) -> DenoisingFunc:
    """The denoising function of a stage: unguided for `guidance` None, else by its parameters or factories.

    contexts: `EmbeddingsProcessorOutput` of the prompt, then, if there is one, of the negative prompt.
    """
    positive, negative = contexts[0], contexts[1] if len(contexts) > 1 else None
    encodings = (positive.video_encoding, positive.audio_encoding)
    if guidance is None:
        return simple_denoising_func(*encodings, transformer)
    video = create_multimodal_guider_factory(guidance.video, negative and negative.video_encoding)
    if guidance.audio is None:  # unguided: it takes the positive context in every pass
        audio = create_multimodal_guider_factory(MultiModalGuiderParams())
    else:
        audio = create_multimodal_guider_factory(guidance.audio, negative and negative.audio_encoding)
    return multi_modal_guider_factory_denoising_func(video, audio, *encodings, transformer)


def _start(stream: Stream, source: torch.Tensor | None, previous: torch.Tensor | None) -> torch.Tensor | None:
    return {Start.NOISE: None, Start.SOURCE: source, Start.PREVIOUS: previous}[stream.start]


def _check_finite(stage: str, *latents: torch.Tensor) -> None:
    for kind, latent in zip(("video", "audio"), latents):
        if not torch.isfinite(latent).all():
            raise InputError(
                f"The {kind} latent is not finite after {stage} ({latent.dtype} on {latent.device}). "
                "Try dtype=torch.bfloat16 or float32, weaker guidance, or check the LoRAs' strengths."
            )


def _audio(run: _Run, results: list[tuple[LatentState, LatentState]], source: SourceLatents) -> Audio:
    match run.recipe.audio_output:
        case AudioOutput.SOURCE:
            assert source.waveform is not None
            return source.waveform
        case AudioOutput.FIRST_STAGE:
            latent = results[0][1].latent
        case AudioOutput.LAST_STAGE:
            latent = results[-1][1].latent
    run.tell("decode audio")
    return run.engine.decode_audio(latent)
