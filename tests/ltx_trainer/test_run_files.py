"""Configurations, checkpoints on disk and logs: strict, atomic, and clear about what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tests.ltx_trainer.tiny import SIMPLE

from ltx_core.errors import CheckpointError, ConfigError, InputError, MissingFileError
from ltx_core.model.transformer import LTXModelConfigurator
from ltx_trainer import checkpoints as module
from ltx_trainer.__main__ import task_of
from ltx_trainer.autoencoder import AutoencoderRun
from ltx_trainer.cache import CacheConfig
from ltx_trainer.checkpoints import Checkpoints
from ltx_trainer.config import Decay, Precision, read_config
from ltx_trainer.distill import DistillRun
from ltx_trainer.folder import own_folder
from ltx_trainer.log import Log
from ltx_trainer.transformer import TransformerRun
from ltx_trainer.upsampler import UpsamplerRun

STAGE = "[[stages]]\nsteps = 3\n"
NETWORK = "[network.vae]\n"


def read(tmp_path: Path, text: str) -> AutoencoderRun:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return read_config(path, AutoencoderRun)


def test_a_file_becomes_dataclasses(tmp_path: Path) -> None:
    text = 'seed = 3\nprecision = "fp32"\n' + STAGE + "[optimizer]\nbetas = [0.8, 0.9]\ndecay = 'constant'\n"
    config = read(tmp_path, text + NETWORK + "patch_size = 4\n")
    assert (config.seed, config.precision, config.steps) == (3, Precision.FP32, 3)
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.optimizer.decay is Decay.CONSTANT
    assert config.network == {"vae": {"patch_size": 4}}
    assert config.stages[0].batch_size == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            STAGE + NETWORK + "[optimizer]\nlearning_rat = 1",
            "optimizer.learning_rat is not a setting; did you",
        ),
        ("[[stages]]\nstep = 3\n" + NETWORK, r"stages\[0\].step is not a setting"),
        ("[[stages]]\nbatch_size = 3\n" + NETWORK, r"stages\[0\].steps is missing"),
        ("seed = 'x'\n" + STAGE + NETWORK, "seed is 'x'; expected int"),
        ("precision = 'fp8'\n" + STAGE + NETWORK, "precision is 'fp8'; expected one of 'bf16', 'fp32'"),
        (NETWORK, "stages is missing"),
        ("stages = []\n" + NETWORK, "no .*stages"),
        ("[stages]\nsteps = 3\n" + NETWORK, r"expected a list of tables, each under \[\[stages\]\]"),
        (STAGE, "either a .network. to train"),
        ("start = 'x'\n" + STAGE + NETWORK, "either a .network. to train"),
        ("[[stages]]\nsteps = 0\n" + NETWORK, "stages.steps is 0; it must be positive"),
        (STAGE + NETWORK + "[saving]\nevery = 0", "saving.every is 0"),
        (
            STAGE + NETWORK + "[optimizer]\nmax_norm = inf",
            "optimizer.max_norm is inf; it must be positive and",
        ),
        (STAGE + NETWORK + "[optimizer]\nbetas = [0.9]", "two numbers"),
        (STAGE + NETWORK + "[optimizer]\naverage = 1.0", "decay in"),
        ("seed = = 1", "is not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read(tmp_path, text)
    assert "run.toml" in str(caught.value)


def test_a_file_may_begin_with_the_mark_that_notepad_writes(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffseed = 3\n" + STAGE + NETWORK).seed == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.toml does not exist"):
        read_config(tmp_path / "nothing.toml", AutoencoderRun)


@pytest.mark.parametrize("kind", SIMPLE)
def test_the_miniatures_configurations_describe_models_that_can_be_built(kind: str) -> None:
    text = files("ltx_trainer").joinpath("configs", kind.replace("-", "_") + ".toml")
    config, task = task_of(kind)
    read = read_config(Path(str(text)), config)
    made = task(replace(read, audio_vae=None) if kind == "vocoder" else read)  # which is trained before it
    assert 0.3e6 < sum(p.numel() for p in made.model.parameters()) < 12e6


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cache", CacheConfig),
        ("transformer", TransformerRun),
        ("upsampler", UpsamplerRun),
        ("distill", DistillRun),
        ("ic_lora", TransformerRun),
    ],
)
def test_the_miniatures_other_configurations_can_be_read(name: str, kind: type) -> None:
    path = Path(str(files("ltx_trainer").joinpath("configs", f"{name}.toml")))
    config = read_config(path, kind)
    section = (getattr(config, "network", None) or {}).get("transformer")
    if section:
        with torch.device("meta"):
            model = LTXModelConfigurator.from_config({"transformer": section})
        assert 5e6 < sum(p.numel() for p in model.parameters()) < 12e6


def write(folder: Path) -> None:
    (folder / "weights").write_text("w")


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"a": 1}, write, {"loss": 0.25})
    assert [path.name for path in checkpoints.all()] == ["step-00000010", "step-00000015"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000010", "step-00000015"]
    assert checkpoints.read(checkpoints.latest(), {"a": 1}) == (15, {"loss": 0.25})


@pytest.mark.parametrize("moment", ["write", "state", "rename", "prune"])
def test_death_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {}, write)

    class Death(BaseException):
        """Passes all handlers, as a kill does."""

    def die(*arguments, **keywords):
        raise Death

    def dies_writing(folder: Path) -> None:
        (folder / "weights").write_text("w"[:0])
        if moment == "write":
            die()

    with monkeypatch.context() as patch:
        if moment == "state":
            patch.setattr(module, "_flush", die)
        elif moment == "rename":
            patch.setattr(os, "replace", die)
        elif moment == "prune":
            patch.setattr(Checkpoints, "_prune", die)
        with pytest.raises(Death):
            checkpoints.save(2, {}, dies_writing)
    last = checkpoints.latest()
    assert last.name == ("step-00000002" if moment == "prune" else "step-00000001")
    assert (last / "weights").is_file()
    checkpoints.save(2, {}, write)
    assert [path.name for path in checkpoints.all()] in (
        ["step-00000002"],
        ["step-00000001", "step-00000002"],
    )
    checkpoints.save(3, {}, write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003"]


def test_other_runs_and_damage_are_told(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {"network": {"a": [1, 2]}}, write)
    assert checkpoints.read(path, {"network": {"a": (1, 2)}}) == (1, {})
    with pytest.raises(CheckpointError, match=r"network\.a is \[1, 2\], here it is \[1\]"):
        checkpoints.read(path, {"network": {"a": [1]}})
    with pytest.raises(CheckpointError, match=r"network\.b is None, here it is 3"):
        checkpoints.read(path, {"network": {"a": [1, 2], "b": 3}})
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.read(path, {})


def test_a_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    assert log.read() == []
    for step in (1, 2, 3):
        log.write(step=step, loss=0.5)
    with open(log.path, "a") as file:
        file.write('{"step": 4, "los')
    log.rewind(2)
    log.write(step=3, loss=0.25)
    assert [(line["step"], line["loss"]) for line in log.read()] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import pathlib, sys, time; from ltx_trainer.folder import own_folder\n"
        "with own_folder(pathlib.Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with (
            pytest.raises(InputError, match=r"Another process is at work in .*run; wait"),
            own_folder(folder),
        ):
            pass
        other.kill()
    with own_folder(folder):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file"), own_folder(tmp_path / "file"):
        pass
