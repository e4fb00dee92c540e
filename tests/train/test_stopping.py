"""Runs that are asked to stop, killed or damaged end within seconds, keep what they did, and leave nothing running.

Real commands over real shards with loader workers, each in a session of its own as a job scheduler starts it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qwenvl.train.log import read_log

STAGE = """
name = "trial"
image_size = 28
sequence_length = 64
data = [{{ paths = ["{shard}"] }}]
documents = 4
micro_documents = 2
window = 8
workers = {workers}
bfloat16 = false
save_every = 5000

[optim]
peak_lr = 1e-4
final_lr = 1e-4
warmup_steps = 1
steps = 100000
"""
SOON = 240
"""Seconds that a stopped run may take on a machine that does other things too."""


class Run:
    """`qwenvl train` in a session of its own."""

    def __init__(self, start: Path, shard: Path, root: Path, *options: object, workers: int = 1) -> None:
        self.folder = root / "run"
        self.log = self.folder / "trial" / "log.jsonl"
        (root / "trial.toml").write_text(STAGE.format(shard=shard, workers=workers))
        words = ["train", root / "trial.toml", "--init", start, "--out", self.folder, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qwenvl", *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, updates: int) -> "Run":
        """Wait for so many updates."""
        deadline = time.monotonic() + 240
        while len(read_log(self.log)) < updates:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"no update {updates}: {self.process.communicate()[1]}")
            time.sleep(0.02)
        return self

    def end(self) -> str:
        """What it said on stderr; it ends soon, and so do all its processes."""
        try:
            said = self.process.communicate(timeout=SOON)[1]
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"it hangs: {self.process.communicate()[1]}")
        deadline = time.monotonic() + 60
        while (left := list(in_session(self.process.pid))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "processes are left running"
        assert "Traceback" not in said, said
        return said

    def saved(self) -> int:
        """Updates in the state that it left."""
        (state,) = (self.folder / "trial" / "state").glob("step-*")
        return int(json.loads((state / "state.json").read_text())["step"])


def in_session(leader: int) -> Iterator[int]:
    """Processes of a session that have not ended."""
    return (process for process, _ in parents_in_session(leader))


def parents_in_session(leader: int) -> Iterator[tuple[int, int]]:
    """The same, each with its parent."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = file.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            yield int(file.parent.name), int(parent)


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"
)


def test_f1_sigterm_with_processes_and_workers(start: Path, shard: Path, tmp_path: Path) -> None:
    run = Run(start, shard, tmp_path, "--processes", 2).until(3)
    run.process.terminate()
    said = run.end()
    assert run.process.returncode == 75 and "stopped as asked: stage trial has done" in said
    assert run.saved() == len(read_log(run.log)) >= 3


def test_f3_sigterm_to_the_group_and_a_state_that_goes_on(start: Path, shard: Path, tmp_path: Path) -> None:
    """As `timeout` and job schedulers send it; the same command reads on where the first stopped."""
    run = Run(start, shard, tmp_path).until(3)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert "stopped as asked" in run.end() and run.process.returncode == 75
    done = run.saved()
    again = Run(start, shard, tmp_path).until(done + 2)
    os.killpg(again.process.pid, signal.SIGTERM)
    again.end()
    assert [line["step"] for line in read_log(run.log)] == list(range(1, again.saved() + 1))


def test_f4_ctrl_c_once_is_sigterm_and_twice_is_at_once(start: Path, shard: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to every process of the group, however many there are."""
    run = Run(start, shard, tmp_path, "--processes", 2).until(3)
    os.killpg(run.process.pid, signal.SIGINT)
    said = run.end()
    assert run.process.returncode == 75 and run.saved() >= 3
    assert "Ctrl-C once more ends at once" in said and "stopped as asked" in said


@pytest.mark.parametrize("processes", [1, 2])
def test_f4_ctrl_c_twice(start: Path, shard: Path, tmp_path: Path, processes: int) -> None:
    run = Run(start, shard, tmp_path, "--processes", processes, "--optim.steps", 100_000).until(2)
    for _ in range(2):
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(0.002)
    run.end()
    assert run.process.returncode in (75, 130)


def test_f1_an_error_in_one_of_several_processes(start: Path, shard: Path, tmp_path: Path) -> None:
    """A loader worker is killed, as when the memory is full: its rank says so, and the other does not wait for it."""
    run = Run(start, shard, tmp_path, "--processes", 2).until(3)
    parents = dict(parents_in_session(run.process.pid))
    ranks = [each for each, parent in parents.items() if parent == run.process.pid]
    worker = next(each for each, parent in parents.items() if parent in ranks and is_spawned(each))
    os.kill(worker, signal.SIGKILL)
    said = run.end()
    assert run.process.returncode == 2 and "a worker process that reads ahead was ended" in said


def is_spawned(process: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_before_the_first_update(start: Path, shard: Path, tmp_path: Path, processes: int) -> None:
    """While processes still begin; nothing is lost, because little was done."""
    run = Run(start, shard, tmp_path, "--processes", processes)
    deadline = time.monotonic() + 240
    while not (run.folder / "trial" / "stage.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for each in in_session(run.process.pid):  # as systemd and SLURM do: to every process there is
        with suppress(ProcessLookupError):  # some end on their way
            os.kill(each, signal.SIGTERM)
    run.end()
    assert run.process.returncode == 75
