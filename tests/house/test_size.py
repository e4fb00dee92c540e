"""The shape of the house: files and functions that fit in a head, names that say something, `__init__` without code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "qwenvl").rglob("*.py"))
FILE_LINES, FUNCTION_LINES, FORWARD_LINES = 400, 60, 25
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "legacy", "compat", "tools"}
WITH_CODE = {"qwenvl/__init__.py", "qwenvl/cli/__init__.py"}  # the public API and the table of commands

Function = ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path) -> None:
    name, source = str(path.relative_to(ROOT)), path.read_text()
    tree = ast.parse(source)
    problems = []
    if (lines := source.count("\n")) >= FILE_LINES:
        problems.append(f"{lines} lines; split it where its subject splits (limit {FILE_LINES})")
    if {part for part in path.with_suffix("").parts if part in EMPTY_NAMES or part.endswith(("_v2", "_old"))}:
        problems.append("its name says nothing; name it for what it does")
    if path.name == "__init__.py" and name not in WITH_CODE and len(tree.body) > 1:
        problems.append("an __init__.py holds a docstring and nothing else")
    for node in ast.walk(tree):
        if isinstance(node, Function):
            limit = FORWARD_LINES if node.name == "forward" else FUNCTION_LINES
            lines = _code_lines(node)
            if lines >= limit:
                problems.append(f"line {node.lineno}: {node.name} has {lines} lines (limit {limit})")
    assert not problems, f"{name}: " + "; ".join(problems)


def _code_lines(function: Function) -> int:
    """Lines of a function from its `def`, without its docstring: an image in ASCII is no complexity."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
    return lines


def test_every_package_is_a_package() -> None:
    """A folder without __init__.py imports by accident, and is forgotten by some build tools."""
    for path in FILES:
        assert (path.parent / "__init__.py").exists(), f"{path.parent.relative_to(ROOT)} has no __init__.py"


@pytest.mark.parametrize(("folder", "megabytes"), [("qwenvl/tiny", 12), ("tests/golden", 4)])
def test_what_is_shipped_stays_small(folder: str, megabytes: int) -> None:
    total = sum(path.stat().st_size for path in (ROOT / folder).rglob("*") if path.is_file())
    assert total <= megabytes * 1e6, f"{folder} has {total / 1e6:.1f} MB (limit {megabytes})"
