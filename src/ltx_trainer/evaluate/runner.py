"""Runs the rows: one clip after another, or in several processes; what was judged is kept, so a run can go on."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import InputError, LTXError
from ltx_core.utils import whole_file
from ltx_pipelines.progress import progress
from ltx_trainer.evaluate.case import Scores
from ltx_trainer.evaluate.report import Report
from ltx_trainer.evaluate.rows import ROWS, Row
from ltx_trainer.evaluate.studio import Studio
from ltx_trainer.log import Log

Record = dict[str, Any]
Job = tuple[str, int]  # row and number of the prompt


@dataclass(frozen=True)
class Options:
    """What is asked of an evaluation.

    prompts: of each row. model: folder, or None for the built-in model. keep: a folder for the generated files.
    workers: processes, of one thread each if they are several.
    """

    output_path: Path
    prompts: int = 200
    only: tuple[str, ...] = ()
    model: Path | None = None
    workers: int = 1
    seed: int = 0
    keep: Path | None = None

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.workers < 1 or self.seed < 0:
            raise InputError(
                f"prompts {self.prompts} and workers {self.workers} must be at least 1, "
                f"and seed {self.seed} not negative."
            )
        if self.output_path.is_dir():
            raise InputError(f"{self.output_path} is a folder; --output-path takes the name of the report.")
        if self.output_path.suffix == ".jsonl":
            raise InputError(
                f"{self.output_path} is for the judged clips; the report's name ends in another way."
            )

    def studio(self) -> Studio:
        """The model that is evaluated."""
        return Studio.open(self.model)


def evaluate(options: Options, rows: Mapping[str, Row] = ROWS, studio: Studio | None = None) -> Report:
    """Generate and judge what is not judged yet, and write the report.

    Each judged clip is a line in a file beside the report, whose name ends in .jsonl. Raises `InputError` if that
    file is about another model, format or seed, and for a row that there is not.
    """
    studio = studio or options.studio()
    chosen = _chosen(options.only, rows)
    left_out = {name: why for name in chosen if (why := _missing(rows[name], studio))}
    identity = _identity(options, studio)
    options.output_path.parent.mkdir(parents=True, exist_ok=True)
    log = _open_log(options.output_path.with_suffix(".jsonl"), identity)
    jobs = [
        (name, number)
        for name in chosen
        if name not in left_out
        for number in range(rows[name].count(options.prompts))
    ]
    done = {(r["row"], r["number"]): r for r in log.read() if "row" in r}
    todo = [job for job in jobs if job not in done or "error" in done[job]]
    bar = progress(total=len(jobs), initial=len(jobs) - len(todo), unit="clip")
    with bar:
        for record in _records(options, rows, studio, todo):
            log.write(**record)
            done[record["row"], record["number"]] = record
            bar.set_description(record["row"])
            bar.update()
    report = _report(identity, chosen, [done[job] for job in jobs], left_out)
    with whole_file(options.output_path) as partial:
        partial.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    return report


def _chosen(only: Sequence[str], rows: Mapping[str, Row]) -> list[str]:
    """The names of the rows to run, with those that they are compared with, in the table's order.

    "guidance" stands for all rows that begin with it.
    """
    wanted = set[str]()
    for name in only or rows:
        found = {row for row in rows if row == name or row.startswith(f"{name}:")}
        if not found:
            raise InputError(f"There is no row {name!r}; choose from {', '.join(rows)}.")
        wanted |= found
    wanted |= {other for name in wanted for other in rows[name].needs}
    return [name for name in rows if name in wanted]


def _missing(row: Row, studio: Studio) -> str:
    """Why the model cannot do `row`; nothing if it can."""
    for name in row.loras:
        try:
            studio.lora(name)
        except InputError as error:
            return str(error)
    return ""


def _identity(options: Options, studio: Studio) -> dict[str, Any]:
    """What must be the same for clips to belong to one report."""
    params = {name: value for name, value in vars(studio.params).items() if name != "seed"}
    return {"model": studio.identity(), "seed": options.seed, "defaults": _plain(params)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds it."""
    return json.loads(json.dumps(values, default=vars))


def _open_log(path: Path, identity: Mapping[str, Any]) -> Log:
    log = Log(path)
    lines = log.read()
    if not lines:
        log.write(identity=identity)
    elif lines[0].get("identity") != identity:
        raise InputError(
            f"{path} holds clips of another model, format or seed; delete it or choose another --output-path."
        )
    elif not path.read_bytes().endswith(b"\n"):  # a kill in the midst of a line
        with open(path, "ab") as file:
            file.write(b"\n")
    return log


def _records(
    options: Options, rows: Mapping[str, Row], studio: Studio, todo: Sequence[Job]
) -> Iterator[Record]:
    """Judge `todo`, in order, or with several workers nearly so."""
    if options.workers == 1 or len(todo) < 2:
        for job in todo:
            yield judge_one(studio, rows[job[0]], job[1], options)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, _start_worker, (options,)) as pool:
        yield from pool.imap_unordered(_work, todo)


_at_work: tuple[Studio, Options]  # of a worker process


def _start_worker(options: Options) -> None:
    """In a new process: load the model, on one thread."""
    global _at_work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the first process's to handle
    torch.set_num_threads(1)
    _at_work = options.studio(), options


def _work(job: Job) -> Record:
    studio, options = _at_work
    return judge_one(studio, ROWS[job[0]], job[1], options)


def judge_one(studio: Studio, row: Row, number: int, options: Options) -> Record:
    """Generate and judge one clip. A clip that cannot be made or read is a record with "error"."""
    began = time.monotonic()
    with _folder(options.keep, row.name) as folder:
        case = row.prompts.case(studio.world(row.prompts, options.seed), number, options.seed, folder)
        record: Record = {"row": row.name, "number": number, "prompt": case.prompt}
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the bars of every pipeline and writer
                made = row.generate(studio, case)
                scores: Scores = row.measure(made, case)
            record["scores"] = {name: _rounded(value) for name, value in scores.items()}
        except LTXError as error:
            record["error"] = str(error)
    return {**record, "seconds": round(time.monotonic() - began, 2)}


def _rounded(value: bool | float) -> bool | float:
    """NumPy's numbers as Python's."""
    return round(float(value), 4) if isinstance(value, float) else bool(value)


@contextlib.contextmanager
def _folder(keep: Path | None, row: str) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    folder = keep / row.replace(": ", "-").replace(" + ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _report(
    identity: Mapping[str, Any], chosen: Sequence[str], records: Sequence[Record], left_out: Mapping[str, str]
) -> Report:
    results: dict[str, dict[int, Scores]] = {}
    failed: dict[str, list[str]] = {}
    for record in records:
        if "error" in record:
            failed.setdefault(record["row"], []).append(record["error"])
        else:
            results.setdefault(record["row"], {})[record["number"]] = record["scores"]
    return Report(identity, results, chosen, failed, left_out)
