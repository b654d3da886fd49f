"""Validates the oracle on ground truth: `python -m ltx_trainer.oracle.validate` prints two tables.

First table: how often each attribute is measured right, as rendered and after what happens to clips on their
way. Second table: clips in which one thing was swapped and judged by their old truth: how often the swap is
noticed, and how often everything that it should leave alone is still found right.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ltx_pipelines.cli.app import guarded
from ltx_trainer.log import markdown_table
from ltx_trainer.oracle.degrade import add_hiss, add_noise, blur, resize, through_codecs
from ltx_trainer.oracle.judge import Wanted, judge
from ltx_trainer.world import Clip, World, WorldConfig
from ltx_trainer.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    RESIZING,
    SHAPES,
    SIZES,
    STYLES,
    exists,
)
from ltx_trainer.world.world import VALUES

Condition = Callable[[Clip, WorldConfig, int], tuple[Tensor, Tensor]]
BATCH = 20
SHIFT = 0.17  # seconds by which sound is shifted against the picture to see whether that is noticed


def _as_rendered(clip: Clip, config: WorldConfig, seed: int) -> tuple[Tensor, Tensor]:
    return clip.video, clip.audio


def _soft_and_noisy(clip: Clip, config: WorldConfig, seed: int) -> tuple[Tensor, Tensor]:
    soft = blur(clip.video, 0.01 * min(config.height, config.width))
    return add_noise(soft, 5.0, seed), add_hiss(clip.audio, -55.0, seed)


def _resized(clip: Clip, config: WorldConfig, seed: int) -> tuple[Tensor, Tensor]:
    return resize(clip.video, config.height * 3 // 4, config.width * 3 // 4), clip.audio


def _coded(clip: Clip, config: WorldConfig, seed: int) -> tuple[Tensor, Tensor]:
    return through_codecs(clip.video, config.fps, clip.audio, config.sample_rate)


def _all_of_it(clip: Clip, config: WorldConfig, seed: int) -> tuple[Tensor, Tensor]:
    frames, wave = _soft_and_noisy(clip, config, seed)
    frames = resize(frames, config.height * 3 // 8 * 2, config.width * 3 // 8 * 2)
    return through_codecs(frames, config.fps, wave, config.sample_rate)


CONDITIONS: dict[str, Condition] = {
    "as rendered": _as_rendered,
    "blur, noise": _soft_and_noisy,
    "resized 3/4": _resized,
    "H.264, AAC": _coded,
    "all of it": _all_of_it,
}


def _clips(world: World, count: int) -> Iterator[tuple[int, Clip]]:
    for start in range(0, count, BATCH):
        batch = world.batch(range(start, min(start + BATCH, count)))
        yield from ((start + k, batch[k]) for k in range(len(batch)))


def accuracy(world: World, count: int, condition: Condition = _as_rendered) -> dict[str, tuple[int, int]]:
    """Judge `count` clips by all of their truth: attribute -> (right, of)."""
    right, of = Counter[str](), Counter[str]()
    config = world.config
    for index, clip in _clips(world, count):
        frames, wave = condition(clip, config, index)
        wanted = Wanted.of(clip.truth, stated_only=False, onsets=True)
        verdict = judge(frames, config.fps, wave, config.sample_rate, wanted)
        of.update(verdict.right.keys())
        right.update(name for name, ok in verdict.right.items() if ok)
    return {name: (right[name], of[name]) for name in of}


def _other(rng: np.random.Generator, clip: Clip, attribute: str, values: Sequence[str]) -> str | None:
    """Another value of the attribute with which the scene still exists."""
    scene = clip.truth.scene

    def fits(value: str) -> bool:
        other = {name: value if name == attribute else getattr(scene, name) for name in VALUES}
        return value != getattr(scene, attribute) and exists(**other)

    choices = [value for value in values if fits(value)]
    return str(rng.choice(choices)) if choices else None


def _shifted(wave: Tensor, samples: int) -> Tensor:
    """Sound that comes `samples` later, or earlier if negative."""
    silence = torch.zeros_like(wave[:, : abs(samples)])
    return torch.cat((silence, wave[:, :-samples]) if samples > 0 else (wave[:, -samples:], silence), dim=1)


def _still_heard(clip: Clip, shift: float, seconds: float) -> bool:
    """Whether a ring is left, with time to be heard, in sound shifted by `shift` seconds."""
    return any(0.12 < onset + shift < seconds - 0.12 for onset in clip.truth.onsets)


SWAPS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": SIZES,
    "background": tuple(BACKGROUNDS),
    "motion": MOTIONS,
    "style": tuple(style for style in STYLES if style != "night"),  # that is another background
    "sound": MOTIONS,
    "timbre": SHAPES,
    "synchrony": (),
}
FOLLOWS = {  # what else changes when an attribute is swapped
    "shape": {"timbre", "synchrony", "impacts", "onsets"},
    "size": {"synchrony", "impacts", "onsets"},
    "motion": {"sound", "timbre", "synchrony", "impacts", "onsets", "size"},
    "sound": {"timbre", "synchrony", "onsets"},
    "synchrony": {"onsets"},
}


def _swap(world: World, index: int, clip: Clip, attribute: str) -> Clip | None:
    """The clip with one thing swapped, under its old truth; None where that makes no sense."""
    rng = np.random.default_rng((index, sum(attribute.encode())))
    truth, scene = clip.truth, clip.truth.scene
    if attribute in ("timbre", "synchrony") and scene.motion != "bounce":
        return None
    if attribute == "size" and scene.motion in RESIZING:
        return None
    if attribute == "synchrony":
        shifts = [shift for shift in (-SHIFT, SHIFT) if _still_heard(clip, shift, world.config.seconds)]
        shift = float(rng.choice(shifts)) if shifts else 0.0
        samples = round(shift * world.config.sample_rate)
        return replace(clip, audio=_shifted(clip.audio, samples)) if shifts else None
    changed = {"sound": "motion", "timbre": "shape"}.get(attribute, attribute)
    value = _other(rng, clip, changed, SWAPS[attribute])
    if value is None:
        return None
    if attribute == "timbre":  # the same hops, rung by another shape
        other = world.render([replace(truth, scene=replace(scene, shape=value))])[0]
    else:
        other = world.render([world.change(truth, index, **{changed: value})])[0]
    if attribute == "sound" and other.truth.scene.sound == scene.sound:
        return None
    return (
        replace(clip, audio=other.audio) if attribute in ("sound", "timbre") else replace(other, truth=truth)
    )


def swapped(world: World, count: int, attribute: str) -> tuple[int, int, int]:
    """Swap `attribute` in `count` clips: how many are noticed, in how many the rest is right, of how many."""
    noticed = rest = of = 0
    config = world.config
    for index, clip in _clips(world, count):
        fake = _swap(world, index, clip, attribute)
        if fake is None:
            continue
        wanted = Wanted.of(clip.truth, stated_only=False, onsets=True)
        right = judge(fake.video, config.fps, fake.audio, config.sample_rate, wanted).right
        alone = set(right) - {attribute} - FOLLOWS.get(attribute, set())
        of += 1
        noticed += not right[attribute]
        rest += all(right[name] for name in alone)
    return noticed, rest, of


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def report(world: World, count: int) -> str:
    """Both tables, in per cent, as Markdown."""
    measured = {name: accuracy(world, count, condition) for name, condition in CONDITIONS.items()}
    attributes = list(next(iter(measured.values())))
    rows = [["right, %", *measured, "of"]]
    for name in attributes:
        cells = [_percent(*scores[name]) for scores in measured.values()]
        rows.append([name, *cells, str(measured["as rendered"][name][1])])
    swap_rows = [["swapped", "noticed, %", "rest right, %", "of"]]
    for attribute in SWAPS:
        noticed, rest, of = swapped(world, count, attribute)
        swap_rows.append([attribute, _percent(noticed, of), _percent(rest, of), str(of)])
    return f"{markdown_table(rows)}\n\n{markdown_table(swap_rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: see the module's docstring. Exit codes: 0 done, 1 failed, 2 bad arguments, 130 interrupted."""
    parser = argparse.ArgumentParser(description="Validate the miniature's oracle on ground truth.")
    parser.add_argument("--clips", type=int, default=500, help="clips to judge under each condition")
    parser.add_argument("--size", type=int, default=128, help="height and width of the clips, pixels")
    parser.add_argument("--frames", type=int, default=17, help="frames of the clips, 8k + 1")
    parser.add_argument("--fps", type=float, default=24.0, help="frames per second")
    parser.add_argument("--style", default="plain", choices=STYLES, help="how the clips are drawn")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options), debug=options.debug)


def _run(options: argparse.Namespace) -> int:
    config = WorldConfig(
        height=options.size,
        width=options.size,
        frames=options.frames,
        fps=options.fps,
        split="test",
        style=options.style,
        motions=(*MOTIONS, *("bounce",) * 3),  # impacts are harder to judge than the rest
    )
    print(report(World(config), options.clips))
    return 0


if __name__ == "__main__":
    sys.exit(main())
