"""One transformer block: each stream attends to itself and its text, then to the other; then feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ltx_core.guidance.perturbations import PerturbationType
from ltx_core.model.transformer.adaln import Modulation, add_gated, modulate
from ltx_core.model.transformer.attention import Attention
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.model.transformer.feed_forward import FeedForward
from ltx_core.model.transformer.state import (
    CrossInputs,
    ForwardState,
    Remembered,
    StreamInputs,
    TextInputs,
)
from ltx_core.utils import rms_norm

Keep = Mapping[PerturbationType, bool | torch.Tensor]
"""Per kind True: no sample is perturbed; False: all are; else a (B, 1, 1) mask, 0 for those that are."""

Hidden = dict[str, torch.Tensor]
"""Activations (B, T, D) by stream."""

Inputs = Mapping[str, StreamInputs]

Way = list[tuple[Sequence[Any], Callable[[Hidden], Hidden]]]
"""The steps of a pass through a block, each with what tells it from others on the same activations: these very
objects."""

STEPS = ("attend_self", "attend_text", "exchange", "feed")
"""The methods of a block that do its work, in order."""


class ReadText(NamedTuple):
    """What attention reads of a text: keys and values (B, S, I), and the bias for them or None."""

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None


class BlockPass(NamedTuple):
    """What one pass brings to a block: its activations and fixed inputs, and which attentions it keeps."""

    state: ForwardState
    keep: Keep


SKIP_SELF_ATTENTION = {
    "video": PerturbationType.SKIP_VIDEO_SELF_ATTN,
    "audio": PerturbationType.SKIP_AUDIO_SELF_ATTN,
}


@dataclass(frozen=True)
class Exchange:
    """One direction of audio-video attention: `target` asks, `source` answers.

    rows: where scale and shift of this direction are in both tables (in the streams' own, shift comes first).
    """

    module: str
    target: str
    source: str
    rows: tuple[int, int]
    skip: PerturbationType


EXCHANGES = (
    Exchange("audio_to_video_attn", "video", "audio", (0, 1), PerturbationType.SKIP_A2V_CROSS_ATTN),
    Exchange("video_to_audio_attn", "audio", "video", (2, 3), PerturbationType.SKIP_V2A_CROSS_ATTN),
)
GATE_ROW = 4


def modulation_table(rows: int, dim: int) -> nn.Parameter:
    """A block's own offsets to the shared modulation, (rows, dim)."""
    limit = (3 / dim) ** 0.5  # of a standard deviation of 1 / sqrt(dim)
    return nn.Parameter(nn.init.uniform_(torch.empty(rows, dim), -limit, limit))


class TransformerBlock(nn.Module):
    """Block of the streams given. Parameters of the audio stream carry its prefix, those of video none."""

    def __init__(self, config: TransformerConfig, streams: tuple[StreamConfig, ...]) -> None:
        super().__init__()
        self.streams = streams
        self.norm_eps = config.norm_eps
        for stream in streams:
            self._add_stream(stream, config)
        if len(streams) == 2:
            self._add_exchange(config)

    def _add_stream(self, stream: StreamConfig, config: TransformerConfig) -> None:
        dim = stream.dim
        parts: dict[str, nn.Module | nn.Parameter] = {
            "attn1": _attention(config, stream, dim, dim),
            "attn2": _attention(config, stream, dim, stream.context_dim),
            "ff": FeedForward(dim, bias=stream.ff_bias),
            "scale_shift_table": modulation_table(config.num_modulations, dim),
        }
        if config.cross_attention_adaln:
            parts["prompt_scale_shift_table"] = modulation_table(2, dim)
        for name, part in parts.items():
            setattr(self, stream.prefix + name, part)

    def _add_exchange(self, config: TransformerConfig) -> None:
        streams = {stream.name: stream for stream in self.streams}
        for exchange in EXCHANGES:  # both run at the audio stream's width
            target, source = streams[exchange.target], streams[exchange.source]
            setattr(self, exchange.module, _attention(config, streams["audio"], target.dim, source.dim))
        for stream in self.streams:
            setattr(self, f"scale_shift_table_a2v_ca_{stream.name}", modulation_table(5, stream.dim))

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled steps, which compute with the weights of this very block: a copy is not compiled."""
        return {name: value for name, value in vars(self).items() if name not in STEPS}

    def forward(self, passes: Sequence[BlockPass]) -> list[Hidden]:
        """The activations after this block, of each pass; those of disabled streams unchanged.

        Passes of the same texts share their keys and values. Passes that come with the very same activations
        share all steps until they part, be it the whole block.
        """
        read = Remembered()
        alike: dict[int, dict[int, Way]] = {}
        for number, (state, keep) in enumerate(passes):
            alike.setdefault(id(state.hidden), {})[number] = self._way(state, keep, read)
        results: dict[int, Hidden] = {}
        for ways in alike.values():
            results |= _walk(passes[next(iter(ways))].state.hidden, ways)
        return [results[number] for number in range(len(passes))]

    def _way(self, state: ForwardState, keep: Keep, read: Remembered) -> Way:
        """The steps of one pass. read: the texts of passes before it."""
        inputs = state.inputs
        own, cross = [keep[kind] for kind in SKIP_SELF_ATTENTION.values()], [keep[e.skip] for e in EXCHANGES]
        texts = read.of("texts", (inputs, *state.texts.values()), partial(self._read, state))
        return [
            ((inputs, *own), partial(self.attend_self, inputs=inputs, keep=keep)),
            ((texts,), partial(self.attend_text, inputs=inputs, texts=texts)),
            (cross, partial(self.exchange, inputs=inputs, keep=keep)),
            ((), partial(self.feed, inputs=inputs)),
        ]

    def _running(self, inputs: Inputs) -> list[StreamConfig]:
        return [s for s in self.streams if s.name in inputs and inputs[s.name].enabled]

    def _read(self, state: ForwardState) -> dict[str, ReadText]:
        """The texts of the running streams, from a step before where they are kept."""
        kept, read = state.kept or Remembered(), {}
        for stream in self._running(state.inputs):
            text, prompt = state.texts[stream.name], state.inputs[stream.name].prompt
            make = partial(self.read_text, stream, text, prompt)
            read[stream.name] = kept.of((self, stream.name), (text,), make)
        return read

    def read_text(self, stream: StreamConfig, text: TextInputs, prompt: Modulation | None) -> ReadText:
        context = text.context
        if prompt is not None:
            table = self._part(stream, "prompt_scale_shift_table")
            context = _modulated(context, prompt, table, shift=0, scale=1)
        keys, values = self._part(stream, "attn2").keys_and_values(context)
        return ReadText(keys, values, text.bias)

    # The four steps. Each takes all streams' activations and returns those after it.

    def attend_self(self, hidden: Hidden, inputs: Inputs, keep: Keep) -> Hidden:
        changed = {}
        for stream in self._running(inputs):
            x, own, table = hidden[stream.name], inputs[stream.name], self._part(stream, "scale_shift_table")
            kept = keep[SKIP_SELF_ATTENTION[stream.name]]
            y = self._part(stream, "attn1")(
                _modulated(self._norm(x), own.modulation, table, shift=0, scale=1),
                mask=own.self_bias,
                pe=own.rope,
                perturbation_mask=kept if isinstance(kept, torch.Tensor) else None,
                all_perturbed=kept is False,
            )
            changed[stream.name] = add_gated(x, y, own.modulation.vector(2, table[2]))
        return hidden | changed

    def attend_text(self, hidden: Hidden, inputs: Inputs, texts: Mapping[str, ReadText]) -> Hidden:
        changed = {}
        for stream in self._running(inputs):
            x, own, table = hidden[stream.name], inputs[stream.name], self._part(stream, "scale_shift_table")
            keys, values, bias = texts[stream.name]
            y, attention = self._norm(x), self._part(stream, "attn2")
            if own.prompt is None:
                changed[stream.name] = x + attention.attend(y, (keys, values), bias)
                continue
            y = _modulated(y, own.modulation, table, shift=6, scale=7)
            y = attention.attend(y, (keys, values), bias)
            changed[stream.name] = add_gated(x, y, own.modulation.vector(8, table[8]))
        return hidden | changed

    def exchange(self, hidden: Hidden, inputs: Inputs, keep: Keep) -> Hidden:
        """Audio-video attention; both directions read what was before either."""
        both = EXCHANGES if len(hidden) == 2 else ()
        due = [e for e in both if inputs[e.target].enabled and keep[e.skip] is not False]
        sides = {name: (self._norm(x), _cross(inputs[name])) for name, x in hidden.items()} if due else {}
        changed = {}
        for exchange in due:
            y, gate = self._receive(exchange, sides)
            gate = gate * keep[exchange.skip]  # True, or a mask of ones and zeros
            changed[exchange.target] = add_gated(hidden[exchange.target], y, gate)
        return hidden | changed

    def feed(self, hidden: Hidden, inputs: Inputs) -> Hidden:
        changed = {}
        for stream in self._running(inputs):
            x, own, table = hidden[stream.name], inputs[stream.name], self._part(stream, "scale_shift_table")
            y = self._part(stream, "ff")(_modulated(self._norm(x), own.modulation, table, shift=3, scale=4))
            changed[stream.name] = add_gated(x, y, own.modulation.vector(5, table[5]))
        return hidden | changed

    def _receive(
        self, exchange: Exchange, sides: Mapping[str, tuple[torch.Tensor, CrossInputs]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What one direction brings, (B, T, D) of its target, and the gate for it.

        sides: the normalised activations and cross inputs of both streams.
        """
        (x, target), (y, source) = sides[exchange.target], sides[exchange.source]
        table, source_table = self._cross_table(exchange.target), self._cross_table(exchange.source)
        scale, shift = exchange.rows
        received = getattr(self, exchange.module)(
            _modulated(x, target.modulation, table, shift=shift, scale=scale),
            _modulated(y, source.modulation, source_table, shift=shift, scale=scale),
            pe=target.rope,
            k_pe=source.rope,
        )
        return received, target.gate.vector(0, table[GATE_ROW])

    def _cross_table(self, name: str) -> torch.Tensor:
        return getattr(self, f"scale_shift_table_a2v_ca_{name}")

    def _part(self, stream: StreamConfig, name: str) -> Any:
        """A module or parameter of the stream, by its name without prefix."""
        return getattr(self, stream.prefix + name)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, eps=self.norm_eps)


def _walk(x: Hidden, ways: dict[int, Way], first: int = 0) -> dict[int, Hidden]:
    """Where the ways of passes lead from x, by their numbers: steps that they have in common are taken once.

    first: number of the step that is next. Of steps that are over, those are held at which ways part.
    """
    for depth in range(first, len(STEPS)):
        parts: dict[tuple[int, ...], dict[int, Way]] = {}
        for number, way in ways.items():
            parts.setdefault(tuple(map(id, way[depth][0])), {})[number] = way
        if len(parts) > 1:
            return {n: y for part in parts.values() for n, y in _walk(x, part, depth).items()}
        step = next(iter(ways.values()))[depth][1]
        x = step(x)
    return dict.fromkeys(ways, x)


def _modulated(
    x: torch.Tensor, modulation: Modulation, table: torch.Tensor, *, shift: int, scale: int
) -> torch.Tensor:
    """x modulated by the vectors numbered `shift` and `scale`, each with its row of the block's table."""
    return modulate(x, modulation.factor(scale, table[scale]), modulation.vector(shift, table[shift]))


def _attention(config: TransformerConfig, inner: StreamConfig, query_dim: int, context_dim: int) -> Attention:
    """Attention with the heads of the stream `inner`."""
    return Attention(
        query_dim=query_dim,
        context_dim=context_dim,
        heads=inner.heads,
        dim_head=inner.head_dim,
        norm_eps=config.norm_eps,
        rope_type=config.rope_type,
        attention_function=config.attention_type,
        apply_gated_attention=config.apply_gated_attention,
    )


def _cross(inputs: StreamInputs) -> CrossInputs:
    assert inputs.cross is not None  # prepared whenever both streams are passed
    return inputs.cross
