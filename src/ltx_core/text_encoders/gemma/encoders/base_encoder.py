"""The Gemma 3 text encoder: a prompt to the hidden states of all layers, or to a prompt in more detail."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.errors import InputError
from ltx_core.module_ops import ModuleOps
from ltx_core.text_encoders.gemma.enhancement import ImageProcessor, chat_text, generate, insert_image
from ltx_core.text_encoders.gemma.folder import GemmaFolder
from ltx_core.text_encoders.gemma.model import Gemma
from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer

MAX_TOKENS = 1024
NEW_TOKENS = 512
# Prompts are run in whole blocks of tokens. Matrix kernels round by tiles, so that in bfloat16 too a token's
# states are bit for bit those of the prompt padded to 1024 (on a CPU), at a fraction of the work.
BLOCK = 64


class GemmaTextEncoder(nn.Module):
    """A Gemma 3 and its tokenizer.

    model: a `Gemma`, whose vision tower may be absent (None), as encoding never needs it; or transformers'
    ``Gemma3ForConditionalGeneration``, whose weights are used as they are.
    processor: turns a uint8 image (H, W, 3) into pixel values; only `enhance_i2v` uses it.
    vision_loader: called with this encoder when it is to look at an image and has no vision tower.
    """

    def __init__(
        self,
        model: Any = None,
        tokenizer: LTXVGemmaTokenizer | None = None,
        processor: Callable[[Any], torch.Tensor] | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        own = model is None or isinstance(model, Gemma)
        self.model: Any = model if own else Gemma.from_transformers(model)
        self.tokenizer = tokenizer
        self.processor = processor
        self.dtype = dtype
        self.vision_loader: Callable[[GemmaTextEncoder], None] | None = None

    # -- encoding ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_valid(self, *texts: str) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, int]:
        """Hidden states without most of the padding: L + 1 tensors (B, N, H) for L layers, mask (B, N), S.

        The first is the scaled embedding, the last is after the final norm. N is the most valid tokens n of any of
        the B texts, rounded up to whole blocks; a text's n come last, and they stand at positions S - n to S - 1
        as they do in the prompt padded to S.
        """
        tokenizer, device = self._tokenizer(), self.model.device
        length = tokenizer.max_length
        ids, mask = (table.to(device) for table in tokenizer.padded(texts, BLOCK))
        positions = torch.arange(length - ids.shape[1], length, device=device)
        return self.model.model.language_model(ids, mask, positions), mask, length

    def encode(self, text: str, padding_side: str = "left") -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Hidden states L + 1 times (1, S, H) and mask (1, S) int64; padding first, its states mean nothing.

        `padding_side` has no effect. `encode_valid` gives the same with less padding.
        """
        states, mask, length = self.encode_valid(text)
        rest = length - mask.shape[1]
        return tuple(F.pad(state, (0, 0, rest, 0)) for state in states), F.pad(mask, (rest, 0))

    # -- prompt enhancement ------------------------------------------------------------------------------

    def enhance_t2v(
        self,
        prompt: str,
        max_new_tokens: int | None = NEW_TOKENS,
        system_prompt: str | None = None,
        seed: int = 10,
    ) -> str:
        """`prompt` rewritten by the language model for text-to-video, sampled with `seed`. Not cleaned.

        Raises `InputError` if the tokenizer has no chat template.
        """
        system = system_prompt or self.default_gemma_t2v_system_prompt
        chat = chat_text(self._tokenizer().tokenizer, system, f"user prompt: {prompt}")
        return self._answer(chat, None, max_new_tokens, seed)

    def enhance_i2v(
        self,
        prompt: str,
        image: torch.Tensor,
        max_new_tokens: int | None = NEW_TOKENS,
        system_prompt: str | None = None,
        seed: int = 10,
    ) -> str:
        """`prompt` rewritten as what happens next in `image`, uint8 (H, W, 3). Otherwise as `enhance_t2v`.

        Raises `InputError` if the model cannot see.
        """
        self._need_vision()
        system = system_prompt or self.default_gemma_i2v_system_prompt
        user = [{"type": "image"}, {"type": "text", "text": f"User Raw Input Prompt: {prompt}."}]
        tokenizer = self._tokenizer().tokenizer
        chat = chat_text(tokenizer, system, user)
        chat = insert_image(chat, tokenizer, self.model.config.get("mm_tokens_per_image", 256))
        processor = self.processor or ImageProcessor.from_config({}, self.model.config)
        return self._answer(chat, processor(image), max_new_tokens, seed)

    @cached_property
    def default_gemma_t2v_system_prompt(self) -> str:
        return _read_prompt("t2v_system.txt")

    @cached_property
    def default_gemma_i2v_system_prompt(self) -> str:
        return _read_prompt("i2v_system.txt")

    def _answer(
        self, chat: str, pixel_values: torch.Tensor | None, max_new_tokens: int | None, seed: int
    ) -> str:
        tokenizer = self._tokenizer().tokenizer
        model = self.model.as_transformers()
        ids = generate(model, tokenizer, chat, pixel_values, max_new_tokens or NEW_TOKENS, seed)
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    def _tokenizer(self) -> LTXVGemmaTokenizer:
        if self.tokenizer is None:
            raise InputError("The text encoder has no tokenizer; build it with load_text_encoder.")
        return self.tokenizer

    def _need_vision(self) -> None:
        if self.model.model.vision_tower is not None:
            return
        if self.vision_loader is None:
            raise InputError(
                "This text encoder was loaded without a vision tower; it cannot look at an image."
            )
        self.vision_loader(self)


def module_ops_from_gemma_root(gemma_root: str | Path) -> tuple[ModuleOps, ...]:
    """`ModuleOps` that give a `GemmaTextEncoder` the tokenizer and the image processor of a Gemma folder.

    Raises `MissingFileError` (a FileNotFoundError) if the folder lacks a part.
    """
    folder = GemmaFolder(gemma_root)

    def add_tokenizer(encoder: Any) -> nn.Module:
        encoder.tokenizer = LTXVGemmaTokenizer(folder.tokenizer_folder, MAX_TOKENS)
        return encoder

    def add_processor(encoder: Any) -> nn.Module:
        encoder.processor = ImageProcessor.from_config(folder.preprocessor_config, encoder.model.config)
        return encoder

    def is_encoder(module: nn.Module) -> bool:
        return isinstance(module, GemmaTextEncoder)

    return (
        ModuleOps("gemma_tokenizer", is_encoder, add_tokenizer),
        ModuleOps("gemma_image_processor", is_encoder, add_processor),
    )


def _read_prompt(name: str) -> str:
    return files("ltx_core.text_encoders.gemma.prompts").joinpath(name).read_text(encoding="utf-8").strip()
