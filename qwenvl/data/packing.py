"""Whole documents into rows of fixed length (paper 3.2: sequences of 2048), so that little of a row is padding.

    ids        [ a   a   a | b   b | pad ]
    segments   [ 1024 ..   | 2048  | 0   ]   isolated:    each document sees itself only
    positions  [ 0   1   2 | 0   1 | 0   ]   interleaved: one document, positions run on, all before is seen

No document is cut, hence no image is.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.records import Skipped
from qwenvl.markup import Image

DOCUMENT = 1024
"""Segments number documents in steps of this, branches in steps of one (`model.llm.BRANCHES`)."""

TRIED = 512
"""Documents of which the best company for a row's longest is chosen: all of a micro-batch, a sample of a window."""

PACKINGS = ("isolated", "interleaved")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows of equal length, each array (rows, length), and their images in row-major order."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    origins: NDArray[np.int64]
    """Which of `sources` each token comes from; padding says 0."""
    images: tuple[Image, ...]
    sources: tuple[str, ...]
    """The different `Example.source` of the rows' documents."""
    left_out: tuple[Skipped, ...] = ()
    """Documents that should have been in these rows and could not be used."""

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return float((self.segments > 0).mean())


def fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which items share a row: the longest left, and those that fill the row best; every index once.

    Raises ValueError for one too long.
    """
    waiting = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if waiting and lengths[waiting[0]] > row_length:
        raise ValueError(
            f"a document of {lengths[waiting[0]]} tokens does not fit a row of {row_length}; documents are never cut: "
            "raise sequence_length or shorten the document."
        )
    rows = []
    while waiting:
        row, capacity = [waiting[0]], row_length - lengths[waiting[0]]
        start = bisect_left(waiting, -capacity, lo=1, key=lambda index: -lengths[index])
        fitting = range(start, len(waiting))
        tried = fitting if len(fitting) <= TRIED else fitting[:: -(-len(fitting) // TRIED)]
        taken = {tried[k] for k in fullest([lengths[waiting[place]] for place in tried], capacity)}
        row += [waiting[place] for place in sorted(taken)]
        waiting = [index for place, index in enumerate(waiting) if place not in taken and place]
        rows.append(row)
    return rows


def fullest(lengths: Sequence[int], capacity: int) -> list[int]:
    """Which lengths add up to the most that `capacity` holds, earlier ones preferred: an exact subset sum.

    Bit k of a number says that some of the lengths so far add up to k.
    """
    sums, within = 1, (1 << capacity + 1) - 1
    before: list[int] = []
    for length in lengths:
        before.append(sums)
        sums |= sums << length & within
        if sums >> capacity:
            break
    left = sums.bit_length() - 1
    chosen = []
    for index in reversed(range(len(before))):
        if not before[index] >> left & 1:
            chosen.append(index)
            left -= lengths[index]
    return chosen


def pack(examples: Sequence[Example], row_length: int, *, packing: str, pad_id: int) -> Rows:
    """Pack documents into as few rows of `row_length` tokens as `fit` finds, the rest of each row is padding."""
    if packing not in PACKINGS:
        raise ValueError(f"packing is {packing!r}; expected one of {', '.join(PACKINGS)}.")
    rows = [[examples[index] for index in row] for row in fit([len(each) for each in examples], row_length)]
    if packing == "interleaved":
        rows = [[joined(row)] for row in rows]
    return assemble(rows, row_length, pad_id=pad_id)


def joined(examples: Sequence[Example]) -> Example:
    """Documents as one: positions run on, and a later one sees those before it. None predicts the next one's start.

    It is of the source that they share, or of none.
    """
    length = sum(map(len, examples))
    sources = {each.source for each in examples}
    return Example(
        ids=tuple(token for each in examples for token in each.ids),
        labels=tuple(label for each in examples for label in each.labels),
        branches=(0,) * length,
        positions=tuple(range(length)),
        images=tuple(image for each in examples for image in each.images),
        source=sources.pop() if len(sources) == 1 else "",
    )


def assemble(
    rows: Sequence[Sequence[Example]], row_length: int, *, pad_id: int, left_out: Sequence[Skipped] = ()
) -> Rows:
    """Rows of documents as arrays; the documents of a row do not see each other, a row may be empty."""
    shape = (len(rows), row_length)
    ids, labels = np.full(shape, pad_id), np.full(shape, IGNORE)
    segments, positions, origins = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    sources = tuple(sorted({each.source for members in rows for each in members}))
    for row, members in enumerate(rows):
        start = 0
        for document, each in enumerate(members, 1):
            stop = start + len(each)
            ids[row, start:stop], labels[row, start:stop] = each.ids, each.labels
            segments[row, start:stop] = np.add(each.branches, DOCUMENT * document)
            positions[row, start:stop] = each.positions
            origins[row, start:stop] = sources.index(each.source)
            start = stop
    return Rows(
        ids=ids,
        labels=labels,
        segments=segments,
        positions=positions,
        origins=origins,
        images=tuple(image for members in rows for each in members for image in each.images),
        sources=sources,
        left_out=tuple(left_out),
    )
