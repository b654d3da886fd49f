"""The conditioning items."""

from ltx_core.conditioning.types.attention_strength_wrapper import ConditioningItemAttentionStrengthWrapper
from ltx_core.conditioning.types.keyframe_cond import (
    VideoConditionByKeyframeIndex,
    VideoGeneratedKeyframeSlots,
)
from ltx_core.conditioning.types.latent_cond import VideoConditionByLatentIndex, VideoConditionByMask
from ltx_core.conditioning.types.noise_mask_cond import TemporalRegionMask
from ltx_core.conditioning.types.reference_cond import (
    AudioConditionByReferenceLatent,
    VideoConditionByReferenceLatent,
)

__all__ = [
    "AudioConditionByReferenceLatent",
    "ConditioningItemAttentionStrengthWrapper",
    "TemporalRegionMask",
    "VideoConditionByKeyframeIndex",
    "VideoConditionByLatentIndex",
    "VideoConditionByMask",
    "VideoConditionByReferenceLatent",
    "VideoGeneratedKeyframeSlots",
]
