"""What an earlier version did per second of processor time, and what this one does, in turn.

    git worktree add /tmp/before d5b1da3
    python benchmarks/before.py /tmp/before [--rounds 5] [--only tars columns ...]

Both checkouts answer in processes of their own, of one thread, each by its own benchmarks (`cleaning.py`, `pages.py`,
`loader.py`, `step.py`) or by updates of its own recipe, in turn and with turns changed, round by round; a figure is the
best of the rounds. A ratio above 1 says how many times as much this version does. `html` and `articles` need Chromium
and count its time too. Updates are told by the clock as well, since a thread reads ahead on another core: that is what
a machine at rest does, and noise on a busy one.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

Task = Callable[[Path], Callable[[], float | list[float]]]
"""Makes ready what is measured, in a folder of its own; what it returns measures once, per second of processor time
and, where there are two figures, by the clock."""


def rules(folder: Path) -> Callable[[], float]:
    import cleaning

    return lambda: cleaning.rules(6_000)


def _cleaned(folder: Path, decode: bool = False) -> Callable[[], float]:
    import cleaning

    def rate() -> float:
        _, seconds, read = cleaned(folder / "in", "inline", 1, decode=decode)
        return read / seconds

    cleaned = cleaning.cleaned
    cleaned(folder / "in", "inline", 1, decode=decode)
    return rate


def tars(folder: Path, pairs: int = 2_000, decode: bool = False) -> Callable[[], float]:
    import cleaning

    cleaning.write_shards(folder / "in", 1, pairs)
    return _cleaned(folder, decode)


def decoded(folder: Path) -> Callable[[], float]:
    return tars(folder, 200, decode=True)


def _rows() -> list[dict[str, object]]:
    import cleaning

    return [
        {"URL": "http://x", "TEXT": cleaning.text(k), "WIDTH": 640, "HEIGHT": 480, "similarity": 0.35}
        for k in range(6_000)
    ]


def columns(folder: Path) -> Callable[[], float]:
    import cleaning

    (folder / "in").mkdir()
    cleaning.write_parquet(folder / "in" / "a.parquet", _rows())
    return _cleaned(folder)


def lines(folder: Path) -> Callable[[], float]:
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, _rows())))
    return _cleaned(folder)


def drawn(folder: Path) -> Callable[[], float]:
    import pages

    make = pages.drawn(pages.Look(longest=1024), 8)
    return lambda: _per_second(lambda: len(make()))


def pdf(folder: Path) -> Callable[[], float]:
    import pages

    file = pages.pdf_file(12)

    def read() -> int:
        found = [page for _, page in pages.pdf_pages(file) if isinstance(page, pages.Page)]
        return sum(bool(page.jpeg()) for page in found)

    return lambda: _per_second(read)


def html(folder: Path, without: bytes = b"$^") -> Callable[[], float]:
    import pages

    files = [re.sub(without, b"", pages.html_file(number), flags=re.DOTALL) for number in range(10)]
    browser = _browser()

    def read() -> int:
        return sum(isinstance(browser.page(file), pages.Page) for file in files)

    read()
    return lambda: _per_second(read, pages.cpu_of_descendants)


@functools.cache
def _browser() -> Any:
    """One for both tasks, as long as the process lives: Playwright allows one in a thread."""
    import pages

    return pages.Browser(seconds=60.0).__enter__()


def articles(folder: Path) -> Callable[[], float]:
    return html(folder, without=rb"<table>.*</table>")


def loader(folder: Path) -> Callable[[], float]:
    import loader

    def rate() -> float:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            loader.step(6)
        found = re.search(r"loader +([\d,]+) documents/s", said.getvalue())
        assert found is not None
        return float(found[1].replace(",", ""))

    return rate


def step(folder: Path) -> Callable[[], float]:
    return lambda: 1 / _seconds_of("benchmarks/step.py", "--small")


def update(folder: Path, stage: str, updates: int = 4) -> Callable[[], list[float]]:
    """Updates of a stage of the tiny recipe by its own loop, reading and logging included, from the shipped model."""
    import torch

    from qwenvl.checkpoint import folder as checkpoint
    from qwenvl.runtime import Runtime
    from qwenvl.tokenizer import Tokenizer
    from qwenvl.train.loop import train
    from qwenvl.train.stages import StageConfig

    torch.set_num_threads(1)
    runtime, shipped = Runtime.detect(device="cpu"), checkpoint.resolve("tiny")
    given = StageConfig.read(Path("recipes", "tiny", f"{stage}.toml"))
    given = replace(given, optim=replace(given.optim, warmup_steps=0, steps=2 + updates))
    least = [
        [float("inf")] * updates for _ in range(2)
    ]  # processor time of each and by the clock, over all rounds

    def rate() -> list[float]:
        ends: list[tuple[float, float]] = []
        with tempfile.TemporaryDirectory(dir=folder) as run_dir, contextlib.redirect_stderr(io.StringIO()):
            train(
                checkpoint.load(shipped, runtime),
                Tokenizer.load(shipped),
                given,
                Path(run_dir),
                runtime,
                watch=lambda *_: ends.append((time.process_time(), time.perf_counter())),
            )
        for known, times in zip(least, zip(*ends, strict=True), strict=True):
            seconds = [after - before for before, after in itertools.pairwise(times)]
            known[:] = map(min, known, seconds)  # the first one warms up, the last one saves
        return [updates / sum(known) for known in least]

    return rate


def ask(folder: Path) -> Callable[[], float]:
    return lambda: 1 / _seconds_of("-m", "qwenvl", "ask", "tiny", "docs/pages.jpg", "What is this?")


TASKS: dict[str, tuple[Task, str]] = {
    "rules": (rules, "pairs/s through all rules"),
    "tars": (tars, "pairs/s cleaned from tars of JPEGs"),
    "decoded": (decoded, "the same, every JPEG decoded"),
    "columns": (columns, "pairs/s cleaned from parquet"),
    "lines": (lines, "pairs/s cleaned from lines of JSON"),
    "drawn": (drawn, "drawn pages/s at 1,024 px"),
    "pdf": (pdf, "PDF pages/s"),
    "html": (html, "HTML pages/s"),
    "articles": (articles, "the same without their tables"),
    "loader": (loader, "documents/s of one loader process"),
    "step": (step, "runs/s of step.py --small, whole command"),
    "stage0a": (partial(update, stage="0a-language"), "updates/s of the tiny recipe, stage 0a"),
    "stage0b": (partial(update, stage="0b-vision"), "updates/s of the tiny recipe, stage 0b"),
    "stage1": (partial(update, stage="1-pretraining"), "updates/s of the tiny recipe, stage 1"),
    "stage2": (partial(update, stage="2-multitask"), "updates/s of the tiny recipe, stage 2"),
    "stage3": (partial(update, stage="3-finetuning"), "updates/s of the tiny recipe, stage 3"),
    "ask": (ask, "runs/s of qwenvl ask tiny, whole command"),
}


def _per_second(make: Callable[[], int], others: Callable[[], float] = lambda: 0.0) -> float:
    before = time.process_time() + others()
    count = make()
    return count / (time.process_time() + others() - before)


def _seconds_of(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def answer() -> None:
    """In a process of a checkout: for every name of a task that comes in, a line with what it does per second."""
    with tempfile.TemporaryDirectory() as name:
        ready: dict[str, Callable[[], float | list[float]]] = {}
        for line in sys.stdin:
            task = line.strip()
            if task not in ready:
                folder = Path(name, task)
                folder.mkdir()
                ready[task] = TASKS[task][0](folder)
            found = ready[task]()
            print(json.dumps(found if isinstance(found, list) else [found]), flush=True)


def _started(checkout: Path, memory: Mapping[str, str]) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(checkout), str(checkout / "benchmarks")])
    environment = {**os.environ, **memory, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).resolve()),
        "--answer",
    ]  # -P: not the modules beside this file
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True)


def _asked(process: subprocess.Popen[str], task: str) -> list[float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(task + "\n")
    process.stdin.flush()
    figures: list[float] = json.loads(process.stdout.readline())
    return figures


def _told(what: str, before: float, now: float) -> None:
    digits = 0 if before > 100 else 1 if before > 5 else 3
    print(f"{what:<46}{before:>12,.{digits}f}{now:>12,.{digits}f}{now / before:>8.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, nargs="?", help="the checkout of the earlier version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--answer", action="store_true", help="be the process of a checkout")
    given = parser.parse_args(argv)
    if given.answer:
        answer()
        return
    if given.before is None:
        parser.error("name the checkout of the earlier version")
    from qwenvl.train.launcher import KEEP_MEMORY

    checkouts = given.before.resolve(), Path(__file__).resolve().parents[1]
    started: dict[bool, list[subprocess.Popen[str]]] = {}
    print(f"{'':<46}{'before':>12}{'now':>12}{'ratio':>8}   load {os.getloadavg()[0]:.0f}")
    for task in given.only:
        trains = task.startswith("stage")  # in processes as `qwenvl train` spawns them
        if trains not in started:
            started[trains] = [_started(each, KEEP_MEMORY if trains else {}) for each in checkouts]
        both, best = started[trains], [[0.0, 0.0], [0.0, 0.0]]
        for number in range(given.rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                best[side] = [*map(max, best[side], _asked(both[side], task))]
        for what, before, now in zip((TASKS[task][1], "    by the clock"), *best, strict=False):
            _told(what, before, now)
    for process in itertools.chain(*started.values()):
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    main()
