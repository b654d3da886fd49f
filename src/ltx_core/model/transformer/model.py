"""The diffusion transformer: noisy audio and video tokens in, their velocities (or denoised tokens) out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ltx_core.errors import DtypeError, InputError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.guidance.plan import TokenPair, TransformerCall, can_stack, stack
from ltx_core.model.transformer.adaln import (
    AdaLayerNormSingle,
    Modulation,
    NoiseLevels,
    modulate,
    sample_levels,
    token_levels,
)
from ltx_core.model.transformer.attention import Attention, AttentionFunction
from ltx_core.model.transformer.block import STEPS, BlockPass, Hidden, TransformerBlock, modulation_table
from ltx_core.model.transformer.config import LTXModelType, StreamConfig, TransformerConfig
from ltx_core.model.transformer.inputs import (
    check_context,
    check_is_tensor,
    fitting,
    passed_modalities,
    rope_tables,
)
from ltx_core.model.transformer.masks import merge_repeats, self_attention_bias, text_bias
from ltx_core.model.transformer.state import (
    CrossInputs,
    ForwardState,
    Remembered,
    RopeTables,
    StreamInputs,
    TextInputs,
)
from ltx_core.types import Modality
from ltx_core.utils import to_denoised

__all__ = ["LTXModel", "LTXModelType", "LegacyX0Model", "X0Model"]

CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")  # of `torch.compile`
COMPILED_GRAPHS = 64  # of one block: passes, sizes, and what is enabled make more than PyTorch expects

STACKED_TOKENS = 128  # of a pass: up to here a batch of passes is quicker than sharing their first blocks

TEXT_FIELDS = ("context", "context_mask")  # of a modality

GATE_MODULES = {"video": "av_ca_a2v_gate_adaln_single", "audio": "av_ca_v2a_gate_adaln_single"}


class LTXModel(nn.Module):
    """Velocity model of LTX-2: a video and an audio stream that attend to their texts and to each other.

    model_type: which streams it has.
    caption_projection, audio_caption_projection: modules that bring text features to the streams' widths
        (LTX-2.0), None where the text encoder does so.
    architecture: the fields of `TransformerConfig`, with its defaults.

    `forward` is `prepare`, `run_blocks`, `finish`. Passes that begin alike can share a `ForwardState`.
    Raises `ConfigError` for an architecture that cannot be built.
    """

    optional_parameters = ("keyframes_abs_pos_embedding",)  # a file without them makes a model without them

    def __init__(
        self,
        *,
        model_type: LTXModelType = LTXModelType.AudioVideo,
        caption_projection: nn.Module | None = None,
        audio_caption_projection: nn.Module | None = None,
        **architecture: Any,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in architecture.items() if value is not None}
        self.config = TransformerConfig(**given)
        self.model_type = model_type
        self.streams = self.config.streams(model_type)
        self.gradient_checkpointing = False
        self.has_cuda_graphs = False  # of compiled blocks
        projections = {"video": caption_projection, "audio": audio_caption_projection}
        for stream in self.streams:
            self._add_stream(stream, projections[stream.name])
        if len(self.streams) == 2:
            self._add_exchange()
        blocks = (TransformerBlock(self.config, self.streams) for _ in range(self.config.num_layers))
        self.transformer_blocks = nn.ModuleList(blocks)

    def _add_stream(self, stream: StreamConfig, caption_projection: nn.Module | None) -> None:
        dim, config = stream.dim, self.config
        parts: dict[str, nn.Module | nn.Parameter] = {
            "patchify_proj": nn.Linear(stream.in_channels, dim),
            "adaln_single": AdaLayerNormSingle(dim, config.num_modulations),
            "scale_shift_table": modulation_table(2, dim),
            "proj_out": nn.Linear(dim, stream.out_channels),
        }
        if caption_projection is not None:
            parts["caption_projection"] = caption_projection
        if config.cross_attention_adaln and config.use_prompt_adaln_single:
            parts["prompt_adaln_single"] = AdaLayerNormSingle(dim, 2)
        if stream.name == "video" and config.use_keyframes_abs_pos_embedding:
            parts["keyframes_abs_pos_embedding"] = nn.Parameter(torch.zeros(1, dim))
        for name, part in parts.items():
            setattr(self, stream.prefix + name, part)

    def _add_exchange(self) -> None:
        for stream in self.streams:
            modulation = AdaLayerNormSingle(stream.dim, 4)
            setattr(self, f"av_ca_{stream.name}_scale_shift_adaln_single", modulation)
            setattr(self, GATE_MODULES[stream.name], AdaLayerNormSingle(stream.dim, 1))

    @property
    def num_blocks(self) -> int:
        return len(self.transformer_blocks)

    @property
    def supports_keyframes_abs_pos_embedding(self) -> bool:
        """Whether there is an embedding, with values, that marks the tokens of `Modality.keyframes_mask`."""
        embedding = getattr(self, "keyframes_abs_pos_embedding", None)
        return embedding is not None and not embedding.is_meta

    def enable_keyframes_abs_pos_embedding(self) -> None:
        """Give a model without a keyframe embedding one of zeros, which changes nothing until trained."""
        if not self.supports_keyframes_abs_pos_embedding:
            weight = self._part(self.streams[0], "patchify_proj").weight
            self.keyframes_abs_pos_embedding = nn.Parameter(weight.new_zeros(1, weight.shape[0]))

    def set_gradient_checkpointing(self, enable: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its intermediate results."""
        self.gradient_checkpointing = enable

    def set_attention(self, function: AttentionFunction) -> None:
        """Compute all attention with `function`; raises `InputError` if its package is not installed."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.attention_function = function.check()

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks' forward pass at its first run, with these options of `torch.compile`.

        Shapes are fixed (``dynamic=False``) unless said otherwise. Blocks of one kind share what is compiled:
        one graph for each pass of a guided step and each size. Raises `InputError` for CUDA graphs of blocks that
        are streamed.
        """
        streamer: Any = getattr(self, "streamer", None)
        check_graphs(options, to_gpu=streamer is not None and streamer.to_gpu)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_GRAPHS)
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # LoRAs may come and go as hooks
        self.has_cuda_graphs = _asks_for_cuda_graphs(**options)
        blocks: Any = self.transformer_blocks
        for block in blocks:
            # Not `read_text`: CUDA graphs would write over keys and values that are kept for the next step.
            for step in STEPS:
                setattr(block, step, torch.compile(getattr(block, step), **({"dynamic": False} | options)))

    def forward(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> TokenPair:
        """Velocities (B, T, out_channels) of video and audio, None for a stream that was not passed.

        A stream that is not `enabled` is left as it is, but still informs the other one; its velocity means
        nothing. Raises `InputError` for inputs that do not fit the model or each other.
        """
        return self.finish(self.run_blocks([self.prepare(video, audio)], [perturbations])[0])

    def rope_tables(self, video: Modality | None, audio: Modality | None) -> dict[str, RopeTables]:
        """The rotary tables of the streams passed, by name; they depend on positions (and dtype) only."""
        return rope_tables(self.config, self.streams, passed_modalities(self.streams, video, audio))

    def bytes_of_texts(self, tokens: int, dtype: torch.dtype) -> int:
        """What the keys and values of so many text tokens take in all blocks; 0 where each step has its own."""
        if self.config.texts_follow_noise:
            return 0
        return 2 * tokens * sum(stream.dim for stream in self.streams) * dtype.itemsize * self.num_blocks

    def prepare(
        self,
        video: Modality | None,
        audio: Modality | None,
        rope: Mapping[str, RopeTables] | None = None,
        kept: Remembered | None = None,
        begun: ForwardState | None = None,
    ) -> ForwardState:
        """The state before the first block.

        rope: the `rope_tables` of these positions, if at hand. kept: what was made of texts and masks before.
        begun: the state of a call that differs from this one in texts at most.
        """
        kept = Remembered() if kept is None else kept
        modalities = passed_modalities(self.streams, video, audio)
        passed = [stream for stream in self.streams if stream.name in modalities]
        texts = {s.name: self._text_inputs(s, modalities[s.name], kept) for s in passed}
        if begun is not None:
            return begun._replace(texts=texts)
        rope = rope_tables(self.config, self.streams, modalities) if rope is None else rope
        return ForwardState(
            inputs={s.name: self._stream_inputs(s, modalities, rope[s.name], kept) for s in passed},
            texts=texts,
            hidden={s.name: self._embed(s, modalities[s.name]) for s in passed},
            kept=kept if kept.with_texts and not self.config.texts_follow_noise else None,
        )

    def run_blocks(
        self, states: Sequence[ForwardState], perturbations: Sequence[BatchedPerturbationConfig | None]
    ) -> list[ForwardState]:
        """The states after the blocks, of passes that go through them side by side.

        So the weights of a block are needed once, and passes that begin alike are computed once until a text or a
        perturbation parts them.
        """
        if self.has_cuda_graphs:  # else each block's graph writes over what the one before it has given
            torch.compiler.cudagraph_mark_step_begin()
        configs = [BatchedPerturbationConfig.empty() if p is None else p for p in perturbations]
        for state, config in zip(states, configs):
            _check_perturbations(config, state)
        keeps = [c.keeps(self.num_blocks, next(iter(s.hidden.values()))) for c, s in zip(configs, states)]
        for index, block in enumerate(self.transformer_blocks):
            passes = [BlockPass(state, keep[index]) for state, keep in zip(states, keeps)]
            states = [state._replace(hidden=x) for state, x in zip(states, self._run_block(block, passes))]
        return list(states)

    def _run_block(self, block: nn.Module, passes: list[BlockPass]) -> list[Hidden]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, passes, use_reentrant=False, preserve_rng_state=False)
        return block(passes)

    def finish(self, state: ForwardState) -> TokenPair:
        """The velocities (B, T, out_channels) of a state after the last block."""
        velocities = {s.name: self._head(s, state) for s in self.streams if s.name in state.hidden}
        return velocities.get("video"), velocities.get("audio")

    def _part(self, stream: StreamConfig, name: str) -> Any:
        """A module or parameter of the stream by its name without prefix, None if the model has none."""
        return getattr(self, stream.prefix + name, None)

    def _embed(self, stream: StreamConfig, modality: Modality) -> torch.Tensor:
        x = self._part(stream, "patchify_proj")(modality.latent)
        mask = modality.keyframes_mask
        if stream.name == "video" and mask is not None and self.supports_keyframes_abs_pos_embedding:
            x = x + (mask > 0).to(x.dtype) * self.keyframes_abs_pos_embedding
        return x

    def _stream_inputs(
        self, stream: StreamConfig, modalities: Mapping[str, Modality], rope: RopeTables, kept: Remembered
    ) -> StreamInputs:
        modality = modalities[stream.name]
        (batch, tokens, _), dtype = modality.latent.shape, modality.latent.dtype
        levels = token_levels(modality.timesteps, batch, tokens).scaled(self.config.timestep_scale_multiplier)
        modulation, embedded_timestep = self._part(stream, "adaln_single")(levels, dtype)
        other = [modality for name, modality in modalities.items() if name != stream.name]
        self_bias = kept.of(
            (stream.name, "mask", dtype),
            (modality.attention_mask,),
            lambda: self._self_bias(stream, modality),
        )
        return StreamInputs(
            enabled=modality.enabled,
            self_bias=self_bias,
            modulation=modulation,
            embedded_timestep=embedded_timestep,
            prompt=self._prompt_modulation(stream, modality),
            rope=rope.own,
            cross=self._cross_inputs(stream, levels, other[0], rope) if other else None,
        )

    def _self_bias(self, stream: StreamConfig, modality: Modality) -> torch.Tensor | None:
        batch, tokens, _ = modality.latent.shape
        forms = (tokens, tokens), (batch, tokens, tokens), (batch, stream.heads, tokens, tokens)
        mask = fitting(modality.attention_mask, f"{stream.name} attention mask", *forms)
        return self_attention_bias(mask, modality.latent.dtype)

    def _text_inputs(self, stream: StreamConfig, modality: Modality, kept: Remembered) -> TextInputs:
        batch, dtype = modality.latent.shape[0], modality.latent.dtype
        return kept.of(
            (stream.name, "text", dtype, batch),
            (modality.context, modality.context_mask),
            lambda: TextInputs(*self._text(stream, modality)),
        )

    def _prompt_modulation(self, stream: StreamConfig, modality: Modality) -> Modulation | None:
        """Shift and scale of the text: by noise level, by the blocks' tables alone (zeros), or none."""
        if not self.config.cross_attention_adaln:
            return None
        if not self.config.use_prompt_adaln_single:
            return Modulation(modality.latent.new_zeros(1, 1, 2, stream.dim))
        return self._part(stream, "prompt_adaln_single")(self._sigma(modality), modality.latent.dtype)[0]

    def _cross_inputs(
        self, stream: StreamConfig, levels: NoiseLevels, other: Modality, rope: RopeTables
    ) -> CrossInputs:
        """Scales and shifts follow the stream's own tokens, the gate the noise level of the other stream."""
        if rope.cross is None:
            raise InputError(f"The {stream.name} rotary tables were made without the other stream.")
        dtype, config = other.latent.dtype, self.config
        modulation, _ = getattr(self, f"av_ca_{stream.name}_scale_shift_adaln_single")(levels, dtype)
        factor = config.av_ca_timestep_scale_multiplier / config.timestep_scale_multiplier
        gate, _ = getattr(self, GATE_MODULES[stream.name])(self._sigma(other).scaled(factor), dtype)
        return CrossInputs(rope.cross, modulation, gate)

    def _sigma(self, modality: Modality) -> NoiseLevels:
        """The modality's noise level per sample, scaled for embedding."""
        check_is_tensor(modality.sigma, "sigma")
        batch, device = modality.latent.shape[0], modality.latent.device
        levels = sample_levels(modality.sigma.to(device), batch)
        return levels.scaled(self.config.timestep_scale_multiplier)

    def _text(self, stream: StreamConfig, modality: Modality) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The context at the stream's width, and the bias of attention to it."""
        projection = self._part(stream, "caption_projection")
        context = modality.context if projection is None else projection(modality.context)
        check_context(stream, context, modality.latent.shape[0])
        bias = self._text_bias(stream, modality, context.shape[1])
        return merge_repeats(context) if bias is None else (context, bias)

    def _text_bias(self, stream: StreamConfig, modality: Modality, words: int) -> torch.Tensor | None:
        (batch, tokens, _), mask = modality.latent.shape, modality.context_mask
        by_query = (batch, tokens, words)
        if isinstance(mask, torch.Tensor) and mask.is_floating_point():
            forms = [(tokens, words), by_query, (batch, stream.heads, tokens, words)]
        else:
            forms = [(batch, words), by_query, (batch, 1, tokens, words)]
        return text_bias(fitting(mask, f"{stream.name} text mask", *forms), modality.latent.dtype)

    def _head(self, stream: StreamConfig, state: ForwardState) -> torch.Tensor:
        x, embedded = state.hidden[stream.name], state.inputs[stream.name].embedded_timestep
        shift, scale = self._part(stream, "scale_shift_table")
        x = F.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps)
        return self._part(stream, "proj_out")(
            modulate(x, embedded.factor(0, scale), embedded.vector(0, shift))
        )


def check_graphs(options: Mapping[str, Any], *, to_gpu: bool) -> None:
    """Raise `InputError` if these options of `torch.compile` make CUDA graphs of blocks that are streamed to a GPU.

    to_gpu: whether they are. A graph holds addresses of weights; each one that changes would be recorded anew, and
    kept.
    """
    if to_gpu and _asks_for_cuda_graphs(**options):
        raise InputError(
            "compile asks for CUDA graphs, which need weights that stay on the GPU, but the blocks are streamed; "
            "use offload none (--offload none) or another mode of compile."
        )


def _asks_for_cuda_graphs(mode: str = "", backend: Any = "", options: Any = None, **_: Any) -> bool:
    """Whether `torch.compile` makes CUDA graphs of these options."""
    return (
        mode in CUDA_GRAPH_MODES or backend == "cudagraphs" or bool((options or {}).get("triton.cudagraphs"))
    )


def _check_perturbations(perturbations: BatchedPerturbationConfig, state: ForwardState) -> None:
    if not isinstance(perturbations, BatchedPerturbationConfig):
        kind = type(perturbations).__name__
        raise DtypeError(f"The perturbations are a {kind}; expected a BatchedPerturbationConfig.")
    batch = next(iter(state.hidden.values())).shape[0]
    if len(perturbations.perturbations) not in (1, batch):
        raise InputError(
            f"There are {len(perturbations.perturbations)} perturbation configs for a batch of {batch}; "
            "expected one a sample, or one for all."
        )


def _x0(
    modality: Modality | None, velocity: torch.Tensor | None, sigma: float | torch.Tensor
) -> torch.Tensor | None:
    if modality is None or velocity is None:
        return None
    return to_denoised(modality.latent, velocity, sigma)


def _beginning(call: TransformerCall) -> tuple[int, ...]:
    """What tells calls that begin alike: the very same tensors, but for those of texts."""
    modalities = [{"latent": None} if m is None else vars(m) for m in (call.video, call.audio)]
    return tuple(id(value) for m in modalities for name, value in m.items() if name not in TEXT_FIELDS)


def _unstack(pair: TokenPair, count: int) -> list[TokenPair]:
    """The results of the calls of a stack."""
    video, audio = ([None] * count if x is None else x.chunk(count) for x in pair)
    return list(zip(video, audio))


def _are_equal(
    key: Sequence[tuple[torch.dtype, torch.Tensor]], other: Sequence[tuple[torch.dtype, torch.Tensor]]
) -> bool:
    """Whether two lists hold the same dtypes, and positions of the same values on the same devices."""
    return len(key) == len(other) and all(
        a_type is b_type and a.device == b.device and a.dtype is b.dtype and torch.equal(a, b)
        for (a_type, a), (b_type, b) in zip(key, other)
    )


class X0Model(nn.Module):
    """A velocity model that returns the denoised tokens, x0 = latent - velocity * timestep.

    max_batch_size: how many calls `run_passes` computes at once; None: all if they have few tokens, else one.
    """

    def __init__(self, velocity_model: LTXModel) -> None:
        super().__init__()
        self.velocity_model = velocity_model
        self.max_batch_size: int | None = None
        self._rope: tuple[list[tuple[torch.dtype, torch.Tensor]], Mapping[str, RopeTables]] = ([], {})
        self._kept: Remembered | None = None

    @property
    def num_blocks(self) -> int:
        return self.velocity_model.num_blocks

    @contextmanager
    def one_stage(self, with_texts: bool = False) -> Iterator[X0Model]:
        """While it is open, what is made of the very same texts and masks is made once; weights may not change.

        with_texts: keys and values of texts too, unless each step has its own; see `LTXModel.bytes_of_texts`.
        """
        self._kept = Remembered(with_texts)
        try:
            yield self
        finally:
            self._kept = None

    def forward(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> TokenPair:
        """Denoised video and audio tokens, shaped as the latents; see `LTXModel.forward`."""
        return self.run_passes([TransformerCall(video, audio, perturbations)])[0]

    def run_passes(self, calls: Sequence[TransformerCall]) -> list[TokenPair]:
        """The results of each call, as if each were alone, `max_batch_size` of them as one batch.

        The batches go through the blocks side by side; calls that differ in perturbations only share what
        `LTXModel.run_blocks` lets them share, if they are in batches of their own.
        """
        size = self.max_batch_size or (len(calls) if calls[0].tokens <= STACKED_TOKENS else 1)
        if size == 1 or not can_stack(calls):
            return self._side_by_side(calls, self._kept)
        chunks = [calls[start : start + size] for start in range(0, len(calls), size)]
        pairs = self._side_by_side([stack(chunk) for chunk in chunks])
        return [result for chunk, pair in zip(chunks, pairs) for result in _unstack(pair, len(chunk))]

    def _side_by_side(
        self, calls: Sequence[TransformerCall], kept: Remembered | None = None
    ) -> list[TokenPair]:
        model = self.velocity_model
        kept = Remembered() if kept is None else kept
        begun: dict[tuple[int, ...], ForwardState] = {}
        states = []
        for call in calls:
            begin = _beginning(call)
            states.append(self._prepare(call, kept, begun.get(begin)))
            begun[begin] = states[-1]
        ends = model.run_blocks(states, [call.perturbations for call in calls])
        return [self.denoised(call.video, call.audio, model.finish(end)) for call, end in zip(calls, ends)]

    def _prepare(self, call: TransformerCall, kept: Remembered, begun: ForwardState | None) -> ForwardState:
        # Not for each pass: positions are compared, which waits for the device.
        rope = self._rope_tables(call.video, call.audio) if begun is None else None
        return self.velocity_model.prepare(call.video, call.audio, rope, kept, begun)

    def _rope_tables(self, video: Modality | None, audio: Modality | None) -> Mapping[str, RopeTables]:
        """The rotary tables, computed when the positions are others than last time: once a stage."""
        key = [(m.latent.dtype, m.positions) for m in (video, audio) if m is not None]
        known, tables = self._rope
        if not _are_equal(key, known):
            with torch.inference_mode(False):  # a table made inside it could not serve training later
                tables = self.velocity_model.rope_tables(video, audio)
            # Copies, as positions may be changed in place. Both at once: an error in between would part them.
            self._rope = [(dtype, positions.clone()) for dtype, positions in key], tables
        return tables

    @staticmethod
    def denoised(video: Modality | None, audio: Modality | None, velocities: TokenPair) -> TokenPair:
        """The denoised tokens for given velocities; tokens of timestep 0 are their latents, unchanged."""

        def per_token(modality: Modality | None) -> torch.Tensor | float:
            return 0.0 if modality is None else modality.timesteps.reshape(len(modality.latent), -1, 1)

        return _x0(video, velocities[0], per_token(video)), _x0(audio, velocities[1], per_token(audio))


class LegacyX0Model(nn.Module):
    """`X0Model` with one noise level for all tokens, given in the call."""

    def __init__(self, velocity_model: LTXModel) -> None:
        super().__init__()
        self.velocity_model = velocity_model

    def forward(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: BatchedPerturbationConfig | None,
        sigma: float,
    ) -> TokenPair:
        """Denoised video and audio tokens, shaped as the latents; see `LTXModel.forward`."""
        video_velocity, audio_velocity = self.velocity_model(video, audio, perturbations)
        return _x0(video, video_velocity, sigma), _x0(audio, audio_velocity, sigma)
