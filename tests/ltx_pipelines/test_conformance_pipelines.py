"""The recorded traces of the eight pipelines, with analytic stand-ins for the networks, through the runner."""

from pathlib import Path

import pytest
import torch
from tests.conformance.harness import Context
from tests.conformance.run import run_case
from tests.conformance.topics import pipelines

REPOSITORY = Path(__file__).resolve().parents[2]

CASES = list(pipelines.cases(REPOSITORY / "tests" / "goldens" / "pipelines_v12", Context()))


# The traces hold bfloat16 noise as PyTorch 2.13 draws it on a CPU; 2.11 and before draw another stream.
DRAWN = [-1.125, -1.15625, -0.25]
FIRST = torch.randn(2, 8, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0))[0, :3].tolist()
SAME_STREAM = pytest.mark.skipif(FIRST != DRAWN, reason="this PyTorch draws other bfloat16 noise from a seed")


@SAME_STREAM
@pytest.mark.parametrize("case", CASES, ids=[case.key for case in CASES])
def test_trace(case):
    failed = [f"{check.name}: {check.detail}" for check in run_case(case) if not check.ok]
    assert not failed, "\n".join(failed)


def test_every_pipeline_has_a_trace():
    assert len(CASES) == 12
