"""Progress of long work: bars on a terminal, lines in a log."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from qwenvl import bars


def lines_of(terminal: bool, monkeypatch: pytest.MonkeyPatch, *, shown: bool = True) -> str:
    """What is written of ten steps of seven seconds each."""
    clock = iter(range(0, 10_000, 7))
    # the module's clock alone: an event loop in another thread that read it would sleep for hours
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn(),
    )  # fmt: skip
    with bars.Bars(*columns, console=console, shown=shown) as progress:
        task = progress.add_task("2-multitask [red]", total=10, loss=0.0)
        for step in range(10):
            progress.update(task, completed=step + 1, loss=1.5)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_log_says_every_twenty_seconds_what_the_bars_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage, steps, loss and time left, as `make demo > log` needs; and that it is done."""
    lines = lines_of(False, monkeypatch).splitlines()
    assert [line.split("  ")[1:3] for line in lines] == [
        [f"{step}/10".rjust(5).strip(), "loss 1.500"] for step in (3, 6, 9, 10)
    ]
    assert all(line.startswith("2-multitask [red]  ") and line.endswith(" left") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_a_terminal_has_bars_and_who_is_not_shown_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "━" in lines_of(True, monkeypatch)
    assert lines_of(False, monkeypatch, shown=False) == ""
