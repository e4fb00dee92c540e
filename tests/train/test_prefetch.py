"""One micro-batch is made while another one is learned from, in its order, and never more than one."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from qwenvl.runtime import on_device
from qwenvl.train.objectives import Loss, Objective
from qwenvl.train.prefetch import DevicePrefetcher

CPU = torch.device("cpu")
LONG = 60.0
"""Seconds until a test gives up; none takes a hundredth of it."""


def reading(batch: Callable[[Sequence[int]], Any]) -> Objective:
    def loss(_: Any) -> Loss:
        raise AssertionError("nothing is learned here")

    return Objective(
        module=nn.Identity(),
        batch=batch,
        placed=lambda made: ("placed", made),
        loss=loss,
        flops=lambda _: 0.0,
    )


def test_the_next_one_is_made_meanwhile_and_no_other() -> None:
    begun = {number: threading.Event() for number in range(3)}
    threads = set()

    def batch(documents: Sequence[int]) -> int:
        threads.add(threading.current_thread())
        begun[documents[0]].set()
        return documents[0]

    ahead = DevicePrefetcher(reading(batch), [[0], [1], [2]], CPU)
    assert begun[0].wait(LONG) and ahead() == ("placed", 0)
    ahead.settle()
    assert not begun[1].is_set(), "a forward pass has Python to itself"
    ahead.read_ahead()
    assert begun[1].wait(LONG), "though nobody has asked for it"
    ahead.read_ahead()
    ahead.settle()
    assert not begun[2].is_set()
    assert ahead() == ("placed", 1) and ahead() == ("placed", 2)
    ahead.read_ahead()
    ahead.settle()
    ahead.close()
    (thread,) = threads
    assert thread is not threading.current_thread() and not thread.is_alive()


def test_what_fails_is_told_when_it_is_asked_for() -> None:
    def batch(documents: Sequence[int]) -> int:
        return 6 // documents[0]

    ahead = DevicePrefetcher(reading(batch), [[2], [0], [3]], CPU)
    assert ahead() == ("placed", 3)
    ahead.settle()  # says nothing
    with pytest.raises(ZeroDivisionError):
        ahead()
    ahead.close()


def test_what_was_announced_and_not_asked_for_keeps_nobody_waiting() -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def batch(documents: Sequence[int]) -> None:
        begun.set()
        assert goes_on.wait(LONG)

    ahead = DevicePrefetcher(reading(batch), [[0], [1]], CPU)
    assert begun.wait(LONG)
    goes_on.set()
    ahead.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("prefetch")]


def test_on_a_cpu_a_batch_is_where_it_is() -> None:
    made = torch.arange(3)
    assert on_device(made, CPU) is made
