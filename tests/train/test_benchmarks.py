"""The benchmarks of training run at toy size: what they compare is comparable, what they expect is counted."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwenvl.train.parallelize import ParallelConfig

ROOT = Path(__file__).parents[2]


def lines(script: str, *options: str) -> list[dict]:
    message = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), *options],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return [json.loads(line) for line in message.stdout.splitlines()]


def test_the_step_is_compared_with_a_rival_of_its_size() -> None:
    pytest.importorskip("transformers")
    (message,) = lines("step.py", "--small", "--pixels", "56", "--length", "128", "--rounds", "1")
    assert message["parameters"]["ours"] == pytest.approx(message["parameters"]["transformers"], rel=0.05)
    assert message["fill"]["ours"] > 0.9 > message["fill"]["transformers"] > 0.3
    speeds = message["tokens_per_second"]
    assert message["ratio"] == pytest.approx(speeds["ours"] / speeds["transformers"], abs=0.01)


def test_the_cases_of_a_large_gpu_run_at_toy_size() -> None:
    pytest.importorskip("peft")
    message = lines("gpu.py", "--small")
    training, answers = message[:5], message[5:]
    assert [each["case"] for each in training] == ["stage 2", "stage 1", "whole", "lora", "lora, recomputed"]
    ways = ["graphs", "compiled graphs", "engine"]
    assert [(each["case"], each["way"]) for each in answers] == [
        (f"answers, {rows} at once", way) for way in ways for rows in (1, 8)
    ]
    assert all(each["measured"]["tokens_per_second"] > 0 for each in answers)
    for each in training:
        measured = each["measured"]
        assert measured["fill"] == 1 and measured["tokens_per_second"] > 0
        assert min(measured["update_ms"], measured["micro_ms"]) > 0
        spent, budget = measured["profile_ms"], each["expected"]["budget_ms"]
        assert spent["products"] > 0 and {"elementwise", "optimizer"} < {*spent} | {*budget}
        assert budget["sum"] == pytest.approx(sum(budget.values()) / 2, abs=1e-3)
        kinds = ("weights", "gradients", "optimizer", "activations", "logits")
        expected = each["expected"]
        assert expected["peak_gb"] == pytest.approx(sum(expected[kind] for kind in kinds), abs=0.004)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_every_case_of_a_large_gpu_can_be_asked_for_alone_and_has_an_end(gpu: Any) -> None:
    read = gpu.options().parse_args
    every = [*gpu.cases(read(["--all"]))]
    assert len(every) == len({tuple(alone) for _, alone, _ in every}) == 2 * len(gpu.CASES) + 9
    for name, alone, _ in every:
        assert [each[:2] for each in gpu.cases(read(alone))] == [(name, alone)]
    left_out = gpu.apart("stage 2", ["--small"], 0.01)
    assert left_out == {"case": "stage 2", "left_out": "took more than 0 s"}


def test_the_table_is_made_of_recorded_lines(gpu: Any) -> None:
    """What docs/PERFORMANCE.md shows of a GPU is what the lines beside the script say, measured or not."""
    table_of = gpu.table_of
    recorded = (ROOT / "benchmarks" / "gpu.jsonl").read_text("utf-8")
    known = [json.loads(line) for line in recorded.splitlines()]
    text = (ROOT / "docs" / "PERFORMANCE.md").read_text("utf-8")
    assert text.split("<!-- table of gpu.py -->")[1].strip() == table_of(known)
    assert "| not measured |" in table_of(known[:1])
    seen = {
        **known[0],
        "measured": {"peak_gb": 120.0, "tokens_per_second": 9000, "update_ms": 1.0, "mfu": 0.451},
    }
    assert "45.1%" in table_of([seen])


def test_the_messages_of_many_cards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten weights, of which four learn, over two cards: half of what moves is another card's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    messages = importlib.import_module("cards").messages
    counted = {
        shard: messages(10, 4, ParallelConfig(shard=shard), micro_batches=3, cards=2)
        for shard in ("none", "optimizer", "full")
    }
    assert counted == {
        "none": (2 * 16) / 2,  # to all and back, once
        "optimizer": (20 + 3 * 16) / 2,
        "full": (3 * 2 * 20 + 3 * 16) / 2,
    }


def test_the_full_model_is_not_measured_on_a_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py")], capture_output=True, text=True
    )
    assert run.returncode == 2 and "give --device cuda, --expect or --small" in run.stderr
