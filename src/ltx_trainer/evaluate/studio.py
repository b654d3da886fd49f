"""The model under evaluation: one engine, each pipeline made once, and the world in the model's format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ltx_core.errors import InputError, MissingFileError
from ltx_pipelines.engine import Engine
from ltx_pipelines.miniature import LORAS, Miniature, in_folder
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.utils.constants import PipelineParams
from ltx_pipelines.utils.model_paths import ModelPaths
from ltx_trainer.evaluate.case import Prompts
from ltx_trainer.world import World, WorldConfig

SAMPLE_RATE = 48_000  # Hz of the sounds that are given, as that of sounds that are generated
FILES = ("model.safetensors", "gemma", "upsampler.safetensors", "distilled-lora.safetensors")

Kind = TypeVar("Kind", bound=Pipeline)


class Studio:
    """Makes pipelines that share one engine. loras: name -> path of the model's LoRAs, those that there are."""

    def __init__(self, engine: Engine, loras: Mapping[str, str]) -> None:
        self.engine, self.loras = engine, dict(loras)
        self._pipelines: dict[Any, Pipeline] = {}

    @classmethod
    def open(cls, model: Path | None = None) -> Studio:
        """The built-in model, or that in the folder `model`, which is used as the built-in one is.

        A folder holds model.safetensors, gemma/, upsampler.safetensors, distilled-lora.safetensors, and may hold
        ic-lora-outline.safetensors and style-lora-night.safetensors.
        Raises `MissingFileError` for a file that is not there, `InputError` for a model without defaults of its
        own: those of the full model would make clips far too large for it.
        """
        if model is None:
            engine = Engine.open(ModelPaths())
        else:
            built_in = _in_folder(model)
            engine = Engine.open(built_in.paths, spatial_upsampler_path=built_in.spatial_upsampler_path)
            engine.built_in = built_in
        if engine.embedded_params is None:
            raise InputError(
                f"{engine.ledger.paths.transformer()} names no sizes and steps of its own; write them into its "
                "metadata as generation_defaults."
            )
        assert engine.built_in is not None
        return cls(engine, engine.built_in.loras)

    @property
    def params(self) -> PipelineParams:
        """The model's default sizes, steps and guidance."""
        return self.engine.params

    def pipeline(self, kind: type[Kind], **options: Any) -> Kind:
        """The pipeline of this class with these options, made when it is first asked for."""
        key = (kind, repr(options))
        if key not in self._pipelines:
            self._pipelines[key] = kind(engine=self.engine, **options)
        return self._pipelines[key]  # type: ignore[return-value]

    def lora(self, name: str) -> str:
        """The path of the LoRA `name`. Raises `InputError` if the model has none."""
        if name not in self.loras:
            raise InputError(
                f"The model has no LoRA {name!r}; put {LORAS.get(name, name)}.safetensors into its folder."
            )
        return self.loras[name]

    def world(self, prompts: Prompts, seed: int) -> World:
        """The clips that `prompts` are about, in the format that the pipelines make by default."""
        params = self.params
        config = WorldConfig(
            height=params.stage_2_height,
            width=params.stage_2_width,
            frames=params.num_frames,
            fps=params.frame_rate,
            sample_rate=SAMPLE_RATE,
            seed=seed,
            split=prompts.split,
            motions=prompts.motions,
        )
        return World(config)

    def identity(self) -> dict[str, str]:
        """A name of the weights: the beginning of the SHA-256 of each file."""
        built_in = self.engine.built_in
        assert built_in is not None
        paths = built_in.paths
        given = [paths.checkpoint_path, built_in.spatial_upsampler_path, *self.loras.values()]
        given += [lora.path for lora in built_in.distilled_lora]
        files = [Path(path) for path in given if path is not None]
        files += sorted(Path(paths.gemma_root or ".").glob("*.safetensors"))
        return {path.name: _digest(path) for path in files}


def _in_folder(folder: Path) -> Miniature:
    """The model in `folder`, described as the built-in one is."""
    for name in FILES:
        if not (folder / name).exists():
            raise MissingFileError(
                f"{folder / name} does not exist; --model takes a folder with {name} in it."
            )
    return in_folder(folder)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
