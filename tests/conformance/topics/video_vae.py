"""Video VAE: encoders, decoders, statistics, tiled runs and the geometry of tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ltx_core.loader import Checkpoint, build_model
from ltx_core.model.video_vae import (
    VAE_DECODER_COMFY_KEYS_FILTER,
    VAE_ENCODER_COMFY_KEYS_FILTER,
    DimensionSizeConfig,
    SpatialTilingConfig,
    TemporalTilingConfig,
    TileSizeConfig,
    TilingConfig,
    VideoDecoderConfigurator,
    VideoEncoderConfigurator,
    decode_video,
    get_video_chunks_number,
)
from ltx_core.model.video_vae.tiling import decode_axes, encode_tiles, frames_of, pixels_of, trapezoid
from tests.conformance.harness import (
    Case,
    Check,
    Context,
    equal,
    exact,
    frames,
    near_abs,
    near_max,
    raises,
    read_json,
    read_tensors,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def recognises(folder: Path) -> bool:
    configs = [read_json(path).get("config", {}) for path in sorted(folder.glob("*/case.json"))]
    return any("vae" in config for config in configs)


def cases(folder: Path, context: Context) -> Iterator[Case]:
    for path in sorted(folder.glob("*/case.json")):
        yield Case(path.parent.name, lambda p=path: _run(p.parent, read_json(p), context))


@torch.no_grad()
def _run(folder: Path, meta: dict, context: Context) -> Iterator[Check]:
    if "rows" in meta:
        yield from _geometry(folder, meta)
        return
    want = read_tensors(folder / "io.safetensors", context.device)
    models = _Models(folder, DTYPES[meta["build_dtype"]], context.device)
    tolerance = (
        context.relax(meta["checks"]["rel"]) if meta["build_dtype"] == "float32" else meta["checks"]["rel"]
    )
    for call in meta["calls"]:
        yield from _call(call, models, want, tolerance)
    for name, error in meta.get("errors", {}).items():
        yield _error(name, error)


class _Models:
    """The case's networks, built when a call asks for them."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.checkpoint, self.dtype, self.device = Checkpoint(folder / "model.safetensors"), dtype, device

    def encoder(self) -> Any:
        key_map = VAE_ENCODER_COMFY_KEYS_FILTER
        return build_model(VideoEncoderConfigurator, self.checkpoint, key_map, self.device, self.dtype)

    def decoder(self) -> Any:
        key_map = VAE_DECODER_COMFY_KEYS_FILTER
        return build_model(VideoDecoderConfigurator, self.checkpoint, key_map, self.device, self.dtype)

    def statistics(self) -> Any:
        half = self.encoder if "encoder_blocks" in self.checkpoint.config["vae"] else self.decoder
        return half().per_channel_statistics


def _call(call: dict, models: _Models, want: dict[str, torch.Tensor], tolerance: float) -> Iterator[Check]:
    name = call["call"]
    if "per_channel_statistics" in name:
        yield from _statistics(models, want, tolerance)
    elif name.startswith("VideoEncoder"):
        video = (want["video_u8"].float() / 127.5 - 1.0).to(models.dtype)
        tiled = "tiled_encode" in name
        encoder = models.encoder()
        got = encoder.tiled_encode(video, _tiling(call)) if tiled else encoder(video)
        yield near_max(call["output"], got, want[call["output"]], tolerance)
    elif name.startswith("VideoDecoder.tiled_decode"):
        yield from _tiled_decode(call, models.decoder(), want, tolerance)
    elif name.startswith("VideoDecoder"):
        timestep = call.get("timestep")
        latent = want["latent"].to(models.dtype)
        given = None if timestep is None else torch.tensor(timestep, device=models.device)
        got = models.decoder()(latent, given, _generator(call))
        output = call["output"]
        got = got[..., ::8, ::8] if output.endswith("_strided") else got
        yield near_max(output, got, want[output], tolerance)
    elif name.startswith("decode_video"):
        chunks = list(decode_video(want["latent"].to(models.dtype), models.decoder(), _tiling(call)))
        yield frames("frames_u8", torch.cat(chunks), want["frames_u8"])
    else:
        yield Check(name, False, "nobody knows how to make this call")


def _generator(call: dict) -> torch.Generator | None:
    seed = call.get("generator_seed")
    return None if seed is None else torch.Generator().manual_seed(seed)


def _tiled_decode(
    call: dict, decoder: Any, want: dict[str, torch.Tensor], tolerance: float
) -> Iterator[Check]:
    config = _tiling(call)
    chunks = list(decoder.tiled_decode(want["latent"], config, None, _generator(call)))
    got = torch.cat(chunks, dim=2)
    yield near_max(call["output"], got[..., ::8, ::8], want[call["output"]], tolerance)
    yield equal("chunks", [c.shape[2] for c in chunks], call["chunk_frames"])
    yield equal("reported", get_video_chunks_number(got.shape[2], config), call["reported_chunks"])
    if "u8" in call:
        key = call["u8"].split(":")[0]
        pixels = torch.cat(list(decode_video(want["latent"], decoder, config, _generator(call))))
        yield frames(key, pixels[:, ::4, ::4], want[key])


def _statistics(models: _Models, want: dict[str, torch.Tensor], tolerance: float) -> Iterator[Check]:
    statistics, x = models.statistics(), want["x"].to(models.dtype)
    yield near_max("normalized", statistics.normalize(x), want["normalized"], tolerance)
    yield near_max("un_normalized", statistics.un_normalize(x), want["un_normalized"], tolerance)
    if "un_normalized_bf16_input" in want:
        got = statistics.un_normalize(want["x"].bfloat16())
        yield exact("un_normalized_bf16_input", got, want["un_normalized_bf16_input"])


def _tiling(call: dict) -> TilingConfig | TileSizeConfig | None:
    if "tiling_v12" in call:
        return TileSizeConfig(
            **{axis: DimensionSizeConfig(*sizes) for axis, sizes in call["tiling_v12"].items()}
        )
    given = call.get("tiling")
    if not given:
        return None
    spatial, temporal = given.get("spatial"), given.get("temporal")
    return TilingConfig(
        SpatialTilingConfig(**spatial) if spatial else None,
        TemporalTilingConfig(**temporal) if temporal else None,
    )


def _error(name: str, error: str) -> Check:
    axis, _, overlap = name.split()
    config = TileSizeConfig(**{axis: DimensionSizeConfig(24 if axis == "frames" else 128, int(overlap))})
    return raises(name, lambda: encode_tiles(config, (5, 8, 8)), error)


def _geometry(folder: Path, meta: dict) -> Iterator[Check]:
    masks = read_tensors(folder / "masks.safetensors")
    for number, row in enumerate(meta["rows"]):
        if row["kind"] == "encode" and "tiling_v12" not in row:
            continue  # the superseded way of cutting videos; semantics.json names its successor
        yield from _axes(f"{row['kind']} {number}", row, masks)
    for row in meta.get("get_video_chunks_number", ()):
        yield _chunk_count(row)


def _axes(name: str, row: dict, masks: dict[str, torch.Tensor]) -> Iterator[Check]:
    config = _tiling(row)
    decode = row["kind"] == "decode"
    if decode:
        axes = decode_axes(config, row["shape"][2:])
    else:
        _, _, f, h, w = row["shape"]
        tiles = encode_tiles(config, (1 + (f - 1) // 8, h // 32, w // 32))
        axes = [list(dict.fromkeys(getattr(t, axis) for t in tiles)) for axis in ("time", "height", "width")]
    for axis, intervals in zip("thw", axes):
        to_pixels = frames_of if axis == "t" else pixels_of
        wide = [to_pixels(i) for i in intervals]
        source, target = (intervals, wide) if decode else (wide, intervals)
        got = [{"in_": [s.start, s.end], "out": [t.start, t.end]} for s, t in zip(source, target)]
        yield equal(f"{name} {axis}", got, [{k: e[k] for k in ("in_", "out")} for e in row["axes"][axis]])
        for interval, entry in zip(target, row["axes"][axis]):
            mask = trapezoid(
                interval.length,
                interval.left,
                interval.right,
                from_zero=axis == "t",
                device=torch.device("cpu"),
            )
            yield near_abs(entry["mask"], mask, masks[entry["mask"]], 1e-6)


def _chunk_count(row: dict) -> Check:
    got = get_video_chunks_number(row["num_frames"], _tiling(row))
    return equal(f"chunks of {row['num_frames']}", got, row["chunks"])
