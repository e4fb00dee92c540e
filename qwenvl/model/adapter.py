"""Position-aware vision-language adapter (paper 2.1).

A single cross-attention layer: learned queries read any grid of patch features. Fixed 2D sine-cosine positions are
added to queries and keys, never to values, so that compression does not lose *where* things are. Behind it stand one
LayerNorm and one square projection into the language model (the release's `ln_post` and `proj`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qwenvl.config import AdapterConfig
from qwenvl.model.vision import interpolate_positions, merge_heads, sdpa


class Adapter(nn.Module):
    """`queries` visual tokens from any square number of patches."""

    def __init__(self, config: AdapterConfig, vision_width: int, hidden: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.position: Tensor
        self.query = nn.Parameter(torch.empty(config.queries, hidden).normal_(std=0.02))
        self.register_buffer("position", sine_cosine_2d(math.isqrt(config.queries), hidden))
        self.to_hidden = (
            nn.Identity() if vision_width == hidden else nn.Linear(vision_width, hidden, bias=False)
        )
        self.norm_kv = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.norm_q = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm_out = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.project = nn.Parameter(torch.empty(hidden, hidden).normal_(std=hidden**-0.5))

    def forward(
        self, patches: Float[Tensor, "images patches vision_width"]
    ) -> Float[Tensor, "images queries hidden"]:
        values = self.norm_kv(self.to_hidden(patches))  # (images, patches, hidden)
        keys = values + interpolate_positions(self.position, patches.shape[1])
        queries = self.norm_q(self.query) + self.position  # (queries, hidden)
        visual = self.attend(queries.expand(patches.shape[0], -1, -1), keys, values)
        return self.norm_out(visual) @ self.project

    def attend(
        self,
        queries: Float[Tensor, "images queries hidden"],
        keys: Float[Tensor, "images patches hidden"],
        values: Float[Tensor, "images patches hidden"],
    ) -> Float[Tensor, "images queries hidden"]:
        """Multi-head cross-attention; the rows of `qkv` are ordered [all queries, all keys, all values]."""
        query, key, value = (
            third_of(self.qkv, each, which).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for which, each in enumerate((queries, keys, values))
        )  # (images, heads, queries or patches, head)
        return self.out(merge_heads(sdpa(query, key, value)))


def third_of(layer: Any, rows: Float[Tensor, "*rows width"], which: int) -> Float[Tensor, "*rows out"]:
    """`rows` through the first, second or last third of the layer's outputs.

    A plain matrix is cut, and computes what is needed. What stands for one (quantised, adapted by LoRA, waiting on
    another device) is called as the layer it is, for three times the work: its weight is nobody else's business.
    """
    if not _is_plain(layer, rows):
        return layer(rows).chunk(3, dim=-1)[which]
    return F.linear(rows, layer.weight.chunk(3)[which], layer.bias.chunk(3)[which])


def _is_plain(layer: Any, rows: Tensor) -> bool:
    """Whether the layer is a matrix and nothing more, where its input is."""
    ours = type(layer) is nn.Linear and layer.weight.device == rows.device
    return ours and not is_traceable_wrapper_subclass(layer.weight)


def sine_cosine_2d(side: int, width: int) -> Float[Tensor, "positions width"]:
    """Fixed positions of a `side` x `side` grid, row by row: half the channels say the column, half the row.

    Each half is [sin(p f), cos(p f)] with frequencies f = 10000^(-i / (width / 4)) (as in MAE).
    """
    with torch.device("cpu"):
        frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        halves = [axis.reshape(-1, 1) * frequencies for axis in (column, row)]  # (positions, width / 4) each
        table = torch.cat([wave for half in halves for wave in (half.sin(), half.cos())], dim=1).float()
    return table.to(torch.get_default_device())
