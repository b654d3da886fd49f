"""What a forward pass carries: each stream's fixed inputs, its activations, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ltx_core.model.transformer.adaln import Modulation
from ltx_core.model.transformer.rope import RotaryTable


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
    """What the blocks and the head read of one stream besides its activations.

    enabled: False keeps its activations as they are.
    context: (B, S, D). text_bias, self_bias: additive masks or None.
    modulation: 6 or 9 vectors. embedded_timestep: 1 vector, for the head. prompt: 2 vectors or None.
    """

    enabled: bool
    context: torch.Tensor
    text_bias: torch.Tensor | None
    self_bias: torch.Tensor | None
    modulation: Modulation
    embedded_timestep: Modulation
    prompt: Modulation | None
    rope: RotaryTable
    cross: CrossInputs | None


@dataclass(frozen=True)
class ForwardState:
    """A forward pass before its blocks or after them; both mappings hold the streams that were passed, by name.

    hidden: activations (B, T, D). A state is a value: passes that begin alike can start from the same one.
    """

    inputs: Mapping[str, StreamInputs]
    hidden: Mapping[str, torch.Tensor]
