"""The documentation is true: its examples run, its commands parse, its messages are the program's, its links hold.

Fenced blocks by their tag: `python` runs, the blocks of a page in one namespace. `console` runs, and the lines
under a command (with ... for any text) must appear in what it prints. `text` holds commands for real weights: they
are checked up to where weights would be loaded. `message` holds sentences that the program prints elsewhere. `toml`
holds configurations of the trainer, with the name of the file in the first line.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import io
import json
import logging
import re
import shlex
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx_core.types import Audio
from ltx_pipelines.cli import app, run
from ltx_pipelines.cli.commands import COMMANDS
from ltx_pipelines.cli.config_file import read_toml
from ltx_pipelines.cli.flags import build_parser
from ltx_pipelines.media.writer import encode_video
from ltx_pipelines.miniature import miniature
from ltx_pipelines.utils.constants import DEFAULTS_KEY
from ltx_trainer.__main__ import _parser as trainer_parser
from ltx_trainer.cache import CacheConfig
from ltx_trainer.config import parse_table
from ltx_trainer.evaluate.__main__ import _parser as evaluation_parser
from ltx_trainer.transformer import TransformerRun

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TAGS = {"python", "console", "text", "message", "sh", "toml"}
TRAINER = {"cache.toml": CacheConfig, "lora.toml": TransformerRun}

# The files of the examples for real weights, and which part of the built-in model plays each.
WEIGHTS = {
    "ltx-2.3-22b-dev.safetensors": "model",
    "ltx-2.3-22b-distilled-1.1.safetensors": "model",
    "transformer.safetensors": "model",
    "video-vae.safetensors": "model",
    "audio-vae.safetensors": "model",
    "ltx-2.3-spatial-upscaler-x2-1.0.safetensors": "upsampler",
    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors": "upsampler",
    "ltx-2.3-22b-distilled-lora-384.safetensors": "lora",
    "ltx-2.3-22b-distilled-lora-384-1.1.safetensors": "lora",
    "style.safetensors": "lora",
}
GEMMA = "gemma-3-12b-it-qat-q4_0-unquantized"


@dataclass(frozen=True)
class Block:
    """A fenced block: its tag, its text, and the line on which the text begins."""

    page: Path
    tag: str
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, tag, start, lines = [], None, 0, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.lstrip().startswith("```"):
            lines.append(line)
        elif tag is None:
            tag, start, lines = line.strip().removeprefix("```"), number + 1, []
        else:
            found.append(Block(page, tag, start, "\n".join(lines)))
            tag = None
    assert tag is None, f"{page}: the block at line {start} does not end."
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(text: str) -> list[str]:
    """The `ltx` commands of a `text` block, their continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [
        line.strip()
        for line in joined.splitlines()
        if re.match(r"\s*(ltx|python -m ltx_pipelines\.) ?\w", line)
    ]


def runs(text: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it is said to print) of a `console` block."""
    found: list[tuple[str, list[str]]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def pattern(line: str) -> re.Pattern[str]:
    """What a printed line must look like; ... stands for any text."""
    return re.compile(".*".join(map(re.escape, line.strip().split("..."))))


# -- a folder to run them in ---------------------------------------------------------------------------------


def ramp(blue: int) -> np.ndarray:
    rows, columns = np.mgrid[0:64, 0:96]
    return np.stack([columns * 2, rows * 3, np.full_like(rows, blue)], -1).astype(np.uint8)


def write_sound(path: Path) -> None:
    """Three seconds of a 440 Hz tone, mono, 22,050 Hz."""
    tone = np.sin(2 * np.pi * 440 * np.arange(3 * 22050) / 22050)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes((tone * 9000).astype("<i2").tobytes())


def write_clips(folder: Path) -> None:
    """Clips of 25 frames of 96 x 64 at 12 a second; odd.mp4 has 20 of 90 x 64."""
    frames = torch.zeros(25, 64, 96, 3, dtype=torch.uint8)
    for number, frame in enumerate(frames):
        frame[20:40, number * 3 : number * 3 + 20] = 200
    sound = Audio(torch.sin(torch.arange(100_000) / 20)[None] * 0.2, 48_000)
    with contextlib.redirect_stderr(io.StringIO()):
        encode_video(frames, 12.0, sound, folder / "clip.mp4")
        for name in ("control.mp4", "mask.mp4"):
            encode_video(frames, 12.0, None, folder / name)
        encode_video(frames[:20, :, :90], 12.0, None, folder / "odd.mp4")


def write_loras(lora: Path, folder: Path) -> None:
    """An IC-LoRA, a LoRA of which one module fits nothing, and one that fits nothing at all."""

    tensors = load_file(lora)
    save_file(tensors, folder / "control-lora.safetensors", metadata={"reference_downscale_factor": "1"})
    down = next(key for key in tensors if ".lora_A." in key)
    pair = {key: tensors[key].clone() for key in (down, down.replace(".lora_A.", ".lora_B."))}
    foreign = {re.sub(r"transformer_blocks\.\d+", "layers.7", key): value for key, value in pair.items()}
    save_file(tensors | foreign, folder / "partial.safetensors")
    save_file(foreign, folder / "foreign.safetensors")


def write_weights(folder: Path) -> None:
    """The built-in model under the names of real weights, and files that are none."""
    model = miniature()
    checkpoint, gemma = model.paths.transformer(), model.paths.text_encoder()
    upsampler, lora = model.spatial_upsampler_path, model.distilled_lora[0].path
    parts = {"model": checkpoint, "upsampler": upsampler, "lora": lora}
    with safe_open(checkpoint, "pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != DEFAULTS_KEY}
    save_file(load_file(checkpoint), folder / "model.safetensors", metadata=metadata)
    parts["model"] = str(folder / "model.safetensors")
    for name, part in WEIGHTS.items():
        (folder / name).symlink_to(parts[part])
    (folder / GEMMA).symlink_to(gemma)
    write_loras(Path(lora), folder)
    with open(checkpoint, "rb") as whole:
        (folder / "truncated.safetensors").write_bytes(whole.read(1_000_000))
    (folder / "notes.txt").write_text("no medium\n")
    (folder / "empty").mkdir()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    """The files that the examples use."""
    folder = tmp_path_factory.mktemp("docs")
    for blue, name in enumerate(("picture", "first", "middle", "last")):
        Image.fromarray(ramp(60 * blue)).save(folder / f"{name}.png")
    write_sound(folder / "sound.wav")
    write_clips(folder)
    write_weights(folder)
    return folder


@pytest.fixture
def workplace(inputs, tmp_path, monkeypatch) -> Path:
    """A folder of the test's own with those files, as the current one."""
    for entry in inputs.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- what runs -----------------------------------------------------------------------------------------------


def perform(command: str) -> tuple[int, str]:
    """Exit code, and everything that the command prints."""
    words = shlex.split(command)
    printed = io.StringIO()
    handler = logging.StreamHandler(printed)
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = app.main(words[1:]) if words[0] == "ltx" else module_main(words[1:])
            except SystemExit as end:
                code = int(end.code or 0)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    return code, printed.getvalue()


def module_main(words: list[str]) -> int:
    """``python -m ltx_pipelines.NAME ...``."""
    assert words[0] == "-m", words
    return importlib.import_module(words[1]).main(words[2:])


def run_console(block: Block) -> None:
    for command, expected in runs(block.text):
        code, printed = perform(command)
        wanted = 2 if any("error:" in line for line in expected) else 0
        assert code == wanted, f"{block.place}: `{command}` ends with {code}:\n{printed}"
        lines = iter(printed.replace("\r", "\n").splitlines())
        for line in expected:
            found = any(pattern(line).fullmatch(given.strip()) for given in lines)
            assert found, f"{block.place}: `{command}` does not print\n{line}\nbut\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_examples_of_a_page_run(page, workplace):
    namespace: dict = {"__name__": "__main__"}
    for block in blocks(page):
        if block.tag == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)
        elif block.tag == "console":
            run_console(block)


def prepared(command: str) -> None:
    """Everything that a command does before it loads weights. Raises what it would raise."""
    words = shlex.split(command)
    words = words[1:] if words[0] == "ltx" else [words[2].removeprefix("ltx_pipelines."), *words[3:]]
    words = words[1:] if words[0] == "plan" else words
    name = words[0].replace("-", "_")
    if name == "inspect":
        assert app.main(words) == 0
        return
    namespace = run.parse(name, words[1:])
    pipeline = run.make_pipeline(name, namespace)
    recipe = pipeline(**run.call_arguments(pipeline, namespace), dry_run=True)
    pipeline.engine.check(recipe)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_for_real_weights_hold(page, workplace):
    for block in blocks(page):
        if block.tag != "text":
            continue
        for command in commands(block.text):
            with contextlib.redirect_stderr(io.StringIO()) as printed:
                try:
                    prepared(command)
                except (SystemExit, ValueError) as error:
                    pytest.fail(f"{block.place}: `{command}`\n{error}\n{printed.getvalue()}")


@pytest.mark.parametrize(
    "wrong",
    [
        "$ ltx distilled --num-frames 24 --prompt x --output-path x.mp4",  # fails, and is not said to
        "$ ltx inspect style.safetensors\nltx: error: style.safetensors: LoRA",  # succeeds, and is said to fail
        "$ ltx inspect style.safetensors\nstyle.safetensors: Lora",
        "$ ltx inspect style.safetensors\n  rank: 4\n  modules: 20",  # in another order
    ],
)
def test_a_wrong_example_is_found(wrong, workplace):
    with pytest.raises(AssertionError):
        run_console(Block(ROOT / "README.md", "console", 1, wrong))


@pytest.mark.parametrize(
    "wrong",
    ["--prompt x --output-path x.mp4 --cfg 3", "--prompt x", "--prompt x --output-path x.mp4 --seed one"],
)
def test_a_wrong_command_for_real_weights_is_found(wrong, workplace):
    with contextlib.redirect_stderr(io.StringIO()), pytest.raises(SystemExit):
        prepared(f"ltx distilled {wrong}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_configurations_of_the_trainer_can_be_read(page):
    for block in blocks(page):
        if block.tag == "toml":
            name = block.text.splitlines()[0].removeprefix("# ")
            parse_table(TRAINER[name], read_toml(block.text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_the_trainer_parse(page):
    for block in blocks(page):
        for line in block.text.splitlines() if block.tag == "text" else ():
            line = line.replace("accelerate launch -m", "python -m")
            if line.startswith("python -m ltx_trainer ") and "COMMAND" not in line:
                trainer_parser().parse_args(shlex.split(line)[3:])
            elif line.startswith("python -m ltx_trainer.evaluate "):
                evaluation_parser().parse_args(shlex.split(line)[3:])


# -- what is said --------------------------------------------------------------------------------------------


@functools.cache
def known_flags() -> set[str]:
    parsers = [*(build_parser(name) for name in COMMANDS), evaluation_parser()]
    (trainer,) = (a for a in trainer_parser()._actions if isinstance(a, argparse._SubParsersAction))
    parsers += trainer.choices.values()
    flags = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    return flags | {"--version"}


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_that_the_prose_names_exist(page):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", prose(page)))
    assert named <= known_flags()


@functools.cache
def sentences() -> str:
    """All text constants of the source, pieces of formatted ones apart."""
    texts = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\0".join(texts)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_messages_are_those_of_the_program(page):
    for block in blocks(page):
        for line in block.text.splitlines() if block.tag == "message" else ():
            for piece in filter(None, map(str.strip, line.removeprefix("ltx: error:").split("..."))):
                assert piece in sentences(), f"{block.place}: nothing in the source says {piece!r}"


# -- how it hangs together -----------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of each relative link."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), f"{page}: {target} does not exist"
        assert not anchor or anchor in anchors(target), f"{target} has no heading for #{anchor}"


def test_every_pipeline_has_a_page_and_every_page_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {target for target, _ in links(index)}
    wanted = {ROOT / "docs" / "pipelines" / f"{name.replace('_', '-')}.md" for name in COMMANDS}
    assert wanted <= linked
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {index} <= linked


def test_every_pipeline_page_runs_it_from_python_and_from_the_command_line():
    for name, command in COMMANDS.items():
        page = ROOT / "docs" / "pipelines" / f"{name.replace('_', '-')}.md"
        texts = {tag: "".join(b.text for b in blocks(page) if b.tag == tag) for tag in TAGS}
        assert f"{command.class_name}(" in texts["python"], page
        assert f"$ ltx {name.replace('_', '-')} " in texts["console"], page
        assert f"ltx {name.replace('_', '-')} " in texts["text"], page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_a_kind_that_is_checked(page):
    unknown = {block.place: block.tag for block in blocks(page) if block.tag not in TAGS | {"", "toml"}}
    assert not unknown


def test_the_page_about_performance_is_what_its_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    run_all = importlib.import_module("run_all")
    results = json.loads(run_all.RESULTS.read_text(encoding="utf-8"))
    assert list(results) == [name for name in run_all.BENCHMARKS if name != "gpu_step" or name in results]
    assert run_all.render(results) == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_results_of_benchmarks_that_are_not_run_here_stay(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "bench")
    run_all = importlib.import_module("run_all")
    monkeypatch.setattr(run_all.common, "HOME", tmp_path)
    published = json.loads(run_all.RESULTS.read_text(encoding="utf-8"))
    assert run_all.load() == published
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "import_time.json").write_text('{"rows": []}')
    assert run_all.load() == published | {"import_time": {"rows": []}}


def test_a_benchmark_whose_own_side_cannot_run_ends_in_one_line(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import common

    def missing(index):
        raise common.Unavailable("no torch")

    jobs = {common.OURS: missing, "official": lambda index: {"seconds": 1.0}}
    assert common.alternate(jobs, 1, "decode") == (
        {"official": [{"seconds": 1.0}]},
        {common.OURS: "no torch"},
    )
    with pytest.raises(SystemExit, match=r"^decode: nothing to compare with: ours cannot be run: no torch$"):
        common.alternate(jobs, 1, "decode", common.OURS)
