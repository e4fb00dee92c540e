"""Masks, positions and caches of transformers, as our blocks take them.

A cache of transformers grows (`DynamicCache`) or has its full length from the start (`StaticCache`, whose shapes never
change, so that a decoding step is compiled once). Either keeps the keys; our blocks only `write` and `view`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from qwenvl.config import LLMConfig
from qwenvl.model.cache import View
from qwenvl.model.llm import (
    BRANCHES,
    AttentionContext,
    Block,
    attention_mask,
    log_n_scale,
    ntk_alpha,
    rotary_tables,
)


class LayerCache:
    """Lets our blocks write into the cache that transformers owns, reorders and crops: a `KVCache` of ours."""

    def __init__(self, past: Cache, places: Tensor) -> None:
        self.past, self.places = past, places
        self.latest: Tensor  # the keys of the layer that was written last
        self._values: Tensor

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Store the new tokens of one layer."""
        at = {
            "cache_position": self.places
        }  # what a static cache of transformers 5.0 goes by; later ones count
        self.latest, self._values = self.past.update(key, value, layer, at)

    def view(self, layer: int) -> list[View]:
        """Everything stored, new tokens included."""
        return [View(slice(0, len(self.latest)), self.latest, self._values, None)]


def fixed_length(past: Cache | None) -> int:
    """Tokens that a static cache has room for; 0 for one that grows."""
    if past is None or not past.is_compileable:
        return 0
    return (past.get_max_length if hasattr(past, "get_max_length") else past.get_max_cache_shape)()


def context(
    hidden: Tensor,
    config: LLMConfig,
    *,
    mask: Tensor | None,
    position_ids: Tensor | None,
    past: Cache | None,
    training: bool,
    tensor_mask: bool = False,
) -> AttentionContext:
    """What every block is told about `hidden` (batch, tokens, hidden), behind what `past` holds.

    `mask` is (batch, tokens stored and new), 0 on padding, or (batch, 1, tokens, keys) as transformers makes it for a
    static cache. `position_ids` that begin again within a row begin another document, where neither a cache nor
    padding is in play, as in the padding-free batches of trainers. `tensor_mask`: the mask comes as a tensor or None.
    """
    tokens = hidden.shape[1]
    stored = 0 if past is None else past.get_seq_length()
    places = torch.arange(tokens, device=hidden.device) + stored
    fresh = not fixed_length(past) and stored == 0
    mask = _that_hides(mask, tokens, None if fixed_length(past) else stored + tokens)
    flat = mask if mask is not None and mask.ndim == 2 else None
    if position_ids is None:
        position_ids = places[None] if flat is None else (flat.cumsum(1) - 1).clamp(min=0)[:, -tokens:]
    known = _documents(position_ids) if mask is None and past is None else flat
    known = None if known is None else known * BRANCHES
    if mask is not None and mask.ndim == 4:
        seen: Any = _from_transformers(mask, hidden)
    elif fresh and not tensor_mask:
        seen = attention_mask(known, tokens, None, hidden)
    elif known is None and not fixed_length(past) and (tokens == 1 or fresh):
        seen = None
    else:
        seen = _visible(known, places, fixed_length(past) or stored + tokens, hidden)
    stretch = None if training else long_context(config, position_ids, hidden, past)
    return AttentionContext(
        rotation=rotary_tables(position_ids, config, stretch),
        query_scale=None if stretch is None else log_n_scale(position_ids, config),
        mask=seen,
        cache=None if past is None else LayerCache(past, places),
    )


def long_context(config: LLMConfig, positions: Tensor, hidden: Tensor, past: Cache | None) -> Tensor | None:
    """Each row's stretch, fixed by its prompt and remembered on the cache; None while all is within training.

    A static cache that has room beyond the trained length is told at the prompt, so that no later step has to ask.
    """
    known: Tensor | None = getattr(past, "ntk_alpha", None)
    if known is not None:
        return known
    max_remaining = fixed_length(past)
    stored = 0 if past is None else past.get_seq_length()
    if (max_remaining or stored + hidden.shape[1]) <= config.sequence_length:
        return None
    furthest = positions.amax(1).expand(len(hidden)) + 1 if stored == 0 else torch.ones(len(hidden))
    alpha = torch.tensor([ntk_alpha(max(1, int(n)), config) for n in furthest.tolist()], device=hidden.device)
    if past is not None and stored == 0:
        past.ntk_alpha = alpha
    return alpha


def weights_of(block: Block, hidden: Tensor, around: AttentionContext) -> Tensor:
    """How much each new token of `hidden`, the block's input, looked at each key: (batch, heads, tokens, keys).

    Computed beside the block, which never forms them; `around.mask` must be a tensor or None.
    """
    layer = block.attention
    query, key, _ = layer.heads(block.norm_1(hidden), around)
    if isinstance(around.cache, LayerCache):
        key = around.cache.latest
    scores = query @ key.transpose(-1, -2) * layer.head_width**-0.5
    if around.mask is not None:
        scores = scores + around.mask
    elif query.shape[2] > 1:
        scores = scores + _visible(
            None, torch.arange(query.shape[2], device=key.device), key.shape[2], hidden
        )
    return scores.float().softmax(-1).to(hidden.dtype)


def _that_hides(mask: Tensor | None, tokens: int, expected: int | None) -> Tensor | None:
    """The mask where it hides something, else None: then plain causality says it all. Traced, it always counts."""
    if mask is None or mask.ndim == 4:
        return mask
    if mask.ndim != 2:
        raise ValueError(
            f"attention_mask has {mask.ndim} dimensions; give one column per token, or four as in SDPA."
        )
    if expected is not None and mask.shape[1] != expected:
        raise ValueError(
            f"attention_mask has {mask.shape[1]} columns for {expected} tokens, cached ones included; "
            "give one column each."
        )
    if not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return mask.long()


def _documents(position_ids: Tensor) -> Tensor | None:
    """Numbers from 1 of the documents of each row, one begun wherever positions do not go on; None for one each."""
    begins = position_ids.diff(dim=1) != 1
    if not torch.compiler.is_compiling() and not bool(begins.any()):
        return None
    return F.pad(begins.long().cumsum(1), (1, 0)) + 1


def _visible(known: Tensor | None, places: Tensor, keys: int, hidden: Tensor) -> Tensor:
    """0 where a new token sees a key, else -inf: (batch or 1, 1, tokens, keys); of its own document."""
    visible = (torch.arange(keys, device=hidden.device) <= places[:, None])[None]  # (1, tokens, keys)
    if known is not None:
        padded = F.pad(known, (0, keys - known.shape[1]))
        visible = visible & (padded[:, None, :] == padded[:, places][:, :, None])
    blocked = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
    return blocked.masked_fill_(~visible, -torch.inf)[:, None]


def _from_transformers(mask: Tensor, hidden: Tensor) -> Tensor:
    """A mask of four dimensions, True where seen or added to the scores; a row that sees nothing must not give NaN."""
    lowest = torch.finfo(hidden.dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=hidden.dtype).masked_fill_(~mask, lowest)
    return mask.to(hidden.dtype).clamp(min=lowest)
