"""Keys and values of the tokens read so far.

Blocks ask two things of a cache, whoever keeps it: `write` the keys and values of the tokens at hand, and `view` what
these tokens may look at. That is the protocol `KVCache`. Ours keeps rows in slabs, one slab for rows of one bucket:

    slab of 320, layer 0   (slots, heads, 320, head)   a row holds tokens 0 .. length - 1 of its slot

so that attention reads whole buffers (a part of a buffer costs matrix products in bfloat16 on a CPU eight times as
much), a row that ends gives its slot back without anybody moving, and one that outgrows its bucket moves alone.
"""

import mmap
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.config import LLMConfig
from qwenvl.model.decode_attention import keys_by_channel

SMALL = 2**17
"""Bytes of a row's keys in one layer up to which its memory is kept for the next: to clear it is cheaper than pages."""


def bucket(tokens: int) -> int:
    """The length of the buffer that holds so many tokens: a multiple of 64, beyond 512 of 256."""
    step = 64 if tokens <= 512 else 256
    return -(-tokens // step) * step


class View(NamedTuple):
    """What some rows of a batch look at."""

    rows: slice
    """Which rows of the batch."""
    keys: Float[Tensor, "rows heads keys head"]
    values: Float[Tensor, "rows heads keys head"]
    mask: Float[Tensor, "_ 1 tokens keys"] | None
    """Added to the scores; None: what the `AttentionContext` says."""


@runtime_checkable
class KVCache(Protocol):
    """What a block asks of a cache; layers are numbered from 0."""

    def write(
        self,
        layer: int,
        key: Float[Tensor, "batch heads tokens head"],
        value: Float[Tensor, "batch heads tokens head"],
    ) -> None:
        """Keep the new tokens of every row, keys after rotation."""

    def view(self, layer: int) -> Sequence[View]:
        """What the new tokens may look at, themselves included; the rows of the batch in order."""


# === Memory ===


class Slab:
    """Rows of one bucket side by side: for every layer a buffer of keys and one of values.

    On Linux a slot takes memory when it is first written and gives it back when it is cleared, whatever its
    neighbours do, unless rows are `SMALL`; elsewhere a slab is as large as it is.
    """

    def __init__(
        self, config: LLMConfig, slots: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.length, self.layers = slots, length, config.layers
        self.free = list(range(slots))
        self.small = config.hidden * length * dtype.itemsize <= SMALL
        shape = (slots, config.heads, length, config.head_width)
        # In memory keys may stand channel by channel, as `decode_attention` reads them.
        self.by_channel = keys_by_channel(device, dtype)
        turned = (slots, config.heads, config.head_width, length) if self.by_channel else shape
        shapes = [turned] * config.layers + [shape] * config.layers
        if given_back(device):
            self._maps = [_Map(each, dtype) for each in shapes]
            buffers = [each.tensor for each in self._maps]
        else:
            self._maps = []
            buffers = [torch.zeros(each, device=device, dtype=dtype) for each in shapes]
        self.values = buffers[config.layers :]
        self.keys = [each.transpose(2, 3) if self.by_channel else each for each in buffers[: config.layers]]

    def take(self) -> int:
        """The first free slot, all zero."""
        return self.free.pop(0)

    def clear(self, slot: int, layer: int) -> None:
        """Zeros again: what is left behind could hold numbers that are none, which no mask hides."""
        for place, buffers in ((layer, self.keys), (self.layers + layer, self.values)):
            if self.small or not (self._maps and self._maps[place].clear(slot)):
                buffers[layer][slot].zero_()

    def give(self, slot: int) -> None:
        """A slot that is cleared, for others."""
        self.free = sorted([*self.free, slot])


def given_back(device: torch.device) -> bool:
    """Whether memory of this device is taken page by page, and can be given back so."""
    return device.type == "cpu" and sys.platform == "linux"


class _Map:
    """A tensor of zeros whose memory the system provides page by page."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.row = torch.Size(shape[1:]).numel() * dtype.itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self.memory = mmap.mmap(-1, shape[0] * self.row, flags=flags)
        self.tensor = torch.frombuffer(self.memory, dtype=torch.uint8).view(dtype).view(shape)

    def clear(self, slot: int) -> bool:
        """Give back the pages of a slot, which read as zeros from then on; False where it has none of its own."""
        if self.row % mmap.PAGESIZE:
            return False
        self.memory.madvise(mmap.MADV_DONTNEED, slot * self.row, self.row)
        return True


# === Rows ===


@dataclass(slots=True)
class _Row:
    """Where a row stands."""

    length: int = 0
    slab: Slab | None = None
    slot: int = 0

    @property
    def bucket(self) -> int:
        return self.slab.length if self.slab else 0


class RowCache:
    """Rows that come, grow, are copied and go one by one.

    `slots` bounds the rows that ever stand side by side. Numbers of rows are never used again.
    """

    def __init__(
        self, config: LLMConfig, *, slots: int, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        self.config, self.slots = config, slots
        self.device, self.dtype = torch.device(device), dtype
        self._slabs: dict[int, list[Slab]] = {}
        self._rows: dict[int, _Row] = {}
        self._next = 0

    def take(self) -> int:
        """A new row without tokens."""
        self._rows[self._next] = _Row()
        self._next += 1
        return self._next - 1

    def length(self, row: int) -> int:
        """Tokens of a row."""
        return self._rows[row].length

    def held(self, row: int) -> int:
        """Tokens that a row's slot has room for."""
        return self._rows[row].bucket

    @property
    def rows(self) -> list[int]:
        """All rows, oldest first."""
        return list(self._rows)

    @property
    def tokens(self) -> int:
        """Tokens that the slots of all rows have room for."""
        return sum(row.bucket for row in self._rows.values())

    @torch.inference_mode()
    def free(self, row: int) -> None:
        """Let a row go; nobody else moves."""
        gone = self._rows.pop(row)
        if gone.slab is not None:
            for layer in range(self.config.layers):
                gone.slab.clear(gone.slot, layer)
            self._give(gone.slab, gone.slot)

    def fork(self, row: int, tokens: int) -> int:
        """A new row with the first tokens of another."""
        copy = self.take()
        self.make_room([copy], tokens)
        source, target = self._rows[row], self._rows[copy]
        assert source.slab is not None and target.slab is not None and tokens <= source.length
        for layer in range(self.config.layers):
            _copy(source.slab, source.slot, target.slab, target.slot, layer, tokens)
        target.length = tokens
        return copy

    def snapshot(self, row: int, start: int, stop: int) -> Float[Tensor, "layers 2 heads tokens head"]:
        """Keys and values of some tokens of a row, copied."""
        source = self._rows[row]
        assert source.slab is not None and stop <= source.length
        pairs = zip(source.slab.keys, source.slab.values, strict=True)
        return torch.stack(
            [
                torch.stack(pair)
                for pair in (
                    (keys[source.slot, :, start:stop], values[source.slot, :, start:stop])
                    for keys, values in pairs
                )
            ]
        )

    def restore(self, row: int, pages: Sequence[Float[Tensor, "layers 2 heads _ head"]]) -> None:
        """Begin a row without tokens with what was copied from others."""
        tokens = sum(page.shape[3] for page in pages)
        self.make_room([row], tokens)
        target, start = self._rows[row], 0
        assert target.slab is not None and target.length == 0
        for page in pages:
            stop = start + page.shape[3]
            for layer, (keys, values) in enumerate(page):
                target.slab.keys[layer][target.slot, :, start:stop] = keys
                target.slab.values[layer][target.slot, :, start:stop] = values
            start = stop
        target.length = tokens

    def make_room(self, rows: Collection[int], tokens: int) -> None:
        """Room for so many tokens in each of these rows; those whose slot is too short move, and no others."""
        moving = [self._rows[row] for row in rows if self._rows[row].bucket < tokens]
        if not moving:
            return
        places = [self._place(bucket(tokens), len(moving) - done) for done in range(len(moving))]
        for layer in range(self.config.layers):  # layer by layer, so that no more than one is held twice
            for row, (slab, slot) in zip(moving, places, strict=True):
                if row.slab is not None:
                    _copy(row.slab, row.slot, slab, slot, layer, row.length)
                    row.slab.clear(row.slot, layer)
        for row, (slab, slot) in zip(moving, places, strict=True):
            if row.slab is not None:
                self._give(row.slab, row.slot)
            row.slab, row.slot = slab, slot

    def together(self, rows: Iterable[int]) -> list[int]:
        """The rows in the order of their places: neighbours in a slab follow one another."""
        order = {id(slab): at for at, slab in enumerate(s for slabs in self._slabs.values() for s in slabs)}
        return sorted(rows, key=lambda row: (order[id(self._rows[row].slab)], self._rows[row].slot))

    def runs(self, rows: Sequence[int]) -> list[tuple[slice, Slab, slice]]:
        """Rows of a batch that are neighbours in a slab, as slices: of the batch, of the slab."""
        places = [self._rows[row] for row in rows]
        found, at = [], 0
        for _, group in groupby(
            enumerate(places), key=lambda each: (id(each[1].slab), each[1].slot - each[0])
        ):
            run = [place for _, place in group]
            slab, first = run[0].slab, run[0].slot
            assert slab is not None
            found.append((slice(at, at + len(run)), slab, slice(first, first + len(run))))
            at += len(run)
        return found

    def _place(self, length: int, wanted: int) -> tuple[Slab, int]:
        """A free slot of a slab of this bucket, in a new one if need be, for one of `wanted` rows."""
        slabs = self._slabs.setdefault(length, [])
        slab = next((slab for slab in slabs if slab.free), None)
        if slab is None:
            slots = self.slots if given_back(self.device) else min(self.slots, -(-wanted // 4) * 4)
            slab = Slab(self.config, slots, length, self.device, self.dtype)
            slabs.append(slab)
        return slab, slab.take()

    def _give(self, slab: Slab, slot: int) -> None:
        slab.give(slot)
        if len(slab.free) == slab.slots and not slab.small:
            self._slabs[slab.length].remove(slab)
            if not self._slabs[slab.length]:
                del self._slabs[slab.length]


def _copy(source: Slab, at: int, target: Slab, to: int, layer: int, tokens: int) -> None:
    for old, new in ((source.keys, target.keys), (source.values, target.values)):
        new[layer][to, :, :tokens] = old[layer][at, :, :tokens]
