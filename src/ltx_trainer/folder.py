"""The folder that a command works in, which must not be another process's meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ltx_core.errors import InputError

LOCK = ".lock"
STOPPED = 130  # exit code, as of a program that Ctrl-C ends


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Within, `folder` is there and this process's own; however the process ends, others can then have it.

    Raises `InputError` if it is a file, or another process's.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --output-path takes a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another process is at work in {folder}; wait until it has ended, or give another --output-path."
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_first_process() -> bool:
    """Whether this is the one, of the processes that a launcher began together, that writes and speaks for all."""
    return os.environ.get("RANK", "0") == "0"
