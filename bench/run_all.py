"""Run all benchmarks and write bench/results.json and docs/performance.md.

    python bench/run_all.py            make the peers' environments, measure everything, write
    python bench/run_all.py --render   write from the last results of each benchmark

Flags after -- go to every benchmark: python bench/run_all.py -- --rounds 5 --threads 8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import common

RESULTS = common.ROOT / "bench" / "results.json"

# Name of the results -> the command that makes them, and what the table of docs/performance.md is about.
BENCHMARKS: dict[str, tuple[list[str], str, str]] = {
    "guided_step": (
        ["guided_step.py"],
        "One guided step",
        "CFG + STG + modality guidance of video and audio through a cut of the 2.3 transformer with random "
        "weights, float32. Columns with × are the side's value over ours: above 1, ours is quicker or smaller. "
        "*TFLOP* are the matrix operations of a step: ours leaves out what is equal in several passes, which is the "
        "perturbed (STG) pass up to its block, the attention of the first block, and keys and values of texts. In a "
        "cut the share of the first block and of the 0.43 B parameters outside of the blocks is larger than in the "
        "full model, where the first block's attention is 0.5 to 0.7 % of a step. Required: 1.25× the quicker peer; "
        "aim: 1.6×.",
    ),
    "guided_step_image": (
        ["guided_step.py", "--image"],
        "One guided step, image-conditioned",
        "The same with a given first frame, whose tokens have noise level 0. Required: 1.3×; aim: 1.8×.",
    ),
    "pipelines": (
        ["pipelines.py"],
        "The eight pipelines",
        "Against the official package 1.0.0 on tiny random checkpoints in the official format, both in float32. "
        "Columns with × are the official value over ours. *Import + first call* is from a process with torch loaded "
        "to the first result; *second call* is on the same object. Models this small measure what happens around "
        "the arithmetic: loading, imports, repeated work. Peak memory is that of the whole process, most of it "
        "torch itself. Required: first call 1.5×, second call of two stages 2×; aim: 3× and 5×.",
    ),
    "build_memory": (
        ["build_memory.py"],
        "Memory while a component is built",
        "Peak of the process above where it was before, over the size of the component; the target is 1.1. "
        "Published sizes cut to a few blocks, bfloat16 files. *Resident* counts the pages of a mapped file too, "
        "*anonymous* does not. Weights are read into their places; those that are cast to float32 on the way pass "
        "through a buffer of 1 MiB.",
    ),
    "text_encode": (
        ["text_encode.py"],
        "Encoding a pair of prompts",
        "Two prompts, of 71 and 60 tokens, a Gemma of 12 layers with random weights, float32. *encode* has all "
        "weights loaded; *call* is what a call of a pipeline does: the official package builds the encoder anew. "
        "Columns with × are the side's time over ours. Required: 4×; aim: 8×.",
    ),
    "stage_switch": (
        ["stage_switch.py"],
        "From stage to stage",
        "The transformer of the next stage, which has a LoRA of rank 32 more or less, bfloat16. *Official over it* "
        "is the official time over the side's; times end when every page of the weights is there. *Read* is what "
        "is read of files, *from disk* what of it was not in memory. With a *warm* page cache the official package "
        "maps a file that is in memory already; *cold* evicts the files before every switch, as happens where "
        "memory does not hold the checkpoint beside the models. *Ours* fuses, as the official package does and "
        "with the same arithmetic: the first time most of it is new memory for the fused weights; later it swaps "
        "the clean and the fused weights of the layers that a LoRA touches, of which it keeps both. *Ours, beside* "
        "(`--no-fuse-loras`) computes the LoRA beside the weights, which takes time in every pass: *a pass* is one "
        "with the LoRA and 512 video tokens. By these times fusing has paid after two passes, of 1,024 tokens after "
        "one; the second stage takes three or more, so fusing is the default. *Memory more* is what the process "
        "has taken since before the first switch, without mapped files. Required: 5×, 0 bytes once the LoRA is "
        "known; met by all but the first fused switch with a warm page cache.",
    ),
    "video_decode": (
        ["video_decode.py"],
        "Decoding a video",
        "121 frames of 256x256 by the published 2.3 decoder with random weights, float32. Ours streams exact "
        "pieces of at most 8 MiB, the official package decodes its default tiles. What ours takes are the last "
        "frames that each convolution keeps for the piece to come, 106 MiB, pieces under way, and free memory "
        "between them that the C library holds: where it maps each of them apart "
        "(`MALLOC_MMAP_THRESHOLD_=1000000`), 33 frames take 220 MiB, and 14 % more time, where they took 335 MiB. "
        "Required: 1.1× in time, 0.5× of the memory; aim: 1.5×, 0.25×.",
    ),
    "growth": (
        ["growth.py"],
        "Growth with tokens, frames and sound",
        "One pass through one block of the published 2.3 transformer (with its embeddings and head), the decode of "
        "256x256 videos, and that of sounds, float32, ours alone. The floor of the time is the larger of the "
        "operations over the rate of a large matrix product or convolution and the weights' bytes over the rate of "
        "a copy; the floor of the memory holds the residual stream and one hidden layer of the feed-forward "
        "network. Operations are those of products, convolutions and attention; *GFLOP/s* is the rate of them that "
        "the floor takes, the better of one before and one after in the row's process, while the machine gives now "
        "more and now less. Aim: within 1.5× of the floor. What is above it: tensors of more than 32 MiB, which are "
        "new pages each time; in sounds the anti-aliased activations, which are hardly among the operations. The "
        "neighbours that pieces of a sound take are among the operations. *Peak memory* is what a run takes above "
        "the loaded model; what the C library holds of the warm run before is given back first.",
    ),
    "growth_bfloat16": (
        ["growth.py", "--dtype", "bfloat16"],
        "Growth in bfloat16",
        "The same in bfloat16 (`--dtype bfloat16`): quicker than float32 where the processor multiplies it, as this "
        "one does by AMX, and half the memory. Of a pass over 4096 tokens 58 % of the time are matrix products, 17 % "
        "attention, and the rest goes over memory. Products of 4096 rows and columns alone reached 1.3 to 1.9 "
        "TFLOP/s: the rate is the best of smaller ones. Sounds are left out: their last network computes in float32 "
        "always.",
    ),
    "import_time": (
        ["import_time.py"],
        "Import",
        "Fresh interpreters. Required of `import ltx_pipelines`: 0.5 s on top of torch.",
    ),
    "gpu_step": (
        ["gpu_step.py"],
        "A guided step of the full-size model on a GPU",
        "22 B parameters with random weights in bfloat16, CFG + STG + modality guidance, 121 frames. *Over ours* is "
        "the side's time over that of ours with resident bfloat16 weights; *share of the matrix rate* are the "
        "operations of a step over its time and the rate of a large product in the same process (attention by "
        "packages is not counted). Required: peers 1.3×, aim 1.7× and 60 % of the rate; streamed at most 1.1×; "
        "fp8-scaled-mm 1.4× quicker, aim 1.7×; fp8-cast, streamed, 24 GiB at most.",
    ),
}

INTRO = """# Performance

Every number here comes from `bench/`, one command for each table, on the machine that is named. Values are medians
with their range in brackets. Ratios are of values from the same run, ours and the peer's in turns, in processes of
their own, with the same weights, inputs, threads and dtype. Outputs are compared in the same run; where they are
meant to differ, the table says why.

This page is written by `bench/run_all.py`; the numbers behind it are in `bench/results.json`.

```
python bench/peers.py         # ours and the peers, in environments of their own under .bench/
python bench/run_all.py       # everything; or one of the scripts below, each has --help
```

The peers are ltx-core and ltx-pipelines 1.0.0 (here "official"; transformers 4.57) and diffusers 0.42.1, all with
the same torch; each side's environment holds what its package asks for. To run the official
package on a CPU, `bench/official_runner.py` makes `torch.cuda.synchronize` do nothing, gives its text encoder the
sizes of the tiny Gemma folder, and for float32 runs gives it float32 files and that type in place of its fixed
bfloat16. It is run in inference mode, which it leaves to its caller. Memory and what is read of files are Linux's
figures, from `/proc`.
"""


def load() -> dict[str, Any]:
    """The last results of each benchmark that has any: of a run here, or those that are published."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in BENCHMARKS:
        path = common.home() / "results" / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return {name: found[name] for name in BENCHMARKS if name in found}


def render(found: dict[str, Any]) -> str:
    """The page, with a table for each benchmark that has results."""
    parts = [INTRO]
    for name, (command, title, text) in BENCHMARKS.items():
        parts.append(f"\n## {title}\n\n`python bench/{' '.join(command)}`\n\n{text}\n")
        if name not in found:
            parts.append("\nNot measured yet.\n")
            continue
        result = found[name]
        parts.append(f"\n{common.table(result['header'], result['rows'])}\n")
        parts.append(f"\n{machine_line(result)}\n")
    return "".join(parts)


def machine_line(result: dict[str, Any]) -> str:
    """What the results were measured on, and how often."""
    machine, rounds = result["machine"], result["options"]["rounds"]
    note, units = result["options"]["note"], machine.get("matrices")
    return (
        f"*{machine['cpu']}{f' ({units})' if units else ''}, {machine['cores']} cores, {machine['ram_gib']} GiB, "
        f"{machine['system']}; "
        f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}; Python {machine['python']}, "
        f"torch {machine['torch']}; {rounds} round{'s' if rounds > 1 else ''}"
        f"{'; ' + note if note else ''}.*"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--without-peers", action="store_true", help="make no environments")
    parser.add_argument("flags", nargs="*", help="for every benchmark, after --")
    args = parser.parse_args()
    failed = []
    if not args.render:
        if not args.without_peers:
            subprocess.run([sys.executable, str(common.ROOT / "bench" / "peers.py")], check=False)
        for name in args.only:
            script, *own = BENCHMARKS[name][0]
            command = [sys.executable, str(common.ROOT / "bench" / script), *own, *args.flags]
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    found = load()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (common.ROOT / "docs" / "performance.md").write_text(render(found), encoding="utf-8")
    if failed:
        common.log(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
