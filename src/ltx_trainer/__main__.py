"""`python -m ltx_trainer TASK --config run.toml --output-path folder`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.app import guarded

if TYPE_CHECKING:
    from ltx_trainer.config import RunConfig
    from ltx_trainer.task import Task

TASKS = {
    "video-vae": "train a video VAE",
    "audio-vae": "train an audio VAE",
    "vocoder": "train a vocoder",
}


def main(argv: list[str] | None = None) -> int:
    """Run a training. Exit codes: 0 done or stopped by a signal, 1 failed, 2 bad arguments or input."""
    options = _parser().parse_args(argv)
    return guarded(lambda: run(options.task, options.config, options.output_path), debug=options.debug)


def run(name: str, config: Path, folder: Path) -> int:
    """Read the configuration, train, and say what was written."""
    from ltx_trainer.config import read_config
    from ltx_trainer.loop import train

    kind, task = _task(name)
    written = train(task(read_config(config, kind)), folder)
    if written is not None:
        print(written)
    return 0


def _task(name: str) -> tuple[type[RunConfig], Callable[[Any], Task]]:
    """What the task's file is read into, and what is made of that."""
    if name == "vocoder":
        from ltx_trainer.vocoder import VocoderRun, VocoderTask

        return VocoderRun, VocoderTask
    from ltx_trainer.audio_vae import AudioVAETask
    from ltx_trainer.autoencoder import AutoencoderRun
    from ltx_trainer.video_vae import VideoVAETask

    return AutoencoderRun, VideoVAETask if name == "video-vae" else AudioVAETask


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltx_trainer",
        description="Train a part of the model. A run that was interrupted goes on when started again.",
    )
    commands = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, summary in TASKS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        command.add_argument("--config", type=Path, required=True, help="TOML file that describes the run")
        command.add_argument("--output-path", type=Path, required=True, help="folder of the run")
        command.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
