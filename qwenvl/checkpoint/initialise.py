"""How a model starts: at random as the official code does, or from the weights of OpenCLIP and Qwen-7B (Table 8)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwenvl.checkpoint import names
from qwenvl.checkpoint.folder import renamed, resolve
from qwenvl.checkpoint.weights import Stored, stored_tensors
from qwenvl.config import POSITION_GRID
from qwenvl.model.adapter import Adapter, sine_cosine_2d
from qwenvl.model.llm import LLM, Attention, rotary_tables
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import read_json

OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weight files of an OpenCLIP folder."""

NOT_IN_QWEN_VL = re.compile(
    r"visual\.(class_embedding|ln_post\.(weight|bias)|proj)"
    r"|transformer\.resblocks\..+|token_embedding\.weight|positional_embedding|ln_final\.(weight|bias)"
    r"|text_projection|attn_mask|logit_scale|logit_bias"
)
"""OpenCLIP tensors without a place here: class token and pooling of the picture side, the whole text side."""


def initialise_(model: QwenVL, generator: torch.Generator, *, std: float | None = 0.02) -> None:
    """Random weights: matrices N(0, std), those that write into a residual stream scaled by depth, biases 0, norms 1.

    `std` is the official 0.02; None takes 1/sqrt(fan in) instead, which is 0.016 at the paper's width and what models
    much narrower than that need to learn. As in the official code, positions start at N(0, 1/width), the adapter's
    last projection at N(0, 1/hidden), and, with `std`, its query-key-value projection and the patches uniformly.
    Without `std` the ViT's positions start as waves as loud as its patches, and the adapter begins by looking near its
    own place (`init_local_cross_attention_`).
    """
    depth = (2 * model.config.llm.layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith(".bias") else 1.0)
            continue
        fan_in = parameter[0].numel()
        if std is not None and name == "vision.patch_embed.weight":
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
            continue
        if std is not None and name == "adapter.qkv.weight":
            nn.init.xavier_uniform_(parameter, generator=generator)
            continue
        parallel = fan_in**-0.5 if std is None or name in ("vision.position", "adapter.project") else std
        in_block = name.startswith(("llm.blocks.", "vision.blocks."))
        writes = name.endswith("down.weight") or (name.startswith("llm.") and name.endswith("out.weight"))
        nn.init.normal_(
            parameter, std=parallel * depth if in_block and writes else parallel, generator=generator
        )
    if std is None:
        with torch.no_grad():
            model.vision.position.copy_(sine_cosine_2d(POSITION_GRID, model.config.vision.width))
        init_local_cross_attention_(model.adapter)


NEARNESS = 2.5
"""How sharply a narrow adapter begins to look: the next query's place counts exp(-1.4 * NEARNESS) of its own."""

QUIET = 0.1
"""Factor on the first visual tokens of a narrow model: they then have the size of its word embeddings."""


@torch.no_grad()
def init_local_cross_attention_(adapter: Adapter) -> None:
    """Let every query begin by reading the patches at its own place, and speak as loudly as a word.

    Left to chance, content drowns positions in the attention scores. So the channels of the quickest waves of the
    positions are cleared of content, and every head compares these channels alone, as they are.
    """
    hidden = adapter.query.shape[1]
    waves, head = hidden // 4, hidden // adapter.heads
    quick = torch.cat([torch.arange(head // 4) + part * waves for part in range(4)])
    adapter.norm_q.weight[quick] = 0.0
    adapter.norm_kv.weight[quick] = 0.0
    queries, keys, _ = adapter.qkv.weight.chunk(3)
    for rows in (*queries.split(head), *keys.split(head)):
        rows.zero_()
        rows[range(len(quick)), quick] = (NEARNESS * head**0.5) ** 0.5
    adapter.project.mul_(QUIET)


PREVIOUS_TOKEN_HEADS = (1, 2, 3, 4)
"""How many tokens back each head of the first block begins to look; a model with more heads leaves the others."""

STEADINESS, ROTATED, CONTENT = 4.5, 4, 0.3
"""Size of the biases that do so, the rotary frequencies they use, the quickest, and what is left of the content."""


@torch.no_grad()
def init_previous_token_heads_(llm: LLM) -> None:
    """Let the first heads of the first block begin by reading the token so many before their own.

    A query and a key of biases alone are turned against each other by their rotary positions: their product is highest
    where the distance is the head's. A token that knows its neighbours is what looking things up in a text begins with
    ("blue" stands before "star"), and what a narrow model takes longest to find.
    """
    config, attention = llm.config, llm.blocks[0].attention
    assert isinstance(attention, Attention)
    half = config.rotary_width // 2
    quick = min(ROTATED, half)
    weights = attention.qkv.weight.unflatten(0, (config.heads, 3, -1))  # (heads, q k v, head, hidden)
    biases = attention.qkv.bias.unflatten(0, (config.heads, 3, -1))
    for head, distance in enumerate(PREVIOUS_TOKEN_HEADS[: config.heads]):
        cos, sin = (each.flatten() for each in rotary_tables(torch.tensor([[distance]]), config, None))
        weights[head, :2] *= CONTENT
        query, key, _ = biases[head].zero_()
        query[:quick] = STEADINESS
        key[:quick] = STEADINESS * cos[:quick]
        key[half : half + quick] = STEADINESS * sin[:quick]


def load_qwen_7b_(model: QwenVL, checkpoint: str | Path) -> None:
    """Put the weights of a Qwen-7B folder (or hub id) into the language model; the rest stays as it is.

    Raises ValueError, before anything is changed, when the folder holds another model than `model.config.llm`.
    """
    folder, llm = resolve(checkpoint), model.config.llm
    values = read_json(folder / "config.json")
    ours = {
        "num_attention_heads": llm.heads,
        "layer_norm_epsilon": llm.norm_eps,
        "rotary_emb_base": llm.rope_base,
    }
    _require_equal(f"{folder}/config.json", values, ours)
    _load_part_(model, "llm.", stored_tensors(folder), names.QWEN_7B, str(folder))


def load_openclip_(model: QwenVL, checkpoint: str | Path) -> None:
    """Put the picture side of an OpenCLIP folder, hub id or weight file into the vision encoder (paper 3.1).

    Its class token, pooling and text side are left out. OpenCLIP trained with norms of epsilon 1e-5; the official
    Qwen-VL goes on with 1e-6. Raises ValueError, before anything is changed, when it is another model than
    `model.config.vision`.
    """
    folder = Path(checkpoint) if Path(checkpoint).is_file() else resolve(checkpoint)
    settings, vision = folder / "open_clip_config.json", model.config.vision
    if settings.exists():
        values = read_json(settings)
        model_cfg = values.get("model_cfg") if isinstance(values, dict) else None
        cfg = model_cfg.get("vision_cfg") if isinstance(model_cfg, dict) else None
        if not isinstance(model_cfg, dict) or not isinstance(cfg, dict):
            raise ValueError(f"{settings} has no model_cfg with vision_cfg; copy it again from its source.")
        if model_cfg.get("quick_gelu") or cfg.get("quick_gelu"):
            raise ValueError(
                f"{settings} says quick_gelu: that model was trained with x * sigmoid(1.702 x) where Qwen-VL has the "
                "exact GELU, so its features would be wrong; start from a checkpoint without it."
            )
        expected = {
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
        }
        _require_equal(str(settings), cfg, expected)
    stored = {
        name: each
        for name, each in stored_tensors(folder, OPENCLIP_FILES).items()
        if not NOT_IN_QWEN_VL.fullmatch(name)
    }
    _load_part_(model, "vision.", stored, names.OPENCLIP, str(folder))


def _require_equal(where: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key, value in expected.items():
        if found.get(key, value) != value:
            raise ValueError(
                f"{where} has {key} {found[key]}, this model {value}; start from weights of the same shape."
            )


def _load_part_(
    model: QwenVL, prefix: str, stored: Mapping[str, Stored], table: Mapping[str, names.Map], where: str
) -> None:
    """Copy foreign tensors into the parameters whose names begin with `prefix`, all of them or none."""
    ours = renamed(stored, table, model.config)
    parameters = {name: each for name, each in model.named_parameters() if name.startswith(prefix)}
    expected = {name: tuple(each.shape) for name, each in parameters.items()}
    names.check_names(expected, {name: each.shape for name, each in ours.items()}, where)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(ours[name].read())
