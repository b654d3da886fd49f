"""One transformer block: each stream attends to itself and its text, then to the other; then feed-forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ltx_core.guidance.perturbations import PerturbationType
from ltx_core.model.transformer.adaln import Modulation, add_gated, modulate
from ltx_core.model.transformer.attention import Attention
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.model.transformer.feed_forward import FeedForward
from ltx_core.model.transformer.state import CrossInputs, StreamInputs
from ltx_core.utils import rms_norm

Keep = Mapping[PerturbationType, bool | torch.Tensor]
"""Per kind True: no sample is perturbed; False: all are; else a (B, 1, 1) mask, 0 for those that are."""

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class BlockPass(NamedTuple):
    """What one pass brings to a block: activations (B, T, D) and fixed inputs by stream, and what it keeps."""

    hidden: Mapping[str, torch.Tensor]
    inputs: Mapping[str, StreamInputs]
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

    def forward(self, passes: Sequence[BlockPass]) -> list[dict[str, torch.Tensor]]:
        """`run` for each pass. Those of the very same inputs share the keys and values of their texts."""
        texts: dict[int, dict[str, KeysAndValues]] = {}
        results = []
        for hidden, inputs, keep in passes:
            if id(inputs) not in texts:
                running = self._running(inputs)
                texts[id(inputs)] = {s.name: self._keys_and_values(s, inputs[s.name]) for s in running}
            results.append(self.run(hidden, inputs, texts[id(inputs)], keep))
        return results

    def _keys_and_values(self, stream: StreamConfig, inputs: StreamInputs) -> KeysAndValues:
        """`read_text`, if it is not kept from a step before."""
        if inputs.kept is None:
            return self.read_text(stream, inputs)
        return inputs.kept.of((self, stream.name), (inputs.context,), lambda: self.read_text(stream, inputs))

    def read_text(self, stream: StreamConfig, inputs: StreamInputs) -> KeysAndValues:
        """Keys and values of the text of a stream."""
        context = inputs.context
        if inputs.prompt is not None:
            table = self._part(stream, "prompt_scale_shift_table")
            context = _modulated(context, inputs.prompt, table, shift=0, scale=1)
        return self._part(stream, "attn2").keys_and_values(context)

    def run(
        self,
        hidden: Mapping[str, torch.Tensor],
        inputs: Mapping[str, StreamInputs],
        texts: Mapping[str, KeysAndValues],
        keep: Keep,
    ) -> dict[str, torch.Tensor]:
        """The streams' activations (B, T, D) after this block, by name; disabled ones unchanged."""
        out = dict(hidden)
        for stream in self._running(inputs):
            name = stream.name
            out[name] = self._attend(stream, out[name], inputs[name], texts[name], keep)
        if len(out) == 2:
            out |= self._exchange(out, inputs, keep)
        for stream in self._running(inputs):
            out[stream.name] = self._feed(stream, out[stream.name], inputs[stream.name].modulation)
        return out

    def _running(self, inputs: Mapping[str, StreamInputs]) -> list[StreamConfig]:
        return [s for s in self.streams if s.name in inputs and inputs[s.name].enabled]

    def _attend(
        self, stream: StreamConfig, x: torch.Tensor, inputs: StreamInputs, text: KeysAndValues, keep: Keep
    ) -> torch.Tensor:
        """Self-attention, then attention to the text."""
        modulation, table = inputs.modulation, self._part(stream, "scale_shift_table")
        y = _modulated(self._norm(x), modulation, table, shift=0, scale=1)
        kept = keep[SKIP_SELF_ATTENTION[stream.name]]
        y = self._part(stream, "attn1")(
            y,
            mask=inputs.self_bias,
            pe=inputs.rope,
            perturbation_mask=kept if isinstance(kept, torch.Tensor) else None,
            all_perturbed=kept is False,
        )
        x = add_gated(x, y, modulation.vector(2, table[2]))
        y, text_attention = self._norm(x), self._part(stream, "attn2")
        if inputs.prompt is None:
            return x + text_attention.attend(y, text, inputs.text_bias)
        y = _modulated(y, modulation, table, shift=6, scale=7)
        y = text_attention.attend(y, text, inputs.text_bias)
        return add_gated(x, y, modulation.vector(8, table[8]))

    def _exchange(
        self, hidden: Mapping[str, torch.Tensor], inputs: Mapping[str, StreamInputs], keep: Keep
    ) -> dict[str, torch.Tensor]:
        """The streams that audio-video attention changes; both directions read what was before either."""
        due = [e for e in EXCHANGES if inputs[e.target].enabled and keep[e.skip] is not False]
        sides = {name: (self._norm(x), _cross(inputs[name])) for name, x in hidden.items()} if due else {}
        changed = {}
        for exchange in due:
            y, gate = self._receive(exchange, sides)
            gate = gate * keep[exchange.skip]  # True, or a mask of ones and zeros
            changed[exchange.target] = add_gated(hidden[exchange.target], y, gate)
        return changed

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

    def _feed(self, stream: StreamConfig, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        table = self._part(stream, "scale_shift_table")
        y = self._part(stream, "ff")(_modulated(self._norm(x), modulation, table, shift=3, scale=4))
        return add_gated(x, y, modulation.vector(5, table[5]))

    def _part(self, stream: StreamConfig, name: str) -> Any:
        """A module or parameter of the stream, by its name without prefix."""
        return getattr(self, stream.prefix + name)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, eps=self.norm_eps)


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
