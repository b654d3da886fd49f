"""Every flag, declared once, and the parser of each pipeline put together from them."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any, NoReturn

from ltx_core.loader.streaming import MODES
from ltx_core.model.transformer.attention import AttentionFunction
from ltx_pipelines.cli.actions import (
    COMPILE_OPTIONS,
    ImageAction,
    LoraAction,
    MaskAction,
    QuantizationAction,
    VideoConditioningAction,
    compile_option,
    resolved_path,
)
from ltx_pipelines.cli.commands import COMMANDS
from ltx_pipelines.media.video import FITS
from ltx_pipelines.sampling import SAMPLERS
from ltx_pipelines.utils.constants import LTX_2_3_PARAMS, PipelineParams

EPILOG = (
    "Defaults are those of LTX-2.3; another checkpoint's are read from its file. Without model files a tiny "
    "built-in model is used, with small defaults of its own."
)


def takes_path(action: argparse.Action) -> bool:
    """Whether a flag's values name files or folders."""
    return action.metavar in ("PATH", "FILE") or action.dest.endswith(("path", "root"))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults to the help, but not the long negative prompt's, nor none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], "") or isinstance(action.default, bool):
            return action.help
        if action.dest == "negative_prompt":
            return f"{action.help} (default: a long list)"
        return super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if takes_path(action):
            return "PATH"
        return "N" if action.type is int else "X" if action.type is float else "TEXT"


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # As from Python 3.14 on; before, -1e-5 was taken for a flag.
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; a value that begins with a dash is written --flag=-value"
        if message.startswith("unrecognized arguments: --"):
            near = difflib.get_close_matches(message.split()[2], self._option_string_actions, 1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message} (`{self.prog} --help` lists the options)\n")


def build_parser(
    name: str, params: PipelineParams | None = None, *, require_paths: bool = True
) -> argparse.ArgumentParser:
    """The parser of the pipeline `name` with the defaults of `params` (LTX-2.3's if None).

    require_paths: whether model files must be given; without them the built-in model is used.
    """
    command = COMMANDS[name]
    cls = command.load()
    takes = {*inspect.signature(cls).parameters, *inspect.signature(cls.__call__).parameters}
    params = params or cls.fixed_params or LTX_2_3_PARAMS
    parser = Parser(
        prog=f"ltx {name.replace('_', '-')}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    path = str if name == "retake" else resolved_path  # as the official parsers have it
    _model_flags(parser, takes, path, require_paths)
    _request_flags(parser, takes, path, params, cls.stages)
    if "video_guider_params" in takes:
        _guidance_flags(parser, params)
    _mode_flags(parser, name)
    _running_flags(parser)
    return parser


def _model_flags(
    parser: argparse.ArgumentParser, takes: set[str], path_type: Callable[[str], str], required: bool
) -> None:
    """Which files. takes: what the pipeline and its call have arguments for."""
    group = parser.add_argument_group("model files")
    whole = "distilled-checkpoint-path" if "distilled_checkpoint_path" in takes else "checkpoint-path"
    group.add_argument(
        f"--{whole}", type=path_type, required=required, help="checkpoint with all components (.safetensors)"
    )
    text = "folder of the Gemma text encoder"
    group.add_argument("--gemma-root", type=path_type, required=required, help=text)
    if "spatial_upsampler_path" in takes:
        text = "latent upsampler, doubles the size for stage 2"
        group.add_argument("--spatial-upsampler-path", type=path_type, required=required, help=text)
    if "distilled_lora" in takes:
        group.add_argument(
            "--distilled-lora",
            action=LoraAction,
            nargs="+",
            metavar=("PATH", "STRENGTH"),
            required=required,
            help="distilled LoRA of stage 2, with an optional strength",
        )
    if "distilled_lora_strength_stage_1" in takes:
        for stage, strength in ((1, 0.25), (2, 0.5)):
            group.add_argument(
                f"--distilled-lora-strength-stage-{stage}",
                type=float,
                default=strength,
                help=f"strength of the distilled LoRA in stage {stage}",
            )
    group.add_argument(
        "--lora",
        action=LoraAction,
        nargs="+",
        metavar=("PATH", "STRENGTH"),
        default=[],
        help="a LoRA, with an optional strength; may be repeated",
    )
    for part in ("transformer", "text-encoder", "video-vae", "audio-vae"):
        text = f"the {part.replace('-', ' ').replace('vae', 'VAE')} alone, in place of a whole checkpoint's"
        group.add_argument(f"--{part}-path", type=resolved_path, help=text)
    group.add_argument(
        "--quantization",
        action=QuantizationAction,
        nargs="+",
        metavar=("POLICY", "AMAX_PATH"),
        help="fp8-cast (half the memory) or fp8-scaled-mm (faster; needs an fp8 checkpoint); AMAX_PATH, of older "
        "scripts, is accepted after fp8-scaled-mm and ignored",
    )


def _request_flags(
    parser: argparse.ArgumentParser,
    takes: set[str],
    path_type: Callable[[str], str],
    params: PipelineParams,
    stages: int,
) -> None:
    """What to make."""
    group = parser.add_argument_group("the video")
    group.add_argument("--prompt", required=True, help="what to see and hear")
    group.add_argument("--output-path", required=True, type=path_type, help="the .mp4, .mov or .mkv to write")
    group.add_argument("--seed", type=int, default=params.seed, help="same seed and settings, same video")
    group.add_argument(
        "--enhance-prompt", action="store_true", help="have the text encoder expand the prompt first"
    )
    if "num_frames" in takes:
        for side, default in zip(("height", "width"), params.sides(stages)):
            text = f"pixels, a multiple of {32 * stages}"
            group.add_argument(f"--{side}", type=int, default=default, help=text)
        group.add_argument(
            "--num-frames", type=int, default=params.num_frames, help="a multiple of 8, plus 1"
        )
        group.add_argument("--frame-rate", type=float, default=params.frame_rate, help="frames per second")
    unused = "" if "num_inference_steps" in takes else "; without effect: the distilled schedule is fixed"
    group.add_argument(
        "--num-inference-steps", type=int, default=params.num_inference_steps, help=f"denoising steps{unused}"
    )
    if "images" in takes:
        group.add_argument(
            "--image",
            dest="images",
            action=ImageAction,
            nargs="+",
            default=[],
            metavar="ARG",
            crf=params.default_image_crf,
            help="PATH FRAME_IDX STRENGTH [CRF]: a picture at a frame; may be repeated",
        )
    if "negative_prompt" in takes:
        group.add_argument(
            "--negative-prompt", default=params.negative_prompt, help="what to steer away from"
        )


def _guidance_flags(parser: argparse.ArgumentParser, params: PipelineParams) -> None:
    """How strongly to steer, for picture and sound apart."""
    group = parser.add_argument_group("guidance (each kind in use adds one pass per step)")

    def number(flag: str, default: float, text: str) -> None:
        group.add_argument(f"--{flag}", type=type(default), default=default, help=f"{flag[:5]}: {text}")

    for stream, guider in (("video", params.video_guider_params), ("audio", params.audio_guider_params)):
        cross, other = ("a2v", "sound") if stream == "video" else ("v2a", "picture")
        number(f"{stream}-cfg-guidance-scale", guider.cfg_scale, "towards the prompt, off at 1")
        number(
            f"{stream}-stg-guidance-scale",
            guider.stg_scale,
            "spatio-temporal guidance (STG): away from a pass that skips self-attention in some blocks; 0 is off",
        )
        text = f"{stream}: blocks that skip self-attention in the STG pass"
        group.add_argument(
            f"--{stream}-stg-blocks", type=int, nargs="*", default=guider.stg_blocks, help=text
        )
        text = f"{stream}: how closely it follows the {other}, off at 1"
        group.add_argument(f"--{cross}-guidance-scale", type=float, default=guider.modality_scale, help=text)
        number(
            f"{stream}-rescale-scale",
            guider.rescale_scale,
            "rescale towards the unguided contrast, 0 (off) to 1",
        )
        number(
            f"{stream}-skip-step",
            guider.skip_step,
            "steps that reuse the last estimate after each computed one",
        )


def _mode_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """What only one pipeline has."""
    group = parser.add_argument_group("options of this pipeline")
    if name == "ic_lora":
        group.add_argument(
            "--video-conditioning",
            action=VideoConditioningAction,
            nargs=2,
            metavar=("PATH", "STRENGTH"),
            required=True,
            help="a control clip and its strength; may be repeated",
        )
        group.add_argument(
            "--conditioning-attention-mask",
            action=MaskAction,
            nargs=2,
            metavar=("MASK", "STRENGTH"),
            help="mask clip (white: the control applies) and its attention strength, 0 to 1",
        )
        group.add_argument("--skip-stage-2", action="store_true", help="stop at half size")
    elif name == "a2vid_two_stage":
        group.add_argument("--audio-path", required=True, help="audio file that drives the video")
        group.add_argument(
            "--audio-start-time", type=float, default=0.0, help="seconds into the sound to start at"
        )
        text = "seconds of it to use (default: the length of the video)"
        group.add_argument("--audio-max-duration", type=float, help=text)
    elif name == "retake":
        text = (
            "adapt a clip of unsupported size: trim drops frames at the end; crop also cuts the edges; "
            "pad repeats the last frame and the edges"
        )
        group.add_argument("--fit", choices=FITS, help=text)
        text = "the clip: 8k + 1 frames, sides multiples of 32"
        group.add_argument("--video-path", required=True, help=text)
        group.add_argument("--start-time", type=float, required=True, help="start of the window in seconds")
        group.add_argument("--end-time", type=float, required=True, help="end of the window in seconds")
        group.add_argument(
            "--distilled", action="store_true", help="the checkpoint is distilled: 8 unguided steps"
        )
        for stream, what in (("video", "picture"), ("audio", "sound")):
            dest, text = f"regenerate_{stream}", f"keep the {what} as it is"
            group.add_argument(f"--keep-{stream}", dest=dest, action="store_false", help=text)
        text = "outside of the window write the clip's own frames and sound, not what is decoded of their latents"
        group.add_argument("--keep-original", action="store_true", help=text)
        group.add_argument("--loras", nargs="*", default=[], metavar="PATH", help="LoRAs at strength 1")
        parser.set_defaults(seed=42, num_inference_steps=40, negative_prompt="")


def _running_flags(parser: argparse.ArgumentParser) -> None:
    """How to run."""
    group = parser.add_argument_group("running")
    group.add_argument("--device", help="cuda, cuda:1, cpu ... (default: a GPU if there is one)")
    group.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of all weights and latents (default: bfloat16 on a GPU, else float32)",
    )
    group.add_argument(
        "--offload",
        choices=MODES,
        help="where the blocks of the large models wait while they are not computing (default: what fits)",
    )
    group.add_argument(
        "--attention",
        choices=[function.value for function in AttentionFunction],
        help="the transformer's attention kernel (default: the quickest exact one that is installed)",
    )
    group.add_argument(
        "--compile",
        nargs="*",
        type=compile_option,
        metavar="KEY=VALUE",
        help="compile the transformer's blocks, which pays for many clips of one size; options of torch.compile: "
        f"{', '.join(COMPILE_OPTIONS)}",
    )
    group.add_argument(
        "--max-batch-size",
        type=int,
        help="passes of a guided step computed at once (default: all where there are few tokens, else 1)",
    )
    group.add_argument(
        "--no-fuse-loras",
        dest="fuse_loras",
        action="store_false",
        help="compute LoRAs beside the weights: sets switch at once, no weight is held twice, steps take longer",
    )
    group.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="how a step is taken; res2s runs the model twice in each (default: the pipeline's)",
    )
    text = "how far --sampler gradient-estimation extrapolates; 1 is plain euler"
    group.add_argument("--ge-gamma", type=float, default=2.0, help=text)
    text = "decode in exact pieces (auto), in blended tiles, or at once (none)"
    group.add_argument("--tiling", choices=("auto", "blended", "none"), default="auto", help=text)
    group.add_argument("--config", metavar="FILE", help="start from a saved run (.toml or .json)")
    group.add_argument("--save-config", metavar="FILE", help="save this run's flags (.toml or .json)")
    group.add_argument(
        "--no-overwrite", dest="overwrite", action="store_false", help="refuse to replace a file"
    )
    group.add_argument("--debug", action="store_true", help="show the trace of an error")
