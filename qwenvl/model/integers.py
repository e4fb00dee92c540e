"""Weights as integers: what they mean, and how plain rounding makes them.

A matrix of `out` rows is kept as one small integer a weight, and one scale for each group of neighbours in a row:

    weight[o, i] = scale[o, g] * (level[o, i] - zero[o, g])        with g = i // group

Everything else about quantised layers (kernels, folders, reports) is held to this formula.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

Kind = Literal["int8", "int4"]

GROUP = 128
"""Weights of 4 bits that share a scale, as in Qwen-VL-Chat-Int4."""

GROUPS = (128, 64, 32)
"""Sizes of groups that the kernels know, the cheapest first."""

ZERO = 8
"""The level of 4 bits that means nothing, where rounding is symmetric."""

SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a group's range that are tried for its scale of 4 bits: to clip one large weight may serve the others."""

ROWS = 128
"""Rows rounded at a time: what is computed on the way stays small beside the result."""


@dataclass(frozen=True, kw_only=True)
class Integers:
    """One matrix as integers."""

    kind: Kind
    levels: Integer[Tensor, "out width"]
    """int8 within +-127 for `int8`, uint8 below 16 for `int4`."""
    scales: Float[Tensor, "out groups"]
    zeros: Integer[Tensor, "out groups"] | None = None
    """None: 0 for `int8`, `ZERO` for `int4`."""

    def __post_init__(self) -> None:
        out, width = self.levels.shape
        if self.scales.shape[0] != out or width % self.scales.shape[1]:
            raise ValueError(
                f"scales of shape {tuple(self.scales.shape)} do not divide levels of shape {(out, width)} into groups."
            )

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.levels.shape[1] // self.scales.shape[1]

    def to(self, device: torch.device) -> "Integers":
        """The same on another device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return replace(self, levels=self.levels.to(device), scales=self.scales.to(device), zeros=zeros)

    def offsets(self) -> Float[Tensor, "out groups"]:
        """The zero of each group, as a number."""
        if self.zeros is not None:
            return self.zeros.float()
        return torch.full_like(self.scales, ZERO if self.kind == "int4" else 0, dtype=torch.float32)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out width"]:
        """The weights that are meant, computed in float32 and rounded once; a few rows at a time."""
        out, width = self.levels.shape
        weight = torch.empty(out, width, dtype=dtype, device=self.levels.device)
        scales, offsets = self.scales.float()[..., None], self.offsets()[..., None]
        for start in range(0, out, ROWS):
            rows = slice(start, start + ROWS)
            levels = self.levels[rows].float().unflatten(1, (-1, self.group))
            weight[rows] = ((levels - offsets[rows]) * scales[rows]).flatten(1)
        return weight


def group_for(widths: set[int]) -> int:
    """The largest group that divides rows of all these lengths. Raises ValueError where none does."""
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    raise ValueError(
        f"rows of {sorted(widths)} weights cannot be cut into groups of {GROUPS[-1]}; choose int8 for this model."
    )


def rounded(weight: Float[Tensor, "out width"], kind: Kind, *, group: int = GROUP) -> Integers:
    """The nearest integers to a matrix, whatever its inputs are like; a few rows at a time.

    Raises ValueError for weights that are no numbers.
    """
    out, width = weight.shape
    levels = torch.empty(out, width, dtype=torch.int8 if kind == "int8" else torch.uint8)
    scales = torch.empty(out, 1 if kind == "int8" else width // group)
    for start in range(0, out, ROWS):
        rows = slice(start, start + ROWS)
        few = weight[rows].float()
        if not torch.isfinite(few).all():
            raise ValueError(
                "the weights hold values that are no numbers (NaN or infinity); use a sound checkpoint."
            )
        levels[rows], scales[rows] = _to_bytes(few) if kind == "int8" else _to_nibbles(few, group)
    return Integers(kind=kind, levels=levels, scales=scales)


def _to_bytes(weight: Float[Tensor, "rows width"]) -> tuple[Tensor, Tensor]:
    scale = _never_zero(weight.abs().amax(1, keepdim=True) / 127)
    return (weight / scale).round_().to(torch.int8), scale


def _to_nibbles(weight: Float[Tensor, "rows width"], group: int) -> tuple[Tensor, Tensor]:
    """The best of `SHRUNK` for each group; scales are numbers of bfloat16 and of float16: no kernel rounds them."""
    grouped = weight.unflatten(1, (-1, group))
    whole = grouped.abs().amax(2, keepdim=True) / (ZERO - 0.5)
    best, levels, scale = None, torch.empty(0), torch.empty(0)
    for share in SHRUNK:
        tried = _never_zero((whole * share).bfloat16().float())
        found = (grouped / tried).round_().clamp_(-ZERO, ZERO - 1)
        error = (found * tried - grouped).square_().sum(2, keepdim=True)
        if best is None:
            best, levels, scale = error, found, tried
            continue
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        levels = torch.where(better, found, levels)
    return (levels + ZERO).flatten(1).to(torch.uint8), scale[..., 0]


def _never_zero(scales: Tensor) -> Tensor:
    """Scales of which none is smaller than float16 can tell: a row of zeros has any scale."""
    return scales.clamp_min_(2.0**-24 * 2**7)
