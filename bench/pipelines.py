"""Our eight pipelines against the official package, on the same tiny checkpoints and CPU.

    python bench/peers.py ours official      (once)
    python bench/pipelines.py

Every round runs each side in a fresh process, in turns: the cold start (import after torch, construction, first
call), a second call on the same object, and the peak memory of the process. Outputs are compared as well.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import common
import tiny_zoo

OFFICIAL = "official"
SINCE = "as in the official 1.2.0"
# Why an output is not the same as that of 1.0.0, by pipeline; the others must agree.
DIFFERS = {
    "ti2vid_two_stages": f"sound is the first stage's, {SINCE}",
    "ti2vid_two_stages_hq": "sampler noise follows the seed (1.0.0: constant)",
    "ic_lora": f"conditioned tokens have their own noise level, {SINCE}",
    "keyframe_interpolation": f"a keyframe lasts one frame, {SINCE}",
    "a2vid_two_stage": f"the given sound has noise level 0, {SINCE}",
    "retake": f"kept tokens have their own noise level, {SINCE}",
}
CLASSES = {
    "ti2vid_one_stage": "TI2VidOneStagePipeline",
    "ti2vid_two_stages": "TI2VidTwoStagesPipeline",
    "ti2vid_two_stages_hq": "TI2VidTwoStagesHQPipeline",
    "distilled": "DistilledPipeline",
    "ic_lora": "ICLoraPipeline",
    "keyframe_interpolation": "KeyframeInterpolationPipeline",
    "a2vid_two_stage": "A2VidPipelineTwoStage",
    "retake": "RetakePipeline",
}
DISTILLED = ("distilled", "ic_lora")
ONE_STAGE = ("ti2vid_one_stage", "retake")
PROMPT = "A red fox runs through fresh snow at dawn, its breath steaming; a slow pan follows it. Wind hums."
NEGATIVE = "blurry, low contrast, jittery motion, muffled sound"


def constructor_arguments(name: str, zoo: dict[str, str]) -> dict[str, Any]:
    """The official keywords, which both sides take."""
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps

    def lora(role: str) -> Any:
        return LoraPathStrengthAndSDOps(zoo[role], 1.0, LTXV_LORA_COMFY_RENAMING_MAP)

    checkpoint = "distilled_checkpoint_path" if name in DISTILLED else "checkpoint_path"
    given: dict[str, Any] = {checkpoint: zoo["model"], "gemma_root": zoo["gemma"], "loras": []}
    if name == "ic_lora":
        given["loras"] = [lora("ic_lora")]
    if name not in ONE_STAGE:
        given["spatial_upsampler_path"] = zoo["upsampler"]
    if name not in (*ONE_STAGE, *DISTILLED):
        given["distilled_lora"] = [lora("distilled_lora")]
    if name == "ti2vid_two_stages_hq":
        given |= {"distilled_lora_strength_stage_1": 0.25, "distilled_lora_strength_stage_2": 0.5}
    return given


def call_arguments(name: str, task: dict[str, Any]) -> dict[str, Any]:
    from ltx_core.components.guiders import MultiModalGuiderParams
    from ltx_pipelines.utils.args import ImageConditioningInput

    media = task["media"]
    stg = 0.0 if name == "ti2vid_two_stages_hq" else 1.0  # their published defaults
    video, audio = (
        MultiModalGuiderParams(
            cfg_scale=cfg,
            stg_scale=stg,
            stg_blocks=[task["stg_block"]],
            rescale_scale=0.7,
            modality_scale=3.0,
        )
        for cfg in (3.0, 7.0)
    )
    given: dict[str, Any] = {"prompt": PROMPT, "seed": 10}
    if name == "retake":
        given |= {"video_path": media["clip"], "start_time": 0.3, "end_time": 0.7}
    else:
        size = {key: task[key] for key in ("height", "width", "num_frames")}
        given |= {**size, "frame_rate": 24.0, "images": []}
    if name not in DISTILLED:
        given |= {"negative_prompt": NEGATIVE, "num_inference_steps": task["steps"]}
        given |= {"video_guider_params": video, "audio_guider_params": audio}
    if name == "a2vid_two_stage":
        del given["audio_guider_params"]
        given["audio_path"] = media["sound"]
    if name == "ic_lora":
        given["video_conditioning"] = [(media["clip"], 1.0)]
    if name == "keyframe_interpolation":
        ends = (0, task["num_frames"] - 1)
        given["images"] = [ImageConditioningInput(media["image"], frame, 1.0, 0) for frame in ends]
    return given


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One side, one pipeline: two calls."""
    import torch

    begin = time.perf_counter()  # with the imports of the official runner
    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.prepare(task["zoo"]["gemma"], task["dtype"])
    cls = getattr(import_module(f"ltx_pipelines.{task['pipeline']}"), CLASSES[task["pipeline"]])
    seconds = [time.perf_counter() - begin]
    options = {"dtype": getattr(torch, task["dtype"])} if task["who"] == common.OURS else {}
    init = constructor_arguments(task["pipeline"], task["zoo"])
    call = call_arguments(task["pipeline"], task)
    # Without inference mode the official package keeps gradients; ours minds that itself.
    with torch.inference_mode(task["who"] == OFFICIAL):
        begin = time.perf_counter()
        pipeline = cls(**init, **options)
        for _ in range(2):
            frames, sound = pipeline(**call)
            video = torch.cat(list(frames))
            seconds.append(time.perf_counter() - begin)
            begin = time.perf_counter()
    if task["save"]:
        import numpy as np

        np.savez(task["save"], video=video.numpy(), audio=sound.waveform.float().numpy())
    imported, first, second = seconds
    peak = common.memory("VmHWM")
    return {"import": imported, "cold": imported + first, "second": second, "peak_bytes": peak}


def write_media(folder: Path, height: int, width: int, frames: int) -> dict[str, str]:
    """A clip with sound, a still and a WAV file: moving gradients and two tones."""
    import av
    import numpy as np

    y, x = np.mgrid[0:height, 0:width]
    pictures = [
        np.stack([(x + 4 * t) % 256, (2 * y + t) % 256, (x + y) % 256], -1).astype(np.uint8)
        for t in range(frames)
    ]
    rate, seconds = 48000, frames / 24
    t = np.arange(round(rate * seconds)) / rate
    wave = np.stack([np.sin(880 * np.pi * t), np.sin(1320 * np.pi * t)]) * 0.3

    def sound_frame(layout: str) -> Any:
        samples = np.ascontiguousarray((wave * 32767).astype(np.int16).T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate = rate
        return frame

    def finish(container: Any, *streams: Any) -> None:
        for stream in streams:
            container.mux(stream.encode(None))

    with av.open(str(folder / "clip.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="stereo")
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(audio.encode(sound_frame("stereo")))
        finish(container, video, audio)
    with av.open(str(folder / "sound.wav"), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=rate, layout="stereo")
        container.mux(audio.encode(sound_frame("stereo")))
        finish(container, audio)
    av.VideoFrame.from_ndarray(pictures[0], format="rgb24").to_image().save(folder / "image.png")
    return {
        "clip": str(folder / "clip.mp4"),
        "sound": str(folder / "sound.wav"),
        "image": str(folder / "image.png"),
    }


def compare(ours: Path, theirs: Path) -> dict[str, float]:
    """Share of video values that differ by more than one level of 255, and the relative error of the sound."""
    import numpy as np

    a, b = np.load(ours), np.load(theirs)
    if a["video"].shape != b["video"].shape:
        raise SystemExit(f"The videos differ in shape: {a['video'].shape}, {b['video'].shape}.")
    off = np.abs(a["video"].astype(int) - b["video"].astype(int))
    length = min(a["audio"].shape[-1], b["audio"].shape[-1])
    got, want = (side["audio"][..., :length].astype(float) for side in (a, b))
    error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-12)
    return {"video_off": float((off > 1).mean()), "video_mean": float(off.mean()), "audio": float(error)}


def verdict(name: str, difference: dict[str, float] | None) -> str:
    if difference is None:
        return "not compared"
    video = (
        "video same" if difference["video_off"] < 1e-3 else f"video off by {difference['video_mean']:.2g}/255"
    )
    audio = "sound same" if difference["audio"] < 1e-3 else f"sound off by {difference['audio']:.0%}"
    same = "off" not in video + audio
    why = "" if same else f" ({DIFFERS.get(name, 'UNEXPECTED')})"
    return f"{video}, {audio}{why}"


def measure(name: str, task: dict[str, Any], scratch: Path, args: Any) -> tuple[list[str], dict[str, Any]]:
    """A row of the table and its raw numbers."""
    task = {**task, "pipeline": name}
    outputs = {who: scratch / f"{name}-{who}.npz" for who in (common.OURS, OFFICIAL)}

    def job(who: str) -> Any:
        def run(index: int) -> dict[str, Any]:
            save = str(outputs[who]) if index == 0 else ""
            return common.run_worker(who, "pipelines.py", {**task, "save": save}, args.threads)

        return run

    results, failures = common.alternate({who: job(who) for who in outputs}, args.rounds, name)
    if len(results) < 2:
        reason = "; ".join(f"{who}: {why}" for who, why in failures.items())
        return [name, f"cannot be run: {reason}", *["–"] * 4], {"failures": failures, "results": results}
    difference = compare(outputs[common.OURS], outputs[OFFICIAL])
    ratios = {
        key: common.ratio(common.column(results[common.OURS], key), common.column(results[OFFICIAL], key))
        for key in ("cold", "second", "peak_bytes")
    }
    seconds = common.spread(common.column(results[common.OURS], "second"))
    row = [name, *(common.shown(value, "×") for value in ratios.values()), common.shown(seconds, " s")]
    data = {"results": results, "ratios": ratios, "difference": difference}
    return [*row, verdict(name, difference)], data


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--zoo", type=Path, help="a folder of tiny checkpoints; default: our random model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    parser.add_argument("--only", nargs="+", choices=CLASSES, default=list(CLASSES), metavar="PIPELINE")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--num-frames", type=int, default=25)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--stg-block", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        size = {"height": args.height, "width": args.width, "num_frames": args.num_frames}
        task = {
            **size,
            "zoo": tiny_zoo.prepare(args.zoo, scratch / "zoo", args.dtype),
            "media": write_media(scratch, args.height, args.width, args.num_frames),
            "dtype": args.dtype,
            "steps": args.steps,
            "stg_block": args.stg_block,
        }
        found = {name: measure(name, task, scratch, args) for name in args.only}
    header = ["pipeline", "import + first call", "second call", "peak memory", "our second call", "outputs"]
    rows, data = [row for row, _ in found.values()], {name: data for name, (_, data) in found.items()}
    common.save("pipelines", args, header, rows, data)


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        sys.exit(main())
