"""The short form of the soak: ten seconds of clients that do everything wrong; and whether its judge can say no."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COUNTS = {"threads": 4, "files": 8, "tensors": 150}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import soak_memory

    return soak_memory


def test_ten_seconds_of_everything_at_once() -> None:
    """No crash, no answer mixed up, every page returned, caches within their bytes, threads, files and tensors as many
    as before; a failing engine ends all with an error.

    Of memory, only a leak of whole images shows in so short a time; `make soak` judges ten thousand.
    """
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--seconds", "10", "--clients", "6", "--images", "0",
         "--json"],
        capture_output=True, text=True, timeout=560, cwd=ROOT,
    )  # fmt: skip
    assert run.stdout, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["problems"] == [] and run.returncode == 0
    assert {"question", "stream", "vanish", "new images", "malformed body"} <= found["done"].keys()
    assert found["rounds"] >= 4 and {"in_use", "blocks"} <= found["growth"].keys()


@pytest.mark.parametrize(
    ("kept", "blocks", "said"),
    [
        (0, 0, []),
        (5_000, 0, ["resident", "in_use"]),
        (1_500, 0, ["in_use"]),
        (0, 60, ["blocks"]),
        (-900, -3, []),
    ],
)
def test_ten_thousand_images_are_judged(judge: ModuleType, kept: int, blocks: int, said: list[str]) -> None:
    """A run like the measured ones: caches fill at first, rounds differ by some megabytes, one stands out."""
    dice, rounds = Random(kept), []
    for number in range(1, 61):
        images = number * 170
        warm = 30e6 * min(1, images / 2_000)
        held = {
            "resident": 490e6 + warm + kept * images + dice.gauss(0, 3e6) + 90e6 * (number == 50),
            "in_use": 225e6 + warm + kept * images + dice.gauss(0, 1e6) + 40e6 * (number == 59),
            "blocks": 1.1e6 + blocks * images + dice.gauss(0, 2e3),
        }
        rounds.append(judge.Round(images=images, held=held | COUNTS))
    assert [sentence.split()[0] for sentence in judge.kept(rounds)] == said


@pytest.mark.parametrize("count", ["threads", "files", "tensors"])
def test_one_more_of_each_image_is_said_in_the_shortest_run(judge: ModuleType, count: str) -> None:
    def rounds(more: Callable[[int], int]) -> list[Any]:
        counts = [COUNTS | {count: COUNTS[count] + more(images)} for images in range(0, 90, 10)]
        return [judge.Round(images=10 * number, held=held) for number, held in enumerate(counts)]

    assert judge.kept(rounds(lambda images: images % 20 // 10)) == []
    said = f"there are {COUNTS[count] + 80} {count}, after at most {COUNTS[count] + 40} before"
    assert judge.kept(rounds(lambda images: images)) == [said]


KEEPER = """
import io, json, sys
import numpy as np
from PIL import Image
from soak_memory import Round, held, kept
from soak_server import LeakingImages
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import open_upload
from qwenvl.serve.recent import Seen
recent, limits, rounds = LeakingImages(1 << 20, int(sys.argv[1])), Limits(), []
for number in range(1, 6_001):
    file = io.BytesIO()
    Image.fromarray(np.frombuffer(number.to_bytes(48, "big"), np.uint8).reshape(4, 4, 3)).save(file, "BMP")
    data = file.getvalue()
    recent.put(recent.key(data, b""), Seen(open_upload(data, limits, side=56), bytes(32)))
    if number % 300 == 0:
        rounds.append(Round(images=number, held=held()))
print(json.dumps(kept(rounds)))
"""


@pytest.mark.parametrize(("leak", "said"), [(0, set()), (5_000, {"resident", "in_use", "blocks"})])
def test_five_kilobytes_of_every_image_are_noticed(leak: int, said: set[str]) -> None:
    """In a real process: six thousand images are opened, the last ones are kept, and of each as much as is leaked."""
    run = subprocess.run(
        [sys.executable, "-c", KEEPER, str(leak)], capture_output=True, text=True, timeout=560,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
    )  # fmt: skip
    assert run.stdout, run.stderr[-2000:]
    assert {sentence.split()[0] for sentence in json.loads(run.stdout)} == said
