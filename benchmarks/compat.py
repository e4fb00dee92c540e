"""Which versions of transformers our classes run under: our tests in each, its own common tests and TRL in the newest.

    python benchmarks/compat.py [--versions 5.0.0 5.14.1 5.24.0] [--place runs/compat] [--write]

Makes an environment per version beside this one (transformers, tokenizers and the hub's client; torch is this one's),
runs `tests/integrations/`, and for the last version `tests/compat/` with the tests of transformers' source package and
with TRL. `--write` puts the table into docs/COMPATIBILITY.md. Exit status 1 if a test fails.
"""

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from importlib.resources import files
from pathlib import Path

from tables import put, table

ROOT = Path(__file__).parents[1]
VERSIONS = ("5.0.0", "5.4.0", "5.9.0", "5.14.1", "5.15.1", "5.24.0")
FILES = ("processor", "transformers", "transformers_model", "broken_folders")
TESTS = [f"tests/integrations/test_{name}.py" for name in FILES]
STAND_INS = {
    "transformers_tests/__init__.py": "",
    "transformers_tests/exporters/__init__.py": "",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin: pass",
    "transformers_tests/generation/__init__.py": "",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin: pass",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *_, **__): return url",
}
"""What the tests of the source package import and do not bring."""


def main() -> int:
    """Run, print the table, write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS))
    parser.add_argument("--place", type=Path, default=ROOT / "runs" / "compat")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    rows = []
    for version in args.versions:
        python = environment(args.place / version, [f"transformers=={version}"])
        rows.append((f"transformers {version}", "our tests", pytest_in(python, TESTS, [])))
    newest, place = args.versions[-1], args.place / args.versions[-1]
    python = environment(place, [f"transformers=={newest}", "trl", "datasets", "parameterized"])
    common = pytest_in(python, ["tests/compat/common_checks.py"], [str(source_tests(place, newest))])
    rows.append((f"transformers {newest}", "its common tests", common))
    rows.append(("TRL", "SFTTrainer, five ways", sft(python)))
    found = table(("library", "what ran", "result"), rows)
    print(found)
    if args.write:
        put(found, ROOT / "docs" / "COMPATIBILITY.md", "benchmarks/compat.py")
    return int(any("failed" in result or "error" in result for _, _, result in rows))


def environment(place: Path, wanted: list[str]) -> Path:
    """The interpreter of an environment that sees this one's packages behind its own."""
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
    own = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
    )
    Path(own.strip(), "zz_around.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def source_tests(place: Path, version: str) -> Path:
    """A folder with the tests of transformers' source package as `transformers_tests`."""
    folder = place / "tests"
    if not (folder / "transformers_tests").exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, f"transformers=={version}", "-d", place], check=True)
        with tarfile.open(next(place.glob("transformers-*.tar.gz"))) as packed:
            for member in packed.getmembers():
                found = re.fullmatch(r"[^/]+/tests/((?:[\w-]+/)*[\w-]+\.py)", member.name)
                if found and (content := packed.extractfile(member)):
                    target = folder / "transformers_tests" / found[1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content.read())
    for name, text in STAND_INS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


def pytest_in(python: Path, tests: list[str], paths: list[str]) -> str:
    """The last line of a run of tests."""
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "-o", "addopts=--import-mode=importlib"]
    return _last_line([str(python), "-m", "pytest", *options, *tests], paths)


def sft(python: Path) -> str:
    """What TRL's trainer came to."""
    return _last_line([str(python), "tests/compat/sft.py", str(files("qwenvl") / "tiny")], [])


def _last_line(command: list[str], paths: list[str]) -> str:
    around = {
        "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **around}, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
    line = (done.stdout.strip() or "no output").splitlines()[-1].strip("= ")
    line = re.sub(r" in [\d.]+s.*|, \d+ warnings?", "", line)
    return line if not done.returncode else f"failed: {line}"


if __name__ == "__main__":
    sys.exit(main())
