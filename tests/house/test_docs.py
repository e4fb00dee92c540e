"""Documentation that cannot lie: what it names exists, what it shows runs, what it tells to type is understood.

Fenced blocks say what they are, and each kind is held to something:

    ```python              executed, block after block, in a folder that holds photo.jpg
    ```python unexecuted   needs what a test has not (full weights, a GPU): every import, attribute and keyword resolves
    ```console             lines after `$`: `qwenvl ...` is parsed by the command line, `make X` is a target
    ```json                parses, line by line or whole
    ```text                a drawing or an output: nothing
"""

import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageDraw

import qwenvl.cli as cli

ROOT = Path(__file__).parents[2]
DOCS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.md", "benchmarks/**/*.md", "qwenvl/**/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
OUR_PATH = re.compile(r"(?:qwenvl|tests|docs|recipes|benchmarks|\.ci)/[\w./*-]*")
ORDINARY = {"cd", "source", "git", "ls", "cat", "cp", "nvidia-smi", "torchrun", "curl", "tensorboard"}
"""Commands a reader knows: shown for context, not checked."""


class Block(NamedTuple):
    where: str
    kind: str
    text: str


def blocks(path: Path) -> Iterator[Block]:
    source = path.read_text()
    for found in FENCE.finditer(source):
        line = source.count("\n", 0, found.start()) + 1
        yield Block(f"{path.relative_to(ROOT)}:{line}", found[1].strip(), found[2])


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


documents = pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))


@documents
def test_every_block_says_what_it_is(path: Path) -> None:
    known = {"python", "python unexecuted", "console", "json", "text"}
    for block in blocks(path):
        assert block.kind in known, (
            f"{block.where}: a block of kind {block.kind!r}; say one of {sorted(known)}"
        )


@documents
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(photo).ellipse((200, 120, 360, 280), fill="red")
    photo.save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path):
        if block.kind == "python":
            exec(compile(block.text, block.where, "exec"), namespace)


@documents
def test_unexecuted_python_names_what_exists(path: Path) -> None:
    known: dict[str, object] = {}
    for block in blocks(path):
        if block.kind == "python unexecuted":
            resolve_names(ast.parse(block.text), known, block.where)


def resolve_names(tree: ast.Module, known: dict[str, object], where: str) -> None:
    """Import what the block imports; follow every attribute of ours; match every keyword of a call to a signature."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            known.update({alias.asname or alias.name: getattr(module, alias.name) for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            follow(node, known, where)
        if isinstance(node, ast.Call) and (target := follow(node.func, known, where)) is not None:
            names = {keyword.arg for keyword in node.keywords if keyword.arg}
            inspect.signature(target).bind_partial(**dict.fromkeys(names))  # type: ignore[arg-type]


def follow(node: ast.expr, known: dict[str, object], where: str) -> object | None:
    """The object that `a.b.c` stands for, None where it starts from a value made at run time."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := follow(node.value, known, where)) is not None:
        assert hasattr(owner, node.attr), f"{where}: {ast.unparse(node)} does not exist"
        return getattr(owner, node.attr)
    return None


@documents
def test_json_blocks_parse(path: Path) -> None:
    for block in blocks(path):
        if block.kind == "json":
            try:
                json.loads(block.text)
            except json.JSONDecodeError:
                for line in filter(str.strip, block.text.splitlines()):
                    json.loads(line)


@documents
def test_console_lines_are_understood(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks(path):
        if block.kind == "console":
            typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
            assert typed, f"{block.where}: a console block without a line that starts with `$ `"
            for line in typed:
                for part in re.split(r"\s(?:&&|\||;)\s", line):
                    problem = misunderstood(shlex.split(part, comments=True))
                    assert problem is None, f"{block.where}: {part}: {problem}"


def misunderstood(words: list[str]) -> str | None:
    """Why a line that the docs tell to type would not be understood, None when it would."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]  # VARIABLE=value in front
    name, *rest = (words[0].removeprefix(".venv/bin/"), *words[1:])
    if name == "qwenvl":
        return misunderstood_by_qwenvl(rest)
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {t}" for t in rest if "=" not in t and t not in targets), None)
    if name == "pytest":
        return next((f"no {path}" for path in rest if path[0] != "-" and not (ROOT / path).exists()), None)
    if name in ("python", "python3", "bash"):
        return None if rest[:1] == ["-m"] or (ROOT / rest[0]).is_file() else f"no file {rest[0]}"
    if name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [e for word in rest for found in re.findall(r"\[([\w,]+)\]", word) for e in found.split(",")]
        return next((f"no extra {extra}" for extra in wanted if extra not in extras), None)
    return None if name in ORDINARY else f"nothing checks {name!r}"


def misunderstood_by_qwenvl(words: list[str]) -> str | None:
    if words in (["--help"], ["--version"]):
        return None
    try:
        cli.parse([word for word in words if word != "--debug"])
    except SystemExit as stop:
        return None if stop.code == 0 else "the command line refuses it (its words are above)"
    except ValueError as error:
        return str(error)
    return None


@documents
def test_commands_in_the_prose_exist(path: Path) -> None:
    for words in map(str.split, re.findall(r"`qwenvl ([^`\n]+)`", prose(path))):
        if words[0].isupper() or words[0].startswith("-"):
            continue  # `qwenvl COMMAND --help`
        begun = [" ".join(words[:k]) for k in (3, 2, 1) if k <= len(words)]
        typed = next((each for each in begun if each in cli.COMMANDS), begun[0])
        assert typed in cli.COMMANDS or typed in cli._groups(), f"{path.name}: there is no `qwenvl {typed}`"


@documents
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = prose(path)
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (path.parent / target).exists(), f"{path.name}: the link to {target} leads nowhere"
    for quoted in re.findall(r"`([^`\n]+)`", text):
        if OUR_PATH.fullmatch(quoted) and not quoted.startswith("runs/"):
            assert list(ROOT.glob(quoted.rstrip("/"))), f"{path.name}: there is no {quoted}"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("qwenvl parity tests/golden --json", None),
        ("PYTHONHASHSEED=0 qwenvl parity --help", None),
        ("make test WORKERS=1", None),
        ("pip install -e '.[hf,ocr]'", None),
        ("qwenvl party tests/golden", "there is no command 'party'"),
        ("qwenvl parity --jsn", "the command line refuses it"),
        ("make tset", "no target tset"),
        ("python benchmarks/no_such.py", "no file"),
        ("pip install 'qwenvl[server]'", "no extra server"),
        ("nosuchprogram", "nothing checks"),
    ],
)
def test_a_line_that_lies_is_found(line: str, problem: str | None) -> None:
    found = misunderstood(shlex.split(line))
    assert found is None if problem is None else problem in (found or "")


@pytest.mark.parametrize(
    "lie",
    [
        "import qwenvl.nosuchmodule",
        "from qwenvl.markup import Bix",
        "import qwenvl; qwenvl.Bix",
        "import qwenvl; qwenvl.Box.to_pixles",
        "import qwenvl; qwenvl.Box(x1=1, y3=2)",
    ],
)
def test_python_that_lies_is_found(lie: str) -> None:
    with pytest.raises((ImportError, AttributeError, AssertionError, TypeError)):
        resolve_names(ast.parse(lie), {}, "here")


# ---- docs/PAPER_MAP.md: section of the paper -> file -> test ----

MAP = ROOT / "docs/PAPER_MAP.md"
REFERENCE = re.compile(r"`([\w./-]+\.(?:py|json|md))(?:::([\w.]+))?`")


def map_rows() -> list[str]:
    return [line for line in MAP.read_text().splitlines() if line.startswith("| ") and "`" in line]


def defined_in(path: Path) -> set[str]:
    """Functions, classes, methods and constants of a Python file: `Box`, `Box.to_pixels`, `MEAN`."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign):
                names.update(prefix + target.id for target in node.targets if isinstance(target, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)

    visit(ast.parse(path.read_text()).body, "")
    return names


@pytest.mark.parametrize("row", map_rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_name_on_the_map_exists(row: str) -> None:
    for file, name in REFERENCE.findall(row):
        assert (ROOT / file).is_file(), f"{file} does not exist"
        if name:
            assert name in defined_in(ROOT / file), f"{file} has no {name}"


@pytest.mark.parametrize("row", map_rows(), ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_row_of_the_map_leads_to_code_and_to_a_test(row: str) -> None:
    files = [file for file, _ in REFERENCE.findall(row)]
    assert any(file.startswith("qwenvl/") for file in files), "no file of ours"
    assert any(file.startswith("tests/") for file in files), "no test"


def test_every_package_is_on_the_map() -> None:
    text = MAP.read_text()
    packages = {
        path.name
        for path in (ROOT / "qwenvl").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    missing = {
        package for package in packages - {"__init__.py", "__main__.py"} if f"qwenvl/{package}" not in text
    }
    assert not missing, f"docs/PAPER_MAP.md does not say where {sorted(missing)} belong"


def test_the_site_builds_without_a_broken_link_or_an_undocumented_name(tmp_path: Path) -> None:
    """As `make docs` does, strict; nothing is downloaded, so it also builds where nothing can be."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    page = (tmp_path / "site/api/qwenvl/index.html").read_text()
    assert "Assistant.ask" in page and "Answer one question." in page
    loaded = re.findall(r'(?:src|href)="(?:https?:)?//[^"]+', page)
    assert not [link for link in loaded if "src=" in link or "stylesheet" in link]
