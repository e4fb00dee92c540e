"""The official model by its description alone, nothing of ours: official names, whole rows, no cache, float32.

What `test_other_models` records with it has the form of the golden fixtures, for shapes that no fixture has.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VISUAL = "transformer.visual."


def random_weights(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """A checkpoint under its official names; values that leave no norm, bias or position without effect."""
    hidden, visual = config["hidden_size"], config["visual"]
    width, patch = visual["width"], visual["patch_size"]
    half, wide = config["intermediate_size"] // 2, int(width * visual["mlp_ratio"])
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config["vocab_size"], hidden),
        "transformer.ln_f.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
        f"{VISUAL}conv1.weight": (width, 3, patch, patch),
        f"{VISUAL}positional_embedding": (256, width),
        f"{VISUAL}proj": (hidden, hidden),
        f"{VISUAL}attn_pool.query": (visual["n_queries"], hidden),
        f"{VISUAL}attn_pool.pos_embed": (visual["n_queries"], hidden),
        f"{VISUAL}attn_pool.attn.in_proj_weight": (3 * hidden, hidden),
        f"{VISUAL}attn_pool.attn.in_proj_bias": (3 * hidden,),
    }
    if width != hidden:
        shapes[f"{VISUAL}attn_pool.kv_proj.weight"] = (hidden, width)
    modules = {
        f"{VISUAL}ln_pre": (width,), f"{VISUAL}ln_post": (hidden,), f"{VISUAL}attn_pool.ln_q": (hidden,),
        f"{VISUAL}attn_pool.ln_kv": (hidden,), f"{VISUAL}attn_pool.attn.out_proj": (hidden, hidden),
    }  # fmt: skip
    for i in range(visual["layers"]):
        block = f"{VISUAL}transformer.resblocks.{i}."
        modules |= {f"{block}ln_1": (width,), f"{block}ln_2": (width,)}
        modules |= {f"{block}attn.in_proj": (3 * width, width), f"{block}attn.out_proj": (width, width)}
        modules |= {f"{block}mlp.c_fc": (wide, width), f"{block}mlp.c_proj": (width, wide)}
    for i in range(config["num_hidden_layers"]):
        block = f"transformer.h.{i}."
        shapes |= {f"{block}ln_1.weight": (hidden,), f"{block}ln_2.weight": (hidden,)}
        modules[f"{block}attn.c_attn"] = (3 * hidden, hidden)
        bare = {"attn.c_proj": (hidden, hidden), "mlp.w1": (half, hidden), "mlp.w2": (half, hidden)}
        for name, shape in {**bare, "mlp.c_proj": (hidden, half)}.items():
            if config["no_bias"]:
                shapes[f"{block}{name}.weight"] = shape
            else:
                modules[f"{block}{name}"] = shape
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in sorted(shapes.items()):
        noise = torch.randn(size, generator=generator)
        norm = len(size) == 1 and name.endswith("weight")
        weights[name] = 1 + 0.2 * noise if norm else noise * (0.2 if len(size) == 1 else size[-1] ** -0.5)
    weights["lm_head.weight"][visual["image_start_id"] :] = 0
    weights["lm_head.weight"] *= 4
    return weights


class Reference:
    """Weights and config of one official model."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.config, self.weights = config, weights

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-6
        )

    # === Images ===

    def see(self, pixels: Tensor) -> dict[str, Tensor]:
        """Every recorded stage, (images, rows, channels)."""
        visual, weights = self.config["visual"], self.weights
        patches = F.conv2d(pixels, weights[f"{VISUAL}conv1.weight"], stride=visual["patch_size"])
        x = patches.flatten(2).transpose(1, 2)
        x = x + resized(weights[f"{VISUAL}positional_embedding"], x.shape[1])
        stages = {"pixel_values": pixels, "vit_embed": x}
        x = stages["vit_ln_pre"] = self.norm(x, f"{VISUAL}ln_pre")
        for i in range(visual["layers"]):
            block = f"{VISUAL}transformer.resblocks.{i}."
            x = x + self.look(self.norm(x, f"{block}ln_1"), f"{block}attn.")
            inner = F.gelu(self.linear(self.norm(x, f"{block}ln_2"), f"{block}mlp.c_fc"))
            x = stages[f"vit_block_{i}"] = x + self.linear(inner, f"{block}mlp.c_proj")
        stages["vit_out"] = x
        pooled = stages["resampler_out"] = self.pool(x)
        stages["image_embeds"] = self.norm(pooled, f"{VISUAL}ln_post") @ weights[f"{VISUAL}proj"]
        return stages

    def look(self, x: Tensor, name: str) -> Tensor:
        """Self-attention whose projection is ordered head by head, [query | key | value] in each."""
        images, rows, width = x.shape
        heads = self.config["visual"]["heads"]
        each = self.linear(x, f"{name}in_proj").view(images, rows, heads, 3 * width // heads)
        query, key, value = each.split(width // heads, dim=-1)
        scores = torch.einsum("nqhc,nkhc->nhqk", query / math.sqrt(width // heads), key)
        seen = torch.einsum("nhqk,nkhc->nqhc", scores.softmax(-1), value)
        return self.linear(seen.reshape(images, rows, width), f"{name}out_proj")

    def pool(self, x: Tensor) -> Tensor:
        """The resampler, by torch's own multi-head attention, which takes rows first."""
        hidden, name = self.config["hidden_size"], f"{VISUAL}attn_pool."
        if f"{name}kv_proj.weight" in self.weights:
            x = self.linear(x, f"{name}kv_proj")
        keys = self.norm(x, f"{name}ln_kv").transpose(0, 1)  # (patches, images, hidden)
        place = self.weights[f"{name}pos_embed"]
        query = (self.norm(self.weights[f"{name}query"], f"{name}ln_q") + place)[:, None]
        attention = nn.MultiheadAttention(hidden, hidden // 128)
        prefix = f"{name}attn."
        own = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
        inputs = (
            query.expand(-1, x.shape[0], -1),
            keys + resized(place, keys.shape[0])[:, None],
            keys,
        )
        return torch.func.functional_call(attention, own, inputs)[0].transpose(0, 1)

    # === Text ===

    def read(
        self,
        ids: Tensor,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        prefill: int | None = None,
        training: bool = False,
    ) -> dict[str, Tensor]:
        """Hidden states, keys and values by layer, logits; `prefill` is the length that the stretch follows."""
        config, tokens = self.config, ids.shape[1]
        mask = torch.ones_like(ids) if mask is None else mask
        hidden = self.weights["transformer.wte.weight"][ids].clone()
        start, end = config["visual"]["image_start_id"], config["visual"]["image_start_id"] + 1
        opens, closes = (ids == start).nonzero().tolist(), (ids == end).nonzero().tolist()
        if opens:
            assert images is not None
            for (row, a), (_, b), seen in zip(opens, closes, self.see(images)["image_embeds"], strict=True):
                hidden[row, a + 1 : b] = seen
        alpha = 1.0 if training else self.alpha(prefill or tokens)
        blocked = torch.full((tokens, tokens), -torch.inf).triu(1)
        blocked = blocked + torch.where(mask[:, None, None, :] == 1, 0.0, -1e30)
        found = {"hidden_states.0": hidden}
        for i in range(config["num_hidden_layers"]):
            block = f"transformer.h.{i}."
            attended, key, value = self.attend(
                self.rms(hidden, f"{block}ln_1"), block, alpha, blocked, training
            )
            hidden = hidden + attended
            normed = self.rms(hidden, f"{block}ln_2")
            gated = self.linear(normed, f"{block}mlp.w1") * F.silu(self.linear(normed, f"{block}mlp.w2"))
            hidden = hidden + self.linear(gated, f"{block}mlp.c_proj")
            found |= {f"hidden_states.{i + 1}": hidden, f"past_key.{i}": key, f"past_value.{i}": value}
        hidden = self.rms(hidden, "transformer.ln_f")
        found[f"hidden_states.{config['num_hidden_layers']}"] = hidden
        return found | {"logits": F.linear(hidden, self.weights["lm_head.weight"])}

    def rms(self, x: Tensor, name: str) -> Tensor:
        size = (x.pow(2).mean(-1, keepdim=True) + self.config["layer_norm_epsilon"]).rsqrt()
        return x * size * self.weights[f"{name}.weight"]

    def alpha(self, tokens: int) -> float:
        if not self.config["use_dynamic_ntk"]:
            return 1.0
        return max(2 ** math.ceil(math.log(tokens / self.config["seq_length"], 2) + 1) - 1, 1)

    def attend(
        self, x: Tensor, block: str, alpha: float, blocked: Tensor, training: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, (batch, tokens, hidden) = self.config, x.shape
        heads = config["num_attention_heads"]
        each = hidden // heads
        query, key, value = (
            part.view(batch, tokens, heads, each)
            for part in self.linear(x, f"{block}attn.c_attn").chunk(3, -1)
        )
        turning = int(each * config["rotary_pct"])
        base = config["rotary_emb_base"] * alpha ** (turning / (turning - 2))
        angles = torch.outer(torch.arange(tokens), 1 / base ** (torch.arange(0, turning, 2) / turning))
        query, key = turned(query, angles), turned(key, angles)
        if config["use_logn_attn"] and not training:
            trained = config["seq_length"]
            logs = [max(math.log(p, trained), 1.0) if p > trained else 1.0 for p in range(1, tokens + 1)]
            query = query * torch.tensor(logs)[:, None, None]
        scores = torch.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(each) + blocked
        seen = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), value)
        return self.linear(seen.reshape(batch, tokens, hidden), f"{block}attn.c_proj"), key, value


def resized(table: Tensor, rows: int) -> Tensor:
    """A square grid of positions at another size."""
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    if old == new:
        return table
    grid = table.view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(rows, -1)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions on the first channels, the first half of them paired with the second."""
    half = angles.shape[-1]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
