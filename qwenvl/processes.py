"""Processes that work for this one: they leave signals to it, and end when it ends, however that comes.

A terminal, `timeout` and job schedulers send SIGINT and SIGTERM to every process of a group or a job. One process, the
one that a person started, decides what follows from that; the others hear it from there.
"""

import errno
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
"""What asks a whole group of processes to stop."""


STOPPED = 75
"""Exit status of a command that was asked to stop and can go on (EX_TEMPFAIL of sysexits.h: try again later)."""


class Stopped(SystemExit):
    """The command was asked to stop, and what it has done is kept."""

    def __init__(self, *, reported: bool = False) -> None:
        super().__init__(STOPPED)
        self.reported = reported
        """Whether the command itself has said what is done."""


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM raises `Stopped` in the main thread, so that what was begun is put away; elsewhere nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is on its way
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit as error:
        if not asked or isinstance(error, Stopped):
            raise
        raise Stopped from None  # a library on the way turned it into another exit: Ray makes it one of status 1
    finally:
        signal.signal(signal.SIGTERM, before)


class Worker(SpawnProcess):
    """A spawned process that is deaf to `SIGNALS` from its first moment on and ends with its parent.

    Because it does not hear SIGTERM, `terminate` kills it.
    """

    def start(self) -> None:
        """Start it with `SIGNALS` blocked: one that comes while it still imports waits until `listen`."""
        resource_tracker.ensure_running()  # else it would be started in between, and unblock them
        with deaf():
            super().start()

    def run(self) -> None:
        """In the new process: watch the parent, then do the work."""
        _end_with_parent()
        self.listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            super().run()
        finally:  # an interpreter that leaves forgets its handlers, not what it ignores: what comes now is too late
            for each in SIGNALS:
                signal.signal(each, signal.SIG_IGN)

    def listen(self) -> None:
        """Say what `SIGNALS` do in this process; called before the first can arrive."""
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)

    def terminate(self) -> None:
        """End it at once."""
        self.kill()


class Workers(SpawnContext):
    """Where processes of this kind come from; it knows them."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[Worker] = []

    def Process(self, *args: Any, **keywords: Any) -> Worker:  # type: ignore[override]
        """One more process, not started yet."""
        worker = Worker(*args, **keywords)
        self._started.append(worker)
        return worker

    def ends(self) -> list[int]:
        """What can be read from when a worker has ended, one of each."""
        return [worker.sentinel for worker in self._started if worker.pid is not None]

    def kill(self) -> None:
        """End all of them at once."""
        for worker in self._started:
            if worker.pid is not None:
                with suppress(ValueError, ProcessLookupError):  # ended and forgotten before
                    worker.kill()


class Pipe(connection.Connection):
    """An end of a pipe to or from workers, which waits for nobody once one of them has ended.

    The system would not tell: this process and the other workers hold the far end too. A worker that is killed in the
    middle of an answer would keep its reader waiting for the rest of it.
    """

    workers: Workers

    def _recv(self, size: int) -> Any:
        return super()._recv(size, self._read_some)  # type: ignore[misc]

    def _send(self, data: Any) -> None:
        super()._send(data, self._write_some)  # type: ignore[misc]

    def _read_some(self, handle: int, size: int) -> bytes:
        if self not in connection.wait([self, *self.workers.ends()]):
            raise EOFError("a worker has ended")
        return os.read(handle, size)

    def _write_some(self, handle: int, data: Any) -> int:
        """No more at a time than there is certainly room for."""
        poll, ends = select.poll(), self.workers.ends()
        poll.register(handle, select.POLLOUT)
        for end in ends:
            poll.register(end, select.POLLIN)
        if {each for each, _ in poll.poll()} & {*ends}:
            raise BrokenPipeError(errno.EPIPE, "a worker has ended")
        return os.write(handle, data[: select.PIPE_BUF])


ForkingPickler.register(Pipe, connection.reduce_connection)  # type: ignore[attr-defined]  # a plain one in a worker


class WorkerPool(ProcessPoolExecutor):
    """A pool of `Worker`s that can be ended whatever they are doing, and is broken whenever one of them is killed.

    Futures are not to be cancelled one by one: in Python 3.11 a pool that breaks stumbles over the first that was, and
    whoever waits for another one waits for ever.
    """

    def __init__(
        self, number: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
    ) -> None:
        self._workers = Workers()
        super().__init__(number, self._workers, initializer, initargs)
        queues: Any = (self._result_queue, self._call_queue)  # type: ignore[attr-defined]
        for pipe in (queues[0]._reader, queues[1]._writer):
            pipe.__class__, pipe.workers = Pipe, self._workers

    def kill(self) -> None:
        """End the workers at once and wait until the pool is gone: futures that are not done are cancelled or fail.

        Its thread must not outlive this: where the process leaves meanwhile, both would close the same pipe.
        """
        self._workers.kill()
        self.shutdown(cancel_futures=True)


def end_workers() -> None:
    """End whatever still works for this process: before it leaves, because leaving waits for its children."""
    for child in multiprocessing.active_children():
        child.kill()


def limit_memory(megabytes: int) -> None:
    """No more than so many from here on for this process, and no core dumps; where the system has such limits."""
    try:
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = taken + megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


@contextmanager
def deaf() -> Iterator[None]:
    """Let `SIGNALS` to this thread wait; a process or thread that is started meanwhile never hears them.

    What a library puts in the place of a handler meanwhile is taken back.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handlers = {each: signal.getsignal(each) for each in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, handler in handlers.items():
                signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Leave as soon as the parent has gone, also when it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
