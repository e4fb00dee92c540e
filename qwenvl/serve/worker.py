"""The one thread that owns the engine, and the way from the event loop to it and back.

    event loop  --add, abort-->  deque  -->  engine thread: take commands, step, take commands, step ...
    event loop  <--one call for all tokens of a step--

Nobody else touches model, caches or scheduler, so nothing in them is locked. A job's tokens wait in a list of its own
until its request takes them, all at once: a slow client costs a longer list, never a pause of the engine. The list is
no longer than the answer. What the engine raises ends every job with an error and the thread with it: `on_death` is
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
    submitted: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    """When the first token came, on the clock of `submitted`."""
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

    async def take(self, seconds: float) -> list[tuple[int, Any]]:
        """All that was written since the last call, as (row, token); empty where nothing came in so many seconds.

        Raises the ApiError that ended the job, once what was written before has been taken.
        """
        if not self._written and self.error is None:
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            except TimeoutError:
                return []
        self._news.clear()
        written, self._written = self._written, []
        if not written and self.error is not None:
            raise self.error
        return written

    def put(self, row: int, token: Any) -> None:
        """One token of a row."""
        self._written.append((row, token))
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
    ) -> None:
        self._load, self._on_ready, self.on_death = load, on_ready, on_death
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

    def _deliver(self, written: list[tuple[Job, int, Any]]) -> None:
        now = time.monotonic()
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

    def _refused(self, job: Job, error: ApiError) -> None:
        if job in self._jobs:
            self._forget(job)
            job.fail(error)

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
        try:
            engine = self._load()
            self._call(self._ready, engine.stats())
            self._serve(engine)
        except BaseException as error:  # whatever it was, nobody answers any more: all must be told
            self._call(self._died, error)

    def _serve(self, engine: Steps) -> None:
        running: dict[int, tuple[Job, int]] = {}
        looked = time.monotonic()
        while not self._stopping:
            self._wake.clear()
            while self._commands:
                what, job = self._commands.popleft()
                (self._add if what == "add" else self._abort)(engine, job, running)
            if not engine.busy:
                self._look(engine)
                self._wake.wait()
                continue
            tokens = engine.step()
            written = [(*running[t.request], t) for t in tokens if t.request in running]
            for token in tokens:
                if token.end is not None:
                    running.pop(token.request, None)
            if written:
                self._call(self._deliver, written)
            if (now := time.monotonic()) - looked > STATS_EVERY:
                looked = now
                self._look(engine)

    def _look(self, engine: Steps) -> None:
        self.stats = engine.stats()

    def _add(self, engine: Steps, job: Job, running: dict[int, tuple[Job, int]]) -> None:
        added: list[int] = []
        try:
            for row in job.rows:
                added.append(engine.add(row.prompt, row.settings, row.grammar, salt=job.salt))
        except Exception as error:  # a request that cannot be taken is no fault of the others
            for request in added:
                engine.abort(request)
            self._call(self._refused, job, invalid(str(error)) if isinstance(error, ValueError) else failed())
            return
        running.update({request: (job, number) for number, request in enumerate(added)})
        self._call(job.accept)

    def _abort(self, engine: Steps, job: Job, running: dict[int, tuple[Job, int]]) -> None:
        for request in [request for request, (owner, _) in running.items() if owner is job]:
            engine.abort(request)
            del running[request]

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._stopping = True


def engine_failed() -> ApiError:
    """What every job hears when the engine has ended."""
    return failed("The engine has failed and this server is about to restart; try again.")
