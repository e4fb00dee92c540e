"""What a forward is given of a cache: rows of equal length that read a chunk, or rows of any length that read a token.

Chunk   row 0  [ read before . . . . | new new new ]        one mask for all, as `llm.attention_mask` makes it
Step    row 0  [ read before . . | new | hidden . . ]       a mask per row over its whole slot
        row 1  [ read before . . . . . . | new | . ]
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qwenvl.config import LLMConfig
from qwenvl.model.cache import RowCache, Slab, View, bucket


class Chunk:
    """Rows of equal length that read the same number of tokens; it goes with a model's `forward` again and again."""

    def __init__(self, cache: RowCache, rows: Sequence[int]) -> None:
        self.cache, self.rows = cache, rows
        self.length = cache.length(rows[0])
        assert all(cache.length(row) == self.length for row in rows), "rows of different lengths"
        self._tokens = 0
        self._runs: list[tuple[slice, Slab, slice]] = []
        self._whole_buckets = cache.dtype == torch.bfloat16 and cache.device.type == "cpu"

    def begin(self, tokens: int) -> int:
        """Make room for so many tokens more; returns how many have been read."""
        self.cache.make_room(self.rows, self.length + tokens)
        self._tokens, self._runs = tokens, self.cache.runs(self.rows)
        return self.length

    def end(self, tokens: Sequence[int] | None = None) -> None:
        """What was written is read; with `tokens`, of each row no more than so many, and the chunk is over."""
        if tokens is None:
            self.length += self._tokens
            tokens = [self._tokens] * len(self.rows)
        for row, count in zip(self.rows, tokens, strict=True):
            self.cache._rows[row].length += count

    @property
    def visible(self) -> int:
        """Positions that `view` shows: those written, or for one token in bfloat16 on a CPU a whole bucket.

        What is not written yet is then hidden by a mask (`llm.attention_mask`).
        """
        stop = self.length + self._tokens
        return bucket(stop) if self._tokens == 1 and self._whole_buckets else stop

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `KVCache`."""
        stop = self.length + self._tokens
        for rows, slab, slots in self._runs:
            slab.keys[layer][slots, :, self.length : stop] = key[rows]
            slab.values[layer][slots, :, self.length : stop] = value[rows]

    def view(self, layer: int) -> list[View]:
        """See `KVCache`."""
        return [
            View(rows, self._seen(slab.keys[layer][slots]), self._seen(slab.values[layer][slots]), None)
            for rows, slab, slots in self._runs
        ]

    def _seen(self, buffer: Tensor) -> Tensor:
        if buffer.shape[2] == self.visible:
            return buffer
        seen = buffer[:, :, : self.visible]
        if not self._whole_buckets:
            return seen
        if seen.transpose(2, 3).stride(3) == 1:  # keys by channel stay so
            return seen.transpose(2, 3).contiguous().transpose(2, 3)
        return seen.contiguous()


def new_rows(config: LLMConfig, batch: int, *, device: torch.device | str, dtype: torch.dtype) -> Chunk:
    """So many rows without tokens, in a cache of their own."""
    cache = RowCache(config, slots=batch, device=device, dtype=dtype)
    return Chunk(cache, [cache.take() for _ in range(batch)])


class Step:
    """Rows of any length that each read one token, step after step, until a row comes, goes or needs a larger slot.

    A row looks at its whole slot under a mask, so that what it computes depends on its own length alone.
    """

    def __init__(self, cache: RowCache, rows: Iterable[int]) -> None:
        """Raises AssertionError for rows without room for a token more (`RowCache.make_room`)."""
        self.cache, self.rows = cache, cache.together(rows)
        self.written = [cache.length(row) for row in self.rows]
        """Tokens of each row, on the host; `lengths` are the same on the device."""
        self.lengths = torch.tensor(self.written, device=cache.device)
        self.left = min(cache.held(row) - cache.length(row) for row in self.rows)
        """Steps until a row needs a larger slot."""
        assert self.left > 0, "a row without room"
        self._slabs = self._by_slab()

    def _by_slab(self) -> list["_Written"]:
        found: list[_Written] = []
        for rows, slab, slots in self.cache.runs(self.rows):
            if found and found[-1].slab is slab:
                found[-1].add(rows, slots)
            else:
                found.append(_Written(self.cache, slab, rows, slots))
        for each in found:
            each.place(self.lengths)
        return found

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `KVCache`; rows of the batch behind ours are padding."""
        for each in self._slabs:
            each.write(layer, key, value)

    def view(self, layer: int) -> list[View]:
        """See `KVCache`."""
        first, *others = self._slabs
        return [*first.views[layer], *(view for each in others for view in each.views[layer])]

    def end(self) -> None:
        """The token of every row is read."""
        self.left -= 1
        self.lengths += 1
        self.written = [length + 1 for length in self.written]
        for row in self.rows:
            self.cache._rows[row].length += 1
        for each in self._slabs:
            each.go_on(self.left > 0)


class _Written:
    """The rows of a step that stand in one slab: where they write, what they see.

    Neither moves while the step lasts, so all of it is made once.
    """

    def __init__(self, cache: RowCache, slab: Slab, rows: slice, slots: slice) -> None:
        self.cache, self.slab = cache, slab
        self.rows, self.runs = rows, [(rows, slots)]
        self.keys: list[Tensor] = []
        """Of every layer, as a list of what `keys_at` counts: tokens, or numbers where keys lie by channel."""
        self.values: list[Float[Tensor, "places head"]] = []
        self.views: list[list[View]] = []
        self.keys_at: Int[Tensor, " written"]
        self.values_at: Int[Tensor, " written"]
        self.newest: Int[Tensor, " rows"]
        self.mask: Float[Tensor, "rows 1 1 keys"]

    def add(self, rows: slice, slots: slice) -> None:
        self.rows = slice(self.rows.start, rows.stop)
        self.runs.append((rows, slots))

    def place(self, lengths: Int[Tensor, " batch"]) -> None:
        """Places of the new token: in the buffers, seen as rows of one head; in the mask, seen as a list."""
        lengths, keys, device = lengths[self.rows], self.slab.length, self.cache.device
        heads = torch.arange(self.cache.config.heads, device=device)
        slots = torch.cat([torch.arange(run.start, run.stop, device=device) for _, run in self.runs])
        own = slots[:, None] * len(heads) + heads  # (rows, heads)
        self.values_at = self.keys_at = (own * keys + lengths[:, None]).flatten()
        if self.slab.by_channel:
            channels = torch.arange(self.cache.config.head_width, device=device)
            places = (own[:, :, None] * len(channels) + channels) * keys + lengths[:, None, None]
            self.keys_at = places.flatten()
        self.newest = torch.arange(len(slots), device=device) * keys + lengths
        unseen = torch.arange(keys, device=device) > lengths[:, None]
        mask = torch.zeros(unseen.shape, device=device, dtype=self.cache.dtype)
        self.mask = mask.masked_fill_(unseen, -torch.inf)[:, None, None]
        for layer in range(self.slab.layers):
            self._look(layer)

    def _look(self, layer: int) -> None:
        keys, values, first = self.slab.keys[layer], self.slab.values[layer], self.rows.start
        width = values.shape[3]
        self.keys.append(keys.transpose(2, 3).view(-1) if self.slab.by_channel else keys.view(-1, width))
        self.values.append(values.view(-1, width))
        self.views.append(
            [
                View(rows, keys[slots], values[slots], self.mask[rows.start - first : rows.stop - first])
                for rows, slots in self.runs
            ]
        )

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        if len(key) > self.rows.stop - self.rows.start:
            key, value = key[self.rows], value[self.rows]
        width = value.shape[3]
        self.values[layer].index_copy_(0, self.values_at, value.reshape(-1, width))
        key = key.flatten() if self.slab.by_channel else key.reshape(-1, width)
        self.keys[layer].index_copy_(0, self.keys_at, key)

    def go_on(self, more: bool) -> None:
        self.values_at += 1
        if self.slab.by_channel:
            self.keys_at += 1
        self.newest += 1
        if more:
            self.mask.view(-1).index_fill_(0, self.newest, 0.0)
