"""What a weights file is, told from its header: kind, version, components, sizes, LoRA and fp8 layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx_core import sd_ops
from ltx_core.errors import CheckpointError
from ltx_core.loader.build import find_tensors
from ltx_core.loader.checkpoint import Checkpoint, TensorInfo
from ltx_core.loader.lora import ALPHA_ENDING, DOWN_ENDINGS, KOHYA_PREFIXES, UP_ENDINGS, adapter_alpha
from ltx_core.quantization.fp8 import FP8_DTYPES

MODEL, LORA, IC_LORA, UPSAMPLER, GEMMA, UNKNOWN = (
    "model",
    "LoRA",
    "IC-LoRA",
    "latent upsampler",
    "Gemma text encoder",
    "unknown",
)
MODEL_COMPONENTS = {
    "transformer": sd_ops.TRANSFORMER_KEYS,
    "text projection and connectors": sd_ops.EMBEDDINGS_PROCESSOR_KEY_OPS,
    "video encoder": sd_ops.VAE_ENCODER_COMFY_KEYS_FILTER,
    "video decoder": sd_ops.VAE_DECODER_COMFY_KEYS_FILTER,
    "audio encoder": sd_ops.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    "audio decoder": sd_ops.AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    "vocoder": sd_ops.VOCODER_COMFY_KEYS_FILTER,
    "duration head": sd_ops.DURATION_HEAD_KEY_OPS,
}
GEMMA_COMPONENTS = {
    "language model": sd_ops.GEMMA_LANGUAGE_MODEL_KEYS,
    "vision tower": sd_ops.GEMMA_VISION_TOWER_KEYS,
    "vision projector": sd_ops.GEMMA_PROJECTOR_KEYS,
}
LORA_NAMINGS = {
    "Kohya": KOHYA_PREFIXES,
    "PEFT": ("base_model.model.",),
    "diffusers": ("transformer.",),
    "checkpoint": ("model.diffusion_model.",),
    "ComfyUI": ("diffusion_model.",),
}
UPSAMPLER_FACTS = ("spatial_upsample", "temporal_upsample", "spatial_scale", "rational_resampler")
# The tensors of a distilled model look like those of a full one: only names tell.
VARIANTS = {"distilled": "distilled", "dev": "full"}


@dataclass(frozen=True)
class Size:
    """How large something is in the file."""

    parameters: int
    nbytes: int

    @classmethod
    def of(cls, infos: Iterable[TensorInfo]) -> Size:
        given = list(infos)
        return cls(sum(info.numel for info in given), sum(info.nbytes for info in given))

    def __str__(self) -> str:
        return f"{self.parameters:>16,} parameters {self.nbytes / 2**20:>12,.1f} MiB"


@dataclass(frozen=True)
class LoraDescription:
    """What a LoRA is made of.

    naming: who names modules so, and what the halves of a pair are called. modules: how many pairs it has.
    ranks, alphas: the distinct ones. Strength 1 means ``up @ down``, times alpha / rank where the naming
    defines an alpha. reference_downscale_factor: of an IC-LoRA, how much smaller its reference clips are.
    """

    naming: str
    modules: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...] = ()
    reference_downscale_factor: str | None = None


@dataclass(frozen=True)
class FileDescription:
    """What a file is.

    kind: "model", "LoRA", "IC-LoRA", "latent upsampler", "Gemma text encoder" or "unknown".
    variant: "distilled" or "full" where the file's name tells, else None. total: of all tensors.
    dtypes: name -> number of tensors. components: name -> size. fp8: how 8-bit weights are stored, or None.
    lora: for LoRAs. notes: further facts.
    """

    path: Path
    kind: str
    model_version: str | None
    variant: str | None
    total: Size
    dtypes: dict[str, int]
    components: dict[str, Size] = field(default_factory=dict)
    fp8: str | None = None
    lora: LoraDescription | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        version = f", version {self.model_version}" if self.model_version else ""
        variant = f", {self.variant} (by its name)" if self.variant else ""
        facts: dict[str, Any] = {"stored as": ", ".join(f"{n} x {dtype}" for dtype, n in self.dtypes.items())}
        if self.fp8:
            facts["fp8"] = self.fp8
        if self.lora:
            facts |= {
                "naming": self.lora.naming,
                "modules": self.lora.modules,
                "rank": _listed(self.lora.ranks),
            }
            facts |= {"alpha": _listed(self.lora.alphas)} if self.lora.alphas else {}
            factor = self.lora.reference_downscale_factor
            facts |= {} if factor is None else {"reference_downscale_factor": factor}
        lines = [f"{self.path}: {self.kind}{version}{variant}"]
        lines += [f"  {name:<32}{size}" for name, size in [*self.components.items(), ("in all", self.total)]]
        lines += [f"  {name}: {value}" for name, value in (facts | self.notes).items()]
        return "\n".join(lines)


def describe(path: str | Path) -> FileDescription:
    """Describe a .safetensors file, or a folder with the shards of a Gemma text encoder.

    Only headers are read, and the alphas of a LoRA, a number each.
    Raises `MissingFileError` or `CheckpointError` for anything else.
    """
    given = Path(path).expanduser()
    shards = sorted(given.rglob("*.safetensors")) if given.is_dir() else [given]
    if not shards:
        raise CheckpointError(f"{path} is a folder without .safetensors files.")
    checkpoint = Checkpoint(shards)
    kind = _kind(checkpoint)
    if given.is_dir() and kind != GEMMA:
        raise CheckpointError(f"{path} is a folder, but not of a Gemma text encoder; give one of its files.")
    infos = [checkpoint.info(key) for key in checkpoint]
    return FileDescription(
        path=given,
        kind=kind,
        model_version=checkpoint.model_version,
        variant=variant_by_name(given) if kind in (MODEL, LORA) else None,
        total=Size.of(infos),
        dtypes=dict(Counter(str(info.dtype).removeprefix("torch.") for info in infos)),
        components=_components(checkpoint, kind),
        fp8=_fp8_layout(checkpoint),
        lora=_lora(checkpoint) if kind in (LORA, IC_LORA) else None,
        notes=_notes(checkpoint, kind),
    )


def _kind(checkpoint: Checkpoint) -> str:
    if any(key.endswith((*DOWN_ENDINGS, *UP_ENDINGS)) for key in checkpoint):
        return IC_LORA if "reference_downscale_factor" in checkpoint.metadata else LORA
    if "initial_conv.weight" in checkpoint:
        return UPSAMPLER
    if "gemma_config" in checkpoint.metadata or _components(checkpoint, GEMMA):
        return GEMMA
    return MODEL if _components(checkpoint, MODEL) else UNKNOWN


def variant_by_name(path: str | Path) -> str | None:
    """Whether a file's name says that it is "distilled" or "full" (dev), else None."""
    words = Path(path).stem.lower().replace("_", "-").split("-")
    return next((variant for word, variant in VARIANTS.items() if word in words), None)


def _components(checkpoint: Checkpoint, kind: str) -> dict[str, Size]:
    """Sizes of the components that the file holds at least one tensor of their own of."""
    maps: Mapping[str, sd_ops.SDOps] = {MODEL: MODEL_COMPONENTS, GEMMA: GEMMA_COMPONENTS}.get(kind, {})
    sizes = {}
    for component, key_map in maps.items():
        keys = {stored.key for stored in find_tensors(checkpoint, key_map).values()}
        if any("per_channel_statistics." not in key for key in keys):  # encoder and decoder share these
            sizes[component] = Size.of(checkpoint.info(key) for key in keys)
    return sizes


def _fp8_layout(checkpoint: Checkpoint) -> str | None:
    layers = [
        key.removesuffix(".weight")
        for key in checkpoint
        if key.endswith(".weight") and checkpoint.info(key).dtype in FP8_DTYPES
    ]
    scaled = [name for name in layers if f"{name}.weight_scale" in checkpoint]
    static = [name for name in scaled if f"{name}.input_scale" in checkpoint]
    if any(key.endswith(".weight_scale_2") for key in checkpoint):
        return "NVFP4, which is not supported"
    if scaled:
        inputs = "input scales" if len(static) == len(scaled) else "no input scales"
        return f"{len(scaled)} layers with weight scales and {inputs}"
    return f"{len(layers)} layers without scales" if layers else None


def _lora(checkpoint: Checkpoint) -> LoraDescription:
    downs = [key for key in checkpoint if key.endswith(DOWN_ENDINGS)]
    first = downs[0] if downs else ""
    prefix = next((name for name, starts in LORA_NAMINGS.items() if first.startswith(starts)), "bare")
    halves = "lora_down, lora_up" if ".lora_down." in first else "lora_A, lora_B"
    numbers = [key for key in checkpoint if key.endswith(ALPHA_ENDING) and checkpoint.info(key).numel == 1]
    alphas = {float(checkpoint.read(key).item()) for key in numbers}
    stated = adapter_alpha(checkpoint)
    return LoraDescription(
        naming=f"{prefix} ({halves})",
        modules=len(downs),
        ranks=tuple(sorted({checkpoint.info(key).shape[0] for key in downs})),
        alphas=tuple(sorted(alphas | ({stated} if stated is not None else set()))),
        reference_downscale_factor=checkpoint.metadata.get("reference_downscale_factor"),
    )


def _notes(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    if kind == UPSAMPLER:
        return {name: checkpoint.config[name] for name in UPSAMPLER_FACTS if name in checkpoint.config}
    if kind == UNKNOWN:
        return {"first keys": ", ".join(list(checkpoint)[:3]) or "none"}
    return {}


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers) or "none"
