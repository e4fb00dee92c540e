"""Files of safetensors, written tensor by tensor: memory holds one of them, however large the files are."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qwenvl.checkpoint.weights import SAFETENSORS_DTYPES, Stored

SHARD_BYTES = 4_000_000_000
"""Weights above this are split over several files."""

PIECE = 8 << 20
"""Bytes given to the system at a time."""

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_tensors(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Write the weights, one tensor in memory at a time, with an index when they need more than one file."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, each in stored.items():
        if filled + each.size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += each.size
    files = [
        "model.safetensors" if len(shards) == 1 else f"model-{n:05}-of-{len(shards):05}.safetensors"
        for n in range(1, len(shards) + 1)
    ]
    for file, members in zip(files, shards, strict=True):
        write_file({name: stored[name] for name in members}, folder / file)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(each.size for each in stored.values())},
            "weight_map": {
                name: file for file, members in zip(files, shards, strict=True) for name in members
            },
        }
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )


def write_file(stored: Mapping[str, Stored], file: Path) -> None:
    """Write the tensors in their order; those that would leave the next at an odd address come last, widest first.

    What is read of each is checked against what was said of it. The file is written in place: whoever needs it whole
    or not at all writes into a folder that is not shown yet.
    """
    odd = [item for item in stored.items() if item[1].size % 8]
    even = [item for item in stored.items() if not item[1].size % 8]
    ordered = [*even, *sorted(odd, key=lambda item: -item[1].dtype.itemsize)]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, each in ordered:
        place = {"dtype": _NAMES[each.dtype], "shape": each.shape, "data_offsets": [start, start + each.size]}
        header[name], start = place, start + each.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, each in ordered:
            tensor = each.read()
            assert (tuple(tensor.shape), tensor.dtype) == (each.shape, each.dtype), name
            data = memoryview(_bytes_of(tensor))
            for begin in range(0, len(data), PIECE):
                out.write(data[begin : begin + PIECE])


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
