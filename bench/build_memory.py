"""Peak memory of building each component of a checkpoint, relative to the component's size.

    python bench/peers.py ours official      (once; without official only ours is measured)
    python bench/build_memory.py

The checkpoints have published sizes, cut to a few blocks, with random bfloat16 weights. Each build has a process
of its own, which has built a tiny model of the kind before; the peak is what comes on top. Every weight is touched
once. "resident" counts all memory, pages of the mapped file included; "anonymous" what the process allocates.
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
import tiny_zoo

TARGET = 1.1
OFFICIAL = "official"
GEMMA = {"hidden": 2048, "layers": 8, "heads": 16}
GEMMA_ROOT = "gemma"
DTYPES = ("bfloat16", "float32")


def configurators() -> dict[str, dict[str, Any]]:
    """Component, as the ledger names it -> what its file holds."""
    from ltx_core.model.audio_vae import (
        AudioDecoderConfigurator,
        AudioEncoderConfigurator,
        VocoderConfigurator,
    )
    from ltx_core.model.transformer import LTXModelConfigurator
    from ltx_core.model.video_vae import VideoDecoderConfigurator, VideoEncoderConfigurator
    from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator

    return {
        "transformer": {"transformer": LTXModelConfigurator},
        "video_encoder": {"video_encoder": VideoEncoderConfigurator},
        "video_decoder": {"video_decoder": VideoDecoderConfigurator},
        "audio_encoder": {"audio_encoder": AudioEncoderConfigurator},
        "audio_decoder": {"audio_decoder": AudioDecoderConfigurator},
        "vocoder": {"vocoder": VocoderConfigurator},
        "gemma_embeddings_processor": {"embeddings_processor": EmbeddingsProcessorConfigurator},
        "text_encoder": {"vocoder": VocoderConfigurator},  # its own files; the ledger wants a checkpoint too
    }


def write(component: str, folder: Path, layers: int) -> dict[str, str]:
    """The files that hold a component, by what the ledger calls them."""
    from ltx_pipelines.miniature.gemma import write_tiny_gemma

    sizes = GEMMA if component == "text_encoder" else {}
    write_tiny_gemma(folder / GEMMA_ROOT, **sizes)
    (folder / GEMMA_ROOT / "tokenizer.model").touch()  # the official package looks for it
    published.write(folder / "model.safetensors", configurators()[component], layers, "bfloat16")
    return {"model": str(folder / "model.safetensors"), "gemma": str(folder / GEMMA_ROOT)}


def ledger_of(task: dict[str, Any], files: dict[str, str]) -> Any:
    """The class that builds components, by its public name, which both sides have."""
    import torch

    from ltx_pipelines.utils import ModelLedger

    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.use_gemma_sizes(files["gemma"])
    device, dtype = torch.device("cpu"), getattr(torch, task["dtype"])
    return ModelLedger(dtype, device, checkpoint_path=files["model"], gemma_root_path=files["gemma"])


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One side: build a component and touch all of it."""
    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.prepare()
    # A tiny one first, for what is imported and allocated once.
    getattr(ledger_of(task, task["tiny"]), task["component"])()
    ledger = ledger_of(task, task)
    gc.collect()
    common.reset_peak()
    base = {field: common.memory(field) for field in ("VmRSS", "RssAnon")}
    begin = time.perf_counter()
    with common.peak_of("RssAnon") as anonymous:
        module = getattr(ledger, task["component"])()
        tensors = list({t.data_ptr(): t for t in tensors_of(module)}.values())
        for tensor in tensors:  # one value a page: weights that are only mapped are not there yet
            tensor.detach().reshape(-1)[::1024].sum()
        seconds = time.perf_counter() - begin
    size = sum(tensor.nbytes for tensor in tensors)
    return {
        "size": size,
        "seconds": seconds,
        "resident": (common.memory("VmHWM") - base["VmRSS"]) / size,
        "anonymous": (anonymous() - base["RssAnon"]) / size,
    }


def tensors_of(module: Any) -> list[Any]:
    return [*module.parameters(), *module.buffers()]


def main() -> None:
    parser = common.parser(__doc__, rounds=2)
    parser.add_argument("--layers", type=int, default=1, help="transformer blocks of 0.39 B parameters")
    parser.add_argument("--only", nargs="+", default=None, metavar="COMPONENT")
    parser.add_argument("--peers", nargs="*", default=[OFFICIAL])
    args = parser.parse_args()
    rows, data = [], {}
    for component in args.only or configurators():
        with tempfile.TemporaryDirectory() as folder:
            tiny = tiny_zoo.prepare(None, Path(folder) / "tiny", "bfloat16")
            task = {**write(component, Path(folder), args.layers), "component": component, "tiny": tiny}
            for dtype in DTYPES:
                jobs = {
                    who: partial(job, who, {**task, "dtype": dtype}, args.threads)
                    for who in (common.OURS, *args.peers)
                }
                found, failures = common.alternate(jobs, args.rounds, f"{component} in {dtype}")
                rows += [row(component, dtype, who, own) for who, own in found.items()]
                rows += [
                    [component, dtype, who, f"cannot be run: {e}", "–", "–"] for who, e in failures.items()
                ]
                data[f"{component}.{dtype}"] = {"results": found, "failures": failures}
    header = [
        "component",
        "as",
        "side",
        "size",
        "peak resident / size",
        "peak anonymous / size",
    ]
    common.save("build_memory", args, header, rows, data)


def job(who: str, task: dict[str, Any], threads: int, _round: int) -> dict[str, Any]:
    return common.run_worker(who, "build_memory.py", task, threads)


def row(component: str, dtype: str, who: str, results: list[dict[str, Any]]) -> list[str]:
    resident, anonymous = (common.spread(common.column(results, key)) for key in ("resident", "anonymous"))
    over = " (over 1.1)" if who == common.OURS and resident["median"] > TARGET else ""
    size = f"{results[0]['size'] / 2**20:.0f} MiB"
    return [component, dtype, who, size, common.shown(resident) + over, common.shown(anonymous)]


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        main()
