"""The one thread that owns the engine, and the way from the event loop to it and back.

    event loop  --add, abort-->  deque  -->  engine thread: take commands, step, take commands, step ...
    event loop  <--one call for all tokens of a frame--

Nobody else touches model, caches or scheduler, so nothing in them is locked. First and last tokens are told at once,
those between them once a frame: telling costs more than a step of a small model. A job's tokens wait in a list of its
own until its request takes them, all at once: a slow client costs a longer list, never a pause of the engine. The list
is no longer than the answer. What the engine raises ends every job with an error and the thread with it: `on_death` is
told, and the process is expected to end.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from qwenvl.serve.errors import ApiError, failed, invalid

STATS_EVERY = 0.25
"""Seconds between two looks at the engine's figures."""

FRAME = 1 / 60
"""Seconds between two hand-overs of tokens that are neither an answer's first nor its last: a screen shows no more."""


@runtime_checkable
class Steps(Protocol):
    """What the worker needs of an engine (`qwenvl.generate.engine.Engine`; tests bring a scripted one)."""

    @property
    def busy(self) -> bool:
        """Whether a row is waiting or running."""
        ...

    def add(self, prompt: Any, settings: Any, grammar: Any, *, salt: bytes) -> int:
        """Take a row and number it. Raises ValueError for one that cannot be answered."""
        ...

    def abort(self, request: int) -> None:
        """Forget a row."""
        ...

    def step(self) -> list[Any]:
        """One quantum of work: the tokens that it wrote."""
        ...

    def queue(self) -> list[int]:
        """The rows that wait for a place; whose turn is next stands first."""
        ...

    def stats(self) -> Any:
        """The engine's figures."""
        ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer to be written."""

    prompt: Any
    settings: Any
    grammar: Any = None


@dataclass(eq=False, kw_only=True)
class Job:
    """The rows of one request. All of it but `rows` and `salt` belongs to the event loop."""

    rows: Sequence[Row]
    salt: bytes = b""
    whole: bool = False
    """Nobody wants to know of a row before it has ended."""
    submitted: float = field(default_factory=time.monotonic)
    placed: float | None = None
    """When the first of its rows had a place in the engine, on the clock of `submitted`."""
    first_token: float | None = None
    """When the first token came."""
    ahead: int | None = None
    """Rows of the engine's queue whose turn is before its own; None where it does not wait, or it is not known yet."""
    error: ApiError | None = None
    """Set when the job is over without an answer."""
    unfinished: int = 0
    cancelled: bool = False
    _written: list[tuple[int, Any]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _taken: asyncio.Event = field(default_factory=asyncio.Event)

    async def accepted(self, seconds: float) -> None:
        """Wait, at most so long, until the engine has taken the job. Raises the ApiError with which it did not."""
        if self.error is None and not self._taken.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._taken.wait()
            except TimeoutError:
                return
        if self.error is not None:
            raise self.error

    async def take(self, seconds: float, most: int) -> list[tuple[int, Any]]:
        """What was written since the last call, as (row, token); empty where nothing came in so many seconds.

        At most so many at a time, and others have their turn before the next: a long list must not hold up everybody on
        the event loop. Raises the ApiError that ended the job, once what was written before has been taken.
        """
        if self._news.is_set():
            await asyncio.sleep(0)
        else:
            alarm = asyncio.get_running_loop().call_later(seconds, self._news.set)
            try:
                await self._news.wait()
            finally:
                alarm.cancel()
        written, self._written = self._written[:most], self._written[most:]
        if not self._written and self.error is None:
            self._news.clear()
        if not written and self.error is not None:
            raise self.error
        return written

    def put(self, row: int, token: Any) -> None:
        """One token of a row."""
        self._written.append((row, token))
        if token.end is not None or not self.whole:
            self._news.set()

    def accept(self) -> None:
        """The engine has taken it."""
        self._taken.set()

    def fail(self, error: ApiError) -> None:
        """End without an answer."""
        self.error = self.error or error
        self._news.set()
        self._taken.set()


class Worker:
    """Starts with `start`, on the event loop that it will report to; ends with `stop`."""

    def __init__(
        self,
        load: Callable[[], Steps],
        *,
        on_ready: Callable[[], None] | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        """`on_failure` hears why a request could not be taken where that was no fault of its own."""
        self._load, self._on_ready, self.on_death, self._on_failure = load, on_ready, on_death, on_failure
        self._commands: deque[tuple[str, Job]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: set[Job] = set()
        self.ready = False
        """Whether the model is loaded and the thread runs."""
        self.loaded = False
        """Whether the model was ever loaded."""
        self.death: BaseException | None = None
        """What ended the thread."""
        self.stats: Any = None
        """The engine's figures, at most a moment old."""
        self.rows = 0
        """Answers that are waiting or being written."""

    @property
    def alive(self) -> bool:
        """Whether the thread runs, or has not been started."""
        return self.death is None

    def start(self) -> None:
        """Begin to load the model; call on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Give a job to the engine; its tokens and its end come through `job.take`."""
        if self.death is not None:
            job.fail(engine_failed())
            return
        job.unfinished = len(job.rows)
        self.rows += len(job.rows)
        self._jobs.add(job)
        self._command("add", job)

    def cancel(self, job: Job) -> None:
        """Stop a job if it is not over; its places in the engine are free within a quantum."""
        if job.cancelled or job not in self._jobs:
            return
        job.cancelled = True
        self._forget(job)
        self._command("abort", job)

    def end_all(self, error: ApiError) -> None:
        """End every job with this error."""
        for job in list(self._jobs):
            self.cancel(job)
            job.fail(error)

    def stop(self, seconds: float = 5.0) -> None:
        """End the thread after its present quantum; waits at most so many seconds for it."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # === On the event loop ===

    def _command(self, what: str, job: Job) -> None:
        self._commands.append((what, job))
        self._wake.set()

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        self.rows -= job.unfinished
        job.unfinished = 0

    def _deliver(self, written: list[tuple[Job, int, Any]], now: float) -> None:
        for job, row, token in written:
            if job not in self._jobs:
                continue  # cancelled meanwhile
            if job.first_token is None:
                job.first_token = now
            job.put(row, token)
            if token.end is not None:
                job.unfinished -= 1
                self.rows -= 1
                if not job.unfinished:
                    self._jobs.discard(job)

    def _placed(self, jobs: list[Job], now: float) -> None:
        for job in jobs:
            job.placed = job.placed or now
            job.ahead = None

    def _queued(self, ahead: dict[Job, int]) -> None:
        for job, rows in ahead.items():
            job.ahead = rows if job.placed is None else None

    def _refused(self, job: Job, error: Exception) -> None:
        if not isinstance(error, ValueError) and self._on_failure is not None:
            self._on_failure(error)
        if job in self._jobs:
            self._forget(job)
            job.fail(invalid(str(error)) if isinstance(error, ValueError) else failed())

    def _ready(self, stats: Any) -> None:
        self.ready, self.loaded, self.stats = True, True, stats
        if self._on_ready is not None:
            self._on_ready()

    def _died(self, error: BaseException) -> None:
        self.death, self.ready = error, False
        for job in list(self._jobs):
            self._forget(job)
            job.fail(engine_failed())
        if self.on_death is not None:
            self.on_death(error)

    # === In the engine thread ===

    def _run(self) -> None:
        desk = None
        try:
            engine = self._load()
            desk = _Desk(engine, self)
            self._call(self._ready, engine.stats())
            self._serve(engine, desk)
        except BaseException as error:  # whatever it was, nobody answers any more: all must be told
            if desk is not None:
                desk.tell(time.monotonic())
            self._call(self._died, error)

    def _serve(self, engine: Steps, desk: "_Desk") -> None:
        while True:
            self._wake.clear()  # before the look at what it wakes for: what comes later sets it again
            if self._stopping:
                return
            while self._commands:
                what, job = self._commands.popleft()
                (desk.add if what == "add" else desk.abort)(job)
            if engine.busy:
                desk.step()
            else:
                desk.look(time.monotonic())
                self._wake.wait()

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._stopping = True


class _Desk:
    """Where the engine's thread keeps whose rows are whose, and what it has not told the event loop."""

    def __init__(self, engine: Steps, worker: Worker) -> None:
        self._engine, self._worker = engine, worker
        self._rows: dict[int, tuple[Job, int]] = {}
        self._waiting: set[int] = set()  # rows that had no place when it was last looked
        self._silent: set[int] = set()  # rows of which no token was told
        self._written: list[tuple[Job, int, Any]] = []
        self._told = self._looked = 0.0

    def add(self, job: Job) -> None:
        """Give the rows of a job to the engine: all of them, or none and the reason to the job."""
        added: list[int] = []
        try:
            for row in job.rows:
                added.append(self._engine.add(row.prompt, row.settings, row.grammar, salt=job.salt))
        except Exception as error:  # a request that cannot be taken is no fault of the others
            for request in added:
                self._engine.abort(request)
            self._worker._call(self._worker._refused, job, error)
            return
        self._rows.update({request: (job, number) for number, request in enumerate(added)})
        self._waiting.update(added)
        self._silent.update(added)
        self._worker._call(job.accept)

    def abort(self, job: Job) -> None:
        """Forget the rows of a job."""
        for request in [request for request, (owner, _) in self._rows.items() if owner is job]:
            self._engine.abort(request)
            self._forget(request)

    def step(self) -> None:
        """One quantum, and what must be told of it now."""
        began, urgent = time.monotonic(), False
        tokens = self._engine.step()
        if self._waiting:
            self._place(began)
        for token in tokens:
            if token.request not in self._rows:
                continue
            self._written.append((*self._rows[token.request], token))
            if token.request in self._silent or token.end is not None:
                urgent = True
                self._silent.discard(token.request)
            if token.end is not None:
                self._forget(token.request)
        now = time.monotonic()
        if self._written and (urgent or now - self._told >= FRAME):
            self.tell(now)
        if now - self._looked >= STATS_EVERY:
            self.look(now)

    def tell(self, now: float) -> None:
        """Hand over what was written."""
        written, self._written, self._told = self._written, [], now
        if written:
            self._worker._call(self._worker._deliver, written, now)

    def look(self, now: float) -> None:
        """Read the engine's figures, and tell those who wait how long their queue is."""
        self._looked = now
        self._worker.stats = self._engine.stats()
        ahead: dict[Job, int] = {}
        for place, request in enumerate(self._engine.queue() if self._waiting else ()):
            ahead.setdefault(self._rows[request][0], place)
        if ahead:
            self._worker._call(self._worker._queued, ahead)

    def _place(self, began: float) -> None:
        """Rows that wait no longer had their place when the quantum began."""
        left = self._waiting.intersection(self._engine.queue())
        placed, self._waiting = self._waiting - left, left
        if placed:
            jobs = [self._rows[request][0] for request in placed]
            self._worker._call(self._worker._placed, jobs, began)

    def _forget(self, request: int) -> None:
        del self._rows[request]
        self._waiting.discard(request)
        self._silent.discard(request)


def engine_failed() -> ApiError:
    """What every job hears when the engine has ended."""
    return failed("The engine has failed and this server is about to restart; try again.")
