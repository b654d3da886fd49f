"""What a weights file is, told from its header alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltx_core import sd_ops
from ltx_core.errors import CheckpointError
from ltx_core.loader.build import component_keys
from ltx_core.loader.checkpoint import Checkpoint

COMPONENTS = {
    "transformer": sd_ops.LTXV_MODEL_COMFY_RENAMING_MAP,
    "text projection and connectors": sd_ops.EMBEDDINGS_PROCESSOR_KEY_OPS,
    "video encoder": sd_ops.VAE_ENCODER_COMFY_KEYS_FILTER,
    "video decoder": sd_ops.VAE_DECODER_COMFY_KEYS_FILTER,
    "audio encoder": sd_ops.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    "audio decoder": sd_ops.AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    "vocoder": sd_ops.VOCODER_COMFY_KEYS_FILTER,
}
LORA_NAMINGS = {
    "Kohya": ("lora_unet_", "lora_transformer_", "lycoris_"),
    "PEFT": ("base_model.model.",),
    "diffusers": ("transformer.",),
    "checkpoint": ("model.diffusion_model.",),
    "ComfyUI": ("diffusion_model.",),
}


@dataclass(frozen=True)
class FileDescription:
    """kind: "model", "LoRA", "IC-LoRA", "latent upsampler", "Gemma text encoder" or "unknown".

    components: name -> number of parameters. dtypes: name -> number of tensors. notes: further facts.
    """

    path: Path
    kind: str
    model_version: str | None
    parameters: int
    nbytes: int
    dtypes: dict[str, int]
    components: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        version = f", version {self.model_version}" if self.model_version else ""
        lines = [
            f"{self.path}: {self.kind}{version}",
            f"  {self.parameters:,} parameters, {self.nbytes / 2**20:,.1f} MiB, "
            + ", ".join(f"{count} x {dtype}" for dtype, count in self.dtypes.items()),
        ]
        lines += [f"  {name:<32}{count:>16,}" for name, count in self.components.items()]
        lines += [f"  {name}: {value}" for name, value in self.notes.items()]
        return "\n".join(lines)


def describe(path: str | Path) -> FileDescription:
    """Describe a .safetensors file, or a folder with the shards of a Gemma text encoder.

    Raises `MissingFileError` or `CheckpointError` for anything else.
    """
    given = Path(path).expanduser()
    shards = sorted(given.rglob("*.safetensors")) if given.is_dir() else [given]
    if not shards:
        raise CheckpointError(f"{path} is a folder without .safetensors files.")
    checkpoint = Checkpoint(shards)
    infos = [checkpoint.info(key) for key in checkpoint]
    kind, components, notes = _kind(checkpoint)
    return FileDescription(
        path=given,
        kind=kind,
        model_version=checkpoint.model_version,
        parameters=sum(info.numel for info in infos),
        nbytes=sum(info.nbytes for info in infos),
        dtypes=dict(Counter(str(info.dtype).removeprefix("torch.") for info in infos)),
        components=components,
        notes=notes,
    )


def _kind(checkpoint: Checkpoint) -> tuple[str, dict[str, int], dict[str, Any]]:
    keys = list(checkpoint)
    if any(".lora_" in key for key in keys):
        return _lora(checkpoint)
    if any(key.startswith(("language_model.", "model.language_model.")) for key in keys):
        return "Gemma text encoder", {}, {}
    if "initial_conv.weight" in checkpoint:
        names = ("spatial_upsample", "temporal_upsample", "spatial_scale", "rational_resampler")
        return "latent upsampler", {}, {name: checkpoint.config[name] for name in names if name in checkpoint.config}
    components = _components(checkpoint)
    if not components:
        return "unknown", {}, {"first keys": ", ".join(keys[:3])}
    scaled = sum(key.endswith(".weight_scale") for key in keys)
    notes: dict[str, Any] = {"fp8 layers with a scale": scaled} if scaled else {}
    return "model", components, notes


def _components(checkpoint: Checkpoint) -> dict[str, int]:
    counts = {}
    for name, key_map in COMPONENTS.items():
        keys = component_keys(checkpoint, key_map).items()
        # The connectors share the transformer's prefix.
        own = [key for inside, key in keys if name != "transformer" or "embeddings_connector." not in inside]
        own = [key for key in own if "per_channel_statistics" not in key or len(own) > 2]
        if own:
            counts[name] = sum(checkpoint.info(key).numel for key in own)
    return counts


def _lora(checkpoint: Checkpoint) -> tuple[str, dict[str, int], dict[str, Any]]:
    keys = list(checkpoint)
    downs = [key for key in keys if key.endswith((".lora_A.weight", ".lora_down.weight", ".lora_A.default.weight"))]
    ranks = Counter(checkpoint.info(key).shape[0] for key in downs)
    naming = next((name for name, starts in LORA_NAMINGS.items() if downs and downs[0].startswith(starts)), "bare")
    notes: dict[str, Any] = {
        "modules": len(downs),
        "rank": ", ".join(map(str, sorted(ranks))) or "none",
        "naming": naming,
    }
    alphas = {checkpoint.read(key).item() for key in keys if key.endswith(".alpha")}
    if alphas:
        notes["alpha"] = ", ".join(f"{alpha:g}" for alpha in sorted(alphas))
    factor = checkpoint.metadata.get("reference_downscale_factor")
    if factor is not None:
        notes["reference_downscale_factor"] = factor
    return ("IC-LoRA" if factor is not None else "LoRA"), {}, notes
