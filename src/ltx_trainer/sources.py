"""Where a latent cache takes its clips from: the procedural world, or a folder of videos with captions."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import InputError, MissingFileError
from ltx_core.model.audio_vae.processor import match_channels, resample
from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.images import resize_and_center_crop
from ltx_pipelines.media.video import decode_video_from_file, picture_start, probe_video
from ltx_trainer.cache import CacheConfig
from ltx_trainer.world import Truth, World, WorldConfig

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
# Sub-folders with videos under the same names: what an IC-LoRA learns to follow, what retakes are made of.
REFERENCES, ORIGINALS = "references", "originals"
CHANGED = ("colour", "motion")  # by retakes of the world's clips, in turn


@dataclass(frozen=True)
class Clips:
    """B clips: frames uint8 (B, F, H, W, 3), sounds float32 (B, 2, N), references like frames or None.

    captions: of each clip one or more, which take turns. originals: frames and sounds like the clips', or None.
    """

    frames: Tensor
    sounds: Tensor
    captions: list[list[str]]
    references: Tensor | None = None
    originals: tuple[Tensor, Tensor] | None = None


class Source(Protocol):
    """An ordered set of clips of one format."""

    @property
    def identity(self) -> str: ...

    def count(self) -> int:
        """How many there are."""

    def read(self, numbers: Sequence[int]) -> Clips:
        """The clips of these numbers."""


def open_source(config: CacheConfig, rate: int, device: torch.device) -> Source:
    """The source that a configuration names; `rate` is that of the sounds in Hz."""
    return FolderSource(config, rate) if config.folder else WorldSource(config, rate, device)


class WorldSource:
    """Clips of the procedural world; the references are outlines."""

    def __init__(self, config: CacheConfig, rate: int, device: torch.device) -> None:
        self.config = config
        world = WorldConfig(
            height=config.height,
            width=config.width,
            frames=config.frames,
            fps=config.fps,
            sample_rate=rate,
            seed=config.seed,
            split=config.split,
            style=config.style,
            motions=config.motions,
        )
        self.world = World(world, device)

    @property
    def identity(self) -> str:
        return "world"

    def count(self) -> int:
        return self.config.clips

    def read(self, numbers: Sequence[int]) -> Clips:
        truths, others = zip(*(self._pair(number) for number in numbers))
        references = self.world.outlines(truths) if self.config.references else None
        captions = [self._captions(number, truth) for number, truth in zip(numbers, truths)]
        originals = None
        if self.config.originals:
            originals = self.world.frames(others), self.world.sounds(others)
        return Clips(self.world.frames(truths), self.world.sounds(truths), captions, references, originals)

    def _pair(self, number: int) -> tuple[Truth, Truth]:
        """A clip and, where originals are asked for, what it was before it was retaken; else itself.

        One of the two is the world's, the other has another colour or motion, which begins where that one does.
        """
        truth = self.world.truth(number)
        if not self.config.originals:
            return truth, truth
        changes = (self.world.another(truth, at, CHANGED[number % 2]) for at in itertools.count(number))
        other = next(change for change in changes if change.scene.unseen == truth.scene.unseen)
        return (truth, other) if number // 2 % 2 else (other, truth)

    def _captions(self, number: int, truth: Truth) -> list[str]:
        """The clip's caption and others that say other things of it, in other words."""
        rng = np.random.default_rng((self.config.seed, number))
        more = (self.world.describe(truth.scene, rng).caption for _ in range(self.config.captions - 1))
        return [truth.caption, *more]


class FolderSource:
    """Videos of a folder, each with its captions in a text file of the same name, one a line.

    A video is read at the cache's frame rate from its beginning, scaled to cover the cache's size and cropped; one
    without sound is silent. Raises `MissingFileError` for an empty folder and for missing captions, references or
    originals, `InputError` for a video that is too short or a caption that cannot be read.
    """

    def __init__(self, config: CacheConfig, rate: int) -> None:
        self.config, self.rate, folder = config, rate, Path(config.folder).expanduser()
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        self.videos = [path for path in files if path.suffix.lower() in ENDINGS]
        if not self.videos:
            raise MissingFileError(
                f"{folder} holds no videos ({', '.join(ENDINGS)}) to train on; check the path."
            )
        bare = [path.name for path in self.videos if not self._captions(path)]
        if bare:
            raise MissingFileError(
                f"{len(bare)} of {len(self.videos)} videos in {folder} have no caption ({bare[0]}, ...); write it "
                f"in a text file of the same name, {Path(bare[0]).with_suffix('.txt')}."
            )
        asked = {REFERENCES: config.references, ORIGINALS: config.originals}
        self.beside = [name for name, wanted in asked.items() if wanted]
        for video in self.videos:
            for name in self.beside:
                if not self._beside(video, name).is_file():
                    raise MissingFileError(
                        f"{self._beside(video, name)} is missing; {name} = true asks for it."
                    )
            for path in self._files(video):
                self._check_length(path, math.ceil(probe_video(path).duration * config.fps), slack=1)

    @property
    def identity(self) -> str:
        """Names and sizes of the videos and of those beside them, and the captions themselves."""
        digest = hashlib.sha256()
        for path in self.videos:
            sizes = [file.stat().st_size for file in self._files(path)]
            digest.update(f"{path.name} {sizes} {self._captions(path)}\n".encode())
        return digest.hexdigest()[:16]

    def count(self) -> int:
        return len(self.videos)

    def read(self, numbers: Sequence[int]) -> Clips:
        paths = [self.videos[number] for number in numbers]
        references = [self._beside(path, REFERENCES) for path in paths]
        originals = [self._beside(path, ORIGINALS) for path in paths]
        return Clips(
            frames=self._frames(paths),
            sounds=self._sounds(paths),
            captions=[self._captions(path) for path in paths],
            references=self._frames(references) if self.config.references else None,
            originals=(self._frames(originals), self._sounds(originals)) if self.config.originals else None,
        )

    @staticmethod
    def _captions(path: Path) -> list[str]:
        file = path.with_suffix(".txt")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
        except UnicodeDecodeError:
            raise InputError(f"{file} is no UTF-8 text; save it as such.") from None
        return [line.strip() for line in lines if line.strip()]

    @staticmethod
    def _beside(path: Path, name: str) -> Path:
        return path.parent / name / path.name

    def _files(self, path: Path) -> list[Path]:
        """The video and those beside it that are asked for."""
        return [path, *(self._beside(path, name) for name in self.beside)]

    def _frames(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([self._frames_of(path) for path in paths])

    def _sounds(self, paths: Sequence[Path]) -> Tensor:
        return torch.stack([self._sound_of(path) for path in paths])

    def _frames_of(self, path: Path) -> Tensor:
        config = self.config
        fitted = [
            resize_and_center_crop(frame.float(), config.height, config.width).round().to(torch.uint8)
            for frame in decode_video_from_file(path, config.frames, fps=config.fps)
        ]
        self._check_length(path, len(fitted))
        return torch.cat(fitted, dim=2)[0].permute(1, 2, 3, 0)

    def _check_length(self, path: Path, frames: int, slack: int = 0) -> None:
        if frames + slack < self.config.frames:
            raise InputError(
                f"{path} has {frames} frames at {self.config.fps:g} a second, but {self.config.frames} are "
                "needed; remove it, or ask for fewer frames."
            )

    def _sound_of(self, path: Path) -> Tensor:
        seconds = self.config.frames / self.config.fps
        samples = round(seconds * self.rate)
        wave = torch.zeros(2, samples)
        audio = decode_audio_from_file(path, start_time=picture_start(path), max_duration=seconds)
        if audio is not None:
            heard = match_channels(resample(audio.waveform, audio.sampling_rate, self.rate), 2)[
                0, :, :samples
            ]
            wave[:, : heard.shape[1]] = heard
        return wave
