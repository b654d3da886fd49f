"""Runs that start from a config file or from the settings in a file."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from ltx_pipelines.cli import app, run
from ltx_pipelines.cli.config_file import write_config
from ltx_pipelines.media.writer import encode_video
from ltx_pipelines.utils.constants import LTX_2_3_PARAMS


def namespace_of(*flags, recorded=None):
    argv = ["--prompt", "x", "--output-path", "x.mp4", *map(str, flags)]
    return run.parse("distilled", argv, recorded=recorded)


@pytest.fixture
def stored(tmp_path, picture):
    """A config file of a run with two pictures and a LoRA."""
    flags = ["--image", picture, 0, 1, "--image", picture, 8, 0.5, "--lora", "a.safetensors", 0.5]
    write_config(tmp_path / "run.json", "distilled", namespace_of(*flags))
    return tmp_path / "run.json"


def test_flags_replace_stored_ones_that_can_be_repeated(stored, picture):
    again = namespace_of("--config", stored)
    assert [image.frame_idx for image in again.images] == [0, 8]
    assert len(again.lora) == 1
    changed = namespace_of("--config", stored, "--image", picture, 3, 0.25)
    assert [image.frame_idx for image in changed.images] == [3]
    assert len(changed.lora) == 1
    recorded = {"images": [[str(picture), 0, 1.0, 33]], "seed": 4}
    changed = namespace_of("--image", picture, 3, 0.25, recorded=recorded)
    assert [image.frame_idx for image in changed.images] == [3]
    assert changed.seed == 4


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ti2vid_one_stage", "transformer_path text_encoder_path video_vae_path audio_vae_path"),
        ("ti2vid_one_stage", "checkpoint_path gemma_root"),
        ("distilled", "distilled_checkpoint_path gemma_root spatial_upsampler_path"),
    ],
)
def test_defaults_follow_a_stored_model(name, parts, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"model_version": "2.3.1"})
    argv = ["--prompt", "x", "--output-path", "x.mp4"]
    namespace = run.parse(name, argv, recorded=dict.fromkeys(parts.split(), str(path)))
    assert namespace.num_inference_steps == LTX_2_3_PARAMS.num_inference_steps
    sides = {"distilled": LTX_2_3_PARAMS.stage_2_width}
    assert namespace.width == sides.get(name, LTX_2_3_PARAMS.stage_1_width)


@pytest.mark.parametrize(
    ("ending", "content", "sentence"),
    [
        ("toml", b"prompt = ", "is not valid TOML"),
        ("toml", b"{", "is not valid TOML"),
        ("toml", b"colour = 'red'", "has 'colour', which ltx distilled does not know"),
        ("toml", b"\xef\xbb\xbfcolour = 'red'", "has 'colour', which"),  # begins as Notepad's files do
        ("toml", b"num-frames = 9", "which ltx distilled does not know; did you mean 'num_frames'?"),
        ("toml", b"config = 'other.toml'", "cannot start from another one"),
        ("json", b"[1, 2]", "holds no settings"),
        ("json", b'"x"', "holds no settings"),
        ("json", b'{"command": 5}', "is for '5', not 'distilled'"),
        ("json", b'{"prompt": "\xff"}', "is not valid JSON"),
        ("json", b'{"distilled_checkpoint_path": 5}', "5 does not exist; check the path"),
        ("toml", b"enhance_prompt = 'no'", "enhance_prompt is 'no' in the configuration; give true or false"),
    ],
)
def test_a_config_that_is_none(ending, content, sentence, tmp_path, capsys):
    config = tmp_path / f"run.{ending}"
    config.write_bytes(content)
    flags = ["--prompt", "x", "--output-path", str(tmp_path / "x.mp4"), "--config", str(config)]
    assert app.main(["distilled", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_config_without_a_name(capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(["distilled", "--prompt", "x", "--config"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("ltx distilled: error: argument --config: expected one argument")
    assert len(error.splitlines()) == 1


def test_a_run_that_cannot_begin_stores_nothing(tmp_path, capsys):
    config = tmp_path / "run.toml"
    flags = ["--prompt", "x", "--output-path", "/proc/none/x.mp4", "--save-config", str(config)]
    assert app.main(["distilled", *flags]) == 2
    assert "Cannot write to /proc" in capsys.readouterr().err
    assert not config.exists()


def test_a_name_that_the_output_cannot_show(tmp_path):
    path = tmp_path / "b\u00e4ll.mp4"
    size = ["--num-frames", "9", "--height", "64", "--width", "64"]
    flags = ["--prompt", "x", *size, "--output-path", str(path)]
    command = [sys.executable, "-m", "ltx_pipelines.distilled", *flags]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stdout.strip().endswith(rb"b\xe4ll.mp4")
    assert path.is_file()


def test_rerun_wants_the_file_before_the_changes(capsys):
    with pytest.raises(SystemExit) as stop:
        app.main(["rerun", "--seed", "11", "ball.mp4"])
    assert stop.value.code == 2
    assert "name the file first: ltx rerun FILE --seed ..." in capsys.readouterr().err


@pytest.fixture
def recorded(tmp_path):
    """A file that says how it was made, and one of other settings for the same command."""
    values = {"prompt": "recorded", "num_frames": 9, "lora": [["a.safetensors", -1e-05]]}
    settings = json.dumps({"openltx": {"command": "distilled", "arguments": values}})
    frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    encode_video(frames, 24, None, tmp_path / "ball.mp4", settings=settings)
    config = tmp_path / "run.json"
    config.write_text('{"command": "distilled", "prompt": "stored", "output_path": "stored.mp4"}')
    return tmp_path / "ball.mp4", config


def test_a_config_changes_what_a_rerun_repeats(recorded, monkeypatch):
    path, config = recorded
    runs = []
    monkeypatch.setattr(run, "make_pipeline", lambda name, namespace: runs.append(namespace) or exit(0))
    for flags in ((), ("--config", str(config)), ("--config", str(config), "--prompt", "typed")):
        with pytest.raises(SystemExit):
            app.main(["rerun", str(path), *flags])
    assert [given.prompt for given in runs] == ["recorded", "stored", "typed"]
    assert {(given.num_frames, given.lora[0].strength) for given in runs} == {(9, -1e-05)}
    assert {given.output_path for given in runs} == {str(path.with_name("ball-rerun.mp4"))}


def test_rerun_names_the_command_whose_flags_it_takes(recorded, capsys):
    with pytest.raises(SystemExit):
        app.main(["rerun", str(recorded[0]), "--colour", "red"])
    assert "`ltx distilled --help` lists the options" in capsys.readouterr().err


def test_a_plan_saves_no_run(tmp_path, capsys):
    config = tmp_path / "run.toml"
    assert app.main(["plan", "distilled", "--prompt", "x", "--save-config", str(config)]) == 2
    assert "give it to the run itself" in capsys.readouterr().err
    assert not config.exists()


def test_a_demo_of_a_prompt_that_begins_with_a_dash(monkeypatch):
    runs = []
    monkeypatch.setattr(run, "run", lambda *arguments: runs.append(run.parse(*arguments)) or 0)
    assert app.main(["demo", "--prompt=-x"]) == 0
    assert runs[0].prompt == "-x"


@pytest.mark.parametrize(
    "recorded", ['"x"', "[]", "{}", '{"command": "distilled"}', '{"command": [], "arguments": {}}']
)
def test_rerun_of_damaged_settings(recorded, tmp_path, capsys):
    path = tmp_path / "ball.mp4"
    encode_video(
        torch.zeros(1, 32, 32, 3, dtype=torch.uint8), 24, None, path, settings=f'{{"openltx": {recorded}}}'
    )
    assert app.main(["rerun", str(path)]) == 2
    assert "ball.mp4 carries no settings of an OpenLTX command" in capsys.readouterr().err


def test_a_config_is_replaced_whole_or_not_at_all(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text("kept")
    flags = ["--prompt", "x", "--image", "caf\udce9.png", "0", "1", "--output-path", str(tmp_path / "x.mp4")]
    assert app.main(["distilled", *flags, "--save-config", str(config)]) == 2
    assert "a flag holds bytes that are no UTF-8" in capsys.readouterr().err
    assert config.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]
