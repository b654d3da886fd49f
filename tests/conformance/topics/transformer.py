"""Transformer goldens: forward passes, rotary tables, timestep features, full-size shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ltx_core.guidance import BatchedPerturbationConfig, Perturbation, PerturbationConfig, PerturbationType
from ltx_core.model.common.timesteps import timestep_features
from ltx_core.model.transformer import (
    LTXAudioOnlyModelConfigurator,
    LTXModel,
    LTXModelConfigurator,
    LTXVideoOnlyModelConfigurator,
    Modality,
    X0Model,
)
from ltx_core.model.transformer.rope import (
    LTXRopeType,
    apply_rotary_emb,
    generate_freq_grid_np,
    generate_freq_grid_pytorch,
    precompute_freqs_cis,
)
from tests.conformance.harness import (
    Case,
    Check,
    Context,
    equal,
    near_abs,
    near_max,
    near_norm,
    read_json,
    read_tensors,
)

PREFIX = "model.diffusion_model."
GRID_ULP = 2e-3  # what one ulp of a float32 grid (the platform's pow) does to cos and sin


@dataclass(frozen=True)
class Golden:
    """A case's description, its tensors and the folder with the models."""

    spec: dict[str, Any]
    tensors: Mapping[str, torch.Tensor]
    folder: Path
    context: Context


def recognises(folder: Path) -> bool:
    return any(read_json(path).get("kind") in KINDS for path in folder.glob("*.json"))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    described = {path.stem for path in folder.glob("*.json")}
    for path in sorted(folder.glob("*.json")):
        yield Case(path.stem, lambda path=path: _run(path, context))
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem not in described and not path.stem.startswith("model_"):
            yield Case(
                path.stem, lambda path=path: [Check("json", False, f"{path.name} has no json beside it")]
            )


def _run(path: Path, context: Context) -> Iterable[Check]:
    spec = read_json(path)
    if spec.get("kind") not in KINDS:
        return [Check("kind", False, f"unknown kind {spec.get('kind')!r}")]
    tensors = path.with_suffix(".safetensors")
    golden = Golden(
        spec, read_tensors(tensors, context.device) if tensors.is_file() else {}, path.parent, context
    )
    return KINDS[spec["kind"]](golden)


def _forward(golden: Golden) -> Iterator[Check]:
    spec = golden.spec
    model = _load(golden)
    inputs = (_modality(golden, "video"), _modality(golden, "audio"), _perturbations(spec["perturbations"]))
    with torch.inference_mode():
        results = {"velocity": model(*inputs)}
        if spec["x0"]:
            results["x0"] = X0Model(model)(*inputs)
    for kind, pair in results.items():
        for name, got in zip(("video", "audio"), pair):
            key = f"out.{kind}.{name}"
            if got is None or key not in golden.tensors:
                yield equal(f"{key} is there", got is not None, key in golden.tensors)
            elif spec["dtype"] == "float32":
                yield near_max(key, got, golden.tensors[key], golden.context.relax(spec["tolerance"]))
            else:
                yield near_norm(key, got, golden.tensors[key], spec["tolerance"])
    expected = {key for key in golden.tensors if key.startswith("out.")}
    compared = {f"out.{kind}.{name}" for kind in results for name in ("video", "audio")}
    yield equal("outputs not compared", expected - compared, set())


def _configurator(build: str) -> type[LTXModelConfigurator]:
    """The configurator a case names, or the one that does what it describes."""
    if "AudioOnly" in build:
        return LTXAudioOnlyModelConfigurator
    by_name = {c.__name__: c for c in (LTXModelConfigurator, LTXVideoOnlyModelConfigurator)}
    return by_name[build]


def _load(golden: Golden) -> LTXModel:
    """The model of a case in its dtype, from the checkpoint's tensors that the model knows."""
    path, dtype = golden.folder / golden.spec["model"], getattr(torch, golden.spec["dtype"])
    with safe_open(str(path), framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    with torch.device("meta"):
        model = _configurator(golden.spec["build"]).from_config(config)
    tensors = read_tensors(path, golden.context.device)
    known = {k.removeprefix(PREFIX): v.to(dtype) for k, v in tensors.items() if k.startswith(PREFIX)}
    missing, _ = model.load_state_dict(known, strict=False, assign=True)
    if missing:
        raise AssertionError(f"{path.name} lacks {missing}")
    return model.eval()


def _modality(golden: Golden, name: str) -> Modality | None:
    if golden.spec[name] is None:
        return None
    prefix = f"in.{name}."
    fields = {k.removeprefix(prefix): v for k, v in golden.tensors.items() if k.startswith(prefix)}
    return Modality(**fields, enabled=golden.spec[name]["enabled"])


def _perturbations(samples: list[list[dict]] | None) -> BatchedPerturbationConfig | None:
    if samples is None:
        return None
    return BatchedPerturbationConfig(
        [
            PerturbationConfig([Perturbation(PerturbationType(p["type"]), p["blocks"]) for p in s])
            for s in samples
        ]
    )


def _rope(golden: Golden) -> Iterator[Check]:
    spec, tensors, tolerance = golden.spec, golden.tensors, golden.context.relax(golden.spec["tolerance"])
    double = spec["frequencies_precision"] == "float64"
    generator = generate_freq_grid_np if double else generate_freq_grid_pytorch
    rope_type, theta, max_pos = LTXRopeType(spec["rope_type"]), spec["theta"], spec["max_pos"]
    grid = generator(theta, len(max_pos), spec["dim"])
    wanted_grid = tensors["out.freq_grid"].cpu()
    yield near_abs("grid (relative)", grid / wanted_grid, torch.ones_like(grid), 1e-7 if double else 5e-7)
    if not torch.equal(grid, wanted_grid):
        tolerance = max(tolerance, GRID_ULP)
    table = precompute_freqs_cis(
        tensors["in.positions"],
        spec["dim"],
        out_dtype=getattr(torch, spec["out_dtype"]),
        theta=theta,
        max_pos=max_pos,
        use_middle_indices_grid=spec["use_middle_indices_grid"],
        num_attention_heads=spec["num_attention_heads"],
        rope_type=rope_type,
        freq_grid_generator=generator,
    )
    for name, got in zip(("cos", "sin"), table):
        yield near_abs(name, got, tensors[f"out.{name}"], tolerance)
    if "out.rotated" in tensors:
        rotated = apply_rotary_emb(tensors["in.x"], table, rope_type)
        largest = max(1.0, tensors["in.x"].abs().max().item())
        yield near_abs("rotated", rotated, tensors["out.rotated"], tolerance * largest)


def _timestep_embedding(golden: Golden) -> Iterator[Check]:
    got = timestep_features(golden.tensors["in.scaled_timesteps"])
    yield near_abs(
        "embedding", got, golden.tensors["out.embedding"], golden.context.relax(golden.spec["tolerance"])
    )


def _shapes(golden: Golden) -> Iterator[Check]:
    spec = golden.spec
    with torch.device("meta"):
        model = LTXModelConfigurator.from_config(spec["config"])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    outside = {key: shape for key, shape in shapes.items() if not key.startswith("transformer_blocks.")}
    first = {key: shape for key, shape in shapes.items() if key.startswith("transformer_blocks.0.")}
    yield equal("global", outside, spec["global"])
    yield equal("block 0", first, spec["block0"])
    yield equal("blocks", len(model.transformer_blocks), spec["num_layers"])
    yield equal("tensors", len(shapes), spec["num_tensors"])
    yield equal("parameters", sum(p.numel() for p in model.parameters()), spec["num_parameters"])
    block = sum(p.numel() for p in model.transformer_blocks[0].parameters())
    yield equal("parameters of a block", block, spec["num_parameters_per_block"])


KINDS: dict[str, Callable[[Golden], Iterable[Check]]] = {
    "forward": _forward,
    "rope": _rope,
    "timestep_embedding": _timestep_embedding,
    "shapes": _shapes,
}
