"""The `ltx` command, and what every pipeline's `main` does: parse, check, run, report errors in one line."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ltx_pipelines.cli.commands import COMMANDS

USAGE = """usage: ltx COMMAND [OPTIONS]      ltx COMMAND --help for its options

generate
{pipelines}

more
{more}

Without model paths a tiny built-in model is used, so that every command can be tried at once."""

MORE = {
    "inspect": "what is in a weights file",
    "plan": "tokens, passes and memory of a run, before anything is loaded",
    "rerun": "repeat the run that made an MP4",
    "demo": "make a short video with sound",
}

OUT_OF_MEMORY = (
    "out of memory. Use --offload cpu (or disk), --quantization fp8-cast, fewer --num-frames or a smaller --height "
    "and --width; `ltx plan` shows what fits."
)


def main(argv: list[str] | None = None) -> int:
    """Run ``ltx``. Exit codes: 0 done, 1 failed, 2 bad arguments or input, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"openltx {version('openltx')}")
        return 0
    name, rest = arguments[0].replace("-", "_"), arguments[1:]
    if name in COMMANDS:
        return run_pipeline(name, rest, program=f"ltx {arguments[0]}")
    if name in MORE:
        return guarded(lambda: getattr(_module("tools"), name)(rest), debug="--debug" in rest)
    print(f"ltx: unknown command {arguments[0]!r}; `ltx --help` lists them.", file=sys.stderr)
    return 2


def run_pipeline(name: str, argv: list[str] | None = None, program: str | None = None) -> int:
    """Parse `argv` for the pipeline `name` and run it."""
    arguments = sys.argv[1:] if argv is None else argv
    program = program or f"python -m ltx_pipelines.{name}"
    return guarded(lambda: _module("run").run(name, arguments, program), debug="--debug" in arguments)


def _module(name: str) -> Any:
    """A module beside this one; it brings in torch, which takes so long that it may be interrupted."""
    return importlib.import_module(f"ltx_pipelines.cli.{name}")


def entry_point(name: str) -> Callable[..., int]:
    """The `main` of a pipeline's module, for ``python -m ltx_pipelines.<name>``."""

    def main(argv: list[str] | None = None) -> int:
        return run_pipeline(name, argv)

    return main


def guarded(
    work: Callable[[], int],
    *,
    debug: bool,
    interrupted: str = "nothing was written",
    out_of_memory: str = OUT_OF_MEMORY,
) -> int:
    """Run `work`; an error becomes one line (a trace with --debug), and exit code 2 if a user can mend it.

    interrupted: what to say is there after Ctrl-C. out_of_memory: what to say where memory does not suffice.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.WARNING)  # as its import does, unless that is interrupted
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot print is no failure
    try:
        with _stopped_by_signals():
            importlib.import_module("numpy")  # PyTorch would swallow an interruption while it imports it
            return work()
    except KeyboardInterrupt:
        print(f"\nInterrupted; {interrupted}.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads what is printed, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"ltx: error: {explain(error, out_of_memory)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) else 1


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """What ends a program from outside stops the work as Ctrl-C does, so that nothing half-written stays."""
    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    own = threading.current_thread() is threading.main_thread()  # other threads may not set handlers
    free = [number for number in signals if own and signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def explain(error: Exception, out_of_memory: str) -> str:
    """One line for an error, with a remedy where the error itself names none."""
    if _is_out_of_memory(error):
        return out_of_memory
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'output'}); free some space and run again."
    if isinstance(error, OSError) and error.filename:
        name = error.filename2 or error.filename
        return f"{name}: {error.strerror}; check the path, and whether you may read and write there."
    words, *_ = str(error).split("\nException raised from")  # there PyTorch's own trace begins
    text = " ".join(words.split())
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text} (run again with --debug for the trace)"


def _is_out_of_memory(error: Exception) -> bool:
    """On a GPU PyTorch has an error of its own for that, in main memory only a sentence."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)


def _usage() -> str:
    def table(rows: list[tuple[str, str]]) -> str:
        return "\n".join(f"  {name:<24}{summary}" for name, summary in rows)

    pipelines = [(command.name.replace("_", "-"), command.summary) for command in COMMANDS.values()]
    return USAGE.format(pipelines=table(pipelines), more=table(list(MORE.items())))
