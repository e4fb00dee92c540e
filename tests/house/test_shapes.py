"""Shapes are words in signatures, checked by a machine: the hook of `make test` sees only what is annotated."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = sorted((ROOT / "qwenvl/model").glob("*.py"))
WITH_SHAPES = [
    path for path in sorted((ROOT / "qwenvl").rglob("*.py")) if "from jaxtyping import" in path.read_text()
]
KINDS = {"Float", "Int", "Bool", "Float32", "Int64", "UInt8", "Shaped", "Num", "Complex"}


def shapes(tree: ast.AST) -> Iterator[str]:
    """The strings of `Float[Tensor, "images patches width"]`."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id in KINDS
            and isinstance(node.slice, ast.Tuple)
            and isinstance(node.slice.elts[-1], ast.Constant)
        ):
            yield str(node.slice.elts[-1].value)


@pytest.mark.parametrize("path", MODEL, ids=lambda path: path.name)
def test_every_forward_says_the_shapes_it_takes_and_gives(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "forward":
            assert list(shapes(node.args)), f"{path.name}:{node.lineno} takes no annotated tensor"
            assert node.returns is not None
            assert list(shapes(node.returns)), f"{path.name}:{node.lineno} returns no annotated tensor"


@pytest.mark.parametrize("path", MODEL, ids=lambda path: path.name)
def test_every_dimension_of_a_forward_is_in_the_glossary(path: Path) -> None:
    glossary = (ROOT / "qwenvl/model/__init__.py").read_text()
    forwards = [n for n in ast.walk(ast.parse(path.read_text())) if getattr(n, "name", "") == "forward"]
    words = {word for node in forwards for shape in shapes(node) for word in re.findall(r"[a-z]\w*", shape)}
    missing = {word for word in words if not re.search(rf"\b{word}\b", glossary)}
    assert not missing, f"{path.name} uses {sorted(missing)}, which qwenvl/model/__init__.py does not explain"


@pytest.mark.parametrize("path", WITH_SHAPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_annotations_are_not_postponed_where_there_are_shapes(path: Path) -> None:
    assert "from __future__ import annotations" not in path.read_text()


def test_the_hook_catches_a_wrong_shape() -> None:
    """And a wrong type where there is no shape, which goes without the wrapper that shapes need."""
    program = f"""if True:
        import sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import jaxtyping, typecheck
        jaxtyping.jaxtyped = typecheck.checked
        with jaxtyping.install_import_hook("qwenvl", "typecheck.check"):
            from qwenvl.markup import Box
            from qwenvl.model.vision import merge_heads
            from qwenvl.runtime import Runtime
        import torch
        for call, said in ((lambda: merge_heads(torch.zeros(2, 3)), "attended"),
                           (lambda: Runtime.detect(device=torch.zeros(2)), "violates type hint"),
                           (lambda: Box(0, 0.5, 1, 1), "violates type hint")):
            try:
                call()
            except TypeError as error:
                assert said in str(error)
            else:
                raise SystemExit(f"a wrong argument went through: {{said}}")
        assert "jaxtyping" in merge_heads.__code__.co_filename != Box.to_pixels.__code__.co_filename
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
