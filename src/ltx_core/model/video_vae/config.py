"""The ``vae`` section of a checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ltx_core.config import Count, parse_config, section_of
from ltx_core.errors import ConfigError, MissingKeyError, UnsupportedConfigError
from ltx_core.model.video_vae.enums import LogVarianceType, NormLayerType, PaddingModeType

CONVOLUTIONAL = ("CausalVideoAutoencoder", None)


@dataclass(frozen=True)
class Block:
    """One entry of a block list: its name and parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_layers(self) -> int:
        if "num_layers" not in self.params:
            raise MissingKeyError(f"config.vae: the block {self.name} lacks num_layers.")
        return self._whole("num_layers", self.params["num_layers"], 0)

    def multiplier(self, default: int) -> int:
        return self._whole("multiplier", self.params.get("multiplier", default), 1)

    def _whole(self, key: str, value: Any, least: int) -> int:
        if not isinstance(value, int | float) or value % 1 or value < least:
            raise ConfigError(
                f"config.vae: {key} of the block {self.name} is {value!r}; expected a whole number, "
                f"at least {least}."
            )
        return int(value)

    def flag(self, name: str) -> bool:
        return bool(self.params.get(name, False))


@dataclass(frozen=True)
class VideoVAEConfig:
    """What encoder and decoder share. Keys without a field are not read by either.

    decoder_bottleneck_channels: the decoder's first width; None: 8 x base, as in all published files.
    """

    dims: Any = 3
    in_channels: Count = 3
    out_channels: Count = 3
    latent_channels: Count = 128
    spatial_padding_mode: PaddingModeType | None = None
    encoder_blocks: Any = ()
    decoder_blocks: Any = ()
    patch_size: Count = 4
    norm_layer: NormLayerType = NormLayerType.PIXEL_NORM
    latent_log_var: LogVarianceType = LogVarianceType.UNIFORM
    causal_decoder: bool = False
    timestep_conditioning: bool = True
    decoder_base_channels: Count = 128
    decoder_bottleneck_channels: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VideoVAEConfig:
        """Read ``config["vae"]``; a missing section is all defaults."""
        section = section_of(config, "vae")
        if section.get("_class_name") not in CONVOLUTIONAL:
            raise UnsupportedConfigError(
                f"config.vae._class_name is {section['_class_name']!r}; only the convolutional video VAE "
                "(CausalVideoAutoencoder) is implemented."
            )
        parsed = parse_config(cls, section, "config.vae")
        if parsed.dims != 3:
            raise ConfigError(f"unsupported dimensions: config.vae.dims is {parsed.dims!r}, expected 3")
        return parsed


def parse_blocks(entries: Any) -> tuple[Block, ...]:
    """A configuration's block list; an integer parameter stands for num_layers.

    Raises `ConfigError` for what is no list of [name, parameters].
    """
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"config.vae: a block list is {entries!r}; expected [[name, parameters], ...].")
    blocks = []
    for entry in entries:
        match entry:
            case [str(name), int(layers)]:
                blocks.append(Block(name, {"num_layers": layers}))
            case [str(name), Mapping() as params]:
                blocks.append(Block(name, dict(params)))
            case _:
                raise ConfigError(f"config.vae: a block is {entry!r}; expected [name, parameters].")
    return tuple(blocks)
