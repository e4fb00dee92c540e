"""Weights as integers: what they mean, and how plain rounding makes them.

A matrix of `out` rows is kept as one small integer a weight, and one scale for each group of neighbours in a row:

    weight[o, i] = scale[o, g] * (level[o, i] - zero[o, g])        with g = i // group

or, where the levels are no even steps (nf4), the level's own number times the scale. `FORMATS` is all that the kinds
differ in; everything else about quantised layers (kernels, folders, reports) is held to this formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

Kind = Literal["int8", "int4", "nf4"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """What the levels of one kind are and mean."""

    dtype: torch.dtype
    """Of a level: int8, or uint8 where it has 4 bits."""
    zero: int = 0
    """The level that means nothing, where rounding is symmetric."""
    groups: tuple[int, ...] = ()
    """Weights that may share a scale, the largest first; none: those of a row."""
    numbers: tuple[float, ...] = ()
    """What each level means; none: its distance from the zero."""


NORMAL = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Levels of nf4: as many weights of a normal distribution lie at each, one of them 0 (QLoRA, appendix E)."""

FORMATS: Mapping[Kind, Format] = {
    "int8": Format(dtype=torch.int8),
    "int4": Format(dtype=torch.uint8, zero=8, groups=(128, 64, 32)),  # 128 as in Qwen-VL-Chat-Int4
    "nf4": Format(dtype=torch.uint8, groups=(64, 32), numbers=NORMAL),  # as bitsandbytes has it
}

SHRUNK = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a group's range that are tried for its scale of 4 bits: to clip one large weight may serve the others."""

ROWS = 128
"""Rows rounded at a time: what is computed on the way stays small beside the result."""


@dataclass(frozen=True, kw_only=True)
class Integers:
    """One matrix as integers."""

    kind: Kind
    levels: Integer[Tensor, "out width"]
    """int8 within +-127 for `int8`, uint8 below 16 for 4 bits; in any order in memory."""
    scales: Float[Tensor, "out groups"]
    zeros: Integer[Tensor, "out groups"] | None = None
    """None: that of the format."""

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
        return torch.full_like(self.scales, FORMATS[self.kind].zero, dtype=torch.float32)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "out width"]:
        """The weights that are meant, computed in float32 and rounded once; a few rows at a time."""
        out, width = self.levels.shape
        weight = torch.empty(out, width, dtype=dtype, device=self.levels.device)
        scales, offsets = self.scales.float()[..., None], self.offsets()[..., None]
        for start in range(0, out, ROWS):
            rows = slice(start, start + ROWS)
            levels = self.levels[rows].unflatten(1, (-1, self.group))
            weight[rows] = (steps_of(levels, self.kind, offsets[rows]) * scales[rows]).flatten(1)
        return weight


def group_for(kind: Kind, widths: set[int]) -> int:
    """The largest group of this kind that divides rows of all these lengths; 0 where a row has one scale.

    Raises ValueError where none does.
    """
    groups = FORMATS[kind].groups
    for group in groups:
        if all(width % group == 0 for width in widths):
            return group
    if not groups:
        return 0
    raise ValueError(
        f"rows of {sorted(widths)} weights cannot be cut into groups of {groups[-1]}; choose int8 for this model."
    )


def rounded(weight: Float[Tensor, "out width"], kind: Kind, *, group: int = 0) -> Integers:
    """The nearest integers to a matrix, whatever its inputs are like; a few rows at a time.

    `group`: weights that share a scale, where those of a row do not; 0: the largest that fits.
    Raises ValueError for weights that are no numbers.
    """
    out, width = weight.shape
    group = (group or group_for(kind, {width})) if FORMATS[kind].groups else width
    levels = torch.empty(out, width, dtype=FORMATS[kind].dtype)
    scales = torch.empty(out, width // group)
    for start in range(0, out, ROWS):
        rows = slice(start, start + ROWS)
        few = weight[rows].float()
        if not torch.isfinite(few).all():
            raise ValueError(
                "the weights hold values that are no numbers (NaN or infinity); use a sound checkpoint."
            )
        levels[rows], scales[rows] = _NEAREST[kind](few, group)
    return Integers(kind=kind, levels=levels, scales=scales)


def steps_of(
    levels: Integer[Tensor, "*shape"], kind: Kind, zeros: Float[Tensor, "..."] | int
) -> Float[Tensor, "*shape"]:
    """What levels mean in units of their scales; `zeros`: the levels that mean nothing, where they are even steps."""
    if numbers := FORMATS[kind].numbers:
        return torch.tensor(numbers, device=levels.device)[levels.int()]
    return levels.float() - zeros


def levels_at(steps: Float[Tensor, "*shape"], kind: Kind) -> Integer[Tensor, "*shape"]:
    """The nearest levels of weights that are told in units of their scales."""
    own = FORMATS[kind]
    if own.numbers:
        numbers = torch.tensor(own.numbers)
        return torch.bucketize(steps, (numbers[1:] + numbers[:-1]) / 2).to(own.dtype)
    lowest, highest = (-127, 127) if kind == "int8" else (0, 15)
    return (steps.round() + own.zero).clamp_(lowest, highest).to(own.dtype)


def _to_bytes(weight: Float[Tensor, "rows width"], group: int) -> tuple[Tensor, Tensor]:
    scale = _never_zero(weight.abs().amax(1, keepdim=True) / 127)  # the group is the row
    return levels_at(weight / scale, "int8"), scale


def _to_nibbles(weight: Float[Tensor, "rows width"], group: int) -> tuple[Tensor, Tensor]:
    """The best of `SHRUNK` for each group; scales are numbers of bfloat16 and of float16: no kernel rounds them."""
    grouped = weight.unflatten(1, (-1, group))
    zero = FORMATS["int4"].zero
    whole = grouped.abs().amax(2, keepdim=True) / (zero - 0.5)
    best, levels, scale = None, torch.empty(0), torch.empty(0)
    for share in SHRUNK:
        tried = _never_zero((whole * share).bfloat16().float())
        found = (grouped / tried).round_().clamp_(-zero, zero - 1)
        error = (found * tried - grouped).square_().sum(2, keepdim=True)
        if best is None:
            best, levels, scale = error, found, tried
            continue
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
        levels = torch.where(better, found, levels)
    return (levels + zero).flatten(1).to(torch.uint8), scale[..., 0]


def _to_normal(weight: Float[Tensor, "rows width"], group: int) -> tuple[Tensor, Tensor]:
    """The largest of a group is 1; scales are numbers of bfloat16: no kernel rounds them."""
    grouped = weight.unflatten(1, (-1, group))
    scale = _never_zero(grouped.abs().amax(2, keepdim=True).bfloat16().float())
    return levels_at(grouped / scale, "nf4").flatten(1), scale[..., 0]


_NEAREST = {"int8": _to_bytes, "int4": _to_nibbles, "nf4": _to_normal}


def _never_zero(scales: Tensor) -> Tensor:
    """Scales of which none is smaller than float16 can tell: a row of zeros has any scale."""
    return scales.clamp_min_(2.0**-24 * 2**7)
