"""Documents into micro-batches of packed rows.

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

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt8

from qwenvl.data.formats import Example
from qwenvl.data.packing import Rows, assemble, fit, joined
from qwenvl.data.records import Skipped
from qwenvl.data.stream.images import square
from qwenvl.data.stream.order import permuted
from qwenvl.data.stream.sources import Document

HOPELESS = 32
"""A window of at least so many documents of which none can be used is no accident."""

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
    """Pixels a side to which images are squashed here; 0 leaves them to the caller as they are."""
    fast: bool = False
    """Resize by the faster filter (`stream.images`)."""
    ground: tuple[int, ...] = ()
    """What stands behind transparency (`images.rgb`)."""
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

    def _square(self, source: object) -> UInt8[np.ndarray, "side side 3"]:
        return square(source, self.image_size, fast=self.fast, ground=self.ground)

    def _with_squares(self, rows: Packed) -> tuple[Packed, list[Skipped]]:
        """Images decoded and squashed; a document with a damaged one leaves its row."""
        left_out: list[Skipped] = []
        whole: Packed = []
        for row in rows:
            whole.append([])
            for task, each in row:
                try:
                    squares = tuple(
                        replace(image, source=self._square(image.source)) for image in each.images
                    )
                except (ValueError, OSError) as error:
                    where = str(each.images[0].source)
                    left_out.append(Skipped(key=where, kind="damaged image", detail=str(error)))
                    continue
                whole[-1].append((task, replace(each, images=squares)))
        return whole, left_out
