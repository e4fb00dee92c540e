"""Whether a model fits into memory, said before it is read; and quantised layers in their places."""

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from qwenvl.checkpoint.weights import Stored
from qwenvl.model.integers import Integers
from qwenvl.model.quantized import QuantizedLinear
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime, free_memory

SPARE = 1.05
"""What reading takes beside the model: one matrix on its way, and the allocator's own."""

BESIDE = 0.15
"""Of integers, what the order takes beside them that answers fastest on a CPU (`model.blockwise`)."""

LOOKED_UP = "llm.embed.weight"
"""A table of which each answer needs a few rows."""


def put_quantized(model: QwenVL, layer: str, integers: Integers, runtime: Runtime) -> None:
    """The layer of that name, without values so far but its bias, as integers on the runtime's device."""
    parent, _, name = layer.rpartition(".")
    empty = model.get_submodule(layer)
    assert isinstance(empty, nn.Linear), layer
    made = QuantizedLinear(integers, empty.bias, runtime.dtype)
    setattr(model.get_submodule(parent), name, made.to(runtime.device))


def stays_in_file(name: str, stored: Stored, kept: Collection[str], runtime: Runtime) -> bool:
    """Whether the table of a quantised model (`kept`: its layers of integers) is left in the file's own pages."""
    fits = runtime.device.type == "cpu" and stored.dtype == runtime.dtype and stored.mapped is not None
    return name == LOOKED_UP and bool(kept) and fits


def plain_tensor(name: str, stored: Stored, kept: Collection[str], runtime: Runtime) -> Tensor:
    """The values in the runtime's precision on its device, or where they lie in the file."""
    if stored.mapped is not None and stays_in_file(name, stored, kept, runtime):
        return stored.mapped()
    return stored.read().to(runtime.device, runtime.dtype)


def bytes_of(stored: Mapping[str, Stored], kept: Collection[str], runtime: Runtime) -> int:
    """Memory of the model: plain tensors in the runtime's precision, layers of `kept` as integers, no mapped table."""
    total = 0
    for name, each in stored.items():
        count = each.size // each.dtype.itemsize
        if not stays_in_file(name, each, kept, runtime):
            total += each.packed if name in kept else count * runtime.dtype.itemsize
    return total


def require_memory(
    stored: Mapping[str, Stored], kept: Collection[str], runtime: Runtime, folder: Path
) -> None:
    """Raises ValueError when the model is larger than the memory that is free, and says what would fit."""
    free, need = free_memory(runtime.device), int(SPARE * bytes_of(stored, kept, runtime))
    if runtime.device.type == "cpu":
        need += int(BESIDE * sum(stored[name].packed for name in kept))
    if free is None or need <= free:
        return
    smaller = (
        "quantise it (`qwenvl quantize ... --to int4`)" if not kept else "quantise its vision encoder too"
    )
    if runtime.dtype.itemsize > 2:
        smaller = f"load it in bfloat16 (--dtype bfloat16) or {smaller}"
    raise ValueError(
        f"{folder} needs {need / 1e9:,.1f} GB in {str(runtime.dtype).removeprefix('torch.')} and {free / 1e9:,.1f} GB "
        f"are free on {runtime.device}; {smaller}, or free some."
    )
