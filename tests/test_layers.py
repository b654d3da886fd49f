"""Imports point down only, so that a part can be read without those above it."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGES = ("ltx_core", "ltx_pipelines", "ltx_trainer")
# Of ltx_core, from below; what is not named lies under all of these.
LAYERS = (
    {"components", "conditioning", "guidance", "tools"},
    {"model", "text_encoders"},
    {"loader", "quantization"},
)


def height(module: list[str]) -> tuple[int, int]:
    """How far up a module lies: its package, and its layer there."""
    inner = module[1] if module[0] == "ltx_core" and len(module) > 1 else ""
    return PACKAGES.index(module[0]), next((n for n, names in enumerate(LAYERS, 1) if inner in names), 0)


def imported(path: Path) -> set[str]:
    """Our modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_imports_what_lies_above_it(package):
    files = sorted((SRC / package).rglob("*.py"))
    assert files
    for path in files:
        own = height([*path.relative_to(SRC).with_suffix("").parts])
        assert not {name for name in imported(path) if height(name.split(".")) > own}, path
