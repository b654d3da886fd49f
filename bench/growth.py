"""Growth of time and memory with tokens, frames and sound, next to a floor computed from operations and bytes.

    python bench/peers.py ours      (once)
    python bench/growth.py [--dtype bfloat16] [--tokens 512 1024 ...] [--frames 9 25 ...] [--seconds 5 10 ...]

Ours alone, random weights: one pass through one block of the published 2.3 transformer, the decode of
256x256 videos by its video decoder, and of sounds by its audio decoder and vocoder. The floor of the time is
the larger of the operations over the rate of a large matrix product or convolution and of the weights' bytes
over the rate of a copy, the better of those measured before and after in the same process. The floor of the
transformer's memory holds its residual stream and one hidden layer of its feed-forward network.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import published

FPS = 24.0
LIMIT = 3600.0  # seconds of one size
TOKENS = {"float32": [512, 1024, 2048, 4096, 8192, 32768]}
TOKENS["bfloat16"] = [*TOKENS["float32"], 65536]
SECONDS = {"float32": [5, 10, 20], "bfloat16": []}  # the last network of a sound is float32 always
WIDTHS = {"video": 4096, "audio": 2048}
GRID = (8, 8)  # latent height and width


def best(work: Callable[[], Any], times: int = 5) -> float:
    """The shortest of some runs, seconds."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def rates(dtype: Any) -> tuple[float, float]:
    """Operations and bytes per second of this machine."""
    import torch

    one, other = torch.randn(2, 2048, 2048, dtype=dtype)
    picture, kernel = torch.randn(1, 256, 64, 64, dtype=dtype), torch.randn(256, 256, 3, 3, dtype=dtype)
    block = torch.randn(2**26)
    product = 2 * 2048**3 / best(lambda: one @ other)
    convolution = 2 * kernel.numel() * 62**2 / best(lambda: torch.conv2d(picture, kernel))
    return max(product, convolution), 2 * block.nbytes / best(block.clone)


def random(configurator: Any, dtype: Any) -> Any:
    """A model of the published configuration with one block, with random weights."""
    import torch

    from ltx_core.model.common.convolution import with_channels_last
    from ltx_pipelines.miniature.random_model import randomize

    with torch.device("meta"):
        model = configurator.from_config(published.cut(1))
    model = randomize(model.to_empty(device="cpu"), torch.Generator().manual_seed(0)).eval()
    return with_channels_last(model.to(dtype))


def modalities(tokens: int, dtype: Any) -> dict[str, Any]:
    """Random inputs of the published transformer with so many video tokens, by stream."""
    import torch

    from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
    from ltx_core.model.transformer import Modality
    from ltx_core.tools import AudioLatentTools, VideoLatentTools
    from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape

    frames = tokens // (GRID[0] * GRID[1])
    pixels = VideoPixelShape(1, 8 * (frames - 1) + 1, 32 * GRID[0], 32 * GRID[1], FPS)
    tools = {
        "video": VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(1, 128, frames, *GRID), FPS),
        "audio": AudioLatentTools(AudioPatchifier(1), AudioLatentShape.from_video_pixel_shape(pixels)),
    }
    given = {}
    for name, made in tools.items():
        state = made.create_initial_state(torch.device("cpu"), dtype)
        given[name] = Modality(
            latent=torch.randn(state.latent.shape, dtype=dtype),
            sigma=torch.tensor(0.7),
            timesteps=state.denoise_mask * 0.7,
            positions=state.positions,
            context=torch.randn(1, 1024, WIDTHS[name], dtype=dtype),
        )
    return given


def transformer(tokens: int, dtype: Any) -> tuple[Callable[[], Any], int, int]:
    """A pass with so many video tokens, its bytes of weights, its floor of memory."""
    from ltx_core.model.transformer import LTXModelConfigurator

    model, given = random(LTXModelConfigurator, dtype), modalities(tokens, dtype)
    floor = dtype.itemsize * sum(5 * WIDTHS[name] * m.latent.shape[1] for name, m in given.items())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return lambda: model(**given), weights, floor


def decoder(frames: int, dtype: Any) -> tuple[Callable[[], Any], int, int]:
    """The decode of a video of so many frames, its bytes of weights; its memory has no floor here, 0."""
    import torch

    from ltx_core.model.video_vae import AUTO_TILING, VideoDecoderConfigurator, decode_video

    model = random(VideoDecoderConfigurator, dtype)
    latent = torch.randn(1, 128, (frames - 1) // 8 + 1, *GRID, dtype=dtype)

    def decode() -> None:
        for _ in decode_video(latent, model, AUTO_TILING):
            pass

    weights = sum(parameter.nbytes for parameter in model.parameters())
    return decode, weights, 0


def sound(seconds: int, dtype: Any) -> tuple[Callable[[], Any], int, int]:
    """The decode of a sound of so many seconds, its bytes of weights; its memory has no floor here, 0."""
    import torch

    from ltx_core.model.audio_vae import AudioDecoderConfigurator, VocoderConfigurator, decode_audio

    parts = random(AudioDecoderConfigurator, dtype), random(VocoderConfigurator, dtype)
    latent = torch.randn(1, 8, 25 * seconds, 16, dtype=dtype)
    weights = sum(parameter.nbytes for model in parts for parameter in model.parameters())
    return lambda: decode_audio(latent, *parts), weights, 0


KINDS = {"transformer": transformer, "decoder": decoder, "sound": sound}
UNITS = {"transformer": "tokens", "decoder": "frames", "sound": "seconds"}


def work(task: dict[str, Any]) -> dict[str, Any]:
    """One size: its time and memory, and the floors of both."""
    import torch

    dtype = getattr(torch, task["dtype"])
    with torch.inference_mode():
        run, weights, floor = KINDS[task["what"]](task["size"], dtype)
        before = rates(dtype)
        operations = common.count_operations(run)  # warm, too
        gc.collect()
        common.reset_peak()
        base, begin = common.memory("VmRSS"), time.perf_counter()
        run()
        seconds, peak = time.perf_counter() - begin, common.memory("VmHWM") - base
        rate, bandwidth = map(max, zip(before, rates(dtype)))
    return {
        "seconds": seconds,
        "peak": peak,
        "floor": max(operations / rate, weights / bandwidth),
        "memory_floor": floor,
        "rate": rate,
        "tflop": operations / 1e12,
    }


def main() -> None:
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--tokens", type=int, nargs="*", help="(default: 512 to 32768; 65536 too in bfloat16)"
    )
    parser.add_argument("--frames", type=int, nargs="*", default=[9, 25, 49, 121])
    parser.add_argument("--seconds", type=int, nargs="*", help="(default: 5 10 20; none in bfloat16)")
    args = parser.parse_args()
    args.tokens = TOKENS[args.dtype] if args.tokens is None else args.tokens
    args.seconds = SECONDS[args.dtype] if args.seconds is None else args.seconds
    sizes = [(what, size) for what, unit in UNITS.items() for size in getattr(args, unit)]
    jobs = {f"{what} {size}": {"what": what, "size": size, "dtype": args.dtype} for what, size in sizes}

    def job(task: dict[str, Any], index: int) -> dict[str, Any]:
        return common.run_worker(common.OURS, "growth.py", task, args.threads, LIMIT)

    results, failures = common.alternate(
        {name: partial(job, task) for name, task in jobs.items()}, args.rounds, "growth"
    )
    rows = []
    for name, found in results.items():
        (what, size), floor = name.split(), found[0]["memory_floor"]
        times = [result["seconds"] / result["floor"] for result in found]
        peak = common.spread([value / 2**20 for value in common.column(found, "peak")])
        rows.append(
            [
                f"{what}, {size} {UNITS[what]}",
                f"{found[0]['tflop']:.2f}",
                common.shown(common.spread([value / 1e9 for value in common.column(found, "rate")])),
                common.shown(common.spread(common.column(found, "seconds")), " s"),
                common.shown(common.spread(common.column(found, "floor")), " s"),
                common.shown(common.spread(times), "×"),
                common.shown(peak, " MiB"),
                f"{floor / 2**20:.0f} MiB" if floor else "–",
            ]
        )
    header = [
        "what",
        "TFLOP",
        "GFLOP/s",
        "seconds",
        "floor",
        "over the floor",
        "peak memory",
        "floor of memory",
    ]
    name = "growth" if args.dtype == "float32" else "growth_bfloat16"
    common.save(name, args, header, rows, {"results": results, "failures": failures})


if __name__ == "__main__":
    given = common.worker_task()
    if given is None:
        main()
    else:
        common.answer(work(given))
