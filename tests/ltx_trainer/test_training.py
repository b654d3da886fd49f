"""Training: it learns, it goes on exactly where it was stopped, and its files are official ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate", reason="training needs Accelerate")

from tests.ltx_trainer.tiny import NETWORKS, SIMPLE, table

from ltx_core.errors import CheckpointError, ConfigError, InputError, LTXError
from ltx_core.loader import Checkpoint, build_model
from ltx_core.model.audio_vae import VOCODER_COMFY_KEYS_FILTER, VocoderConfigurator
from ltx_trainer import loop
from ltx_trainer.__main__ import main, task_of
from ltx_trainer.config import parse_table
from ltx_trainer.folder import own_folder
from ltx_trainer.log import Log
from ltx_trainer.loop import learning_rate, train
from ltx_trainer.vocoder import spectral_loss


def make(kind: str, **changes: Any) -> Any:
    """The task of a small run."""
    config, task = task_of(kind)
    return task(parse_table(config, table(kind, **changes)))


def same(first: Path, second: Path) -> bool:
    """Whether two files hold the same model, to the bit."""
    a, b = Checkpoint(first), Checkpoint(second)
    return a.metadata == b.metadata and all(torch.equal(a.read(key), b.read(key)) for key in {*a, *b})


def run(kind: str, folder: Path, **changes: Any) -> Path | None:
    return train(make(kind, **changes), folder)


@pytest.mark.parametrize("kind", SIMPLE)
def test_training_lowers_the_loss_and_writes_an_official_file(kind: str, tmp_path: Path) -> None:
    path = run(kind, tmp_path, steps=30)
    lines = Log(tmp_path / "log.jsonl").read()
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert sum(line["loss"] for line in lines[-5:]) < 0.97 * sum(line["loss"] for line in lines[:5])
    assert {"psnr", "mel_error"} & set(lines[-1])
    checkpoint = Checkpoint(path)
    assert checkpoint.config == NETWORKS[kind]
    assert checkpoint.model_version == "2.3.0"


@pytest.mark.parametrize("kind", ["video-vae", "audio-vae"])
def test_written_latents_are_normalised_and_decode_to_what_the_trained_model_decodes(
    kind: str, tmp_path: Path
) -> None:
    task = make(kind, steps=2, optimizer={"learning_rate": 2e-3})
    path = train(task, tmp_path)
    checkpoint = Checkpoint(path)
    encoder, decoder = (_built(part, checkpoint) for part in task.parts.values())
    x = torch.cat([task.prepare(batch) for batch in task.some(0, "train", 3, torch.device("cpu"))])
    with torch.no_grad():
        latent = encoder(x)
        deviation, mean = torch.std_mean(task.tokens(latent), dim=0)
        expected = task.model(x)[0]
        output = decoder(latent)
    assert mean.abs().max() < 0.05
    assert (deviation - 1).abs().max() < 0.05
    assert (output - expected).abs().mean() < 0.02 * expected.abs().mean()  # weights were rounded to bfloat16


def _built(part: tuple, checkpoint: Checkpoint) -> torch.nn.Module:
    return build_model(part[0], checkpoint, part[1], "cpu", torch.float32)


def test_a_run_goes_on_exactly_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        {"steps": 3, "batch_size": 2, "height": 32, "width": 32},
        {"steps": 3, "batch_size": 1, "height": 32, "width": 32, "frames": 9},
    ]
    settings = {"stages": stages, "optimizer": {"average": 0.9, "accumulate": 2}}
    whole = run("video-vae", tmp_path / "whole", **settings)

    task = make("video-vae", **settings)
    steps = []

    def losses(model, batch, generator, real=task.losses):
        steps.append(batch.shape)
        if len(steps) == 8:  # in the fourth step, of the second stage
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, batch, generator)

    monkeypatch.setattr(task, "losses", losses)
    assert train(task, tmp_path / "parts") is None
    assert len(steps) == 8
    torch.manual_seed(99)
    parts = run("video-vae", tmp_path / "parts", **settings)
    assert same(parts, whole)
    logs = [Log(tmp_path / name / "log.jsonl").read() for name in ("whole", "parts")]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


def test_a_process_that_dies_loses_only_what_came_after_its_last_checkpoint(tmp_path: Path) -> None:
    whole = run("video-vae", tmp_path / "whole", steps=5)
    task = make("video-vae", steps=5)

    real, seen = task.losses, []

    def losses(model, batch, generator):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt  # as abrupt as a test can be
        return real(model, batch, generator)

    task.losses = losses
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path / "parts")
    with open(tmp_path / "parts" / "log.jsonl", "a") as log:
        log.write('{"step": 4, "lo')
    killed = tmp_path / "parts" / "checkpoints" / ".step-00000004.1.partial"
    killed.mkdir()  # what a kill leaves of a checkpoint
    assert same(run("video-vae", tmp_path / "parts", steps=5), whole)
    assert not killed.exists()
    assert [line["step"] for line in Log(tmp_path / "parts" / "log.jsonl").read()] == [1, 2, 3, 4, 5]


def test_workers_render_the_same_clips(tmp_path: Path) -> None:
    here = run("audio-vae", tmp_path / "here", steps=2)
    there = run("audio-vae", tmp_path / "there", steps=2, data={"workers": 1})
    assert same(here, there)


def test_workers_leave_signals_to_the_whole_group_to_the_first_process(tmp_path: Path) -> None:
    task, groups = make("audio-vae", steps=2, data={"workers": 1}), []
    real = task.losses

    def losses(model, batch, generator):
        groups.extend(os.getpgid(worker.pid) for worker in multiprocessing.active_children())
        return real(model, batch, generator)

    task.losses = losses
    train(task, tmp_path)
    assert groups
    assert os.getpgid(0) not in groups


def test_a_finished_run_can_be_prolonged(tmp_path: Path) -> None:
    run("video-vae", tmp_path, steps=2)
    run("video-vae", tmp_path, steps=4)
    assert [line["step"] for line in Log(tmp_path / "log.jsonl").read()] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="beyond this run's 2 steps"):
        run("video-vae", tmp_path, steps=2)


def test_checkpoints_of_another_architecture_are_refused(tmp_path: Path) -> None:
    run("video-vae", tmp_path, steps=2)
    other = {"vae": NETWORKS["video-vae"]["vae"] | {"latent_channels": 8}}
    with pytest.raises(CheckpointError, match=r"network\.vae\.latent_channels is 16, here it is 8"):
        run("video-vae", tmp_path, network=other)
    with pytest.raises(CheckpointError, match="its task is video_vae, here it is audio_vae"):
        run("audio-vae", tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("video-vae", tmp_path / "whole", steps=4)
    run("video-vae", tmp_path / "parts", steps=2)

    def full(self: Any, path: Path) -> None:
        (path / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_write", full)
        with pytest.raises(CheckpointError, match=r"No space left.*step-00000002 is still good"):
            run("video-vae", tmp_path / "parts", steps=4)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000002"]
    assert same(run("video-vae", tmp_path / "parts", steps=4), whole)


def test_an_evaluation_that_fails_costs_no_work_and_is_made_up_for(tmp_path: Path) -> None:
    task = make("video-vae", steps=2)
    evaluate, task.evaluate = task.evaluate, lambda stage, device: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(task, tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000002").is_dir()
    task.evaluate = evaluate
    whole, parts = train(make("video-vae", steps=2), tmp_path / "whole"), train(task, tmp_path)
    assert same(whole, parts)
    logs = [Log(path.with_name("log.jsonl")).read() for path in (whole, parts)]
    assert "psnr" in logs[0][-1]
    assert [line | {"seconds": 0} for line in logs[0]] == [line | {"seconds": 0} for line in logs[1]]


def test_what_latents_are_normalised_by_is_measured_once(tmp_path: Path) -> None:
    def again(**changes: Any) -> Path:
        task, some = make("video-vae", steps=2, **changes), []
        real = task.some

        def counted(stage, split, *rest):
            some.append(split)
            return real(stage, split, *rest)

        task.some = counted
        path = train(task, tmp_path)
        measured.append(some.count("train"))
        return path.rename(tmp_path / f"{len(measured)}.safetensors")

    measured: list[int] = []
    first, second, other = again(), again(), again(statistics_clips=2)
    assert measured == [1, 0, 1]
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize(
    ("command", "chosen"),
    [
        ("transformer", {"ACCELERATE_USE_DEEPSPEED": "true"}),
        ("transformer", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}),
        ("transformer", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}),
        ("video-vae", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
    ],
)
def test_sharding_that_cannot_be_is_refused_before_anything_is_read(
    command: str,
    chosen: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert main([command, "--config", "nowhere.toml", "--output-path", str(tmp_path)]) == 2
    assert "Weights are sharded by FSDP2 alone" in capsys.readouterr().err
    with pytest.raises(InputError, match="FSDP2 alone"):  # so it is where no command line has asked
        run("video-vae", tmp_path, steps=1)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run("video-vae", tmp_path, steps=2)
    weights = tmp_path / "checkpoints" / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"step-00000002 cannot be read .* remove this folder"):
        run("video-vae", tmp_path, steps=4)


def test_what_is_frozen_is_not_in_checkpoints(tmp_path: Path) -> None:
    run("video-vae", tmp_path, steps=2, train_encoder=False)
    kept = Checkpoint(tmp_path / "checkpoints" / "step-00000002" / "model.safetensors")
    assert any(key.startswith("decoder.conv_in") for key in kept)
    assert not any(key.startswith("encoder.conv_in") for key in kept)


def test_a_diverging_run_ends_with_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def diverge(steps: int) -> None:
        task = make("video-vae", steps=steps)
        task.losses = lambda model, batch, _: {"loss": model(task.prepare(batch))[0].sum() * torch.nan}
        train(task, tmp_path / str(steps))

    with pytest.raises(LTXError, match=r"not finite. Lower optimizer.learning_rate"):
        diverge(20)
    diverge(2)  # too short to be given up
    assert "The gradients of the last 2 steps were not finite" in caplog.text


def test_a_decoder_can_be_trained_from_a_file_with_its_latents_kept(tmp_path: Path) -> None:
    first = run("video-vae", tmp_path / "a", steps=2)
    changes = {"network": None, "start": str(first), "train_encoder": False}
    config = {
        key: value for key, value in table("video-vae", steps=3, **changes).items() if value is not None
    }
    kind, task = task_of("video-vae")
    second = train(task(parse_table(kind, config)), tmp_path / "b")
    old, new = Checkpoint(first), Checkpoint(second)
    assert new.config == old.config
    same = {key: torch.equal(old.read(key), new.read(key)) for key in old}
    assert all(same[key] for key in same if not key.startswith("vae.decoder."))
    assert not all(same[key] for key in same if key.startswith("vae.decoder."))


def test_a_vocoder_can_listen_to_an_audio_vae(tmp_path: Path) -> None:
    autoencoder = run("audio-vae", tmp_path / "a", steps=1)
    path = run("vocoder", tmp_path / "v", steps=1, audio_vae=str(autoencoder))
    model = build_model(
        VocoderConfigurator, Checkpoint(path), VOCODER_COMFY_KEYS_FILTER, "cpu", torch.float32
    )
    with torch.no_grad():
        assert model(torch.zeros(1, 2, 5, 64)).shape == (1, 2, 5 * 480)
    with pytest.raises(ConfigError, match="holds no audio VAE"):
        run("vocoder", tmp_path / "w", audio_vae=str(run("video-vae", tmp_path / "x", steps=1)))


def test_a_vocoder_learns_tones_that_it_cannot_make_yet() -> None:
    tone = 0.3 * torch.sin(2 * torch.pi * 2900 * torch.arange(16_000) / 48_000)[None, None]
    level = torch.tensor(1e-5, requires_grad=True)  # under the floor of the logarithms
    loss = spectral_loss(level * tone, tone, (768, 3072))
    loss.backward()
    assert level.grad is not None
    assert float(level.grad) < -0.5
    assert float(spectral_loss(tone, tone, (768, 3072))) == 0
    louder, silence = spectral_loss(0.1 * tone, tone, (768, 3072)), torch.zeros_like(tone)
    assert 0 < float(louder) < float(loss.detach())
    assert float(spectral_loss(1e-5 * tone, silence, (768, 3072))) < 0.2


def test_nothing_to_train_is_said(tmp_path: Path) -> None:
    task = make("video-vae")
    task.model.requires_grad_(False)
    with pytest.raises(ConfigError, match="every part of the model is frozen"):
        train(task, tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with own_folder(tmp_path), pytest.raises(InputError, match="Another process"):
        run("video-vae", tmp_path, steps=1)
    run("video-vae", tmp_path, steps=1)


def test_learning_rates_warm_up_and_fall_in_each_stage() -> None:
    stages = [{"steps": 50, "frames": 1}, {"steps": 100, "frames": 9, "learning_rate": 1e-3}]
    optimizer = {"learning_rate": 2e-3, "warmup_steps": 10}
    config = make("video-vae", stages=stages, optimizer=optimizer).config
    for first, last, peak in ((0, 49, 2e-3), (50, 149, 1e-3)):
        assert learning_rate(config, first) == pytest.approx(peak / 10)
        assert learning_rate(config, first + 9) == pytest.approx(peak)
        assert learning_rate(config, last) == pytest.approx(peak / 100, rel=0.2)
        falling = [learning_rate(config, step) for step in range(first + 9, last + 1)]
        assert falling == sorted(falling, reverse=True)
    constant = make("video-vae", stages=stages, optimizer=optimizer | {"decay": "constant"}).config
    assert learning_rate(constant, 49) == 2e-3


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("video-vae", {"stages": [{"steps": 1, "height": 40}]}, "multiples of 32"),
        ("video-vae", {"stages": [{"steps": 1, "frames": 12}]}, "8k \\+ 1"),
        ("audio-vae", {"stages": [{"steps": 1, "frames": 1}]}, "0.04 s of sound"),
        ("video-vae", {"network": {}}, "no section 'vae'"),
        ("video-vae", {"stages": [{"steps": 1, "scales": [0]}]}, "scales is"),
        ("audio-vae", {"evaluation_clips": 0}, "evaluation_clips is 0; it must be positive"),
        ("audio-vae", {"statistics_clips": 0}, "statistics_clips is 0; it must be positive"),
        ("audio-vae", {"data": {"fps": 0}}, "fps 0.0 must be positive"),
        ("video-vae", {"data": {"workers": -1}}, "data.workers is -1; it must not be negative"),
        ("video-vae", {"optimizer": {"warmup_steps": -1}}, "warmup_steps is -1; it must not be negative"),
        (
            "video-vae",
            {"stages": [{"steps": 1, "learning_rate": 0}]},
            "learning_rate is 0.0; it must be positive",
        ),
        ("video-vae", {"stages": [{"steps": 1}, {"steps": 1, "height": 0}]}, "128x0 are too small"),
        ("video-vae", {"network": {"vae": 3}}, "no section 'vae'"),
        ("video-vae", {"network": 3}, "network is 3"),
    ],
)
def test_runs_that_cannot_be_are_refused(kind: str, changes: dict, said: str) -> None:
    with pytest.raises(LTXError, match=said):
        make(kind, **changes)


def test_the_command_line_runs_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'precision = "fp32"\nevaluation_clips = 1\nstatistics_clips = 2\n'
        "[[stages]]\nsteps = 1\nbatch_size = 1\nheight = 32\nwidth = 32\n[network.vae]\n"
        + "\n".join(f"{key} = {_toml(value)}" for key, value in NETWORKS["video-vae"]["vae"].items())
    )
    arguments = ["video-vae", "--config", str(config), "--output-path", str(tmp_path / "run")]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "run" / "video_vae.safetensors")
    assert "1/1" not in said.err  # a bar, which is for terminals
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", lambda task, folder: None)  # as when a signal stops it
        assert main(arguments) == 130

    def too_large(task: Any, folder: Path) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", too_large)
        assert main(arguments) == 1
    assert "Use a smaller batch_size" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--output-path="])
    assert "--output-path: the path is empty" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*arguments, "--output-path=~/at-home"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "at-home" / "video_vae.safetensors")
    config.write_text("steps = 1")
    assert main(arguments) == 2
    assert "steps is not a setting; did you mean 'stages'?" in capsys.readouterr().err


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
