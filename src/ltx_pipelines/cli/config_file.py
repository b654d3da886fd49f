"""Saving a run's flags to one TOML or JSON file and starting from it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ltx_core.errors import InputError, MissingFileError
from ltx_core.quantization import QuantizationPolicy
from ltx_core.utils import whole_file

# Flags that say how to run, not what to make; they are not stored.
NOT_STORED = {"config", "save_config", "debug", "overwrite", "device", "offload", "compile", "max_batch_size"}


def plain_values(namespace: argparse.Namespace) -> dict[str, Any]:
    """The namespace in JSON's types; LoRAs and images become the lists that their flags take."""
    given = vars(namespace).items()
    return {key: _plain(value) for key, value in given if key not in NOT_STORED and value is not None}


def _plain(value: Any) -> Any:
    if hasattr(value, "sd_ops") and hasattr(value, "strength"):  # a LoRA: its key map is the flag's business
        return [str(value.path), value.strength]
    if isinstance(value, QuantizationPolicy):
        return value.name
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if item is not None]
    return value


def write_config(path: Path, command: str, namespace: argparse.Namespace) -> None:
    """Write the run to `path`; its ending, .toml or .json, says the format."""
    values = {"command": command, **plain_values(namespace)}
    if _format(path) == "json":
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    else:  # without null, a JSON value is a TOML value
        lines = (f"{key} = {_toml(value)}" for key, value in values.items())
        text = "\n".join(lines) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path} was not written: a flag holds bytes that are no UTF-8.") from None
    with whole_file(path) as partial:
        partial.write_bytes(content)


def read_config(path: Path, command: str | None = None) -> dict[str, Any]:
    """The stored flags. Raises `InputError` for another command's file or one that does not parse."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; write one with --save-config.")
    kind = _format(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if kind == "json" else read_toml(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid {kind.upper()}: {error}") from None
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds no settings; write one with --save-config to see what they look like."
        )
    stored, wanted = (str(name).replace("_", "-") for name in (values.pop("command", command), command))
    if command is not None and stored != wanted:
        raise InputError(f"{path} is for {stored!r}, not {wanted!r}; start it with `ltx {stored}`.")
    return values


def _format(path: Path) -> str:
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in ("toml", "json"):
        raise InputError(f"{path}: a configuration file ends in .toml or .json.")
    return suffix


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def read_toml(text: str) -> dict[str, Any]:
    """A TOML document. Raises ValueError if it is none."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(text)
