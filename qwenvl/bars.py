"""How far a long piece of work is: bars for who watches a terminal, a line now and then for a pipe or a log."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.text import Text

EVERY = 20.0
"""Seconds between two lines about the same task."""


class Bars(Progress):
    """Bars where the console is a terminal; elsewhere a line every 20 seconds that says what the bars would."""

    def __init__(self, *columns: ProgressColumn, console: Console, shown: bool = True) -> None:
        """Nothing is said unless `shown`."""
        super().__init__(*columns, console=console, disable=not (shown and console.is_terminal))
        self._in_lines = shown and not console.is_terminal
        self._began = time.monotonic()
        self._said: dict[TaskID, float] = {}

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """As rich's; a task that is done has a last line if it had others."""
        super().update(task_id, **changes)
        if not self._in_lines:
            return
        now, task = time.monotonic(), self._tasks[task_id]
        over = now - self._said.get(task_id, self._began) >= EVERY
        if over or (task.finished and task_id in self._said):
            self._said[task_id] = now
            self.console.print(self._line(task), markup=False, highlight=False, soft_wrap=True)
            if task.finished:
                self._said.pop(task_id)
                self._began = now

    def _line(self, task: Task) -> str:
        parts = []
        for column in self.columns:
            if isinstance(column, ProgressColumn) and not isinstance(column, BarColumn):
                shown = column.render(task)
                text = shown.plain if isinstance(shown, Text) else str(shown)
                parts.append(f"{text} left" if isinstance(column, TimeRemainingColumn) else text)
        return "  ".join(part.strip() for part in parts)
