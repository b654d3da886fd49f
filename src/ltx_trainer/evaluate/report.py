"""The report: what was measured beside what is asked, as JSON and as Markdown."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ltx_trainer.evaluate.measure import SEEN
from ltx_trainer.evaluate.rows import SETTINGS
from ltx_trainer.evaluate.table import LINES, Line, Results, Value, summary
from ltx_trainer.log import markdown_table

COLUMNS = (*SEEN, "sound", "synchrony", "offset")  # of the table of guidance


@dataclass(frozen=True)
class Report:
    """identity: of model, format and seed. results: scores by row and prompt. failed: row -> what went wrong with
    single clips. left_out: row -> why it was not measured. chosen: the rows that were asked for."""

    identity: Mapping[str, Any]
    results: Results
    chosen: Sequence[str]
    failed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[Line]:
        """Those of the table that are about chosen rows."""
        return [line for line in LINES if line.rows[0] in self.chosen]

    def as_json(self) -> dict[str, Any]:
        """Everything, by line of the table and by row and score."""
        return {
            **self.identity,
            "table": [self._entry(line) for line in self.lines],
            "rows": {
                row: {
                    name: _entry_of(summary(values)) for name, values in _columns(self.results[row]).items()
                }
                for row in self.chosen
                if row in self.results
            },
            "failed": {row: list(errors) for row, errors in self.failed.items()},
            "left out": dict(self.left_out),
        }

    def as_markdown(self) -> str:
        """The table, and that of guidance if it was measured."""
        rows = [["Measure", "Measured", "95 % interval", "Clips", "Required", "Aim", "Reached"]]
        rows += [self._cells(line) for line in self.lines]
        tables = [markdown_table(rows)]
        if any(f"guidance: {setting}" in self.results for setting in SETTINGS):
            tables.append(markdown_table(self._guidance()))
        notes = [f"Not measured: {row}. {why}" for row, why in self.left_out.items()]
        notes += [f"{len(e)} failed of {row}: {e[0]}" for row, e in self.failed.items() if e]
        return "\n\n".join(tables + notes)

    def _entry(self, line: Line) -> dict[str, Any]:
        value = line.value(self.results)
        entry: dict[str, Any] = {"measure": line.measure, **_entry_of(value), "unit": line.unit}
        entry |= {"required": _asked(line, line.required), "aim": _asked(line, line.aim)}
        if value is not None:
            entry["reaches required"] = self._meets(line, value, line.required)
            entry["reaches aim"] = self._meets(line, value, line.aim)
        return entry

    def _meets(self, line: Line, value: Value, limit: float | None) -> bool | None:
        """Nothing is reached while clips are missing because they failed."""
        if limit is not None and any(row in self.failed for row in line.rows):
            return False
        return line.meets(value.value, limit)

    def _cells(self, line: Line) -> list[str]:
        value = line.value(self.results)
        asked = [_asked(line, line.required), _asked(line, line.aim)]
        if value is None:
            return [line.measure, "-", "", "0", *asked, ""]
        interval = "" if value.low is None else f"{_number(line, value.low)} to {_number(line, value.high)}"
        limits = {"required": line.required, "aim": line.aim}
        reached = [what for what, limit in limits.items() if self._meets(line, value, limit)]
        if not reached and (line.required, line.aim) != (None, None):
            reached = ["no"]
        measured = f"{_number(line, value.value)} {line.unit}".strip()
        return [line.measure, measured, interval, str(value.of), *asked, "".join(reached[-1:])]

    def _guidance(self) -> list[list[str]]:
        rows = [["Guidance", *(f"{c}, {'ms' if c == 'offset' else '%'}" for c in COLUMNS), "Clips"]]
        for setting in SETTINGS:
            scores = self.results.get(f"guidance: {setting}", {})
            found = {name: summary(values) for name, values in _columns(scores).items()}
            cells = [_hundredfold(found.get(name), 1000 if name == "offset" else 100) for name in COLUMNS]
            rows.append([setting, *cells, str(len(scores))])
        return rows


def _columns(scores: Mapping[int, Mapping[str, bool | float]]) -> dict[str, list[bool | float]]:
    columns: dict[str, list[bool | float]] = {}
    for of_one in scores.values():
        for name, value in of_one.items():
            columns.setdefault(name, []).append(value)
    return columns


def _entry_of(value: Value | None) -> dict[str, Any]:
    return {"value": None, "of": 0} if value is None else asdict(value)


def _hundredfold(value: Value | None, by: float) -> str:
    return "-" if value is None else f"{by * value.value:.0f}"


def _number(line: Line, number: float | None) -> str:
    return "" if number is None else f"{number:.{2 if line.unit == '' else 1}f}"


def _asked(line: Line, limit: float | None) -> str:
    if limit is None:
        return "shown"
    words: dict[Any, str] = {operator.le: "within ", operator.gt: "above "}
    word = words.get(line.reaches, "")
    return f"{word}{limit:g} {line.unit}".strip()
