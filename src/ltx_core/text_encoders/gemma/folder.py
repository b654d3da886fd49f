"""Finding the parts of a Gemma folder, as downloaded from the Hugging Face Hub or spread over sub-folders."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError, MissingFileError

CONTENTS = (
    "A Gemma folder holds config.json, model*.safetensors, and tokenizer.json or tokenizer.model with "
    "tokenizer_config.json, as google/gemma-3-12b-it-qat-q4_0-unquantized does"
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `CheckpointError` if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; download it again.")
    return values


class GemmaFolder:
    """Where configuration, weights and tokenizer are under `root`; searched recursively, shallowest first.

    Raises `MissingFileError` (a FileNotFoundError) naming pattern and root if one is not there.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not os.path.isdir(self.root):
            state = "is a file" if os.path.exists(self.root) else "does not exist"
            raise MissingFileError(f"The Gemma folder {self.root} {state}. {CONTENTS}.")
        self.weights_folder = self._find("model*.safetensors").parent
        self.tokenizer_folder = self._find("tokenizer.model", "tokenizer.json").parent
        here = self.weights_folder / "config.json"
        self.config_file = here if here.is_file() else self._find("config.json")

    @property
    def weights(self) -> list[Path]:
        """All shards, sorted."""
        return sorted(self.weights_folder.rglob("*.safetensors"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed ``config.json``."""
        return read_json(self.config_file)

    @cached_property
    def preprocessor_config(self) -> dict[str, Any]:
        """The parsed ``preprocessor_config.json``; empty where there is none."""
        files = self._matches("preprocessor_config.json")
        return read_json(files[0]) if files else {}

    def _matches(self, pattern: str) -> list[Path]:
        return sorted(self.root.rglob(pattern), key=lambda path: (len(path.parts), path))

    def _find(self, *patterns: str) -> Path:
        """The first match of the first pattern that has one."""
        for pattern in patterns:
            matches = self._matches(pattern)
            if matches:
                return matches[0]
        names = " or ".join(repr(pattern) for pattern in patterns)
        raise MissingFileError(f"No file matching {names} under {self.root}. {CONTENTS}.")
