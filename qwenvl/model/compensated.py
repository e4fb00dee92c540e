"""Rounding that knows what a matrix is given: each column takes over what the ones before it have lost.

GPTQ (Frantar et al. 2023). Of all inputs only their second moments are needed, the mean of x times x transposed: they
say by how much a later column can make good an earlier one's error.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.model.integers import FORMATS, Integers, Kind, levels_at, rounded, steps_of

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it: inputs that follow one another exactly have no inverse."""


def compensated(
    weight: Float[Tensor, "out width"],
    moments: Float[Tensor, "width width"],
    kind: Kind,
    *,
    group: int,
) -> Integers:
    """The integers of a matrix whose outputs, not whose weights, are near those of the matrix.

    Scales are those of plain rounding, of the weights as they are when their group is reached. Raises ValueError for
    weights or moments that are no numbers.
    """
    if not torch.isfinite(moments).all():
        raise ValueError("what calibration gives to it are no numbers; calibrate with other data.")
    open_weight = weight.float().clone()
    spread = _spread(moments)
    levels, scales = torch.empty(open_weight.shape, dtype=FORMATS[kind].dtype), []
    for start in range(0, open_weight.shape[1], group):
        stop = start + group
        scale = rounded(open_weight[:, start:stop], kind, group=group).scales
        errors = torch.empty(len(open_weight), group)
        for column in range(start, stop):
            found = levels_at(open_weight[:, column : column + 1] / scale, kind)
            meant = steps_of(found, kind, FORMATS[kind].zero) * scale
            lost = (open_weight[:, column : column + 1] - meant) / spread[column, column]
            open_weight[:, column:stop] -= lost * spread[column, column:stop]
            levels[:, column : column + 1], errors[:, column - start : column - start + 1] = found, lost
        open_weight[:, stop:] -= errors @ spread[start:stop, stop:]
        scales.append(scale)
    return Integers(kind=kind, levels=levels, scales=torch.cat(scales, dim=1))


def _spread(moments: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """The upper Cholesky factor of the inverse; the damping grows until there is one."""
    mean = moments.diagonal().mean()
    if not mean > 0:
        return torch.eye(len(moments))
    damping = DAMPING
    while True:
        damped = moments + damping * mean * torch.eye(len(moments))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
            if not failed and torch.isfinite(inverse).all():
                return inverse
        damping *= 10
