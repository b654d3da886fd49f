"""From a checkpoint's configuration to the transformer it describes, on whatever device is current."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from ltx_core.config import Configurator, parse_config, section_of
from ltx_core.errors import MissingKeyError
from ltx_core.model.transformer.config import LTXModelType, TransformerConfig
from ltx_core.model.transformer.feed_forward import CaptionProjection
from ltx_core.model.transformer.model import LTXModel
from ltx_core.sd_ops import LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP, LTXV_MODEL_COMFY_RENAMING_MAP
from ltx_core.utils import check_config_value

__all__ = [
    "LTXAudioOnlyModelConfigurator",
    "LTXModelConfigurator",
    "LTXVideoOnlyModelConfigurator",
    "LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP",
    "LTXV_MODEL_COMFY_RENAMING_MAP",
]

SECTION = "config.transformer"

# What the code is, not a choice: a checkpoint that says otherwise, or does not say, is another model's.
EXPECTED = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_middle_indices_grid": True,
}
EXPECTED_AUDIO_VIDEO = {
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
}
# Of a stream with a caption projection the configuration must state these.
PROJECTED_SIZES = ("num_attention_heads", "attention_head_dim")


@dataclasses.dataclass(frozen=True)
class _Captions:
    """Width of the text features that a model with caption projections inside is given."""

    caption_channels: int


class LTXModelConfigurator(Configurator[LTXModel]):
    """Builds the audio-video model. Of the configuration only the object ``transformer`` is read.

    Raises `ConfigError` (a ValueError) for a value this model does not have, and for a missing one without
    default; keys it does not know are ignored, and null is as good as absent.
    """

    model_type: ClassVar[LTXModelType] = LTXModelType.AudioVideo

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LTXModel:
        """config: the parsed ``config`` metadata of a checkpoint."""
        section = {k: v for k, v in section_of(config, "transformer").items() if v is not None}
        parsed = parse_config(TransformerConfig, section, SECTION)
        double = section.get("frequencies_precision") == "float64"
        parsed = dataclasses.replace(parsed, double_precision_rope=double)
        projections = cls._caption_projections(section, parsed)
        cls._check(section)
        return LTXModel(model_type=cls.model_type, **projections, **vars(parsed))

    @classmethod
    def _caption_projections(
        cls, section: Mapping[str, Any], parsed: TransformerConfig
    ) -> dict[str, CaptionProjection]:
        """The projections of text features that LTX-2.0 has inside; later models have none here."""
        if section.get("caption_proj_before_connector", False):
            return {}
        channels = parse_config(_Captions, section, SECTION).caption_channels
        # Asked of streams of default sizes: with a default in place of a missing one, these might not fit.
        expected = TransformerConfig().streams(cls.model_type)
        for key in (f"{s.prefix}{size}" for s in expected for size in PROJECTED_SIZES):
            if key not in section:
                raise MissingKeyError(f"{SECTION}.{key} is missing; expected int.")
        streams = parsed.streams(cls.model_type)
        return {f"{s.prefix}caption_projection": CaptionProjection(channels, s.dim) for s in streams}

    @classmethod
    def _check(cls, section: Mapping[str, Any]) -> None:
        expected = dict(EXPECTED)
        if cls.model_type is LTXModelType.AudioVideo:
            expected |= EXPECTED_AUDIO_VIDEO
        for key, value in expected.items():
            check_config_value(section, key, value)


class LTXVideoOnlyModelConfigurator(LTXModelConfigurator):
    """Builds a model of the video stream alone; reads no audio keys but checks those that are there."""

    model_type = LTXModelType.VideoOnly


class LTXAudioOnlyModelConfigurator(LTXModelConfigurator):
    """Builds a model of the audio stream alone."""

    model_type = LTXModelType.AudioOnly
