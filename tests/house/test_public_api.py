"""`import qwenvl`: fast, without torch, and every public name there when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pace import at_most, of_children

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


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (("-c", "import qwenvl"), 0.1),
        (("-m", "qwenvl", "--help"), 0.2),
        (("-m", "qwenvl", "parity", "--help"), 1.5),
    ],
    ids=["import", "help", "help of a command"],
)
def test_start_up_times(words: tuple[str, ...], seconds: float) -> None:
    """Bounds of processor time; what a person waits is printed by `benchmarks/startup.py` (aims: 50 ms and 0.5 s)."""
    command = [sys.executable, *words]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=240)  # fills caches
    with at_most(seconds, of_children):
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=240)
