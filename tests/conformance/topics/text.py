"""Text goldens: tokens, hidden states, features, connectors, contexts, prompt enhancement, duration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ltx_core.loader import Checkpoint, build_model
from ltx_core.loader.gemma import load_text_encoder
from ltx_core.model.transformer.feed_forward import CaptionProjection
from ltx_core.sd_ops import DURATION_HEAD_KEY_OPS, EMBEDDINGS_PROCESSOR_KEY_OPS, SDOps
from ltx_core.text_encoders.gemma import (
    EmbeddingsProcessor,
    EmbeddingsProcessorConfigurator,
    GemmaTextEncoder,
    convert_to_additive_mask,
)
from ltx_core.text_encoders.gemma.duration_head import DurationHeadConfigurator
from ltx_core.text_encoders.gemma.embeddings_connector import Embeddings1DConnectorConfigurator
from ltx_core.text_encoders.gemma.feature_extractor import (
    FeatureExtractorV1,
    FeatureExtractorV2,
    norm_and_concat_per_prompt_range,
    norm_and_concat_per_token_rms,
)
from tests.conformance.harness import (
    Case,
    Check,
    Context,
    equal,
    exact,
    near_abs,
    near_max,
    near_norm,
    read_json,
    read_tensors,
)

TOLERANCE = 1e-5
BF16_NORM = 2e-2  # of a whole path in bfloat16: hidden states and contexts
PIXELS = 2e-2
CONNECTOR = "model.diffusion_model.video_embeddings_connector."
Tensors = Mapping[str, torch.Tensor]


def recognises(folder: Path) -> bool:
    return (folder / "tokens.json").is_file() and (folder / "hidden.safetensors").is_file()


def cases(folder: Path, context: Context) -> Iterator[Case]:
    """A case for each file, except connectors, where each connector is one."""
    used = {path.stem for path in folder.glob("*.json")}
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        if path.suffix == ".safetensors" and path.stem in used:  # a case's tensors
            continue
        if path.stem.startswith("connectors"):
            for name, spec in read_json(path).items():
                yield Case(
                    f"{path.stem}/{name}",
                    lambda path=path, name=name, spec=spec: _connector(path, name, spec, context),
                )
        elif not path.stem.startswith("ckpt_"):  # a checkpoint that others load
            yield Case(path.stem, lambda path=path: _runner(path)(path, context))


def _runner(path: Path) -> Callable[[Path, Context], Iterable[Check]]:
    for prefix, run in RUNNERS.items():
        if path.stem.startswith(prefix):
            return run
    return lambda path, context: [Check("kind", False, f"nobody knows how to compare {path.name}")]


@lru_cache(maxsize=2)
def _encoder(root: Path, dtype: torch.dtype, device: torch.device) -> GemmaTextEncoder:
    return load_text_encoder(root, device, dtype)


def _gemma(
    folder: Path, context: Context, dtype: torch.dtype = torch.float32, name: str | None = None
) -> GemmaTextEncoder:
    """The text encoder that a case names, or else the one beside the goldens."""
    return _encoder(folder / name if name else _gemma_root(folder), dtype, context.device)


def _gemma_root(folder: Path) -> Path:
    """The first sub-folder that holds a tokenizer and weights, if need be in sub-folders; else `folder`."""
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if all(any(path.rglob(pattern)) for pattern in ("tokenizer.json", "model*.safetensors")):
            return path
    return folder


def _processor(path: Path, context: Context, dtype: torch.dtype = torch.float32) -> EmbeddingsProcessor:
    files = Checkpoint([path])
    return build_model(
        EmbeddingsProcessorConfigurator, files, EMBEDDINGS_PROCESSOR_KEY_OPS, context.device, dtype
    )


def _prompts(folder: Path) -> dict[str, dict[str, Any]]:
    return read_json(folder / "tokens.json")["prompts"]


def _tokens(path: Path, context: Context) -> Iterator[Check]:
    golden = read_json(path)
    tokenizer = _gemma(path.parent, context).tokenizer
    yield equal("max_length", tokenizer.max_length, golden["max_length"])
    for name, prompt in golden["prompts"].items():
        padding = [(golden["pad_token_id"], 0)] * (golden["max_length"] - prompt["n_valid"])
        entries = tokenizer.tokenize_with_weights(prompt["text"])["gemma"]
        yield equal(name, entries, padding + [(i, 1) for i in prompt["valid_ids"]])


def _hidden(path: Path, context: Context) -> Iterator[Check]:
    golden, prompts, encoder = read_tensors(path), _prompts(path.parent), _gemma(path.parent, context)
    for name in _names(golden, ".hidden_states"):
        states, mask = encoder.encode(prompts[name]["text"])
        yield equal(f"{name}.mask", mask.sum().item(), prompts[name]["n_valid"])
        at = golden[f"{name}.positions"].to(context.device)
        yield near_max(
            name, torch.cat(states)[:, at], golden[f"{name}.hidden_states"], context.relax(TOLERANCE)
        )


def _names(golden: Tensors, suffix: str) -> list[str]:
    return sorted(key.removesuffix(suffix) for key in golden if key.endswith(suffix))


def _contexts(path: Path, context: Context) -> Iterator[Check]:
    """Text to contexts, padded and on the valid tokens alone, with everything in between."""
    spec, golden, prompts = (
        read_json(path),
        read_tensors(path.with_suffix(".safetensors")),
        _prompts(path.parent),
    )
    encoder, checkpoint = _gemma(path.parent, context, name=spec["gemma"]), path.parent / spec["checkpoint"]
    processor, tolerance = _processor(checkpoint, context), context.relax(TOLERANCE)
    for name in _names(golden, ".output_positions"):
        states, mask = encoder.encode(prompts[name]["text"])
        features = dict(zip(("video", "audio"), processor.feature_extractor(states, mask)))
        at = golden[f"{name}.feature_positions"].to(context.device)
        for modality, got in features.items():
            want = golden.get(f"{name}.{modality}_features", golden[f"{name}.video_features"])
            yield near_max(f"{name}.{modality}_features", got[0, at], want, tolerance)
        at = golden[f"{name}.output_positions"].to(context.device)
        padded = processor.process_hidden_states(states, mask)
        compact = processor.process_valid(*encoder.encode_valid(prompts[name]["text"]))
        yield equal(f"{name}.mask", (padded.attention_mask == 1).all().item(), True)
        for kind, output in (("padded", padded), ("valid", compact)):
            for modality in ("video", "audio"):
                got = getattr(output, f"{modality}_encoding")[0, at]
                yield near_max(
                    f"{name}.{kind}.{modality}", got, golden[f"{name}.{modality}_encoding"], tolerance
                )
                key = f"{name}.{modality}_context_after_caption_projection"
                if key in golden:
                    got = _caption_projection(checkpoint, modality, context)(got)
                    yield near_max(f"{name}.{kind}.{modality}_projected", got, golden[key], tolerance)
    output = processor.process_valid(*encoder.encode_valid(prompts[spec["full_prompt"]]["text"]))
    for modality in ("video", "audio"):
        key = f"{modality}_encoding"
        yield near_max(f"full.{modality}", getattr(output, key), golden[f"full.{key}"], tolerance)


def _caption_projection(path: Path, modality: str, context: Context) -> CaptionProjection:
    prefix = "model.diffusion_model." + ("audio_" if modality == "audio" else "") + "caption_projection."
    weights = {
        key.removeprefix(prefix): tensor.float()
        for key, tensor in read_tensors(path, context.device).items()
        if key.startswith(prefix)
    }
    hidden, features = weights["linear_1.weight"].shape
    projection = CaptionProjection(features, hidden).to(context.device).requires_grad_(False)
    projection.load_state_dict(weights)
    return projection


def _bfloat16(path: Path, context: Context) -> Iterator[Check]:
    """The whole path in bfloat16, for the prompt and the checkpoint that the float32 golden names."""
    spec = read_json(path.with_name(path.name.replace("bf16", "proc")).with_suffix(".json"))
    golden, text = read_tensors(path), _prompts(path.parent)[spec["full_prompt"]]["text"]
    encoder = _gemma(path.parent, context, torch.bfloat16, spec["gemma"])
    processor = _processor(path.parent / spec["checkpoint"], context, torch.bfloat16)
    states, mask, length = encoder.encode_valid(text)
    yield near_norm("hidden_states", torch.cat(states)[:, mask[0] == 1], golden["hidden_states"], BF16_NORM)
    output = processor.process_valid(states, mask, length)
    at = golden["output_positions"].to(context.device)
    for key in ("video_encoding", "audio_encoding"):
        yield equal(f"{key}.dtype", getattr(output, key).dtype, torch.bfloat16)
        yield near_norm(key, getattr(output, key)[0, at], golden[key], BF16_NORM)


def _connector(path: Path, name: str, spec: dict[str, Any], context: Context) -> Iterator[Check]:
    prefix = f"{name}."
    golden = {
        key.removeprefix(prefix): value.to(context.device)
        for key, value in read_tensors(path.with_suffix(".safetensors")).items()
        if key.startswith(prefix)
    }
    connector = Embeddings1DConnectorConfigurator.from_config(spec["config"]).to(context.device)
    start = f"weights.{CONNECTOR}"
    weights = {
        key.removeprefix(start): value.float() for key, value in golden.items() if key.startswith(start)
    }
    connector.load_state_dict(weights)
    count, length, tolerance = spec["n_valid"], spec["seq_len"], context.relax(TOLERANCE)
    rows = golden["input"].float()[None]
    mask = torch.zeros(1, length, dtype=torch.int64, device=context.device)
    for side, at in (("left", slice(length - count, length)), ("right", slice(0, count))):
        padded, valid = rows.new_full((1, length, rows.shape[-1]), 3.0), mask.clone()
        padded[:, at], valid[:, at] = rows, 1
        with torch.no_grad():
            got, left_over = connector(padded, convert_to_additive_mask(valid, torch.float32))
        yield near_max(f"padded {side}", got, golden["output"], tolerance)
        yield exact(f"mask {side}", left_over, torch.zeros(1, 1, 1, length))
    with torch.no_grad():
        got = connector.encode_valid(rows, valid[:, :count] == 1, length)
        yield near_max("valid rows alone", got, golden["output"], tolerance)


def _features(path: Path, context: Context) -> Iterator[Check]:
    golden = read_tensors(path, context.device)
    stack, left, tolerance = golden["hidden_stack"], golden["mask_left"], context.relax(TOLERANCE)
    video = _linear(golden["v2_video_weight"], golden["v2_video_bias"])
    audio = _linear(golden["v2_audio_weight"], golden["v2_audio_bias"])
    first = FeatureExtractorV1(_linear(golden["v1_weight"]), is_av=True)
    second = FeatureExtractorV2(video, stack.shape[2], audio)
    got: dict[str, torch.Tensor | None] = {}
    with torch.no_grad():
        for side in ("left", "right"):
            mask = golden[f"mask_{side}"]
            got[f"v1_{side}"] = first(stack, mask, side)[1]
            got[f"v2_{side}_video"], got[f"v2_{side}_audio"] = second(stack, mask, side)
        for suffix, dtype in (("f32", torch.float32), ("bf16in", torch.bfloat16)):
            got[f"v1_norm_left_{suffix}"] = norm_and_concat_per_prompt_range(stack.to(dtype), left)
            got[f"v2_norm_left_{suffix}"] = norm_and_concat_per_token_rms(stack.to(dtype), left)
    for suffix, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        got[f"additive_mask_{suffix}"] = convert_to_additive_mask(left, dtype)
    for key, value in got.items():
        if key not in golden:
            continue
        yield equal(f"{key}.dtype", value.dtype, golden[key].dtype)
        if key.startswith("additive"):
            yield exact(key, value, golden[key])
        else:
            loose = {"v1_norm_left_bf16in": 2e-3, "v2_norm_left_bf16in": 1e-2}
            yield near_max(key, value, golden[key], loose.get(key, tolerance))
    inputs = {"hidden_stack", "lengths", "mask_left", "mask_right", "v1_weight"}
    inputs |= {f"v2_{m}_{p}" for m in ("video", "audio") for p in ("weight", "bias")}
    yield equal("tensors not compared", set(golden) - set(got) - inputs, set())


def _linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = torch.nn.Parameter(weight)
    layer.bias = None if bias is None else torch.nn.Parameter(bias)
    return layer


def _enhance(path: Path, context: Context) -> Iterator[Check]:
    """Rewritten prompts, as sampled on the CPU; what a GPU samples has no golden."""
    from ltx_pipelines.utils.helpers import clean_response

    golden, encoder = read_json(path), _gemma(path.parent, Context())
    tokenizer = encoder.tokenizer.tokenizer
    image = path.with_name("enhance_image.safetensors")
    pictures = read_tensors(image) if image.is_file() else {}
    for name, case in golden.items():
        if name == "clean_response":
            yield equal(name, [[text, clean_response(text)] for text, _ in case], case)
            continue
        keywords = {key: case[key] for key in ("max_new_tokens", "system_prompt", "seed")}
        if case["kind"] == "t2v":
            text = encoder.enhance_t2v(case["prompt"], **keywords)
        elif case["kind"] == "i2v":
            text = encoder.enhance_i2v(case["prompt"], pictures["image_resized"], **keywords)
        else:
            yield Check(name, False, f"unknown kind {case['kind']!r}")
            continue
        yield equal(f"{name}.text", text, case["text_pad_left"])
        yield equal(f"{name}.clean", clean_response(text), case["clean_pad_left"])
        yield equal(
            f"{name}.decoded",
            tokenizer.decode(case["generated_ids_pad_left"], skip_special_tokens=True),
            text,
        )


def _image(path: Path, context: Context) -> Iterator[Check]:
    """What the model is shown: the picture made larger, then squashed and normalised."""
    from ltx_pipelines.utils.media_io import resize_aspect_ratio_preserving

    golden, encoder = read_tensors(path), _gemma(path.parent, Context())
    resized = golden["image_resized"]
    got = resize_aspect_ratio_preserving(golden["image"], max(resized.shape[:2]))
    yield near_abs("image_resized", got, resized, 1)
    pixels = encoder.processor(resized)
    yield near_abs("pixel_values", pixels[0, :, ::16, ::16], golden["pixel_values_sample"], PIXELS)


def _duration(path: Path, context: Context) -> Iterator[Check]:
    golden = read_tensors(path, context.device)
    with safe_open(str(path), framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    head = DurationHeadConfigurator.from_config(config).to(context.device)
    head.load_state_dict(_renamed(golden, DURATION_HEAD_KEY_OPS))
    video, audio = golden["video_tokens"], golden["audio_tokens"]
    tolerance = context.relax(TOLERANCE)
    with torch.no_grad():
        yield near_max("both", head(video, audio), golden["seconds_both"], tolerance)
        yield near_max("video", head(video, None), golden["seconds_video_only"], tolerance)
        yield near_max("audio", head(None, audio), golden["seconds_audio_only"], tolerance)


def _renamed(tensors: Tensors, ops: SDOps) -> dict[str, torch.Tensor]:
    renamed = {ops.apply_to_key(key): value for key, value in tensors.items()}
    return {key: value for key, value in renamed.items() if key is not None}


RUNNERS: dict[str, Callable[[Path, Context], Iterable[Check]]] = {
    "tokens": _tokens,
    "hidden": _hidden,
    "proc_": _contexts,
    "bf16_": _bfloat16,
    "features": _features,
    "enhance_image": _image,
    "enhance": _enhance,
    "duration_head": _duration,
}
