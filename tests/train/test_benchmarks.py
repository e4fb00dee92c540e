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
    *training, alone, together = message
    assert [each["case"] for each in training] == ["stage 1", "stage 2", "lora", "lora, recomputed"]
    assert [each["case"] for each in (alone, together)] == ["answers, 1 at once", "answers, 8 at once"]
    assert all(each["tokens_per_second"] > 0 and each["weights_alone"] > 0 for each in (alone, together))
    for each in training:
        assert each["measured"]["fill"] == 1 and each["measured"]["tokens_per_second"] > 0
        kinds = ("weights", "gradients", "optimizer", "activations", "logits")
        expected = each["expected"]
        assert expected["peak_gb"] == pytest.approx(sum(expected[kind] for kind in kinds), abs=0.004)


def test_the_full_model_is_not_measured_on_a_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu.py")], capture_output=True, text=True
    )
    assert run.returncode == 2 and "give --device cuda, --expect or --small" in run.stderr
