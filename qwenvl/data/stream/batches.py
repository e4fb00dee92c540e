"""Documents into micro-batches of packed rows, alone or by worker processes ahead of time.

Documents are packed window by window, a window being more than a micro-batch, because few documents leave rows half
empty. Its rows are dealt in a random order to as many micro-batches as the window has documents for:

    documents   0 ............ window ............ 2 x window        numbers of the stream
    rows        [ ][ ][ ][ ][ ][ ]  packed together, then shuffled
    micro       0    1    2         whoever asks for documents 0 .. micro gets the first share of the rows

`interleaved` packs the documents of one task together, as the paper does, and joins them into one sequence. Rows that a
task alone leaves emptier than `FULL` are packed again together: two sequences of different tasks may then share a row,
and do not see each other.

So a micro-batch is a function of (seed, number) alone: how many ranks share an update, how many workers read ahead and
whether the run was stopped in between change nothing.
"""

import multiprocessing
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from qwenvl.data.formats import Example
from qwenvl.data.packing import Rows, assemble, fit, joined
from qwenvl.data.records import Skipped
from qwenvl.data.stream.images import square
from qwenvl.data.stream.order import permuted
from qwenvl.data.stream.sources import Document
from qwenvl.markup import Image

HOPELESS = 32
"""A window of at least so many documents of which none can be used is no accident."""

AHEAD = 2
"""Micro-batches that each worker is ahead."""

FULL = 0.97
"""Share of a row above which a task alone fills it well enough."""

Packed = list[list[tuple[str, Example]]]
"""Rows of documents, each with its task."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Micro-batches by the numbers of their documents."""

    document: Callable[[int], Document]
    row_length: int
    packing: str
    pad_id: int
    micro: int
    """Documents of a micro-batch."""
    window: int = 0
    """Documents packed together, a multiple of `micro`; 0 packs each micro-batch by itself."""
    image_size: int = 0
    """Pixels a side to which pictures are squashed here; 0 leaves them to the caller as they are."""
    fast: bool = False
    """Resize by the faster filter (`stream.images`)."""
    seed: int = 0
    _windows: OrderedDict[int, tuple[Packed, list[Skipped]]] = field(default_factory=OrderedDict, repr=False)

    def __call__(self, documents: Sequence[int]) -> Rows:
        """The rows of a micro-batch; at least one, which is empty when every document was left out.

        Raises ValueError when of many documents none can be used.
        """
        if self.window:
            number = documents[0] // self.micro
            parts = self.window // self.micro
            window, part = divmod(number, parts)
            rows, left_out = self._packed_window(window)
            share = rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]
            left_out = left_out if part == 0 else []
        else:
            share, left_out = self._packed(documents)
        if self.image_size:
            share, damaged = self._with_squares(share)
            left_out = [*left_out, *damaged]
        rows_of_sequences = [self._sequences(row) for row in share or [[]]]
        return assemble(rows_of_sequences, self.row_length, pad_id=self.pad_id, left_out=left_out)

    def _sequences(self, row: Sequence[tuple[str, Example]]) -> list[Example]:
        """What does not see each other in a row."""
        if self.packing != "interleaved":
            return [made for _, made in row]
        by_task: dict[str, list[Example]] = {}
        for task, made in row:
            by_task.setdefault(task, []).append(made)
        return [joined(examples) for examples in by_task.values()]

    def _packed_window(self, window: int) -> tuple[Packed, list[Skipped]]:
        if window not in self._windows:
            while len(self._windows) > 1:
                self._windows.popitem(last=False)
            rows, left_out = self._packed(range(window * self.window, (window + 1) * self.window))
            order = [permuted(k, len(rows), "rows", self.seed, window) for k in range(len(rows))]
            self._windows[window] = [rows[k] for k in order], left_out
        return self._windows[window]

    def _packed(self, documents: Sequence[int]) -> tuple[Packed, list[Skipped]]:
        found, left_out = [], []
        for number in documents:
            task, made = self.document(number)
            if isinstance(made, Skipped):
                left_out.append(made)
            else:
                found.append((task, replace(made, source=task)))
        if not found and len(documents) >= HOPELESS:
            first = left_out[0]
            raise ValueError(
                f"none of {len(documents)} documents in a row can be used; the first, {first.key}: {first.kind} "
                f"({first.detail}). Correct the paths or the data."
            )
        if self.packing != "interleaved":
            return self._rows(found), left_out
        well_filled: Packed = []
        others: Packed = []
        for task in dict.fromkeys(task for task, _ in found):
            for row in self._rows([each for each in found if each[0] == task]):
                full = sum(len(made) for _, made in row) >= FULL * self.row_length
                (well_filled if full else others).append(row)
        return well_filled + self._rows([each for row in others for each in row]), left_out

    def _rows(self, documents: Sequence[tuple[str, Example]]) -> Packed:
        rows = fit([len(made) for _, made in documents], self.row_length)
        return [[documents[k] for k in row] for row in rows]

    def _with_squares(self, rows: Packed) -> tuple[Packed, list[Skipped]]:
        """Pictures decoded and squashed; a document with a damaged one leaves its row."""
        left_out: list[Skipped] = []
        whole: Packed = []
        for row in rows:
            whole.append([])
            for task, each in row:
                try:
                    squares = tuple(
                        Image(square(image.source, self.image_size, fast=self.fast)) for image in each.images
                    )
                except (ValueError, OSError) as error:
                    where = str(each.images[0].source)
                    left_out.append(Skipped(key=where, kind="damaged picture", detail=str(error)))
                    continue
                whole[-1].append((task, replace(each, images=squares)))
        return whole, left_out


class Prefetcher:
    """The same micro-batches, made by worker processes before they are asked for.

    Which micro-batches this process reads is learned from what it asks for: every so many of an update, and the same
    ones of the next.
    """

    def __init__(self, batches: Batches, workers: int, *, update: int, end: int) -> None:
        """`update` is how many documents an update has, `end` how many the stage reads."""
        self._micro, self._update, self._end, self._depth = batches.micro, update, end, AHEAD * workers
        self._pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(batches,)
        )
        self._coming: dict[int, Future[Rows]] = {}
        self._asked: list[int] = []
        self._offsets: list[int] = []

    def __call__(self, documents: Sequence[int]) -> Rows:
        """The rows of a micro-batch; raises what making them raised."""
        first = documents[0]
        for start in [first, *islice(self.following(first), self._depth)]:
            if start not in self._coming:
                self._coming[start] = self._pool.submit(_make, range(start, start + self._micro))
        for start in [start for start in self._coming if start < first]:
            self._coming.pop(start).cancel()  # announced and not asked for
        return self._coming.pop(first).result()

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


_here: list[Batches] = []


def _begin(batches: Batches) -> None:
    """What a worker does first; it ends with the process that it works for, however that ends."""
    _here[:] = [batches]
    if batches.fast:
        import torch

        torch.set_num_threads(1)  # of each worker: their number is what was asked for
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(documents: Sequence[int]) -> Rows:
    return _here[0](documents)
