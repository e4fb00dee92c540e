"""One sample of a shard: its columns, and where its pictures are; the pictures themselves are read when needed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.clean.pairs import IMAGE_COLUMNS, IMAGES, TEXTS
from qwenvl.data.shards import BLOCK, name_and_suffix, parquet, skim_tar
from qwenvl.data.stream.index import kind_of


class Unusable(ValueError):
    """A sample that cannot be trained on: `kind` is counted, the detail is for the person who looks."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail


class Located(NamedTuple):
    """A file inside a tar by its first byte and length, or a cell of a parquet file by row group and row."""

    shard: Path
    first: int
    second: int
    name: str
    """Name of the file, or of the column."""

    def __str__(self) -> str:
        return f"{self.shard.name}, {self.name}"

    def read(self) -> bytes:
        """The encoded picture."""
        if kind_of(self.shard) == "parquet":
            value = _row(self.shard, self.first, self.second)[self.name]
            return value["bytes"] if isinstance(value, dict) else value
        with self.shard.open("rb") as file:
            file.seek(self.first)
            return file.read(self.second)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What stands at one place of a shard."""

    where: str
    """Shard and key, for messages."""
    columns: Mapping[str, Any]
    """The JSON of the sample; `text` where it has a text file."""
    images: Mapping[str, Located]
    """Those that the shard itself holds, by name."""
    folder: Path
    """Where relative paths of pictures start."""


def read_sample(shard: Path, first: int, second: int) -> Sample:
    """The sample at a place (see `places`). Raises Unusable."""
    match kind_of(shard):
        case "tar":
            return _of_tar(shard, first, second)
        case "parquet":
            return _of_parquet(shard, first, second)
    with shard.open("rb") as file:
        file.seek(first)
        columns = _json(file.read(second))
    where = f"{shard.name}, byte {first}"
    return Sample(where=where, columns=columns, images={}, folder=shard.parent)


def _of_tar(shard: Path, first: int, length: int) -> Sample:
    key, columns, text, images = "", {}, None, {}
    for member, _, stop in skim_tar(shard, first, first + length):
        if member.damage is not None:
            if not member.name:
                break  # the end of the sample, which is no end of a tar
            raise Unusable(member.damage.partition(" (")[0], member.name)
        key, suffix = name_and_suffix(member.name)
        size = len(member.data)
        file = Located(shard, stop - size - -size % BLOCK, size, member.name)
        if suffix == "json":
            columns = _json(file.read())
        elif suffix in TEXTS:
            text = _utf8(file.read())
        elif suffix in IMAGES:
            images[member.name] = file
    if text is not None:
        columns = {**columns, "text": text}
    return Sample(where=f"{shard.name}, {key}", columns=columns, images=images, folder=shard.parent)


def _of_parquet(shard: Path, group: int, row: int) -> Sample:
    columns = dict(_row(shard, group, row))
    images = {}
    for name in [name for name in columns if name.lower() in IMAGE_COLUMNS]:
        value = columns[name]
        inside = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(inside, bytes):
            images[name] = Located(shard, group, row, name)
            del columns[name]
        elif isinstance(value, dict):  # Hugging Face's image column without the bytes
            columns[name] = value.get("path")
    where = f"{shard.name}, row group {group}, row {row}"
    return Sample(where=where, columns=columns, images=images, folder=shard.parent)


def _row(shard: Path, group: int, row: int) -> Mapping[str, Any]:
    return _row_group(shard, group).slice(row, 1).to_pylist()[0]


@lru_cache(maxsize=2)
def _row_group(shard: Path, group: int) -> Any:
    """Two are kept: samples of a row group follow each other (`order.Order`)."""
    return parquet().ParquetFile(shard).read_row_group(group)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = json.loads(_utf8(raw))
    except (json.JSONDecodeError, RecursionError) as error:
        raise Unusable("broken JSON", str(error)[:200]) from None
    if not isinstance(found, dict):
        raise Unusable("broken JSON", "not an object")
    return found


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("broken UTF-8", str(error)[:200]) from None
