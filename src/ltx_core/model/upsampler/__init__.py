"""The latent upsampler."""

from ltx_core.model.upsampler.model import LatentUpsampler, LatentUpsamplerConfigurator, upsample_video

__all__ = ["LatentUpsampler", "LatentUpsamplerConfigurator", "upsample_video"]
