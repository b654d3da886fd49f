"""What the benchmarks share: peers' interpreters, workers, alternating rounds, ratios, the machine.

Only the standard library at import time: the workers run in the peers' environments too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".bench"  # the peers' environments and the results; ignores itself in git
OURS = "ours"
MARK = "RESULT "

Result = dict[str, Any]


class Unavailable(Exception):
    """A worker could not run; the message says why in one line."""


def home() -> Path:
    """The folder for everything the benchmarks write, made if it is not there."""
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n")
    return HOME


@cache
def python_of(who: str) -> str:
    """The interpreter of a side's environment; of ours, if there is no such environment, the one that runs this."""
    path = home() / who / "bin" / "python"
    if path.exists():
        return str(path)
    if who == OURS:
        log("There is no environment for ours (python bench/peers.py ours): this interpreter measures.")
        return sys.executable
    raise Unavailable(f"not installed; run: python bench/peers.py {who}")


def count_operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of a run: products, convolutions, attention (PyTorch leaves out that on CPUs)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return counter.get_total_flops()


# -- workers ---------------------------------------------------------------------------------------------


def run_worker(who: str, script: str, task: Mapping[str, Any], threads: int, limit: float = 900) -> Result:
    """Run `script` of this folder as a worker of `who` on `task`, in a fresh process; its answer.

    Raises `Unavailable` with the last line that the worker said if it fails or takes over `limit` seconds.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    env |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if who == OURS:
        env["PYTHONPATH"] = str(ROOT / "src")
    command = [python_of(who), str(ROOT / "bench" / script), "--worker", json.dumps({"who": who, **task})]
    try:
        done = subprocess.run(
            command, env=env, cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"took more than {limit:.0f} s") from None
    answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not answers:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise Unavailable(without_paths(said[-1]))
    return json.loads(answers[-1][len(MARK) :])


def without_paths(text: str) -> str:
    """The start of a line, without this machine's folders."""
    for folder in (str(HOME), str(ROOT), tempfile.gettempdir(), str(Path.home())):
        text = text.replace(folder, "...")
    return text.strip()[:300]


def worker_task() -> Result | None:
    """The task if this process is a worker."""
    return json.loads(sys.argv[2]) if sys.argv[1:2] == ["--worker"] else None


def answer(result: Mapping[str, Any]) -> None:
    """What a worker says at its end."""
    print(MARK + json.dumps(result), flush=True)


def alternate(
    jobs: Mapping[str, Callable[[int], Result]], rounds: int, title: str, needed: str | None = None
) -> tuple[dict[str, list[Result]], dict[str, str]]:
    """Run every job once a round, in turns, the order reversed every second round.

    A job that is `Unavailable` leaves, and its reason is the second thing returned; without the one that is `needed`,
    to which the others are compared, the program ends.
    """
    results: dict[str, list[Result]] = {name: [] for name in jobs}
    failures: dict[str, str] = {}
    for index in range(rounds):
        names = [name for name in jobs if name not in failures]
        for name in names if index % 2 == 0 else reversed(names):
            begin = time.perf_counter()
            try:
                results[name].append(jobs[name](index))
                log(f"{title}: {name}, round {index + 1} of {rounds}: {time.perf_counter() - begin:.1f} s")
            except Unavailable as error:
                if name == needed:
                    raise SystemExit(
                        f"{title}: nothing to compare with: {name} cannot be run: {error}"
                    ) from None
                failures[name] = str(error)
                log(f"{title}: {name} cannot be run: {error}")
    return {name: found for name, found in results.items() if name not in failures}, failures


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# -- numbers ---------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    """Peer over ours, round by round: above 1 we are quicker, or smaller."""
    return spread([theirs / own for own, theirs in zip(ours, peer)])


def column(results: Sequence[Result], key: str) -> list[float]:
    return [result[key] for result in results]


def shown(value: Mapping[str, float] | None, unit: str = "") -> str:
    """ "1.52 (1.48 to 1.60)" for a spread."""
    if value is None:
        return "–"
    median, low, high = (f"{value[key]:.3g}{unit}" for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


# -- memory ----------------------------------------------------------------------------------------------


def memory(field: str) -> int:
    """Bytes of a field of this process' status: VmHWM, VmRSS, RssAnon. 0 where the system has no such file."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def reset_peak() -> None:
    """Let VmHWM start again from what is in use now; without the right to do so it stays.

    What the C library holds of memory that was freed would hide what comes: it is given back first.
    """
    with suppress(OSError, AttributeError):  # another C library than glibc has no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        log("VmHWM cannot be reset here: peaks include what came before")


@contextmanager
def peak_of(field: str) -> Iterator[Callable[[], int]]:
    """Watch a field that keeps no peak of its own, every 2 ms; call what it yields for the highest value seen."""
    highest, done = [memory(field)], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], memory(field))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(highest[0], memory(field))
    finally:
        done.set()
        thread.join()


def count_bytes_read() -> Callable[[], int]:
    """Count what is read of files from now on, by system calls and from maps of safetensors files."""
    import safetensors

    mapped = [0]

    class Counting:
        """A safetensors file whose tensors are counted."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._file = original(*args, **kwargs)

        def __enter__(self) -> Counting:
            self._file = self._file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def get_tensor(self, key: str) -> Any:
            tensor = self._file.get_tensor(key)
            mapped[0] += tensor.nbytes
            return tensor

    original = safetensors.safe_open
    safetensors.safe_open = Counting  # type: ignore[assignment, misc]

    def by_calls() -> int:
        return int(Path("/proc/self/io").read_text(encoding="ascii").split()[1])  # rchar

    begin = by_calls()
    return lambda: mapped[0] + by_calls() - begin


def count_bytes_from_disk() -> Callable[[], int]:
    """Count what this process makes the system fetch from disk from now on; pages of mapped files too."""

    def fetched() -> int:
        found = re.search(
            r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(encoding="ascii"), re.MULTILINE
        )
        return int(found[1]) if found else 0

    begin = fetched()
    return lambda: fetched() - begin


def evict(path: str) -> float:
    """Let the system forget a file's pages; the share of them that it still has, told by ``mincore``."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # pages that wait to be written cannot go
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(
            file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE
        ) as pages:
            count = -(-len(pages) // mmap.PAGESIZE)
            there = (ctypes.c_ubyte * count)()
            start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
            if ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(start), ctypes.c_size_t(len(pages)), there
            ):
                raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(page & 1 for page in there) / count


# -- machine and results ---------------------------------------------------------------------------------


def machine(threads: int) -> Result:
    """What was measured on: no host name, no paths."""
    import torch

    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        model = re.search(r"^model name\s*:\s*(.+)$", cpu, re.MULTILINE)
        name = model[1] if model else platform.processor()
        matrices = "AMX" if re.search(r"^flags\s*:.*\bamx_tile\b", cpu, re.MULTILINE) else "no AMX"
    except OSError:
        name, matrices = platform.processor(), ""
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": name.strip(),
        "matrices": matrices,  # whether it has units for bfloat16 products; hosts of one name differ
        "cores": os.cpu_count(),
        "ram_gib": round(ram / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
    }


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--rounds", type=int, default=rounds, help="how often each side runs, in turns")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="for every side alike")
    made.add_argument("--note", default="", help="a remark about the run, kept with the results")
    return made


def save(
    name: str, args: argparse.Namespace, header: Sequence[str], rows: list[list[str]], data: Any
) -> None:
    """Print the table and write it, with the raw numbers, to .bench/results/NAME.json."""
    result = {
        "benchmark": name,
        "machine": machine(args.threads),
        "options": {key: value for key, value in vars(args).items() if key != "zoo"},
        "header": list(header),
        "rows": rows,
        "data": data,
    }
    folder = home() / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(header, rows))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
