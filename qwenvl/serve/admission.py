"""Who may begin: how many answers are unfinished, of everybody and of each key."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from qwenvl.serve.errors import busy, invalid
from qwenvl.serve.limits import Limits


@runtime_checkable
class Wants(Protocol):
    """How much a request asks for."""

    @property
    def answers(self) -> int:
        """How many are written."""
        ...

    @property
    def images(self) -> int:
        """How many are shown."""
        ...


class Admission:
    """Counts what is unfinished and refuses what would be too much, with the time after which to try again.

    `rows` are the answers that the engine writes together; with `per_key` one key may have
    `Limits.requests_in_flight` of them and no more (without keys everybody is the same client).
    """

    def __init__(self, limits: Limits, *, rows: int, per_key: bool) -> None:
        self._limits, self._rows, self._per_key = limits, rows, per_key
        self._requests: Counter[str] = Counter()
        self._images: Counter[str] = Counter()
        self._seconds = 1.0  # how long a request takes, a running mean
        self.answers = 0
        """Admitted and not over."""

    def wait(self) -> int:
        """Seconds after which a place may be free."""
        return math.ceil(self._seconds * max(1.0, self.answers / self._rows - 1))

    def require_place(self, answers: int = 1) -> None:
        """Raises ApiError 429 where so many answers more are too many."""
        places = self._rows + self._limits.queue
        if answers > places:
            raise invalid(f"{answers} answers are asked for, but this server has {places} places.", "n")
        if self.answers + answers > places:
            raise busy(
                f"All {self._rows} places and the queue of {self._limits.queue} are taken; try again later.",
                seconds=self.wait(),
            )

    @contextmanager
    def admit(self, client: str, wanted: Wants) -> Iterator[None]:
        """Holds the places of a request. Raises ApiError 429 where there are none, or the client has enough."""
        self.require_place(wanted.answers)
        requests, images = self._requests[client], self._images[client]
        if self._per_key and requests >= self._limits.requests_in_flight:
            raise busy(
                f"This key has {requests} unfinished requests, the most it may have.", seconds=self.wait()
            )
        if images and images + wanted.images > self._limits.images_in_flight:
            raise busy(
                f"{images} images of unfinished requests are held, and at most {self._limits.images_in_flight} may "
                "be; try again later.",
                seconds=self.wait(),
            )
        started = time.monotonic()
        self._count(client, wanted, 1)
        try:
            yield
        finally:
            self._count(client, wanted, -1)
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)

    def _count(self, client: str, wanted: Wants, sign: int) -> None:
        self.answers += sign * wanted.answers
        self._requests[client] += sign
        self._images[client] += sign * wanted.images
        for counts in (self._requests, self._images):
            if not counts[client]:
                del counts[client]
