"""The recorded goldens of the media functions that are small enough to lie in the repository."""

from pathlib import Path

import pytest
from tests.conformance.harness import Context
from tests.conformance.run import run_case
from tests.conformance.topics import media

REPOSITORY = Path(__file__).resolve().parents[3]

GOLDENS = REPOSITORY / "tests" / "goldens" / "media"
CASES = list(media.cases(GOLDENS, Context()))


@pytest.mark.parametrize("case", CASES, ids=[case.key for case in CASES])
def test_golden(case):
    checks = run_case(case)
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    assert checks
    assert not failed, "\n".join(failed)


def test_every_golden_has_a_case():
    assert {case.key for case in CASES} == {path.stem for path in GOLDENS.glob("*.json")}
    assert len(CASES) == 6
