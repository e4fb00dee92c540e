"""The begins of prompts read before, chunk by chunk.

A chunk's keys and values depend on all tokens up to its end, on the images among them, and on the stretch of dynamic
NTK, which follows the length of the whole prompt. Its link is a digest of exactly these and of a salt, which keeps the
caches of different users apart; the tokens themselves are compared on a hit. Chunks are those in which everybody reads
(`scheduler.stop`), so that who begins with them computes the same bits as who reads them anew. They end behind images
too: another question about an image begins behind it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from jaxtyping import Float
from torch import Tensor

from qwenvl.generate.scheduler import CHUNK, stop


@dataclass(frozen=True)
class Link:
    """One chunk of a prompt."""

    name: bytes
    start: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Page:
    """A chunk that is kept."""

    link: Link
    tokens: Float[Tensor, "layers 2 heads tokens head"]
    last: Float[Tensor, " hidden"] | None

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + (0 if self.last is None else self.last.nbytes)


def cuts(images: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Where chunks end besides at the multiples of `CHUNK`: behind the last image that ends within each of these.

    `images`: the first slot of each image and the place behind its last.
    """
    return tuple({(end - 1) // CHUNK: end for _, end in images}.values())


def links(
    ids: Sequence[int],
    images: Sequence[tuple[bytes, int]],
    cuts: Sequence[int],
    alpha: float,
    salt: bytes,
) -> list[Link]:
    """The chunks of a prompt; the last one serves equal prompts alone.

    `images`: digest of each image and the place of its first slot.
    """
    found, parent, start = [], sha256(f"{alpha} {len(salt)} ".encode() + salt).digest(), 0
    while start < len(ids):
        end = stop(start, len(ids), cuts)
        own = tuple(ids[start:end])
        last = " last" if end == len(ids) else ""
        seen = [f"{at} {key.hex()}" for key, at in images if at < end]
        parent = sha256(parent + f"{own} {seen}{last}".encode()).digest()
        found.append(Link(parent, start, own))
        start = end
    return found


class PrefixCache:
    """Chunks read before, at most `budget` tokens of them; the longest unused go first."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._pages: OrderedDict[bytes, _Page] = OrderedDict()
        self._tokens = 0
        self.held_bytes = 0
        """Memory of all that is kept."""
        self.queries = self.hits = 0
        """Tokens asked for, and found, as the dashboards of other engines count."""

    @property
    def enabled(self) -> bool:
        """Whether anything is ever kept."""
        return self._budget > 0

    def find(self, wanted: Sequence[Link]) -> list[Float[Tensor, "layers 2 heads tokens head"]]:
        """The pages of the longest known begin."""
        pages = []
        for link in wanted:
            known = self._pages.get(link.name)
            if known is None or known.link.ids != link.ids:
                break
            pages.append(known.tokens)
        for link in reversed(wanted[: len(pages)]):  # the begin of a chain is used last, so it goes last
            self._pages.move_to_end(link.name)
        return pages

    def lacks(self, wanted: Sequence[Link]) -> list[int]:
        """Which of these chunks are not kept and would find a place."""
        return [
            at
            for at, link in enumerate(wanted)
            if link.name not in self._pages and link.start + len(link.ids) <= self._budget
        ]

    def last(self, link: Link) -> Float[Tensor, " hidden"]:
        """The hidden state behind a prompt, by its last chunk, which is kept."""
        last = self._pages[link.name].last
        assert last is not None
        return last

    def keep(
        self,
        link: Link,
        tokens: Float[Tensor, "layers 2 heads tokens head"],
        last: Float[Tensor, " hidden"] | None = None,
    ) -> None:
        """Remember a chunk; of the last one of a prompt also the hidden state behind it."""
        if link.name in self._pages:
            self._forget(self._pages.pop(link.name))
        self._pages[link.name] = page = _Page(link, tokens, last)
        self._tokens += len(link.ids)
        self.held_bytes += page.nbytes
        while self._tokens > self._budget:
            self._forget(self._pages.popitem(last=False)[1])

    def _forget(self, page: _Page) -> None:
        self._tokens -= len(page.link.ids)
        self.held_bytes -= page.nbytes
