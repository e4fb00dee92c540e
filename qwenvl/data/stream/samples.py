"""One sample of a shard: its columns, and where its pictures are; the pictures themselves are read when needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data import parquet
from qwenvl.data.columns import IMAGE_COLUMNS, image_beside, image_of, parts_of
from qwenvl.data.shards import LARGEST, kind_of
from qwenvl.data.stream.index import plain
from qwenvl.data.tars import is_hidden, name_and_suffix, skim_tar
from qwenvl.parsing import parse_json


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
        """The encoded picture. Raises ValueError for one that cannot be read."""
        if kind_of(self.shard) == "parquet":
            found = image_of(_row(self.shard, self.first, self.second).get(self.name))
            if not isinstance(found, bytes):
                raise ValueError(f"no picture in {self}; the file has changed.")
            return found
        with plain(self.shard).open("rb") as file:
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
    if second > LARGEST:
        raise Unusable("line too long", f"{second:,} bytes, at most {LARGEST:,}")
    with plain(shard).open("rb") as file:
        file.seek(first)
        columns = _json(file.read(second))
    where = f"{shard.name}, byte {first}"
    return Sample(where=where, columns=columns, images={}, folder=shard.parent)


def _of_tar(shard: Path, first: int, length: int) -> Sample:
    key, columns, text = "", {}, None
    files: dict[str, Located] = {}
    for member in skim_tar(plain(shard), first, first + length):
        if not member.name and member.damage is not None:
            break  # the end of the sample, which is no end of a tar
        if is_hidden(member.name):
            continue
        key, suffix = name_and_suffix(member.name)
        if member.damage is not None:
            raise Unusable(member.damage.partition(" (")[0], member.name)
        if member.size > LARGEST:
            raise Unusable("file too large", f"{member.name}, {member.size:,} bytes")
        files[suffix] = Located(shard, member.first, member.size, member.name)
    parts = parts_of(files)
    if parts.columns is not None:
        columns = _json(files[parts.columns].read())
    if parts.text is not None:
        text = _utf8(files[parts.text].read())
    if text is not None:
        columns = {**columns, "text": text}
    images = {files[suffix].name: files[suffix] for suffix in parts.images}
    return Sample(where=f"{shard.name}, {key}", columns=columns, images=images, folder=shard.parent)


def _of_parquet(shard: Path, group: int, row: int) -> Sample:
    columns = _row(shard, group, row)
    if parquet.too_large(columns):
        raise Unusable("cell too large", f"more than {LARGEST:,} bytes")
    images = {}
    for name in [name for name in columns if name.lower() in IMAGE_COLUMNS]:
        found = image_of(columns[name])
        if isinstance(found, bytes):
            images[name] = Located(shard, group, row, name)
            del columns[name]
        else:
            columns[name] = found
    if not images and (beside := image_beside(columns, shard)) is not None:
        columns["image"] = str(beside.relative_to(shard.parent))
    where = f"{shard.name}, row group {group}, row {row}"
    return Sample(where=where, columns=columns, images=images, folder=shard.parent)


def _row(shard: Path, group: int, row: int) -> dict[str, Any]:
    try:
        return parquet.row_of(_row_group(shard, group), row)
    except ValueError as error:
        raise Unusable("damaged parquet", str(error)) from None


@lru_cache(maxsize=2)
def _row_group(shard: Path, group: int) -> Any:
    """Two are kept: samples of a row group follow each other (`order.Order`)."""
    return parquet.read_group(shard, group)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        found = parse_json(_utf8(raw), "it", allow_nan=True)
    except ValueError as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable("broken JSON", str(error)[:200]) from None
    if not isinstance(found, dict):
        raise Unusable("broken JSON", "not an object")
    return found


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable("broken UTF-8", str(error)[:200]) from None
