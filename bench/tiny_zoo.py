"""A folder of tiny checkpoints in the official format, prepared so that both implementations read it."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from unittest import mock

# Of each file that the pipelines need: the name in a zoo that we write, then a pattern for other zoos.
PATTERNS = {
    "model": ("model.safetensors", "*ltx2-2.3.safetensors"),
    "upsampler": ("upsampler.safetensors", "*upscaler-x2*.safetensors"),
    "distilled_lora": ("distilled-lora.safetensors", "*2.3-distilled-lora.safetensors"),
    "ic_lora": ("ic-lora.safetensors", "*2.3-ic-lora.safetensors"),
}


def prepare(source: Path | None, target: Path, dtype: str) -> dict[str, str]:
    """Write a zoo to `target` and return {role: path}.

    source: a folder of checkpoints; None takes the project's own random model. dtype: "float32" widens every
    weight, so that a float32 run reads exactly the values of the bfloat16 files; "bfloat16" copies them.
    """
    (target / "gemma").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if source is None:
            source = Path(scratch) / "zoo"
            _write_random(source)
        for role, patterns in PATTERNS.items():
            copy(_find(source, patterns), target / f"{role}.safetensors", dtype)
        for path in (source / "gemma").iterdir():
            if path.suffix == ".safetensors":
                copy(path, target / "gemma" / path.name, dtype)
            else:
                shutil.copy(path, target / "gemma" / path.name)
    # The official package looks for this file and then reads tokenizer.json beside it.
    (target / "gemma" / "tokenizer.model").touch()
    roles = {role: str(target / f"{role}.safetensors") for role in PATTERNS}
    return roles | {"gemma": str(target / "gemma")}


def _find(folder: Path, patterns: tuple[str, ...]) -> Path:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            return path
    raise SystemExit(f"{folder} holds no file named like {' or '.join(patterns)}.")


def copy(source: Path, target: Path, dtype: str) -> None:
    """Copy a safetensors file, its bfloat16 tensors widened if `dtype` is "float32"."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no iterator)
        metadata = file.metadata()
    if dtype == "float32":
        tensors = {k: t.float() if t.dtype == torch.bfloat16 else t for k, t in tensors.items()}
    save_file(tensors, target, metadata)


def _write_random(folder: Path) -> None:
    """The project's random model; the official vocoder knows blocks of three dilations only."""
    from safetensors.torch import load_file, save_file

    from ltx_pipelines.miniature import random_model

    config = json.loads(files("ltx_pipelines.miniature").joinpath("random_model.json").read_text())
    for vocoder in (config["model"]["vocoder"]["vocoder"], config["model"]["vocoder"]["bwe"]):
        vocoder["resblock_dilation_sizes"] = [[1, 3, 5] for _ in vocoder["resblock_dilation_sizes"]]
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "random_model.json").write_text(json.dumps(config))
        with mock.patch.object(random_model, "files", return_value=Path(scratch)):
            random_model.write_random_model(folder)
    lora = load_file(folder / "distilled-lora.safetensors")
    save_file(lora, folder / "ic-lora.safetensors", {"reference_downscale_factor": "2"})
