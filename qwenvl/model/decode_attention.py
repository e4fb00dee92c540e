"""Attention of one new token per row on a CPU, at the speed of memory.

A decode step reads every cached key and value once and computes next to nothing, so only the reading counts. Products
of a matrix by one vector are not made for that in bfloat16 (the matrix is reordered first), while `embedding_bag`, the
weighted sum of the rows of a table, is:

    output of a head   = sum over tokens t    of weight[t] * value[t]        table of values: a row per token
    scores of a head   = sum over channels c  of query[c] * keys[c, :]       table of keys: a row per channel

The second holds where the cache keeps its keys channel by channel (`keys_by_channel`). The bits of a row depend on
neither its neighbours nor on how far the buffer reaches beyond it.
"""

from functools import cache as once

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

WIDE = 128
"""Channels of a head from which float32 gains too; the fused kernel is as fast on narrower ones."""


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `decode_attention` is the faster way, and one without gradients; the same for any number of rows."""
    return (
        query.shape[2] == 1
        and query.device.type == "cpu"
        and (query.dtype == torch.bfloat16 or (query.dtype == torch.float32 and query.shape[3] >= WIDE))
        and value.is_contiguous()
        and (key.is_contiguous() or key.transpose(2, 3).is_contiguous())
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and _has_vectors()
    )


def decode_attention(
    query: Float[Tensor, "batch heads 1 head"],
    key: Float[Tensor, "batch heads keys head"],
    value: Float[Tensor, "batch heads keys head"],
    mask: Float[Tensor, "_ 1 1 keys"] | None,
) -> Float[Tensor, "batch heads 1 head"]:
    """Attention to everything, or to what `mask` allows; the head's output of a row is the newest token's."""
    batch, heads, keys, width = key.shape
    rows = query.reshape(-1, 1, width)  # (batch x heads, 1, head)
    by_channel = key.transpose(2, 3)  # (batch, heads, head, keys)
    if by_channel.is_contiguous():
        scores = _weighted_sums(by_channel.view(-1, keys), rows.flatten(1))
    elif key.dtype == torch.float32:
        scores = torch.bmm(key.view(-1, keys, width), rows.transpose(1, 2))
    else:
        scores = torch.bmm(rows, by_channel.flatten(0, 1))
    scores = scores.view(batch, heads, 1, keys)
    scores = scores * width**-0.5 if mask is None else torch.add(mask, scores, alpha=width**-0.5)
    weights = scores.softmax(dim=-1).view(-1, keys)
    return _weighted_sums(value.view(-1, width), weights).view(batch, heads, 1, width)


def keys_by_channel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a cache keeps its keys channel by channel, as `decode_attention` then reads them: bfloat16 on a CPU."""
    return dtype == torch.bfloat16 and device.type == "cpu"


def _weighted_sums(
    table: Float[Tensor, "entries width"], weights: Float[Tensor, "sums terms"]
) -> Float[Tensor, "sums width"]:
    """Sum i is that of the next `terms` entries of the table, each by its weight."""
    count = _count_to(1 << (len(table) - 1).bit_length())[: len(table)]
    return F.embedding_bag(
        count, table, count[:: weights.shape[1]], mode="sum", per_sample_weights=weights.flatten()
    )


@once
def _count_to(stop: int) -> Int[Tensor, " numbers"]:
    return torch.arange(stop, dtype=torch.int32)


@once
def _has_vectors() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX")
