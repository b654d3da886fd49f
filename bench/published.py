"""The published LTX-2.3 configuration cut to a few blocks, with random weights, in the official format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("ltx-2.3.json")
TEXT_WIDTH = 320  # values per token of the tiny Gemma


def cut(layers: int) -> dict[str, Any]:
    """The published configuration with `layers` transformer blocks and one block in each text connector."""
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    config["transformer"] |= {
        "num_layers": layers,
        "connector_num_layers": 1,
        "audio_connector_num_layers": 1,
    }
    return config


def write(path: Path, parts: dict[str, Any], layers: int, dtype: str, device: str = "cpu") -> int:
    """Write the components {name: configurator} to one file; the number of their parameters.

    Names are those of `ltx_core.loader.save_checkpoint`. Every configurator builds on the meta device first.
    device: what draws the weights; a GPU draws billions in no time.
    """
    import torch

    from ltx_core.loader import save_checkpoint
    from ltx_core.text_encoders.gemma.feature_extractor import size_projections
    from ltx_pipelines.miniature.random_model import randomize

    config, generator = cut(layers), torch.Generator(device).manual_seed(0)
    components = {}
    for name, part in parts.items():
        with torch.device("meta"):
            model = part.from_config(config)
        size_projections(model, TEXT_WIDTH)
        components[name] = randomize(model.to(getattr(torch, dtype)).to_empty(device="cpu"), generator)
    save_checkpoint(path, components, config, "2.3.0", getattr(torch, dtype))
    return sum(tensor.numel() for model in components.values() for tensor in model.state_dict().values())
