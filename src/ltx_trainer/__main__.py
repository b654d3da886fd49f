"""`python -m ltx_trainer COMMAND`: train a part of the model, encode clips, or put parts together."""

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

OUT_OF_MEMORY = (
    "out of memory. Use a smaller batch_size with more optimizer.accumulate, gradient_checkpointing, several GPUs "
    "with `shard = true`, or a LoRA of less rank."
)
TASKS = {
    "video-vae": "train a video VAE",
    "audio-vae": "train an audio VAE",
    "vocoder": "train a vocoder",
    "upsampler": "train a latent upsampler",
    "transformer": "train the audio-video transformer and its text connectors on a latent cache",
    "distill": "distil guided sampling into few steps, as a LoRA",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit codes: 0 done, 1 failed, 2 bad arguments or input, 130 stopped by a signal."""
    options = _parser().parse_args(argv)
    return guarded(
        lambda: options.run(options),
        debug=options.debug,
        interrupted="what is finished stays, and the same command goes on from there",
        out_of_memory=OUT_OF_MEMORY,
    )


def run_training(options: argparse.Namespace) -> int:
    """Read the configuration, train, and say what was written."""
    from ltx_trainer.config import read_config
    from ltx_trainer.folder import STOPPED, is_first_process
    from ltx_trainer.loop import train
    from ltx_trainer.sharding import launcher_shards

    kind, task = task_of(options.command)
    changes = list(options.changes)
    if launcher_shards(possible=hasattr(kind, "shard")):
        changes.append("shard = true")
    written = train(task(read_config(options.config, kind, changes)), options.output_path)
    if written is None:
        return STOPPED
    if is_first_process():
        print(written)
    return 0


def run_cache(options: argparse.Namespace) -> int:
    """Encode the clips that a configuration describes."""
    from ltx_trainer.cache import CacheConfig
    from ltx_trainer.config import read_config
    from ltx_trainer.encode import make_cache

    print(make_cache(read_config(options.config, CacheConfig, options.changes), options.output_path))
    return 0


def run_assemble(options: argparse.Namespace) -> int:
    """Put files together."""
    from ltx_trainer.assemble import assemble

    print(assemble(options.parts, options.output_path, fp8=options.fp8))
    return 0


def run_miniature(options: argparse.Namespace) -> int:
    """Train everything that ships."""
    from ltx_trainer.miniature import train_miniature

    print(train_miniature(options.output_path))
    return 0


def task_of(name: str) -> tuple[type[RunConfig], Callable[[Any], Task]]:
    """What the task's file is read into, and what is made of that."""
    if name == "transformer":
        from ltx_trainer.transformer import TransformerRun, TransformerTask

        return TransformerRun, TransformerTask
    if name == "distill":
        from ltx_trainer.distill import DistillRun, DistillTask

        return DistillRun, DistillTask
    if name == "upsampler":
        from ltx_trainer.upsampler import UpsamplerRun, UpsamplerTask

        return UpsamplerRun, UpsamplerTask
    if name == "vocoder":
        from ltx_trainer.vocoder import VocoderRun, VocoderTask

        return VocoderRun, VocoderTask
    from ltx_trainer.audio_vae import AudioVAETask
    from ltx_trainer.autoencoder import AutoencoderRun
    from ltx_trainer.video_vae import VideoVAETask

    return AutoencoderRun, VideoVAETask if name == "video-vae" else AudioVAETask


def _path(text: str) -> Path:
    """A path with ``~`` expanded. An empty one, which would be the folder one is in, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    return Path(text).expanduser()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltx_trainer",
        description="Train the parts of a model. What was interrupted goes on when started again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, run: Callable[[argparse.Namespace], int], output: str) -> Any:
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        command.add_argument("--output-path", type=_path, required=True, help=output)
        command.add_argument("--debug", action="store_true", help="show the trace of an error")
        command.set_defaults(run=run)
        return command

    configured = [add(name, summary, run_training, "folder of the run") for name, summary in TASKS.items()]
    configured.append(add("cache", "encode clips to latents", run_cache, "folder of the latents"))
    for command in configured:
        command.add_argument(
            "--config", type=_path, required=True, help="TOML file that describes what is to be done"
        )
        command.add_argument(
            "--set",
            dest="changes",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a setting in the place of the file's, as TOML: --set optimizer.learning_rate=1e-4; repeatable",
        )
    add("miniature", "train the built-in model from nothing, in hours", run_miniature, "folder of the runs")
    together = add("assemble", "put the files of several trainings together", run_assemble, "file")
    together.add_argument("--parts", type=_path, nargs="+", required=True, help="official-format files")
    together.add_argument("--fp8", action="store_true", help="store the transformer's blocks in 8 bits")
    return parser


if __name__ == "__main__":
    sys.exit(main())
