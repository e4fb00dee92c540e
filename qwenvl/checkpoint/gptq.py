"""Qwen-VL-Chat-Int4: language-model weights of 4 bits (GPTQ), made into float16 when read.

A linear layer of `in` to `out` channels is stored as

    qweight  int32 (in / 8, out)       eight 4-bit numbers of one column in each, the lowest bits first
    qzeros   int32 (groups, out / 8)   what 0 is, minus one, packed along the row
    scales   float16 (groups, out)
    g_idx    int32 (in)                the group of each input channel (128 neighbours in the release)
    bias     float16 (out)             also where the model has none: zeros

and weight[o, i] = scales[g, o] * (q[i, o] - zero[g, o]) with g = g_idx[i].
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float16, Int, Int32
from torch import Tensor

from qwenvl.checkpoint.weights import Stored
from qwenvl.config import ModelConfig

BITS = 4
PER_WORD = 32 // BITS
"""Numbers in an int32."""

PARTS = ("qweight", "qzeros", "scales", "g_idx")
"""The tensors that together are one weight."""


def dequantised(
    stored: Mapping[str, Stored], official: Mapping[str, Any], config: ModelConfig, where: str
) -> dict[str, Stored]:
    """The tensors of an official folder with every GPTQ layer as one float16 weight; others stay as they are.

    `official` is the folder's config.json. Raises ValueError for another method or number of bits, a layer that is
    not whole, and a bias that this model has no place for and is not zero.
    """
    layers = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    if not layers:
        return dict(stored)
    method = official.get("quantization_config", {})
    if method.get("bits", BITS) != BITS or method.get("quant_method", "gptq") != "gptq":
        raise ValueError(
            f"{where} is quantised by {method.get('quant_method', 'gptq')} to {method.get('bits')} bits; expected gptq "
            f"and {BITS}. Use the checkpoint that is not quantised."
        )
    result = {name: each for name, each in stored.items() if name.rpartition(".")[0] not in layers}
    for layer in layers:
        parts = [stored.get(f"{layer}.{part}") for part in PARTS]
        result[f"{layer}.weight"] = _weight([each for each in parts if each is not None], layer, where)
        bias = stored.get(f"{layer}.bias")
        if bias is None:
            continue
        if layer.endswith("c_attn") or config.llm.bias:
            result[f"{layer}.bias"] = bias
        elif bias.read().any():
            raise ValueError(
                f"{where} has a bias in {layer} that its config.json denies (no_bias); copy the folder again."
            )
    return result


def _weight(parts: list[Stored], layer: str, where: str) -> Stored:
    """One layer's weight, unpacked when read."""
    shapes = [each.shape for each in parts]
    if len(parts) == len(PARTS) and all(len(shape) == 2 for shape in shapes[:3]):
        (rows, out), groups = shapes[0], shapes[1][0]
        whole = shapes[1:] == [(groups, out // PER_WORD), (groups, out), (rows * PER_WORD,)]
    else:
        whole = False
    if not whole:
        raise ValueError(
            f"{where} holds {layer} as {', '.join(map(str, shapes))}; expected qweight, qzeros, scales and g_idx of "
            "one GPTQ layer. Copy the folder again."
        )
    return Stored((out, rows * PER_WORD), torch.float16, lambda: unpack(*(each.read() for each in parts)))


def unpack(
    qweight: Int32[Tensor, "words out"],
    qzeros: Int32[Tensor, "groups packed"],
    scales: Float16[Tensor, "groups out"],
    g_idx: Int[Tensor, " in"],
) -> Float16[Tensor, "out in"]:
    """The weight of a layer, each number the nearest float16 to scale times (q - zero)."""
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32)
    numbers = ((qweight[:, None, :] >> shifts[:, None]) & (2**BITS - 1)).flatten(0, 1)  # (in, out)
    zeros = ((qzeros[:, :, None] >> shifts) & (2**BITS - 1)).flatten(1) + 1  # (groups, out)
    groups = g_idx.long()
    return (scales.float()[groups] * (numbers - zeros[groups])).half().T.contiguous()
