"""What a process asks of the system before it reads a model."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qwenvl.runtime import ask_for_huge_pages, free_memory

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


def a_system(root: Path, lines: str, files: dict[str, str]) -> Path:
    """A root folder with 8,000 kB free, a process in these control groups, and their files."""
    files = {
        "proc/meminfo": "MemTotal: 9999 kB\nMemAvailable:    8000 kB\n",
        "proc/self/cgroup": lines,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(limit: object, used: int, files: int, *, version: int = 2) -> dict[str, str]:
    if version == 2:
        return {
            "memory.max": f"{limit}\n",
            "memory.current": f"{used}\n",
            "memory.stat": f"anon 5\nfile 9\ninactive_file {files}\n",
        }
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"cache 5\ninactive_file 7\ntotal_inactive_file {files}\n",
    }


def below(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    "lines, files, free",
    [
        ("0::/a/b\n", below("a/b", group(1_000_000, 400_000, 50_000)), 650_000),
        ("0::/a/b\n", below("a", group(900_000, 800_000, 0)) | below("a/b", group("max", 7, 0)), 100_000),
        ("0::/\n", group(1_000_000, 2_000_000, 0), 0),
        ("0::/../../host/of/it\n", group(1_000_000, 400_000, 0), 600_000),
        ("0::/a\n", below("a", group("max", 400_000, 0)), 8_192_000),
        ("3:cpu,memory:/a\n0::/\n", below("memory/a", group(700_000, 1, 1, version=1)), 700_000),
        ("3:memory:/host/it\n", below("memory", group(500_000, 100_000, 10, version=1)), 400_010),
        ("3:memory:/a\n", below("memory/a", group(2**63 - 4096, 100, 0, version=1)), 8_192_000),
        ("3:cpu:/a\nnonsense\n", below("memory/a", group(1, 1, 0, version=1)), 8_192_000),
        ("0::/a\n", below("a", group(1_000_000, 400_000, 0) | {"memory.stat": "one two three\n"}), 8_192_000),
    ],
)
def test_free_is_what_the_system_and_every_group_around_us_have_left(tmp_path, lines, files, free):
    assert free_memory(torch.device("cpu"), a_system(tmp_path, lines, files)) == free


def test_a_system_without_control_groups(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable: 8000 kB\n")
    assert free_memory(torch.device("cpu"), tmp_path) == 8_192_000
    assert free_memory(torch.device("cpu"), tmp_path / "none") is None
