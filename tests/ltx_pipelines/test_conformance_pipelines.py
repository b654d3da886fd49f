"""The recorded traces of the eight pipelines, with analytic stand-ins for the networks, through the runner."""

from pathlib import Path

import pytest
from tests.conformance.harness import Context
from tests.conformance.run import run_case
from tests.conformance.topics import pipelines

REPOSITORY = Path(__file__).resolve().parents[2]

CASES = list(pipelines.cases(REPOSITORY / "tests" / "goldens" / "pipelines_v12", Context()))


@pytest.mark.parametrize("case", CASES, ids=[case.key for case in CASES])
def test_trace(case):
    failed = [f"{check.name}: {check.detail}" for check in run_case(case) if not check.ok]
    assert not failed, "\n".join(failed)


def test_every_pipeline_has_a_trace():
    assert len(CASES) == 12
