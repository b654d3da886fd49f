"""Flag values that are more than a string: paths, LoRAs, images, quantization."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.constants import DEFAULT_IMAGE_CRF, DEFAULT_LORA_STRENGTH


def resolved_path(text: str) -> str:
    """An absolute path with forward slashes, ``~`` expanded."""
    return Path(text).expanduser().resolve().as_posix()


class _Appending(argparse.Action):
    """A repeatable flag whose values make one item; counts other than `counts` are refused."""

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
        if len(given) not in self.counts:
            parser.error(f"{option_string} takes {self.usage}; got {' '.join(given)!r}")
        try:
            item = self.item(given)
        except ValueError:
            parser.error(
                f"{option_string} takes {self.usage}; {' '.join(given)!r} has something else for a number"
            )
        earlier = getattr(namespace, self.dest, None) or []
        setattr(namespace, self.dest, [*earlier, item])

    def item(self, values: list[str]) -> Any:
        raise NotImplementedError


class LoraAction(_Appending):
    counts, usage = range(1, 3), "PATH [STRENGTH]"

    def item(self, values: list[str]) -> LoraPathStrengthAndSDOps:
        strength = float(values[1]) if len(values) > 1 else DEFAULT_LORA_STRENGTH
        return LoraPathStrengthAndSDOps(resolved_path(values[0]), strength, LTXV_LORA_COMFY_RENAMING_MAP)


class ImageAction(_Appending):
    """crf: of images given without one."""

    counts, usage = range(3, 5), "PATH FRAME_IDX STRENGTH [CRF]"

    def __init__(self, *arguments: Any, crf: int = DEFAULT_IMAGE_CRF, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.crf = crf

    def item(self, values: list[str]) -> ImageConditioningInput:
        crf = int(values[3]) if len(values) > 3 else self.crf
        return ImageConditioningInput(resolved_path(values[0]), int(values[1]), float(values[2]), crf)


class VideoConditioningAction(_Appending):
    counts, usage = range(2, 3), "PATH STRENGTH"

    def item(self, values: list[str]) -> tuple[str, float]:
        return resolved_path(values[0]), float(values[1])


class MaskAction(argparse.Action):
    """``PATH STRENGTH``, once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        path, strength = map(str, list(values or ("", "")))
        try:
            number = float(strength)
        except ValueError:
            parser.error(f"{option_string} takes PATH STRENGTH; {strength!r} is no number")
        setattr(namespace, self.dest, (resolved_path(path), number))


class QuantizationAction(argparse.Action):
    """``fp8-cast``, or ``fp8-scaled-mm`` with a file that older scripts give and nothing reads."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = [str(value) for value in list(values or [""])]
        name, rest = given[0], given[1:]
        if name not in ("fp8-cast", "fp8-scaled-mm"):
            parser.error(f"{option_string} is {name!r}; choose fp8-cast or fp8-scaled-mm")
        if len(rest) > (name == "fp8-scaled-mm"):
            parser.error(f"{option_string} {name} takes no further value; got {' '.join(rest)!r}")
        policy = QuantizationPolicy.fp8_cast() if name == "fp8-cast" else QuantizationPolicy.fp8_scaled_mm()
        setattr(namespace, self.dest, policy)
