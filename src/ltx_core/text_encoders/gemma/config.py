"""The Gemma 3 12B configuration that the published LTX-2 checkpoints were trained with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Gemma3RopeScaling:
    """How the full-attention layers stretch their rotary positions."""

    factor: float = 8.0
    rope_type: str = "linear"


@dataclass(frozen=True)
class Gemma3TextConfig:
    """The language model."""

    attention_bias: bool = False
    attention_dropout: float = 0.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    hidden_size: int = 3840
    initializer_range: float = 0.02
    intermediate_size: int = 15360
    max_position_embeddings: int = 131072
    model_type: str = "gemma3_text"
    num_attention_heads: int = 16
    num_hidden_layers: int = 48
    num_key_value_heads: int = 8
    query_pre_attn_scalar: int = 256
    rms_norm_eps: float = 1e-6
    rope_local_base_freq: float = 10000.0
    rope_scaling: Gemma3RopeScaling = field(default_factory=Gemma3RopeScaling)
    rope_theta: float = 1000000.0
    sliding_window: int = 1024
    sliding_window_pattern: int = 6
    vocab_size: int = 262208


@dataclass(frozen=True)
class Gemma3VisionConfig:
    """The SigLIP vision tower."""

    attention_dropout: float = 0.0
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_size: int = 1152
    image_size: int = 896
    intermediate_size: int = 4304
    layer_norm_eps: float = 1e-6
    model_type: str = "siglip_vision_model"
    num_attention_heads: int = 16
    num_channels: int = 3
    num_hidden_layers: int = 27
    patch_size: int = 14
    vision_use_head: bool = False


@dataclass(frozen=True)
class Gemma3ConfigData:
    """The multimodal model, in the fields of a ``config.json``."""

    architectures: tuple[str, ...] = ("Gemma3ForConditionalGeneration",)
    boi_token_index: int = 255999
    eoi_token_index: int = 256000
    eos_token_id: tuple[int, ...] = (1, 106)
    image_token_index: int = 262144
    initializer_range: float = 0.02
    mm_tokens_per_image: int = 256
    model_type: str = "gemma3"
    text_config: Gemma3TextConfig = field(default_factory=Gemma3TextConfig)
    vision_config: Gemma3VisionConfig = field(default_factory=Gemma3VisionConfig)

    def to_dict(self) -> dict[str, Any]:
        """As parsed from JSON: nested dicts, and lists for tuples."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


GEMMA3_CONFIG_FOR_LTX = Gemma3ConfigData()
