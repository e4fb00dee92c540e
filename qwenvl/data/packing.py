"""Whole documents into rows of fixed length (paper 3.2: sequences of 2048), so that little of a row is padding.

    ids        [ a   a   a | b   b | pad ]
    segments   [ 1024 ..   | 2048  | 0   ]   isolated:    each document sees itself only
    positions  [ 0   1   2 | 0   1 | 0   ]   interleaved: one document, positions run on, all before is seen

No document is cut, hence no picture is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.formats import IGNORE, Example
from qwenvl.markup import Image

DOCUMENT = 1024
"""Segments number documents in steps of this, branches in steps of one (`model.llm.BRANCHES`)."""

PACKINGS = ("isolated", "interleaved")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows of equal length, each array (rows, length), and their pictures in row-major order."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    origins: NDArray[np.int64]
    """Which of `sources` each token comes from; padding says 0."""
    images: tuple[Image, ...]
    sources: tuple[str, ...]
    """The different `Example.source` of the rows' documents."""

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return float((self.segments > 0).mean())


def fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which items share a row: best fit, longest first; every index once. Raises ValueError for one too long."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > row_length:
            raise ValueError(
                f"a document of {length} tokens does not fit a row of {row_length}; documents are never cut: raise "
                "sequence_length or shorten the document."
            )
        open_rows = [row for row, left in enumerate(room) if left >= length]
        if not open_rows:
            rows.append([])
            room.append(row_length)
            open_rows = [len(rows) - 1]
        best = min(open_rows, key=room.__getitem__)
        rows[best].append(index)
        room[best] -= length
    return rows


def pack(examples: Sequence[Example], row_length: int, *, packing: str, pad_id: int) -> Rows:
    """Pack documents into as few rows of `row_length` tokens as best fit finds, the rest of each row is padding."""
    if packing not in PACKINGS:
        raise ValueError(f"packing is {packing!r}; expected one of {', '.join(PACKINGS)}.")
    rows = fit([len(each) for each in examples], row_length)
    shape = (len(rows), row_length)
    ids, labels = np.full(shape, pad_id), np.full(shape, IGNORE)
    segments, positions, origins = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    sources = tuple(sorted({each.source for each in examples}))
    for row, members in enumerate(rows):
        start = 0
        for document, index in enumerate(members, 1):
            each, stop = examples[index], start + len(examples[index])
            ids[row, start:stop], labels[row, start:stop] = each.ids, each.labels
            origins[row, start:stop] = sources.index(each.source)
            if packing == "isolated":
                segments[row, start:stop] = np.add(each.branches, DOCUMENT * document)
                positions[row, start:stop] = each.positions
            else:
                segments[row, start:stop], positions[row, start:stop] = DOCUMENT, range(start, stop)
            start = stop
    images = tuple(image for row in rows for index in row for image in examples[index].images)
    return Rows(
        ids=ids,
        labels=labels,
        segments=segments,
        positions=positions,
        origins=origins,
        images=images,
        sources=sources,
    )
