"""Arithmetic of an update in closed form: 2 FLOPs per multiply-add, forward and what is needed of the backward pass.

A matrix costs its forward product, another one where a gradient flows on to its inputs, and a third where its own
weights learn. So the ViT counts, and gradients that frozen weights do not get are left out.
"""

import time
from collections.abc import Collection, Mapping

import torch
from torch import nn

from qwenvl.config import ModelConfig

PEAKS: Mapping[str, float] = {
    "H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s by a part of the GPU's name, as their makers print them."""

_SIDE = 512
_ATTENTION_BACKWARD = 2.5
"""Backward of fused attention over its forward: five products where there were two."""


def next_token_flops(
    config: ModelConfig,
    *,
    touched: Collection[str],
    whole: Collection[str],
    length: int,
    row_tokens: float,
    images: float,
    supervised: float,
) -> float:
    """FLOPs of `row_tokens` tokens in packed rows of `length`, padding included, with `supervised` logits.

    Behind the attention of the last block only supervised tokens go on (`LLM.forward`).
    `touched` are the parts in which something learns, `whole` those whose own weights do: LoRA touches a part and
    leaves its weights alone (its own matrices, a percent or two, are not counted). `config` has the stage's size of
    images.
    """
    llm, adapter = config.llm, config.adapter.queries
    total = vision_flops(config, "vision" in touched, "vision" in whole, images)
    below = "vision" in touched
    patches, hidden = images * config.vision.patches, llm.hidden
    if config.vision.width != hidden:
        total += 2 * patches * config.vision.width * hidden * _passes("adapter" in whole, below)
    flows = below or "adapter" in touched
    products = 2 * ((2 * patches + 2 * images * adapter) * hidden**2 + images * adapter * hidden**2)
    total += products * _passes("adapter" in whole, flows)
    total += 4 * images * adapter * config.vision.patches * hidden * (1 + _ATTENTION_BACKWARD * flows)
    through_mlp = row_tokens * (llm.layers - 1) + supervised
    blocks = row_tokens * llm.layers * 4 * hidden**2 + through_mlp * 3 * hidden * llm.mlp_width
    total += 2 * blocks * _passes("llm" in whole, True)
    total += 4 * row_tokens * length * hidden * llm.layers * (1 + _ATTENTION_BACKWARD)
    return total + 2 * supervised * hidden * llm.vocab_size * _passes("llm" in whole, True)


def vision_flops(config: ModelConfig, touched: bool, whole: bool, images: float) -> float:
    """FLOPs of the ViT alone."""
    vision = config.vision
    patches = images * vision.patches
    embedding = 2 * patches * 3 * vision.patch_size**2 * vision.width
    blocks = 2 * patches * vision.layers * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width)
    attention = 4 * patches * vision.patches * vision.width * vision.layers
    return (
        embedding * (1 + whole)
        + blocks * _passes(whole, touched)
        + attention * (1 + _ATTENTION_BACKWARD * touched)
    )


def _passes(weights: bool, inputs: bool) -> int:
    return 1 + weights + inputs


def learning(model: nn.Module) -> tuple[set[str], set[str]]:
    """The parts in which something learns, and those that learn whole: what is looked up costs nothing either way."""
    looked_up = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    touched: set[str] = set()
    frozen: set[str] = set()
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if parameter.requires_grad:
            touched.add(part)
        elif id(parameter) not in looked_up:
            frozen.add(part)
    return touched, touched - frozen


def peak(device: torch.device, *, bfloat16: bool) -> float | None:
    """FLOP/s that a device could do: of a GPU by its name, None if unknown; of a CPU, a large product as timed now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for part, peak in PEAKS.items() if part in name), None)
    if device.type != "cpu":
        return None
    one = torch.ones(_SIDE, _SIDE, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(one, one)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best
