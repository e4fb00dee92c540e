"""How a model starts: at random as the official code does, or from the weights of OpenCLIP and Qwen-7B (Table 8)."""

import torch
from torch import nn

from qwenvl.model.vlm import QwenVL


def initialise_(model: QwenVL, generator: torch.Generator, *, std: float | None = 0.02) -> None:
    """Random weights: matrices N(0, std), those that write into a residual stream scaled by depth, biases 0, norms 1.

    `std` is the official 0.02; None takes 1/sqrt(fan in) instead, which is 0.016 at the paper's width and what models
    much narrower than that need to learn. Positions start at N(0, 1/width) and the adapter's last projection at
    N(0, 1/hidden), as in the official code.
    """
    depth = (2 * model.config.llm.layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.constant_(parameter, 0.0 if name.endswith(".bias") else 1.0)
            continue
        fan_in = parameter[0].numel()
        spread = fan_in**-0.5 if std is None or name in ("vision.position", "adapter.project") else std
        in_block = name.startswith(("llm.blocks.", "vision.blocks."))
        writes = name.endswith("down.weight") or (name.startswith("llm.") and name.endswith("out.weight"))
        nn.init.normal_(parameter, std=spread * depth if in_block and writes else spread, generator=generator)
