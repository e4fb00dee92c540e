"""The wheel: built offline, unpacked elsewhere, it answers, knows its recipes and its vocabulary without a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on which `import qwenvl` finds what a wheel installs, with spaces and other letters in its name."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    made = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert made.returncode == 0, made.stderr
    (wheel,) = out.glob("qwenvl-*.whl")
    assert wheel.stat().st_size <= 40_000_000, "two models and no more"
    site = tmp_path_factory.mktemp("räume und orte") / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(site: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "LANG": "C", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    environment.pop("HOME", None)
    command = [sys.executable, "-P", "-m", "qwenvl", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


def test_the_wheel_holds_the_package_its_model_and_its_recipes(installed: Path) -> None:
    names = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {"qwenvl/py.typed", "qwenvl/tiny/config.json", "qwenvl/tiny/qwen.tiktoken"} <= names
    assert {"qwenvl/drawings/model.safetensors", "qwenvl/drawings/ATTRIBUTION.md"} <= names
    assert {"qwenvl/demo/drawings/doughnut.png", "qwenvl/demo/drawings/ATTRIBUTION.md"} <= names
    assert any(name.startswith("qwenvl/recipes/tiny/") for name in names)
    assert any(name.endswith("lines.js") for name in names)
    shipped = {name.partition("/")[0] for name in names}
    assert {name for name in shipped if not name.endswith(".dist-info")} == {"qwenvl"}


def test_ask_answers_outside_of_a_checkout(installed: Path, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "red").save(tmp_path / "image.png")
    asked = run(installed, "ask", "tiny", "image.png", "What is this?", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()
    assert {path.name for path in tmp_path.iterdir()} == {"image.png"}


def test_recipes_are_found_outside_of_a_checkout(installed: Path, tmp_path: Path) -> None:
    program = (
        "from qwenvl.train.recipe import find_recipe; print(find_recipe('tiny')); print(find_recipe('small'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", program]
    found = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert found.stdout.splitlines() == [
        str(installed / "qwenvl/recipes" / name) for name in ("tiny", "small")
    ], found.stderr
