"""The whole miniature from nothing: every training in its order, and the files that ship at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ltx_core.errors import LTXError
from ltx_core.utils import whole_folder
from ltx_pipelines.cli.config_file import read_toml
from ltx_pipelines.utils.constants import DEFAULTS_KEY
from ltx_trainer.assemble import assemble
from ltx_trainer.child import wait_for
from ltx_trainer.folder import STOPPED, own_folder
from ltx_trainer.world.vocabulary import MOTIONS

CONFIGS = Path(str(files("ltx_trainer").joinpath("configs")))
GEMMA = "gemma-untrained"
CAPTIONS = 4000  # that the tokenizer is learnt from
BASE = "base.safetensors"
PARTS = tuple(
    Path(name) / f"{name}.safetensors" for name in ("video_vae", "audio_vae", "vocoder", "transformer")
)
LORAS = {  # file that ships -> the run's
    "distilled-lora.safetensors": "distill/distilled_lora.safetensors",
    "ic-lora-outline.safetensors": "ic_lora/transformer.safetensors",
    "style-lora-night.safetensors": "style_lora/transformer.safetensors",
}

HALF = ("height=64", "width=64")
TEST = ('split="test"', "seed=200", "clips=512")
# What spins or orbits is the hardest to draw: two in five clips of the transformer's training do. Those at full size
# come with what they were before a retake, which is made at that size.
TURNING = (
    "seed=600",
    "clips=4096",
    f"motions={json.dumps([*MOTIONS, *['spin', 'orbit'] * 5])}",
)


@dataclass(frozen=True)
class Step:
    """One command of `python -m ltx_trainer`: the folder it fills, its configuration and changes to that."""

    output: str
    command: str
    config: str
    changes: tuple[str, ...] = ()


AUTOENCODERS = (
    Step("video_vae", "video-vae", "video_vae"),
    Step("audio_vae", "audio-vae", "audio_vae"),
    Step("vocoder", "vocoder", "vocoder"),
)
MODEL = (
    Step("cache-half", "cache", "cache", HALF),
    Step("cache-full", "cache", "cache"),
    Step("cache-turning-half", "cache", "cache", (*TURNING, *HALF)),
    Step("cache-turning-full", "cache", "cache", (*TURNING, "originals=true")),
    Step("cache-test-half", "cache", "cache", (*TEST, *HALF)),
    Step("cache-test-full", "cache", "cache", TEST),
    Step("upsampler", "upsampler", "upsampler"),
    Step("transformer", "transformer", "transformer"),
)
ADAPTATIONS = (
    Step("distill", "distill", "distill"),
    Step("cache-outlines", "cache", "cache", (*HALF, "references=true", "seed=300", "clips=3072")),
    Step("ic_lora", "transformer", "ic_lora"),
    Step("cache-night-half", "cache", "cache", (*HALF, 'style="night"', "seed=400", "clips=1024")),
    Step("cache-night-full", "cache", "cache", ('style="night"', "seed=400", "clips=1024")),
    Step("style_lora", "transformer", "style_lora"),
)


def train_miniature(folder: Path) -> Path:
    """Train everything in `folder` and return the sub-folder ``zoo`` with the files that ship.

    Hours on CPUs. What is finished is not done again, what was interrupted goes on: start it as often as needed.
    """
    with own_folder(folder):
        make_gemma(folder / GEMMA)
        _run(AUTOENCODERS, folder)
        _run(MODEL, folder)
        assemble([folder / part for part in PARTS], folder / BASE, defaults())
        _run(ADAPTATIONS, folder)
        return pack(folder, folder / "zoo")


def pack(folder: Path, zoo: Path) -> Path:
    """Gather from the runs in `folder` what ships."""
    zoo.mkdir(parents=True, exist_ok=True)
    assemble([folder / part for part in PARTS], zoo / "model.safetensors", defaults(), fp8=True)
    shutil.copyfile(folder / "upsampler/upsampler.safetensors", zoo / "upsampler.safetensors")
    for name, source in LORAS.items():
        shutil.copyfile(folder / source, zoo / name)
    shutil.copytree(folder / "transformer/gemma", zoo / "gemma", dirs_exist_ok=True)
    return zoo


def defaults() -> dict[str, str]:
    """The metadata entry with what a call of the miniature takes where nothing is said."""
    return {DEFAULTS_KEY: json.dumps(read_toml((CONFIGS / "defaults.toml").read_text(encoding="utf-8")))}


def make_gemma(folder: Path) -> None:
    """A Gemma with random weights, whose tokenizer knows the words of the world."""
    from ltx_pipelines.miniature.gemma import write_tiny_gemma
    from ltx_trainer.world import World

    if not folder.is_dir():
        world = World()
        corpus = [world.truth(number).caption for number in range(CAPTIONS)]
        with whole_folder(folder) as partial:
            write_tiny_gemma(partial, hidden=128, layers=3, pieces=640, corpus=corpus)


def _run(steps: Iterable[Step], folder: Path) -> None:
    for step in steps:
        words = [step.command, "--config", str(CONFIGS / f"{step.config}.toml"), "--output-path", step.output]
        changes = [word for change in step.changes for word in ("--set", change)]
        code = wait_for(_perform, [*words, *changes], folder)
        if code == STOPPED:
            raise KeyboardInterrupt
        if code:
            raise LTXError(
                f"{step.output} ended with exit code {code}; what it wrote stays in {folder}, and the same command "
                "goes on from there."
            )


def _perform(words: list[str]) -> int:
    from ltx_trainer.__main__ import main

    return main(words)
