"""`import qwenvl`: fast, without torch, and every public name there when it is asked for."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qwenvl

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", qwenvl.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(qwenvl, name) is getattr(qwenvl, name)
    assert name in dir(qwenvl)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Asistant'; public names: load, save, Assistant"):
        qwenvl.Asistant  # noqa: B018


def test_a_type_checker_sees_the_same_names_from_the_same_homes() -> None:
    """The table of lazy names and the imports under TYPE_CHECKING say one thing twice: they must agree."""
    tree = ast.parse((ROOT / "qwenvl/__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        node.names[0].asname: node.module or "qwenvl"
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == qwenvl._HOME


def test_importing_loads_no_torch() -> None:
    program = "import sys, qwenvl, qwenvl.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=240).returncode == 0


def test_start_up_times() -> None:
    """Bounds for a busy machine; the true figures are printed by the benchmark (aims: 50 ms and 0.5 s)."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/startup.py"), "--json"],
        capture_output=True,
        check=True,
        timeout=240,
        cwd=ROOT,
    )
    found = json.loads(run.stdout)
    assert found["import_ms"] < 150
    assert found["help_s"] < 1.5
    assert found["command_help_s"] < 3
