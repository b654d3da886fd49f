"""The built-in model: a complete, trained miniature LTX-2 in the official file formats, used where none is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from ltx_core.loader import LoraPathStrengthAndSDOps
from ltx_pipelines.utils.loras import as_loras
from ltx_pipelines.utils.model_paths import ModelPaths

VARIABLE = "OPENLTX_MINIATURE"  # in the environment: another folder that stands in for the built-in model
CONTROL = "ic-lora-outline"
LORAS = {CONTROL: "ic-lora-outline", "style-night": "style-lora-night"}  # name -> file


@dataclass(frozen=True)
class Miniature:
    """The built-in model's files. loras: name -> path of those that a user may add."""

    paths: ModelPaths
    spatial_upsampler_path: str
    distilled_lora: tuple[LoraPathStrengthAndSDOps, ...]
    loras: Mapping[str, str] = field(default_factory=dict)

    @property
    def control_lora(self) -> tuple[LoraPathStrengthAndSDOps, ...]:
        """The IC-LoRA, if there is one."""
        return as_loras([self.loras[CONTROL]]) if CONTROL in self.loras else ()


def miniature() -> Miniature:
    """The built-in model; opens no file."""
    return in_folder(folder())


def folder() -> Path:
    """Where the built-in model's files lie."""
    chosen = os.environ.get(VARIABLE)
    return (
        Path(chosen).expanduser() if chosen else Path(str(files("ltx_pipelines.miniature").joinpath("zoo")))
    )


def in_folder(place: Path) -> Miniature:
    """A model whose files are named as the built-in one's are.

    model.safetensors, gemma/, upsampler.safetensors, distilled-lora.safetensors, and those of `LORAS` that there are.
    """
    found = {name: place / f"{file}.safetensors" for name, file in LORAS.items()}
    return Miniature(
        paths=ModelPaths.from_monolith(place / "model.safetensors", place / "gemma"),
        spatial_upsampler_path=str(place / "upsampler.safetensors"),
        distilled_lora=as_loras([str(place / "distilled-lora.safetensors")]),
        loras={name: str(path) for name, path in found.items() if path.is_file()},
    )
