"""From the first stage's transformer to the second's, which has a LoRA more, and back: seconds and bytes read.

    python bench/peers.py official      (once; without it only ours is measured)
    python bench/stage_switch.py

A cut of the published 2.3 transformer with random weights, and a LoRA of rank 32 on its attentions. The official
package builds the transformer anew from its file, ours fuses into the weights in place.
"""

from __future__ import annotations

import gc
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import common
import published

OFFICIAL = "official"
RANK = 32
TOLERANCE = 2e-2  # of bfloat16 weights, relative to the largest


def write(folder: Path, layers: int) -> dict[str, str]:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from ltx_core.model.transformer import LTXModelConfigurator

    model, lora = folder / "model.safetensors", folder / "lora.safetensors"
    published.write(model, {"transformer": LTXModelConfigurator}, layers, "bfloat16")
    generator, tensors = torch.Generator().manual_seed(1), {}
    with safe_open(model, "pt") as file:
        for key in file.keys():  # noqa: SIM118 (no iterator)
            if ".attn" in key and ".to_" in key and key.endswith(".weight") and "gate" not in key:
                out, width = file.get_slice(key).get_shape()
                name = key.removeprefix("model.").removesuffix(".weight")
                down = torch.randn(RANK, width, generator=generator) / width**0.5
                tensors[f"{name}.lora_A.weight"] = down.bfloat16()
                tensors[f"{name}.lora_B.weight"] = (
                    0.01 * torch.randn(out, RANK, generator=generator)
                ).bfloat16()
    save_file(tensors, lora)
    return {"model": str(model), "lora": str(lora)}


def stages(task: dict[str, Any]) -> tuple[Any, Any]:
    """Functions that answer the transformer of the first and of the second stage."""
    import torch

    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps

    loras = (LoraPathStrengthAndSDOps(task["lora"], 1.0, LTXV_LORA_COMFY_RENAMING_MAP),)
    if task["who"] == OFFICIAL:
        from ltx_pipelines.utils import ModelLedger

        ledger = ModelLedger(torch.bfloat16, torch.device("cpu"), checkpoint_path=task["model"])
        second = ledger.with_loras(loras)
        return ledger.transformer, second.transformer
    from ltx_pipelines.engine import Engine
    from ltx_pipelines.utils.model_paths import ModelPaths

    engine = Engine.open(
        ModelPaths(checkpoint_path=task["model"]), dtype=torch.bfloat16, device="cpu", offload="none"
    )
    return engine.transformer, partial(engine.transformer, loras)


def work(task: dict[str, Any]) -> dict[str, Any]:
    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.prepare()
    import torch
    from safetensors.torch import save_file

    counted = common.count_bytes_read()
    first, second = stages(task)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        model = first()
        second_time = [("there", second), ("back", first), ("there again", second)]
        for name, build in second_time:
            del model
            gc.collect()
            read, begin = counted(), time.perf_counter()
            model = build()
            touched = sum(float(p.detach().reshape(-1)[::1024].float().sum()) for p in model.parameters())
            results[name] = {"seconds": time.perf_counter() - begin, "bytes": counted() - read}
        assert touched == touched
    weights = dict(model.velocity_model.named_parameters())
    name = next(name for name in weights if name.endswith("attn1.to_q.weight"))
    save_file({"weight": weights[name].detach().clone()}, task["output"])
    return results


def job(who: str, task: dict[str, Any], threads: int, _round: int) -> dict[str, Any]:
    return common.run_worker(who, "stage_switch.py", {**task, "output": f"{task['folder']}/{who}"}, threads)


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks of 0.39 B parameters")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        task = {**write(Path(name), args.layers), "folder": name}
        jobs = {who: partial(job, who, task, args.threads) for who in (common.OURS, OFFICIAL)}
        found, failures = common.alternate(jobs, args.rounds, "stage switch")
        rows = [
            row for who, own in found.items() for row in rows_of(who, own, found[common.OURS], Path(name))
        ]
    rows += [[who, f"cannot be run: {why}", "–", "–", "–", "–"] for who, why in failures.items()]
    header = ["side", "switch", "seconds", "×", "read", "weights"]
    common.save("stage_switch", args, header, rows, {"results": found, "failures": failures})


def rows_of(who: str, own: list[Any], ours: list[Any], folder: Path) -> list[list[str]]:
    from safetensors.torch import load_file

    mine, theirs = (load_file(folder / side)["weight"].float() for side in (common.OURS, who))
    off = float((mine - theirs).abs().max() / mine.abs().max())
    rows = []
    for switch in own[0]:
        times = [result[switch]["seconds"] for result in own]
        base = [result[switch]["seconds"] for result in ours]
        read = f"{own[0][switch]['bytes'] / 2**20:.1f} MiB"
        same = "same" if off < TOLERANCE else f"off by {off:.1e}"
        seconds, factor = common.spread(times), common.ratio(base, times)
        rows.append([who, switch, common.shown(seconds, " s"), common.shown(factor, "×"), read, same])
    return rows


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        main()
