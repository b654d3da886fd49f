"""One guided step (CFG + STG + modality) of a cut of the 2.3 architecture, random weights, CPU, float32.

    python bench/peers.py      (once)
    python bench/guided_step.py [--image]

Ours against the official package and diffusers. Every round loads and runs each side in a fresh process, in
turns, so that only one model is in memory at a time. The first step of a process warms up, the second counts; of the
first round the operations of a third are counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import published

SIGMA = 0.7
FPS = 24.0
GUIDANCE = {"stg_scale": 1.0, "rescale_scale": 0.7, "modality_scale": 3.0}
CFG = {"video": 3.0, "audio": 7.0}  # published defaults
PREFIX = "model.diffusion_model."
TOLERANCE = 1e-4

# Official name -> name in diffusers' state dict, the longest first where one holds another.
DIFFUSERS_NAMES = {
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "prompt_adaln_single": "prompt_adaln",
    "adaln_single": "time_embed",
    "patchify_proj": "proj_in",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}


def write_inputs(path: Path, grid: list[int], text_tokens: int, image: bool) -> None:
    """Noisy tokens, their coordinates and denoise masks, and the text contexts, the same for all sides."""
    import torch
    from safetensors.torch import save_file

    from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
    from ltx_core.tools import AudioLatentTools, VideoLatentTools
    from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape

    frames, height, width = grid
    pixels = VideoPixelShape(1, 8 * (frames - 1) + 1, 32 * height, 32 * width, FPS)
    video = VideoLatentTools(
        VideoLatentPatchifier(patch_size=1), VideoLatentShape(1, 128, frames, height, width), FPS
    )
    audio = AudioLatentTools(AudioPatchifier(patch_size=1), AudioLatentShape.from_video_pixel_shape(pixels))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tools, dim in (("video", video, 4096), ("audio", audio, 2048)):
        state = tools.create_initial_state(torch.device("cpu"), torch.float32)
        mask = state.denoise_mask.clone()
        if image and name == "video":
            mask[:, : height * width] = 0
        tensors[f"{name}.mask"] = mask
        tensors[f"{name}.latent"] = torch.randn(state.latent.shape, generator=generator)
        tensors[f"{name}.positions"] = state.positions.float()
        for sign in ("positive", "negative"):
            tensors[f"{name}.{sign}"] = torch.randn(1, text_tokens, dim, generator=generator)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


# -- the sides -------------------------------------------------------------------------------------------


def by_official_names(task: dict[str, Any], given: dict[str, Any]) -> Callable[[], tuple[Any, Any]]:
    """A guided step through the import surface that ours and the official package share."""
    if task["who"] != common.OURS:
        import official_runner

        official_runner.prepare()
    import torch

    from ltx_core.loader import SingleGPUModelBuilder
    from ltx_core.model.transformer import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator, X0Model

    builder = SingleGPUModelBuilder(
        model_class_configurator=LTXModelConfigurator,
        model_path=task["model"],
        model_sd_ops=LTXV_MODEL_COMFY_RENAMING_MAP,
    )
    made = builder.build(device=torch.device(task["device"]), dtype=getattr(torch, task["dtype"]))
    return step_of(X0Model(made).eval(), task, given)


def step_of(model: Any, task: dict[str, Any], given: dict[str, Any]) -> Callable[[], tuple[Any, Any]]:
    """A guided step with an `X0Model`."""
    import torch

    from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
    from ltx_core.types import LatentState
    from ltx_pipelines.utils import multi_modal_guider_denoising_func

    guiders, states = [], []
    for name, cfg in CFG.items():
        params = MultiModalGuiderParams(cfg_scale=cfg, stg_blocks=[task["stg_block"]], **GUIDANCE)
        guiders.append(MultiModalGuider(params, given[f"{name}.negative"]))
        latent = given[f"{name}.latent"]
        states.append(
            LatentState(
                latent=latent,
                denoise_mask=given[f"{name}.mask"],
                positions=given[f"{name}.positions"],
                clean_latent=latent.clone(),
            )
        )
    contexts = (given["video.positive"], given["audio.positive"])
    sigmas = torch.tensor([SIGMA, 0.0], device=task["device"])

    def step() -> tuple[Any, Any]:
        # A new function each time: a step must not live on the estimates of the one before.
        denoise = multi_modal_guider_denoising_func(*guiders, *contexts, model)
        return denoise(*states, sigmas, 0)

    return step


def by_diffusers(task: dict[str, Any], given: dict[str, Any]) -> Callable[[], tuple[Any, Any]]:
    """The same step with diffusers' transformer: conditional and unconditional pass as one batch of two."""
    import torch
    from diffusers import LTX2VideoTransformer3DModel

    switches = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod", "perturbed_attn")
    options = {"num_layers": task["layers"], "rope_type": "split", "use_prompt_embeddings": False}
    with torch.device("meta"):
        model = LTX2VideoTransformer3DModel(**options, **dict.fromkeys(switches, True))
    model = load_diffusers(model, task["model"], task["device"])
    streams = ("video", "audio")
    time_of = {name: given[f"{name}.mask"][..., 0] * SIGMA * 1000 for name in streams}
    sigma = torch.full((1,), SIGMA * 1000, device=task["device"])

    def forward(signs: tuple[str, ...], **options: Any) -> list[list[Any]]:
        """x0 of each stream, for each sign."""
        batch = len(signs)

        def many(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.expand(batch, *tensor.shape[1:])

        text = {name: torch.cat([given[f"{name}.{sign}"] for sign in signs]) for name in streams}
        velocities = model(
            hidden_states=many(given["video.latent"]),
            audio_hidden_states=many(given["audio.latent"]),
            encoder_hidden_states=text["video"],
            audio_encoder_hidden_states=text["audio"],
            timestep=many(time_of["video"]),
            audio_timestep=many(time_of["audio"]),
            sigma=many(sigma),
            audio_sigma=many(sigma),
            video_coords=many(given["video.positions"]),
            audio_coords=many(given["audio.positions"]),
            use_cross_timestep=True,
            return_dict=False,
            **options,
        )
        return [
            list((given[f"{name}.latent"] - v * given[f"{name}.mask"] * SIGMA).split(1))
            for name, v in zip(streams, velocities)
        ]

    def step() -> tuple[Any, Any]:
        both = forward(("positive", "negative"))
        perturbed = forward(("positive",), spatio_temporal_guidance_blocks=[task["stg_block"]])
        isolated = forward(("positive",), isolate_modalities=True)
        video, audio = (
            guided(cfg, *both[i], *perturbed[i], *isolated[i]) for i, cfg in enumerate(CFG.values())
        )
        return video, audio

    return step


def load_diffusers(model: Any, path: str, device: str) -> Any:
    """`model` with the weights of an official file, under diffusers' names."""
    from safetensors.torch import load_file

    tensors = {}
    for key, tensor in load_file(path, device).items():
        name = key.removeprefix(PREFIX)
        for official, other in DIFFUSERS_NAMES.items():
            if official in name:
                name = name.replace(official, other)
        tensors[name] = tensor
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def guided(cfg: float, cond: Any, uncond: Any, perturbed: Any, isolated: Any) -> Any:
    """The guider's formula over the four estimates."""
    x0 = cond + (cfg - 1) * (cond - uncond) + GUIDANCE["stg_scale"] * (cond - perturbed)
    x0 = x0 + (GUIDANCE["modality_scale"] - 1) * (cond - isolated)
    rescale = GUIDANCE["rescale_scale"]
    return x0 * (rescale * cond.std() / x0.std() + (1 - rescale))


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One side: build the model, one step to warm up and one that counts."""
    import torch
    from safetensors.torch import load_file, save_file

    given = load_file(task["inputs"])
    side = by_diffusers if task["who"] == "diffusers" else by_official_names
    begin = time.perf_counter()
    step = side(task, given)
    result: dict[str, Any] = {"build": time.perf_counter() - begin}
    with torch.inference_mode():
        for name in ("warm_up", "seconds"):
            begin = time.perf_counter()
            video, audio = step()
            result[name] = time.perf_counter() - begin
        result["cold"] = result["build"] + result["warm_up"]
        result["peak_bytes"] = common.memory("VmHWM")
        if task["save"]:
            save_file({"video": video.contiguous(), "audio": audio.contiguous()}, task["save"])
            result["tflop"] = common.count_operations(step) / 1e12
    return result


def stg_block(layers: int) -> int:
    """The perturbed block of a cut, as deep as the published one."""
    return 28 * layers // 48


def distance(got: Path, want: Path) -> float:
    """Relative L2 distance, the larger one of video and audio."""
    from safetensors.torch import load_file

    a, b = load_file(got), load_file(want)
    return max(((a[name] - b[name]).float().norm() / b[name].float().norm()).item() for name in b)


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument(
        "--layers", type=int, default=2, help="blocks of 0.39 B parameters (and 0.43 B besides)"
    )
    parser.add_argument("--grid", type=int, nargs=3, default=[4, 10, 10], metavar=("F", "H", "W"))
    parser.add_argument("--text-tokens", type=int, default=1024)
    parser.add_argument("--image", action="store_true", help="the first latent frame is a given picture")
    parser.add_argument("--peers", nargs="*", default=["official", "diffusers"])
    args = parser.parse_args()
    from ltx_core.model.transformer import LTXModelConfigurator

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        parts = {"transformer": LTXModelConfigurator}
        parameters = published.write(scratch / "model.safetensors", parts, args.layers, "float32")
        write_inputs(scratch / "inputs.safetensors", args.grid, args.text_tokens, args.image)
        task = {
            "model": str(scratch / "model.safetensors"),
            "inputs": str(scratch / "inputs.safetensors"),
            "layers": args.layers,
            "stg_block": stg_block(args.layers),
            "device": "cpu",
            "dtype": "float32",
        }

        def job(who: str, index: int) -> dict[str, Any]:
            save = str(scratch / f"{who}.safetensors") if index == 0 else ""
            return common.run_worker(who, "guided_step.py", {**task, "save": save}, args.threads)

        jobs = {who: partial(job, who) for who in (common.OURS, *args.peers)}
        results, failures = common.alternate(jobs, args.rounds, "guided step", common.OURS)
        found = {
            who: distance(scratch / f"{who}.safetensors", scratch / "ours.safetensors") for who in results
        }
    report(args, parameters, results, failures, found)


def report(
    args: Any, parameters: int, results: Any, failures: dict[str, str], found: dict[str, float]
) -> None:
    """Print and save the table: a row for each side."""
    rows, ours = [], results[common.OURS]
    what = f"{parameters / 1e9:.2f} B parameters, {args.grid[0] * args.grid[1] * args.grid[2]} video tokens"
    what += ", image" if args.image else ""
    for who, own in results.items():
        step, cold, peak = (
            common.shown(common.ratio(common.column(ours, key), common.column(own, key)), "×")
            for key in ("seconds", "cold", "peak_bytes")
        )
        seconds = common.shown(common.spread(common.column(own, "seconds")), " s")
        operations = f"{own[0]['tflop']:.2f}"
        same = "same" if found[who] < TOLERANCE else f"off by {found[who]:.1e}"
        if args.image and same != "same":
            same += " (conditioned tokens have their own noise level, as in the official 1.2.0)"
        rows.append([what, who, step, cold, peak, seconds, operations, same])
    rows += [[what, who, f"cannot be run: {why}", *["–"] * 5] for who, why in failures.items()]
    header = [
        "step",
        "side",
        "side over ours: step",
        "build + first step",
        "peak memory",
        "seconds",
        "TFLOP",
        "outputs",
    ]
    name = "guided_step_image" if args.image else "guided_step"
    common.save(name, args, header, rows, {"results": results, "failures": failures, "distance": found})


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        main()
