"""What it takes to run the official package 1.0.0 on a CPU, with files of any size; through its public names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch


def prepare(gemma_root: str | None = None, dtype: str = "bfloat16") -> None:
    """Call once, before anything of the package is imported.

    gemma_root: its text encoder has the published 12B sizes built in; they are replaced by this folder's.
    dtype: the package computes in bfloat16 only. For "float32" that name is pointed at float32, which is why
    the files of such a run must hold float32 weights.
    """
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_, **__: None
    import safetensors.torch  # noqa: F401 (they must see the real bfloat16)
    import transformers  # noqa: F401

    if dtype == "float32":
        torch.bfloat16 = torch.float32
    _let_buffers_take_the_files_shape()
    if gemma_root is not None:
        use_gemma_sizes(gemma_root)


def use_gemma_sizes(gemma_root: str) -> None:
    """Replace the built-in sizes of the text encoder by those of this folder."""
    config = json.loads((Path(gemma_root) / "config.json").read_text(encoding="utf-8"))
    from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX as BUILT_IN

    def replace(part: Any, values: dict[str, Any]) -> None:
        for field in dataclasses.fields(part):
            current = getattr(part, field.name)
            if dataclasses.is_dataclass(current):
                replace(current, values.get(field.name) or {})
            elif field.name in values:
                object.__setattr__(part, field.name, values[field.name])

    replace(BUILT_IN, config)
    type(BUILT_IN).to_dict = lambda _: config


def _let_buffers_take_the_files_shape() -> None:
    """The audio statistics are sized by a width that is right for published files only."""
    load = torch.nn.Module.load_state_dict

    def resized(self: torch.nn.Module, state: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("assign"):
            for name, buffer in dict(self.named_buffers()).items():
                if name in state and state[name].shape != buffer.shape:
                    owner, _, leaf = name.rpartition(".")
                    empty = torch.empty_like(state[name], device="meta")
                    self.get_submodule(owner)._buffers[leaf] = empty
        return load(self, state, *args, **kwargs)

    torch.nn.Module.load_state_dict = resized
