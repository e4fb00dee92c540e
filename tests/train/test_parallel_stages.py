"""Stages that share a number start from the same model and train different parts of it, side by side."""

import builtins
import json
import os
import shutil
import signal
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwenvl.processes import Worker
from qwenvl.runtime import Runtime
from qwenvl.train import launcher
from qwenvl.train.log import read_log, seconds_trained
from qwenvl.train.parallelize import ParallelConfig
from qwenvl.train.recipe import model_of, parallel_stages, run_parallel_stages

from .conftest import source, stage

CPU = Runtime.detect(device="cpu", dtype="float32")
PAIR = [
    stage(name="0a-language", trains=("llm",), data=(source("text"),)),
    stage(name="0b-vision", trains=("vision",), objective="dense_labels", data=()),
]


def together(start: Path, run: Path, processes: int) -> dict[str, torch.Tensor]:
    run_parallel_stages(PAIR, start, run, CPU, processes=processes, parallel=ParallelConfig())
    assert model_of(PAIR, run) == run / "0" / "model"
    return load_file(run / "0" / "model" / "model.safetensors")


def test_side_by_side_is_one_after_the_other(start: Path, tmp_path: Path) -> None:
    """Bit for bit, and every part is the one that its own stage has trained; done stages are not done again."""
    one, two = (together(start, tmp_path / str(processes), processes) for processes in (1, 2))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    before = load_file(start / "model.safetensors")
    sources = {"adapter": before}
    for each, part in zip(PAIR, ("llm", "vision"), strict=True):
        sources[part] = load_file(tmp_path / "2" / each.name / "model" / "model.safetensors")
        assert not (tmp_path / "2" / each.name / "state").exists()
    for name, weight in two.items():
        assert torch.equal(weight, sources[name.split(".")[0]][name]), name
    changed = {name.split(".")[0] for name in two if not torch.equal(two[name], before[name])}
    assert changed == {"llm", "vision"}
    shutil.rmtree(tmp_path / "2" / "0b-vision" / "model")
    shutil.rmtree(tmp_path / "2" / "0")
    again = together(start, tmp_path / "2", 2)
    assert all(torch.equal(two[name], again[name]) for name in two), "the last of them alone"
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "2").rglob("*") if file.is_file()}
    together(start, tmp_path / "2", 2)
    assert written == {
        file: file.stat().st_mtime_ns for file in (tmp_path / "2").rglob("*") if file.is_file()
    }


def test_parallel_stages_share_a_number_and_no_part() -> None:
    names = ("0a", "0b", "1-pretraining", "2-multitask", "10-more", "trial")
    parts = (("llm",), ("vision",), ("adapter",), ("adapter",), ("llm",), ("llm",))
    stages = [stage(name=name, trains=part) for name, part in zip(names, parts, strict=True)]
    assert [[each.name for each in group] for group in parallel_stages(stages)] == [
        ["0a", "0b"],
        *([name] for name in names[2:]),
    ]
    with pytest.raises(
        ValueError, match=r"stages 0a and 0b share a number, .* both train llm; let them train diff"
    ):
        parallel_stages([stage(name="0a", trains=("llm",)), stage(name="0b", trains=("vision", "llm"))])


def wait_for_the_end(where: Path) -> None:
    (where / "waits").touch()
    signal.pause()


def die_when_the_other_waits(where: Path) -> None:
    while not (where / "waits").exists():
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def test_when_a_crew_fails_the_others_are_asked_to_stop(tmp_path: Path) -> None:
    glances: list[None] = []
    with pytest.raises(ChildProcessError, match="process 0 of 1 was ended by SIGKILL"):
        launcher.launch(
            [
                launcher.WorkerGroup(1, wait_for_the_end, (tmp_path,)),
                launcher.WorkerGroup(1, die_when_the_other_waits, (tmp_path,)),
            ],
            lambda: glances.append(None),
        )
    assert glances


class Late:
    """Asks its process to stop when the interpreter clears its modules: the last that Python does."""

    def __init__(self, where: Path) -> None:
        self.here, self.mkdir, self.kill, self.pid = str(where / "late"), os.mkdir, os.kill, os.getpid()

    def __del__(self) -> None:
        self.mkdir(self.here)
        self.kill(self.pid, 15)


def leave_late(where: Path) -> None:
    builtins.late = Late(where)  # type: ignore[attr-defined]


def test_a_request_to_stop_that_meets_a_process_on_its_way_out_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python forgets its handlers before it has left, and a run that was done ended as one that was killed."""
    monkeypatch.setattr(Worker, "_Popen", staticmethod(SpawnProcess._Popen))  # what is forked leaves at once
    launcher.launch([launcher.WorkerGroup(1, leave_late, (tmp_path,))])
    assert (tmp_path / "late").is_dir()


def test_seconds_side_by_side_count_once(tmp_path: Path) -> None:
    """One stage trains from 100 to 104, one from 101 to 103, a third after a pause from 110 to 112."""
    ends = {"0a": [101.0, 102.0, 103.0, 104.0], "0b": [102.0, 103.0], "1": [111.0, 112.0]}
    for name, times in ends.items():
        (tmp_path / name).mkdir()
        lines = [{"step": step, "seconds": step + 1.0, "time": time} for step, time in enumerate(times)]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_log(tmp_path / "1" / "log.jsonl")
    assert seconds_trained(tmp_path) == pytest.approx(6.0)
    assert seconds_trained(tmp_path / "nothing") == 0.0
