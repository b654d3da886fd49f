"""What a run would take, told from its recipe and the files' headers before anything is loaded."""

from __future__ import annotations

import torch

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.guidance.plan import plan_passes
from ltx_core.types import AudioLatentShape, VideoLatentShape
from ltx_pipelines.engine import Engine
from ltx_pipelines.recipe import GuiderArgument, Recipe, Stage

MIB, GIB = 1024**2, 1024**3
UNGUIDED = MultiModalGuiderParams()


def describe_plan(engine: Engine, recipe: Recipe) -> str:
    """Tokens, passes and memory of `recipe` on `engine`, as lines to print.

    Raises what the run itself would, before any work, for files that are missing, damaged or of another kind.
    """
    with engine.lock:
        engine.check(recipe)
        policy = engine.components.policy(recipe.components)
        sizes = [f"{name:<28}{_bytes(engine.components.size_of(name))}" for name in recipe.components]
        if policy.offload["transformer"] == "none" and (kept := engine.components.bytes_kept()):
            sizes.append(f"{'weights without the LoRAs':<28}{_bytes(kept)} of main memory")
    lines = [f"device {engine.device}, {str(engine.dtype).removeprefix('torch.')}"]
    lines += [_stage_line(number, stage) for number, stage in enumerate(recipe.stages, start=1)]
    lines += sizes
    if policy.free is not None:
        lines.append(f"{'free now':<28}{_bytes(policy.free)}")
    return "\n".join([*lines, policy.sentence])


def passes(stage: Stage) -> int:
    """Transformer passes of a whole stage, skipped steps counted as none."""
    sampler, steps = stage.sampler, list(enumerate(stage.sigmas.tolist()))
    each = [_passes_at(stage, step, sigma) for step, sigma in steps]
    # Midpoints of a sampler are guided like the first step, which is never skipped.
    midpoints = len(each[:-1]) * (sampler.evaluations_per_step - 1)
    return sum(each[:-1]) + midpoints * each[0] + each[-1] * sampler.last_evaluations


def _passes_at(stage: Stage, step: int, sigma: float) -> int:
    if stage.guidance is None:
        return 1
    empty = torch.empty(0)  # stands for a negative context
    video, audio = (
        MultiModalGuider(_params(given, sigma), negative_context=empty)
        for given in (stage.guidance.video, stage.guidance.audio)
    )
    enabled = (not video.should_skip_step(step), not audio.should_skip_step(step))
    return len(plan_passes((video, audio), enabled))


def _params(guider: GuiderArgument | None, sigma: float) -> MultiModalGuiderParams:
    if guider is None:
        return UNGUIDED
    return guider.params(sigma) if isinstance(guider, MultiModalGuiderFactory) else guider


def _stage_line(number: int, stage: Stage) -> str:
    shape = stage.shape
    video = VideoLatentShape.from_pixel_shape(shape).token_count()
    appended = sum(condition.tokens(shape) for condition in stage.video.conditions)
    audio = AudioLatentShape.from_video_pixel_shape(shape).token_count()
    more = f" + {appended} conditioning" if appended else ""
    steps, loras = len(stage.sigmas) - 1, len(stage.loras)
    return (
        f"stage {number}: {shape.width}x{shape.height}, {shape.frames} frames at {shape.fps:g}/s; "
        f"{video}{more} video and {audio} audio tokens; {steps} {stage.sampler.name} steps, "
        f"{passes(stage)} transformer passes; {loras} LoRA{'' if loras == 1 else 's'}"
    )


def _bytes(size: int) -> str:
    return f"{size / GIB:9.2f} GiB" if size >= GIB // 10 else f"{size / MIB:9.2f} MiB"
