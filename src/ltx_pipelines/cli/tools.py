"""The commands of `ltx` beside the pipelines: inspect, plan, rerun, demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ltx_core.errors import InputError
from ltx_pipelines.cli.commands import COMMANDS
from ltx_pipelines.cli.flags import Parser

DEMO_PROMPT = "A red ball bounces on a blue floor. Each bounce rings like a small bell."


def inspect(argv: list[str]) -> int:
    """``ltx inspect FILE``: print what a file or Gemma folder is, from its header alone."""
    from ltx_core.loader import describe

    parser = _parser("inspect", "Print what is in a weights file, without loading it.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .safetensors file or a Gemma folder")
    for path in parser.parse_args(argv).files:
        print(describe(path))
    return 0


def plan(argv: list[str]) -> int:
    """``ltx plan COMMAND ...``: print what a run would take, given the command's own arguments."""
    from ltx_pipelines.cli import run
    from ltx_pipelines.plan import describe_plan

    name = argv[0].replace("-", "_") if argv else ""
    known = ", ".join(command.replace("_", "-") for command in COMMANDS)
    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: ltx plan COMMAND ...\n\nPrint what a run of COMMAND would take.\n\nCommands: {known}.")
        return 0
    if name not in COMMANDS:
        raise InputError(f"`ltx plan` needs a pipeline and its arguments; pipelines: {known}.")
    unused = ["--output-path", "video.mp4"]  # what is planned is not written, so none need be given
    namespace = run.parse(name, [*unused, *argv[1:]], f"ltx plan {argv[0]}")
    if namespace.save_config:
        raise InputError("`ltx plan` runs nothing that --save-config could save; give it to the run itself.")
    pipeline = run.make_pipeline(name, namespace)
    recipe: Any = pipeline(
        **{**run.call_arguments(pipeline, namespace), "dry_run": True, "output_path": None}
    )
    print(describe_plan(pipeline.engine, recipe))
    return 0


def rerun(argv: list[str]) -> int:
    """``ltx rerun OUT.mp4``: repeat the run that is recorded in a file's metadata."""
    from ltx_pipelines.cli import run
    from ltx_pipelines.media.writer import read_settings

    text = "Repeat the run that made a file; further flags, those of its command, override the recorded ones."
    parser = _parser("rerun", text)
    parser.add_argument("file", help="an MP4 written by OpenLTX")
    parser.add_argument("--output-path", help="where to write (default: FILE with -rerun before its ending)")
    known, more = parser.parse_known_args(argv)
    if more and argv.index(more[0]) < argv.index(known.file):
        parser.error(f"name the file first: ltx rerun FILE {more[0]} ...")
    match (read_settings(known.file) or {}).get("openltx"):
        case {"command": str(name), "arguments": dict(stored)} if name in COMMANDS:
            pass
        case _:
            raise InputError(
                f"{known.file} carries no settings of an OpenLTX command; it cannot be repeated."
            )
    path = Path(known.file)
    output = known.output_path or path.with_name(f"{path.stem}-rerun{path.suffix}")
    command = name.replace("_", "-")  # whose flags these are
    return run.run(name, [*more, f"--output-path={output}"], f"ltx {command}", stored)


def demo(argv: list[str]) -> int:
    """``ltx demo``: a short video with sound from the built-in model."""
    from ltx_pipelines.cli import run

    parser = _parser("demo", "Make a short video with sound from the built-in model.")
    parser.add_argument("--prompt", default=DEMO_PROMPT, help="what to see and hear (default: a ball)")
    parser.add_argument("--output-path", default="demo.mp4", help="the file to write (default: demo.mp4)")
    parser.add_argument("--seed", default="10", help="same seed, same video (default: 10)")
    given = parser.parse_args(argv)
    flags = [f"--prompt={given.prompt}", f"--output-path={given.output_path}", f"--seed={given.seed}"]
    return run.run("distilled", flags, "ltx demo")


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"ltx {name}", description=description)
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser
