"""Layers of nf4 as bitsandbytes stores them (what transformers writes with `load_in_4bit`), to integers and back.

A matrix of `out` rows, whose weights in their order are cut into blocks, is stored as

    weight                                uint8 (out * in / 2, 1)   two levels in each, the first in the high half
    weight.absmax                         float32 (blocks)          their scales; uint8 where these are rounded too
    weight.quant_map                      float32 (16)              what the levels mean
    weight.quant_state.bitsandbytes__nf4  uint8                     JSON: shape, blocksize, dtype
    weight.nested_absmax, weight.nested_quant_map                   how to read scales that are rounded
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qwenvl.checkpoint.weights import Stored
from qwenvl.model.integers import NORMAL, Integers
from qwenvl.parsing import parse_json

STATE = "weight.quant_state.bitsandbytes__nf4"

PARTS = ("weight", "weight.absmax", "weight.quant_map", STATE)
"""The tensors that together are one weight."""

NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
"""Those of rounded scales."""

MAX_STATE = 1 << 16
"""Bytes of the JSON."""


def stored_weight(parts: Mapping[str, Stored], layer: str, where: str) -> Stored:
    """One layer's weight, read from its parts when asked for. Raises ValueError for what is not one layer of nf4."""
    try:
        state = _state(parts[STATE])
        (out, width), block = state["shape"], state["blocksize"]
        nested = "nested_offset" in state
        whole = (
            all(isinstance(each, int) and each > 0 for each in (out, width, block))
            and parts["weight"].shape == (out * width // 2, 1)
            and parts["weight.absmax"].shape == (out * width // block,)
            and parts["weight.absmax"].dtype == (torch.uint8 if nested else torch.float32)
            and torch.allclose(parts["weight.quant_map"].read().float(), torch.tensor(NORMAL), atol=1e-4)
            and all(name in parts for name in NESTED if nested)
        )
    except (KeyError, TypeError, ValueError, RuntimeError):
        whole = False
    if not whole or width % block:
        raise ValueError(
            f"{where} holds {layer} as {', '.join(parts)}; expected {', '.join(PARTS)} of one layer of nf4 whose rows "
            "are whole blocks. Copy the folder again, or use the checkpoint that is not quantised."
        )
    plain = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(state.get("dtype"), torch.float16)

    def integers() -> Integers:
        return _integers(parts, state)

    return Stored(
        (out, width),
        plain,
        lambda: integers().dequantised(plain),
        integers,
        out * width // 2 + 6 * out * width // block,  # a scale as it is, and as the kernel wants it
    )


def _state(stored: Stored) -> Any:
    if stored.size > MAX_STATE:
        raise ValueError("too long")
    return parse_json(bytes(stored.read().tolist()), STATE)


def _integers(parts: Mapping[str, Stored], state: Mapping[str, Any]) -> Integers:
    (out, width), block = state["shape"], state["blocksize"]
    packed, scales = parts["weight"].read().view(out, width // 2), parts["weight.absmax"].read()
    if "nested_offset" in state:
        table, outer = (parts[name].read().float() for name in reversed(NESTED))
        outer = outer.repeat_interleave(state["nested_blocksize"])[: len(scales)]
        scales = table[scales.int()] * outer + state["nested_offset"]
    levels = torch.stack([packed >> 4, packed & 15], dim=2).flatten(1)
    return Integers(kind="nf4", levels=levels, scales=scales.view(out, width // block))


def shapes(out: int, width: int, group: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What `parts_of` gives of a matrix."""
    return {
        "weight": ((out * width // 2, 1), torch.uint8),
        "weight.absmax": ((out * width // group,), torch.float32),
        "weight.quant_map": ((len(NORMAL),), torch.float32),
        STATE: ((len(_said(out, width, group)),), torch.uint8),
    }


def parts_of(integers: Integers) -> dict[str, Tensor]:
    """The tensors that are stored; the way back of `stored_weight`."""
    levels, (out, width) = integers.levels, integers.levels.shape
    return {
        "weight": (levels[:, 1::2] | (levels[:, ::2] << 4)).view(-1, 1),
        "weight.absmax": integers.scales.float().flatten(),
        "weight.quant_map": torch.tensor(NORMAL),
        STATE: torch.frombuffer(bytearray(_said(out, width, integers.group)), dtype=torch.uint8),
    }


def _said(out: int, width: int, group: int) -> bytes:
    state = {"quant_type": "nf4", "blocksize": group, "dtype": "bfloat16", "shape": [out, width]}
    return json.dumps(state).encode()
