"""Prompts to token ids."""

from __future__ import annotations

import importlib.util
import logging
import textwrap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import CheckpointError, InputError
from ltx_core.text_encoders.gemma.folder import read_json
from ltx_core.utils import check_prompt

log = logging.getLogger(__name__)


class LTXVGemmaTokenizer:
    """Gemma's own tokenizer as LTX-2 uses it: stripped text, <bos> first, cut at `max_length`, padded left.

    tokenizer_path: a folder with ``tokenizer.json`` or ``tokenizer.model``, and ``tokenizer_config.json``.
    Prompts need no more than ``tokenizer.json``, which opens quickly; `tokenizer`, the transformers tokenizer, is
    made when it is first asked for. Raises `InputError` if there is no <bos> token, `CheckpointError` for a
    damaged file.
    """

    def __init__(self, tokenizer_path: str | Path, max_length: int = 256) -> None:
        self.folder, self.max_length = Path(tokenizer_path), max_length
        self._ids: Any = _open(self.folder / "tokenizer.json")
        self.bos_id, self.pad_id = self._special_ids()

    @cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the folder. Raises `InputError` where it cannot be read without more."""
        from transformers import AutoTokenizer

        if self._ids is None and importlib.util.find_spec("sentencepiece") is None:
            raise InputError(
                f"{self.folder} has a tokenizer.model only: put the tokenizer.json of the same model beside it, or "
                "pip install sentencepiece protobuf."
            )
        tokenizer = AutoTokenizer.from_pretrained(
            str(self.folder), local_files_only=True, model_max_length=self.max_length
        )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def token_ids(self, text: str) -> list[int]:
        """Between 1 and `max_length` ids, <bos> first; not padded. What is cut off is warned of."""
        check_prompt("The prompt", text)
        text = text.strip()
        ids = (
            self.tokenizer(text, verbose=False)["input_ids"]
            if self._ids is None
            else self._ids.encode(text).ids
        )
        if ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        if len(ids) > self.max_length:
            log.warning(
                "The prompt %r has %d tokens; only the first %d count.",
                textwrap.shorten(text, 40),
                len(ids),
                self.max_length,
            )
        return ids[: self.max_length]

    def padded(self, texts: Sequence[str], block: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask (B, N) int64 of B texts, padding first; N is the most tokens of any, in whole blocks."""
        rows = [self.token_ids(text) for text in texts]
        most = max(map(len, rows))
        length = min(most + -most % block, self.max_length)
        ids = torch.tensor([[self.pad_id] * (length - len(row)) + row for row in rows], device="cpu")
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device="cpu")
        return ids, mask

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False
    ) -> dict[str, list[tuple[int, ...]]]:
        """``{"gemma": [(id, mask), ...]}``, `max_length` pairs, padding (mask 0) first.

        return_word_ids: append each entry's index to it.
        """
        ids = self.token_ids(text)
        padding = self.max_length - len(ids)
        entries: list[tuple[int, ...]] = [(self.pad_id, 0)] * padding
        entries += [(i, 1) for i in ids]
        if return_word_ids:
            entries = [(*entry, index) for index, entry in enumerate(entries)]
        return {"gemma": entries}

    def _special_ids(self) -> tuple[int, int]:
        """Of <bos> and of what pads, which is <eos> where nothing else is meant for it."""
        if self._ids is None:
            # Not knowing whose a tokenizer.model is, transformers adds a <s> to it.
            bos = self.tokenizer.bos_token_id if self.tokenizer.bos_token == "<bos>" else None
            pad = self.tokenizer.pad_token_id
        else:
            bos = self._special_id("bos_token", "<bos>")
            pad = self._special_id("pad_token", "<pad>")
            pad = self._special_id("eos_token", "<eos>") if pad is None else pad
        if bos is None:
            raise InputError(
                f"The tokenizer in {self.folder} has no <bos> token; it is not Gemma's, or lacks its "
                "tokenizer_config.json."
            )
        return bos, pad

    def _special_id(self, name: str, usual: str) -> int | None:
        token = self._config.get(name, usual)
        token = token["content"] if isinstance(token, dict) else token
        return None if token is None else self._ids.token_to_id(token)

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self.folder / "tokenizer_config.json"
        return read_json(path) if path.is_file() else {}


def _open(path: Path) -> Any:
    """The tokenizer of a ``tokenizer.json``, which neither cuts nor pads; None where there is no such file."""
    from tokenizers import Tokenizer

    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no class of its own
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
