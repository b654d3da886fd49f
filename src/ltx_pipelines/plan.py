"""What a run would take, told from its recipe and the files' headers before anything is loaded."""

from __future__ import annotations

from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.guidance.plan import passes_per_step
from ltx_core.types import AudioLatentShape, VideoLatentShape
from ltx_pipelines import memory
from ltx_pipelines.engine import HEADROOM, Engine
from ltx_pipelines.recipe import GuiderArgument, Recipe, Stage

GIB = 1024**3


def describe_plan(engine: Engine, recipe: Recipe) -> str:
    """Tokens, passes and memory of `recipe` on `engine`, as lines to print."""
    lines = [f"device {engine.device}, {str(engine.dtype).removeprefix('torch.')}"]
    lines += [_stage_line(number, stage) for number, stage in enumerate(recipe.stages, start=1)]
    sizes = {name: engine.ledger.size_of(name) for name in engine.ledger.components(recipe)}
    lines += [f"{name:<28}{size / GIB:8.2f} GiB" for name, size in sizes.items()]
    free = memory.available_bytes(engine.device)
    largest, total = max(sizes.values()), sum(sizes.values())
    if free is None:
        return "\n".join(lines)
    lines.append(f"{'free now':<28}{free / GIB:8.2f} GiB")
    if total * HEADROOM <= free:
        lines.append("Fits: everything stays loaded between stages and calls.")
    elif largest * HEADROOM <= free:
        lines.append("Fits: components take turns, so stages and calls load some of them again.")
    else:
        lines.append("Does not fit: use --offload cpu (or disk) or --quantization fp8-cast.")
    return "\n".join(lines)


def _stage_line(number: int, stage: Stage) -> str:
    shape = stage.shape
    video = VideoLatentShape.from_pixel_shape(shape).token_count()
    appended = sum(condition.tokens(shape) for condition in stage.video.conditions)
    audio = AudioLatentShape.from_video_pixel_shape(shape).token_count()
    steps = len(stage.sigmas) - 1
    passes = _passes(stage)
    return (
        f"stage {number}: {shape.width}x{shape.height}, {shape.frames} frames at {shape.fps:g}/s, "
        f"{video}{f' + {appended}' if appended else ''} video and {audio} audio tokens, "
        f"{steps} {stage.sampler.name} steps, {passes} transformer passes, "
        f"{len(stage.loras)} LoRAs"
    )


def _passes(stage: Stage) -> int:
    """Transformer passes of a whole stage: per evaluation one, and one more for each kind of guidance in use."""
    sigmas = stage.sigmas.tolist()[:-1]
    if stage.guidance is None:
        return len(sigmas) * stage.sampler.passes_per_step
    video, audio = stage.guidance.video, stage.guidance.audio
    return sum(
        passes_per_step(_params(video, sigma), _params(audio, sigma), step) * stage.sampler.passes_per_step
        for step, sigma in enumerate(sigmas)
    )


def _params(guider: GuiderArgument | None, sigma: float) -> MultiModalGuiderParams:
    return guider.params(sigma) if isinstance(guider, MultiModalGuiderFactory) else guider
