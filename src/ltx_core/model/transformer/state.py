"""What a forward pass carries: each stream's fixed inputs, its activations, and what passes before it have made."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from ltx_core.model.transformer.adaln import Modulation
from ltx_core.model.transformer.rope import RotaryTable

T = TypeVar("T")


class Remembered:
    """What has been made of tensors: for as long as neither they nor the weights change, as in a stage.

    with_texts: blocks keep the keys and values of their texts too.
    """

    def __init__(self, with_texts: bool = False) -> None:
        self.with_texts = with_texts
        self._made: dict[Hashable, tuple[Any, Any]] = {}

    def of(self, what: Hashable, given: Sequence[Any], make: Callable[[], T]) -> T:
        """What `make` returned when `what` was first asked for with these very objects."""
        key = (what, *map(id, given))
        if key not in self._made:
            self._made[key] = given, make()  # while an object is held, no other gets its id
        return self._made[key][1]


@dataclass(frozen=True)
class RopeTables:
    """Rotary tables of one stream; `cross` (time axis only) is None where no other stream is met.

    They depend on positions alone, so one set serves every pass and step of a generation.
    """

    own: RotaryTable
    cross: RotaryTable | None = None


@dataclass(frozen=True)
class CrossInputs:
    """What audio-video attention needs of one stream, either as the asking or as the answering side.

    rope: its table on the common time axis. modulation: 4 vectors. gate: 1 vector, for what it receives.
    """

    rope: RotaryTable
    modulation: Modulation
    gate: Modulation


@dataclass(frozen=True)
class StreamInputs:
    """What the blocks and the head read of one stream besides its activations and its text.

    enabled: False keeps its activations as they are. self_bias: additive mask or None.
    modulation: 6 or 9 vectors. embedded_timestep: 1 vector, for the head. prompt: 2 vectors for the text or None.
    """

    enabled: bool
    self_bias: torch.Tensor | None
    modulation: Modulation
    embedded_timestep: Modulation
    prompt: Modulation | None
    rope: RotaryTable
    cross: CrossInputs | None


@dataclass(frozen=True)
class TextInputs:
    """The text of one stream, as the blocks read it: context (B, S, D), and an additive mask or None."""

    context: torch.Tensor
    bias: torch.Tensor | None


class ForwardState(NamedTuple):
    """A forward pass before its blocks or after them; the mappings hold the streams that were passed, by name.

    hidden: activations (B, T, D). kept: where the blocks keep keys and values of texts, None if they do not.
    A state is a value: passes that begin alike can start from the same activations. It is a tuple since FSDP2 must
    find what a block is given, to let go of its weights in the backward pass, and may not look into other classes.
    """

    inputs: Mapping[str, StreamInputs]
    texts: Mapping[str, TextInputs]
    hidden: dict[str, torch.Tensor]
    kept: Remembered | None = None
