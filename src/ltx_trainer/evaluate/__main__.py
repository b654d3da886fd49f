"""`python -m ltx_trainer.evaluate --output-path report.json`: judge a model, print the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ltx_pipelines.cli.app import guarded


def main(argv: list[str] | None = None) -> int:
    """Evaluate. Exit codes: 0 done, 1 failed, 2 bad arguments, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    return guarded(lambda: _run(arguments), debug=arguments.debug, interrupted="run the same again to go on")


def _run(arguments: argparse.Namespace) -> int:
    from ltx_trainer.evaluate.runner import Options, evaluate

    options = Options(
        output_path=arguments.output_path,
        prompts=arguments.prompts,
        only=tuple(arguments.only),
        model=arguments.model,
        workers=arguments.workers,
        seed=arguments.seed,
        keep=arguments.keep,
    )
    print(evaluate(options).as_markdown())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltx_trainer.evaluate",
        description="Generate from held-out prompts for every task and judge each clip by its pixels and sound. "
        "What was interrupted goes on when started again.",
    )
    add = parser.add_argument
    add("--output-path", type=Path, required=True, help="report, JSON; judged clips lie beside it in .jsonl")
    add("--prompts", type=int, default=200, help="prompts of each row (default: 200; guidance: at most 50)")
    add("--only", nargs="+", default=[], metavar="ROW", help="rows to measure, e.g. text-to-video retake")
    add("--model", type=Path, metavar="DIR", help="folder of a model, in place of the built-in one")
    add("--workers", type=int, default=1, help="processes; with more than one, of one thread each")
    add("--seed", type=int, default=0, help="another seed, other prompts and other noise")
    add("--keep", type=Path, metavar="DIR", help="keep the generated clips there")
    add("--debug", action="store_true", help="show the trace of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
