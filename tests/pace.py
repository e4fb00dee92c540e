"""Bounds of processor time that hold on any machine: seconds are those of the one that they were set on."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STEPS, SECONDS = 200_000, 0.005
"""Of a loop, and what it took there."""


def _seconds() -> float:
    start, total = time.process_time(), 0
    for step in range(STEPS):
        total += step & 3
    return time.process_time() - start


def of_children() -> float:
    """Seconds of the processor that processes have taken which this one started and which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def at_most(seconds: float, clock: Callable[[], float] = time.process_time) -> Iterator[None]:
    """What is done within takes so much processor time at most; longer where a loop takes longer, before or behind."""
    before, start = _seconds(), clock()
    yield
    took = clock() - start
    slower = max(1.0, before / SECONDS, _seconds() / SECONDS)
    assert took < seconds * slower, f"{took:.2f} s of the processor, on a machine {slower:.1f} times as slow"
