"""From a Gemma folder to a text encoder: built on the meta device, each tensor read once into its place."""

from __future__ import annotations

from pathlib import Path

import torch

from ltx_core.errors import ConfigError, LTXError
from ltx_core.loader.build import Fill, build_model
from ltx_core.loader.builder import source_of
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.state_dict import Registry
from ltx_core.sd_ops import GEMMA_LANGUAGE_MODEL_KEYS, GEMMA_PROJECTOR_KEYS, GEMMA_VISION_TOWER_KEYS
from ltx_core.text_encoders.gemma.encoders.base_encoder import MAX_TOKENS, GemmaTextEncoder
from ltx_core.text_encoders.gemma.enhancement import ImageProcessor
from ltx_core.text_encoders.gemma.folder import GemmaFolder
from ltx_core.text_encoders.gemma.model import Gemma, fill_buffers
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer


def load_text_encoder(
    gemma_root: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    with_vision: bool = False,
    fill: Fill | None = None,
    registry: Registry | None = None,
) -> GemmaTextEncoder:
    """The text encoder of a Gemma 3 folder, in eval mode on `device`, its weights in `dtype`.

    Only the language model is read; the vision tower is when an image is first to be looked at, or at once
    `with_vision`. The output layer is the token embedding and takes no memory. fill: see `build_model`;
    registry: keeps what is read of the language model.
    Raises `MissingFileError` (a FileNotFoundError) where the folder lacks a file, `CheckpointError` where
    a file is damaged or lacks a tensor, `ConfigError` where it holds another model.
    """
    folder = GemmaFolder(gemma_root)
    checkpoint = Checkpoint(folder.weights)
    gemma = _on_meta(folder)
    tokenizer = LTXVGemmaTokenizer(folder.tokenizer_folder, MAX_TOKENS)
    source, key_map = source_of(checkpoint, GEMMA_LANGUAGE_MODEL_KEYS, registry)
    build_model(gemma.model.language_model, source, key_map, device, dtype, fill=fill)
    gemma.tie()
    encoder = GemmaTextEncoder(gemma, tokenizer, None, dtype)
    encoder.vision_loader = lambda encoder: _load_vision(encoder, folder, checkpoint)
    if with_vision:
        encoder.vision_loader(encoder)
    return encoder.eval()


def _on_meta(folder: GemmaFolder) -> Gemma:
    try:
        with torch.device("meta"):
            return Gemma(folder.config)
    except LTXError as error:
        raise type(error)(f"{folder.config_file}: {error}") from None
    except Exception as error:  # whatever a negative width may lead to
        raise ConfigError(f"{folder.config_file}: no network can be made of it ({error}).") from error


def _load_vision(encoder: GemmaTextEncoder, folder: GemmaFolder, checkpoint: Checkpoint) -> None:
    """Add the vision tower and its projector, on the device of the language model, and what prepares images."""
    gemma = encoder.model
    device, (tower, projector) = gemma.device, gemma.new_vision()
    encoder.processor = ImageProcessor.from_config(folder.preprocessor_config, gemma.config)
    fill_buffers(tower, device)
    # Up to transformers 5.7 the tower has its layers one attribute deeper.
    build_model(
        getattr(tower, "vision_model", tower), checkpoint, GEMMA_VISION_TOWER_KEYS, device, encoder.dtype
    )
    build_model(projector, checkpoint, GEMMA_PROJECTOR_KEYS, device, encoder.dtype)
    gemma.add_vision(tower.eval(), projector)
