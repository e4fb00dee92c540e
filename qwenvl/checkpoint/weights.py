"""Weight files, read tensor by tensor: `.safetensors` or `.bin` (nothing is unpickled), whole or sharded."""

import json
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor

from qwenvl.checkpoint import names
from qwenvl.config import ModelConfig
from qwenvl.files import component, open_regular
from qwenvl.model.integers import Integers
from qwenvl.parsing import read_json
from qwenvl.terminal import printable

MAX_INDEX = 256 << 20
"""Bytes of an index of shards."""

STEMS = ("model.safetensors", "pytorch_model.bin")
"""Weight files, the first that is there, whole or with an index of shards."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Their names of types -> ours."""


@dataclass(frozen=True)
class Stored:
    """A tensor on disk: its shape is known, its values are read when asked for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    integers: Callable[[], Integers] | None = None
    """Reads the integers of a quantised matrix; `read` then gives the weights that they mean."""
    packed: int = 0
    """Bytes that these integers take in memory."""
    mapped: Callable[[], Tensor] | None = None
    """Gives the values where they lie in the file: only what is looked at comes into memory."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def laid_out(self, layout: names.Layout, config: ModelConfig) -> "Stored":
        """The same tensor with its rows reordered when read; a layout that drops rows changes the shape too."""
        if layout is names.same:
            return self
        shape = tuple(layout(torch.empty(self.shape, device="meta"), config).shape)
        integers = self.integers
        return Stored(
            shape,
            self.dtype,
            lambda: layout(self.read(), config),
            None if integers is None else lambda: _rows_laid_out(integers(), layout, config),
            self.packed,
        )


def stored_tensors(folder: Path, stems: Iterable[str] = STEMS) -> dict[str, Stored]:
    """The tensors of a folder's weight files, or of one file: `.safetensors` first, else `.bin` (weights only)."""
    if folder.is_file():
        return dict(_stored_in(folder))
    for stem in stems:
        file, index = folder / stem, folder / f"{stem}.index.json"
        if index.exists():
            return {name: each for shard in _shards(index) for name, each in _stored_in(shard)}
        if file.exists():
            return dict(_stored_in(file))
    raise ValueError(f"{folder} has no weights; expected {' or '.join(stems)}, whole or sharded.")


def _shards(index: Path) -> list[Path]:
    values = read_json(index, limit=MAX_INDEX)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index} has no weight_map of file names; copy it again from its source.")
    return [index.parent / component(place, f"shard in {index}") for place in sorted(set(places.values()))]


def _stored_in(file: Path) -> Iterator[tuple[str, Stored]]:
    if not file.exists():
        raise ValueError(f"{file} is missing though the index names it; copy all shards of the checkpoint.")
    open_regular(file).close()  # the libraries would wait for a pipe and read a device to its end
    try:
        found = _safetensors(file) if file.suffix == ".safetensors" else _unpickled(file)
    except MemoryError:
        raise
    except Exception as error:  # the parsers of both formats raise a zoo of types
        unsafe = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        message = "it holds more than tensors" if unsafe else str(error)
        reason = (message.splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{file} is truncated or no weight file ({printable(reason)}); copy it again from its source."
        ) from None
    for name, each in found.items():
        if each is None:
            raise ValueError(
                f"{file} holds {printable(name)} in a type or form that this version does not read."
            )
        yield name, each


def _safetensors(file: Path) -> dict[str, Stored | None]:
    opened = safe_open(file, framework="pt")  # checks the header against the file's length
    with open_regular(file) as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
    found: dict[str, Stored | None] = {}
    for name in opened.keys():  # noqa: SIM118 - not a mapping
        dtype, shape = SAFETENSORS_DTYPES.get(header[name]["dtype"]), tuple(header[name]["shape"])
        if dtype is None:
            found[name] = None
            continue
        start, stop = header[name]["data_offsets"]
        place = 8 + length + start
        values = (file, place, stop - start, dtype, shape)
        mapped = None if place % dtype.itemsize else partial(_map, *values)
        found[name] = Stored(shape, dtype, partial(_read, *values), mapped=mapped)
    return found


def _read(file: Path, place: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor in memory of its own: mapped pages of a file would stay beside what is made of them."""
    data = torch.empty(size, dtype=torch.uint8)
    with open_regular(file) as source:
        source.seek(place)
        if size and cast(BufferedReader, source).readinto(data.numpy().data) != size:
            raise ValueError(f"{file} has become shorter while it was read; copy it again from its source.")
    return data.view(dtype).view(shape)


def _map(file: Path, place: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor in mapped pages of the file; what is written into it does not reach the file."""
    pages = torch.from_file(str(file), shared=False, size=(place + size) // dtype.itemsize, dtype=dtype)
    return pages[place // dtype.itemsize :].view(shape)


def _unpickled(file: Path) -> dict[str, Stored | None]:
    """The tensors of a state dict, or of the state dict in a training checkpoint of OpenCLIP or Lightning."""
    tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = {name.removeprefix("module."): each for name, each in tensors["state_dict"].items()}
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise ValueError("it is no table of tensors; expected the state dict of a model")
    return {str(name): _of_tensor(each) for name, each in tensors.items()}


def _of_tensor(tensor: Tensor) -> Stored | None:
    """None for a tensor that says to be larger than its memory: a copy of it would not fit."""
    if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
        return None
    return Stored(tuple(tensor.shape), tensor.dtype, tensor.clone)


def _rows_laid_out(integers: Integers, layout: names.Layout, config: ModelConfig) -> Integers:
    """The same integers with their rows in another order."""
    zeros = None if integers.zeros is None else layout(integers.zeros, config)
    levels, scales = layout(integers.levels, config), layout(integers.scales, config)
    return Integers(kind=integers.kind, levels=levels, scales=scales, zeros=zeros)
