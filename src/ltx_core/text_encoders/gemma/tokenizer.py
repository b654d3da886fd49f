"""Prompts to token ids."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path

from ltx_core.errors import InputError

log = logging.getLogger(__name__)


class LTXVGemmaTokenizer:
    """Gemma's own tokenizer as LTX-2 uses it: stripped text, <bos> first, cut at `max_length`, padded left.

    tokenizer_path: a folder with ``tokenizer.json`` or ``tokenizer.model``, and ``tokenizer_config.json``.
    `tokenizer` is the transformers tokenizer. Raises `InputError` if it has no <bos> token.
    """

    def __init__(self, tokenizer_path: str | Path, max_length: int = 256) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            str(tokenizer_path), local_files_only=True, model_max_length=max_length
        )
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.bos_token_id is None:
            raise InputError(f"The tokenizer in {tokenizer_path} has no <bos> token; it is not Gemma's.")
        self.max_length = max_length

    def token_ids(self, text: str) -> list[int]:
        """Between 1 and `max_length` ids, <bos> first; not padded. What is cut off is warned of."""
        ids = self.tokenizer(text.strip(), verbose=False)["input_ids"]
        if ids[:1] != [self.tokenizer.bos_token_id]:
            ids = [self.tokenizer.bos_token_id, *ids]
        if len(ids) > self.max_length:
            log.warning(
                "The prompt %r has %d tokens; only the first %d count.",
                textwrap.shorten(text, 40),
                len(ids),
                self.max_length,
            )
        return ids[: self.max_length]

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False
    ) -> dict[str, list[tuple[int, ...]]]:
        """``{"gemma": [(id, mask), ...]}``, `max_length` pairs, padding (mask 0) first.

        return_word_ids: append each entry's index to it.
        """
        ids = self.token_ids(text)
        padding = self.max_length - len(ids)
        entries: list[tuple[int, ...]] = [(self.tokenizer.pad_token_id, 0)] * padding
        entries += [(i, 1) for i in ids]
        if return_word_ids:
            entries = [(*entry, index) for index, entry in enumerate(entries)]
        return {"gemma": entries}
