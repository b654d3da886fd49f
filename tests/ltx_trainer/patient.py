"""What `test_miniature.py` lets other processes do: python -m tests.ltx_trainer.patient FOLDER waits for one."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from ltx_trainer.child import wait_for


def work(most: float) -> int:
    """Says that it is ready, works until it is told to stop, and then saves what it did."""
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    Path("ready").touch()
    end = time.monotonic() + most
    while not told and time.monotonic() < end:
        time.sleep(0.02)
    if not told:
        return 1
    time.sleep(0.2)
    Path("saved").touch()
    return 130


if __name__ == "__main__":
    wait_for(work, 60.0, Path(sys.argv[1]))
