"""nf4 on the kernel of bitsandbytes for a CPU: torch has none for levels that are no even steps.

The library is imported here and nowhere else, since it would ask the hub for code.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.model.integers import NORMAL, Integers

BLOCK = 32
"""Rows that lie side by side in the kernel's order."""

ROWS = 4 * BLOCK
"""Rows put into that order at a time."""


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Whoever imports this library meanwhile is told that it is not installed."""
    modules: dict[str, Any] = sys.modules
    before = {name: modules[name]} if name in modules else {}
    modules[name] = None
    try:
        yield
    finally:
        del modules[name]
        modules.update(before)


def bitsandbytes() -> Any:
    """The library with the kernels that it was built with, and silent.

    By itself it fetches another from the hub and runs it, where the package `kernels` is installed, and complains where
    it is not. Raises ImportError where it is not installed itself.
    """
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.addFilter(_is_told)
    try:
        with hidden("kernels"):
            import bitsandbytes as library
    finally:
        log.removeFilter(_is_told)
    if (apple := sys.modules.get("bitsandbytes.backends.mps.ops")) is not None:
        apple._kernel_load_failed = True  # type: ignore[attr-defined]  # it would fetch at its first product
    return library


def _is_told(record: logging.LogRecord) -> bool:
    return "kernels-community" not in str(record.msg)


class Borrowed:
    """Levels as the kernel reads them: two neighbours of 32 rows, the first 16 rows in the low halves of the bytes.

    Needs bitsandbytes and a processor that multiplies bfloat16 (AVX512-BF16); scales and products are bfloat16.
    """

    allowed: ClassVar[float] = 1e-2

    def __init__(self, integers: Integers) -> None:
        has_kernel = bitsandbytes().functional.has_avx512bf16()
        self.out, self.width = integers.levels.shape
        self.group = integers.group
        if integers.kind != "nf4" or self.out % BLOCK or not has_kernel:
            raise ValueError(
                "bitsandbytes multiplies nf4 in whole blocks of 32 rows, on processors with AVX512-BF16."
            )
        self._product = torch.ops.bitsandbytes.gemv_4bit.default
        self.packed = torch.empty(self.out, self.width // 2, dtype=torch.uint8)
        for start in range(0, self.out, ROWS):
            few = integers.levels[start : start + ROWS].unflatten(1, (-1, 2)).unflatten(0, (-1, BLOCK))
            low, high = few.transpose(1, 2).reshape(-1, 2, BLOCK).unbind(1)
            self.packed[start : start + ROWS] = (low | (high << 4)).view(-1, self.width // 2)
        self.scales, self.numbers = integers.scales.T.bfloat16().contiguous(), torch.tensor(NORMAL)
        same = torch.equal(self.scales.T.float(), integers.scales.float())
        self.exact = None if same else integers.scales

    def integers(self) -> Integers:
        """The same integers again."""
        packed = self.packed.view(-1, BLOCK)
        both = torch.stack([packed & 15, packed >> 4], dim=1).view(-1, self.width // 2, BLOCK, 2)
        levels = both.transpose(1, 2).reshape(self.out, self.width)
        scales = self.scales.T.float() if self.exact is None else self.exact
        return Integers(kind="nf4", levels=levels, scales=scales)

    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the matrix, in bfloat16."""
        few, shape = rows.bfloat16().contiguous(), (self.out, self.width)
        product: Tensor = self._product(few, self.packed, shape, self.scales, self.numbers, self.group)
        return product.to(rows.dtype)
