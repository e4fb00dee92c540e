"""How a model starts: at random as the official code does, or from the weights of OpenCLIP and Qwen-7B (Table 8)."""

import torch
from torch import nn

from qwenvl.model.vlm import QwenVL


def initialise_(model: QwenVL, generator: torch.Generator) -> None:
    """Random weights: matrices N(0, 0.02), projections into a residual stream scaled by depth, biases 0, norms 1.

    Positions start at N(0, 1/width) and the adapter's last projection at N(0, 1/hidden), as in the official code.
    """
    residual_std = 0.02 / (2 * model.config.llm.layers) ** 0.5
    for name, parameter in model.named_parameters():
        if name == "vision.position" or name == "adapter.project":
            std = parameter.shape[1] ** -0.5
        elif name.endswith(("out.weight", "down.weight")) and name.startswith("llm."):
            std = residual_std
        elif name.startswith("vision.blocks") and name.endswith("down.weight"):
            std = residual_std
        else:
            std = 0.02
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=std, generator=generator)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
