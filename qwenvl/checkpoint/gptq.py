"""Layers of 4 bits as Qwen-VL-Chat-Int4 stores them (GPTQ), to integers and back.

A linear layer of `in` to `out` channels is stored as

    qweight  int32 (in / 8, out)       eight 4-bit numbers of one column in each, the lowest bits first
    qzeros   int32 (groups, out / 8)   what 0 is, minus one, packed along the row
    scales   float16 (groups, out)
    g_idx    int32 (in)                the group of each input channel (128 neighbours in the release)
    bias     float16 (out)             also where the model has none: zeros

and weight[o, i] = scales[g, o] * (q[i, o] - zero[g, o]) with g = g_idx[i].
"""

import torch
from jaxtyping import Float16, Int, Int32, UInt8
from torch import Tensor

from qwenvl.checkpoint.weights import Stored
from qwenvl.model.integers import FORMATS, Integers

BITS = 4
PER_WORD = 32 // BITS
"""Numbers in an int32."""

PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""The tensors that together are one weight."""


def stored_weight(parts: list[Stored], layer: str, where: str) -> Stored:
    """One layer's weight, unpacked when read. Raises ValueError for tensors that are not one layer."""
    shapes = [each.shape for each in parts]
    if len(parts) == len(PARTS) and all(len(shape) == 2 for shape in shapes[:3]):
        (rows, out), groups = shapes[0], shapes[1][0]
        whole = shapes[1:] == [(groups, out // PER_WORD), (groups, out), (rows * PER_WORD,)]
    else:
        whole = False
    if not whole or rows * PER_WORD % groups:
        raise ValueError(
            f"{where} holds {layer} as {', '.join(map(str, shapes))}; expected qweight, qzeros, scales and g_idx of "
            "one GPTQ layer. Copy the folder again."
        )
    qweight, qzeros, scales, g_idx = parts
    width = rows * PER_WORD
    order = g_idx.read().long()
    if bool(((order < 0) | (order >= groups)).any()):
        raise ValueError(
            f"{where} holds {layer} with channels of a group that is not there; expected g_idx from 0 to {groups - 1}. "
            "Copy the folder again."
        )
    in_order = torch.equal(order, torch.arange(width) // (width // groups))
    return Stored(
        (out, width),
        torch.float16,
        lambda: unpack(*(each.read() for each in parts)),
        (lambda: integers_of(qweight.read(), qzeros.read(), scales.read())) if in_order else None,
        out * width // 2 + 6 * out * groups,  # a scale as it is, and as the kernel wants it
    )


def unpack(
    qweight: Int32[Tensor, "words out"],
    qzeros: Int32[Tensor, "groups packed"],
    scales: Float16[Tensor, "groups out"],
    g_idx: Int[Tensor, " in"],
) -> Float16[Tensor, "out in"]:
    """The weight of a layer, each number the nearest float16 to scale times (q - zero); groups in any order."""
    numbers, zeros, groups = _numbers(qweight), _zeros(qzeros), g_idx.long()
    return (scales.float()[groups] * (numbers.int() - zeros[groups]).float()).half().T.contiguous()


def integers_of(
    qweight: Int32[Tensor, "words out"],
    qzeros: Int32[Tensor, "groups packed"],
    scales: Float16[Tensor, "groups out"],
) -> Integers:
    """The same layer as integers, of which none is rounded; groups are neighbours."""
    zeros = _zeros(qzeros)
    symmetric = bool((zeros == FORMATS["int4"].zero).all())
    return Integers(
        kind="int4",
        levels=_numbers(qweight).T.contiguous(),
        scales=scales.T.contiguous(),
        zeros=None if symmetric else zeros.T.to(torch.uint8).contiguous(),
    )


def shapes(out: int, width: int, group: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What `parts_of` gives of a matrix."""
    groups = width // group
    return {
        "qweight": ((width // PER_WORD, out), torch.int32),
        "qzeros": ((groups, out // PER_WORD), torch.int32),
        "scales": ((groups, out), torch.float16),
        "g_idx": ((width,), torch.int32),
    }


def parts_of(integers: Integers) -> dict[str, Tensor]:
    """The tensors that are stored; the way back of `integers_of`."""
    width = integers.levels.shape[1]
    zeros = integers.offsets().to(torch.uint8) - 1
    return {
        "qweight": _words(integers.levels.T.contiguous()),
        "qzeros": _words(zeros).T.contiguous(),
        "scales": integers.scales.half().T.contiguous(),
        "g_idx": (torch.arange(width) // integers.group).int(),
    }


def _numbers(qweight: Int32[Tensor, "words out"]) -> UInt8[Tensor, "in out"]:
    """One of eight at a time: all at once would take eight times the memory of the words."""
    numbers = torch.empty(len(qweight) * PER_WORD, qweight.shape[1], dtype=torch.uint8)
    for place in range(PER_WORD):
        numbers[place::PER_WORD] = (qweight >> (BITS * place)) & (2**BITS - 1)
    return numbers


def _zeros(qzeros: Int32[Tensor, "groups packed"]) -> Int32[Tensor, "groups out"]:
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32)
    return ((qzeros[:, :, None] >> shifts) & (2**BITS - 1)).flatten(1) + 1


def _words(numbers: UInt8[Tensor, "many other"]) -> Int32[Tensor, "words other"]:
    """Eight neighbours along the first axis in each word."""
    grouped = numbers.unflatten(0, (-1, PER_WORD))
    words = torch.zeros(len(grouped), numbers.shape[1], dtype=torch.int32)
    for place in range(PER_WORD):
        words |= grouped[:, place].int() << (BITS * place)
    return words
