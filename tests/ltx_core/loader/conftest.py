"""A tiny network in the shape of the real ones, and the files to load it from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ltx_core.errors import ConfigError
from ltx_core.sd_ops import LTXV_MODEL_COMFY_RENAMING_MAP

PREFIX = "model.diffusion_model."
Write = Callable[..., str]


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, 2 * width)
        self.to_gate_logits = nn.Linear(width, 2)
        self.q_norm = nn.Parameter(torch.empty(width))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn1 = Attention(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Network(nn.Module):
    """Linear layers inside and outside of blocks, a table, and a buffer that files hold."""

    def __init__(self, width: int, blocks: int = 2) -> None:
        super().__init__()
        self.patchify_proj = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.register_buffer("counts", torch.empty(3, dtype=torch.int64))


class NetworkConfigurator:
    @classmethod
    def from_config(cls, config: dict) -> Network:
        if "width" not in config:
            raise ConfigError("config.width is missing; expected int.")
        return Network(config["width"])


class Files:
    """Writes files into a test's own folder."""

    PREFIX, MAP, Network, Configurator = PREFIX, LTXV_MODEL_COMFY_RENAMING_MAP, Network, NetworkConfigurator

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, tensors: dict[str, torch.Tensor], **metadata: str) -> str:
        save_file(tensors, self.folder / name, metadata or None)
        return str(self.folder / name)

    def tensors(self, width: int = 16, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict:
        """Random tensors of the network, by their names inside it."""
        generator = torch.Generator().manual_seed(seed)
        sd = Network(width).state_dict()
        return {
            name: torch.randn(tensor.shape, generator=generator).to(dtype)
            if tensor.is_floating_point()
            else torch.arange(tensor.numel())
            for name, tensor in sd.items()
        }

    def model(self, name: str = "model.safetensors", width: int = 16, **changes: torch.Tensor | None) -> str:
        """A checkpoint of the network; `changes` replace tensors, None removes them ("__" stands for ".")."""
        tensors = self.tensors(width) | {key.replace("__", "."): value for key, value in changes.items()}
        named = {PREFIX + key: value for key, value in tensors.items() if value is not None}
        return self.write(name, named, config=json.dumps({"width": width}), model_version="2.3.1")

    def scaled_model(self, name: str = "fp8.safetensors", input_scales: bool = True, width: int = 16) -> str:
        """A checkpoint whose to_q layers are stored as fp8 with scales."""
        tensors = self.tensors(width)
        for layer in [key.removesuffix(".weight") for key in tensors if key.endswith("to_q.weight")]:
            weight = tensors[f"{layer}.weight"].float()
            scale = weight.abs().max() / 448
            tensors[f"{layer}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{layer}.weight_scale"] = scale
            if input_scales:
                tensors[f"{layer}.input_scale"] = torch.tensor(0.01)
        named = {PREFIX + key: value for key, value in tensors.items()}
        return self.write(name, named, config=json.dumps({"width": width}))

    def lora(
        self,
        name: str = "lora.safetensors",
        modules: tuple[str, ...] = ("patchify_proj", "transformer_blocks.1.attn1.to_q"),
        form: str = "diffusion_model.{}.lora_{}.weight",
        halves: tuple[str, str] = ("A", "B"),
        rank: int = 2,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 1,
        alpha: float | None = None,
        **metadata: str,
    ) -> str:
        """A LoRA for the network in any naming: `form` takes the module and the name of the half.

        The values depend on `seed`, the modules and the rank only, so that namings can be compared.
        """
        generator, shapes = torch.Generator().manual_seed(seed), Network(16).state_dict()
        tensors = {}
        for module in modules:
            out_features, in_features = shapes[f"{module}.weight"].shape
            label = module.replace(".", "_") if form.startswith("lora_") else module
            tensors[form.format(label, halves[0])] = torch.randn(rank, in_features, generator=generator).to(
                dtype
            )
            tensors[form.format(label, halves[1])] = torch.randn(out_features, rank, generator=generator).to(
                dtype
            )
            if alpha is not None:
                tensors[form.partition(".lora_{}")[0].format(label) + ".alpha"] = torch.tensor(alpha)
        return self.write(name, tensors, **metadata)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
