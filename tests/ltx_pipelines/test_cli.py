"""The command line: every entry point, every kind of wrong input in one line, runs that can be repeated."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch

from ltx_core.errors import InputError
from ltx_pipelines.cli import app, run
from ltx_pipelines.cli.commands import COMMANDS
from ltx_pipelines.cli.config_file import read_config
from ltx_pipelines.cli.flags import build_parser
from ltx_pipelines.media.video import load_video_conditioning
from ltx_pipelines.media.writer import read_settings
from ltx_pipelines.progress import progress

SMALL = ["--height", "64", "--width", "128", "--num-frames", "9"]


def ltx(*arguments) -> int:
    """The exit code of ``ltx``, whether it returns or raises it."""
    try:
        return app.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", text))


class TestHelp:
    def test_ltx_lists_all_commands(self, capsys):
        assert ltx("--help") == 0
        listed = capsys.readouterr().out
        assert all(name.replace("_", "-") in listed for name in COMMANDS)
        assert all(name in listed for name in ("inspect", "plan", "rerun", "demo"))

    @pytest.mark.parametrize("name", COMMANDS)
    def test_both_entry_points_list_the_same_flags(self, name, capsys):
        assert ltx(name.replace("_", "-"), "--help") == 0
        first = capsys.readouterr().out
        with pytest.raises(SystemExit) as stop:
            app.run_pipeline(name, ["--help"])
        assert stop.value.code == 0
        second = capsys.readouterr().out
        assert flags_in(first) == flags_in(second)
        assert {"--prompt", "--output-path", "--seed"} < flags_in(first)

    def test_a_module_runs_by_itself(self):
        command = [sys.executable, "-m", "ltx_pipelines.distilled", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "--distilled-checkpoint-path" in done.stdout

    def test_help_does_not_import_torch(self):
        code = "import sys; from ltx_pipelines.cli.app import main; main(['--help']); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_flag_says_what_it_does(self, name):
        parser = build_parser(name)
        assert all(action.help for action in parser._actions)

    def test_version(self, capsys):
        assert ltx("--version") == 0
        assert capsys.readouterr().out.startswith("openltx ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "distilled --height 100",
            "height is 100; a two-stage video needs a multiple of 64, e.g. 64 or 128.",
        ),
        (
            "ti2vid-one-stage --width 33",
            "width is 33; a one-stage video needs a multiple of 32, e.g. 32 or 64.",
        ),
        ("distilled --num-frames 24", "num_frames is 24; it must be a multiple of 8 plus 1, e.g. 17 or 25."),
        ("distilled --frame-rate 0", "frame_rate is 0"),
        ("distilled --frame-rate nan", "frame_rate is nan"),
        ("distilled --frame-rate 0.0001", "frame_rate is 0.0001; give frames a second, 0.001 to 1000"),
        (
            "distilled --num-frames 1 --frame-rate 60",
            "num_frames is 1 at 60 frames a second, too short for any sound",
        ),
        ("ti2vid-one-stage --video-skip-step -1", "skip_step is -1"),
        ("distilled --seed 99999999999999999999999", "seed is 99999999999999999999999"),
        ("ti2vid-one-stage --num-inference-steps 0", "num_inference_steps is 0"),
        ("distilled --image PICTURE 30 1.0", "for frame 30; the video has frames 0 to 24."),
        ("distilled --image PICTURE 0 1.5", "is 1.5; it must lie between 0 and 1."),
        (
            "distilled --image PICTURE 0 x",
            "--image takes PATH FRAME_IDX STRENGTH [CRF]; STRENGTH must be a finite number, not 'x'",
        ),
        ("distilled --image PICTURE 0.5 1", "FRAME_IDX must be a whole number, not '0.5'"),
        ("distilled --image PICTURE 0 1 x", "CRF must be a whole number, not 'x'"),
        ("distilled --image a 0", "--image takes PATH FRAME_IDX STRENGTH [CRF]; got 2 values: 'a 0'"),
        ("distilled --image none.png 0 1", "none.png does not exist"),
        ("distilled --image FOREIGN 0 1", "cannot be read as an image"),
        ("distilled --image FOLDER 0 1", "is a folder, not a file"),
        ("distilled --lora none.safetensors", "none.safetensors does not exist"),
        ("distilled --lora FOREIGN", "is not a safetensors file"),
        ("distilled --lora MODEL", "is a LoRA for another one, or no LoRA"),
        ("distilled --lora a b c", "--lora takes PATH [STRENGTH]; got 3 values: 'a b c'"),
        (
            "distilled --lora LORA strong",
            "--lora takes PATH [STRENGTH]; STRENGTH must be a finite number, not 'strong'",
        ),
        ("distilled --lora LORA nan", "STRENGTH must be a finite number, not 'nan'"),
        ("distilled --lora LORA inf", "STRENGTH must be a finite number, not 'inf'"),
        ("distilled --quantization int4", "takes fp8-cast or fp8-scaled-mm; got 'int4'"),
        ("distilled --quantization fp8-cast x", "got 'fp8-cast x'"),
        ("distilled --quantization fp8-scaled-mm", "no layer is stored as fp8"),
        ("distilled --distilled-checkpoint-path none.safetensors", "none.safetensors does not exist"),
        (
            "distilled --distilled-checkpoint-path MODEL",
            "also needs --gemma-root and --spatial-upsampler-path",
        ),
        ("ti2vid-one-stage --checkpoint-path FOREIGN --gemma-root GEMMA", "is not a safetensors file"),
        ("ti2vid-one-stage --checkpoint-path EMPTY --gemma-root GEMMA", "is empty"),
        ("ti2vid-one-stage --checkpoint-path TRUNCATED --gemma-root GEMMA", "is truncated"),
        ("ti2vid-one-stage --checkpoint-path FOLDER --gemma-root GEMMA", "is a folder"),
        ("ti2vid-one-stage --checkpoint-path UPSAMPLER --gemma-root GEMMA", "(it is a latent upsampler)"),
        (
            "ti2vid-one-stage --checkpoint-path MODEL --gemma-root FOLDER",
            "No file matching 'model*.safetensors'",
        ),
        ("ti2vid-one-stage --checkpoint-path MODEL --gemma-root FOREIGN", "is a file"),
        ("ti2vid-one-stage --checkpoint-path MODEL --transformer-path MODEL", "exclude each other"),
        ("ti2vid-two-stages --distilled-lora LORA", "needs a model as well"),
        ("a2vid-two-stage --audio-path none.wav", "none.wav does not exist"),
        ("a2vid-two-stage --audio-path PICTURE", "has no sound"),
        ("a2vid-two-stage --audio-path SOUND --audio-start-time 99", "has no sound at 99 s"),
        ("a2vid-two-stage --audio-path SOUND --frame-rate 0", "frame_rate is 0"),
        ("retake --video-path none.mp4 --start-time 0 --end-time 1", "none.mp4 does not exist"),
        (
            "retake --video-path CLIP --start-time 0.5 --end-time 0.5",
            "The window from 0.5 s to 0.5 s is empty",
        ),
        ("retake --video-path CLIP --start-time -2 --end-time -1", "ends at -1 s, before the clip begins"),
        ("retake --video-path CLIP --start-time 0 --end-time nan", "The window from 0 s to nan s is empty"),
        ("retake --video-path SOUND --start-time 0 --end-time 1", "has no video"),
        ("retake --video-path FOREIGN --start-time 0 --end-time 1", "cannot be decoded"),
        ("ic-lora --video-conditioning none.mp4 1", "none.mp4 does not exist"),
        ("ic-lora --video-conditioning CLIP 2", "must lie between 0 and 1"),
        (
            "ic-lora --video-conditioning CLIP x",
            "takes PATH STRENGTH; STRENGTH must be a finite number, not 'x'",
        ),
        ("distilled --sampler ddim", "invalid choice: 'ddim'"),
        ("distilled --offload tape", "invalid choice: 'tape'"),
        ("distilled --max-batch-size 0", "max_batch_size is 0; it must be 1 or more"),
        ("distilled --attention none", "invalid choice: 'none'"),
        ("distilled --attention sage", "'sage' needs a package that is not installed"),
        ("distilled --compile speed=9", "'speed=9' is none of mode=NAME"),
        ("distilled --compile fullgraph=maybe", "'fullgraph=maybe' is none of"),
        ("distilled --compile dynamic=2", "'dynamic=2' is none of"),
        ("distilled --device warp:1", "device is 'warp:1'; give cpu, cuda"),
        ("distilled --device meta", "device is 'meta', which this PyTorch does not have"),
        ("distilled --config none.toml", "none.toml does not exist"),
        ("distilled --config FOREIGN", "ends in .toml or .json"),
        (f"distilled --height {64 * 10**20}", f"height is {64 * 10**20}; give 1048576 at most"),
        (f"distilled --num-frames {8 * 10**24 + 1}", f"num_frames is {8 * 10**24 + 1}; give 1048576 at most"),
        (f"ti2vid-one-stage --num-inference-steps {10**24}", f"steps is {10**24}; give 1048576 at most"),
        (f"distilled --seed {10**20 - 1}", "give a whole number between 0 and"),
        ("distilled --no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("distilled --lora NOTHING", "--lora takes PATH [STRENGTH]; the path is empty"),
        ("distilled --distilled-checkpoint-path NOTHING", "--distilled-checkpoint-path: the path is empty"),
        (
            "retake --video-path CLIP --start-time 0 --end-time 1 --gemma-root NOTHING",
            "--gemma-root: the path is empty; name a file or folder",
        ),
        ("retake --video-path NOTHING --start-time 0 --end-time 1", "--video-path: the path is empty"),
        (
            "retake --video-path CLIP --start-time 0 --end-time 1 --loras NOTHING",
            "--loras: the path is empty",
        ),
        ("a2vid-two-stage --audio-path NOTHING", "--audio-path: the path is empty"),
        ("distilled --config NOTHING", "--config: the path is empty"),
        ("distilled --save-config NOTHING", "--save-config: the path is empty"),
        ("a2vid-two-stage --audio-path SOUND --audio-start-time 1e300", "has no sound at 1e+300 s"),
        ("distilled --save-config DIRECTORY.toml", "directory.toml is a folder; give the name of a file"),
        ("ti2vid-one-stage --negative-prompt -x", "a value that begins with a dash is written --flag=-value"),
        (
            "distilled --save-config /proc/none/run.toml",
            "/proc/none: No such file or directory; check the path",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments, sentence, model_folder, picture, sound, clip, tmp_path, capsys
):
    content = (model_folder / "model.safetensors").read_bytes()
    made = {"FOREIGN": b"hello there, " * 50, "EMPTY": b"", "TRUNCATED": content[: len(content) // 2]}
    places = {
        "PICTURE": picture,
        "SOUND": sound,
        "CLIP": clip,
        "FOLDER": tmp_path,
        "MODEL": model_folder / "model.safetensors",
        "UPSAMPLER": model_folder / "upsampler.safetensors",
        "LORA": model_folder / "distilled-lora.safetensors",
        "GEMMA": model_folder / "gemma",
        "DIRECTORY.toml": tmp_path / "directory.toml",
        "NOTHING": "",
    }
    places["DIRECTORY.toml"].mkdir()
    for name, data in made.items():
        places[name] = tmp_path / f"{name.lower()}.safetensors"
        places[name].write_bytes(data)
    before = set(tmp_path.iterdir())
    words = [places.get(word, word) for word in arguments.split()]
    assert ltx(*words, "--prompt", "x", "--output-path", tmp_path / "out.mp4") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert sentence in lines[0]
    assert "Traceback" not in lines[0]
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("FOLDER", "is a folder; give the name of a file"), ("FOLDER/x.txt", "has no ending of a video file")],
)
def test_places_that_cannot_be_written(path, sentence, tmp_path, capsys):
    target = path.replace("FOLDER", str(tmp_path))
    assert ltx("distilled", "--prompt", "x", "--output-path", target) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_that_nobody_can_write_to(tmp_path, capsys):
    assert ltx("distilled", "--prompt", "x", "--output-path", "/proc/none/x.mp4") == 2
    assert "Cannot write to /proc" in capsys.readouterr().err


def test_no_overwrite(tmp_path, capsys):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"precious")
    assert ltx("distilled", "--prompt", "x", "--output-path", path, "--no-overwrite", *SMALL) == 2
    assert "exists" in capsys.readouterr().err
    assert path.read_bytes() == b"precious"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ltx_pipelines.media.writer._encode_frames", full)
    assert ltx("distilled", "--prompt", "x", "--output-path", tmp_path / "out.mp4", *SMALL) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_running_out_of_memory_names_the_flags(device, tmp_path, capsys, monkeypatch):
    def short(*arguments):
        if device == "cpu":
            torch.empty(2**59)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("ltx_pipelines.generate.encode_source", short)
    assert ltx("distilled", "--prompt", "x", "--output-path", tmp_path / "out.mp4", *SMALL) == 1
    error = capsys.readouterr().err
    assert all(flag in error for flag in ("--offload", "--quantization", "--num-frames", "ltx plan"))


def test_interrupting_leaves_nothing(tmp_path, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ltx_pipelines.media.writer._encode_frames", stop)
    assert ltx("distilled", "--prompt", "x", "--output-path", tmp_path / "out.mp4", *SMALL) == 130
    assert not list(tmp_path.iterdir())


def test_errors_that_nobody_foresaw_are_one_line_without_pytorchs_own_trace(tmp_path, capsys, monkeypatch):
    def fail(*arguments):
        torch.zeros(8 * 10**24)

    monkeypatch.setattr("ltx_pipelines.generate.encode_source", fail)
    assert ltx("distilled", "--prompt", "x", "--output-path", tmp_path / "out.mp4", *SMALL) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert line.endswith("(run again with --debug for the trace)")
    assert "frame #0" not in line


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("retake", ["--checkpoint-path", "--gemma-root", "--output-path", "--video-path", "--loras"]),
        ("a2vid_two_stage", ["--audio-path"]),
    ],
)
def test_paths_that_the_official_parsers_take_as_they_are(name, flags):
    actions = build_parser(name, require_paths=False)._option_string_actions
    assert all(actions[flag].type in (None, str) for flag in flags)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_that_end_a_program_interrupt_it(name):
    code = (
        "import signal, sys; from ltx_pipelines.cli.app import guarded; "
        f"signal.signal(signal.{name}, signal.SIG_DFL); "  # whatever the tests were started with
        f"sys.exit(guarded(lambda: signal.raise_signal(signal.{name}), debug=False))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "\nInterrupted; nothing was written.\n"


def test_an_interrupted_import_of_torch_says_nothing_when_the_program_ends():
    code = (
        "import logging; from ltx_pipelines.cli.app import guarded\n"
        "def stop(): raise KeyboardInterrupt\n"
        "guarded(stop, debug=False); logging.getLogger('torch.part').info('statistics')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == "\nInterrupted; nothing was written.\n"


def test_an_interrupted_import_of_numpy_is_not_swallowed():
    code = (
        "import sys; from ltx_pipelines.cli.app import main\n"
        "class Interruption:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            sys.meta_path.remove(self)\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interruption())\n"
        "sys.exit(main(['inspect', 'nowhere']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "\nInterrupted; nothing was written.\n")


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with another one
    try:
        assert app.guarded(lambda: signal.raise_signal(signal.SIGTERM) or 7, debug=False) == 7
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_reader_that_has_seen_enough(model_folder):
    code = (
        "import sys; from ltx_pipelines.cli.app import main; "
        f"sys.exit(main(['inspect'] + [{str(model_folder / 'model.safetensors')!r}] * 99))"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_program_without_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress(range(3), desc="step")) == [0, 1, 2]


def test_interrupting_while_torch_is_imported(capsys, monkeypatch):
    def stop(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", stop)
    assert app.main(["distilled", "--prompt", "x"]) == app.main(["plan", "distilled"]) == 130
    assert capsys.readouterr().err.count("Interrupted; nothing was written.") == 2


def test_debug_shows_the_trace(tmp_path):
    with pytest.raises(InputError):
        app.main(
            [
                "distilled",
                "--prompt",
                "x",
                "--output-path",
                str(tmp_path / "x.mp4"),
                "--height",
                "9",
                "--debug",
            ]
        )


class TestRuns:
    @pytest.fixture
    def made(self, tmp_path, picture):
        path = tmp_path / "first.mp4"
        flags = ["--prompt", "a -- ball", "--image", picture, 0, 0.5, "--seed", 7, *SMALL]
        assert ltx("distilled", *flags, "--output-path", path, "--save-config", tmp_path / "run.toml") == 0
        return path

    def test_the_file_says_how_it_was_made_but_not_where(self, made, picture):
        recorded = read_settings(made)["openltx"]
        assert recorded["command"] == "distilled"
        assert recorded["arguments"]["prompt"] == "a -- ball"
        assert recorded["arguments"]["images"] == [[str(picture), 0, 0.5, 33]]
        assert str(made) not in json.dumps(recorded)

    def test_rerun_gives_the_same_bytes(self, made, capsys):
        assert ltx("rerun", made) == 0
        again = made.with_name("first-rerun.mp4")
        assert capsys.readouterr().out.strip() == str(again)
        assert again.read_bytes() == made.read_bytes()

    def test_rerun_takes_changes(self, made, tmp_path):
        assert ltx("rerun", made, "--output-path", tmp_path / "other.mp4", "--seed", 8) == 0
        assert read_settings(tmp_path / "other.mp4")["openltx"]["arguments"]["seed"] == 8

    def test_a_random_seed_is_recorded(self, clip, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "random_seed", lambda: 77)
        window = ["--video-path", clip, "--start-time", 0, "--end-time", 1, "--num-inference-steps", 1]
        for seed, recorded in ((-1, 77), (0, 0)):
            path = tmp_path / f"{seed}.mp4"
            assert ltx("retake", "--prompt", "x", *window, "--seed", seed, "--output-path", path) == 0
            assert read_settings(path)["openltx"]["arguments"]["seed"] == recorded

    def test_rerun_of_a_foreign_file(self, clip, capsys):
        assert ltx("rerun", clip) == 2
        assert "carries no settings" in capsys.readouterr().err

    def test_a_saved_run_starts_again_and_flags_go_before_it(self, made, tmp_path):
        config = tmp_path / "run.toml"
        assert (
            ltx(
                "distilled",
                "--config",
                config,
                "--output-path",
                tmp_path / "again.mp4",
                "--prompt",
                "a -- ball",
            )
            == 0
        )
        assert (tmp_path / "again.mp4").read_bytes() == made.read_bytes()
        namespace = run.parse("distilled", ["--config", str(config), "--seed", "8"])
        assert (namespace.seed, namespace.prompt, namespace.num_frames) == (8, "a -- ball", 9)

    def test_a_saved_run_of_another_command(self, made, tmp_path, capsys):
        assert ltx("retake", "--config", tmp_path / "run.toml") == 2
        assert "is for 'distilled', not 'retake'" in capsys.readouterr().err

    def test_both_formats_hold_the_same(self, tmp_path, picture):
        flags = ["--prompt", 'say "hi"\nthere', "--image", str(picture), "0", "1", "--output-path", "x.mp4"]
        flags += ["--video-stg-blocks", "1", "0", "--audio-stg-blocks", "--quantization", "fp8-cast"]
        flags += ["--lora", "a.safetensors", "-0.5"]
        stored = []
        for ending in ("toml", "json"):
            path = tmp_path / f"run.{ending}"
            namespace = run.parse("ti2vid_one_stage", flags)
            run.write_config(path, "ti2vid_one_stage", namespace)
            stored.append(read_config(path, "ti2vid_one_stage"))
        assert stored[0] == stored[1]
        again = run.parse("ti2vid_one_stage", ["--config", str(path)])
        assert again.prompt == namespace.prompt
        assert again.images == namespace.images
        assert (again.video_stg_blocks, again.audio_stg_blocks) == ([1, 0], [])
        assert again.lora == namespace.lora
        assert again.quantization == namespace.quantization


class TestTools:
    def test_inspect(self, model_folder, capsys):
        names = ("model.safetensors", "upsampler.safetensors", "distilled-lora.safetensors", "gemma")
        assert ltx("inspect", *(model_folder / name for name in names)) == 0
        told = capsys.readouterr().out
        for fact in (
            "model, version 2.3.0",
            "latent upsampler",
            "LoRA, distilled",
            "Gemma text encoder",
            "rank: 4",
        ):
            assert fact in told

    def test_plan_tells_and_writes_nothing(self, tmp_path, capsys):
        path = tmp_path / "x.mp4"
        assert ltx("plan", "ti2vid-two-stages", "--prompt", "x", "--output-path", path, *SMALL) == 0
        told = capsys.readouterr().out
        assert re.search(r"stage 1: 64x32, 9 frames .* 8 euler steps, 16 transformer passes", told)
        assert not path.exists()

    def test_plan_needs_no_output_path(self, capsys):
        assert ltx("plan", "distilled", "--prompt", "x", *SMALL) == 0
        assert "stage 2: 128x64" in capsys.readouterr().out

    def test_plan_misses_a_sound(self, capsys):
        assert ltx("plan", "a2vid-two-stage", "--prompt", "x", "--audio-path", "none.wav", *SMALL) == 2
        assert "none.wav does not exist" in capsys.readouterr().err

    def test_plan_needs_a_pipeline(self, capsys):
        assert ltx("plan", "--help") == 0
        assert "ti2vid-two-stages" in capsys.readouterr().out
        assert ltx("plan") == 2
        assert "ti2vid-two-stages" in capsys.readouterr().err

    def test_demo(self, tmp_path):
        assert ltx("demo", "--output-path", tmp_path / "demo.mp4") == 0
        assert (tmp_path / "demo.mp4").stat().st_size > 1000

    def test_an_unknown_command(self, capsys):
        assert ltx("ti2vid") == 2
        assert "unknown command 'ti2vid'" in capsys.readouterr().err


class TestFlags:
    """Each flag of the inventories reaches the call or the constructor that it is for."""

    def arguments(self, name, *flags):
        namespace = run.parse(name, ["--prompt", "x", "--output-path", "x.mp4", *map(str, flags)])
        pipeline = run.make_pipeline(name, namespace)
        return pipeline, run.call_arguments(pipeline, namespace)

    @pytest.mark.parametrize("stream", ["video", "audio"])
    def test_guidance(self, stream):
        cross = {"video": "a2v", "audio": "v2a"}[stream]
        flags = {
            f"--{stream}-cfg-guidance-scale": 2.5,
            f"--{stream}-stg-guidance-scale": 0.5,
            f"--{stream}-rescale-scale": 0.25,
            f"--{cross}-guidance-scale": 1.5,
            f"--{stream}-skip-step": 2,
            f"--{stream}-stg-blocks": 1,
        }
        _, call = self.arguments("ti2vid_two_stages", *(word for pair in flags.items() for word in pair))
        params = call[f"{stream}_guider_params"]
        assert (params.cfg_scale, params.stg_scale, params.rescale_scale) == (2.5, 0.5, 0.25)
        assert (params.modality_scale, params.skip_step, params.stg_blocks) == (1.5, 2, [1])

    @pytest.mark.parametrize("name", COMMANDS)
    def test_those_that_all_have(self, name, clip, sound):
        own = {
            "retake": ["--video-path", clip, "--start-time", 0, "--end-time", 0.5],
            "a2vid_two_stage": ["--audio-path", sound],
            "ic_lora": ["--video-conditioning", clip, 0.5],
        }.get(name, [])
        flags = ["--seed", 3, "--enhance-prompt", "--sampler", "gradient-estimation", "--ge-gamma", 1.5]
        pipeline, call = self.arguments(
            name,
            *own,
            *flags,
            "--dtype",
            "bfloat16",
            "--tiling",
            "none",
            "--offload",
            "disk",
            "--attention",
            "pytorch",
            "--compile",
            "mode=reduce-overhead",
            "fullgraph=true",
            "--max-batch-size",
            2,
            "--no-fuse-loras",
        )
        assert (call["seed"], call["prompt"], call["enhance_prompt"]) == (3, "x", True)
        assert (call["sampler"], call["ge_gamma"], call["tiling_config"]) == (
            "gradient-estimation",
            1.5,
            None,
        )
        assert (pipeline.dtype, pipeline.engine.components.offload) == (torch.bfloat16, "disk")
        assert (pipeline.engine.attention, pipeline.engine.max_batch_size) == ("pytorch", 2)
        assert pipeline.engine.compile == {"mode": "reduce-overhead", "fullgraph": True}
        assert not pipeline.engine.components.fuse_loras

    def test_compiling_needs_no_options(self):
        assert self.arguments("distilled", "--compile")[0].engine.compile == {}
        assert self.arguments("distilled")[0].engine.compile is None

    def test_sizes_steps_and_negative_prompt(self):
        flags = ["--height", 64, "--width", 64, "--num-frames", 17, "--frame-rate", 23.976]
        flags += ["--num-inference-steps", 3, "--negative-prompt", "bad"]
        _, call = self.arguments("ti2vid_one_stage", *flags)
        assert [call[k] for k in ("height", "width", "num_frames", "frame_rate")] == [64, 64, 17, 23.976]
        assert (call["num_inference_steps"], call["negative_prompt"]) == (3, "bad")

    def test_model_files(self, model_folder):
        model, gemma, lora = (
            model_folder / n for n in ("model.safetensors", "gemma", "distilled-lora.safetensors")
        )
        flags = ["--gemma-root", gemma, "--spatial-upsampler-path", model_folder / "upsampler.safetensors"]
        pipeline, _ = self.arguments(
            "ti2vid_two_stages_hq",
            *("--checkpoint-path", model, *flags, "--lora", lora, 0.5, "--lora", lora),
            *("--distilled-lora", lora, 0.7, "--distilled-lora-strength-stage-1", 0.1),
            *("--distilled-lora-strength-stage-2", 0.9, "--quantization", "fp8-cast"),
        )
        assert pipeline.strengths == (0.1, 0.9)
        assert [item.strength for item in pipeline.loras] == [0.5, 1.0]
        assert [item.strength for item in pipeline.distilled_lora] == [0.7]
        assert pipeline.engine.ledger.quantization.name == "fp8-cast"
        split = ["--transformer-path", model, "--text-encoder-path", gemma]
        split += ["--video-vae-path", model, "--audio-vae-path", model]
        pipeline, _ = self.arguments("ti2vid_one_stage", *split)
        assert pipeline.engine.ledger.paths.transformer() == str(model)

    def test_retake(self, clip, model_folder):
        lora = model_folder / "distilled-lora.safetensors"
        window = ["--video-path", clip, "--start-time", 0.25, "--end-time", 0.5]
        more = ["--distilled", "--keep-audio", "--fit", "pad", "--loras", lora, "--negative-prompt", "bad"]
        pipeline, call = self.arguments("retake", *window, *more, "--num-inference-steps", 4)
        assert (call["start_time"], call["end_time"], call["video_path"]) == (0.25, 0.5, str(clip))
        assert (call["distilled"], call["regenerate_audio"], call["regenerate_video"]) == (True, False, True)
        assert (call["fit"], call["negative_prompt"], call["num_inference_steps"]) == ("pad", "bad", 4)
        assert [item.path for item in pipeline.loras] == [str(lora)]

    def test_audio_to_video(self, sound):
        flags = ["--audio-path", sound, "--audio-start-time", 0.5]
        _, call = self.arguments("a2vid_two_stage", *flags, "--num-frames", 13, "--frame-rate", 13)
        assert (call["audio_path"], call["audio_start_time"], call["audio_max_duration"]) == (
            str(sound),
            0.5,
            1.0,
        )
        _, call = self.arguments("a2vid_two_stage", *flags, "--audio-max-duration", 0.25)
        assert call["audio_max_duration"] == 0.25

    def test_ic_lora(self, clip):
        flags = [
            "--video-conditioning",
            clip,
            0.5,
            "--conditioning-attention-mask",
            clip,
            0.25,
            "--skip-stage-2",
        ]
        _, call = self.arguments("ic_lora", *flags, *SMALL)
        assert call["video_conditioning"] == [(str(clip), 0.5)]
        assert call["conditioning_attention_strength"] == 0.25
        mask = call["conditioning_attention_mask"]
        clips = load_video_conditioning(clip, 32, 64, 9, torch.float32, "cpu")
        assert torch.allclose(mask, (clips.mean(1, keepdim=True) + 1) / 2)
        assert 0 <= mask.min() < mask.max() <= 1
        assert call["skip_stage_2"] is True
