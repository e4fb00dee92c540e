"""A run of two processes is asked to stop, goes on, is killed, and goes on: with two processes, four, or one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qwenvl.runtime import Runtime
from qwenvl.train.log import read_log
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.recipe import run_stage
from qwenvl.train.stages import StageConfig

CPU = Runtime.detect(device="cpu", dtype="float32")
UPDATES = 14
STAGE = f"""
name = "trial"
image_size = 56
sequence_length = 384
data = [{{ paths = ["toy:tasks"], weight = 2 }}, {{ paths = ["toy:text"] }}, {{ paths = ["toy:chats"] }}]
documents = 8
micro_documents = 2
bfloat16 = false
save_every = 1

[optim]
peak_lr = 1e-3
final_lr = 1e-4
warmup_steps = 1
steps = {UPDATES}
"""
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def begin(folder: Path, start: Path, *launcher: str, spawned: int = 1) -> subprocess.Popen[str]:
    """`qwenvl train` in a group of processes of its own."""
    (folder.parent / "trial.toml").write_text(STAGE)
    words = ["train", folder.parent / "trial.toml", "--init", start, "--out", folder, "--shard", "full"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, words), "--processes", str(spawned)],
        env=QUIET,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(run: subprocess.Popen[str], log: Path, updates: int) -> None:
    deadline = time.monotonic() + 500
    while len(read_log(log)) < updates:
        assert run.poll() is None and time.monotonic() < deadline, (
            "the run ended before it could be disturbed"
        )
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never disturbed, by two processes of torchrun."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = begin(folder, start, "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "qwenvl")
    message = run.communicate(timeout=500)[1]
    assert run.returncode == 0, message
    return folder / "trial"


@pytest.fixture(scope="module")
def killed(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Asked to stop after three updates or a few more, begun again, killed after two more: what is left of it."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    log = folder / "trial" / "log.jsonl"
    run = begin(folder, start, "qwenvl", spawned=2)
    until(run, log, 3)
    run.send_signal(signal.SIGTERM)
    message = run.communicate(timeout=500)[1]
    assert run.returncode == 75, message
    done = len(read_log(log))
    assert f"stopped as asked: stage trial has done {done} of {UPDATES} updates" in message
    assert (folder / "trial" / "state" / f"step-{done:06}").is_dir()
    run = begin(folder, start, "qwenvl", spawned=2)
    until(run, log, min(done + 2, UPDATES - 1))
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL and not (folder / "trial" / "model").exists()
    assert [line["step"] for line in read_log(log)] == list(range(1, len(read_log(log)) + 1))
    return folder / "trial"


def test_a_state_is_shared_among_its_writers(killed: Path) -> None:
    """Each process has written its half, and no half is called complete."""
    newest = sorted((killed / "state").glob("step-*"))[-1]
    halves = sorted(newest.glob("*.safetensors"))
    assert len(halves) == 2
    for half in halves:
        with safe_open(half, framework="pt") as stored:
            assert stored.get_slice("weights.llm.blocks.0.mlp.up.weight").get_shape() == [32, 32]
    visible = [each.name for each in (killed / "state").iterdir() if not each.name.startswith(".")]
    assert all((killed / "state" / name / "state.json").exists() for name in visible)


@pytest.mark.parametrize(
    ("processes", "parallel"),
    [
        (2, ParallelConfig(shard="full")),
        (4, ParallelConfig(shard="full", tensor=2)),
        (1, ParallelConfig()),
    ],
    ids=["two", "four", "one"],
)
def test_it_goes_on_with_any_number_of_processes(
    start: Path, whole: Path, killed: Path, tmp_path: Path, processes: int, parallel: ParallelConfig
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    run_stage(stage_of(whole), start, tmp_path / "run", CPU, processes=processes, parallel=parallel)
    lines, expected = (read_log(run / "log.jsonl") for run in (tmp_path / "run", whole))
    assert len(lines) == len(expected) == UPDATES
    for key in ("step", "tokens", "images"):  # the same samples, update by update
        assert [line[key] for line in lines] == [line[key] for line in expected]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-5)
    weights, those = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", whole))
    if processes == 2:
        assert bitwise(weights, those)
    for name, tensor in those.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=1e-4)


def bitwise(these: Mapping[str, torch.Tensor], those: Mapping[str, torch.Tensor]) -> bool:
    return these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


def stage_of(run: Path) -> StageConfig:
    """The stage as it was run, without the log's own word for it."""
    return StageConfig.read(run.parent.parent / "trial.toml")


def test_documents_are_dealt_alike_to_any_number_of_readers() -> None:
    from qwenvl.train.loop import micro_batches
    from qwenvl.train.stages import OptimConfig

    optim = OptimConfig(peak_lr=1.0, final_lr=0.0, warmup_steps=0, steps=9)
    trial = StageConfig(
        name="x", image_size=56, sequence_length=8, documents=24, micro_documents=2, optim=optim
    )
    for step in range(3):
        seen = [
            sorted(
                number
                for reader in range(readers)
                for documents in micro_batches(trial, step, reader, readers)
                for number in documents
            )
            for readers in (1, 2, 4, 6)
        ]
        assert seen == [list(range(step * 24, step * 24 + 24))] * 4
