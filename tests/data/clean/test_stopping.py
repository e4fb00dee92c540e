"""Cleaning that is asked to stop: it ends soon with what is done, says so, and leaves no process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwenvl.cli import main
from qwenvl.data.synth.rawpairs import planted
from qwenvl.processes import Stopped, deaf, stopping

from .test_engine import wait_until_gone

PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """So many shards that none of the runs below is through before it is stopped."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "image.jpg").write_bytes(planted(1, share=0.0)[0].image)
    lines = [json.dumps({"image": "image.jpg", "text": f"a small red dog, number {k}"}) for k in range(300)]
    for shard in range(400):
        (tmp_path / "raw" / f"{shard:03}.jsonl").write_text("\n".join(lines))
    return tmp_path / "raw"


@PROC
@pytest.mark.parametrize(
    ("executor", "number", "status"),
    [
        ("process", signal.SIGTERM, 75),
        ("process", signal.SIGINT, 130),
        ("ray", signal.SIGTERM, 75),
    ],
)
def test_f3_cleaning_stops_as_asked(
    raw: Path, tmp_path: Path, executor: str, number: int, status: int
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    words = ["data", "clean", raw, tmp_path / "out", "--executor", executor, "--decode"]
    run = subprocess.Popen(
        [sys.executable, "-m", "qwenvl", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "done" / "00000.json").exists() and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.005)
    os.killpg(run.pid, number)
    said = run.communicate(timeout=240)[1]
    assert run.returncode == status, said
    assert "stopped as asked" in said and "the same command goes on" in said and "Traceback" not in said
    wait_until_gone(run.pid)
    assert not (tmp_path / "out" / "statistics.json").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_workers_without_an_executor_that_has_some_are_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "clean", str(raw), str(tmp_path / "out"), "--workers", "4"]) == 2
    assert "--workers 4 says how many --executor process or ray has" in capsys.readouterr().err


def test_what_a_library_makes_of_the_stop_is_still_the_stop() -> None:
    """Ray turns the exit that comes up while it waits into one of status 1."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stopping():
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit:
            raise SystemExit(1) from None
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit) as other, stopping():
        raise SystemExit(3)
    assert other.value.code == 3


def test_what_is_started_deaf_keeps_no_handler_and_hears_no_signal() -> None:
    """A library that is started meanwhile may neither take our handler away nor start processes that a signal ends."""
    before = signal.getsignal(signal.SIGTERM)
    with deaf():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=0.3)
    child.kill()
    child.communicate()
    assert signal.getsignal(signal.SIGTERM) is before
