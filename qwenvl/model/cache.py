"""Keys and values of the tokens read so far.

Each layer has a buffer of its own that grows in buckets: a long answer never reserves its whole length, and growing
needs one layer's memory more, not a second cache.

    layer 0   (rows, heads, bucket, head)    tokens 0 .. length - 1 are written, the rest of the bucket is zero
"""

from collections.abc import Collection

import torch
from torch import Tensor

from qwenvl.config import LLMConfig
from qwenvl.model.decode_attention import new_keys


def bucket(tokens: int) -> int:
    """The length of the buffer that holds so many tokens: a multiple of 64, beyond 512 of 256."""
    step = 64 if tokens <= 512 else 256
    return -(-tokens // step) * step


class KVCache:
    """Keys (after rotation) and values of rows of equal length.

    `segments` remembers which cached positions belong to which document (0 = padding); None until a call gives them.
    """

    def __init__(
        self, config: LLMConfig, batch: int, capacity: int, *, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        shape = (batch, config.heads, 0, config.head_width)
        self.keys = [new_keys(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.segments: Tensor | None = None
        self.capacity, self.length = capacity, 0
        self._whole_buckets = dtype == torch.bfloat16 and torch.device(device).type == "cpu"

    def visible(self, tokens: int) -> int:
        """How many positions `extend` returns after `tokens` more: those written, or for one token a whole bucket.

        Matrix products in bfloat16 on a CPU take eight times as long on a part of a buffer as on all of it; what is
        not written yet is then hidden by a mask (`llm.attention_mask`).
        """
        stop = self.length + tokens
        return bucket(stop) if tokens == 1 and self._whole_buckets else stop

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens of one layer behind `length`; returns the first `visible` positions of every row."""
        stop, visible = self.length + key.shape[2], self.visible(key.shape[2])
        assert stop <= self.capacity, f"{stop} tokens in a cache of {self.capacity}"
        for buffers, new in ((self.keys, key), (self.values, value)):
            if buffers[layer].shape[2] < stop:
                buffers[layer] = self._grown(buffers[layer], bucket(stop), buffers is self.keys)
            buffers[layer][:, :, self.length : stop] = new
        return self.keys[layer].narrow(2, 0, visible), self.values[layer].narrow(2, 0, visible)

    def _grown(self, old: Tensor, length: int, keys: bool) -> Tensor:
        rows, heads, _, width = old.shape
        shape = (rows, heads, length, width)
        new = new_keys(shape, device=old.device, dtype=old.dtype) if keys else old.new_zeros(shape)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def free(self, rows: Collection[int]) -> list[int]:
        """Let these rows go: rows from the end move into their places. Returns the row that each place left now has."""
        left = [row for row in range(self.keys[0].shape[0]) if row not in rows]
        moving = [row for row in left if row >= len(left)]
        order = [place if place not in rows else moving.pop() for place in range(len(left))]
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                for place, row in enumerate(order):
                    if place != row:
                        buffer[place, :, : self.length] = buffer[row, :, : self.length]
                buffers[layer] = buffer[: len(left)]
        self.segments = None if self.segments is None else self.segments[order]
        return order
