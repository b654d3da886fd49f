"""LoRA on PEFT: low-rank layers into a frozen transformer, and out of it into a file in ComfyUI's naming."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ltx_core.errors import ConfigError, InputError
from ltx_core.loader import write_tensors


@dataclass(frozen=True)
class LoRAConfig:
    """A low-rank adaptation of the transformer; rank 0 trains all weights instead.

    targets: ends of the names of the linear layers that are adapted. alpha: the update counts alpha / rank; 0 means
    as much as the rank.
    """

    rank: int = 0
    alpha: int = 0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha < 0:
            raise ConfigError(
                f"lora.rank is {self.rank} and lora.alpha {self.alpha}; neither may be negative."
            )

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank if self.alpha else 1.0


def add_lora(transformer: nn.Module, config: LoRAConfig) -> None:
    """Freeze `transformer` and give it trainable low-rank layers, which change nothing at first."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("LoRA training needs PEFT: pip install 'openltx[train]'.") from None
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    chosen = [name for name in linear if name.endswith(config.targets)]
    if not chosen:
        raise ConfigError(
            f"lora.targets {config.targets} match none of the model's {len(linear)} linear layers."
        )
    transformer.requires_grad_(False)
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=chosen)
    inject_adapter_in_model(settings, transformer)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # whatever the dtype of the frozen weights


@contextmanager
def without_lora(transformer: nn.Module) -> Iterator[None]:
    """Within, the transformer is what it was before `add_lora`."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True  # enable_adapters would also stop the adapters' gradients
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def lora_tensors(transformer: nn.Module, config: LoRAConfig) -> dict[str, torch.Tensor]:
    """The low-rank matrices in bfloat16, ``diffusion_model.<layer>.lora_A.weight`` and ``lora_B``.

    alpha is multiplied in, so that readers need not know of it.
    """
    from peft import get_peft_model_state_dict

    tensors = {}
    for name, tensor in get_peft_model_state_dict(transformer).items():
        value = tensor.detach() * (config.scale if ".lora_B." in name else 1.0)
        tensors[f"diffusion_model.{name}"] = value.to("cpu", torch.bfloat16).contiguous()
    return tensors


def save_lora(path: Path, transformer: nn.Module, config: LoRAConfig, metadata: Mapping[str, str]) -> None:
    """Write a LoRA file; complete under its name or not there at all."""
    header = {"lora_config": json.dumps({"rank": config.rank, "targets": config.targets}), **metadata}
    write_tensors(path, lora_tensors(transformer, config), header)
