"""SIGTERM and SIGINT to any command: status 75 or 130, nothing half written has a name, the same command goes on.

Training and cleaning, which say what they have saved, are tested in their own rooms.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_packages as made
from PIL import Image as pillow

from qwenvl.cli import main
from qwenvl.evaluation import run

ASKED = [(signal.SIGTERM, 75), (signal.SIGINT, 130)]


@pytest.fixture(autouse=True)
def hears_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "tiny", "out", "--to", "qwenvl"),
        ("convert", "tiny", "out", "--to", "hf"),
        ("quantize", "tiny", "--to", "int8", "--out", "out"),
        ("data", "mix", "pairs.jsonl", "--out", "out", "--table", "pretraining"),
        ("data", "read", "coco-caption", "captions.json", "--images", ".", "--out", "out"),
        ("data", "synth", "pages", "--out", "out", "--count", "2"),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_f3_f95_what_is_stopped_before_it_has_its_name_never_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    """The signal comes at the last moment: all is written, and only the name is missing."""
    number, status = ASKED[words[0] == "quantize"]
    monkeypatch.chdir(tmp_path)
    record = {"kind": "caption", "image": "a.png", "text": "A cat.", "source": "cc3m"}
    Path("pairs.jsonl").write_text(json.dumps(record))
    entry = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "caption": "A cat."}],
    }
    Path("captions.json").write_text(json.dumps(entry))
    pillow.new("RGB", (64, 64), "red").save("a.png")
    before = sorted(os.listdir())

    def stopped(*_: object) -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal was not heard")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopped)
        patched.setattr(Path, "rename", stopped)
        assert main(list(words)) == status, capsys.readouterr().err
    assert [each for each in sorted(Path().rglob("*")) if each.is_file()] == [Path(each) for each in before]
    assert ("stopped as asked: nothing is left half written" in capsys.readouterr().err) == (status == 75)
    assert main(list(words)) == 0 and Path("out").exists()


@pytest.mark.parametrize(("number", "status"), ASKED)
def test_f3_an_evaluation_that_is_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["eval", "run", "tiny", "toyworld-vqa", "--limit", "4", "--batch", "2", "--out", "out"]
    append = run.append

    def stopped(*args: Any) -> None:
        append(*args)
        signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(run, "append", stopped)
        assert main(words) == status
    assert not Path("out/score.json").exists()
    done = Path("out/predictions-0-of-1.jsonl").read_text()
    assert done and main(words) == 0 and Path("out/score.json").exists()
    assert Path("out/predictions-0-of-1.jsonl").read_text().startswith(done), "nothing is asked twice"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(("number", "status"), ASKED)
@pytest.mark.parametrize("group", [True, False])
def test_f3_f95_fetching_ends_with_its_client_and_all_that_it_started(
    tmp_path: Path, number: int, status: int, group: bool
) -> None:
    mark = tmp_path / "clients"
    made.client(tmp_path / "bin", "npm", f"sleep 60 &\necho $$ $! >> {mark}\necho half > half.tgz\nwait")
    (tmp_path / "out" / "packages" / ".getting-killed").mkdir(parents=True)  # of a run that got SIGKILL
    words = ["data", "fetch", "drawings", "--only", "npm", "--out", str(tmp_path / "out")]
    fetch = subprocess.Popen(
        [sys.executable, "-m", "qwenvl", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PATH": f"{tmp_path}/bin{os.pathsep}/usr/bin:/bin"},
    )  # fmt: skip
    while not list((tmp_path / "out").rglob("half.tgz")):
        assert fetch.poll() is None, fetch.communicate()[1]
        time.sleep(0.01)
    (os.killpg if group else os.kill)(fetch.pid, number)
    said = fetch.communicate(timeout=240)[1]
    assert fetch.returncode == status and "Traceback" not in said
    assert list((tmp_path / "out" / "packages").iterdir()) == []
    deadline = time.monotonic() + 60  # killed is not gone at once
    while (left := [each for each in mark.read_text().split() if is_running(int(each))]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert not left


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
