"""Values that flags and calls share."""

from __future__ import annotations

from typing import NamedTuple

from ltx_pipelines.utils.constants import DEFAULT_IMAGE_CRF


class ImageConditioningInput(NamedTuple):
    """A picture to meet at pixel frame `frame_idx`, with `strength` in [0, 1].

    crf: how much it is compressed before it is encoded (models were trained on compressed frames); 0 not at
    all, None as the checkpoint wants it.
    """

    path: str
    frame_idx: int
    strength: float
    crf: int | None = DEFAULT_IMAGE_CRF
