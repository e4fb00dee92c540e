"""The short form of the soak: half a minute of clients that do everything wrong."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_half_a_minute_of_everything_at_once() -> None:
    """No crash, no answer mixed up, every row returned; a failing engine ends all with an error.

    Memory is judged by `make soak`.
    """
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--seconds", "25", "--clients", "6", "--json"],
        capture_output=True, text=True, timeout=200, cwd=ROOT,
    )  # fmt: skip
    assert run.stdout, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["problems"] == [] and run.returncode == 0
    assert {"question", "stream", "vanish", "new image", "malformed body"} <= found["done"].keys()
