"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any], **options: Any) -> tqdm:
    """`items` with a bar on a terminal or in a notebook, and without one in a file or pipe."""
    if sys.stderr is None:  # of a program without a console
        return tqdm(items, disable=True, **options)
    return tqdm(items, disable=False if "ipykernel" in sys.modules else None, **options)
