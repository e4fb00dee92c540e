"""Processes that work for this one."""

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from qwenvl.processes import WorkerPool


def answer(megabytes: int) -> bytes:
    return bytes(megabytes * 2**20)


def sleep(seconds: float) -> None:
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


def test_a_pool_is_ended_in_the_middle_of_an_answer(said: list[threading.ExceptHookArgs]) -> None:
    """Its thread, which just then reads one of 60 MB that nobody writes on, ends too, and in silence."""
    threads, pool = threading.active_count(), begun()
    start = time.monotonic()
    pool.submit(answer, 60).result()
    took = time.monotonic() - start
    pool.kill()
    for part in (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
        pool = begun()
        answers = [pool.submit(answer, 60) for _ in range(3)]
        time.sleep(part * took)
        pool.kill()
        assert all(is_lost(each) for each in answers[1:]) and not said
    assert threading.active_count() == threads, "the thread of a pool is left"


def test_a_pool_is_ended_whether_its_worker_is_busy_or_not(said: list[threading.ExceptHookArgs]) -> None:
    pool = begun()
    busy = [pool.submit(sleep, 600) for _ in range(5)]
    pool.kill()
    assert all(is_lost(each) for each in busy) and not said
    WorkerPool(2).kill()  # none of them is started
    pool.kill()  # once more does nothing
