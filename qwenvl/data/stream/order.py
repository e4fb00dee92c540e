"""Position -> sample, as a pure function: no shuffle buffer, no replay, nothing to save but the position.

    position --draw: a weighted mixture, exact in every cycle--> (source, how many of it came before)
             --order: every sample once an epoch, in an order of its own--> sample of the source

Numbers are mixed by a keyed bijection (a Feistel network) instead of a table, so an order of a billion samples takes
no memory and is the same with every version of every library.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.mixtures import largest_remainder

CYCLE_BITS = 18
CYCLE = 2**CYCLE_BITS
"""Positions over which the shares of a mixture are exact, to one in this many."""

_ROUNDS = 6
_WORD = 2**64 - 1


def permuted(place: int, size: int, *name: object) -> int:
    """Where `place` stands in the random order of range(size) that `name` names."""
    bits = max(2, (size - 1).bit_length())
    bits += bits % 2
    keys = _keys(name)
    while (place := _scattered(place, bits, keys)) >= size:
        pass  # the network permutes a power of four; walking on from outside comes back inside, each place once
    return place


@lru_cache(maxsize=1024)
def _keys(name: tuple[object, ...]) -> tuple[int, ...]:
    digest = hashlib.blake2b(repr(name).encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[k : k + 8], "little") for k in range(0, len(digest), 8))


def _scattered(number: Any, bits: int, keys: Sequence[int]) -> Any:
    """A bijection of the numbers of `bits` bits (an even count), for one or for an array of them."""
    half = bits // 2
    mask = (1 << half) - 1
    left, right = number >> half, number & mask
    for key in keys:
        mixed = ((right ^ (key & mask)) + (key >> 32)) * 0x9E3779B97F4A7C15 & _WORD
        mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & _WORD
        left, right = right, left ^ (mixed >> 32 & mask)
    return left << half | right


@lru_cache(maxsize=2)
def _cycle(shares: tuple[int, ...], name: tuple[object, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which source each position of a cycle draws from, and how many of it the cycle drew before."""
    places = _scattered(np.arange(CYCLE, dtype=np.uint64), CYCLE_BITS, _keys(name)).astype(np.int64)
    sources = np.repeat(np.arange(len(shares)), shares)[places]
    before = np.empty(CYCLE, dtype=np.int64)
    for source in range(len(shares)):
        mine = sources == source
        before[mine] = np.arange(shares[source])
    return sources, before


class Draw:
    """A weighted mixture: in every `CYCLE` positions each source comes in its share, in a random order."""

    def __init__(self, weights: Sequence[int | float], seed: int) -> None:
        """Raises ValueError for a weight that is not positive, or that comes to nothing in a cycle."""
        if not weights or min(weights) <= 0:
            raise ValueError(f"the weights of a mixture are {list(weights)}; each must be above 0.")
        self.shares = tuple(largest_remainder(weights, CYCLE))
        if 0 in self.shares:
            small = weights[self.shares.index(0)]
            raise ValueError(
                f"a weight of {small:g} is below one in {CYCLE:,} of the mixture; raise it or leave its source out."
            )
        self._seed = seed

    def __call__(self, position: int) -> tuple[int, int]:
        """The source of a position, and how many documents of it stand before that position."""
        cycle, place = divmod(position, CYCLE)
        sources, before = _cycle(self.shares, ("draw", self._seed, cycle))
        source = int(sources[place])
        return source, cycle * self.shares[source] + int(before[place])


class Order:
    """The samples of a source by how many of it were drawn: each once per epoch, every epoch in another order.

    `blocks` are the sizes of stretches that are read together (row groups of parquet): they are put in order, and the
    samples inside each. Without them the samples of all shards are mixed.
    """

    def __init__(self, size: int, blocks: Sequence[int] | None, *name: object) -> None:
        self.size, self._name = size, name
        self._blocks = None if blocks is None else np.array(blocks, dtype=np.int64)
        self._starts = None if self._blocks is None else np.cumsum(self._blocks) - self._blocks
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def __call__(self, drawn: int) -> tuple[int, int]:
        """The epoch, and the number of the sample in the source."""
        epoch, place = divmod(drawn, self.size)
        if self._blocks is None or self._starts is None:
            return epoch, permuted(place, self.size, *self._name, epoch)
        order, ends = self._of_epoch(epoch, self._blocks)
        at = int(np.searchsorted(ends, place, side="right"))
        block = int(order[at])
        size = int(self._blocks[block])
        inside = permuted(place - (int(ends[at]) - size), size, *self._name, epoch, block)
        return epoch, int(self._starts[block]) + inside

    def _of_epoch(self, epoch: int, blocks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._epoch is None or self._epoch[0] != epoch:
            count = len(blocks)
            order = np.array([permuted(k, count, *self._name, epoch, "blocks") for k in range(count)])
            self._epoch = epoch, order, np.cumsum(blocks[order])
        return self._epoch[1:]
