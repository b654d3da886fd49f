"""How each component of a model is built from its files. A ledger keeps nothing: that is the engine's part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import nn

from ltx_core import sd_ops
from ltx_core.errors import CheckpointError, InputError
from ltx_core.loader import (
    Checkpoint,
    LoraPathStrengthAndSDOps,
    LoraSwitcher,
    Registry,
    describe,
    stream_model,
    tensor_bytes,
)
from ltx_core.loader.build import Fill, Filling, find_tensors, prepare_model, resident
from ltx_core.loader.builder import source_of
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.loader.lora import LoraFile
from ltx_core.model.audio_vae import AudioDecoderConfigurator, AudioEncoderConfigurator, VocoderConfigurator
from ltx_core.model.transformer import LTXModel, LTXModelConfigurator, X0Model
from ltx_core.model.upsampler import LatentUpsampler, LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core.quantization import QuantizationPolicy
from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator
from ltx_core.text_encoders.gemma.folder import GemmaFolder
from ltx_pipelines.utils.constants import PipelineParams, detect_params
from ltx_pipelines.utils.loras import as_loras
from ltx_pipelines.utils.model_paths import ModelPaths


@dataclass(frozen=True)
class _Component:
    """What makes one: its configurator, its files, and the key map that selects its tensors."""

    configurator: Any
    slot: str
    key_map: sd_ops.SDOps | None


COMPONENTS = {
    "transformer": _Component(LTXModelConfigurator, "transformer", sd_ops.TRANSFORMER_KEYS),
    "video_encoder": _Component(VideoEncoderConfigurator, "video_vae", sd_ops.VAE_ENCODER_COMFY_KEYS_FILTER),
    "video_decoder": _Component(VideoDecoderConfigurator, "video_vae", sd_ops.VAE_DECODER_COMFY_KEYS_FILTER),
    "audio_encoder": _Component(
        AudioEncoderConfigurator, "audio_vae", sd_ops.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER
    ),
    "audio_decoder": _Component(
        AudioDecoderConfigurator, "audio_vae", sd_ops.AUDIO_VAE_DECODER_COMFY_KEYS_FILTER
    ),
    "vocoder": _Component(VocoderConfigurator, "audio_vae", sd_ops.VOCODER_COMFY_KEYS_FILTER),
    "gemma_embeddings_processor": _Component(
        EmbeddingsProcessorConfigurator, "embeddings", sd_ops.EMBEDDINGS_PROCESSOR_KEY_OPS
    ),
    "spatial_upsampler": _Component(LatentUpsamplerConfigurator, "upsampler", None),
}


class ModelLedger:
    """Builds components, each call a new module in eval mode on `device` in `dtype`.

    registry: keeps what was read in main memory, for further calls and for the ledgers of `with_loras`.
    Raises `MissingFileError` for a Gemma folder that lacks a part; when built, `InputError` naming the component and
    what to pass where a path was not given.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device | str,
        checkpoint_path: str | None = None,
        gemma_root_path: str | None = None,
        spatial_upsampler_path: str | None = None,
        loras: Iterable[LoraPathStrengthAndSDOps] = (),
        registry: Registry | None = None,
        quantization: QuantizationPolicy | None = None,
        *,
        paths: ModelPaths | None = None,
    ) -> None:
        self.dtype, self.device = dtype, torch.device(device)
        if paths is None:
            paths = ModelPaths.from_arguments(checkpoint_path=checkpoint_path, gemma_root=gemma_root_path)
            paths.check_gemma_root()
        self.paths = paths
        self.spatial_upsampler_path = spatial_upsampler_path
        self.loras = as_loras(loras)
        self.registry, self.quantization = registry, quantization
        self._checkpoints: dict[tuple[str, ...], Checkpoint] = {}
        self._bytes: dict[str, dict[str, int]] = {}
        self._prepared: dict[str, Filling] = {}  # checked and not built yet

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has, here or in another process."""
        return self.__dict__ | {"_prepared": {}}

    def with_loras(self, loras: Iterable[LoraPathStrengthAndSDOps]) -> ModelLedger:
        """The same files with these LoRAs instead."""
        ledger = copy(self)
        ledger.loras = as_loras(loras)
        return ledger

    def with_additional_loras(self, loras: Iterable[LoraPathStrengthAndSDOps]) -> ModelLedger:
        """The same files with these LoRAs as well."""
        return self.with_loras((*self.loras, *loras))

    @cached_property
    def params(self) -> PipelineParams:
        return detect_params(self.paths.transformer())

    def transformer(self, offload: str = "none") -> X0Model:
        """The x0-predicting transformer with the ledger's LoRAs fused; its blocks wait where `offload` says."""
        fill = _fill("transformer_blocks", offload)
        model = cast(LTXModel, self._build("transformer", fill))
        if self.loras:
            LoraSwitcher(model).apply(self.loras)
        return X0Model(model).eval()

    def video_encoder(self) -> nn.Module:
        return self._build("video_encoder")

    def video_decoder(self) -> nn.Module:
        return self._build("video_decoder")

    def audio_encoder(self) -> nn.Module:
        return self._build("audio_encoder")

    def audio_decoder(self) -> nn.Module:
        return self._build("audio_decoder")

    def vocoder(self) -> nn.Module:
        return self._build("vocoder")

    def spatial_upsampler(self) -> nn.Module:
        return self._build("spatial_upsampler")

    def text_encoder(self, with_vision: bool = False, offload: str = "none") -> nn.Module:
        """The Gemma text encoder; with `with_vision` the whole multimodal model, for prompt enhancement."""
        return load_text_encoder(
            self.paths.text_encoder(),
            self.device,
            self.dtype,
            with_vision,
            _fill("layers", offload),
            self.registry,
        )

    def gemma_embeddings_processor(self) -> nn.Module:
        return self._build("gemma_embeddings_processor")

    def check(self, component: str) -> nn.Module | None:
        """Raise `CheckpointError` or `ConfigError` unless a component's file holds it whole, and an upsampler is one
        for a second stage; reads headers only.

        Returns the component on the meta device; None for the text encoder.
        """
        if component == "text_encoder":
            if not self.size_of(component):
                raise CheckpointError(f"{self.paths.text_encoder()} holds no Gemma language model.")
            return None
        files = self.files_of(component)
        if not self.size_of(component):
            found = describe(files[0]).kind
            raise CheckpointError(
                f"{files[0]} holds no {component.replace('_', ' ')} ({_article(found)}); give the file that does."
            )
        filling = self._prepared[component] = self._prepare(component)
        if isinstance(filling.model, LatentUpsampler) and filling.model.growth != (1, 2):
            frames, sides = filling.model.growth
            raise CheckpointError(
                f"{files[0]} multiplies frames by {frames:g} and sides by {sides:g}; a second stage needs a latent "
                "upsampler that doubles the sides alone (spatial, x2)."
            )
        return filling.model

    def open_lora(self, lora: LoraPathStrengthAndSDOps) -> LoraFile:
        """A LoRA's file, opened against the transformer; reads headers only.

        Raises `CheckpointError` if it is damaged or fits no weight.
        """
        checkpoint = self.checkpoint(*self.files_of("transformer"))
        stored = find_tensors(checkpoint, COMPONENTS["transformer"].key_map)
        targets = {
            name.removesuffix(".weight"): tensor.shape
            for name, tensor in stored.items()
            if name.endswith(".weight") and len(tensor.shape) == 2
        }
        return LoraFile(lora.path, targets, lora.sd_ops)

    def checkpoint(self, *paths: str) -> Checkpoint:
        """The opened file(s); the header is read once."""
        if paths not in self._checkpoints:
            self._checkpoints[paths] = Checkpoint(list(paths))
        return self._checkpoints[paths]

    def size_of(self, component: str) -> int:
        """Bytes that a component takes when loaded, from the files' headers."""
        return sum(self.bytes_of(component).values())

    def bytes_of(self, component: str) -> Mapping[str, int]:
        """Name -> bytes of each tensor of a component when it is loaded, from the files' headers."""
        if component not in self._bytes:
            self._bytes[component] = self._bytes_of(component)
        return self._bytes[component]

    def _bytes_of(self, component: str) -> dict[str, int]:
        if component == "text_encoder":
            shards = self.checkpoint(*map(str, GemmaFolder(self.paths.text_encoder()).weights))
            return tensor_bytes(shards, sd_ops.GEMMA_LANGUAGE_MODEL_KEYS, self.dtype)
        checkpoint = self.checkpoint(*self.files_of(component))
        return tensor_bytes(checkpoint, COMPONENTS[component].key_map, self.dtype, self._policy_of(component))

    def _policy_of(self, component: str) -> QuantizationPolicy | None:
        return self.quantization if component == "transformer" else None

    def files_of(self, component: str) -> tuple[str, ...]:
        """The paths of the files that hold a component; the configuration is the first one's."""
        if component == "spatial_upsampler":
            if self.spatial_upsampler_path is None:
                raise InputError(
                    "No spatial upsampler was given, which a second stage needs; pass spatial_upsampler_path "
                    "(--spatial-upsampler-path)."
                )
            return (str(self.spatial_upsampler_path),)
        found = getattr(self.paths, COMPONENTS[component].slot)()
        return (found,) if isinstance(found, str) else found

    def _prepare(self, component: str) -> Filling:
        made, checkpoint = COMPONENTS[component], self.checkpoint(*self.files_of(component))
        source, key_map = source_of(checkpoint, made.key_map, self.registry)
        return prepare_model(made.configurator, source, key_map, self.dtype, self._policy_of(component))

    def _build(self, component: str, fill: Fill = resident) -> nn.Module:
        filling = self._prepared.pop(component, None) or self._prepare(component)
        return fill(filling, self.device)


def _fill(blocks: str, offload: str) -> Fill:
    """How `build_model` fills a model whose `blocks` wait where `offload` says."""
    return resident if offload == "none" else partial(stream_model, blocks=blocks, rest=offload)


def _article(kind: str) -> str:
    if kind == "unknown":
        return "it is of an unknown kind"
    return f"it is {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
