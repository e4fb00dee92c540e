"""What a run says: one JSON line per update in `log.jsonl`, from which everything else is drawn.

    {"step": 1, "loss": 2.1, "losses": {"captions": 2.3, "text": 1.8}, "grad_norm": 1.5, "norms": {"llm": 1.2, ...},
     "rates": {"llm": 2e-4, ...}, "tokens": 4096, "images": 8, "fill": 0.97, "tokens_per_second": 900.0,
     "images_per_second": 1.8, "mfu": 0.4, "seconds": 4.6, "time": 1795786000.0}

`step` is the number of updates done, from 1 as in TensorBoard and the names of states; `seconds` count from the start
of the stage, `time` from 1970; `norms` are those before clipping.
`mfu` is left out where nobody knows the peak of the device. A progress bar shows loss and speed to who is watching, a
line every 20 seconds to a pipe or a log; TensorBoard and other trackers draw the lines (`track`).
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from qwenvl.bars import Bars
from qwenvl.files import atomic, made
from qwenvl.train import distributed, launcher
from qwenvl.train.flops import peak
from qwenvl.train.show import Shown, sheets, write_sheet
from qwenvl.train.stages import StageConfig
from qwenvl.train.track import Online, TensorBoard, Tracker

LOG = "log.jsonl"
"""Name of the log in the folder of a run."""


@contextmanager
def traceless(run_dir: Path) -> Iterator[None]:
    """A run that fails before its first update leaves nothing in `run_dir`: what it was to read could not be read."""
    if distributed.rank():
        yield
        return
    there = {*run_dir.iterdir()} if run_dir.is_dir() else set()
    with made(run_dir):
        try:
            yield
        except BaseException:
            for new in {*run_dir.iterdir()} - there if not has_begun(run_dir) else ():
                shutil.rmtree(new) if new.is_dir() else new.unlink()
            raise


def has_begun(run_dir: Path) -> bool:
    """Whether a run went as far as its first update, or left a state or a model."""
    log = run_dir / LOG
    kept = any((run_dir / name).exists() for name in ("state", "model", "adapter"))
    return kept or (log.exists() and log.stat().st_size > 0)


class Log:
    """Appends a line per update; a resumed run first drops the lines that it will write again.

    Only the first process writes. `device` is what each process computes on.
    """

    def __init__(self, run_dir: Path, stage: StageConfig, device: torch.device, *, start: int) -> None:
        self._writes, self._run_dir = distributed.rank() == 0, run_dir
        self._bar = _bar(shown=self._writes and not launcher.spoken_for())
        self._task = self._bar.add_task(
            escape(stage.name), total=stage.optim.steps, completed=start, loss=0.0, speed=0.0
        )
        self._loss = self._speed = self._seconds = 0.0
        if self._writes:
            self._open(run_dir, stage, start)
            self._peak = (peak(device, bfloat16=stage.bfloat16) or 0.0) * distributed.world_size()
        self._last = time.perf_counter()

    def _open(self, run_dir: Path, stage: StageConfig, start: int) -> None:
        """Go on behind update `start`: in the file, in TensorBoard, in the tracker."""
        file = run_dir / LOG
        known = read_log(file)
        kept = [line for line in known if line["step"] <= start]
        self._seconds = kept[-1]["seconds"] if kept else 0.0
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic(file) as out:
            out.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = file.open("a")
        board = TensorBoard(run_dir / "tensorboard", kept, sheets(run_dir / "predictions", start))
        self._trackers: list[Tracker] = [board]
        if stage.track:
            self._trackers.append(Online(stage.track, run_dir, stage, sent=len(known)))

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._writes:
            self._file.close()
            for tracker in self._trackers:
                tracker.close()

    def step(
        self,
        step: int,
        seen: Mapping[str, float],
        *,
        norms: Mapping[str, float],
        rates: Mapping[str, float],
        flops: float,
    ) -> None:
        """Update `step` (from 0): smoothed on the bar, exact in the file. `seen` are the totals of all processes."""
        if not self._writes:
            return
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self._seconds += elapsed
        loss, speed = mean_loss(seen), seen["tokens"] / elapsed
        self._loss = 0.95 * self._loss + 0.05 * loss if self._loss else loss
        self._speed = 0.95 * self._speed + 0.05 * speed if self._speed else speed
        sources = [name.removeprefix("loss/") for name in seen if name.startswith("loss/")]
        sources = [name for name in sources if seen[f"supervised/{name}"]]
        line = {
            "step": step + 1,
            "loss": loss,
            "seconds": round(self._seconds, 3),
            "tokens": int(seen["tokens"]),
            "images": int(seen["images"]),
            "grad_norm": norms["all"],
            "fill": round(seen["tokens"] / seen["row_tokens"], 4),
            "tokens_per_second": round(speed, 1),
            "images_per_second": round(seen["images"] / elapsed, 2),
            **({"mfu": round(flops / elapsed / self._peak, 4)} if self._peak else {}),
            "losses": {name: mean_loss(seen, f"/{name}") for name in sorted(sources)},
            "norms": {part: norm for part, norm in norms.items() if part != "all"},
            "rates": dict(rates),
            "time": round(time.time(), 3),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.line(line)
        self._bar.update(self._task, completed=step + 1, loss=self._loss, speed=self._speed)

    def show(self, step: int, shown: Sequence[Shown]) -> None:
        """Sample predictions after `step` updates: a sheet and its text in RUN/predictions."""
        if not shown:
            print(
                f"no sheet of predictions after update {step}: no document with a readable image.",
                file=sys.stderr,
            )
            return
        file = write_sheet(self._run_dir / "predictions", step, shown)
        for tracker in self._trackers:
            tracker.sheet(step, file)
        self._last = time.perf_counter()  # the time that this took is no training


def _bar(*, shown: bool) -> Bars:
    """Progress on stderr."""
    return Bars(
        TextColumn("{task.description:16}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        shown=shown,
    )


@contextmanager
def following(stages: Mapping[Path, StageConfig]) -> Iterator[Callable[[], None]]:
    """Bars of stages that other processes train side by side; each call draws how far their logs have come."""
    with _bar(shown=True) as bar:
        tasks = {
            run_dir / LOG: bar.add_task(escape(stage.name), total=stage.optim.steps, loss=0.0, speed=0.0)
            for run_dir, stage in stages.items()
        }

        def look() -> None:
            for file, task in tasks.items():
                if lines := _tail(file):
                    loss, speed = (
                        fmean(line[key] for line in lines) for key in ("loss", "tokens_per_second")
                    )
                    bar.update(task, completed=lines[-1]["step"], loss=loss, speed=speed)

        yield look


def _tail(file: Path, size: int = 8192) -> list[dict[str, Any]]:
    """The last lines of a log that another process writes: whole ones only, the first of a log aside."""
    if not file.exists():
        return []
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - size))
        return [json.loads(line) for line in log.read().split(b"\n")[1:-1]]


def mean_loss(seen: Mapping[str, float], of: str = "") -> float:
    """Mean over everything supervised, or over that of one source: `of="/captions"`."""
    return seen[f"loss{of}"] / max(seen[f"supervised{of}"], 1)


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; a line cut by a kill is left out. Earlier versions counted updates from 0."""
    lines = []
    for text in file.read_text().split("\n") if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    if lines and lines[0].get("step") == 0:
        return [{**line, "step": line["step"] + 1} for line in lines]
    return lines


def seconds_trained(run: Path) -> float:
    """Seconds in which a stage of the run trained; those of stages side by side count once."""
    updates: list[tuple[float, float]] = []
    for file in run.glob(f"*/{LOG}"):
        before = 0.0
        for line in read_log(file):
            updates.append((line["time"], line["seconds"] - before))
            before = line["seconds"]
    total, ended = 0.0, 0.0
    for time_of_day, seconds in sorted(updates):
        total += min(seconds, time_of_day - ended)
        ended = time_of_day
    return total
