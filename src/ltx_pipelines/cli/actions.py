"""Flag values that are more than a string: paths, LoRAs, images, quantization."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.constants import DEFAULT_IMAGE_CRF, DEFAULT_LORA_STRENGTH
from ltx_pipelines.utils.validation import finite

EMPTY_PATH = "the path is empty; name a file or folder"


class _Wrong(argparse.ArgumentTypeError, ValueError):
    """A value that the flag does not know."""


def resolved_path(text: str) -> str:
    """An absolute path with forward slashes, ``~`` expanded.

    Raises `_Wrong` for an empty one, such as a shell's variable that is not set.

    Links stay: their names tell what a file is, where a download cache names files by their hashes.
    """
    if not text:
        raise _Wrong(EMPTY_PATH)
    return Path(os.path.abspath(Path(text).expanduser())).as_posix()


TRUTH = {"true": True, "false": False}
COMPILE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "mode": str,
    "backend": str,
    "fullgraph": TRUTH.__getitem__,
    "dynamic": TRUTH.__getitem__,
}


def compile_option(text: str) -> tuple[str, Any]:
    """KEY=VALUE as a keyword of `torch.compile` with its value; else raises ``ArgumentTypeError``."""
    try:
        key, value = text.split("=", 1)
        return key, COMPILE_OPTIONS[key](value)
    except (ValueError, KeyError):
        known = "mode=NAME, backend=NAME, fullgraph=true or false, dynamic=true or false"
        raise argparse.ArgumentTypeError(f"{text!r} is none of {known}") from None


class _Values(argparse.Action):
    """A flag whose values make one item; counts other than `counts` are refused."""

    counts: range
    usage: str

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = [str(value) for value in values or ()]
        try:
            if len(given) not in self.counts:
                raise _Wrong(f"got {len(given)} values: {' '.join(given)!r}")
            self.store(namespace, self.item(given))
        except _Wrong as error:
            parser.error(f"{option_string} takes {self.usage}; {error}")

    def item(self, values: list[str]) -> Any:
        raise NotImplementedError

    def store(self, namespace: argparse.Namespace, item: Any) -> None:
        setattr(namespace, self.dest, item)


class _Appending(_Values):
    """One that may be repeated: the items make a list."""

    def store(self, namespace: argparse.Namespace, item: Any) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest, None) or []), item])


def _number(name: str, text: str) -> float:
    try:
        return finite(name, float(text))
    except ValueError:
        raise _Wrong(f"{name} must be a finite number, not {text!r}") from None


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _Wrong(f"{name} must be a whole number, not {text!r}") from None


class LoraAction(_Appending):
    counts, usage = range(1, 3), "PATH [STRENGTH]"

    def item(self, values: list[str]) -> LoraPathStrengthAndSDOps:
        strength = _number("STRENGTH", values[1]) if len(values) > 1 else DEFAULT_LORA_STRENGTH
        return LoraPathStrengthAndSDOps(resolved_path(values[0]), strength, LTXV_LORA_COMFY_RENAMING_MAP)


class ImageAction(_Appending):
    """crf: of images given without one."""

    counts, usage = range(3, 5), "PATH FRAME_IDX STRENGTH [CRF]"

    def __init__(self, *arguments: Any, crf: int = DEFAULT_IMAGE_CRF, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.crf = crf

    def item(self, values: list[str]) -> ImageConditioningInput:
        crf = _whole("CRF", values[3]) if len(values) > 3 else self.crf
        frame, strength = _whole("FRAME_IDX", values[1]), _number("STRENGTH", values[2])
        return ImageConditioningInput(resolved_path(values[0]), frame, strength, crf)


class _PathAndStrength(_Values):
    counts, usage = range(2, 3), "PATH STRENGTH"

    def item(self, values: list[str]) -> tuple[str, float]:
        return resolved_path(values[0]), _number("STRENGTH", values[1])


class VideoConditioningAction(_Appending, _PathAndStrength):
    """A control clip."""


class MaskAction(_PathAndStrength):
    """The mask of the control clips."""


class QuantizationAction(_Values):
    """``fp8-cast``, or ``fp8-scaled-mm`` with a file that older scripts give and nothing reads."""

    counts, usage = range(1, 3), "fp8-cast or fp8-scaled-mm"

    def item(self, values: list[str]) -> QuantizationPolicy:
        name, *rest = values
        if name == "fp8-scaled-mm":
            return QuantizationPolicy.fp8_scaled_mm()
        if name != "fp8-cast" or rest:
            raise _Wrong(f"got {' '.join(values)!r}")
        return QuantizationPolicy.fp8_cast()
