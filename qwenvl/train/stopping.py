"""A request to stop: SIGTERM, or Ctrl-C once. It is noted, the update is finished and saved, and the run ends.

Ctrl-C a second time ends everything at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ASKED = threading.Event()
_HEARING: list[Callable[[], None]] = []
"""What else a request does in this process, outermost first; empty while nobody listens."""


def asked() -> bool:
    """Whether this process was asked to stop while it was `hearing`."""
    return _ASKED.is_set()


@contextmanager
def hearing(broadcast: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Note a request to stop instead of dying of it, and hand it on with `broadcast` as often as it comes.

    Blocks may stand in each other. Only the main thread can listen; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outermost = not _HEARING
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    _HEARING.append(broadcast)
    try:
        if outermost and before[signal.SIGTERM] is not note:
            _ASKED.clear()
            signal.signal(signal.SIGTERM, note)
            signal.signal(signal.SIGINT, _interrupted)
        yield
    finally:
        _HEARING.pop()
        if outermost:
            for number, handler in before.items():
                signal.signal(number, handler)


def note(*_: object) -> None:
    """A handler of SIGTERM: remember that it came."""
    _ASKED.set()
    for broadcast in _HEARING:
        broadcast()


def _interrupted(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C asks, the second ends. Told without Python's buffers: it may come in the middle of a print."""
    if asked():
        signal.default_int_handler(number, frame)
    os.write(
        sys.__stderr__.fileno() if sys.__stderr__ else 2,
        b"\nstopping when this update is done and saved; Ctrl-C once more ends at once.\n",
    )
    note()
