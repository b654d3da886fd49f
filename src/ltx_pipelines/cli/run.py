"""From parsed flags to a pipeline's call: which flag feeds which argument, said once for all eight."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from typing_extensions import is_typeddict

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import InputError
from ltx_core.loader import Checkpoint
from ltx_core.model.video_vae import AUTO_TILING, TilingConfig
from ltx_pipelines.cli.actions import EMPTY_PATH
from ltx_pipelines.cli.commands import COMMANDS
from ltx_pipelines.cli.config_file import plain_values, read_config, write_config
from ltx_pipelines.cli.flags import Parser, build_parser, takes_path
from ltx_pipelines.media.video import load_video_conditioning
from ltx_pipelines.miniature import miniature
from ltx_pipelines.pipeline import Options, Pipeline, Run
from ltx_pipelines.utils.constants import (
    PipelineParams,
    embedded_params,
    params_for_version,
)
from ltx_pipelines.utils.model_paths import ModelPaths, flag_names
from ltx_pipelines.utils.validation import check_frame_rate, check_output_path, random_seed

TILINGS = {"auto": AUTO_TILING, "blended": TilingConfig.default(), "none": None}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Files that may bring defaults, the first that is given counts.
CHECKPOINTS = ("checkpoint_path", "distilled_checkpoint_path", "transformer_path")
SPLIT = ("transformer_path", "text_encoder_path", "video_vae_path", "audio_vae_path")


def run(name: str, argv: list[str], program: str, recorded: dict[str, Any] | None = None) -> int:
    """Parse `argv` for the pipeline `name`, run it, write its file. recorded: see `parse`."""
    namespace = parse(name, argv, program, recorded)
    check_output_path(namespace.output_path, overwrite=namespace.overwrite)
    if namespace.save_config:
        write_config(Path(namespace.save_config), name, namespace)
    if name == "retake" and namespace.seed < 0:
        namespace.seed = random_seed()  # here, so that the file says which one it was
    pipeline = make_pipeline(name, namespace)
    call = call_arguments(pipeline, namespace)
    pipeline(**call, settings=settings(name, namespace))
    print(namespace.output_path)
    return 0


def parse(
    name: str, argv: list[str], program: str | None = None, recorded: dict[str, Any] | None = None
) -> argparse.Namespace:
    """Flags to a namespace; flags on the line replace those of a config file or of a `recorded` run."""
    early = Parser(prog=program or f"ltx {name.replace('_', '-')}", add_help=False, allow_abbrev=False)
    for dest in (*CHECKPOINTS, "config"):
        early.add_argument(flag_names([dest]))
    known, _ = early.parse_known_args(argv)
    stored = (recorded or {}) | (read_config(Path(known.config), name) if known.config else {})
    given = (values.get(path) for values in (vars(known), stored) for path in CHECKPOINTS)
    checkpoint = next(filter(None, given), None)
    params = None if {"-h", "--help"} & set(argv) else default_params(name, checkpoint)
    parser = build_parser(name, params, require_paths=False)
    parser.prog = program or parser.prog
    namespace = parser.parse_args([*as_argv(parser, stored, argv), *argv])
    check_paths(parser, namespace)
    check_models(parser, namespace)
    return namespace


def check_paths(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> None:
    """End with a usage error if a path is empty, such as a shell's variable that is not set."""
    for action in filter(takes_path, parser._actions):
        given = getattr(namespace, action.dest)
        if given == "" or (isinstance(given, list) and "" in given):
            parser.error(f"argument {action.option_strings[0]}: {EMPTY_PATH}")


def check_models(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> None:
    """End with a usage error if the model files given are not all that the pipeline needs."""
    given, parts = vars(namespace), ("spatial_upsampler_path", "distilled_lora")
    paths = model_paths(namespace)
    if paths == ModelPaths():
        extra = [part for part in parts if given.get(part)]
        if extra:
            parser.error(
                f"{flag_names(extra)} needs a model as well: give --checkpoint-path and --gemma-root."
            )
        return
    whole = next(name for name in ("distilled_checkpoint_path", "checkpoint_path") if name in given)
    split = any(given[name] for name in SPLIT if name != "video_vae_path")
    needed = (*(SPLIT if split else (whole, "gemma_root")), *parts)
    missing = [name for name in needed if name in given and not given[name]]
    if missing:
        parser.error(f"with model files of your own this pipeline also needs {flag_names(missing)}.")


def model_paths(namespace: argparse.Namespace) -> ModelPaths:
    """The model files that the flags name."""
    given = vars(namespace)
    checkpoint = given.get("checkpoint_path") or given.get("distilled_checkpoint_path")
    paths = {key: given.get(key) for key in ("gemma_root", *SPLIT)}
    return ModelPaths.from_arguments(checkpoint_path=checkpoint, **paths)


def default_params(name: str, checkpoint: str | None) -> PipelineParams:
    """Defaults of a run: those that the model brings, else the pipeline's own, else the version's."""
    opened = Checkpoint(str(checkpoint or miniature().paths.transformer()))
    versions = params_for_version(opened.model_version)
    fixed = replace(
        COMMANDS[name].load().fixed_params or versions, default_image_crf=versions.default_image_crf
    )
    return embedded_params(opened) or fixed


def as_argv(parser: argparse.ArgumentParser, stored: dict[str, Any], typed: list[str]) -> list[str]:
    """Stored values as the flags that give them, so that they pass through the same checks as typed ones.

    Without those whose flag is `typed` as well: it replaces them, also where it may be repeated.
    """
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    replaced = {word.split("=")[0] for word in typed}
    argv: list[str] = []
    for dest, value in stored.items():
        if dest == "config":
            raise InputError("A configuration cannot start from another one; put all settings into one file.")
        if dest not in actions:
            near = difflib.get_close_matches(dest, actions, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise InputError(f"The configuration has {dest!r}, which {parser.prog} does not know{hint}")
        action, flag = actions[dest], actions[dest].option_strings[0]
        if flag in replaced:
            continue
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise InputError(f"{dest} is {value!r} in the configuration; give true or false.")
            argv += [flag] if value is action.const else []
        elif not isinstance(value, list):
            argv += [] if value is None else [f"{flag}={value}"]
        elif value and isinstance(value[0], list):
            argv += [word for item in value for word in (flag, *map(str, item))]
        elif value or action.nargs == "*":
            argv += [flag, *map(str, value)]
    return argv


def make_pipeline(name: str, namespace: argparse.Namespace) -> Pipeline:
    """The pipeline object; it loads nothing yet."""
    given = vars(namespace)
    arguments = {
        "model_paths": model_paths(namespace),
        "distilled_lora": given.get("distilled_lora") or (),
        "distilled_lora_strength_stage_1": given.get("distilled_lora_strength_stage_1"),
        "distilled_lora_strength_stage_2": given.get("distilled_lora_strength_stage_2"),
        "spatial_upsampler_path": given.get("spatial_upsampler_path"),
        "loras": (*given["lora"], *given.get("loras", ())),
        "quantization": given["quantization"],
        "device": given.get("device"),
        "dtype": DTYPES.get(given["dtype"]),
        "offload": given["offload"],
        "attention": given["attention"],
        "max_batch_size": given["max_batch_size"],
        "fuse_loras": given["fuse_loras"],
        "compile": None if given["compile"] is None else dict(given["compile"]) or True,
    }
    cls = COMMANDS[name].load()
    return cls(**_accepted(arguments, cls, Pipeline, Options))


def call_arguments(pipeline: Pipeline, namespace: argparse.Namespace) -> dict[str, Any]:
    """The call's arguments out of the flags, in the names that the pipeline's call has."""
    given = vars(namespace)
    arguments = {key: value for key, value in given.items() if value is not None}
    arguments["tiling_config"] = TILINGS[given["tiling"]]
    if "video_cfg_guidance_scale" in given:
        arguments["video_guider_params"] = _guider(given, "video", "a2v_guidance_scale")
        arguments["audio_guider_params"] = _guider(given, "audio", "v2a_guidance_scale")
    has_sound = "audio_path" in given and given["audio_max_duration"] is None
    if has_sound and given["num_frames"] > 0:  # else the call says what is wrong
        check_frame_rate(given["frame_rate"])
        arguments["audio_max_duration"] = given["num_frames"] / given["frame_rate"]
    if (mask := given.get("conditioning_attention_mask")) is not None:
        path, arguments["conditioning_attention_strength"] = mask
        arguments["conditioning_attention_mask"] = _load_mask(path, given)
    return _accepted(arguments, pipeline, Run)


def settings(name: str, namespace: argparse.Namespace) -> str:
    """The run as JSON, for the file's metadata and for ``ltx rerun``."""
    arguments = plain_values(namespace)
    del arguments["output_path"]  # nobody else's business, and a repetition gives the same bytes
    return json.dumps({"openltx": {"version": version("openltx"), "command": name, "arguments": arguments}})


def _accepted(arguments: dict[str, Any], *takers: Any) -> dict[str, Any]:
    """Those of the arguments that were given and that one of `takers`, callables or TypedDicts, takes."""
    names = {name for taker in takers for name in _names(taker)}
    given = {key: value for key, value in arguments.items() if key in names and value is not None}
    return given | ({"tiling_config": arguments["tiling_config"]} if "tiling_config" in names else {})


def _names(taker: Any) -> Iterable[str]:
    return inspect.get_annotations(taker) if is_typeddict(taker) else inspect.signature(taker).parameters


def _guider(given: dict[str, Any], modality: str, cross: str) -> MultiModalGuiderParams:
    return MultiModalGuiderParams(
        cfg_scale=given[f"{modality}_cfg_guidance_scale"],
        stg_scale=given[f"{modality}_stg_guidance_scale"],
        rescale_scale=given[f"{modality}_rescale_scale"],
        modality_scale=given[cross],
        skip_step=given[f"{modality}_skip_step"],
        stg_blocks=given[f"{modality}_stg_blocks"],
    )


def _load_mask(path: str, given: dict[str, Any]) -> torch.Tensor:
    """A mask clip as (1, 1, F, H, W) in [0, 1]: the mean of its channels at half of the final size."""
    pixels = load_video_conditioning(
        path,
        given["height"] // 2,
        given["width"] // 2,
        given["num_frames"],
        torch.float32,
        torch.device("cpu"),
    )
    return ((pixels.mean(1, keepdim=True) + 1) / 2).clamp(0, 1)
