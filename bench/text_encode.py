"""Text encoding of a pair of prompts: from two strings to the contexts that the transformer attends to.

    python bench/peers.py ours official      (once; without official only ours is measured)
    python bench/text_encode.py

A Gemma of 12 layers with random weights and small connectors, so that as in a full model nearly all of the work is
Gemma's. "encode" has all weights loaded; "call" is what every call of a pipeline does: the official package builds
the encoder anew, ours keeps it.
"""

from __future__ import annotations

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import tiny_zoo

OFFICIAL = "official"
GEMMA = {"hidden": 1024, "layers": 12, "heads": 8}
TOLERANCE = 1e-3
PROMPTS = [
    "A red ball bounces on the green floor while a soft bell rings and the camera follows it slowly towards the wall "
    "where two small blue squares turn around each other in the warm light of dawn",
    "blurry, noisy, low quality, distorted, watermark, text, artifacts, shaky, out of focus, silent, a hand drawn "
    "animation of the sea at night with a train",
]


def write(folder: Path) -> dict[str, str]:
    """The text encoder, and a checkpoint with nothing but its embeddings processor."""
    from importlib.resources import files

    import torch

    from ltx_core.loader import save_checkpoint
    from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator
    from ltx_core.text_encoders.gemma.feature_extractor import size_projections
    from ltx_pipelines.miniature.gemma import write_tiny_gemma
    from ltx_pipelines.miniature.random_model import randomize

    write_tiny_gemma(folder / "gemma", **GEMMA)
    weights = folder / "gemma" / "model.safetensors"
    tiny_zoo.copy(weights, weights, "float32")
    (folder / "gemma" / "tokenizer.model").touch()  # the official package looks for it
    gemma = json.loads((folder / "gemma" / "config.json").read_text())["text_config"]
    config = json.loads(files("ltx_pipelines.miniature").joinpath("random_model.json").read_text())["model"]
    processor = EmbeddingsProcessorConfigurator.from_config(config)
    size_projections(processor, gemma["hidden_size"] * (gemma["num_hidden_layers"] + 1))
    randomize(processor, torch.Generator().manual_seed(0))
    save_checkpoint(
        folder / "model.safetensors", {"embeddings_processor": processor}, config, "2.3.0", torch.float32
    )
    return {"model": str(folder / "model.safetensors"), "gemma": str(folder / "gemma")}


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One side: the pair encoded twice, of which the second time counts."""
    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.prepare(task["gemma"], "float32")
    import torch
    from safetensors.torch import save_file

    from ltx_pipelines.utils import ModelLedger, encode_prompts

    ledger = ModelLedger(
        torch.float32, torch.device("cpu"), checkpoint_path=task["model"], gemma_root_path=task["gemma"]
    )
    begin = time.perf_counter()
    encoder, processor = ledger.text_encoder(), ledger.gemma_embeddings_processor()
    build = time.perf_counter() - begin
    loaded = SimpleNamespace(text_encoder=lambda: encoder, gemma_embeddings_processor=lambda: processor)
    seconds = []
    with torch.inference_mode():
        for _ in range(2):
            begin = time.perf_counter()
            contexts = encode_prompts(task["prompts"], loaded)
            seconds.append(time.perf_counter() - begin)
    streams = ("video_encoding", "audio_encoding")
    encodings = {f"{k}.{name}": getattr(c, name).clone() for k, c in enumerate(contexts) for name in streams}
    save_file(encodings, task["output"])
    call = seconds[-1] + (build if task["who"] == OFFICIAL else 0)
    return {"encode": seconds[-1], "call": call}


def job(who: str, task: dict[str, Any], threads: int, _round: int) -> dict[str, Any]:
    return common.run_worker(who, "text_encode.py", {**task, "output": f"{task['folder']}/{who}"}, threads)


def difference(folder: Path, who: str) -> float:
    """The largest deviation of the contexts from ours, relative to the largest value."""
    from safetensors.torch import load_file

    ours, theirs = load_file(folder / common.OURS), load_file(folder / who)
    return max(float((ours[k] - theirs[k]).abs().max() / ours[k].abs().max()) for k in ours)


def main() -> None:
    args = common.parser(__doc__, rounds=3).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = {**write(folder), "prompts": PROMPTS, "folder": name}
        jobs = {who: partial(job, who, task, args.threads) for who in (common.OURS, OFFICIAL)}
        found, failures = common.alternate(jobs, args.rounds, "text encoding", common.OURS)
        rows = [row(who, own, found[common.OURS], folder) for who, own in found.items()]
    rows += [[who, f"cannot be run: {why}", "–", "–", "–"] for who, why in failures.items()]
    header = ["side", "encode", "×", "call", "×", "contexts"]
    common.save("text_encode", args, header, rows, {"results": found, "failures": failures})


def row(who: str, own: list[dict[str, Any]], ours: list[dict[str, Any]], folder: Path) -> list[str]:
    """A row of the table: a side's times, over ours, and whether its contexts are ours."""
    cells = [who]
    for key in ("encode", "call"):
        times, base = common.column(own, key), common.column(ours, key)
        cells += [common.shown(common.spread(times), " s"), common.shown(common.ratio(base, times), "×")]
    off = difference(folder, who)
    return [*cells, "same" if off < TOLERANCE else f"off by {off:.1e}"]


if __name__ == "__main__":
    if (given := common.worker_task()) is not None:
        common.answer(work(given))
    else:
        main()
