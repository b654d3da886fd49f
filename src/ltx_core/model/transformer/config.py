"""The architecture of a transformer as a checkpoint's configuration states it, and stream by stream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.attention import AttentionFunction
from ltx_core.model.transformer.rope import DEFAULT_MAX_POS, LTXRopeType


class LTXModelType(Enum):
    """Which streams a model has."""

    AudioVideo = "ltx av model"
    VideoOnly = "ltx video only model"
    AudioOnly = "ltx audio only model"

    def is_video_enabled(self) -> bool:
        return self is not LTXModelType.AudioOnly

    def is_audio_enabled(self) -> bool:
        return self is not LTXModelType.VideoOnly


@dataclass(frozen=True)
class StreamConfig:
    """One stream: "video", whose parameters have no prefix, or "audio", whose parameters have "audio_"."""

    name: str
    prefix: str
    heads: int
    head_dim: int
    in_channels: int
    out_channels: int
    context_dim: int
    max_pos: tuple[int, ...]
    ff_bias: bool

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def check(self, rope_type: LTXRopeType) -> None:
        """Raise `ConfigError` for widths that the network cannot have."""
        if self.context_dim != self.dim:
            raise ConfigError(
                f"{self.prefix}cross_attention_dim is {self.context_dim}; expected {self.dim}, "
                f"the width of the {self.name} stream ({self.heads} heads x {self.head_dim})."
            )
        if self.dim % 2 or (rope_type is LTXRopeType.SPLIT and self.head_dim % 2):
            raise ConfigError(
                f"{self.prefix}attention_head_dim is {self.head_dim}; expected an even number, "
                "rotary positions turn pairs of channels."
            )


@dataclass(frozen=True)
class TransformerConfig:
    """The architecture of an `LTXModel`. Names and defaults are those of the ``transformer`` configuration,
    except `double_precision_rope`, which there is ``frequencies_precision == "float64"``.

    cross_attention_dim and audio_cross_attention_dim: text width, which must equal the stream's width.
    positional_embedding_max_pos: extent of RoPE in seconds, pixel rows, pixel columns.
    timestep_scale_multiplier: noise levels are multiplied by it before embedding;
    av_ca_timestep_scale_multiplier: the same for the gates of audio-video attention.
    cross_attention_adaln: modulate text attention by the noise level (LTX-2.3 and later);
    use_prompt_adaln_single: the text features too.
    use_keyframes_abs_pos_embedding: mark tokens that encode a single pixel frame (LTX-2.5).
    """

    num_attention_heads: int = 32
    attention_head_dim: int = 128
    in_channels: int = 128
    out_channels: int = 128
    num_layers: int = 48
    cross_attention_dim: int = 4096
    norm_eps: float = 1e-6
    attention_type: AttentionFunction = AttentionFunction.DEFAULT
    positional_embedding_theta: float = 10000.0
    positional_embedding_max_pos: tuple[int, ...] = DEFAULT_MAX_POS
    timestep_scale_multiplier: float = 1000
    use_middle_indices_grid: bool = True
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64
    audio_in_channels: int = 128
    audio_out_channels: int = 128
    audio_cross_attention_dim: int = 2048
    audio_positional_embedding_max_pos: tuple[int, ...] = (20,)
    av_ca_timestep_scale_multiplier: float = 1
    rope_type: LTXRopeType = LTXRopeType.SPLIT
    double_precision_rope: bool = False
    apply_gated_attention: bool = False
    cross_attention_adaln: bool = False
    use_prompt_adaln_single: bool = True
    ff_bias: bool = True
    audio_ff_bias: bool = True
    use_keyframes_abs_pos_embedding: bool = False

    @property
    def num_modulations(self) -> int:
        """Vectors per block: shift, scale, gate of self-attention and feed-forward, and of text attention."""
        return 9 if self.cross_attention_adaln else 6

    @property
    def texts_follow_noise(self) -> bool:
        """Whether blocks read a text differently at every noise level (LTX-2.3)."""
        return self.cross_attention_adaln and self.use_prompt_adaln_single

    def streams(self, model_type: LTXModelType) -> tuple[StreamConfig, ...]:
        """The streams of a model of this type, video first. Raises `ConfigError` if they cannot be built."""
        streams = []
        if model_type.is_video_enabled():
            streams.append(self._video())
        if model_type.is_audio_enabled():
            streams.append(self._audio())
        for stream in streams:
            stream.check(self.rope_type)
        if len({stream.heads for stream in streams}) > 1:
            raise ConfigError(
                f"num_attention_heads is {self.num_attention_heads} and audio_num_attention_heads is "
                f"{self.audio_num_attention_heads}; an audio-video model needs as many for both."
            )
        return tuple(streams)

    def _video(self) -> StreamConfig:
        return StreamConfig(
            name="video",
            prefix="",
            heads=self.num_attention_heads,
            head_dim=self.attention_head_dim,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            context_dim=self.cross_attention_dim,
            max_pos=tuple(self.positional_embedding_max_pos),
            ff_bias=self.ff_bias,
        )

    def _audio(self) -> StreamConfig:
        return StreamConfig(
            name="audio",
            prefix="audio_",
            heads=self.audio_num_attention_heads,
            head_dim=self.audio_attention_head_dim,
            in_channels=self.audio_in_channels,
            out_channels=self.audio_out_channels,
            context_dim=self.audio_cross_attention_dim,
            max_pos=tuple(self.audio_positional_embedding_max_pos),
            ff_bias=self.audio_ff_bias,
        )
