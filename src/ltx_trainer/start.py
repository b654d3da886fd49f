"""What a run begins with: random weights for a configuration, or the weights of an official file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint, build_model
from ltx_core.sd_ops import SDOps
from ltx_trainer.config import RunConfig


def network_of(config: RunConfig) -> Mapping[str, Any]:
    """The model's configuration, from the run's file or from the file to start from."""
    if config.start is not None:
        return Checkpoint(config.start).config
    return config.network or {}


def version_of(config: RunConfig) -> str:
    """The model version that goes into the file."""
    begun = Checkpoint(config.start).model_version if config.start is not None else None
    return config.model_version or begun or "2.3.0"


def read_network(config: RunConfig, *sections: str) -> dict[str, Any]:
    """The `sections` of the model's configuration. Raises `ConfigError` for one that is not there."""
    network = network_of(config)
    where = "[network]" if config.start is None else config.start
    missing = [name for name in sections if not isinstance(network.get(name), Mapping)]
    if missing:
        raise ConfigError(f"{where} has no section {missing[0]!r}, which this task needs.")
    return {name: network[name] for name in sections}


def make_part(
    configurator: Any,
    keys: SDOps | None,
    config: RunConfig,
    network: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A trainable module: from the file to start from, in `dtype`, or with PyTorch's initial weights in float32."""
    if config.start is not None:
        module = build_model(configurator, Checkpoint(config.start), keys, "cpu", dtype)
        return module.requires_grad_(True)
    with seeded(config.seed):
        return configurator.from_config(network)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights drawn within follow from `seed`; PyTorch's random state is afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
