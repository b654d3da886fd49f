"""Work in a process of its own, which gives all its memory back and does not outlive the one that waits for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


def wait_for(work: Callable[[Any], int], given: Any, folder: Path) -> int:
    """The exit code of `work(given)`, done in `folder` by a new process.

    A signal to this process stops the other in its own way, with its work saved; so does the end of this one,
    however it comes.
    """
    process = multiprocessing.get_context("spawn").Process(target=_begin, args=(work, given, folder))
    process.start()
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),  # a terminal gives it to both
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: process.terminate()),
    }
    try:
        process.join()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert process.exitcode is not None
    return process.exitcode


def _begin(work: Callable[[Any], int], given: Any, folder: Path) -> None:
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.chdir(folder)
    sys.exit(work(given))


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    signal.raise_signal(signal.SIGTERM)
