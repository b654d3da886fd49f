"""Values that flags and calls share."""

from __future__ import annotations

from typing import Any, NamedTuple

from ltx_core.errors import InputError


class ImageConditioningInput(NamedTuple):
    """A picture to meet at pixel frame `frame_idx`, with `strength` in [0, 1].

    crf: how much it is compressed before it is encoded (models were trained on compressed frames); 0 not at
    all, None as the checkpoint wants it: 33, or 18 from version 2.4 on.
    """

    path: str
    frame_idx: int
    strength: float
    crf: int | None = None


def as_image(given: Any) -> ImageConditioningInput:
    """An image from a tuple (path, frame_idx, strength) or (..., crf). Raises `InputError` for anything else."""
    if not isinstance(given, tuple | list) or not 3 <= len(given) <= 4:
        raise InputError(f"An image is (path, frame_idx, strength) with an optional crf, not {given!r}.")
    return ImageConditioningInput(*given)
