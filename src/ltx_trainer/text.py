"""Captions to contexts while training: Gemma, frozen or trained along, and the embeddings processor."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.errors import InputError
from ltx_core.loader import Checkpoint, write_tensors
from ltx_core.loader.build import find_tensors
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.sd_ops import GEMMA_LANGUAGE_MODEL_KEYS
from ltx_core.text_encoders.gemma.folder import GemmaFolder
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer
from ltx_core.utils import whole_folder


class TextTower(nn.Module):
    """Gemma's language model, and how captions become its input."""

    def __init__(self, folder: str | Path, *, trained: bool) -> None:
        super().__init__()
        encoder = load_text_encoder(folder, "cpu", torch.float32 if trained else torch.bfloat16)
        self.folder, self.trained = GemmaFolder(folder), trained
        self.language_model = encoder.model.model.language_model.requires_grad_(trained)
        assert encoder.tokenizer is not None  # it was loaded from a folder
        self.tokenizer: LTXVGemmaTokenizer = encoder.tokenizer

    @property
    def features(self) -> int:
        """Values a token that the embeddings processor gets."""
        sizes = self.language_model.sizes
        return sizes.hidden_size * (sizes.num_hidden_layers + 1)

    @property
    def identity(self) -> dict[str, int]:
        """The sizes that must not change while training goes on."""
        return {
            name: getattr(self.language_model.sizes, name) for name in ("hidden_size", "num_hidden_layers")
        }

    def tokens(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids and mask (B, N), padded at the left."""
        return self.tokenizer.padded(captions)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Hidden states of all layers, each float32 (B, N, H), at the positions they have when generating."""
        total, length = self.tokenizer.max_length, ids.shape[1]
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            states = self.language_model(ids, mask, torch.arange(total - length, total, device=ids.device))
        return tuple(state.float() for state in states)

    def write(self, folder: Path) -> None:
        """A Gemma folder as the one read, with the weights as they are now; complete or not there."""
        weights, checkpoint = self.language_model.state_dict(), Checkpoint(self.folder.weights)
        tensors = {key: checkpoint.read(key) for key in checkpoint}
        for name, (key, *_) in find_tensors(checkpoint, GEMMA_LANGUAGE_MODEL_KEYS).items():
            tensors[key] = weights[name].detach().to("cpu", tensors[key].dtype).contiguous()
        with whole_folder(folder) as partial:
            for path in (self.folder.config_file.parent, self.folder.tokenizer_folder):
                for file in path.iterdir():
                    if file.is_file() and not file.name.startswith("model"):
                        shutil.copyfile(file, partial / file.name)
            write_tensors(partial / "model.safetensors", tensors, {"format": "pt"})


@torch.no_grad()
def merge_registers(processor: Any, *, new: bool) -> None:
    """Keep the registers of connectors without blocks as they are, `new` ones at 0: one can then stand for all."""
    for connector in (processor.video_connector, processor.audio_connector):
        if connector is not None and not connector.transformer_1d_blocks:
            connector.learnable_registers.requires_grad_(False)
            if new:
                connector.learnable_registers.zero_()


def make_contexts(
    processor: Any, states: tuple[Tensor, ...], mask: Tensor, length: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Contexts (B, S, C) of both streams with S = `length` positions, and a bias of the attention to them or None.

    Where connectors have no blocks and registers are 0, one register stands for all: S is then the longest prompt
    plus one, and the bias (B, 1, S) gives that one the weight of the `length` - n positions after a prompt of n
    tokens. Attention has no positions in a context, so that the results are the same.
    Raises `InputError` for a caption of more tokens than that.
    """
    if mask.shape[1] > length:
        raise InputError(
            f"A caption has {mask.shape[1]} tokens, but text_length is {length}; raise it, or shorten the caption."
        )
    connectors = {"video": processor.video_connector, "audio": processor.audio_connector}
    merged = not any(c.transformer_1d_blocks or c.learnable_registers.any() for c in connectors.values())
    if not merged:
        output = processor.process_valid(states, mask, length)
        return {"video": output.video_encoding, "audio": output.audio_encoding}, None
    count, most = mask.sum(dim=1, keepdim=True), mask.shape[1] + 1
    registers = processor.video_connector.num_learnable_registers
    output = processor.process_valid(states, mask, -(-most // registers) * registers)
    place = torch.arange(most, device=mask.device)
    bias = torch.where(place < count, 0.0, torch.finfo(torch.float32).min)
    bias = torch.where(place == count, (length - count).float().log(), bias)
    contexts = {"video": output.video_encoding[:, :most], "audio": output.audio_encoding[:, :most]}
    return contexts, bias[:, None]
