"""The recorded goldens that are small enough to lie in the repository, through the conformance runner."""

import importlib
from pathlib import Path

import pytest
import torch

from tests.conformance.harness import Context
from tests.conformance.run import TOPICS, run_case

FOLDERS = sorted(path for path in (Path(__file__).parent / "goldens").iterdir() if path.is_dir())

# These hold bfloat16 noise as PyTorch 2.13 draws it on a CPU; 2.11 and before draw another stream.
NOISE = [
    "pipelines_v12",
    "diffusion-noiser/n2",
    "diffusion-noiser/n5",
    "diffusion-v120_conditioning/attn_bf16",
    "diffusion-v120_conditioning/kf_bf16",
    "diffusion-v120_loops/l08",
    "diffusion-v120_states",
]
DRAWN = [-1.125, -1.15625, -0.25]
FIRST = torch.randn(2, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))[0, :3].tolist()
SAME_STREAM = pytest.mark.skipif(FIRST != DRAWN, reason="this PyTorch draws other bfloat16 noise from a seed")


def cases_of(folder: Path) -> list:
    topic = importlib.import_module(f"tests.conformance.topics.{TOPICS[folder.name]}")
    return list(topic.cases(folder, Context()))


CASES = {f"{folder.name}-{case.key}": case for folder in FOLDERS for case in cases_of(folder)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SAME_STREAM if n.startswith(tuple(NOISE)) else ()) for n in CASES]
)
def test_golden(name):
    checks = run_case(CASES[name])
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    assert checks
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_golden_has_a_case(folder):
    written = {path.stem for path in folder.glob("*.json")} | {
        p.parent.name for p in folder.glob("*/case.json")
    }
    assert written
    names = {name.split("/")[0] for name in CASES}
    assert {f"{folder.name}-{name}" for name in written} <= names


def test_every_topic_but_whole_runs_has_goldens():
    assert {folder.name for folder in FOLDERS} == {topic for topic in TOPICS if not topic.startswith("e2e")}
