"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any], **options: Any) -> tqdm:
    """`items` with a bar on a terminal or in a notebook, and without one in a file or pipe."""
    return tqdm(items, disable=False if "ipykernel" in sys.modules else None, **options)
