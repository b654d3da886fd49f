#!/usr/bin/env python
"""Hold OpenLTX against recorded goldens: `python tests/conformance/run.py DIR [DIR...]`.

Each DIR is a folder in the format of one topic (transformer, video_vae, upsampler, audio, text, diffusion,
loading, media, e2e, e2e_v12, pipelines_v12). The topic is the folder's name, or is recognised from its files.
`semantics.json` in the folder's parent says which cases are superseded; those are reported, not failed.

Prints a line a case and totals. Exits 1 on any FAIL, on a case nobody knows how to run, and on an empty folder.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

import torch

if __package__ in (None, ""):  # run as a file: make `tests.conformance` importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conformance.harness import Case, Check, Context, read_json

TOPICS = {
    "transformer": "transformer",
    "video_vae": "video_vae",
    "upsampler": "upsampler",
    "audio": "audio",
    "text": "text",
    "diffusion": "diffusion",
    "loading": "loading",
    "media": "media",
    "e2e": "e2e",
    "e2e_v12": "e2e",
    "pipelines_v12": "pipelines",
}


def topic_of(folder: Path) -> str:
    """The topic a folder holds: its name if that is a topic, else whichever topic recognises its files."""
    if folder.name in TOPICS:
        return folder.name
    for topic, module in TOPICS.items():
        if importlib.import_module(f"tests.conformance.topics.{module}").recognises(folder):
            return topic
    raise SystemExit(f"{folder}: not a folder of any known topic ({', '.join(TOPICS)}).")


def superseded(folder: Path, topic: str) -> dict[str, str]:
    """Case -> what replaces it, for the cases of this topic that no longer hold."""
    path = folder.parent / "semantics.json"
    table = read_json(path).get(topic, {}) if path.is_file() else {}
    return {case: entry["by"] or "-" for case, entry in table.items() if entry["status"] == "superseded"}


def run_case(case: Case) -> list[Check]:
    try:
        checks = list(case.run())
    except Exception as error:
        traceback.print_exc(limit=-4)
        return [Check("run", False, f"{type(error).__name__}: {error}")]
    return checks or [Check("run", False, "compared nothing")]


def run_folder(folder: Path, context: Context, only: list[str]) -> dict[str, int]:
    topic = topic_of(folder)
    module = importlib.import_module(f"tests.conformance.topics.{TOPICS[topic]}")
    replaced = superseded(folder, topic)
    totals = {"PASS": 0, "FAIL": 0, "superseded": 0}
    for case in module.cases(folder, context):
        if only and not any(word in case.key for word in only):
            continue
        if case.key in replaced:
            totals["superseded"] += 1
            print(f"{topic} {case.key} superseded by {replaced[case.key]}", flush=True)
            continue
        checks = run_case(case)
        verdict = "PASS" if all(check.ok for check in checks) else "FAIL"
        totals[verdict] += 1
        shown = "; ".join(f"{'' if c.ok else '!! '}{c.name}: {c.detail}" for c in checks)
        print(f"{topic} {case.key} {verdict} {shown}", flush=True)
    return totals


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--device", default="cpu", help="where our implementation runs (default: cpu)")
    parser.add_argument(
        "--threads", type=int, default=1, help="the goldens were recorded with one (default: 1)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="cases whose key has WORD"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    context, failed, total = (
        Context(torch.device(args.device)),
        False,
        {"PASS": 0, "FAIL": 0, "superseded": 0},
    )
    for folder in args.folders:
        if not folder.is_dir():
            print(f"{folder}: not a folder", file=sys.stderr)
            failed = True
            continue
        totals = run_folder(folder.resolve(), context, args.only)
        if not sum(totals.values()):
            print(f"{folder}: no cases", file=sys.stderr)
            failed = True
        total = {key: total[key] + totals[key] for key in total}
    print(", ".join(f"{count} {verdict}" for verdict, count in total.items()))
    return int(failed or total["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main())
