"""From the first stage's transformer to the second's, which has a LoRA more, and back: seconds and bytes read.

    python bench/peers.py ours official      (once; without official only ours is measured)
    python bench/stage_switch.py

A cut of the published 2.3 transformer with random weights, and a LoRA of rank 32 on its attentions. The official
package builds the transformer anew from its file; ours fuses into the weights that it has, or (`fuse_loras=False`)
computes the LoRA beside them. What is timed ends when every page of the weights is there. Once the files are in the
page cache, and once they have been evicted from it before every switch, as happens to a checkpoint that main memory
cannot hold beside the models made from it. Of ours a pass with the LoRA is timed too.
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

OFFICIAL, BESIDE = "official", "ours, beside"
RANK = 32
CACHES = ("warm", "cold")
SWITCHES = ("there", "back", "there again")
PAGE = 4096
STAYS = 0.01  # share of a file that may be left in an evicted page cache
TOLERANCE = 2e-2  # of bfloat16 weights, relative to the largest
TOKENS = 512  # of the pass
PASSES = 3


def write(folder: Path, layers: int) -> dict[str, str]:
    """The transformer's file and a LoRA on its attentions."""
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
    """Functions that return the transformer of the first and of the second stage."""
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
        ModelPaths(checkpoint_path=task["model"]),
        dtype=torch.bfloat16,
        device="cpu",
        offload="none",
        fuse_loras=task["side"] != BESIDE,
    )
    return engine.transformer, partial(engine.transformer, loras)


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One side: there, back and there again."""
    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.prepare()
    import torch
    from safetensors.torch import save_file

    counted, from_disk = common.count_bytes_read(), common.count_bytes_from_disk()
    first, second = stages(task)
    results: dict[str, Any] = {}
    with torch.inference_mode():
        model = first()
        look(model)
        before = common.memory("RssAnon")
        for name, build in zip(SWITCHES, (second, first, second)):
            del model
            gc.collect()
            if task["cache"] == "cold" and max(map(common.evict, (task["model"], task["lora"]))) > STAYS:
                raise SystemExit("The system does not evict the files from its page cache.")
            read, fetched, begin = counted(), from_disk(), time.perf_counter()
            model = build()
            built = time.perf_counter() - begin
            first_look, second_look = look(model), look(model)
            results[name] = {
                "seconds": built + max(first_look - second_look, 0.0),
                "bytes": counted() - read,
                "disk": from_disk() - fetched,
                "memory": common.memory("RssAnon") - before,
            }
        if task["who"] != OFFICIAL:
            results["pass"] = seconds_of_pass(model)
        layer = next(m for name, m in model.named_modules() if name.endswith(".attn1.to_q"))
        eye = torch.eye(layer.in_features, dtype=layer.weight.dtype)
        save_file({"weight": (layer(eye) - layer.bias).contiguous()}, task["output"])
    return results


def seconds_of_pass(model: Any) -> float:
    """The shortest of some passes of `TOKENS` video tokens."""
    import torch

    import growth

    given = growth.modalities(TOKENS, torch.bfloat16)
    return growth.best(partial(model, **given, perturbations=None), PASSES)


def look(model: Any) -> float:
    """Seconds to read a value of every page. Weights of a mapped file come only then, the first time."""
    begin = time.perf_counter()
    for parameter in model.parameters():
        parameter.detach().reshape(-1)[:: PAGE // parameter.itemsize].float().sum()
    return time.perf_counter() - begin


def job(side: str, task: dict[str, Any], threads: int, _round: int) -> dict[str, Any]:
    who = common.OURS if side == BESIDE else side
    task |= {"side": side, "output": f"{task['folder']}/{side}"}
    return common.run_worker(who, "stage_switch.py", task, threads)


def main() -> None:
    parser = common.parser(__doc__, rounds=3)
    parser.add_argument("--layers", type=int, default=2, help="transformer blocks of 0.39 B parameters")
    args = parser.parse_args()
    rows, data = [], {}
    with tempfile.TemporaryDirectory() as name:
        task = {**write(Path(name), args.layers), "folder": name}
        for cache in CACHES:
            jobs = {
                side: partial(job, side, {**task, "cache": cache}, args.threads)
                for side in (common.OURS, BESIDE, OFFICIAL)
            }
            found, failures = common.alternate(
                jobs, args.rounds, f"stage switch, {cache} page cache", common.OURS
            )
            for side, own in found.items():
                rows += rows_of(cache, side, own, found, Path(name))
            rows += [[cache, side, f"cannot be run: {why}", *["–"] * 7] for side, why in failures.items()]
            data[cache] = {"results": found, "failures": failures}
    header = ["page cache", "side", "switch", "seconds", "official over it", "read", "from disk"]
    header += ["memory more", "a pass", "weights"]
    common.save("stage_switch", args, header, rows, data)


def rows_of(
    cache: str, side: str, own: list[Any], found: dict[str, list[Any]], folder: Path
) -> list[list[str]]:
    from safetensors.torch import load_file

    mine, theirs = (load_file(folder / name)["weight"].float() for name in (common.OURS, side))
    off = float((mine - theirs).abs().max() / mine.abs().max())
    same = "same" if off < TOLERANCE else f"off by {off:.1e}"
    passing = common.shown(common.spread(common.column(own, "pass")), " s") if "pass" in own[0] else "–"
    rows = []
    for switch in SWITCHES:
        times = [result[switch]["seconds"] for result in own]
        official = [result[switch]["seconds"] for result in found.get(OFFICIAL, [])]
        factor = common.shown(common.ratio(times, official) if official else None, "×")
        numbers = (f"{own[0][switch][key] / 2**20:.1f} MiB" for key in ("bytes", "disk", "memory"))
        seconds, with_lora = common.shown(common.spread(times), " s"), switch != "back"
        rows.append([cache, side, switch, seconds, factor, *numbers, passing if with_lora else "–", same])
    return rows


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        main()
