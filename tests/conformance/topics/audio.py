"""Audio: mel front end, audio VAE halves, vocoders, the whole chain, and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ltx_core.loader import Checkpoint, build_model
from ltx_core.model.audio_vae import (
    AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    VOCODER_COMFY_KEYS_FILTER,
    AudioDecoderConfigurator,
    AudioEncoderConfigurator,
    AudioProcessor,
    VocoderConfigurator,
    VocoderWithBWE,
    decode_audio,
    encode_audio,
)
from ltx_core.model.audio_vae.bandwidth_extension import hann_sinc_filter, upsample_by
from ltx_core.model.audio_vae.vocoder import kaiser_sinc_filter
from ltx_core.types import Audio, AudioLatentShape, VideoPixelShape
from tests.conformance.harness import Case, Check, Context, equal, near_abs, near_max, read_json, read_tensors

PARTS = {
    "encoder": (AudioEncoderConfigurator, AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER),
    "decoder": (AudioDecoderConfigurator, AUDIO_VAE_DECODER_COMFY_KEYS_FILTER),
    "vocoder": (VocoderConfigurator, VOCODER_COMFY_KEYS_FILTER),
}


def recognises(folder: Path) -> bool:
    return any(p.name.startswith(("vocoder", "mel_frontend", "lengths")) for p in folder.glob("*.json"))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    for path in sorted(folder.glob("*.json")):
        yield Case(path.stem, lambda p=path: _run(p, context))
    for path in sorted(folder.glob("*.safetensors")):
        if not path.with_suffix(".json").is_file():
            yield Case(path.stem, lambda: [Check("json", False, "no .json beside it says how to run it")])


@torch.no_grad()
def _run(path: Path, context: Context) -> Iterator[Check]:
    meta = read_json(path)
    if "encode_lengths" in meta or "decode_lengths" in meta:
        yield from _lengths(meta)
        return
    tensors = path.with_suffix(".safetensors")
    io = {k: t for k, t in read_tensors(tensors, context.device).items() if k.startswith(("in.", "out."))}
    call = meta.get("call", "")
    if "processors" in meta:
        yield from _frontend(meta, io, context)
    elif "out.kaiser_12" in io:
        yield from _filters(io)
    elif call.startswith("AudioEncoder"):
        got = _build("encoder", tensors, context)(io["in.spectrogram"])
        yield near_max("latent", got, io["out.latent"], context.relax(1e-5))
    elif call.startswith("AudioDecoder"):
        got = _build("decoder", tensors, context)(io["in.latent"])
        yield near_max("spectrogram", got, io["out.spectrogram"], context.relax(1e-5))
    elif call.startswith("Vocoder"):
        yield from _vocoder(meta, tensors, io, context)
    elif "encode_audio" in call:
        yield from _roundtrip(meta, tensors, io, context)
    else:
        yield Check("call", False, f"nobody knows how to make the call {call!r}")


def _build(part: str, path: Path, context: Context) -> Any:
    configurator, key_map = PARTS[part]
    return build_model(configurator, Checkpoint(path), key_map, context.device, torch.float32)


def _frontend(meta: dict, io: dict[str, torch.Tensor], context: Context) -> Iterator[Check]:
    processors = {
        name: AudioProcessor(**given).to(context.device) for name, given in meta["processors"].items()
    }
    for name, processor in processors.items():
        yield near_max(f"filterbank.{name}", processor.filterbank, io[f"out.filterbank.{name}"], 1e-6)
        if f"out.window.{name}" in io:
            yield near_max(f"window.{name}", processor.window, io[f"out.window.{name}"], 1e-6)
    for signal in meta["signals"]:
        key, processor = signal["id"], processors[signal["processor"]]
        audio = Audio(io[f"in.waveform.{key}"], signal["sampling_rate"])
        if f"out.resampled.{key}" in io:
            got = processor.resample_audio(audio).waveform
            yield near_abs(f"resampled.{key}", got, io[f"out.resampled.{key}"], context.relax(1e-6))
        yield _mel(f"mel.{key}", processor.waveform_to_mel(audio), io[f"out.mel.{key}"], context)


def _mel(name: str, got: torch.Tensor, want: torch.Tensor, context: Context) -> Check:
    """Tight in the linear domain and where there is signal, loose at the floor."""
    if got.shape != want.shape:
        return Check(name, False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    linear = ((got.exp() - want.exp()).abs().max() / want.exp().max()).item()
    off, loud = (got - want).abs(), want > want.max() - 6.9
    signal, floor = off[loud].max().item(), off.max().item()
    ok = linear <= context.relax(1e-6) and signal <= context.relax(1e-4) and floor <= 1e-2
    return Check(name, ok, f"linear {linear:.1e} signal {signal:.1e} floor {floor:.1e} (1e-6, 1e-4, 1e-2)")


def _filters(io: dict[str, torch.Tensor]) -> Iterator[Check]:
    yield near_abs("kaiser_12", kaiser_sinc_filter(), io["out.kaiser_12"], 1e-6)
    for key in sorted(io):
        if key.startswith("out.hann_filter_ratio"):
            ratio = int(key.removeprefix("out.hann_filter_ratio"))
            yield near_abs(key[4:], hann_sinc_filter(ratio), io[key], 1e-6)
            up = f"out.hann_upsampled_ratio{ratio}"
            yield near_abs(up[4:], upsample_by(io["in.x"], ratio), io[up], 1e-6)


def _vocoder(meta: dict, path: Path, io: dict[str, torch.Tensor], context: Context) -> Iterator[Check]:
    vocoder = _build("vocoder", path, context)
    got = vocoder(io["in.spectrogram"])
    yield near_abs("waveform", got, io["out.waveform"], context.relax(2e-5))
    if "output_sampling_rate" in meta:
        yield equal("rate", vocoder.output_sampling_rate, meta["output_sampling_rate"])
    if isinstance(vocoder, VocoderWithBWE) and "out.bwe_mel" in io:
        mel = vocoder.mel_stft(
            torch.nn.functional.pad(io["out.stage1"], (0, -io["out.stage1"].shape[-1] % vocoder.hop_length))
        )
        yield near_abs("bwe_mel", mel.transpose(2, 3), io["out.bwe_mel"], context.relax(1e-4))


def _roundtrip(meta: dict, path: Path, io: dict[str, torch.Tensor], context: Context) -> Iterator[Check]:
    encoder, decoder, vocoder = (_build(part, path, context) for part in PARTS)
    latent = encode_audio(Audio(io["in.waveform"], meta["in_sampling_rate"]), encoder)
    yield near_max("latent", latent, io["out.latent"], context.relax(2e-5))
    yield near_max("spectrogram", decoder(io["out.latent"]), io["out.spectrogram"], context.relax(2e-5))
    audio = decode_audio(io["out.latent"], decoder, vocoder)
    yield near_abs("waveform", audio.waveform, io["out.waveform"], context.relax(5e-5))
    yield equal("rate", audio.sampling_rate, meta["out_sampling_rate"])


def _lengths(meta: dict) -> Iterator[Check]:
    for row in meta.get("AudioLatentShape.from_video_pixel_shape", ()):
        shape = AudioLatentShape.from_video_pixel_shape(VideoPixelShape(1, row["frames"], 64, 64, row["fps"]))
        yield equal(f"{row['frames']} at {row['fps']}", list(shape.to_torch_shape()), row["latent_shape"])
    processor = AudioProcessor(16000, 64, 160, 1024)
    for row in meta.get("encode_lengths", ()):
        audio = Audio(torch.zeros(1, 1, row["samples"]), row["sampling_rate"])
        resampled = processor.resample_audio(audio).waveform.shape[-1]
        mel = processor.waveform_to_mel(audio).shape[2]
        got = {"resampled_samples": resampled, "mel_frames": mel, "latent_frames": -(-mel // 4)}
        yield equal(f"{row['samples']} samples", got, {key: row[key] for key in got})
    for row in meta.get("decode_lengths", ()):
        mel = 4 * row["latent_frames"] - 3
        got = {"mel_frames": mel, "samples_24k": 240 * mel, "samples_48k": 480 * mel}
        yield equal(f"{row['latent_frames']} latents", got, {key: row[key] for key in got})
