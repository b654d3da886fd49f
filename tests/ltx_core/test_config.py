"""What configurators say to files without a configuration."""

import pytest

from ltx_core.config import Configurator
from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.configurators import (
    AudioDecoderConfigurator,
    AudioEncoderConfigurator,
    VocoderConfigurator,
)
from ltx_core.model.transformer.model_configurator import (
    LTXAudioOnlyModelConfigurator,
    LTXModelConfigurator,
    LTXVideoOnlyModelConfigurator,
)
from ltx_core.model.upsampler.model import LatentUpsamplerConfigurator
from ltx_core.model.video_vae.configurators import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import EmbeddingsProcessorConfigurator


@pytest.mark.parametrize(
    "configurator",
    [
        AudioDecoderConfigurator,
        AudioEncoderConfigurator,
        EmbeddingsProcessorConfigurator,
        LTXAudioOnlyModelConfigurator,
        LTXModelConfigurator,
        LTXVideoOnlyModelConfigurator,
        LatentUpsamplerConfigurator,
        VideoDecoderConfigurator,
        VideoEncoderConfigurator,
        VocoderConfigurator,
    ],
)
def test_metadata_without_a_configuration_is_refused(configurator: type[Configurator]):
    with pytest.raises(ConfigError, match=r"holds \['format'\]; expected a parsed 'config'"):
        configurator.from_metadata({"format": "pt"})
