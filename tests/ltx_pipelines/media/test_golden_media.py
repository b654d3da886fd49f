"""The recorded goldens of the media functions that are small enough to lie in the repository."""

import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))  # `tests` is a package of the repository, not of an installation

from tests.conformance.harness import Context  # noqa: E402
from tests.conformance.run import run_case  # noqa: E402
from tests.conformance.topics import media  # noqa: E402

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
