"""What importing costs on top of torch, and how long a command takes to say what it can do.

    python bench/peers.py ours official      (once)
    python bench/import_time.py

`import ltx_pipelines` against `import torch`, each in a fresh interpreter, in turns; the official package's too if
its environment is there. `ltx --help` the same way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import common

TARGET = 0.5  # seconds on top of torch


def timed(who: str, code: list[str], threads: int) -> Callable[[int], dict[str, Any]]:
    """A job: a fresh interpreter of `who` with these arguments, start to end."""

    def run(_: int) -> dict[str, Any]:
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        env.pop("PYTHONPATH", None)
        command = [common.python_of(who), *code]
        begin = time.perf_counter()
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise common.Unavailable(common.without_paths(said[-1] if said else f"exit {done.returncode}"))
        return {"seconds": seconds}

    return run


def main() -> None:
    args = common.parser(__doc__, rounds=7).parse_args()
    ours, official = common.OURS, "official"
    package = "import torch, ltx_pipelines"
    pipelines = "from ltx_pipelines import TI2VidTwoStagesPipeline"
    commands = {
        "import torch": (ours, ["-c", "import torch"]),
        "import ltx_pipelines": (ours, ["-c", package]),
        "from ltx_pipelines import TI2VidTwoStagesPipeline": (ours, ["-c", f"import torch; {pipelines}"]),
        "ltx --help": (
            ours,
            ["-c", "from ltx_pipelines.cli.app import main; raise SystemExit(main(['--help']))"],
        ),
        "official: import torch": (official, ["-c", "import torch"]),
        "official: import ltx_pipelines": (official, ["-c", package]),
    }
    jobs = {name: timed(who, code, args.threads) for name, (who, code) in commands.items()}
    for job in jobs.values():  # fills the disk cache and writes bytecode
        try:
            job(0)
        except common.Unavailable:
            continue
    results, failures = common.alternate(jobs, args.rounds, "import", "import torch")
    rows = []
    for name, runs in results.items():
        base = results["official: import torch" if name.startswith("official") else "import torch"]
        times, torch_times = common.column(runs, "seconds"), common.column(base, "seconds")
        over = common.spread([t - b for t, b in zip(times, torch_times)])
        missed = " (over 0.5 s)" if name == "import ltx_pipelines" and over["median"] > TARGET else ""
        share = common.shown(common.ratio(torch_times, times), "×")
        rows.append(
            [name, common.shown(common.spread(times), " s"), common.shown(over, " s") + missed, share]
        )
    rows += [[name, f"cannot be run: {why}", "–", "–"] for name, why in failures.items()]
    header = ["what", "seconds", "on top of `import torch`", "over `import torch`"]
    common.save("import_time", args, header, rows, {"results": results, "failures": failures})


if __name__ == "__main__":
    sys.exit(main())
