"""Latent upsamplers: the network alone, and between un-normalising and normalising."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ltx_core.loader import Checkpoint, build_model
from ltx_core.model.upsampler import LatentUpsamplerConfigurator, upsample_video
from ltx_core.model.video_vae import VAE_ENCODER_COMFY_KEYS_FILTER, VideoEncoderConfigurator
from tests.conformance.harness import Case, Check, Context, near_max, read_json, read_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def recognises(folder: Path) -> bool:
    return any("mid_channels" in read_json(p).get("config", {}) for p in sorted(folder.glob("*/case.json")))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    for path in sorted(folder.glob("*/case.json")):
        yield Case(path.parent.name, lambda p=path: _run(p.parent, read_json(p), context))


@torch.no_grad()
def _run(folder: Path, meta: dict, context: Context) -> Iterator[Check]:
    dtype = DTYPES[meta["build_dtype"]]
    tolerance = meta["checks"]["rel"]
    tolerance = context.relax(tolerance) if dtype is torch.float32 else tolerance
    io = read_tensors(folder / "io.safetensors", context.device)
    upsampler = build_model(
        LatentUpsamplerConfigurator, Checkpoint(folder / "model.safetensors"), None, context.device, dtype
    )
    latent = io["latent"].to(dtype)
    for call in meta["calls"]:
        if call["call"].startswith("LatentUpsampler"):
            got = upsampler(latent)
        elif call["call"].startswith("upsample_video"):
            vae = Checkpoint(folder / "vae.safetensors")
            key_map = VAE_ENCODER_COMFY_KEYS_FILTER
            encoder = build_model(VideoEncoderConfigurator, vae, key_map, context.device, dtype)
            got = upsample_video(latent, encoder, upsampler)
        else:
            yield Check(call["call"], False, "nobody knows how to make this call")
            continue
        yield near_max(call["output"], got, io[call["output"]], tolerance)
