"""One prompt of an evaluation: what is given, what is asked for, and where its files lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ltx_core.errors import InputError
from ltx_core.types import Audio
from ltx_pipelines.media.writer import encode_video
from ltx_trainer.world import Clip, Truth, World
from ltx_trainer.world.vocabulary import MOTIONS

STRIDE, TRIES = 10_000, 100  # between the numbers of truths that are tried for one case, and how many are
EDGE = 0.12  # seconds at both ends of a clip in which impacts are not told, by eye or ear

Scores = dict[str, bool | float]


@dataclass(frozen=True, eq=False)
class Case:
    """truth: of the clip that is given, or partly given. asked: the truth whose caption is the prompt, the same
    one unless the clip is to be changed. seed: of the generation. folder: where its files go."""

    number: int
    truth: Truth
    asked: Truth
    world: World
    seed: int
    folder: Path

    @property
    def prompt(self) -> str:
        """The held-out caption."""
        return self.asked.caption

    @property
    def clip(self) -> Clip:
        """The given clip, rendered."""
        return self.world.render([self.truth])[0]

    @property
    def output_path(self) -> Path:
        """Where the generated clip goes."""
        return self.folder / f"{self.number:04d}.mp4"

    def file(self, name: str) -> Path:
        """Where a file that is given to the pipeline goes."""
        return self.folder / f"{self.number:04d}-{name}"

    def write(self, clip: Clip, path: Path) -> Path:
        """`clip` as a file with picture and sound, by the pipelines' own writer."""
        config = self.world.config
        encode_video(clip.video, config.fps, Audio(clip.audio, config.sample_rate), path)
        return path


@dataclass(frozen=True)
class Made:
    """A generated file. facts: scores that only the making can tell, as that latents stayed the same."""

    path: Path
    facts: Scores = field(default_factory=dict)


@dataclass(frozen=True)
class Prompts:
    """Which clips of the held-out world a row asks for.

    split, motions: as in `WorldConfig`. stated: what captions must say. impacts: whether something must hit the
    floor at a time at which that can be told. changed: the attributes of which the caption names another value
    than the given clip has, in turn.
    """

    split: str = "test"
    motions: tuple[str, ...] = MOTIONS
    stated: tuple[str, ...] = ()
    impacts: bool = False
    changed: tuple[str, ...] = ()

    def case(self, world: World, number: int, seed: int, folder: Path) -> Case:
        """Case `number` (>= 0), the same in every run. Raises `InputError` if the world has none."""

        def fits(truth: Truth) -> bool:
            told = any(EDGE < onset < world.config.seconds - EDGE for onset in truth.onsets)
            return set(self.stated) <= truth.stated and (told or not self.impacts)

        truth = _first(map(world.truth, _numbers(number)), fits)
        asked = truth
        if self.changed:
            attribute = self.changed_in(number)
            others = (world.another(truth, at, attribute) for at in _numbers(number))
            asked = _first(others, lambda other: attribute in other.stated and not other.scene.unseen)
        return Case(number, truth, asked, world, seed * 1_000_000 + number, folder)

    def changed_in(self, number: int) -> str:
        """The attribute that case `number` asks to change."""
        return self.changed[number % len(self.changed)]


def _numbers(number: int) -> Iterator[int]:
    return iter(range(number, number + TRIES * STRIDE, STRIDE))


def _first(truths: Iterator[Truth], fits: Callable[[Truth], bool]) -> Truth:
    for truth in truths:
        if fits(truth):
            return truth
    raise InputError(
        f"None of {TRIES} clips is fit for this row; use clips that are longer or have more frames."
    )
