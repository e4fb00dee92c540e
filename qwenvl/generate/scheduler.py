"""Who works next: book-keeping of requests, room and time, without a tensor.

    add --> waiting --admission, room reserved--> reading --> running --> ended
               ^                                     |           |
               +-------- pre-empted, once -----------+-----------+

Work comes in quanta: one token for every running row, a chunk of prompts, or a slice of the vision encoder. Behind each
of the last two, running rows get at least `share` times the time that it took, so that newcomers stretch an answer by
a bounded factor and the gap between two of its tokens by one quantum. First come, first served, among requests of one
salt; salts take turns at admission.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

CHUNK = 128
"""Tokens of a prompt that are read at once. Chunks end at its multiples, and at a prompt's own cuts, whatever else is
going on, so that what a prompt computes does not depend on the load."""

AHEAD = 256
"""Tokens of an answer for which room is reserved at admission."""

GROUP = 8
"""Most prompts whose chunks are read together."""

TOGETHER = 8
"""Chunks of a group have one length up to a multiple of this; shorter ones are filled up."""


@dataclass(frozen=True)
class Start:
    """Give a request its row, with what is known of its prompt already; then call `started`."""

    row: int


@dataclass(frozen=True)
class Preempt:
    """Take a request's row away; its tokens are kept and it will start again."""

    row: int


@dataclass(frozen=True)
class See:
    """Encode some images of these requests, oldest first."""

    rows: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """Read the tokens from `start` on of these prompts, each up to its own stop."""

    rows: tuple[int, ...]
    start: int
    stops: tuple[int, ...]


@dataclass(frozen=True)
class Decode:
    """One token for each of these rows."""

    rows: tuple[int, ...]


Quantum: TypeAlias = Start | Preempt | See | Read | Decode


@dataclass(slots=True)
class _Job:
    """What is known of a request."""

    number: int
    prompt: int
    most: int
    """Tokens of prompt and answer at most."""
    key: Hashable
    """Requests of equal keys have equal prompts."""
    salt: bytes
    cuts: tuple[int, ...] = ()
    length: int = 0
    """Tokens in its row."""
    known: int = 0
    """Tokens of prompt and answer so far."""
    reserved: int = 0
    started: bool = False
    unseen: bool = False
    preempted: int = 0

    @property
    def is_read(self) -> bool:
        return self.started and self.length >= self.prompt


class Scheduler:
    """At most `rows` requests at a time in a cache of `capacity` tokens, of which `slot_tokens(n)` hold a row of n."""

    def __init__(
        self,
        *,
        rows: int,
        capacity: int,
        slot_tokens: Callable[[int], int],
        share: float = 1.0,
        ahead: int = 1,
    ) -> None:
        self.rows, self.capacity, self.slot_tokens = rows, capacity, slot_tokens
        self.share, self.ahead = share, ahead
        self.preemptions = 0
        self._jobs: dict[int, _Job] = {}
        self._waiting: OrderedDict[bytes, deque[int]] = (
            OrderedDict()
        )  # the salt whose turn it is stands first
        self._admitted: list[int] = []  # oldest admission first: reading and running
        self._owed = 0.0

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._jobs)

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return len(self._jobs) - len(self._admitted)

    def queue(self) -> list[int]:
        """Requests without a place; whose turn is next stands first."""
        turns = zip_longest(*self._waiting.values())
        return [number for turn in turns for number in turn if number is not None]

    @property
    def running(self) -> int:
        """Requests with a place."""
        return len(self._admitted)

    @property
    def waits(self) -> bool:
        """Whether answers are being written that wait while others work."""
        return self.share > 0 and bool(self._running())

    @property
    def reserved(self) -> int:
        """Tokens of the cache that are spoken for."""
        return sum(self._jobs[number].reserved for number in self._admitted)

    def fits(self, most: int) -> bool:
        """Whether a request of so many tokens, prompt and answer, can ever be finished."""
        return self.slot_tokens(most) <= self.capacity

    def add(
        self,
        number: int,
        *,
        prompt: int,
        most: int,
        key: Hashable = None,
        salt: bytes = b"",
        cuts: tuple[int, ...] = (),
    ) -> None:
        """Let a request wait; numbers grow.

        `most`: tokens of prompt and answer together, which must `fit`; `cuts`: where its chunks end too (`stop`).
        """
        assert number not in self._jobs and 0 < prompt < most and self.fits(most)
        self._jobs[number] = _Job(
            number, prompt, most, (salt, number if key is None else key), salt, cuts, known=prompt
        )
        self._waiting.setdefault(salt, deque()).append(number)

    def remove(self, number: int) -> None:
        """A request is over, in whatever phase; its room is free."""
        job = self._jobs.pop(number, None)
        if job is None:
            return
        if number in self._admitted:
            self._admitted.remove(number)
        else:
            self._waiting[job.salt].remove(number)
            if not self._waiting[job.salt]:
                del self._waiting[job.salt]
        if not self._running():
            self._owed = 0.0

    def next(self) -> Quantum | None:
        """What to do now; None while nothing is there to do."""
        self._admit()
        running = self._running()
        reading = [job for job in self._jobs_admitted() if not job.is_read]
        if running and (self._owed > 0 or not reading):
            return self._grow(running) or Decode(tuple(sorted(job.number for job in self._running())))
        if not reading:
            return None
        return self._advance(reading, alone=bool(running) and self.share > 0)

    def started(self, row: int, *, read: int, unseen: bool) -> None:
        """A row was given: so much of the prompt is in it; `unseen`: images of the rest must be encoded first."""
        job = self._jobs[row]
        job.started, job.length, job.unseen = True, read, unseen

    def done(self, quantum: See | Read | Decode, seconds: float, *, seen: Collection[int] = ()) -> None:
        """A quantum is complete, after so many seconds of its own. `seen`: whose images are all encoded."""
        if isinstance(quantum, Decode):
            self._owed = max(0.0, self._owed - seconds)
            for row in quantum.rows:
                job = self._jobs[row]
                job.length += 1
                job.known = max(job.known, job.length + 1)
            return
        self.slept(seconds)  # of those who were running already
        if isinstance(quantum, See):
            for row in seen:
                self._jobs[row].unseen = False
        else:
            for row, stop in zip(quantum.rows, quantum.stops, strict=True):
                job = self._jobs[row]
                job.length = stop
                job.known = max(job.known, stop + (stop == job.prompt))

    def slept(self, seconds: float) -> None:
        """Running rows have waited so long for others, and are owed their share of it."""
        if self._running():
            self._owed += self.share * seconds

    # === Admission ===

    def _admit(self) -> None:
        """Requests take their places while there is room; the head of a queue is never passed by its own."""
        while self._waiting and len(self._admitted) < self.rows:
            salt, queue = next(iter(self._waiting.items()))
            job = self._jobs[queue[0]]
            wanted = self.slot_tokens(job.most if job.preempted else min(job.most, job.known + AHEAD))
            if self.reserved + wanted > self.capacity:
                return
            job.reserved = wanted
            self._admitted.append(queue.popleft())
            self._waiting.move_to_end(salt)
            if not queue:
                del self._waiting[salt]

    def _grow(self, running: list[_Job]) -> Preempt | None:
        """Reserve what the next tokens need; where there is none left, the youngest that may go goes."""
        for job in running:
            needed = self.slot_tokens(min(job.most, job.length + 1))
            while needed > job.reserved:
                if self.reserved - job.reserved + needed <= self.capacity:
                    job.reserved = needed
                    break
                # Who was pre-empted once has room for all it may need, so that it neither grows nor goes again.
                youngest = [each for each in self._jobs_admitted() if not each.preempted][-1]
                if youngest.started:
                    return self._preempt(youngest)
                self._wait_again(youngest)
        return None

    def _preempt(self, job: _Job) -> Preempt:
        self._wait_again(job)
        job.preempted, job.length, job.started = job.preempted + 1, 0, False
        self.preemptions += 1
        return Preempt(job.number)

    def _wait_again(self, job: _Job) -> None:
        """Its place and its room are for others."""
        self._admitted.remove(job.number)
        job.reserved = 0
        queue = self._waiting.setdefault(job.salt, deque())
        self._waiting[job.salt] = deque(
            sorted([job.number, *queue])
        )  # numbers follow one another as requests come
        self._waiting.move_to_end(job.salt, last=False)

    # === Reading ===

    def _advance(self, reading: list[_Job], *, alone: bool) -> Quantum:
        """The next quantum of those whose prompts are being read, oldest first."""
        limit = 1 if alone else self.ahead
        begun = {job.key for job in reading if job.started}
        for job in reading[:limit]:
            if not job.started and job.key not in begun:
                return Start(job.number)
            begun.add(job.key)
        able = [job for job in reading if job.started]
        assert able, "the oldest can always be started"
        if unseen := tuple(job.number for job in able[:limit] if job.unseen):
            return See(unseen)
        return self._chunk(able[:limit])

    def _chunk(self, able: list[_Job]) -> Read:
        first = able[0]
        group = [job for job in able if _form(job) == _form(first)][:GROUP]
        stops = tuple(stop(job.length, job.prompt, job.cuts) for job in group)
        return Read(tuple(job.number for job in group), first.length, stops)

    def _running(self) -> list[_Job]:
        return [job for job in self._jobs_admitted() if job.is_read]

    def _jobs_admitted(self) -> Iterator[_Job]:
        return (self._jobs[number] for number in self._admitted)


def _form(job: _Job) -> tuple[int, int]:
    """Where a job's next chunk begins, and its length filled up."""
    return job.length, padded(stop(job.length, job.prompt, job.cuts) - job.length)


def stop(start: int, prompt: int, cuts: Iterable[int]) -> int:
    """Where the chunk ends that begins at `start`: at a multiple of `CHUNK`, at a cut before it, or with the prompt."""
    end = min(prompt, (start // CHUNK + 1) * CHUNK)
    return next((cut for cut in cuts if start < cut < end), end)


def padded(tokens: int) -> int:
    """The length that a chunk is filled up to."""
    return -(-tokens // TOGETHER) * TOGETHER
