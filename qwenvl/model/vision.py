"""Vision encoder (paper 2.1, Table 1): a ViT-bigG/14 that returns every patch, with no class token and no pooling.

The learned positions are stored for a 16 x 16 grid at every stage and interpolated to the image's own grid on the
fly, in training too (authors, issue 215 of the official repository).
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qwenvl.config import POSITION_GRID, VisionConfig
from qwenvl.model.decode_attention import decode_attention, suits


class VisionTransformer(nn.Module):
    """Images to patch features; global attention in every block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, size = config.width, config.patch_size
        self.patch_embed = nn.Conv2d(3, width, kernel_size=size, stride=size, bias=False)
        self.position = nn.Parameter(torch.empty(POSITION_GRID**2, width).normal_(std=width**-0.5))
        self.norm_pre = nn.LayerNorm(width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))

    def forward(
        self, pixels: Float[Tensor, "images 3 side side"], residual: torch.dtype | None = None
    ) -> Float[Tensor, "images patches vision_width"]:
        """Any square image whose side is a multiple of the patch size; rows of patches from the top left.

        What the blocks add to is kept in the precision `residual`, None: in that of the patches.
        """
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)  # (images, patches, vision_width)
        patches = self.norm_pre(patches + interpolate_positions(self.position, patches.shape[1])).to(residual)
        for block in self.blocks:
            patches = block(patches)
        return patches


class VisionBlock(nn.Module):
    """Pre-norm transformer block with exact GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = VisionAttention(config)
        self.norm_2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(
        self, patches: Float[Tensor, "images patches vision_width"]
    ) -> Float[Tensor, "images patches vision_width"]:
        patches = patches + self.attention(self.norm_1(patches))
        return patches + self.down(F.gelu(self.up(self.norm_2(patches))))


class VisionAttention(nn.Module):
    """Unmasked self-attention; the rows of `qkv` are ordered head by head, each [query, key, value]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, patches: Float[Tensor, "images patches vision_width"]
    ) -> Float[Tensor, "images patches vision_width"]:
        query, key, value = split_heads(self.qkv(patches), self.head_width)
        with preferring(query.device):
            return self.out(merge_heads(sdpa(query, key, value)))


KERNELS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
"""What attends to patches on a GPU, the first that can: cuDNN's takes heads of 104 channels as they are."""


SCORES = 2**22
"""Scores in bfloat16 that a CPU makes at a time: 8 MB, those of four heads of the released ViT."""


def preferring(device: torch.device) -> AbstractContextManager[object]:
    """The kernels in their order where there is a choice; around the attention alone, so that what is computed again in
    a backward pass is computed by the same."""
    return sdpa_kernel([*KERNELS], set_priority=True) if device.type == "cuda" else nullcontext()


def sdpa(
    query: Float[Tensor, "batch heads tokens head"],
    key: Float[Tensor, "batch heads keys head"],
    value: Float[Tensor, "batch heads keys head"],
    mask: Float[Tensor, "_ 1 _ keys"] | None = None,
) -> Float[Tensor, "batch heads tokens head"]:
    """Attention to everything, or to what `mask` allows.

    Without the fused kernel a CPU in bfloat16 is two to four times as fast on patches and on packed rows, and again 1.4
    to 1.7 times where no more heads are attended to at a time than its caches hold; one new token has a way of its own.
    """
    if suits(query, key, value):
        return decode_attention(query, key, value, mask)
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    mask = None if mask is None else mask.to(query.dtype)
    if torch.compiler.is_compiling():  # how many heads fit would bind what is compiled to one length
        return _attended(query, key, value, mask)
    batch, heads, tokens, _ = query.shape
    few = max(1, min(heads, SCORES // max(1, batch * tokens * key.shape[2])))
    parts = zip(query.split(few, 1), key.split(few, 1), value.split(few, 1), strict=True)
    done = [_attended(some, keys, values, mask) for some, keys, values in parts]
    return done[0] if len(done) == 1 else torch.cat(done, dim=1)


def _attended(
    query: Float[Tensor, "batch heads tokens head"],
    key: Float[Tensor, "batch heads keys head"],
    value: Float[Tensor, "batch heads keys head"],
    mask: Float[Tensor, "_ 1 _ keys"] | None,
) -> Float[Tensor, "batch heads tokens head"]:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ value


def split_heads(qkv: Float[Tensor, "batch tokens width3"], head_width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each (batch, heads, tokens, head), from a projection ordered head by head.

    As many heads as there are: under tensor parallelism a process holds a share of them.
    """
    query, key, value = qkv.unflatten(-1, (-1, 3, head_width)).unbind(-2)  # (batch, tokens, heads, head) each
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def merge_heads(attended: Float[Tensor, "batch heads tokens head"]) -> Float[Tensor, "batch tokens width"]:
    """Heads side by side again."""
    return attended.transpose(1, 2).flatten(2)


def interpolate_positions(
    table: Float[Tensor, "stored width"], patches: int
) -> Float[Tensor, "patches width"]:
    """Resample a square grid of positions to `patches` positions: bicubic in float32, as the release does."""
    stored, wanted = math.isqrt(len(table)), math.isqrt(patches)
    if stored == wanted:
        return table
    grid = table.float().unflatten(0, (stored, stored)).permute(2, 0, 1)  # (width, stored side, stored side)
    grid = F.interpolate(grid[None], size=(wanted, wanted), mode="bicubic", align_corners=False)[0]
    return grid.flatten(1).T.to(table.dtype)  # (patches, width)
