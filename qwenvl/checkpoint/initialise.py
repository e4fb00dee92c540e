"""How a model starts: at random as the official code does, or from the weights of OpenCLIP and Qwen-7B (Table 8)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qwenvl.checkpoint import names
from qwenvl.checkpoint.folder import load, read_config, renamed, resolve
from qwenvl.checkpoint.weights import Stored, stored_tensors
from qwenvl.model.vision import VisionBlock
from qwenvl.model.vlm import QwenVL
from qwenvl.parsing import read_json
from qwenvl.runtime import Runtime

OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weight files of an OpenCLIP folder."""

NOT_IN_QWEN_VL = re.compile(
    r"visual\.(class_embedding|ln_post\.(weight|bias)|proj)"
    r"|transformer\.resblocks\..+|token_embedding\.weight|positional_embedding|ln_final\.(weight|bias)"
    r"|text_projection|attn_mask|logit_scale|logit_bias"
)
"""OpenCLIP tensors without a place here: class token and pooling of the image side, the whole text side."""


def initialise_(model: QwenVL, generator: torch.Generator, *, std: float | None = 0.02) -> None:
    """Random weights: matrices N(0, std), those that write into a residual stream scaled by depth, biases 0, norms 1.

    `std` is the official 0.02; None takes 1/sqrt(fan in) instead, which is 0.016 at the paper's width and what models
    much narrower than that need to learn. As in the official code, positions start at N(0, 1/width), the adapter's
    last projection at N(0, 1/hidden), and, with `std`, its query-key-value projection and the patches uniformly.
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
        deviation = fan_in**-0.5 if std is None or name in ("vision.position", "adapter.project") else std
        in_block = name.startswith(("llm.blocks.", "vision.blocks."))
        writes = name.endswith("down.weight") or (name.startswith("llm.") and name.endswith("out.weight"))
        deviation *= depth if in_block and writes else 1.0
        nn.init.normal_(parameter, std=deviation, generator=generator)


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
    """Put the image side of an OpenCLIP folder, hub id or weight file into the vision encoder (paper 3.1).

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


def load_vision_(model: QwenVL, checkpoint: str | Path) -> None:
    """Put the vision encoder of one of our own folders, or of OpenCLIP's (`load_openclip_`), into the model.

    Of ours the blocks may be fewer than here: those behind them then begin by passing on what they are given. Raises
    ValueError, before anything is changed, where the shapes differ otherwise.
    """
    file = Path(checkpoint).is_file()
    folder = Path(checkpoint) if file else resolve(checkpoint)
    if file or not (folder / "config.json").exists():
        load_openclip_(model, checkpoint)
        return
    theirs, vision = read_config(folder).vision, model.config.vision
    if (
        replace(theirs, layers=vision.layers, image_size=vision.image_size) != vision
        or theirs.layers > vision.layers
    ):
        raise ValueError(
            f"the vision encoder of {folder} is {theirs}, this model's {vision}; only blocks may be added."
        )
    began = load(folder, Runtime.detect(device="cpu", dtype="float32")).vision
    with torch.no_grad():
        kept = {**model.vision.state_dict(), **began.state_dict()}
        model.vision.load_state_dict(kept)
        for block in list(model.vision.blocks)[theirs.layers :]:
            assert isinstance(block, VisionBlock)
            for layer in (block.attention.out, block.down):
                layer.weight.zero_()
                layer.bias.zero_()


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
