"""Decoding a video with the published 2.3 decoder and random weights: time and peak memory.

    python bench/peers.py ours official      (once)
    python bench/video_decode.py

Ours streams exact pieces; the official package decodes its default tiles. Each side runs in a process of its own.
Ours also decodes the official tiles, so that the outputs can be compared.
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

OFFICIAL, TILED = "official", "ours, official tiles"


def write(folder: Path) -> str:
    from ltx_core.model.video_vae import VideoDecoderConfigurator

    path = folder / "model.safetensors"
    published.write(path, {"video_decoder": VideoDecoderConfigurator}, 1, "float32")
    return str(path)


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One side: decode the video once, its frames to a file as they come."""
    if task["who"] == OFFICIAL:
        import official_runner

        official_runner.prepare()
    import torch

    from ltx_core.model.video_vae import TilingConfig, decode_video
    from ltx_pipelines.utils import ModelLedger

    decoder = ModelLedger(torch.float32, torch.device("cpu"), checkpoint_path=task["model"]).video_decoder()
    latent = torch.randn(1, 128, *task["grid"], generator=torch.Generator().manual_seed(0))
    tiling: Any = TilingConfig.default()
    if task["who"] == common.OURS and not task["tiled"]:
        from ltx_core.model.video_vae import AUTO_TILING as tiling
    with torch.inference_mode():
        list(decode_video(latent[:, :, :2], decoder, tiling))  # warm
        gc.collect()
        common.reset_peak()
        base, begin = common.memory("VmRSS"), time.perf_counter()
        with open(task["output"], "wb") as file:
            for chunk in decode_video(latent, decoder, tiling):
                chunk.contiguous().numpy().tofile(file)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak": common.memory("VmHWM") - base}


def main() -> None:
    parser = common.parser(__doc__, rounds=2)
    parser.add_argument("--grid", type=int, nargs=3, default=[16, 8, 8], metavar=("F", "H", "W"))
    parser.add_argument("--peers", nargs="*", default=[OFFICIAL])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = {"model": write(Path(folder)), "grid": args.grid}

        def job(side: str, index: int) -> dict[str, Any]:
            who = common.OURS if side == TILED else side
            own = {"tiled": side != common.OURS, "output": f"{folder}/{side}"}
            return common.run_worker(who, "video_decode.py", task | own, args.threads)

        jobs = {side: partial(job, side) for side in (common.OURS, TILED, *args.peers)}
        results, failures = common.alternate(jobs, args.rounds, "video decode", common.OURS)
        outputs = {side: compared(side, Path(folder)) for side in results}
    rows, ours = [], results[common.OURS]
    for side, found in results.items():
        rows.append(
            [
                side,
                common.shown(
                    common.ratio(common.column(ours, "seconds"), common.column(found, "seconds")), "×"
                ),
                common.shown(common.ratio(common.column(ours, "peak"), common.column(found, "peak")), "×"),
                common.shown(common.spread(common.column(found, "seconds")), " s"),
                common.shown(common.spread([peak / 2**20 for peak in common.column(found, "peak")]), " MiB"),
                outputs[side],
            ]
        )
    header = ["side", "time over ours", "peak memory over ours", "seconds", "peak memory", "outputs"]
    common.save("video_decode", args, header, rows, {"results": results, "failures": failures})


def compared(side: str, folder: Path) -> str:
    """What to say of a side's frames beside our decode in official tiles; ours alone are meant to differ."""
    import numpy as np

    if side == common.OURS:
        return "without seams"
    found, tiles = (np.fromfile(folder / name, np.uint8).astype(int) for name in (side, TILED))
    off = float((np.abs(found - tiles) > 1).mean()) if found.shape == tiles.shape else 1.0
    return "as the official tiles" if off < 1e-3 else f"OFF in {off:.1%} of values"


if __name__ == "__main__":
    given = common.worker_task()
    if given is None:
        main()
    else:
        common.answer(work(given))
