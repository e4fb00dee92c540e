"""A run asks every question once, whoever asks, however often it is killed; what it could not ask is named."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qwenvl.cli as cli
from qwenvl.data.datasets.sample import Source
from qwenvl.evaluation import card
from qwenvl.evaluation import run as running
from qwenvl.evaluation.asking import Asker
from qwenvl.evaluation.predictions import Prediction, append, appending, read_foreign, read_written
from qwenvl.evaluation.progress import Running
from qwenvl.evaluation.run import Job, run, samples_of

from .conftest import lines, paint

QUESTIONS = 14


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Questions in the release's JSON lines, of different lengths, some about the same image."""
    folder = tmp_path / "data"
    records: list[dict[str, object]] = [
        {
            "question_id": k,
            "image": paint(folder / f"{k % 7}.png", f"#{k % 7}0{k % 7}0f0").name,
            "question": f"What is {'very ' * (k % 5)}number {k}?",
            "answer": ["red"] * 10,
        }
        for k in range(QUESTIONS)
    ]
    return Source(lines(folder / "val.jsonl", records))


@pytest.fixture
def job(source: Source, model: Path, tmp_path: Path) -> Callable[..., Job]:
    def make(out: str = "run", **changes: Any) -> Job:
        return Job(checkpoint=str(model), benchmark="okvqa", source=source, out=tmp_path / out, **changes)

    return make


def die_or_work(job: Job, part: int, parts: int, answered: Any) -> None:
    """A process of a run of which the second is killed before it has said anything."""
    if part == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    running.work(job, running.plan(job, samples_of(job)), part, parts, report=answered.send)


def answers(predictions: list[Prediction]) -> dict[str, str]:
    return {prediction.id: prediction.raw for prediction in predictions}


def test_batches_answer_as_one_by_one(job: Callable[..., Job]) -> None:
    single, many = run(job("one", batch=1)), run(job("many", batch=16))
    assert answers(single) == answers(many) and len(single) == QUESTIONS


def test_a_second_run_asks_nothing(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(job())
    monkeypatch.setattr(running, "_asker", lambda job: pytest.fail("a model was loaded"))
    assert run(job()) == first


def test_a_larger_run_asks_only_what_is_new(job: Callable[..., Job]) -> None:
    part = run(job(limit=5))
    asked: list[str] = []
    whole = run(job(), report=lambda pairs: asked.extend(name for name, _ in pairs))
    assert whole[:5] == part and sorted(asked) == sorted(p.id for p in whole)


def test_a_torn_line_is_asked_again(job: Callable[..., Job]) -> None:
    first = run(job())
    (file,) = job().out.glob("predictions-*.jsonl")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert answers(run(job())) == answers(first)
    assert all(json.loads(line) for line in file.read_text().splitlines())


@pytest.mark.timeout(900)  # three processes load torch, which takes minutes on a machine with other work
def test_parts_and_processes_together_ask_everything_once(job: Callable[..., Job]) -> None:
    whole = run(job())
    seen: list[str] = []
    parallel = run(job("parallel"), processes=2, report=lambda pairs: seen.extend(name for name, _ in pairs))
    assert answers(parallel) == answers(whole)
    assert sorted(seen) == sorted(answers(whole))
    written = [line for file in job("parallel").out.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(written) == QUESTIONS and len(list(job("parallel").out.glob("*.jsonl"))) == 2


def test_ranks_share_the_questions_and_the_whole_asks_nothing_more(
    job: Callable[..., Job], model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = run(job()), job("ranks").out
    command = ["eval", "run", str(model), "okvqa", "--data", str(job().source.data), "--out", str(out)]
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        assert cli.main([*command, "--part", "rank" if rank else "0/3"]) == 0
    lines_of = {file.name: file.read_text().splitlines() for file in out.glob("*.jsonl")}
    assert {name: len(own) for name, own in lines_of.items()} == {
        "predictions-0-of-3.jsonl": 5,
        "predictions-1-of-3.jsonl": 5,
        "predictions-2-of-3.jsonl": 4,
    }
    monkeypatch.setattr(running, "_asker", lambda job: pytest.fail("a model was loaded"))
    assert answers(run(job("ranks"))) == answers(whole)


def test_likelihoods_that_are_no_numbers_are_failures(
    small: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: Asker, prompts: list, options: list, *, whole: bool) -> list:
        return [[(float("nan"),) for _ in own] for own in options]

    monkeypatch.setattr(Asker, "likelihoods", broken)
    arguments = ["eval", "run", "tiny", "scienceqa", "--data", str(small("scienceqa").source.data)]
    assert cli.main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    ((result,), records) = card.read(tmp_path / "out")
    assert (result.score.value, result.score.failures) == (0, 5)
    assert all(record["failed"] and not record["nll"] for record in records)


def test_a_run_without_some_images_says_so_in_red_and_ends_with_1(
    job: Callable[..., Job], source: Source, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source.data.parent / "3.png").unlink()
    command = ["eval", "run", str(model), "okvqa", "--data", str(source.data), "--out", str(job().out)]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "2 of 14 questions lack their image, such as 3:" in " ".join(error.split())
    assert "12 of 14 questions have a score" in error
    assert cli.main([*command, "--partial"]) == 0


@pytest.mark.timeout(900)
def test_a_process_that_dies_is_named_and_the_others_answers_are_kept(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job())
    monkeypatch.setattr(running, "_child", die_or_work)
    with pytest.raises(ValueError, match="process 1 of 2 ended with status -9; its answers so far are kept"):
        run(job("dying"), processes=2)
    monkeypatch.undo()
    kept = [prediction.id for prediction in read_written(job("dying").out).values()]
    assert sorted(kept) == sorted(sample.id for sample in samples_of(job())[::2])
    assert answers(run(job("dying"))) == answers(whole)


@pytest.mark.timeout(900)
def test_a_killed_run_goes_on(job: Callable[..., Job], model: Path) -> None:
    whole, out = run(job()), job("killed").out
    command = [sys.executable, "-m", "qwenvl", "eval", "run", model, "okvqa", "--data", job().source.data]
    child = subprocess.Popen(
        [*map(str, command), "--out", str(out), "--batch", "1"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while not any(file.read_text().count("\n") > 2 for file in out.glob("predictions-*.jsonl")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = len(read_written(out))
    assert 0 < before <= QUESTIONS
    assert answers(run(job("killed", batch=1))) == answers(whole)


def test_shuffle_and_limit_are_a_function_of_the_seed(job: Callable[..., Job]) -> None:
    def order(**changes: Any) -> list[str]:
        return [sample.id for sample in samples_of(job(**changes))]

    assert order(shuffle=1, limit=9) == order(shuffle=1)[:9] != order(limit=9)
    assert sorted(order(shuffle=2)) == sorted(order())


def test_images_that_are_gone_or_damaged_are_named_and_not_scored(
    job: Callable[..., Job], source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    (source.data.parent / "3.png").unlink()
    (source.data.parent / "4.png").write_bytes(b"no image")
    answered = {p.id for p in run(job())}
    assert answered == {str(k) for k in range(QUESTIONS) if k % 7 not in (3, 4)}
    assert "not asked: question 4" in capsys.readouterr().err
    for file in source.data.parent.glob("*.png"):
        file.unlink()
    with pytest.raises(ValueError, match="no image is where the annotations say"):
        run(job("nothing"))


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    with appending(tmp_path / "predictions-0-of-1.jsonl") as file:
        append(file, [Prediction(id="1", key="k")])
        with (
            pytest.raises(ValueError, match="another run is writing"),
            appending(tmp_path / "predictions-0-of-1.jsonl"),
        ):
            pass
    assert list(read_written(tmp_path)) == ["k"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1, "answer": "a"}\n{"id": 1, "answer": "b"}\n', "a second time"),
        ('{"id": 1}\n', "expected one of"),
        ('{"id": 1, "answer": 5}\n', "is a int; expected text"),
        ('{"id": 1, "answer"\n', "line 1 is not valid JSON"),
    ],
)
def test_bad_predictions_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "said.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_foreign(tmp_path / "said.jsonl")


def test_scores_of_the_whole_run_along_too(small: Callable) -> None:
    from qwenvl.evaluation.benchmarks import benchmark

    made, row = small("mme-cognition"), benchmark("mme-cognition")
    now = Running(row, row.read(made.source))
    said = list(made.said.items())
    assert now.add(said[:8]) == 8 and now.text.endswith("(of 8)")
    assert now.add(said[8:]) == 16 and now.text.startswith(f"{made.value:.2f} +- ")


def test_the_running_score_has_an_interval(job: Callable[..., Job]) -> None:
    from qwenvl.evaluation.benchmarks import benchmark

    samples = samples_of(job())
    now = Running(benchmark("okvqa"), samples)
    assert now.text == ""
    assert now.add([(sample.id, "red" if k % 2 else "blue") for k, sample in enumerate(samples)]) == QUESTIONS
    mean, _, half = now.text.split()
    assert float(mean) == 50 and float(half) == pytest.approx(196 * 0.5 / QUESTIONS**0.5, abs=0.01)
