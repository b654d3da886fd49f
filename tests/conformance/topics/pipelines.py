"""Traces of the eight pipelines with analytic stand-ins for every network: wiring, noise, schedules, LoRA sets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
from ltx_core.types import Audio, Modality
from ltx_pipelines.engine import Engine
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.constants import LTX_2_3_PARAMS
from ltx_pipelines.utils.prompts import clean_response
from tests.conformance.harness import (
    Case,
    Check,
    Context,
    equal,
    exact,
    near_abs,
    near_norm,
    read_json,
    read_tensors,
)

DTYPE = torch.bfloat16
CALL = [
    "prompt",
    "seed",
    "height",
    "width",
    "num_frames",
    "frame_rate",
    "enhance_prompt",
    "start_time",
    "end_time",
    "audio_start_time",
    "audio_max_duration",
    "conditioning_attention_strength",
    "skip_stage_2",
    "regenerate_video",
    "regenerate_audio",
    "distilled",
]


def recognises(folder: Path) -> bool:
    return (folder / "STUBS.md").is_file()


def cases(folder: Path, context: Context) -> Iterator[Case]:
    for path in sorted(folder.glob("*.json")):
        yield Case(path.stem, lambda path=path: _run(path))


def ramp(n: int) -> torch.Tensor:
    return 1 + torch.arange(n) / n


class StubEngine(Engine):
    """An engine whose verbs are the stand-ins of STUBS.md; it records what the pipelines ask of it."""

    device, dtype, params = torch.device("cpu"), DTYPE, LTX_2_3_PARAMS  # type: ignore[assignment]
    embedded_params = None

    def __init__(self) -> None:
        super().__init__(ledger=None)  # type: ignore[arg-type]
        self.events: list[list] = []
        self.calls: list[dict[str, Any]] = []
        self.seen: dict[str, torch.Tensor] = {}
        self.stage = -1

    distillation: tuple = ()
    variant, version = None, (2, 3)

    def check(self, recipe) -> None:  # type: ignore[no-untyped-def]
        """Stubs have no files."""

    def encode_prompts(self, prompts, enhancement=None):  # type: ignore[no-untyped-def]
        texts = list(prompts)
        if enhancement is not None:
            self.events.append(["enhance", texts[0], enhancement.seed])
            start = "1. Better: " if enhancement.image_path else "**Better: "
            texts[0] = clean_response(start + texts[0])
        self.events += [["encode_text", text] for text in texts]
        return [self._context(text) for text in texts]

    @staticmethod
    def _context(text: str) -> SimpleNamespace:
        value = (sum(i * ord(c) for i, c in enumerate(text, start=1)) % 1000) / 1000 - 0.5
        full = torch.full((1, 4, 8), value)
        return SimpleNamespace(video_encoding=full.to(DTYPE), audio_encoding=(full / 2).to(DTYPE))

    def encode_video(self, pixels, tiling=None):  # type: ignore[no-untyped-def]
        x = pixels[:, :, : (pixels.shape[2] - 1) // 8 * 8 + 1].float()
        b, c, f, h, w = x.shape
        x = x.reshape(b, c, f, h // 32, 32, w // 32, 32).mean((4, 6))
        rest = x[:, :, 1:].reshape(b, c, (f - 1) // 8, 8, h // 32, w // 32).mean(3)
        x = torch.cat([x[:, :, :1], rest], 2)
        latent = (x[:, torch.arange(128) % 3] * ramp(128)[:, None, None, None]).to(DTYPE)
        self.events.append(["vae_encode", list(pixels.shape), list(latent.shape)])
        return latent

    def encode_audio(self, sound: Audio) -> torch.Tensor:
        wave = sound.waveform.mean(1)
        frames = wave.shape[-1] // 640
        level = wave[:, : frames * 640].reshape(1, frames, 640).abs().mean(-1) * 4
        return (level[:, None, :, None] * ramp(8)[:, None, None] * ramp(16)).to(DTYPE)

    def upsample(self, latent: torch.Tensor) -> torch.Tensor:
        x = latent[:1] * 1.5 + 0.25
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (x - 0.25) / 1.5

    def transformer(self, loras=()):  # type: ignore[no-untyped-def]
        self.stage += 1
        names = [[Path(lora.path).name, lora.strength] for lora in loras]
        self.events.append(["load_transformer", names])
        return lambda video, audio, perturbations=None: self._denoise(video, audio, perturbations, names)

    def _denoise(self, video: Modality, audio: Modality, perturbations: Any, loras: list) -> tuple:
        skips = _skips(perturbations)
        self._record(video, audio, skips, loras)
        gain = 1 + 0.05 * sum(strength for _, strength in loras)
        xv, xa = video.latent.float(), audio.latent.float()
        v = gain * xv * (1 - 0.6 * video.timesteps) + 0.5 * video.context.float().mean()
        v = v + 0.002 * video.positions.float().mean((1, 3))[..., None]
        a = gain * xa * (1 - 0.6 * audio.timesteps) + 0.4 * audio.context.float().mean()
        if "skip_a2v_cross_attn" not in skips:
            v = v + 0.3 * xa.mean()
        if "skip_v2a_cross_attn" not in skips:
            a = a + 0.3 * xv.mean()
        v = v * 0.9 if "skip_video_self_attn" in skips else v
        a = a * 0.8 if "skip_audio_self_attn" in skips else a
        if video.attention_mask is not None:
            v = v + 0.1 * video.attention_mask.float().mean(-1)[..., None]
        return v.to(video.latent.dtype), a.to(audio.latent.dtype)

    def _record(self, video: Modality, audio: Modality, skips: dict, loras: list) -> None:
        for stream, modality in (("video", video), ("audio", audio)):
            for field in ("latent", "timesteps", "positions", "attention_mask"):
                value = getattr(modality, field)
                if value is not None:
                    self.seen.setdefault(f"enter{self.stage}.{stream}_{field}", value.clone())
        self.calls.append(
            {
                "sigma": round(float(video.sigma), 6),
                "audio_sigma": round(float(audio.sigma), 6),
                "video_tokens": video.latent.shape[1],
                "audio_tokens": audio.latent.shape[1],
                "video_context": round(video.context.float().mean().item(), 3),
                "audio_context": round(audio.context.float().mean().item(), 3),
                "video_dtype": str(video.latent.dtype),
                "has_mask": video.attention_mask is not None,
                "skips": skips,
                "loras": loras,
            }
        )

    def decode_video(self, latent, tiling, generator):  # type: ignore[no-untyped-def]
        self.seen["final.video_latent"] = latent
        self.seen["final.generator_randn8"] = torch.randn(8, generator=generator)
        yield torch.zeros(1, 8, 8, 3, dtype=torch.uint8)

    def decode_audio(self, latent: torch.Tensor) -> Audio:
        self.seen["final.audio_latent"] = latent
        return Audio(torch.zeros(2, latent.shape[2]), 24000)


def _skips(perturbations: Any) -> dict[str, Any]:
    found = {}
    for config in perturbations.perturbations if perturbations is not None else ():
        for item in config.perturbations or ():
            found[item.type.name.lower()] = "all" if item.blocks is None else list(item.blocks)
    return found


def _run(path: Path) -> Iterator[Check]:
    meta, want = read_json(path), read_tensors(path.with_suffix(".safetensors"))
    engine = StubEngine()
    pipeline_class = getattr(importlib.import_module(f"ltx_pipelines.{meta['module']}"), meta["cls"])
    video, audio = pipeline_class(**_constructor(meta, path.parent), engine=engine)(
        **_call(meta, path.parent)
    )
    list(video)
    for key, tensor in want.items():
        got = engine.seen.get(key)
        if got is None:
            yield Check(key, False, "missing")
        elif key.endswith(("timesteps", "positions", "mask")):
            yield near_abs(key, got, tensor, 1e-6)
        elif key.startswith("final") and "latent" in key:
            yield near_norm(key, got, tensor, 5e-3)
        else:
            yield exact(key, got, tensor)
    yield equal("transformer calls", engine.calls, meta["transformer_calls"])
    yield equal("work", _binding(engine.events), _binding(meta["events"]))
    yield equal(
        "audio", [list(audio.waveform.shape), audio.sampling_rate], [meta["audio_shape"], meta["audio_rate"]]
    )


def _binding(events: list[list]) -> list[list]:
    """The events whose count and arguments bind, in an order of their own."""
    kept = [["enhance", *e[1:3]] if e[0].startswith("enhance") else e for e in events]
    return sorted((e for e in kept if e[0] in ("enhance", "encode_text", "vae_encode")), key=str)


def _constructor(meta: dict, folder: Path) -> dict[str, Any]:
    def loras(pairs: list) -> list[LoraPathStrengthAndSDOps]:
        files = ((str(folder / f"{name}.safetensors"), strength) for name, strength in pairs)
        return [
            LoraPathStrengthAndSDOps(file, strength, LTXV_LORA_COMFY_RENAMING_MAP) for file, strength in files
        ]

    given: dict[str, Any] = {"loras": loras(meta["loras"])}
    if meta["module"] not in ("ti2vid_one_stage", "retake", "distilled", "ic_lora"):
        given["distilled_lora"] = loras(meta["distilled_lora"])
    if "distilled_lora_strengths" in meta:
        for stage, strength in enumerate(meta["distilled_lora_strengths"], start=1):
            given[f"distilled_lora_strength_stage_{stage}"] = strength
    return given


def _call(meta: dict, folder: Path) -> dict[str, Any]:
    module = meta["module"]
    call = {key: meta[key] for key in CALL if key in meta}
    if module == "retake":
        for key in ("height", "width", "num_frames", "frame_rate"):
            call.pop(key)
    for key in ("video_path", "audio_path"):
        if key in meta:
            call[key] = str(folder / meta[key])
    if "images" in meta:
        call["images"] = [ImageConditioningInput(str(folder / name), *rest) for name, *rest in meta["images"]]
    if "video_conditioning" in meta:
        call["video_conditioning"] = [
            (str(folder / name), strength) for name, strength in meta["video_conditioning"]
        ]
    if "mask" in meta:
        mask = read_tensors(folder / meta["mask"].split()[0])
        call["conditioning_attention_mask"] = next(iter(mask.values())).float()
    if module not in ("distilled", "ic_lora"):
        call |= {"negative_prompt": meta["negative_prompt"], "num_inference_steps": meta["steps"]}
        call["video_guider_params"] = _video_guider(meta)
        if module != "a2vid_two_stage":
            call["audio_guider_params"] = MultiModalGuiderParams(**meta["audio_guider"])
    return call


def _video_guider(meta: dict) -> MultiModalGuiderParams | MultiModalGuiderFactory:
    if "video_guider_by_sigma" not in meta:
        return MultiModalGuiderParams(**meta["video_guider"])
    bins = {float(sigma): MultiModalGuiderParams(**p) for sigma, p in meta["video_guider_by_sigma"].items()}
    return MultiModalGuiderFactory.from_dict(bins)
