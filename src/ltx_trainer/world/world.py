"""The world: an endless, seeded supply of captioned audio-video clips with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import InputError
from ltx_trainer.world.caption import for_testing, write_caption
from ltx_trainer.world.render import coverage, draw_frames, outline
from ltx_trainer.world.scene import Room, Scene, Track, continue_path, follow, has_room, sample_scene
from ltx_trainer.world.sound import make_sound
from ltx_trainer.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPLITS,
    STYLES,
    combinations,
    exists,
)

STILL_DURATION = 1.0  # seconds of motion out of which a single frame is taken
VALUES = {"shape": SHAPES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS), "motion": MOTIONS}


@dataclass(frozen=True)
class WorldConfig:
    """The format of the clips and which part of the world they come from.

    height, width: pixels. Scenes depend on their ratio only, so worlds of two sizes show the same clips.
    frames: 8k + 1; 1 gives stills, taken amid a motion. fps: frames per second. sample_rate: Hz, stereo.
    seed: another seed, another endless supply.
    split: "train" and "test" show the same combinations in different wordings, "unseen" shows only
    combinations of shape, colour and motion that training never shows, in the wordings of "test".
    style: "plain", "striped", "inverted", or "night", in which all walls are black whatever captions say.
    shapes, motions: those to draw from; one that is listed twice comes twice as often.
    """

    height: int = 128
    width: int = 128
    frames: int = 17
    fps: float = 24.0
    sample_rate: int = 16_000
    seed: int = 0
    split: str = "train"
    style: str = "plain"
    shapes: tuple[str, ...] = SHAPES
    motions: tuple[str, ...] = MOTIONS

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 16:
            raise InputError(
                f"Clips of {self.width}x{self.height} are too small: use 16 pixels or more a side."
            )
        if self.frames < 1 or self.frames % 8 != 1:
            raise InputError(f"frames is {self.frames}, but must be 8k + 1: 1, 9, 17, 25, 33, ...")
        if not self.fps > 0 or self.sample_rate < 8000:
            raise InputError(
                f"fps {self.fps} must be positive and sample_rate {self.sample_rate} at least 8000."
            )
        if self.split not in SPLITS or self.style not in STYLES:
            raise InputError(
                f"split {self.split!r} must be one of {SPLITS}, style {self.style!r} one of {STYLES}."
            )
        if not self.motions or not set(self.motions) <= set(MOTIONS):
            raise InputError(f"motions {self.motions} must be some of {MOTIONS}.")
        if not self.shapes or not set(self.shapes) <= set(SHAPES):
            raise InputError(f"shapes {self.shapes} must be some of {SHAPES}.")
        if not any(combinations(self.shapes, self.motions, unseen=self.split == "unseen")):
            raise InputError(
                f"No clip of split {self.split!r} has shapes {self.shapes} and motions {self.motions}: add others."
            )
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, but must not be negative.")

    @property
    def still(self) -> bool:
        """Single frames, taken at any moment of a motion that their captions do not tell."""
        return self.frames == 1

    @property
    def seconds(self) -> float:
        """Length of a clip, and of its sound."""
        return self.frames / self.fps

    @property
    def room(self) -> Room:
        """What scenes of this format have."""
        side = min(self.height, self.width)
        duration = STILL_DURATION if self.still else (self.frames - 1) / self.fps
        return Room(self.width / (2 * side), self.height / (2 * side), duration, self.fps)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is exactly so in a clip.

    scene: the attributes and the path. caption: what is said of it, and `stated`: which of shape, colour,
    size, background, motion, sound it says. Per frame, as float32 arrays: `position` (F, 2), the centre as
    fractions of width and height; `radius` (F,), a fraction of the shorter side; `angle` (F,), radians
    clockwise. onsets: seconds at which something hits the floor and rings.
    """

    scene: Scene
    caption: str
    stated: frozenset[str]
    position: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    onsets: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Clip:
    """video uint8 (F, H, W, 3), audio float32 (2, N) in [-1, 1], and what is true of them."""

    video: Tensor
    audio: Tensor
    truth: Truth

    @property
    def caption(self) -> str:
        """What is said of the clip."""
        return self.truth.caption

    def keyframes(self, indices: Sequence[int]) -> Tensor:
        """The frames at `indices` (negative ones count from the end), uint8 (K, H, W, 3)."""
        return self.video[list(indices)]


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """B clips: video uint8 (B, F, H, W, 3), audio float32 (B, 2, N), and their truths."""

    video: Tensor
    audio: Tensor
    truths: tuple[Truth, ...]

    @property
    def captions(self) -> list[str]:
        """What is said of each clip."""
        return [truth.caption for truth in self.truths]

    def __len__(self) -> int:
        return len(self.truths)

    def __getitem__(self, index: int) -> Clip:
        return Clip(self.video[index], self.audio[index], self.truths[index])


class World:
    """Clips of one format, by number: the same number gives the same clip, on any device and in any batch."""

    def __init__(self, config: WorldConfig | None = None, device: torch.device | str = "cpu") -> None:
        self.config = config or WorldConfig()
        self.device = torch.device(device)

    def truth(self, index: int) -> Truth:
        """Draw clip `index` (>= 0) without rendering it."""
        config = self.config
        rng = np.random.default_rng((config.seed, SPLITS.index(config.split), index))
        scene = sample_scene(
            rng,
            config.room,
            config.split == "unseen",
            config.shapes,
            config.motions,
            config.style,
            config.still,
        )
        return self.describe(scene, rng)

    def describe(self, scene: Scene, rng: np.random.Generator) -> Truth:
        """The truth of any scene, under a caption drawn with `rng` from this split's wordings."""
        while True:
            caption, stated = write_caption(rng, scene, self.config.still)
            if for_testing(caption) == (self.config.split != "train"):
                break
        config, room = self.config, self.config.room
        track = self._track([scene], torch.device("cpu"))
        position = torch.stack(
            (track.x[0] / (2 * room.half_width), track.y[0] / (2 * room.half_height)), dim=-1
        )
        impacts = scene.path.impacts(scene.start, scene.start + config.seconds)
        return Truth(
            scene=scene,
            caption=caption,
            stated=stated,
            position=(position + 0.5).numpy(),
            radius=track.radius[0].numpy(),
            angle=track.angle[0].numpy(),
            onsets=tuple(impact - scene.start for impact in impacts),
        )

    def change(self, truth: Truth, index: int = 0, **attributes: str) -> Truth:
        """The scene with other `attributes` (shape, colour, size, background, motion, style), recaptioned.

        The path stays as it is unless the shape, size or motion changes; the new one begins where the old one did,
        or near that. Raises InputError if such a scene is not in the world.
        """
        rng = np.random.default_rng((self.config.seed, len(SPLITS), index))
        old, scene = truth.scene, replace(truth.scene, **attributes)  # type: ignore[arg-type]
        if (scene.shape, scene.size, scene.motion) != (old.shape, old.size, old.motion):
            kind = scene.shape, scene.size, scene.motion
            path = continue_path(rng, self.config.room, *kind, old.path.begin)
            scene = replace(scene, path=path)
        return self.describe(scene, rng)

    def another(self, truth: Truth, index: int, attribute: str) -> Truth:
        """The scene with another shape, colour, background or motion, drawn by lot among those that can be seen."""
        scene, room = truth.scene, self.config.room
        values = []
        for value in VALUES[attribute]:
            new = {name: getattr(scene, name) for name in VALUES} | {attribute: value}
            fits = attribute != "motion" or has_room(room, scene.size, value, scene.path.begin)
            if value != getattr(scene, attribute) and exists(**new) and fits:
                values.append(value)
        rng = np.random.default_rng((self.config.seed, index))
        return self.change(truth, index, **{attribute: str(rng.choice(values))})

    def clip(self, index: int) -> Clip:
        """Clip `index` (>= 0), rendered."""
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> ClipBatch:
        """The clips of these numbers, rendered together."""
        return self.render([self.truth(index) for index in indices])

    def render(self, truths: Sequence[Truth]) -> ClipBatch:
        """The clips of which `truths` are true."""
        return ClipBatch(self.frames(truths), self.sounds(truths), tuple(truths))

    def frames(self, truths: Sequence[Truth]) -> Tensor:
        """What is seen in these clips, uint8 (B, F, H, W, 3)."""
        scenes = [truth.scene for truth in truths]
        return draw_frames(scenes, self._track(scenes, self.device), self.config.height, self.config.width)

    def sounds(self, truths: Sequence[Truth]) -> Tensor:
        """What is heard in these clips, float32 (B, 2, N) in [-1, 1]."""
        config, scenes = self.config, [truth.scene for truth in truths]
        return make_sound(scenes, config.room, config.seconds, config.sample_rate, self.device)

    def masks(self, truths: Sequence[Truth]) -> Tensor:
        """How much of each pixel the object covers, (B, F, H, W) float32 in [0, 1]."""
        scenes = [truth.scene for truth in truths]
        return coverage(scenes, self._track(scenes, self.device), self.config.height, self.config.width)

    def outlines(self, truths: Sequence[Truth]) -> Tensor:
        """The control for outline -> video: the object's edge, white on black, uint8 (B, F, H, W, 3)."""
        scenes = [truth.scene for truth in truths]
        lines = outline(scenes, self._track(scenes, self.device), self.config.height, self.config.width)
        return lines.mul_(255).round_().to(torch.uint8)[..., None].expand(*lines.shape, 3).contiguous()

    def _track(self, scenes: Sequence[Scene], device: torch.device) -> Track:
        start = torch.tensor([scene.start for scene in scenes], device=device)[:, None]
        times = torch.arange(self.config.frames, device=device) / self.config.fps
        return follow([scene.path for scene in scenes], start + times)
