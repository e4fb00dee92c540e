"""Whole documents into rows of fixed length (paper 3.2: sequences of 2048), so that little of a row is padding.

    ids        [ a   a   a | b   b | pad ]
    segments   [ 1024 ..   | 2048  | 0   ]   isolated:    each document sees itself only
    positions  [ 0   1   2 | 0   1 | 0   ]   interleaved: one document, positions run on, all before is seen

No document is cut, hence no picture is.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.records import Skipped
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
    images: tuple[Image, ...]
    left_out: tuple[Skipped, ...] = ()
    """Documents that should have been in these rows and could not be used."""

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return float((self.segments > 0).mean())


def fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which items share a row: best fit, longest first; every index once. Raises ValueError for one too long."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of each row and its number, the fullest row first
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[index]
        if length > row_length:
            raise ValueError(
                f"a document of {length} tokens does not fit a row of {row_length}; documents are never cut: raise "
                "sequence_length or shorten the document."
            )
        best = bisect_left(room, (length, -1))
        left, row = room.pop(best) if best < len(room) else (row_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (left - length, row))
    return rows


def pack(examples: Sequence[Example], row_length: int, *, packing: str, pad_id: int) -> Rows:
    """Pack documents into as few rows of `row_length` tokens as best fit finds, the rest of each row is padding."""
    rows = fit([len(each) for each in examples], row_length)
    members = [[examples[index] for index in row] for row in rows]
    return assemble(members, row_length, packing=packing, pad_id=pad_id)


def assemble(
    rows: Sequence[Sequence[Example]],
    row_length: int,
    *,
    packing: str,
    pad_id: int,
    left_out: Sequence[Skipped] = (),
) -> Rows:
    """Rows of documents as arrays; a row may be empty."""
    if packing not in PACKINGS:
        raise ValueError(f"packing is {packing!r}; expected one of {', '.join(PACKINGS)}.")
    shape = (len(rows), row_length)
    ids, labels = np.full(shape, pad_id), np.full(shape, IGNORE)
    segments, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, members in enumerate(rows):
        start = 0
        for document, each in enumerate(members, 1):
            stop = start + len(each)
            ids[row, start:stop], labels[row, start:stop] = each.ids, each.labels
            if packing == "isolated":
                segments[row, start:stop] = np.add(each.branches, DOCUMENT * document)
                positions[row, start:stop] = each.positions
            else:
                segments[row, start:stop], positions[row, start:stop] = DOCUMENT, range(start, stop)
            start = stop
    return Rows(
        ids=ids,
        labels=labels,
        segments=segments,
        positions=positions,
        images=tuple(image for members in rows for each in members for image in each.images),
        left_out=tuple(left_out),
    )
