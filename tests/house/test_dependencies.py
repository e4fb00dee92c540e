"""pyproject.toml names what code imports: nothing missing, nothing idle, one bound per package."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

IMPORTED_AS = {
    "pillow": "PIL", "import-linter": "grimp", "pytest-timeout": "", "pytest-xdist": "", "coverage": "", "ruff": "",
    "mypy": "", "hatchling": "", "jinja2": "jinja2", "mkdocs": "", "mkdocs-material": "", "mkdocstrings": "",
}  # fmt: skip
"""Package -> the module it is imported as, where that is another name; "" for tools that are run, not imported."""

NEVER_REQUIRED = {
    "lmms_eval": "finds qwenvl by an entry point where it is installed beside",
    "pycocoevalcap": "benchmarks/metrics.py compares with it where somebody has it",
    "data_juicer": "benchmarks/versus_data_juicer.py runs it where somebody has it",
    "vllm": "finds qwenvl by an entry point where it is installed beside; `make vllm` makes such an environment",
    "trackio": "asks for a Pillow below 13, so no extra could be resolved; runs with 13 where it is installed beside",
    "tokenizers": "comes with transformers",
    "accelerate": "comes with peft",
    "transformers_tests": "the tests of transformers' source package, fetched by `make compat`",
    "trl": "`make compat` trains with it in an environment of its own",
    "datasets": "comes with trl there",
    "langchain_core": "`make clients` asks with it from an environment of its own",
    "langchain_openai": "`make clients`, as above",
    "llama_index": "`make clients`, as above",
}
"""Modules that are imported where they happen to be, and why no extra brings them."""


def package(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def module(requirement: str) -> str:
    name = package(requirement)
    return IMPORTED_AS.get(name, name.replace("-", "_"))


def imports(folder: Path) -> dict[str, set[str]]:
    """Third-party module -> the files below a folder that import it, by statement or by name."""
    own = {
        "qwenvl",
        *(path.stem for path in ROOT.glob("tests/*.py")),
        *(path.stem for path in ROOT.glob("benchmarks/*.py")),
    }
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for name in _names(ast.parse(path.read_text("utf-8"))):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in own:
                found.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return found


def _names(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if function in ("import_module", "find_spec", "importorskip") and isinstance(
                node.args[0].value, str
            ):
                yield node.args[0].value


def test_what_is_always_installed_is_imported() -> None:
    used = imports(ROOT / "qwenvl")
    assert [name for name in PROJECT["dependencies"] if module(name) not in used] == []


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name not in ("test", "dev")])
def test_an_extra_holds_what_code_imports_and_nothing_else(extra: str) -> None:
    used = imports(ROOT / "qwenvl")
    assert [name for name in EXTRAS[extra] if module(name) not in used] == []


def test_what_the_tests_install_is_used_by_them() -> None:
    used = imports(ROOT / "tests").keys() | imports(ROOT / "qwenvl").keys() | {""}
    assert [name for name in EXTRAS["test"] if module(name) not in used] == []


@pytest.mark.parametrize("folder", ["qwenvl", "tests", "benchmarks"])
def test_every_import_has_a_package_that_brings_it(folder: str) -> None:
    chosen = [extra for extra in EXTRAS if folder != "qwenvl" or extra not in ("test", "dev")]
    brought = {module(name) for name in [*PROJECT["dependencies"], *(n for e in chosen for n in EXTRAS[e])]}
    missing = {
        name: files
        for name, files in imports(ROOT / folder).items()
        if name not in brought | NEVER_REQUIRED.keys()
    }
    assert missing == {}


def test_a_package_has_one_bound_wherever_it_is_named() -> None:
    bounds: dict[str, set[str]] = {}
    for requirement in [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)]:
        bounds.setdefault(package(requirement), set()).add(requirement)
    assert {name: named for name, named in bounds.items() if len(named) > 1} == {}


def test_every_bound_names_a_lowest_version() -> None:
    named = [
        *PROJECT["dependencies"],
        *(name for extra, names in EXTRAS.items() if extra != "dev" for name in names),
    ]
    assert [name for name in named if ">=" not in name] == []


def test_an_extra_that_a_message_names_is_there() -> None:
    named = {
        (str(path.relative_to(ROOT)), extra)
        for pattern in ("qwenvl/**/*.py", "benchmarks/*.py", "docs/*.md", "*.md")
        for path in ROOT.glob(pattern)
        for extra in re.findall(r"qwenvl\[([\w-]+)\]", path.read_text("utf-8"))
    }
    assert named, "no message tells how to get an extra: is this test still reading them?"
    assert {each for each in named if each[1] not in EXTRAS} == set()


@cache
def _names_in(file: Path) -> frozenset[str]:
    """What a file of ours defines or imports."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    found = {node.id for node in nodes if isinstance(node, ast.Name)}
    found |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return frozenset(found | {each.asname or each.name for each in nodes if isinstance(each, ast.alias)})


def _has(module: str, name: str) -> bool:
    """Whether a module of ours has a name, or is a package with such a module."""
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    inner = place / name / "__init__.py", place / f"{name}.py"
    return any(each.exists() for each in inner) or (file.exists() and name in _names_in(file))


def test_what_benchmarks_import_of_ours_is_there() -> None:
    """No test runs them all: `evaluation.py` asked for a module that had moved."""
    wanted = {
        (path.name, node.module or "", each.name)
        for path in ROOT.glob("benchmarks/*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "qwenvl"
        for each in node.names
    }
    assert len(wanted) > 50
    assert [each for each in sorted(wanted) if not _has(each[1], each[2])] == []
