"""Processes that work for this one."""

import os
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

import pytest

from qwenvl.processes import Pipe, WorkerPool

LONG = 120.0
"""Seconds until a test gives up; none takes a hundredth of it."""


def answer(megabytes: int) -> bytes:
    return bytes(megabytes * 2**20)


def sleep(seconds: float, given: bytes = b"") -> None:
    time.sleep(seconds)


def begun() -> WorkerPool:
    pool = WorkerPool(1)
    pool.submit(sleep, 0).result()
    return pool


def is_lost(future: Future[Any]) -> bool:
    return future.cancelled() or isinstance(future.exception(), Exception)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[threading.ExceptHookArgs]:
    """What threads end with."""
    found: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", found.append)
    return found


@pytest.mark.parametrize("killed", [False, True])
def test_a_pool_ends_in_the_middle_of_an_answer(
    said: list[threading.ExceptHookArgs], monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Its thread, which just then reads one of 4 MB that nobody writes on, ends too, and in silence.

    Whether the pool is ended, or its worker alone, as a machine out of memory does it.
    """
    reading, read = threading.Event(), Pipe._read_some

    def in_the_middle(pipe: Pipe, handle: int, size: int) -> bytes:
        if size > 2**20:
            reading.set()
            connection.wait(pipe.workers.ends())
        return read(pipe, handle, size)

    threads, pool = threading.active_count(), WorkerPool(1)
    worker = pool.submit(os.getpid).result()
    monkeypatch.setattr(Pipe, "_read_some", in_the_middle)
    answers = [pool.submit(answer, 4) for _ in range(3)]
    assert reading.wait(LONG)
    if killed:
        os.kill(worker, signal.SIGKILL)
        assert all(isinstance(each.exception(LONG), BrokenProcessPool) for each in answers)
    pool.kill()
    assert all(is_lost(each) for each in answers) and not said
    assert threading.active_count() == threads, "the thread of a pool is left"


def test_a_pool_is_ended_whether_its_worker_is_busy_or_not(said: list[threading.ExceptHookArgs]) -> None:
    pool = begun()
    busy = [pool.submit(sleep, 600) for _ in range(5)]
    pool.kill()
    assert all(is_lost(each) for each in busy) and not said
    WorkerPool(2).kill()  # none of them is started
    pool.kill()  # once more does nothing


@pytest.mark.parametrize("by_another", [False, True])
def test_a_pool_ends_while_more_is_handed_over_than_a_pipe_holds(
    said: list[threading.ExceptHookArgs], by_another: bool
) -> None:
    pool = begun()
    futures = [pool.submit(sleep, 600, bytes(2**20)) for _ in range(4)]
    time.sleep(0.2)  # the pipe is full by then; the test holds anyway
    if by_another:
        pool._workers.kill()
        assert all(isinstance(each.exception(LONG), BrokenProcessPool) for each in futures)
    ending = threading.Thread(target=pool.kill, daemon=True)
    ending.start()
    ending.join(LONG)
    assert not ending.is_alive() and all(is_lost(each) for each in futures) and not said
