"""What a process asks of the system before it reads a model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl.runtime import ask_for_huge_pages

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

LOADED = """
from pathlib import Path
import qwenvl.serve.loading, qwenvl.evaluation.run, qwenvl.cli.answering  # importing them makes no tensor
from qwenvl.runtime import ask_for_huge_pages
ask_for_huge_pages()
import torch
large = torch.ones(32 * 2**20, dtype=torch.uint8)
rollup = Path("/proc/self/smaps_rollup")
lines = rollup.read_text().splitlines() if rollup.exists() else []
print(next((line.split()[1] for line in lines if line.startswith("AnonHugePages")), 0))
"""


def test_large_tensors_of_answering_processes_lie_in_huge_pages():
    """Where the system leaves it to the process."""
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    run = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, env=environment
    )
    asked = THP.exists() and "[madvise]" in THP.read_text()
    assert int(run.stdout) >= (24 * 1024 if asked else 0)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
