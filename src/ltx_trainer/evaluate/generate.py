"""What the rows generate: each function runs a pipeline as a user would and returns the file it wrote."""

from __future__ import annotations

import wave
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.types import Audio
from ltx_pipelines import (
    A2VidPipelineTwoStage,
    DistilledPipeline,
    ICLoraPipeline,
    KeyframeInterpolationPipeline,
    RetakePipeline,
    TI2VidTwoStagesPipeline,
)
from ltx_pipelines.events import Event
from ltx_pipelines.media.writer import encode_video, to_int16
from ltx_pipelines.sources import SourceLatents, encode_source
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_trainer.evaluate.case import Case, Made
from ltx_trainer.evaluate.measure import psnr
from ltx_trainer.evaluate.studio import Studio
from ltx_trainer.video_vae import to_pixels

Generate = Callable[[Studio, Case], Made]

GUIDANCE = ("CFG", "STG", "modality")
CFG, STG, MODALITY = 3.0, 1.0, 3.0  # scales of what the model's defaults leave off: those of LTX-2
STG_DEPTH = 28 / 48  # where in the transformer LTX-2.3's perturbed block lies


def from_text(studio: Studio, case: Case, **options: Any) -> Made:
    """Guided, in two stages, from the caption alone."""
    pipeline = studio.pipeline(TI2VidTwoStagesPipeline)
    pipeline(case.prompt, seed=case.seed, output_path=case.output_path, **options)
    return Made(case.output_path)


def distilled(studio: Studio, case: Case) -> Made:
    """In eight and three steps, unguided."""
    pipeline = studio.pipeline(DistilledPipeline)
    pipeline(case.prompt, seed=case.seed, output_path=case.output_path)
    return Made(case.output_path)


def from_image(studio: Studio, case: Case) -> Made:
    """From the clip's first frame and caption."""
    return from_text(studio, case, images=_images(case, [0]))


def from_keyframes(studio: Studio, case: Case) -> Made:
    """Between the clip's first, middle and last frame."""
    pipeline = studio.pipeline(KeyframeInterpolationPipeline)
    images = _images(case, keyframes(case))
    pipeline(case.prompt, seed=case.seed, images=images, output_path=case.output_path)
    return Made(case.output_path)


def keyframes(case: Case) -> list[int]:
    """The frames that are given to `from_keyframes`."""
    last = case.world.config.frames - 1
    return sorted({0, last // 2, last})


def _images(case: Case, frames: list[int]) -> list[ImageConditioningInput]:
    """The clip's `frames` as pictures, compressed as the model wants them."""
    pictures, images = case.clip.keyframes(frames), []
    for frame, picture in zip(frames, pictures):
        path = case.file(f"frame-{frame}.png")
        Image.fromarray(picture.numpy()).save(path)
        images.append(ImageConditioningInput(str(path), frame, 1.0, crf=None))
    return images


def to_sound(studio: Studio, case: Case) -> Made:
    """To the clip's sound, given as a WAV."""
    path, config = case.file("sound.wav"), case.world.config
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(config.sample_rate)
        file.writeframes(to_int16(case.clip.audio).astype("<i2").tobytes())
    pipeline = studio.pipeline(A2VidPipelineTwoStage)
    pipeline(case.prompt, seed=case.seed, audio_path=path, output_path=case.output_path)
    return Made(case.output_path)


def first_retaken(case: Case) -> int:
    """The first frame that `retaken` makes anew: the second one of all if the motion changes, else that of the
    later half of the latent frames."""
    if case.asked.scene.motion != case.truth.scene.motion:
        return 1
    latents = (case.world.config.frames - 1) // 8 + 1
    return 8 * (latents // 2) + 1


def retaken(studio: Studio, case: Case) -> Made:
    """The clip, made anew from `first_retaken` to its end after another caption.

    Fact "outside": whether latents of picture and sound before that are the source's, bit by bit.
    """
    source, config = case.write(case.clip, case.file("source.mp4")), case.world.config
    first = first_retaken(case)
    arguments = (source, case.prompt, (first + 0.5) / config.fps, config.seconds, case.seed)
    results: list[tuple[Tensor, Tensor]] = []

    def keep(event: Event) -> None:
        if event.result is not None:
            results.append((event.result[0].latent, event.result[1].latent))

    pipeline = studio.pipeline(RetakePipeline)
    pipeline(*arguments, output_path=case.output_path, callback=keep)
    with torch.no_grad():
        given = encode_source(studio.engine, pipeline(*arguments, dry_run=True))  # type: ignore[arg-type]
    return Made(case.output_path, {"outside": _kept(results[-1], given, first, config.frames)})


def _kept(made: tuple[Tensor, Tensor], given: SourceLatents, first: int, frames: int) -> bool:
    """Whether latents that end before frame `first` of `frames` are the same; a latent of sound reaches over the
    one before it, so two of these are left out."""
    video, audio = made
    assert given.video is not None
    assert given.audio is not None
    pictures = (first - 1) // 8 + 1
    sounds = max(0, int(first / frames * audio.shape[2]) - 2)
    same = torch.equal(video[:, :, :pictures], given.video[:, :, :pictures])
    return same and torch.equal(audio[:, :, :sounds], given.audio[:, :, :sounds])


def controlled(studio: Studio, case: Case) -> Made:
    """After the clip's outlines, by the IC-LoRA."""
    pipeline = studio.pipeline(ICLoraPipeline, loras=[studio.lora("ic-lora-outline")])
    path = case.file("outlines.mp4")
    encode_video(case.world.outlines([case.truth])[0], case.world.config.fps, None, path)
    control = [(str(path), 1.0)]
    pipeline(case.prompt, seed=case.seed, video_conditioning=control, output_path=case.output_path)
    return Made(case.output_path)


def styled(studio: Studio, case: Case) -> Made:
    """From the caption, with the LoRA for which it is always night."""
    pipeline = studio.pipeline(TI2VidTwoStagesPipeline, loras=[studio.lora("style-night")])
    pipeline(case.prompt, seed=case.seed, output_path=case.output_path)
    return Made(case.output_path)


@torch.no_grad()
def reconstructed(studio: Studio, case: Case) -> Made:
    """The clip through the video VAE, and its sound through the audio VAE and the vocoder.

    Fact "psnr": of the decoded frames, before they are written, in dB.
    """
    engine, config, clip = studio.engine, case.world.config, case.clip
    pixels = to_pixels(clip.video[None]).to(engine.device, engine.dtype)
    generator = torch.Generator(engine.device).manual_seed(case.seed)
    frames = torch.cat(list(engine.decode_video(engine.encode_video(pixels), None, generator))).cpu()
    sound = engine.decode_audio(engine.encode_audio(Audio(clip.audio[None], config.sample_rate)))
    encode_video(frames, config.fps, sound, case.output_path)
    return Made(case.output_path, {"psnr": psnr(frames, clip.video)})


def with_guidance(kinds: tuple[str, ...]) -> Generate:
    """`from_text` with these of `GUIDANCE` on in both streams, at the model's default scales, and the rest off."""

    def generate(studio: Studio, case: Case) -> Made:
        params, block = studio.params, _perturbed_block(studio)
        return from_text(
            studio,
            case,
            video_guider_params=_guider(params.video_guider_params, kinds, block),
            audio_guider_params=_guider(params.audio_guider_params, kinds, block),
        )

    return generate


def _guider(defaults: MultiModalGuiderParams, kinds: tuple[str, ...], block: int) -> MultiModalGuiderParams:
    """Scales are the defaults', or LTX-2's where these have a kind off."""
    cfg = defaults.cfg_scale if defaults.cfg_scale != 1 else CFG
    modality = defaults.modality_scale if defaults.modality_scale != 1 else MODALITY
    by_default = defaults.stg_scale != 0
    return MultiModalGuiderParams(
        cfg_scale=cfg if "CFG" in kinds else 1.0,
        stg_scale=(defaults.stg_scale if by_default else STG) if "STG" in kinds else 0.0,
        stg_blocks=defaults.stg_blocks if by_default else [block],
        modality_scale=modality if "modality" in kinds else 1.0,
        rescale_scale=defaults.rescale_scale,
    )


def _perturbed_block(studio: Studio) -> int:
    ledger = studio.engine.ledger
    config = ledger.checkpoint(*ledger.files_of("transformer")).config
    return int(config["transformer"]["num_layers"] * STG_DEPTH)
