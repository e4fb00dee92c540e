"""What a run says: one JSON line per update in `log.jsonl`, and a progress bar for who is watching."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwenvl.train import parallel
from qwenvl.train.stages import StageConfig


class Log:
    """Appends a line per update; a resumed run first drops the lines that it will write again."""

    def __init__(self, file: Path, stage: StageConfig, *, start: int) -> None:
        self._writes = parallel.rank() == 0
        kept = [line for line in read_log(file) if line["step"] < start]
        self._seconds = kept[-1]["seconds"] if kept else 0.0
        if self._writes:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(line) + "\n" for line in kept))
            self._file = file.open("a")
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not (self._writes and console.is_terminal),
        )
        self._task = self._bar.add_task(
            stage.name, total=stage.optim.steps, completed=start, loss=0.0, speed=0.0
        )
        self._last = time.perf_counter()
        self._loss = self._speed = 0.0

    def __enter__(self) -> "Log":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        if self._writes:
            self._file.close()

    def step(self, step: int, *, loss: float, tokens: float, pictures: float, **values: float) -> None:
        """One update: smoothed on the bar, exact in the file."""
        if not self._writes:
            return
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        self._seconds += elapsed
        self._loss = 0.95 * self._loss + 0.05 * loss if self._loss else loss
        self._speed = 0.95 * self._speed + 0.05 * tokens / elapsed if self._speed else tokens / elapsed
        line = {"step": step, "loss": loss, "seconds": round(self._seconds, 3), "tokens": int(tokens)}
        self._file.write(json.dumps({**line, "pictures": int(pictures), **values}) + "\n")
        self._file.flush()
        self._bar.update(self._task, completed=step + 1, loss=self._loss, speed=self._speed)


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; a line cut by a kill is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
