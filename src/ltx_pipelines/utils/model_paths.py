"""Where the weights are: one monolithic checkpoint with a Gemma folder, or one file per component."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltx_core.errors import InputError, MissingFileError
from ltx_core.text_encoders.gemma.folder import GemmaFolder
from ltx_pipelines.utils.validation import check_path

PathLike = str | Path


@dataclass(frozen=True)
class ModelPaths:
    """The files of one model. Build it with `from_monolith` or `from_split`.

    Each accessor returns the path of one component and raises `InputError` (a ValueError) that names the
    missing slot where nothing was given for it.
    """

    checkpoint_path: str | None = None
    gemma_root: str | None = None
    transformer_path: str | None = None
    text_encoder_path: str | None = None
    video_vae_path: str | None = None
    audio_vae_path: str | None = None

    @classmethod
    def from_monolith(
        cls,
        checkpoint_path: PathLike,
        gemma_root: PathLike | None = None,
        *,
        video_vae_path: PathLike | None = None,
    ) -> ModelPaths:
        """One checkpoint with all components; `video_vae_path` may replace its video VAE."""
        return cls.from_arguments(
            checkpoint_path=checkpoint_path, gemma_root=gemma_root, video_vae_path=video_vae_path
        )

    @classmethod
    def from_split(
        cls,
        *,
        transformer_path: PathLike | None = None,
        text_encoder_path: PathLike | None = None,
        video_vae_path: PathLike | None = None,
        audio_vae_path: PathLike | None = None,
    ) -> ModelPaths:
        """One file per component. `text_encoder_path` is a Gemma folder whose weights may hold the projection."""
        return cls.from_arguments(
            transformer_path=transformer_path,
            text_encoder_path=text_encoder_path,
            video_vae_path=video_vae_path,
            audio_vae_path=audio_vae_path,
        )

    @classmethod
    def from_arguments(cls, **given: PathLike | None) -> ModelPaths:
        """From whichever of the keyword or flag values were given; monolith and split exclude each other."""
        values = {name: path_text(name, value) for name, value in given.items() if value is not None}
        whole = [name for name in ("checkpoint_path", "gemma_root") if name in values]
        split = [
            name for name in ("transformer_path", "text_encoder_path", "audio_vae_path") if name in values
        ]
        if whole and split:
            raise InputError(
                f"{flag_names(whole)} (one whole checkpoint) and {flag_names(split)} (one file per component) "
                "exclude each other; give one or the other kind."
            )
        return cls(**values)

    def transformer(self) -> str:
        return self._first("transformer", self.transformer_path, self.checkpoint_path)

    def text_encoder(self) -> str:
        return self._first("text encoder", self.text_encoder_path, self.gemma_root, whole="gemma_root")

    def video_vae(self) -> str:
        return self._first("video VAE", self.video_vae_path, self.checkpoint_path)

    def audio_vae(self) -> str:
        return self._first("audio VAE", self.audio_vae_path, self.checkpoint_path)

    def embeddings(self) -> tuple[str, ...]:
        """The files that hold the text projection and the connectors; the configuration is the first one's."""
        if self.checkpoint_path is not None:
            return (self.checkpoint_path,)
        encoder = Path(self.text_encoder())
        return (self.transformer(), str(encoder)) if encoder.is_file() else (self.transformer(),)

    def missing(self) -> list[str]:
        """The paths that were given but do not exist."""
        return [path for path in vars(self).values() if path is not None and not os.path.exists(path)]

    def check(self) -> None:
        """Raise `MissingFileError` if a given path does not exist or a Gemma folder lacks a part, before any work."""
        for path in self.missing():
            raise MissingFileError(f"{path} does not exist; check the path.")
        self.check_gemma_root()

    def check_gemma_root(self) -> None:
        """Raise `MissingFileError` if the Gemma folder that was given, if any, lacks a part."""
        if self.gemma_root is not None:
            GemmaFolder(self.gemma_root)

    @staticmethod
    def _first(what: str, *paths: str | None, whole: str = "checkpoint_path") -> str:
        for path in paths:
            if path is not None:
                return path
        part = f"{what.lower().replace(' ', '_')}_path"
        flags = f"{flag_names([whole])} or {flag_names([part])}"
        raise InputError(f"No path was given for the {what}; pass {whole} or {part} ({flags}).")


def path_text(name: str, path: PathLike) -> str:
    """A path as a text, ``~`` expanded. Raises `InputError` for an argument `name` that is no path."""
    check_path(name, path)
    return str(Path(path).expanduser())


def flag_names(names: Sequence[str]) -> str:
    """The flags of these arguments, for a message."""
    return " and ".join("--" + name.replace("_", "-") for name in names)
