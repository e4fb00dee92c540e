"""Micro-batches made by worker processes before they are asked for."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from qwenvl.data.packing import Rows
from qwenvl.data.stream.batches import Batches
from qwenvl.processes import WorkerPool

DEPTH = 2
"""Micro-batches that each worker is ahead."""


class Prefetcher:
    """The same micro-batches as `Batches` makes, sooner.

    Which micro-batches this process reads is learned from what it asks for: every so many of an update, and the same
    ones of the next.
    """

    def __init__(self, batches: Batches, workers: int, *, update: int, end: int) -> None:
        """`update` is how many documents an update has, `end` how many the stage reads."""
        self._micro, self._update, self._end, self._depth = batches.micro, update, end, DEPTH * workers
        self._pool = WorkerPool(workers, _begin, (batches,))
        self._coming: dict[int, Future[Rows]] = {}
        self._asked: list[int] = []
        self._offsets: list[int] = []

    def __call__(self, documents: Sequence[int]) -> Rows:
        """The rows of a micro-batch; raises what making them raised, ChildProcessError when a worker was killed."""
        first = documents[0]
        try:
            for start in [first, *islice(self.following(first), self._depth)]:
                if start not in self._coming:
                    self._coming[start] = self._pool.submit(_make, range(start, start + self._micro))
            for start in [start for start in self._coming if start < first]:
                del self._coming[start]  # announced and not asked for
            return self._coming.pop(first).result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process that reads ahead was ended (the machine may be out of memory: give fewer with "
                "--stage.workers); a run goes on from its last state by the same command."
            ) from None

    def following(self, first: int) -> Iterator[int]:
        """Note that a micro-batch was asked for; where those begin that will be next, none while nothing is known."""
        begin = first - first % self._update
        if self._asked and self._asked[-1] < begin:  # the first of an update: the last one is known whole
            self._offsets = [start % self._update for start in self._asked]
            self._asked = []
        self._asked.append(first)
        offsets: Sequence[int] = self._offsets
        if not offsets and len(self._asked) > 1:
            offsets = range(self._asked[0] % self._update, self._update, first - self._asked[-2])
        for update in range(begin, self._end, self._update) if offsets else ():
            yield from (update + each for each in offsets if update + each > first)

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._pool.kill()


_here: list[Batches] = []


def _begin(batches: Batches) -> None:
    """What a worker does first."""
    _here[:] = [batches]
    if batches.fast:
        import torch

        torch.set_num_threads(1)  # of each worker: their number is what was asked for


def _make(documents: Sequence[int]) -> Rows:
    return _here[0](documents)
