"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, *, shown: bool = True, **options: Any) -> tqdm:
    """`items`, or steps to be told, with a bar on a terminal or in a notebook, and without one in a file or pipe.

    shown: whether this process shows one at all.
    """
    seen = shown and sys.stderr is not None  # a program without a console has none
    return tqdm(items, disable=not seen or (False if "ipykernel" in sys.modules else None), **options)
