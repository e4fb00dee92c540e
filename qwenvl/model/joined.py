"""Up and gate of a perceptron as one matrix, for answering: a product and a launch less in every block."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from qwenvl.model.llm import GatedMLP
from qwenvl.model.vlm import QwenVL


class JoinedMLP(nn.Module):
    """What `GatedMLP` computes."""

    def __init__(self, mlp: GatedMLP) -> None:
        super().__init__()
        bias, (width, hidden) = mlp.up.bias is not None, mlp.up.weight.shape
        self.both = nn.Linear(hidden, 2 * width, bias=bias, device="meta")
        for name in ("weight", "bias") if bias else ("weight",):
            halves = torch.cat([getattr(mlp.up, name), getattr(mlp.gate, name)])
            setattr(self.both, name, nn.Parameter(halves, requires_grad=False))
        self.down = mlp.down

    def forward(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        up, gate = self.both(hidden).chunk(2, dim=-1)
        return self.down(up * F.silu(gate))


@torch.no_grad()
def join_(model: QwenVL) -> None:
    """Join the matrices of every block, in place, one block at a time. The model then only answers: it is not saved.

    Raises ValueError where a matrix is not plain: quantised, cut over processes, or with adapters that are not merged.
    """
    for number, block in enumerate(model.llm.blocks):
        for name in ("up", "gate"):
            layer: Any = block.get_submodule(f"mlp.{name}")
            if type(layer) is not nn.Linear or is_traceable_wrapper_subclass(layer.weight):
                raise ValueError(
                    f"{name} of block {number} is {type(layer).__name__} of {type(layer.weight).__name__}, expected "
                    "a plain matrix; merge adapters first (`qwenvl finetune` writes such a model)."
                )
    for part in list(model.llm.blocks):
        part.register_module("mlp", JoinedMLP(part.get_submodule("mlp")))  # type: ignore[arg-type]
