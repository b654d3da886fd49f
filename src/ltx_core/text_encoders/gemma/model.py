"""A whole Gemma 3: the language model that encodes, and on the same weights transformers' model, which writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ltx_core.errors import UnsupportedConfigError
from ltx_core.module_ops import assign
from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX
from ltx_core.text_encoders.gemma.language_model import GemmaLanguageModel, read_sizes


class Gemma(nn.Module):
    """Gemma 3 under the names that transformers 4's ``Gemma3ForConditionalGeneration`` gives, with any transformers.

    config: a parsed ``config.json``; one without ``text_config`` stands for Gemma 3 12B. `model.language_model` is
    ours; `model.vision_tower` and `model.multi_modal_projector` are transformers' own, or None as long as nobody
    needs them. `lm_head` shares the token embedding once that is loaded. Raises `UnsupportedConfigError` (a
    ValueError) for another model than Gemma 3, `ConfigError` for a wrong value.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        kind = config.get("model_type", "gemma3")
        if kind != "gemma3":
            raise UnsupportedConfigError(
                f"model_type is {kind!r}; LTX-2.0 and 2.3 need a Gemma 3 model ('gemma3')."
            )
        self.config = dict(config) if "text_config" in config else GEMMA3_CONFIG_FOR_LTX.to_dict()
        sizes = read_sizes(self.config)
        inner: Any = nn.Module()
        inner.language_model = GemmaLanguageModel(sizes)
        inner.vision_tower = inner.multi_modal_projector = None
        self.model: Any = inner
        self.lm_head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)

    @classmethod
    def from_transformers(cls, model: Any) -> Gemma:
        """The same on the weights of transformers' ``Gemma3ForConditionalGeneration``, its vision tower included."""
        with torch.device("meta"):
            gemma = cls(model.config.to_dict())
        _share(model.model.language_model, gemma.model.language_model)
        gemma.tie()
        gemma.add_vision(model.model.vision_tower, model.model.multi_modal_projector)
        return gemma

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.language_model.embed_tokens.weight.device

    def tie(self) -> None:
        """Let the output layer be the token embedding."""
        self.lm_head.weight = self.model.language_model.embed_tokens.weight

    def new_vision(self) -> tuple[Any, Any]:
        """A vision tower and a projector for it, on the meta device, without weights."""
        inner = _transformers(self.config).model
        return inner.vision_tower, inner.multi_modal_projector

    def add_vision(self, tower: Any, projector: Any) -> None:
        """Let it see with these."""
        if not hasattr(tower, "vision_model"):  # transformers from 5.8 on; files have the name
            flat, tower = tower, nn.Module()
            tower.vision_model = flat
        self.model.vision_tower, self.model.multi_modal_projector = tower, projector

    def as_transformers(self) -> Any:
        """transformers' model on these very weights, for what it can do beside encoding; made anew at each call."""
        whole, own = _transformers(self.config), self.model.language_model
        inner = whole.model.language_model
        fill_buffers(inner, self.device)
        _share(own, inner)
        if hasattr(own, "streamer"):
            own.streamer.serve(inner.layers)
        whole.lm_head.weight = inner.embed_tokens.weight
        tower = self.model.vision_tower
        nested = tower is None or hasattr(whole.model.vision_tower, "vision_model")
        whole.model.vision_tower = tower if nested else tower.vision_model
        whole.model.multi_modal_projector = self.model.multi_modal_projector
        return whole.eval()


def _share(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the parameters of `source`."""
    for name, parameter in source.named_parameters():
        assign(target, name, parameter)


def _transformers(config: Mapping[str, Any]) -> Any:
    """transformers' model on the meta device."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    with torch.device("meta"):
        return Gemma3ForConditionalGeneration._from_config(
            Gemma3Config.from_dict(dict(config)), attn_implementation="sdpa"
        )


def fill_buffers(model: nn.Module, device: torch.device | str) -> None:
    """Compute what no file holds: rotary frequencies, embedding scale (both float32), position ids."""
    module: Any
    for name, module in list(model.named_modules()):
        buffers = dict(module.named_buffers(recurse=False))
        if not any(buffer.is_meta for buffer in buffers.values()):
            continue
        if "embed_scale" in buffers:
            scale = module.embedding_dim**0.5
            module.embed_scale = torch.tensor(scale, dtype=torch.float32, device=device)
        elif "position_ids" in buffers:
            module.position_ids = torch.arange(buffers["position_ids"].shape[-1], device=device)[None]
        else:  # the rotary embeddings compute theirs from their configuration when built
            model.set_submodule(name, type(module)(module.config).to(device))
