"""Name tables: every foreign tensor is one of ours under another name, some with their rows in another order.

Ours order the rows of each self-attention projection head by head, [query, key, value] within a head, so that a
contiguous share of rows is a share of heads (what tensor parallelism cuts). The official vision tower does the same;
Qwen-7B and OpenCLIP stack [all queries, all keys, all values].
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from qwenvl.config import ModelConfig

Layout = Callable[[Tensor, ModelConfig], Tensor]


def same(tensor: Tensor, config: ModelConfig) -> Tensor:
    """The same rows in the same order."""
    return tensor


def _stacked_to_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)


def _heads_to_stacked(tensor: Tensor, heads: int) -> Tensor:
    return tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def llm_stacked_to_heads(tensor: Tensor, config: ModelConfig) -> Tensor:
    """Rows [Q, K, V] of the language model to rows head by head."""
    return _stacked_to_heads(tensor, config.llm.heads)


def llm_heads_to_stacked(tensor: Tensor, config: ModelConfig) -> Tensor:
    """The reverse of `llm_stacked_to_heads`."""
    return _heads_to_stacked(tensor, config.llm.heads)


def vision_stacked_to_heads(tensor: Tensor, config: ModelConfig) -> Tensor:
    """Rows [Q, K, V] of the vision encoder to rows head by head."""
    return _stacked_to_heads(tensor, config.vision.heads)


def vision_heads_to_stacked(tensor: Tensor, config: ModelConfig) -> Tensor:
    """The reverse of `vision_stacked_to_heads`."""
    return _heads_to_stacked(tensor, config.vision.heads)


def without_class_token(tensor: Tensor, config: ModelConfig) -> Tensor:
    """OpenCLIP's first position belongs to its class token, which Qwen-VL does not have."""
    return tensor[1:]


@dataclass(frozen=True)
class Map:
    """Our name for a foreign tensor, and how its rows are reordered on the way in and out (None: no way out)."""

    ours: str
    to_ours: Layout = same
    to_foreign: Layout | None = same


def _both(foreign: str, ours: str, *layouts: Layout) -> dict[str, Map]:
    """A module with a weight and a bias."""
    return {f"{foreign}.{part}": Map(f"{ours}.{part}", *layouts) for part in ("weight", "bias")}


QWEN_7B: Mapping[str, Map] = {
    "transformer.wte.weight": Map("llm.embed.weight"),
    "transformer.h.{i}.ln_1.weight": Map("llm.blocks.{i}.norm_1.weight"),
    **_both(
        "transformer.h.{i}.attn.c_attn",
        "llm.blocks.{i}.attention.qkv",
        llm_stacked_to_heads,
        llm_heads_to_stacked,
    ),
    **_both("transformer.h.{i}.attn.c_proj", "llm.blocks.{i}.attention.out"),
    "transformer.h.{i}.ln_2.weight": Map("llm.blocks.{i}.norm_2.weight"),
    **_both("transformer.h.{i}.mlp.w1", "llm.blocks.{i}.mlp.up"),
    **_both("transformer.h.{i}.mlp.w2", "llm.blocks.{i}.mlp.gate"),  # silu is applied to w2, not w1
    **_both("transformer.h.{i}.mlp.c_proj", "llm.blocks.{i}.mlp.down"),
    "transformer.ln_f.weight": Map("llm.norm.weight"),
    "lm_head.weight": Map("llm.head.weight"),
}
"""Qwen-7B, the initialisation of the language model in stage 1."""

_LLAMA = "model.layers.{i}"

LLAMA: Mapping[str, Map] = {
    "model.embed_tokens.weight": Map("llm.embed.weight"),
    f"{_LLAMA}.input_layernorm.weight": Map("llm.blocks.{i}.norm_1.weight"),
    **_both(
        f"{_LLAMA}.self_attn.qkv_proj",
        "llm.blocks.{i}.attention.qkv",
        llm_stacked_to_heads,
        llm_heads_to_stacked,
    ),
    **_both(f"{_LLAMA}.self_attn.o_proj", "llm.blocks.{i}.attention.out"),
    f"{_LLAMA}.post_attention_layernorm.weight": Map("llm.blocks.{i}.norm_2.weight"),
    **_both(f"{_LLAMA}.mlp.up_proj", "llm.blocks.{i}.mlp.up"),
    **_both(f"{_LLAMA}.mlp.gate_proj", "llm.blocks.{i}.mlp.gate"),
    **_both(f"{_LLAMA}.mlp.down_proj", "llm.blocks.{i}.mlp.down"),
    "model.norm.weight": Map("llm.norm.weight"),
    "lm_head.weight": Map("llm.head.weight"),
}
"""The language model as others' Llama: the same arithmetic, with queries, keys and values stacked."""

_BLOCK, _POOL = "transformer.visual.transformer.resblocks.{i}", "transformer.visual.attn_pool"

OFFICIAL: Mapping[str, Map] = {
    **QWEN_7B,
    "transformer.visual.conv1.weight": Map("vision.patch_embed.weight"),
    "transformer.visual.positional_embedding": Map("vision.position"),
    **_both("transformer.visual.ln_pre", "vision.norm_pre"),
    **_both(f"{_BLOCK}.ln_1", "vision.blocks.{i}.norm_1"),
    **_both(f"{_BLOCK}.attn.in_proj", "vision.blocks.{i}.attention.qkv"),
    **_both(f"{_BLOCK}.attn.out_proj", "vision.blocks.{i}.attention.out"),
    **_both(f"{_BLOCK}.ln_2", "vision.blocks.{i}.norm_2"),
    **_both(f"{_BLOCK}.mlp.c_fc", "vision.blocks.{i}.up"),
    **_both(f"{_BLOCK}.mlp.c_proj", "vision.blocks.{i}.down"),
    f"{_POOL}.query": Map("adapter.query"),
    f"{_POOL}.pos_embed": Map("adapter.position"),
    f"{_POOL}.kv_proj.weight": Map("adapter.to_hidden.weight"),
    **_both(f"{_POOL}.ln_kv", "adapter.norm_kv"),
    **_both(f"{_POOL}.ln_q", "adapter.norm_q"),
    f"{_POOL}.attn.in_proj_weight": Map("adapter.qkv.weight"),
    f"{_POOL}.attn.in_proj_bias": Map("adapter.qkv.bias"),
    **_both(f"{_POOL}.attn.out_proj", "adapter.out"),
    **_both("transformer.visual.ln_post", "adapter.norm_out"),
    "transformer.visual.proj": Map("adapter.project"),
}
"""Qwen-VL and Qwen-VL-Chat as released."""

_CLIP = "visual.transformer.resblocks.{i}"

OPENCLIP: Mapping[str, Map] = {
    "visual.conv1.weight": Map("vision.patch_embed.weight", same, None),
    "visual.positional_embedding": Map("vision.position", without_class_token, None),
    **_both("visual.ln_pre", "vision.norm_pre"),
    **_both(f"{_CLIP}.ln_1", "vision.blocks.{i}.norm_1"),
    f"{_CLIP}.attn.in_proj_weight": Map(
        "vision.blocks.{i}.attention.qkv.weight", vision_stacked_to_heads, vision_heads_to_stacked
    ),
    f"{_CLIP}.attn.in_proj_bias": Map(
        "vision.blocks.{i}.attention.qkv.bias", vision_stacked_to_heads, vision_heads_to_stacked
    ),
    **_both(f"{_CLIP}.attn.out_proj", "vision.blocks.{i}.attention.out"),
    **_both(f"{_CLIP}.ln_2", "vision.blocks.{i}.norm_2"),
    **_both(f"{_CLIP}.mlp.c_fc", "vision.blocks.{i}.up"),
    **_both(f"{_CLIP}.mlp.c_proj", "vision.blocks.{i}.down"),
}
"""The image side of an OpenCLIP ViT, the initialisation of the vision encoder in stage 1."""

_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


def ours(foreign: str, table: Mapping[str, Map]) -> tuple[str, Layout] | None:
    """Our name and layout for a foreign tensor; None when the table does not know it."""
    index = _INDEX.search(foreign)
    entry = table.get(_INDEX.sub("{i}", foreign, count=1))
    return (entry.ours.format(i=index and index[0]), entry.to_ours) if entry else None


def foreign(ours: str, table: Mapping[str, Map]) -> tuple[str, Layout] | None:
    """The foreign name and layout for one of our tensors; None when the table has no way out for it."""
    index = _INDEX.search(ours)
    pattern = _INDEX.sub("{i}", ours, count=1)
    for name, entry in table.items():
        if entry.ours == pattern and entry.to_foreign:
            return name.format(i=index and index[0]), entry.to_foreign
    return None


def check_names(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise one ValueError that names the missing, unknown and misshapen tensors of a checkpoint."""
    problems = [
        *(f"missing {name} {tuple(expected[name])}" for name in expected if name not in found),
        *(f"unknown {name} {tuple(found[name])}" for name in found if name not in expected),
        *(
            f"{name} has shape {tuple(found[name])}, expected {tuple(expected[name])}"
            for name in expected
            if name in found and tuple(found[name]) != tuple(expected[name])
        ),
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit its config.json: {_shortened(problems)}. Use the folder's own files."
        )


def _shortened(problems: Iterable[str], most: int = 3) -> str:
    listed = list(problems)
    more = f"; and {len(listed) - most} more" if len(listed) > most else ""
    return "; ".join(listed[:most]) + more
