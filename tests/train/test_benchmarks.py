"""The benchmarks of training run at toy size: what they compare is comparable, what they expect is counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        assert measured["update_ms"] > measured["micro_ms"] > 0
        spent, budget = measured["profile_ms"], each["expected"]["budget_ms"]
        assert spent["products"] > 0 and {"elementwise", "optimizer"} < {*spent} | {*budget}
        assert budget["sum"] == pytest.approx(sum(budget.values()) / 2, abs=1e-3)
        kinds = ("weights", "gradients", "optimizer", "activations", "logits")
        expected = each["expected"]
        assert expected["peak_gb"] == pytest.approx(sum(expected[kind] for kind in kinds), abs=0.004)


def test_the_table_is_made_of_recorded_lines() -> None:
    """What docs/PERFORMANCE.md shows of a GPU is what the lines beside the script say, measured or not."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from gpu import table_of  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
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


def test_the_full_model_is_not_measured_on_a_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py")], capture_output=True, text=True
    )
    assert run.returncode == 2 and "give --device cuda, --expect or --small" in run.stderr
