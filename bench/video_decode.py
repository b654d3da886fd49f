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

OFFICIAL = "official"


def write(folder: Path) -> str:
    from ltx_core.model.video_vae import VideoDecoderConfigurator

    path = folder / "model.safetensors"
    published.write(path, {"video_decoder": VideoDecoderConfigurator}, 1, "float32")
    return str(path)


def work(task: dict[str, Any]) -> dict[str, Any]:
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
        total, frames = 0.0, 0
        for chunk in decode_video(latent, decoder, tiling):
            total, frames = total + chunk.double().sum().item(), frames + chunk.shape[0]
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak": common.memory("VmHWM") - base, "mean": total, "frames": frames}


def main() -> None:
    parser = common.parser(__doc__, rounds=2)
    parser.add_argument("--grid", type=int, nargs=3, default=[16, 8, 8], metavar=("F", "H", "W"))
    parser.add_argument("--peers", nargs="*", default=[OFFICIAL])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = {"model": write(Path(folder)), "grid": args.grid}
        sides = {common.OURS: False, "ours, official tiles": True, **dict.fromkeys(args.peers, True)}

        def job(side: str, tiled: bool, index: int) -> dict[str, Any]:
            who = common.OURS if side.startswith(common.OURS) else side
            return common.run_worker(who, "video_decode.py", {**task, "tiled": tiled}, args.threads)

        jobs = {side: partial(job, side, tiled) for side, tiled in sides.items()}
        results, failures = common.alternate(jobs, args.rounds, "video decode")
    rows, ours = [], results[common.OURS]
    tiles = results.get("ours, official tiles", [{}])[0].get("mean")
    for side, found in results.items():
        off = abs(found[0]["mean"] / tiles - 1) if tiles and sides[side] else None
        rows.append(
            [
                side,
                common.shown(
                    common.ratio(common.column(ours, "seconds"), common.column(found, "seconds")), "×"
                ),
                common.shown(common.ratio(common.column(ours, "peak"), common.column(found, "peak")), "×"),
                common.shown(common.spread(common.column(found, "seconds")), " s"),
                common.shown(common.spread([peak / 2**20 for peak in common.column(found, "peak")]), " MiB"),
                _compared(off),
            ]
        )
    header = ["side", "time over ours", "peak memory over ours", "seconds", "peak memory", "outputs"]
    common.save("video_decode", args, header, rows, {"results": results, "failures": failures})


def _compared(off: float | None) -> str:
    """What to say of outputs whose mean is `off`, relative, from that of our decode in official tiles."""
    if off is None:
        return "without seams"
    return "as the official tiles" if off < 1e-5 else f"OFF by {off:.1e}"


if __name__ == "__main__":
    given = common.worker_task()
    if given is None:
        main()
    else:
        common.answer(work(given))
