"""Muon: momentum whose matrices are orthogonalised before they move a weight.

The orthogonalisation costs as much as a small batch, so processes share it: each takes as much of it and tells the
others. Momentum is kept by all, so any process can save and any number can resume.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.runtime import multiplies_bfloat16
from qwenvl.train import distributed

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (K. Jordan, Muon, 2024)."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised and scaled to the root mean square of an AdamW update (0.2)."""

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient; all processes must call this together with equal gradients."""
        moved = [
            (each, group) for group in self.param_groups for each in group["params"] if each.grad is not None
        ]
        steps = [self._momentum(parameter, group["momentum"]) for parameter, group in moved]
        for (parameter, group), direction in zip(moved, shared(steps), strict=True):
            length = group["lr"] * 0.2 * max(parameter.shape) ** 0.5
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-length)

    def _momentum(self, parameter: Tensor, decay: float) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - decay)
        return gradient.lerp(mean, decay)


def shared(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix orthogonalised, by one process for all."""
    processes = range(distributed.world_size())
    owners = balanced([min(each.shape) * each.numel() for each in matrices], len(processes))
    found = [
        orthogonal(each) if owner == distributed.rank() else torch.empty_like(each, dtype=torch.bfloat16)
        for each, owner in zip(matrices, owners, strict=True)
    ]
    for process in processes:
        distributed.broadcast(
            [each for each, owner in zip(found, owners, strict=True) if owner == process], process
        )
    return found


def balanced(costs: Sequence[int], processes: int) -> list[int]:
    """Which process pays each cost: the highest first, always to the one that has paid least."""
    paid, owners = [0] * processes, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = paid.index(min(paid))
        paid[owners[index]] += costs[index]
    return owners


def orthogonal(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """A matrix with the singular vectors of this one and singular values near 1, in bfloat16.

    Where the device is slow at bfloat16 only what comes out is rounded to it.
    """
    a, b, c = NEWTON_SCHULZ
    precision = torch.bfloat16 if multiplies_bfloat16(matrix.device) else torch.float32
    wide = matrix.to(precision) if len(matrix) <= matrix.shape[1] else matrix.to(precision).T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if len(matrix) <= matrix.shape[1] else wide.T).bfloat16()
