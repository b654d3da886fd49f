"""A guided step (CFG + STG + modality) of the full-size model on a GPU: resident, streamed, in 8 bits; and the peers.

    python bench/peers.py      (once; without it ours alone, by the interpreter that runs this)
    python bench/gpu_step.py

22 B parameters with random weights, bfloat16, 768x512 and 1536x1024 pixels of 121 frames. Each way to run it has a
process of its own: it reads the weights, runs a step to warm up (with `--compile` to compile) and then some that are
timed. The fp8 file has scales of tensors for weights and inputs, as published ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import guided_step
import published

GRIDS = {"768x512": (16, 16, 24), "1536x1024": (16, 32, 48)}  # latent frames, height and width
TEXT_TOKENS = 1024
STEPS = 3
SIDE = 8192  # of the square matrices whose product tells the rate
INPUT_SCALE = 0.02

SCALED = "ours, fp8-scaled-mm"  # takes the fp8 file
# By name: options of `Engine.open`.
OURS: dict[str, dict[str, Any]] = {
    "ours": {"offload": "none"},
    "ours, compiled": {"offload": "none", "compile": True},
    "ours, streamed": {"offload": "cpu"},
    "ours, fp8-cast": {"offload": "none", "quantization": "fp8_cast"},
    "ours, fp8-cast, streamed": {"offload": "cpu", "quantization": "fp8_cast"},
    SCALED: {"offload": "none", "quantization": "fp8_scaled_mm"},
}
PEERS = ("official", "diffusers")


def write(path: Path, layers: int, device: str) -> None:
    """The model in bfloat16."""
    from ltx_core.model.transformer import LTXModelConfigurator

    published.write(path, {"transformer": LTXModelConfigurator}, layers, "bfloat16", device)


def narrow(path: Path, device: str) -> None:
    """The matrices of the model's blocks in fp8, in the place of the file: not every disk holds both."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from ltx_core.quantization.fp8 import requantize_scaled

    tensors = {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 - no dict
            value = file.get_tensor(key)
            if ".transformer_blocks." in key and key.endswith(".weight") and value.dim() == 2:
                name, (codes, scale) = key.removesuffix("weight"), requantize_scaled(value.to(device).float())
                tensors[key], tensors[f"{name}weight_scale"] = codes.cpu(), scale.cpu()
                tensors[f"{name}input_scale"] = torch.tensor(INPUT_SCALE)
            else:
                tensors[key] = value.clone()
    path.unlink()
    save_file(tensors, path, metadata)


def engine_step(task: dict[str, Any], given: dict[str, Any]) -> Any:
    """A step with the transformer as an engine with these options has it."""
    import torch

    from ltx_core.quantization import QuantizationPolicy
    from ltx_pipelines.engine import Engine
    from ltx_pipelines.utils.model_paths import ModelPaths

    options = dict(task["options"])
    if policy := options.pop("quantization", None):
        options["quantization"] = getattr(QuantizationPolicy, policy)()
    paths = ModelPaths(checkpoint_path=task["model"])
    engine = Engine.open(paths, device=task["device"], dtype=getattr(torch, task["dtype"]), **options)
    return guided_step.step_of(engine.transformer(), task, given)


def on_device(given: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    """Latents and texts in the model's dtype, masks and positions in float32."""
    import torch

    kinds = {"mask": torch.float32, "positions": torch.float32}
    dtype = getattr(torch, task["dtype"])
    return {
        name: tensor.to(task["device"], kinds.get(name.rpartition(".")[2], dtype))
        for name, tensor in given.items()
    }


def product_on(device: str) -> Callable[[], Any]:
    """A product of large matrices."""
    import torch

    one = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    return lambda: one @ one


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One way to run one size: seconds of its steps, peak memory, operations, and the rate of a large product."""
    import torch
    from safetensors.torch import load_file, save_file

    gpu = torch.device(task["device"]).type == "cuda"
    sides = {"official": guided_step.by_official_names, "diffusers": guided_step.by_diffusers}

    def seconds(run: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        run()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    with torch.inference_mode():
        rate = 2 * SIDE**3 / min(seconds(product_on(task["device"])) for _ in range(5))
        step = sides.get(task["who"], engine_step)(task, on_device(load_file(task["inputs"]), task))
        warm_up = seconds(step)
        result = {"warm_up": warm_up, "seconds": [seconds(step) for _ in range(STEPS)], "rate": rate}
        result["peak"] = torch.cuda.max_memory_allocated() if gpu else common.memory("VmHWM")
        video, audio = step()
        save_file({"video": video.cpu().contiguous(), "audio": audio.cpu().contiguous()}, task["output"])
        if task["counted"]:
            result["flop"] = common.count_operations(step)
    return result


def main() -> int:
    parser = common.parser(__doc__, rounds=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=48, help="blocks of 0.39 B parameters")
    parser.add_argument("--sizes", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--sides", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        common.log("There is no GPU that PyTorch can use: nothing is measured.")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.safetensors"
        for size in args.sizes:
            guided_step.write_inputs(folder / f"{size}.inputs", list(GRIDS[size]), TEXT_TOKENS, image=False)

        def job(side: str, size: str, index: int) -> dict[str, Any]:
            task = {
                "device": args.device,
                "dtype": "bfloat16",
                "layers": args.layers,
                "stg_block": guided_step.stg_block(args.layers),
                "options": OURS.get(side),
                "model": str(model),
                "inputs": str(folder / f"{size}.inputs"),
                "output": str(folder / f"{side}, {size}"),
                "counted": side == common.OURS,
            }
            who = common.OURS if side in OURS else side
            return common.run_worker(who, "gpu_step.py", task, args.threads, limit=3600)

        results: dict[str, list[Any]] = {}
        failures: dict[str, str] = {}
        write(model, args.layers, args.device)
        for scaled in (False, True):
            sides = [side for side in args.sides if (side == SCALED) is scaled]
            if scaled and sides:
                narrow(model, args.device)
            jobs = {f"{side}, {size}": partial(job, side, size) for size in args.sizes for side in sides}
            found, failed = common.alternate(jobs, args.rounds, "guided step on a GPU")
            results, failures = results | found, failures | failed
        rows = [row(name, results, folder) for name in results]
    rows += [[name, f"cannot be run: {why}", *["–"] * 4] for name, why in failures.items()]
    header = ["side, size", "seconds", "over ours", "peak memory", "share of the matrix rate", "outputs"]
    if args.device == "cuda":
        args.note = "; ".join(filter(None, (torch.cuda.get_device_name(), args.note)))
    common.save("gpu_step", args, header, rows, {"results": results, "failures": failures})
    return 0


def row(name: str, results: dict[str, list[Any]], folder: Path) -> list[str]:
    """A side's step of one size, over ours in bfloat16 of that size."""
    base = f"{common.OURS}, {name.rpartition(', ')[2]}"
    seconds = {key: [t for result in results.get(key, []) for t in result["seconds"]] for key in (name, base)}
    over, off, share = "–", "–", "–"
    if base in results:
        over = common.shown(common.ratio(seconds[base], seconds[name]), "×")
        off = f"off by {guided_step.distance(folder / name, folder / base):.1e}"
    if flop := results[name][0].get("flop"):
        share = f"{flop / min(seconds[name]) / results[name][0]['rate']:.0%}"
    peak = common.spread([result["peak"] / 2**30 for result in results[name]])
    return [
        name,
        common.shown(common.spread(seconds[name]), " s"),
        over,
        common.shown(peak, " GiB"),
        share,
        off,
    ]


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        sys.exit(main())
