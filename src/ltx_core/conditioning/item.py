"""What a conditioning item is: a function from a state to a conditioned state."""

from __future__ import annotations

from typing import Any, Protocol

from ltx_core.types import LatentState


class ConditioningItem(Protocol):
    """Conditions a patchified state; applied before noise is mixed in.

    An item writes what it knows into the clean latent and how firmly into the denoise mask. It may append
    tokens at the end. The state it gets stays as it is.
    """

    def apply_to(self, latent_state: LatentState, latent_tools: Any) -> LatentState: ...
