"""From a Gemma folder to a text encoder: built on the meta device, each tensor read once into its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ltx_core.errors import LTXError
from ltx_core.sd_ops import GEMMA_LANGUAGE_MODEL_KEYS, GEMMA_PROJECTOR_KEYS, GEMMA_VISION_TOWER_KEYS
from ltx_core.text_encoders.gemma.encoders.base_encoder import MAX_TOKENS, GemmaTextEncoder
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import GemmaTextEncoderConfigurator
from ltx_core.text_encoders.gemma.enhancement import ImageProcessor
from ltx_core.text_encoders.gemma.folder import GemmaFolder
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer

if TYPE_CHECKING:
    from ltx_core.loader import Checkpoint
    from ltx_core.loader.build import Fill


def load_text_encoder(
    gemma_root: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    with_vision: bool = False,
    fill: Fill | None = None,
) -> GemmaTextEncoder:
    """The text encoder of a Gemma 3 folder, in eval mode on `device`, its weights in `dtype`.

    Only the language model is read; the vision tower is when an image is first to be looked at, or at once
    `with_vision`. The output layer is the token embedding and takes no memory. fill: see `build_model`.
    Raises `MissingFileError` (a FileNotFoundError) where the folder lacks a file, `CheckpointError` where
    a file is damaged or lacks a tensor, `ConfigError` where it holds another model.
    """
    from ltx_core.loader import Checkpoint
    from ltx_core.loader.build import prepare, resident

    folder = GemmaFolder(gemma_root)
    checkpoint = Checkpoint(folder.weights)
    encoder = _meta_encoder(folder)
    gemma, inner = encoder.model, encoder.model.model
    fill_buffers(inner.language_model, device)
    filling = prepare(inner.language_model, checkpoint, GEMMA_LANGUAGE_MODEL_KEYS, dtype)
    (fill or resident)(filling, device)
    gemma.lm_head.weight = inner.language_model.embed_tokens.weight
    inner.vision_tower = inner.multi_modal_projector = None
    encoder.dtype = dtype
    encoder.tokenizer = LTXVGemmaTokenizer(folder.tokenizer_folder, MAX_TOKENS)
    encoder.processor = ImageProcessor.from_config(folder.preprocessor_config, gemma.config)
    encoder.vision_loader = lambda encoder: _load_vision(encoder, folder, checkpoint)
    if with_vision:
        encoder.vision_loader(encoder)
    return encoder.eval()


def _load_vision(encoder: GemmaTextEncoder, folder: GemmaFolder, checkpoint: Checkpoint) -> None:
    """Add the vision tower and its projector, on the device of the language model."""
    from ltx_core.loader.build import fill_model

    device, inner = encoder.model.device, _meta_encoder(folder).model.model
    tower, projector = inner.vision_tower, inner.multi_modal_projector
    fill_buffers(tower, device)
    # Up to transformers 5.7 the tower has its layers one attribute deeper.
    fill_model(
        getattr(tower, "vision_model", tower), checkpoint, GEMMA_VISION_TOWER_KEYS, device, encoder.dtype
    )
    fill_model(projector, checkpoint, GEMMA_PROJECTOR_KEYS, device, encoder.dtype)
    encoder.model.model.vision_tower, encoder.model.model.multi_modal_projector = tower.eval(), projector


def _meta_encoder(folder: GemmaFolder) -> GemmaTextEncoder:
    try:
        with torch.device("meta"):
            return GemmaTextEncoderConfigurator.from_config(folder.config)
    except LTXError as error:
        raise type(error)(f"{folder.config_file}: {error}") from None


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
