"""From JSON to typed sections: what serves as what, what is refused; files without a configuration."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ltx_core.config import Configurator, Count, parse_config
from ltx_core.errors import ConfigError, MissingKeyError
from ltx_core.model.audio_vae.configurators import (
    AudioDecoderConfigurator,
    AudioEncoderConfigurator,
    VocoderConfigurator,
)
from ltx_core.model.common.normalization import NormType
from ltx_core.model.transformer.model_configurator import (
    LTXAudioOnlyModelConfigurator,
    LTXModelConfigurator,
    LTXVideoOnlyModelConfigurator,
)
from ltx_core.model.upsampler.model import LatentUpsamplerConfigurator
from ltx_core.model.video_vae.configurators import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core.text_encoders.gemma.duration_head import DurationHeadConfigurator
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


@pytest.mark.parametrize(
    ("configurator", "path"),
    [
        (AudioDecoderConfigurator, "audio_vae"),
        (AudioEncoderConfigurator, "audio_vae.model.params.ddconfig"),
        (AudioEncoderConfigurator, "audio_vae.preprocessing.stft"),
        (DurationHeadConfigurator, "duration_head"),
        (EmbeddingsProcessorConfigurator, "transformer"),
        (LTXModelConfigurator, "transformer"),
        (VideoDecoderConfigurator, "vae"),
        (VideoEncoderConfigurator, "vae"),
        (VocoderConfigurator, "vocoder"),
        (VocoderConfigurator, "vocoder.bwe"),
    ],
)
@pytest.mark.parametrize("wrong", [[], "default", 3])
def test_a_section_that_is_no_object_is_refused_by_name(configurator: Any, path: str, wrong: Any):
    config = wrong
    for key in reversed(path.split(".")):
        config = {key: config}
    with pytest.raises(ConfigError, match=rf"config\.{re.escape(path)} is .*; expected an object"):
        configurator.from_config(config)


@pytest.mark.parametrize("configurator", [AudioEncoderConfigurator, AudioDecoderConfigurator])
def test_a_section_that_is_null_is_as_good_as_absent(configurator: type[Configurator]):
    config = {"audio_vae": {"model": None, "preprocessing": {"stft": None}}}
    with torch.device("meta"):
        assert configurator.from_config(configurator.completed(config, {})).sample_rate == 16000


def test_rates_of_another_type_are_refused():
    with pytest.raises(ConfigError, match="sample_rate is '16k'; expected int"):
        AudioEncoderConfigurator.from_config({"audio_vae": {"model": {"params": {"sampling_rate": "16k"}}}})


@dataclass(frozen=True)
class Section:
    width: int
    share: float = 1.0
    flag: bool = False
    sizes: tuple[int, ...] = ()
    norm: NormType = NormType.GROUP
    layers: int | None = None
    edge: NormType | None = None
    count: Count = 1
    counts: tuple[Count, ...] = ()
    other: Any = None


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("width", 48.0, 48),
        ("share", 2, 2.0),
        ("flag", True, True),
        ("sizes", [1, 2.0], (1, 2)),
        ("norm", "pixel", NormType.PIXEL),
        ("layers", None, None),
        ("layers", 3, 3),
        ("counts", [3, 1.0], (3, 1)),
        ("other", {"any": ["thing"]}, {"any": ["thing"]}),
    ],
)
def test_values_of_json_become_those_of_the_fields(key, value, parsed):
    section = parse_config(Section, {"width": 1, "not a field": 0, key: value}, "config.section")
    found = getattr(section, key)
    assert (found, type(found)) == (parsed, type(parsed))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("width", 1.5, "int"),
        ("width", True, "int"),
        ("width", "1", "int"),
        ("width", None, "int"),
        ("share", True, "float"),
        ("share", "1", "float"),
        ("flag", 1, "bool"),
        ("sizes", 3, "tuple[int, ...]"),
        ("norm", "batch", "one of 'group', 'pixel'"),
        ("layers", "many", "int | None"),
        ("edge", "batch", "one of 'group', 'pixel' | None"),
        ("count", 0, "a whole number, at least 1"),
        ("counts", 3, "tuple[a whole number, at least 1, ...]"),
    ],
)
def test_values_of_another_type_are_refused_by_name(key, value, expected):
    message = f"config.section.{key} is {value!r}; expected {expected}."
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_config(Section, {"width": 1, key: value}, "config.section")


def test_a_key_without_default_must_be_there():
    with pytest.raises(MissingKeyError, match=r"config.section.width is missing; expected int"):
        parse_config(Section, {"share": 1.0}, "config.section")
