"""Images, audio and video files, masks, constants, and the command line."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import TemporalRegionMask
from ltx_core.conditioning.pixel_mask import downsample_mask
from ltx_core.model.video_vae import TilingConfig, get_video_chunks_number
from ltx_core.quantization import QuantizationPolicy
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import Audio, AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx_pipelines.cli.flags import build_parser
from ltx_pipelines.cli.run import default_params
from ltx_pipelines.media.video import probe_video
from ltx_pipelines.media.writer import to_int16
from ltx_pipelines.utils import constants
from ltx_pipelines.utils.loras import as_loras, reference_downscale_factor
from ltx_pipelines.utils.media_io import (
    decode_audio_from_file,
    decode_image,
    encode_video,
    load_image_conditioning,
    load_video_conditioning,
    preprocess,
    resize_and_center_crop,
    resize_aspect_ratio_preserving,
)
from ltx_pipelines.utils.prompts import clean_response
from ltx_pipelines.utils.validation import assert_resolution
from tests.conformance.harness import Case, Check, Context, equal, exact, near_abs, read_json, read_tensors


def recognises(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("cli_inventory.json", "images.json", "av.json"))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    for path in sorted(folder.glob("*.json")):
        run = RUNNERS.get(path.stem)
        if run is None:
            yield Case(path.stem, lambda: [Check("kind", False, "nobody knows how to run this file")])
        else:
            yield Case(path.stem, lambda r=run, p=path: r(p))


def _images(path: Path) -> Iterator[Check]:
    meta, t, folder = read_json(path), read_tensors(path.with_suffix(".safetensors")), path.parent
    for i, case in enumerate(meta["cases"]):
        got = resize_and_center_crop(t[f"crop.{i}.in"].float(), *case["target"])
        yield near_abs(f"crop.{i}", got, t[f"crop.{i}.out"], 2e-4)
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            want = t.get(f"cond.{i}.{name}")
            if want is not None:
                got = load_image_conditioning(folder / case["file"], *case["target"], dtype, "cpu", crf=0)
                yield near_abs(f"cond.{i}.{name}", got, want, 1e-5 if name == "float32" else 2**-7)
        picture = torch.from_numpy(decode_image(folder / case["file"])).float()
        got = resize_aspect_ratio_preserving(picture, case["long_side"])
        yield near_abs(f"aspect.{i}", got, t[f"aspect.{i}.out"], 2e-4)
    if "crop.video.in" in t:
        size = t["crop.video.out"].shape[-2:]
        yield near_abs(
            "crop.video", resize_and_center_crop(t["crop.video.in"].float(), *size), t["crop.video.out"], 2e-4
        )
    if "rgba.decode" in t:
        yield exact("rgba", torch.from_numpy(decode_image(folder / "image_rgba.png")), t["rgba.decode"])
    for i, case in enumerate(meta.get("crf", ())):
        yield from _recompressed(f"crf.{i}", case)


def _recompressed(name: str, case: dict) -> Iterator[Check]:
    """Encoders differ between builds: the shape is exact, the quality that of the same crf on like content."""
    height, width = case["src"]
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack([rows * 3 % 256, columns * 5 % 256, (rows + columns) * 2 % 256], axis=-1).astype(
        np.uint8
    )
    got = preprocess(picture, case["crf"])
    yield equal(f"{name} shape", list(got.shape), case["out_shape"])
    error = (got.astype(float) - picture[: got.shape[0], : got.shape[1]]) ** 2
    psnr = 10 * math.log10(255**2 / max(error.mean(), 1e-9))
    yield Check(
        f"{name} psnr", 15 < psnr < 60, f"{psnr:.1f} dB on another picture (reference {case['psnr_db']})"
    )


def _av(path: Path) -> Iterator[Check]:
    meta, t, folder = read_json(path), read_tensors(path.with_suffix(".safetensors")), path.parent
    clip = meta["clip"]
    file, info = folder / clip["file"], probe_video(folder / clip["file"])
    facts = {"fps": info.fps, "frames": info.frames, "height": info.height, "width": info.width}
    yield equal("clip", facts, {key: clip[key] for key in facts})
    got = load_video_conditioning(file, *clip["target"], clip["frame_cap"], torch.float32, "cpu")
    yield near_abs("clip.cond", got, t["clip.cond_float32"], 1e-5)
    audio = meta["audio"]
    for i, case in enumerate(audio["cases"]):
        sound = decode_audio_from_file(
            folder / audio["file"], "cpu", case["start_time"], case["max_duration"]
        )
        assert sound is not None
        yield exact(f"audio.{i}", sound.waveform, t[f"audio.{i}"])
        yield equal(f"audio.{i} rate", sound.sampling_rate, case["sampling_rate"])
    yield equal("no audio", decode_audio_from_file(file), audio["from_clip_without_audio"])
    yield equal("int16", to_int16(t["int16.in"]).tolist(), t["int16.out"].tolist())
    yield from _encoded(meta["encode"], file)


def _encoded(meta: dict, clip: Path) -> Iterator[Check]:
    import av

    from ltx_pipelines.utils.media_io import decode_video_from_file

    frames = torch.cat(list(decode_video_from_file(clip)))
    rate, fps = meta["audio"]["rate"], meta["fps_in"]
    sound = Audio(torch.zeros(2, round(len(frames) / fps * rate)), rate)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        with contextlib.redirect_stderr(io.StringIO()):
            encode_video(frames, fps, sound, out, 1)
        with av.open(str(out)) as container:
            streams = [{"codec": s.codec_context.name, "type": s.type} for s in container.streams]
            video, audio = container.streams.video[0], container.streams.audio[0]
            facts = [video.frames, video.pix_fmt, [video.width, video.height], audio.rate, audio.layout.name]
            tags = [int(video.codec_context.color_range), int(video.codec_context.colorspace)]
            exact_rate = video.average_rate
    names = [{**s, "codec": s["codec"].removeprefix("lib").replace("x264", "h264")} for s in streams]
    yield equal("streams", names, meta["streams"])
    want = meta["video"]
    expected = [want["frames"], want["pix_fmt"], want["size"], meta["audio"]["rate"], meta["audio"]["layout"]]
    yield equal("facts", facts, expected)
    yield equal("exact rate", exact_rate, Fraction(round(fps) * 1000, 1001))
    yield equal("tagged BT.709 limited", tags, [1, 1])


def _masks(path: Path) -> Iterator[Check]:
    meta, t = read_json(path), read_tensors(path.with_suffix(".safetensors"))
    for i, case in enumerate(meta["downsample"]):
        got = downsample_mask(t[f"mask.{i}.in"].float(), tuple(case["latent"]))
        yield near_abs(f"mask.{i}", got, t[f"mask.{i}.out"], 1e-6)
    for i, case in enumerate(meta["retake_region"]):
        shape = VideoPixelShape(1, case["frames"], case["height"], case["width"], case["fps"])
        mask = TemporalRegionMask(case["start_time"], case["end_time"], case["fps"])
        video = VideoLatentTools(
            VideoLatentPatchifier(1), VideoLatentShape.from_pixel_shape(shape), case["fps"]
        )
        audio = AudioLatentTools(AudioPatchifier(1), AudioLatentShape.from_video_pixel_shape(shape))
        for name, tools in (("video", video), ("audio", audio)):
            state = mask.apply_to(tools.create_initial_state(torch.device("cpu"), torch.float32), tools)
            yield exact(f"region.{i}.{name}", state.denoise_mask, t[f"region.{i}.{name}"])


def _constants(path: Path) -> Iterator[Check]:
    meta = read_json(path)
    default = TilingConfig.default()
    assert default.spatial_config is not None
    assert default.temporal_config is not None
    tiling = {
        "spatial": [
            default.spatial_config.tile_size_in_pixels,
            default.spatial_config.tile_overlap_in_pixels,
        ],
        "temporal": [
            default.temporal_config.tile_size_in_frames,
            default.temporal_config.tile_overlap_in_frames,
        ],
    }
    for key, want in meta.items():
        yield equal(key, tiling if key == "default_tiling" else _plain(getattr(constants, key), want), want)


def _plain(value: Any, like: Any) -> Any:
    """`value` as the JSON that stands for it, with the keys that `like` has."""
    if isinstance(like, dict):
        return {key: _plain(getattr(value, key), item) for key, item in like.items()}
    return list(value) if isinstance(like, list) else value


def _small_functions(path: Path) -> Iterator[Check]:
    meta = read_json(path)
    for row in meta["detect_params"]:
        want = getattr(constants, row["params"])
        newest = constants.LTX_2_4_PARAMS
        got = constants.params_for_version(row["model_version"])
        yield Check(f"params of {row['model_version']}", got in (want, newest), str(got.num_inference_steps))
    for row in meta["clean_response"]:
        yield equal("clean_response", clean_response(row["in"]), row["out"])
    for row in meta["assert_resolution"]:
        try:
            assert_resolution(row["height"], row["width"], row["is_two_stage"])
            got = "ok"
        except ValueError:
            got = "ValueError"
        yield equal(f"{row['height']}x{row['width']}", got, row["result"])
    for row in meta["get_video_chunks_number_default_tiling"]:
        got = get_video_chunks_number(row["num_frames"], TilingConfig.default())
        yield equal(f"chunks of {row['num_frames']}", got, row["chunks"])
        yield equal("untiled", get_video_chunks_number(row["num_frames"]), row["chunks_none"])
    for row in meta["reference_downscale_factor"]:
        yield equal(f"factor {row['metadata']}", _factor(row["metadata"]), row["result"])


def _factor(stated: str | None) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        metadata = None if stated is None else {"reference_downscale_factor": stated}
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
        return reference_downscale_factor(as_loras([str(path)]))


def _inventory(path: Path) -> Iterator[Check]:
    for version, entry in read_json(path).items():
        stated = entry.get("model_version", version)
        for module, options in entry["modules"].items():
            parser = build_parser(module, _defaults(module, stated))
            actions = {tuple(a.option_strings): a for a in parser._actions}
            for option in options:
                action = actions.get(tuple(option["flags"]))
                name = f"{version} {module} {option['flags'][0]}"
                if action is None:
                    yield Check(name, False, "missing")
                    continue
                yield equal(
                    name, _facts(action, option), {key: option[key] for key in _facts(action, option)}
                )


def _defaults(module: str, version: str | None) -> constants.PipelineParams:
    """The defaults of a run with a checkpoint of this version."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(
            {"x": torch.zeros(1)}, path, metadata=None if version is None else {"model_version": version}
        )
        return default_params(module, str(path))


def _facts(action: Any, option: dict) -> dict[str, Any]:
    kinds = {int: "int", float: "float", str: "str", None: None}
    custom = str(option.get("action", "")).startswith("custom:")
    facts: dict[str, Any] = {"dest": action.dest, "default": _default(action.default)}
    for key in ("nargs", "required"):
        if key in option:
            facts[key] = getattr(action, key)
    if "type" in option and not custom:
        kind = kinds.get(action.type, "path")
        facts["type"] = "str" if kind is None and option["type"] == "str" else kind
    return facts


def _default(value: Any) -> Any:
    return "DEFAULT_NEGATIVE_PROMPT" if value == constants.DEFAULT_NEGATIVE_PROMPT else value


def _parse(path: Path) -> Iterator[Check]:
    for number, case in enumerate(read_json(path)):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder).resolve().as_posix()
            argv = [text.replace("$DIR", home) for text in case["argv"]]
            parser = build_parser(case["module"], _defaults(case["module"], case["model_version"]))
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    got = vars(parser.parse_args(argv))
            except SystemExit as error:
                yield equal(f"{number} {case['module']}", error.code, case.get("exit_code"))
                continue
            if "namespace" not in case:
                yield Check(
                    f"{number} {case['module']}", False, f"accepted, expected exit {case['exit_code']}"
                )
                continue
            plain = {key: _value(value, home) for key, value in got.items() if key in case["namespace"]}
            yield equal(f"{number} {case['module']}", plain, case["namespace"])


def _value(value: Any, home: str) -> Any:
    """A parsed value in the notation of the goldens."""
    if isinstance(value, QuantizationPolicy):
        return {"QuantizationPolicy": value.sd_ops.name if value.sd_ops else None}
    if hasattr(value, "sd_ops"):
        return {
            "LoraPathStrengthAndSDOps": [value.path.replace(home, "$DIR"), value.strength, value.sd_ops.name]
        }
    if hasattr(value, "frame_idx"):
        return {"ImageConditioningInput": [value.path.replace(home, "$DIR"), *value[1:]]}
    if isinstance(value, list | tuple):
        return [_value(item, home) for item in value]
    return _default(value.replace(home, "$DIR") if isinstance(value, str) else value)


RUNNERS = {
    "images": _images,
    "av": _av,
    "masks": _masks,
    "constants": _constants,
    "small_functions": _small_functions,
    "cli_inventory": _inventory,
    "cli_parse": _parse,
}
