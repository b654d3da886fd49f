"""A random model in the official format, for tests and benchmarks: the same on every machine."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltx_core.loader import save_checkpoint, write_tensors
from ltx_core.model.audio_vae import AudioDecoderConfigurator, AudioEncoderConfigurator, VocoderConfigurator
from ltx_core.model.audio_vae.processor import mel_filterbank
from ltx_core.model.audio_vae.vocoder import kaiser_sinc_filter
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator
from ltx_core.text_encoders.gemma.feature_extractor import size_projections
from ltx_pipelines.miniature.gemma import write_tiny_gemma
from ltx_pipelines.utils.constants import DEFAULTS_KEY

LORA_RANK = 4


def write_random_model(folder: Path) -> None:
    """Write model, upsampler, distilled LoRA and Gemma folder; deterministic, about 12 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_gemma(folder / "gemma")
    config = json.loads(
        files("ltx_pipelines.miniature").joinpath("random_model.json").read_text(encoding="utf-8")
    )
    gemma = json.loads((folder / "gemma" / "config.json").read_text(encoding="utf-8"))["text_config"]
    generator = torch.Generator().manual_seed(0)
    model, upsampler = config["model"], config["upsampler"]
    parts: dict[str, Any] = {
        "transformer": LTXModelConfigurator,
        "embeddings_processor": EmbeddingsProcessorConfigurator,
        "video_encoder": VideoEncoderConfigurator,
        "video_decoder": VideoDecoderConfigurator,
        "audio_encoder": AudioEncoderConfigurator,
        "audio_decoder": AudioDecoderConfigurator,
        "vocoder": VocoderConfigurator,
    }
    components = {name: part.from_config(model) for name, part in parts.items()}
    width = gemma["hidden_size"] * (gemma["num_hidden_layers"] + 1)
    size_projections(components["embeddings_processor"], width)
    for component in components.values():
        randomize(component, generator)
    defaults = {DEFAULTS_KEY: json.dumps(config["defaults"])}
    save_checkpoint(folder / "model.safetensors", components, model, "2.3.0", metadata=defaults)
    network = {"upsampler": randomize(LatentUpsamplerConfigurator.from_config(upsampler), generator)}
    save_checkpoint(folder / "upsampler.safetensors", network, upsampler, "2.3.0")
    _write_lora(folder / "distilled-lora.safetensors", components["transformer"], generator)


def randomize(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Values that keep activations at their scale: 1 / sqrt(fan in) for weights, the nominal ones for filters."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(_value(name, tensor, generator))
    return module.eval()


def _value(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "std-of-means" or (leaf == "weight" and tensor.dim() == 1):
        return torch.ones_like(tensor)
    if leaf == "filter":
        return kaiser_sinc_filter()
    if leaf == "mel_basis":
        return mel_filterbank(2 * (tensor.shape[1] - 1), tensor.shape[0], 16000).T
    if leaf == "kernel":
        return tensor
    if tensor.dim() < 2 or "alpha" in leaf or "beta" in leaf:
        return torch.zeros_like(tensor)
    fan_in = tensor[0].numel() * (100 if "conv_post" in name else 1)  # its noise should not hurt
    return torch.randn(tensor.shape, generator=generator, device=generator.device) / fan_in**0.5


def _write_lora(path: Path, transformer: nn.Module, generator: torch.Generator) -> None:
    """A LoRA in ComfyUI's naming over the self-attentions, too small to break anything."""
    tensors = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and "attn1.to_" in name:
            down = torch.randn(LORA_RANK, layer.in_features, generator=generator) / layer.in_features**0.5
            up = torch.randn(layer.out_features, LORA_RANK, generator=generator) * 0.01
            tensors[f"diffusion_model.{name}.lora_A.weight"] = down.bfloat16()
            tensors[f"diffusion_model.{name}.lora_B.weight"] = up.bfloat16()
    write_tensors(path, tensors)
