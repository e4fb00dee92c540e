"""Bounds of processor time that hold on any machine: seconds are those of the one that they were set on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

STEPS, SECONDS = 200_000, 0.005
"""Of a loop, and what it took there."""


def _seconds() -> float:
    start, total = time.process_time(), 0
    for step in range(STEPS):
        total += step & 3
    return time.process_time() - start


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """What is done within takes so much processor time at most; longer where a loop takes longer, before or behind."""
    before, start = _seconds(), time.process_time()
    yield
    took = time.process_time() - start
    slower = max(1.0, before / SECONDS, _seconds() / SECONDS)
    assert took < seconds * slower, f"{took:.2f} s of the processor, on a machine {slower:.1f} times as slow"
