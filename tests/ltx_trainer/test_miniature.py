"""The recipe of the built-in model: its steps fit together, and what they make is gathered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.ltx_trainer.patient import work

from ltx_core.errors import InputError, LTXError
from ltx_core.loader import Checkpoint
from ltx_pipelines.miniature import gemma
from ltx_pipelines.utils.constants import DEFAULTS_KEY, embedded_params
from ltx_trainer import child, miniature
from ltx_trainer.__main__ import main, task_of
from ltx_trainer.cache import CacheConfig
from ltx_trainer.config import read_config
from ltx_trainer.folder import own_folder
from ltx_trainer.miniature import ADAPTATIONS, AUTOENCODERS, BASE, CONFIGS, GEMMA, LORAS, MODEL, PARTS, Step

STEPS = (*AUTOENCODERS, *MODEL, *ADAPTATIONS)


def configuration(step: Step) -> Any:
    kind = CacheConfig if step.command == "cache" else task_of(step.command)[0]
    return read_config(CONFIGS / f"{step.config}.toml", kind, step.changes)


def inputs(config: Any) -> set[str]:
    """The first folder, or the file, of everything that a configuration reads."""
    single = [
        getattr(config, name, None) for name in ("video_vae", "audio_vae", "start", "gemma", "evaluation")
    ]
    many = [getattr(config, name, ()) for name in ("caches", "fused")]
    many += [getattr(stage, "caches", ()) for stage in getattr(config, "stages", ())]
    named = [name for name in single if isinstance(name, str)]
    named += [path for paths in (*many, *(s for s in single if isinstance(s, tuple))) for path in paths]
    return {Path(name).parts[0] for name in named}


def test_every_step_reads_what_earlier_ones_wrote() -> None:
    made = {GEMMA}
    for step in STEPS:
        if step is ADAPTATIONS[0]:
            assert {part.parts[0] for part in PARTS} <= made
            made.add(BASE)
        missing = inputs(configuration(step)) - made
        assert not missing, f"{step.output} reads {missing}"
        made.add(step.output)
    assert {Path(source).parts[0] for source in LORAS.values()} <= made


def test_caches_of_one_size_and_of_twice_that_hold_the_same_clips() -> None:
    caches = {step.output: configuration(step) for step in STEPS if step.command == "cache"}
    for name, full in caches.items():
        if name.endswith("-full"):
            half = caches[name.replace("full", "half")]
            assert (half.seed, half.split, half.clips, half.shard) == (
                full.seed,
                full.split,
                full.clips,
                full.shard,
            )
            assert (2 * half.height, 2 * half.width) == (full.height, full.width)
    others = [(c.seed, c.split) for name, c in caches.items() if not name.endswith("-half")]
    assert len(set(others)) == len(others)


def test_the_parts_are_gathered_with_the_defaults(model_folder: Path, tmp_path: Path) -> None:
    for name in PARTS:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(model_folder / "model.safetensors")
    for source in (*LORAS.values(), "upsampler/upsampler.safetensors"):
        (tmp_path / source).parent.mkdir(parents=True)
        (tmp_path / source).write_bytes(b"a file of the run")
    (tmp_path / "transformer" / "gemma").symlink_to(model_folder / "gemma")
    zoo = miniature.pack(tmp_path, tmp_path / "zoo")
    assert {file.name for file in zoo.iterdir()} == {
        *LORAS,
        "model.safetensors",
        "upsampler.safetensors",
        "gemma",
    }
    checkpoint = Checkpoint(zoo / "model.safetensors")
    params = embedded_params(checkpoint)
    assert params is not None
    assert (params.stage_2_height, params.num_frames) == (
        128,
        json.loads(checkpoint.metadata[DEFAULTS_KEY])["num_frames"],
    )


def test_a_step_that_is_stopped_stops_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniature, "wait_for", lambda *_: 130)
    monkeypatch.setattr(miniature, "CAPTIONS", 50)
    assert main(["miniature", "--output-path", str(tmp_path)]) == 130


def test_a_step_that_fails_ends_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []

    def fails(work: Any, words: list[str], folder: Path) -> int:
        began.append(words[words.index("--output-path") + 1])
        return 1

    monkeypatch.setattr(miniature, "wait_for", fails)
    monkeypatch.setattr(miniature, "CAPTIONS", 50)
    with pytest.raises(LTXError, match="video_vae ended with exit code 1"):
        miniature.train_miniature(tmp_path)
    assert began == ["video_vae"]
    assert (tmp_path / GEMMA / "tokenizer.json").is_file()
    with own_folder(tmp_path), pytest.raises(InputError, match="Another process"):
        miniature.train_miniature(tmp_path)


def test_a_gemma_of_which_a_part_is_missing_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(miniature, "CAPTIONS", 50)
    with monkeypatch.context() as patch:
        patch.setattr(gemma, "_write_weights", full)
        with pytest.raises(OSError, match="No space left"):
            miniature.make_gemma(tmp_path / GEMMA)
    miniature.make_gemma(tmp_path / GEMMA)
    assert (tmp_path / GEMMA / "model.safetensors").is_file()


def wait_until(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path.name} does not come")


def test_a_stopped_step_saves_its_work_first(tmp_path: Path) -> None:
    """A signal to the recipe reaches the step, which ends in its own time and says that it was stopped."""

    def kill_when_ready() -> None:
        wait_until(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=kill_when_ready, daemon=True).start()
    assert child.wait_for(work, 60.0, tmp_path) == 130
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_step_ends_with_the_recipe_and_saves_its_work_first(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.ltx_trainer.patient", str(tmp_path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as recipe:
        wait_until(tmp_path / "ready")
        recipe.kill()
    wait_until(tmp_path / "saved")
