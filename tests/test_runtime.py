"""What a process asks of the system before it reads a model."""

import os
import platform
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


PHOTOS = """
import sys, threading
from PIL import Image
from qwenvl.runtime import give_back_large_blocks
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def photo():
    for _ in range(2):
        large, small = Image.new("RGB", (4000, 3000), 7), Image.new("RGB", (100, 100), 7)
        kept.append(small)  # behind it in memory
        del large
kept = []
if sys.argv[1:]:
    give_back_large_blocks()
before = resident()
for _ in range(2):
    thread = threading.Thread(target=photo)
    thread.start()
    thread.join()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc, which is left as it is")
def test_what_large_images_took_goes_back_to_the_system():
    """glibc's malloc keeps 48 MB of each thread that ever decoded a photo of 12 megapixels."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}

    def left(*args: str, **more: str) -> int:
        command, environ = [sys.executable, "-c", PHOTOS, *args], environment | more
        return int(subprocess.run(command, capture_output=True, check=True, env=environ).stdout)

    assert left("give back") < 8 << 20 < 30 << 20 < left()
    large = str(32 << 20)
    set_by_user = left("give back", MALLOC_MMAP_THRESHOLD_=large, MALLOC_TRIM_THRESHOLD_=str(64 << 20))
    assert set_by_user > 30 << 20
