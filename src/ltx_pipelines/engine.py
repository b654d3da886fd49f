"""A model on one device in one dtype, and what it can do. Pipelines can share an engine."""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ltx_core.config import section_of
from ltx_core.errors import InputError
from ltx_core.loader import LoraSwitcher, variant_by_name
from ltx_core.loader.streaming import check_mode
from ltx_core.model import audio_vae, video_vae
from ltx_core.model.transformer import LTXModel, X0Model
from ltx_core.model.transformer.attention import AttentionFunction, attention_named, best_attention
from ltx_core.model.transformer.model import check_graphs
from ltx_core.model.upsampler import upsample_video
from ltx_core.model.video_vae import AutoTiling, TileSizeConfig, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_core.text_encoders.gemma import EmbeddingsProcessorOutput
from ltx_core.types import Audio, VideoLatentShape
from ltx_pipelines import memory
from ltx_pipelines.components import Components
from ltx_pipelines.miniature import Miniature, miniature
from ltx_pipelines.recipe import Enhancement, Loras, Recipe
from ltx_pipelines.utils.constants import PipelineParams, embedded_params, parse_version
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.utils.model_paths import ModelPaths, path_text
from ltx_pipelines.utils.text import encode_texts, generate_enhanced_prompt
from ltx_pipelines.utils.types import DenoisingFunc
from ltx_pipelines.utils.validation import check_kind, whole_number

log = logging.getLogger(__name__)

REMEMBERED_PROMPTS = 16


def check_how(dtype: Any, quantization: Any, compile: Any, max_batch_size: Any) -> None:
    """Raise `InputError` for ways to compute that are of another kind, or that `torch.compile` does not take."""
    if dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
        raise InputError(f"dtype is {dtype!r}; give torch.bfloat16, torch.float16 or torch.float32.")
    check_kind("quantization", quantization, (QuantizationPolicy, type(None)), "a QuantizationPolicy")
    check_kind("compile", compile, (Mapping, type(None)), "True or options of torch.compile")
    if max_batch_size is not None and whole_number("max_batch_size", max_batch_size) < 1:
        raise InputError(f"max_batch_size is {max_batch_size}; it must be 1 or more.")
    if compile is not None:
        try:
            torch.compile(nn.Identity(), **compile)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"compile: {str(error).splitlines()[0]}") from None


class Engine:
    """A model, whose components load when they are first used, and the verbs that a generation is made of.

    Every verb takes and returns tensors on `device` in `dtype`; `turn` sees to it whatever mode the caller is in,
    and turns gradients off. Calls from several threads queue.
    """

    def __init__(
        self,
        ledger: ModelLedger,
        built_in: Miniature | None = None,
        offload: str | None = None,
        attention: str | None = None,
        compile: Mapping[str, Any] | None = None,
        max_batch_size: int | None = None,
        fuse_loras: bool = True,
    ) -> None:
        self.ledger, self.built_in = ledger, built_in
        self.attention, self.compile, self.max_batch_size = attention, compile, max_batch_size
        self.components = Components(ledger, offload, fuse_loras)
        self.lock = threading.RLock()
        self._is_called = False
        self._prompts: OrderedDict[str, EmbeddingsProcessorOutput] = OrderedDict()
        self._check_graphs(offload or "none")

    def __reduce__(self) -> tuple[Any, ...]:
        """Where it is unpickled, in another process above all, it loads its weights itself."""
        how = (self.attention, self.compile, self.max_batch_size, self.components.fuse_loras)
        return type(self), (self.ledger, self.built_in, self.components.offload, *how)

    @classmethod
    def open(
        cls,
        paths: ModelPaths,
        *,
        spatial_upsampler_path: str | Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        quantization: QuantizationPolicy | None = None,
        offload: str | None = None,
        attention: str | None = None,
        compile: bool | Mapping[str, Any] | None = None,
        max_batch_size: int | None = None,
        fuse_loras: bool = True,
    ) -> Engine:
        """An engine for the files of `paths`; with none at all, for the built-in model.

        offload: where blocks of large models rest: "none" on the device, "cpu" or "disk"; None chooses by the
        memory at hand. attention: the transformer's attention kernel by name; None takes the quickest exact one
        that is installed. compile: True, or options of `torch.compile`, to compile the transformer's blocks.
        max_batch_size: passes of a guided step computed at once; None: all where there are few tokens, else one.
        fuse_loras: False computes LoRAs beside the weights: switching takes no time and no second copy of weights,
        each step takes longer; numbers differ as fused weights are rounded.
        Opens headers at most: weights are read when they are first needed.
        Raises `MissingFileError` for a path that does not exist, `InputError` for an argument of another kind, an
        attention kernel that is not installed, what `torch.compile` does not take, or CUDA graphs of blocks that
        are streamed to a GPU.
        """
        options = {} if compile is True else compile or None
        check_how(dtype, quantization, options, max_batch_size)
        place = memory.get_device(device)
        kind = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        upsampler = None
        if spatial_upsampler_path:
            upsampler = path_text("spatial_upsampler_path", spatial_upsampler_path)
        built_in = None
        if paths == ModelPaths():
            built_in = miniature()
            log.info(
                "No model was given: using the built-in miniature, which knows simple shapes, motions and sounds. "
                "For an LTX-2 of your own give --checkpoint-path and --gemma-root."
            )
            paths, upsampler = built_in.paths, upsampler or built_in.spatial_upsampler_path
        paths.check()
        ledger = ModelLedger(
            kind, place, spatial_upsampler_path=upsampler, quantization=quantization, paths=paths
        )
        return cls(
            ledger,
            built_in,
            offload=None if offload is None else check_mode(offload),
            attention=None if attention is None else attention_named(attention).check().value,
            compile=options,
            max_batch_size=max_batch_size,
            fuse_loras=fuse_loras,
        )

    @property
    def device(self) -> torch.device:
        return self.ledger.device

    @property
    def dtype(self) -> torch.dtype:
        return self.ledger.dtype

    @property
    def params(self) -> PipelineParams:
        """Default sizes, steps and guidance of the checkpoint."""
        return self.ledger.params

    @property
    def embedded_params(self) -> PipelineParams | None:
        """The defaults that the checkpoint brings, which go before those of any pipeline; None for most."""
        return embedded_params(self.ledger.checkpoint(self.ledger.paths.transformer()))

    @property
    def version(self) -> tuple[int, ...]:
        """The checkpoint's version, () if its metadata do not tell."""
        return parse_version(self.ledger.checkpoint(self.ledger.paths.transformer()).model_version)

    @property
    def variant(self) -> str | None:
        """Whether the checkpoint's name says that it is "distilled" or "full"."""
        return variant_by_name(self.ledger.paths.transformer())

    @property
    def distillation(self) -> Loras:
        """The LoRA that makes the built-in base model a distilled one; nothing for other models."""
        return () if self.built_in is None else self.built_in.distilled_lora

    @property
    def control_lora(self) -> Loras:
        """The built-in model's IC-LoRA, which follows outlines; nothing for other models."""
        return () if self.built_in is None else self.built_in.control_lora

    def check(self, recipe: Recipe) -> None:
        """Raise, before any work, if a file that a run needs is missing, damaged or of another kind, or if blocks
        that are to have CUDA graphs would be streamed.

        Reads headers only, and nothing for components that are loaded.
        """
        for name in recipe.components:
            module = self.components.check(name)
            if isinstance(module, video_vae.VideoDecoder):
                latent = VideoLatentShape.from_pixel_shape(recipe.stages[-1].shape)
                module.check_sides((latent.height, latent.width))
        self.components.expect(recipe.loras)
        self._check_graphs(self.components.offload_of("transformer"))
        checkpoint = self.ledger.checkpoint(*self.ledger.files_of("transformer"))
        told = section_of(checkpoint.config, "transformer").get("num_layers")
        count = told or max(recipe.stg_blocks, default=0) + 1
        missing = sorted(block for block in recipe.stg_blocks if not 0 <= block < count)
        if missing:
            log.warning("STG asks for block %d; the transformer has blocks 0 to %d.", missing[0], count - 1)

    def _check_graphs(self, offload: str) -> None:
        """Raise `InputError` for CUDA graphs of blocks that wait there, if they come to a GPU."""
        check_graphs(self.compile or {}, to_gpu=offload != "none" and self.device.type == "cuda")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One thread's turn, for which others wait: without gradients, and without autocast, whose roundings would
        stay in what is kept for later calls."""
        with self.lock, memory.current(self.device), torch.no_grad(), ExitStack() as modes:
            for kind in filter(torch.is_autocast_enabled, ("cpu", self.device.type)):
                modes.enter_context(torch.autocast(kind, enabled=False))
            yield

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call's turn, in which a callback cannot begin another.

        Raises `InputError` if it does: that call would change the weights of this one.
        """
        with self.turn():
            if self._is_called:
                raise InputError(
                    "The engine is in the middle of a call; start another one when it has ended."
                )
            try:
                self._is_called = True
                yield
            finally:
                self._is_called = False

    # -- verbs -------------------------------------------------------------------------------------------

    def encode_prompts(
        self, prompts: Sequence[str], enhancement: Enhancement | None = None
    ) -> list[EmbeddingsProcessorOutput]:
        """Text contexts of `prompts`; with `enhancement` the first one is rewritten before. Repeated prompts
        (the negative one above all) are remembered."""
        texts = list(prompts)
        if enhancement is not None:
            encoder = self.components.load("text_encoder")
            texts[0] = generate_enhanced_prompt(
                encoder, texts[0], enhancement.image_path, seed=enhancement.seed
            )
        missing = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        if missing:
            encoder, processor = map(self.components.load, ("text_encoder", "gemma_embeddings_processor"))
            self._prompts.update(zip(missing, encode_texts(missing, encoder, processor)))
        found = [self._prompts[text] for text in texts]
        for text in texts:
            self._prompts.move_to_end(text)
        while len(self._prompts) > REMEMBERED_PROMPTS:
            self._prompts.popitem(last=False)
        return found

    def encode_video(
        self, pixels: torch.Tensor, tiling: TilingConfig | TileSizeConfig | None = None
    ) -> torch.Tensor:
        """Pixels (1, 3, F, H, W) in [-1, 1] to a normalised latent (1, C, F', H', W')."""
        encoder = self.components.load("video_encoder")
        return encoder(pixels) if tiling is None else encoder.tiled_encode(pixels, tiling)

    def encode_audio(self, sound: Audio) -> torch.Tensor:
        """A waveform (1, channels, samples), float32, to a normalised latent (1, C, T, mel bins)."""
        return audio_vae.encode_audio(sound, self.components.load("audio_encoder"))

    def upsample(self, latent: torch.Tensor) -> torch.Tensor:
        """A video latent to twice its height and width."""
        return upsample_video(
            latent, self.components.load("video_encoder"), self.components.load("spatial_upsampler")
        )

    def transformer(self, loras: Loras = ()) -> X0Model:
        """The x0-predicting transformer with exactly these LoRAs."""
        model = self.components.load("transformer")
        if not hasattr(model, "switcher"):
            self._equip(model)
        if loras:
            self.components.make_room_for_loras()
        model.switcher.apply(loras, self.components.lora_files)
        return model

    def _equip(self, transformer: Any) -> None:
        """Choose how a new `X0Model` computes."""
        transformer.max_batch_size = self.max_batch_size
        model: LTXModel = transformer.velocity_model
        if self.attention is not None:
            model.set_attention(attention_named(self.attention))
        elif (best := best_attention(self.device, self.dtype)) is not AttentionFunction.DEFAULT:
            model.set_attention(best)
        if self.compile is not None:
            model.compile_blocks(**self.compile)
        beside = None if self.components.fuse_loras else (self.device, self.dtype)
        # It keeps weights, so it lives and goes with the model.
        transformer.switcher = LoraSwitcher(model, beside)

    @contextmanager
    def transformer_for_stage(
        self, loras: Loras, texts: Sequence[EmbeddingsProcessorOutput]
    ) -> Iterator[nn.Module]:
        """The transformer with exactly these LoRAs, to denoise by these texts; reads them once if memory allows."""
        transformer = self.transformer(loras)
        if not isinstance(transformer, X0Model):  # one that somebody put in its place
            yield transformer
            return
        tokens = sum(text.video_encoding.shape[1] for text in texts)
        needed = transformer.velocity_model.bytes_of_texts(tokens, self.dtype)
        free = memory.available_bytes(self.device)
        with transformer.one_stage(with_texts=free is None or needed <= free // memory.ROOM_FOR_TEXTS):
            yield transformer

    def decode_video(
        self, latent: torch.Tensor, tiling: TilingConfig | AutoTiling | None, generator: torch.Generator
    ) -> Iterator[torch.Tensor]:
        """Chunks of uint8 frames (f, height, width, 3), decoded while they are read."""
        return video_vae.decode_video(latent, self.components.load("video_decoder"), tiling, generator)

    def decode_audio(self, latent: torch.Tensor) -> Audio:
        """A waveform (channels, samples), float32."""
        return audio_vae.decode_audio(
            latent, self.components.load("audio_decoder"), self.components.load("vocoder")
        )

    # -- memory ------------------------------------------------------------------------------------------

    def with_room(self, denoise: DenoisingFunc) -> DenoisingFunc:
        """`denoise`, which lets go of all idle components and starts again where the device has no room for it."""

        @functools.wraps(denoise)
        def attempt(*arguments: Any, **keywords: Any) -> Any:
            try:
                return denoise(*arguments, **keywords)
            except torch.OutOfMemoryError:
                if self.components.loaded.keys() <= {"transformer"}:
                    raise
            # Not in the except block: there the error still holds what was computed.
            idle = self.components.let_go_of_idle("transformer")
            log.info("Out of memory: letting go of %s.", ", ".join(idle).replace("_", " "))
            return denoise(*arguments, **keywords)

        return cast("DenoisingFunc", attempt)

    def release(self) -> None:
        """Let go of all weights; the next call loads them again."""
        with self.lock:
            self.components.clear()
