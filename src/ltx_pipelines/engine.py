"""The one owner of weights, device, dtype, LoRA set and memory policy. Pipelines can share an engine."""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ltx_core.errors import InputError
from ltx_core.loader import LoraSwitcher, variant_by_name
from ltx_core.loader.lora import LoraFile
from ltx_core.loader.streaming import check_mode
from ltx_core.loader.switch import FileKey, file_key
from ltx_core.model import audio_vae, video_vae
from ltx_core.model.transformer import LTXModel, X0Model
from ltx_core.model.transformer.attention import AttentionFunction, attention_named, best_attention
from ltx_core.model.upsampler import upsample_video
from ltx_core.model.video_vae import AutoTiling, TileSizeConfig, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_core.text_encoders.gemma import EmbeddingsProcessorOutput
from ltx_core.types import Audio, VideoLatentShape
from ltx_pipelines import memory
from ltx_pipelines.miniature import Miniature, miniature
from ltx_pipelines.recipe import Enhancement, Loras, Recipe
from ltx_pipelines.utils.constants import PipelineParams, embedded_params, parse_version
from ltx_pipelines.utils.model_ledger import ModelLedger
from ltx_pipelines.utils.model_paths import ModelPaths
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


class Loaded(NamedTuple):
    """A component, and where its blocks wait: "none", "cpu" or "disk"."""

    module: nn.Module
    offload: str


class Engine:
    """Builds each component once, keeps it while memory allows, drops the least recently used first.

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
        self.ledger, self.built_in, self.offload = ledger, built_in, offload
        self.attention, self.compile, self.max_batch_size = attention, compile, max_batch_size
        self.fuse_loras = fuse_loras
        self.lock = threading.RLock()
        self._is_called = False
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._prompts: OrderedDict[str, EmbeddingsProcessorOutput] = OrderedDict()
        self._lora_files: dict[FileKey, LoraFile] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Where it is unpickled, in another process above all, it loads its weights itself."""
        how = (self.offload, self.attention, self.compile, self.max_batch_size, self.fuse_loras)
        return type(self), (self.ledger, self.built_in, *how)

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
        attention kernel that is not installed, or what `torch.compile` does not take.
        """
        options = {} if compile is True else compile or None
        check_how(dtype, quantization, options, max_batch_size)
        place = memory.get_device(device)
        kind = dtype or (torch.float32 if place.type == "cpu" else torch.bfloat16)
        built_in = None
        if paths == ModelPaths():
            built_in = miniature()
            log.info(
                "No model was given: using the built-in miniature, which knows simple shapes, motions and sounds. "
                "For an LTX-2 of your own give --checkpoint-path and --gemma-root."
            )
            paths, spatial_upsampler_path = (
                built_in.paths,
                spatial_upsampler_path or built_in.spatial_upsampler_path,
            )
        paths.check()
        ledger = ModelLedger(kind, place, paths=paths, quantization=quantization)
        ledger.spatial_upsampler_path = (
            None if spatial_upsampler_path is None else str(spatial_upsampler_path)
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
        """Raise, before any work, if a file that a run needs is missing, damaged or of another kind.

        Reads headers only, and nothing for components that are loaded.
        """
        for name in recipe.components:
            module = self._loaded[name].module if name in self._loaded else self.ledger.check(name)
            if isinstance(module, video_vae.VideoDecoder):
                latent = VideoLatentShape.from_pixel_shape(recipe.stages[-1].shape)
                module.check_sides((latent.height, latent.width))
        used = {file_key(lora): lora for lora in recipe.loras if lora.strength != 0}
        self._lora_files = {
            key: self._lora_files.get(key) or self.ledger.open_lora(lora) for key, lora in used.items()
        }
        self._let_go_of_what_outgrew()

        checkpoint = self.ledger.checkpoint(*self.ledger.files_of("transformer"))
        count = checkpoint.config.get("transformer", {}).get(
            "num_layers", max(recipe.stg_blocks, default=0) + 1
        )
        missing = sorted(block for block in recipe.stg_blocks if not 0 <= block < count)
        if missing:
            log.warning("STG asks for block %d; the transformer has blocks 0 to %d.", missing[0], count - 1)

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
            encoder = self._component("text_encoder")
            texts[0] = generate_enhanced_prompt(
                encoder, texts[0], enhancement.image_path, seed=enhancement.seed
            )
        missing = [text for text in dict.fromkeys(texts) if text not in self._prompts]
        if missing:
            encoder, processor = (
                self._component("text_encoder"),
                self._component("gemma_embeddings_processor"),
            )
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
        encoder = self._component("video_encoder")
        return encoder(pixels) if tiling is None else encoder.tiled_encode(pixels, tiling)

    def encode_audio(self, sound: Audio) -> torch.Tensor:
        """A waveform (1, channels, samples), float32, to a normalised latent (1, C, T, mel bins)."""
        return audio_vae.encode_audio(sound, self._component("audio_encoder"))

    def upsample(self, latent: torch.Tensor) -> torch.Tensor:
        """A video latent to twice its height and width."""
        return upsample_video(latent, self._component("video_encoder"), self._component("spatial_upsampler"))

    def transformer(self, loras: Loras = ()) -> X0Model:
        """The x0-predicting transformer with exactly these LoRAs."""
        model = self._component("transformer")
        if not hasattr(model, "switcher"):  # it keeps weights, so it lives and goes with the model
            beside = None if self.fuse_loras else (self.device, self.dtype)
            model.switcher = LoraSwitcher(model.velocity_model, beside)
        if loras and self._loaded["transformer"].offload == "none":
            needed = self.bytes_kept() - self._kept_by("transformer")
            self._make_room(memory.MAIN, needed, but="transformer")
        model.switcher.apply(loras, self._lora_files)
        return model

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
        return video_vae.decode_video(latent, self._component("video_decoder"), tiling, generator)

    def decode_audio(self, latent: torch.Tensor) -> Audio:
        """A waveform (channels, samples), float32."""
        return audio_vae.decode_audio(latent, self._component("audio_decoder"), self._component("vocoder"))

    # -- memory ------------------------------------------------------------------------------------------

    def memory_policy(self, names: Sequence[str]) -> memory.MemoryPolicy:
        """Where the components of these names would rest, if nothing else were loaded."""
        sizes = {name: self.size_of(name) for name in names}
        free, main = map(self._available, (self.device, memory.MAIN))
        kept = {"transformer": self.bytes_kept()}
        return memory.choose_policy(sizes, self.device, free, main, self.offload, kept)

    def size_of(self, name: str, streamed: bool = False) -> int:
        """Bytes that a component takes on the device, LoRAs beside a transformer's weights included.

        streamed: its blocks rest elsewhere.
        """
        beside = self._lora_files.values() if name == "transformer" and not self.fuse_loras else ()
        weights = self.ledger.size_of(name) // (memory.STREAMED_SHARE if streamed else 1)
        return weights + sum(file.bytes_in(self.dtype) for file in beside)

    def bytes_kept(self) -> int:
        """Bytes of main memory that a resident transformer takes besides for the LoRAs of this run.

        That is another weight of each layer that they are fused into: see `LoraSwitcher`.
        """
        files = self._lora_files.values() if self.fuse_loras else ()
        touched = {f"{module}.weight" for file in files for module in file.match.modules}
        return sum(self.ledger.bytes_of("transformer")[name] for name in touched)

    def _available(self, device: torch.device) -> int | None:
        """Bytes that there would be for components on `device` if none were loaded; None if it is not told."""
        free = memory.available_bytes(device)
        return None if free is None else free + sum(self._held(name, device) for name in self._loaded)

    def _held(self, name: str, device: torch.device) -> int:
        """Bytes that a loaded component takes on `device`: the engine's, or main memory."""
        return self._taken(name, self._loaded[name].offload, self._kept_by(name))[device]

    def _kept_by(self, name: str) -> int:
        """Bytes of main memory that a loaded component holds for its LoRAs."""
        switcher = getattr(self._loaded[name].module, "switcher", None)
        return switcher.bytes_kept if switcher else 0

    def _taken(self, name: str, offload: str, kept: int) -> dict[torch.device, int]:
        """Bytes that a component takes, by place; kept: those in main memory beside its own weights."""
        taken = {memory.MAIN: kept + (self.ledger.size_of(name) if offload == "cpu" else 0)}
        on_device = self.size_of(name, streamed=offload != "none")
        return taken | {self.device: taken.get(self.device, 0) + on_device}

    def _let_go_of_what_outgrew(self) -> None:
        """Let go of a resident transformer that with the LoRAs of this run has to be streamed."""
        name = "transformer"
        if name not in self._loaded or self._loaded[name].offload != "none":
            return
        is_more = self.bytes_kept() > self._kept_by(name)
        if is_more and self.memory_policy([name]).offload[name] != "none":
            del self._loaded[name]
            memory.cleanup_memory()

    def _component(self, name: str) -> Any:
        """The component, loaded if it is not."""
        if name not in self._loaded:
            size, offload = self.size_of(name), self.memory_policy([name]).offload[name]
            kept = self.bytes_kept() if name == "transformer" and offload == "none" else 0
            for place, needed in self._taken(name, offload, kept).items():
                self._make_room(place, needed)
            if size >= memory.SLOW_TO_LOAD:
                log.info("Loading the %s (%.1f GiB).", name.replace("_", " "), size / 2**30)
            options = {"offload": offload} if name in memory.STREAMABLE else {}
            component = getattr(self.ledger, name)(**options)
            if name == "transformer":
                self._tune(component)
            self._loaded[name] = Loaded(component, offload)
        self._loaded.move_to_end(name)
        return self._loaded[name].module

    def _tune(self, transformer: Any) -> None:
        """Choose how a new `X0Model` computes."""
        transformer.max_batch_size = self.max_batch_size
        model: LTXModel = transformer.velocity_model
        if self.attention is not None:
            model.set_attention(attention_named(self.attention))
        elif (best := best_attention(self.device, self.dtype)) is not AttentionFunction.DEFAULT:
            model.set_attention(best)
        if self.compile is not None:
            model.compile_blocks(**self.compile)

    def _make_room(self, device: torch.device, size: int, but: str | None = None) -> None:
        """Let go of what was used least recently on `device`, until `size` more bytes fit there; but not of `but`."""
        for name in [name for name in self._loaded if name != but and self._held(name, device)]:
            free = memory.available_bytes(device)
            if free is None or free >= size * memory.HEADROOM:
                return
            del self._loaded[name]
            memory.cleanup_memory()

    def with_room(self, denoise: DenoisingFunc) -> DenoisingFunc:
        """`denoise`, which lets go of all idle components and starts again where the device has no room for it."""

        @functools.wraps(denoise)
        def attempt(*arguments: Any, **keywords: Any) -> Any:
            try:
                return denoise(*arguments, **keywords)
            except torch.OutOfMemoryError:
                idle = [name for name in self._loaded if name != "transformer"]
                if not idle:
                    raise
            # Not in the except block: there the error still holds what was computed.
            log.info("Out of memory: letting go of %s.", ", ".join(idle).replace("_", " "))
            for name in idle:
                del self._loaded[name]
            memory.cleanup_memory()
            return denoise(*arguments, **keywords)

        return cast("DenoisingFunc", attempt)

    def release(self) -> None:
        """Let go of all weights; the next call loads them again."""
        with self.lock:
            self._loaded.clear()
            self._lora_files.clear()
            memory.cleanup_memory()
