"""4 bits on torch's own kernel for a CPU, whose order of bytes is the processor's: what it is, is found by packing.

The kernel takes as long for each row of activations, so many rows multiply weights that are made a few at a time.
"""

from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qwenvl.model.integers import Integers
from qwenvl.runtime import multiplies_bfloat16

BLOCK = 64
"""Outputs that a matrix has a multiple of: torch's kernel packs them together, or for AVX2 by halves."""

MANY = 64
"""Rows from which weights of 4 bits are dequantised: torch's kernel takes as long for each row, a product does not."""

STRIP = 8
"""Such blocks of outputs dequantised at a time: they stay in the processor's cache until they are multiplied."""


class Nibbles:
    """4 bits in the order of torch's kernel for a CPU; scales and products are bfloat16.

    Many rows are multiplied in float32 by a processor that is slow at bfloat16.
    """

    allowed: ClassVar[float] = 1e-2

    def __init__(self, integers: Integers) -> None:
        self.out, self.width = integers.levels.shape
        self.group, self.zeros = integers.group, integers.zeros
        if integers.kind != "int4" or self.out % BLOCK:
            raise ValueError(f"torch's kernel of 4 bits takes whole blocks of {BLOCK} rows.")
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu.default
        self._product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        self.rows, self.packed = _rows_of_a_block(), torch.empty(self.out, self.width // 2, dtype=torch.uint8)
        for start in range(0, self.out, 128):  # 32 bits a weight on the way; any 64 rows are packed alike
            few = slice(start, start + 128)
            self.packed[few] = pack(integers.levels[few].int(), 1)
        self.block = len(self.rows)
        self.order = slice(None) if torch.equal(self.rows, torch.arange(self.block)) else self.rows
        self.wide = torch.bfloat16 if multiplies_bfloat16(integers.levels.device) else torch.float32
        scales = integers.scales.float()
        self.exact = None if torch.equal(scales.bfloat16().float(), scales) else integers.scales
        pairs = torch.stack([scales, (8 - integers.offsets()) * scales], dim=2)
        self.pairs = pairs.transpose(0, 1).bfloat16().contiguous()  # (groups, out, scale and shift)

    def integers(self) -> Integers:
        """The same integers again, their rows in their own order."""
        low, high = (part.unflatten(0, (-1, self.block)) for part in (self.packed & 15, self.packed >> 4))
        both = torch.cat([each.reshape(len(each), self.width, -1) for each in (low, high)], dim=2)
        levels = both[:, :, self.rows.argsort()].transpose(1, 2).reshape(self.out, self.width)
        scales = self.pairs[..., 0].T.float() if self.exact is None else self.exact
        return Integers(kind="int4", levels=levels.contiguous(), scales=scales, zeros=self.zeros)

    def product(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows out"]:
        """Rows times the matrix, in bfloat16."""
        few = rows.bfloat16().contiguous()
        if len(rows) < MANY:
            return self._product(few, self.packed, self.group, self.pairs).to(rows.dtype)
        few, strip = few.to(self.wide), STRIP * BLOCK // self.block
        product, scratch = few.new_empty(len(rows), self.out), few.new_empty(self.width * STRIP * BLOCK)
        outputs = product.unflatten(1, (-1, self.block))
        for start in range(0, self.out // self.block, strip):
            blocks = slice(start, start + strip)
            some = few @ self._weight(blocks, scratch)
            outputs[:, blocks, self.order] = some.unflatten(1, (-1, self.block))
        return product.to(rows.dtype)

    def _weight(self, blocks: slice, scratch: Tensor) -> Float[Tensor, "width outputs"]:
        """The transposed weights of some blocks of outputs, in the order of the bytes: level times scale plus shift.

        The high half of a byte is 16 times its level, and has a 16th of its scale.
        """
        half = self.block // 2
        packed = self.packed.view(-1, self.width, half)[blocks]
        weight = scratch[: 2 * packed.numel()].view(self.width, len(packed), 2, half)
        for place, bits in enumerate((15, 240)):
            for block, levels in enumerate(packed & bits):
                weight[:, block, place].copy_(levels)
        blockwise = self.pairs.unflatten(1, (-1, self.block))  # (groups, blocks, rows, scale and shift)
        scale, shift = blockwise[:, blocks, self.order].to(weight.dtype).unflatten(2, (2, half)).unbind(4)
        shift = (shift - 8 * scale).flatten(1)
        scale = torch.cat([scale[:, :, :1], scale[:, :, 1:] / 16], dim=2).flatten(1)
        grouped = weight.view(len(scale), self.group, -1)
        torch.addcmul(shift[:, None], grouped, scale[:, None], out=grouped)
        return weight.view(self.width, -1)


@cache
def _rows_of_a_block() -> Tensor:
    """Which rows of a block the low halves of the bytes hold, then the high ones: found by packing their numbers.

    A block is of 64 rows, or of 32 for AVX2: as many bytes hold its first input before the second one comes.
    """
    pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu.default
    second = pack(torch.tensor([[0, 15]], dtype=torch.int32).expand(BLOCK, 2).contiguous(), 1).flatten()
    half, number = int(second.ne(0).nonzero()[0]), torch.arange(BLOCK)[:, None].expand(BLOCK, 2)
    digits = [pack((number // 16**place % 16).int().contiguous(), 1).flatten()[:half] for place in (0, 1)]
    low, high = ((digits[0] >> shift & 15) + 16 * (digits[1] >> shift & 15) for shift in (0, 4))
    return torch.cat([low, high]).long()
