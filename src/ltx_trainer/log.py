"""What is told: a run's log, one JSON object a line, of which a resumed run forgets; and tables to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltx_core.utils import whole_file


class Log:
    """Appends to `path`; each line is complete on disk before the next begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        """Add one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that a kill left unfinished is left out."""
        if not self.path.is_file():
            return []
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def last_step(self) -> int:
        """The step of the last line; 0 if there is none."""
        return max((line.get("step", 0) for line in self.read()), default=0)

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, since it is about to be done again."""
        kept = [line for line in self.read() if line.get("step", 0) <= step]
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """`rows` as Markdown, the first one as its head, padded so that it can be read as it is."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
