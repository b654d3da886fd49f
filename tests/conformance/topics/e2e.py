"""Complete pipeline calls on tiny official checkpoints, compared at every stage and in pixels and samples."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
from ltx_core.model.video_vae import SpatialTilingConfig, TemporalTilingConfig, TilingConfig
from ltx_pipelines.events import Event
from ltx_pipelines.utils.args import ImageConditioningInput
from tests.conformance.harness import Case, Check, Context, equal, errors, near_norm, read_json, read_tensors

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def recognises(folder: Path) -> bool:
    return (folder / "cases").is_dir() and (folder / "tolerances.json").is_file()


def cases(folder: Path, context: Context) -> Iterator[Case]:
    tolerances = read_json(folder / "tolerances.json")
    for path in sorted((folder / "cases").glob("*.json")):
        yield Case(path.stem, lambda path=path: _run(folder, path, tolerances, context))


def _run(folder: Path, path: Path, tolerances: dict, context: Context) -> Iterator[Check]:
    name, kind = path.stem.rsplit(".", 1)
    meta, want = read_json(path), read_tensors(path.with_suffix(".safetensors"))
    limits = {**tolerances[kind]["default"], **tolerances[kind].get("cases", {}).get(name, {})}
    pipeline_class = getattr(importlib.import_module(meta["module"]), meta["cls"])
    arguments = {key: _value(value, folder, want) for key, value in meta["init"].items()}
    pipeline = pipeline_class(**arguments, device=context.device, dtype=DTYPES[kind])
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def watch(event: Event) -> None:
        stage = event.stage.replace(" ", "")
        for stream, x0 in (("video", event.video_x0), ("audio", event.audio_x0)):
            if x0 is not None:
                seen[f"{stage}.{stream}.eval_denoised"].append(x0.cpu())
        if event.result is not None:
            for stream, state in zip(("video", "audio"), event.result):
                seen[f"{stage}.{stream}.latent"] = [state.latent.cpu()]

    call = {key: _value(value, folder, want) for key, value in meta["call"].items()}
    video, audio = pipeline(**call, callback=watch)
    frames = torch.cat(list(video)).cpu()
    compared = (
        key for key in want if key.startswith("stage") and key.endswith((".eval_denoised", ".latent"))
    )
    for key in sorted(compared):
        if key not in seen:
            yield Check(key, False, "not computed")
            continue
        parts = seen[key]
        got = torch.stack(parts) if key.endswith("eval_denoised") else parts[0]
        yield near_norm(key, got, want[key], context.relax(limits["latent"]))
    yield _video(frames, want["out.video"], limits["video"])
    yield near_norm("out.audio", audio.waveform, want["out.audio"], context.relax(limits["audio"]))
    yield equal("sampling_rate", audio.sampling_rate, meta["output"]["sampling_rate"])


def _video(got: torch.Tensor, want: torch.Tensor, limits: dict[str, float]) -> Check:
    if got.shape != want.shape:
        return Check("out.video", False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    off = (got.int() - want.int()).abs()
    measured = {
        "max_abs": off.max().item(),
        "differ": (off > 0).double().mean().item(),
        "mean_abs": off.double().mean().item(),
    }
    ok = all(measured[key] <= limit for key, limit in limits.items())
    shown = " ".join(f"{key} {value:.2g}" for key, value in measured.items())
    return Check("out.video", ok, f"rel {errors(got, want)[0]:.1e} {shown} (limits {limits})")


def _value(value: Any, folder: Path, tensors: dict[str, torch.Tensor]) -> Any:
    """The Python value that a JSON value of a case stands for."""
    if isinstance(value, str) and value.startswith(("assets/", "../")):
        return str((folder / value).resolve())
    if isinstance(value, list):
        items = [_value(item, folder, tensors) for item in value]
        is_pair = len(value) == 2 and isinstance(value[0], str) and not isinstance(value[1], str)
        return tuple(items) if is_pair else items
    if not isinstance(value, dict):
        return value
    if value["type"] == "TilingConfig":
        return _tiling(value)
    if value["type"] == "MultiModalGuiderFactory.from_dict":
        bins = {sigma: MultiModalGuiderParams(**params) for sigma, params in value["bins"]}
        return MultiModalGuiderFactory.from_dict(bins)
    fields = {key: _value(item, folder, tensors) for key, item in value.items() if key != "type"}
    match value["type"]:
        case "tensor":
            return tensors[fields["key"]]
        case "ImageConditioningInput":
            return ImageConditioningInput(**fields)
        case "LoraPathStrengthAndSDOps":
            fields["sd_ops"] = LTXV_LORA_COMFY_RENAMING_MAP
            return LoraPathStrengthAndSDOps(**fields)
        case "MultiModalGuiderParams":
            return MultiModalGuiderParams(**fields)
    raise ValueError(f"unknown argument type {value['type']!r}")


def _tiling(value: dict) -> TilingConfig:
    spatial, temporal = value.get("spatial_config"), value.get("temporal_config")
    return TilingConfig(
        spatial_config=SpatialTilingConfig(**spatial) if spatial else None,
        temporal_config=TemporalTilingConfig(**temporal) if temporal else None,
    )
