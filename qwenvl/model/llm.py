"""Language model (paper 2.1): the Qwen-7B decoder.

RMSNorm before attention and perceptron, rotary positions, a gated perceptron, an untied head. Beyond the trained
length, inference stretches the rotary base by the prompt's length (dynamic NTK) and scales late queries by log n; both
are arguments here (`long_context`), not module state, so rows of one batch may differ and training never sees them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from qwenvl.config import LLMConfig
from qwenvl.model.cache import KVCache, View
from qwenvl.model.cached_rows import Chunk
from qwenvl.model.vision import merge_heads, sdpa

LONG_ROW = 1024
"""Rows from this length on are attended to document by document, where no kernel skips what is not seen."""

BRANCHES = 1024
"""Segment numbers are document * BRANCHES + branch; branch 0 is the trunk that all branches of a document see."""


class LLM(nn.Module):
    """Embedding, blocks, final norm and head; the caller places the images between embedding and blocks."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = nn.Linear(config.hidden, config.vocab_size, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        *,
        positions: Int[Tensor, "batch tokens"] | None = None,
        segments: Int[Tensor, "batch keys"] | None = None,
        cache: Chunk | None = None,
        long_context: Float[Tensor, " batch"] | None = None,
        only: Int[Tensor, " wanted"] | None = None,
    ) -> Float[Tensor, "*wanted hidden"]:
        """Normalised hidden states, ready for `head`; `vlm.ForwardKwargs` tells what the arguments mean.

        With `only`, those of these tokens alone, counted through all rows: no others pass the last perceptron.
        """
        tokens, start = hidden.shape[1], cache.begin(hidden.shape[1]) if cache else 0
        if positions is None:
            positions = torch.arange(start, start + tokens, device=hidden.device)[None]
        context = AttentionContext(
            rotation=rotary_tables(positions, self.config, long_context),
            query_scale=None if long_context is None else log_n_scale(positions, self.config),
            mask=attention_mask(segments, tokens, cache, hidden),
            cache=cache,
        )
        for index, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, context, only if index == len(self.blocks) else None)
        if cache:
            cache.end()
        return self.norm(hidden)


Spans = list[tuple[int, int, Tensor | None]]
"""The documents of a row: where each begins and ends, and its mask (1, 1, tokens, tokens); None: plain causality."""


@dataclass(frozen=True)
class Documents:
    """What is seen in rows that hold several documents."""

    rows: list[Spans]


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What every block is told beside the channels of the tokens; the same in all of them."""

    rotation: tuple[Tensor, Tensor]
    """Cosines and sines of `rotary_tables`."""
    query_scale: Float[Tensor, "_ 1 tokens 1"] | None
    mask: Float[Tensor, "_ 1 tokens keys"] | BlockMask | Documents | None
    cache: KVCache | None


class Block(nn.Module):
    """Attention and gated perceptron, each behind an RMSNorm and a residual."""

    def __init__(self, config: LLMConfig, index: int) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, index)
        self.norm_2 = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        context: AttentionContext,
        only: Int[Tensor, " wanted"] | None = None,
    ) -> Float[Tensor, "*wanted hidden"]:
        """Every token, or `only` some of all rows: behind the attention no token looks at another."""
        hidden = hidden + self.attention(self.norm_1(hidden), context)
        if only is not None:
            hidden = hidden.flatten(0, 1)[only]
        return hidden + self.mlp(self.norm_2(hidden))

    def in_slices(
        self, hidden: Float[Tensor, "batch tokens hidden"], context: AttentionContext, tokens: int
    ) -> Iterator[Float[Tensor, "batch tokens hidden"] | None]:
        """What `forward` computes, with a None after the attention and after every so many tokens of the perceptron."""
        hidden = hidden + self.attention(self.norm_1(hidden), context)
        parts = []
        for part in hidden.split(tokens, dim=1):
            yield None
            parts.append(part + self.mlp(self.norm_2(part)))
        yield torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class Attention(nn.Module):
    """Causal self-attention; the rows of `qkv` are ordered head by head, each [query, key, value]."""

    def __init__(self, config: LLMConfig, index: int) -> None:
        super().__init__()
        self.head_width, self.index = config.head_width, index
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden)
        self.out = nn.Linear(config.hidden, config.hidden, bias=config.bias)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens hidden"],
        context: AttentionContext,
    ) -> Float[Tensor, "batch tokens hidden"]:
        query, key, value = self.heads(hidden, context)
        if context.cache is None:
            return self.out(merge_heads(attend(query, key, value, context.mask)))
        context.cache.write(self.index, key, value)
        return self.out(merge_heads(attend_to_cache(query, context.cache.view(self.index), context.mask)))

    def heads(
        self, hidden: Float[Tensor, "batch tokens hidden"], context: AttentionContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, scaled for long texts, key and value of each head, the first two rotated (`rotated_heads`)."""
        query, key, value = rotated_heads(self.qkv(hidden), self.head_width, context.rotation)
        if context.query_scale is not None:
            query = query * context.query_scale.to(query.dtype)
        return query, key, value


def attend_to_cache(
    query: Float[Tensor, "batch heads tokens head"], views: Sequence[View], mask: Any
) -> Float[Tensor, "batch heads tokens head"]:
    """Attention to what a cache shows, run of rows by run of rows; rows that no view speaks of are padding: zeros.

    `mask` is that of the `AttentionContext`, for views without one of their own.
    """
    if len(views) == 1 and views[0].rows.stop == len(query):
        (view,) = views
        return attend(query, view.keys, view.values, mask if view.mask is None else view.mask)
    seen = []
    for view in views:
        own = mask if view.mask is None else view.mask
        if view.mask is None and isinstance(mask, Tensor) and len(mask) > 1:
            own = mask[view.rows]
        seen.append(attend(query[view.rows], view.keys, view.values, own))
    if padding := len(query) - views[-1].rows.stop:
        seen.append(torch.zeros_like(query[:padding]))
    return seen[0] if len(seen) == 1 else torch.cat(seen)


def attend(
    query: Float[Tensor, "batch heads tokens head"],
    key: Float[Tensor, "batch heads keys head"],
    value: Float[Tensor, "batch heads keys head"],
    mask: Float[Tensor, "_ 1 _ keys"] | BlockMask | Documents | None,
) -> Float[Tensor, "batch heads tokens head"]:
    """Causal attention, or what `mask` allows."""
    if isinstance(mask, Documents):
        return torch.cat([_attend_row(query, key, value, row, spans) for row, spans in enumerate(mask.rows)])
    if isinstance(mask, BlockMask):
        fused = (
            query.is_cuda and not torch.compiler.is_compiling()
        )  # inside a compiled block it is fused anyway
        flex: Any = _fused_flex() if fused else flex_attention
        return flex(query, key, value, block_mask=mask)
    tokens = query.shape[2]
    if mask is None and tokens > 1:
        short = tokens < LONG_ROW and not torch.is_grad_enabled()
        if not (short and query.dtype == torch.bfloat16 and query.device.type == "cpu"):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        mask = torch.full((1, 1, tokens, tokens), -torch.inf, dtype=query.dtype).triu_(1)
    return sdpa(query, key, value, mask)


def _attend_row(query: Tensor, key: Tensor, value: Tensor, row: int, documents: Spans) -> Tensor:
    """Attention of one row, document by document, as a batch of one."""
    seen = []
    for start, stop, mask in documents:
        own = (slice(row, row + 1), slice(None), slice(start, stop))
        seen.append(attend(query[own], key[own], value[own], mask))
    return torch.cat(seen, dim=2)


@once
def _fused_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


@once
def _fused_block_mask() -> Callable[[Tensor], BlockMask]:
    """Compiled, it holds no table of tokens by tokens. For training, whose rows keep one length: once for each."""
    return torch.compile(block_mask, dynamic=False)


class GatedMLP(nn.Module):
    """down(up(x) * silu(gate(x)))."""

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden, config.mlp_width, bias=config.bias)
        self.gate = nn.Linear(config.hidden, config.mlp_width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.hidden, bias=config.bias)

    def forward(self, hidden: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        return self.down(self.up(hidden) * F.silu(self.gate(hidden)))


class RMSNorm(nn.Module):
    """Scale to unit root mean square, which torch computes in float32, then weigh in the input's own precision."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        return F.rms_norm(hidden, self.weight.shape, eps=self.eps) * self.weight


def attention_mask(
    segments: Int[Tensor, "_ keys"] | None,
    tokens: int,
    cache: Chunk | None,
    hidden: Float[Tensor, "batch tokens hidden"],
) -> Float[Tensor, "_ 1 _ keys"] | BlockMask | Documents | None:
    """What each new token sees, as 0 or -inf added to the scores; None where plain causality says it all.

    A token sees itself and earlier tokens of its own segment and of its document's trunk:

        ids        [ img img | q1 a1 | q2 a2 | img | q pad ]
        segments   [ 1024    | 1025  | 1026  | 2048    0   ]   q2 sees img and q2, not q1 a1
    """
    if segments is not None and cache is None:
        if hidden.is_cuda:
            return (_fused_block_mask() if torch.is_grad_enabled() else block_mask)(segments)
        if tokens >= LONG_ROW and (rows := documents_of(segments, hidden)):
            return Documents(rows)
    start = cache.length if cache else 0
    if segments is None and tokens == 1 and cache:
        return hide_unwritten(None, cache, hidden)
    if segments is None and start == 0:
        return None
    if segments is None:
        mask = hidden.new_full((1, 1, tokens, start + tokens), -torch.inf).triu_(start + 1)
        return mask if cache is None else hide_unwritten(mask, cache, hidden)
    assert segments.shape[1] == start + tokens, "segments of all tokens, those in the cache too"
    mask = dense_mask(segments[:, -tokens:], segments, hidden)
    return mask if cache is None else hide_unwritten(mask, cache, hidden)


def hide_unwritten(
    mask: Float[Tensor, "_ 1 tokens written"] | None, cache: Chunk, hidden: Float[Tensor, "_ tokens _"]
) -> Float[Tensor, "_ 1 tokens keys"] | None:
    """The mask over all positions that `cache.view` will show, where those are more than have been written."""
    tokens = hidden.shape[1]
    written = cache.length + tokens
    unwritten = cache.visible - written
    if not unwritten:
        return mask
    if mask is None:
        mask = hidden.new_zeros(1, 1, tokens, written)
    return F.pad(mask, (0, unwritten), value=-torch.inf)


def dense_mask(
    own: Int[Tensor, "batch tokens"], known: Int[Tensor, "batch keys"], hidden: Float[Tensor, "_ tokens _"]
) -> Float[Tensor, "batch 1 tokens keys"]:
    """The rule as numbers: the last tokens of the known ones look at all of them."""
    index = torch.arange(known.shape[1], device=hidden.device)
    visible = (index <= index[-own.shape[1] :, None])[None]  # (1, tokens, keys)
    visible = visible & same_or_trunk(known[:, None, :], own[:, :, None])
    blocked = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
    return blocked.masked_fill_(~visible, -torch.inf)[:, None]


def same_or_trunk(known: Any, own: Any) -> Any:
    """Whether segments are `own`, or the trunk of its document: tensors or arrays that broadcast."""
    return (known == own) | (known == own - own % BRANCHES)


def documents_of(
    segments: Int[Tensor, "batch tokens"], hidden: Float[Tensor, "batch tokens _"]
) -> list[Spans]:
    """The same rule, document by document, where no kernel skips what is not seen; nothing where one is in pieces."""
    rows = []
    for row in segments:
        names, lengths = (row - row % BRANCHES).unique_consecutive(return_counts=True)
        known = names[names > 0]
        if len(known) != len(known.unique()):
            return []
        stops, spans = lengths.cumsum(0).tolist(), []
        for start, stop in zip([0, *stops], stops, strict=False):
            own = row[None, start:stop]
            branched = bool((own != own[:, :1]).any())
            spans.append((start, stop, dense_mask(own, own, hidden[:1, start:stop]) if branched else None))
        rows.append(spans)
    return rows


def block_mask(segments: Int[Tensor, "batch tokens"]) -> BlockMask:
    """The same rule over whole rows, for FlexAttention on a GPU, which skips blocks where nothing is seen."""
    rows, tokens = segments.shape
    trunks = segments - segments % BRANCHES
    return create_block_mask(
        lambda row, _, query, key: (
            (key <= query)
            & ((segments[row, key] == segments[row, query]) | (segments[row, key] == trunks[row, query]))
        ),
        *(rows, None, tokens, tokens),
        device=segments.device,
    )


def ntk_alpha(prompt_tokens: int, config: LLMConfig) -> float:
    """Stretch of the rotary base for a prompt of this length: 1 up to `sequence_length`, then 3, 7, 15 ...

    Fixed at prefill and kept while decoding, as the official model does.
    """
    if not config.dynamic_ntk:
        return 1.0
    doublings = math.ceil(math.log2(prompt_tokens / config.sequence_length) + 1)
    return float(max(2**doublings - 1, 1))


def rotary_tables(
    positions: Int[Tensor, "rows tokens"], config: LLMConfig, alpha: Float[Tensor, " batch"] | None
) -> tuple[Float[Tensor, "all 1 tokens pairs"], Float[Tensor, "all 1 tokens pairs"]]:
    """Cosines and sines, float32, for every row; `alpha` stretches the base of each row (None: 1)."""
    width = config.rotary_width
    stretch = torch.ones(1, dtype=torch.float64, device=positions.device) if alpha is None else alpha.double()
    base = (config.rope_base * stretch ** (width / (width - 2))).float()
    exponents = torch.arange(0, width, 2, device=positions.device).float() / width
    frequencies = 1.0 / base[:, None] ** exponents  # (rows, pairs)
    angles = positions[:, :, None].float() * frequencies[:, None, :]  # (rows, tokens, pairs)
    angles = angles[:, None]  # (rows, 1, tokens, pairs)
    return angles.cos(), angles.sin()


def rotated_heads(
    qkv: Float[Tensor, "batch tokens width3"], head_width: int, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Query and key, both rotated, and value, each (batch, heads, tokens, head); `qkv` is ordered head by head."""
    kinds = qkv.unflatten(-1, (-1, 3, head_width)).permute(3, 0, 2, 1, 4)  # (3, batch, heads, tokens, head)
    turning, (value,) = kinds.split((2, 1))
    query, key = rotate(turning, rotation)
    return query, key, value


def rotate(
    heads: Float[Tensor, "*kinds batch heads tokens head"], rotation: tuple[Tensor, Tensor]
) -> Float[Tensor, "*kinds batch heads tokens head"]:
    """Queries and keys with the first channels of each rotated (halves paired, as GPT-NeoX), in float32.

    One kind lies behind the other, and so do what becomes of them and their gradients.
    """
    cos, sin = rotation
    pairs = cos.shape[-1]
    wide = heads.to(torch.float32, memory_format=torch.contiguous_format)
    first, second, rest = wide.split((pairs, pairs, heads.shape[-1] - 2 * pairs), dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return turned.to(heads.dtype)


def log_n_scale(positions: Int[Tensor, "rows tokens"], config: LLMConfig) -> Float[Tensor, "rows 1 tokens 1"]:
    """Factor on late queries: log(p + 1) / log(sequence_length) past the trained length, else (and without log-n) 1."""
    logs = torch.log((positions + 1).double()) / math.log(config.sequence_length) * config.log_n
    return logs.clamp(min=1.0).float()[:, None, :, None]
