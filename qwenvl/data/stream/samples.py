"""One sample of a shard: its columns, and where its images are; the images themselves are read when needed."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data import parquet
from qwenvl.data.columns import NAMES_OF_TEXT, failed_download, image_beside, parts_of
from qwenvl.data.faults import Unusable
from qwenvl.data.shards import LARGEST, keys_in, kind_of
from qwenvl.data.stream.index import plain
from qwenvl.data.tars import is_hidden, name_and_suffix, skim_tar
from qwenvl.files import read_limited
from qwenvl.parsing import parse_json, utf8


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
        """The encoded image. Raises ValueError for one that cannot be read."""
        if kind_of(self.shard) == "parquet":
            found = _images_of(_row(self.shard, self.first, self.second)).get(self.name)
            if found is None:
                raise ValueError(f"no image in {self}; the file has changed.")
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
    images: Mapping[str, Located | Path]
    """Those that the shard itself holds, by name."""
    folder: Path
    """Where relative paths of images start."""
    root: Path | None = None
    """Folder that the user names: paths may start there too, and absolute ones lead there."""


def place_of(shard: Path, first: int, second: int) -> str:
    """A place (see `places`) in words, for messages about a sample that has no key, or none that could be read."""
    unit = {"parquet": f"row group {first}, row {second}", "folder": f"sample {first}"}
    return f"{shard.name}, {unit.get(kind_of(shard), f'byte {first}')}"


def read_sample(shard: Path, first: int, second: int) -> Sample:
    """The sample at a place (see `places`). Raises Unusable."""
    match kind_of(shard):
        case "tar":
            return _of_tar(shard, first, second)
        case "parquet":
            return _of_parquet(shard, first, second)
        case "folder":
            return _of_folder(shard, first)
    if second > LARGEST:
        raise Unusable("line too long", f"{second:,} bytes, at most {LARGEST:,}")
    with plain(shard).open("rb") as file:
        file.seek(first)
        columns = _json(file.read(second))
    return Sample(where=place_of(shard, first, second), columns=columns, images={}, folder=shard.parent)


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
    parts = parts_of(tuple(files))
    try:
        if parts.columns is not None:
            columns = _json(files[parts.columns].read())
        if parts.text is not None:
            text = _utf8(files[parts.text].read())
    except Unusable as reason:
        raise Unusable(reason.kind, f"sample {key}: {reason.detail}") from None
    if text is not None:
        columns = {**columns, "text": text}
    images: dict[str, Located | Path] = {files[suffix].name: files[suffix] for suffix in parts.images}
    return Sample(where=f"{shard.name}, {key}", columns=columns, images=images, folder=shard.parent)


def _of_folder(folder: Path, number: int) -> Sample:
    key = _keys(folder, folder.stat().st_mtime_ns)[number]
    files = {name_and_suffix(path.name)[1]: path for path in folder.glob(f"{escape(key)}.*")}
    parts = parts_of(tuple(files))
    try:
        columns = _json(read_limited(files[parts.columns], LARGEST)) if parts.columns is not None else {}
        if parts.text is not None:
            columns = {**columns, "text": _utf8(read_limited(files[parts.text], LARGEST))}
    except Unusable as reason:
        raise Unusable(reason.kind, f"sample {key}: {reason.detail}") from None
    except ValueError as error:
        raise Unusable("file too large", str(error)) from None
    images: dict[str, Located | Path] = {files[suffix].name: files[suffix] for suffix in parts.images}
    return Sample(where=f"{folder.name}, {key}", columns=columns, images=images, folder=folder)


@lru_cache(maxsize=8)
def _keys(folder: Path, stamp: int) -> list[str]:
    return keys_in(folder)


def _of_parquet(shard: Path, group: int, row: int) -> Sample:
    columns = _row(shard, group, row)
    if parquet.too_large(columns):
        raise Unusable("cell too large", f"more than {LARGEST:,} bytes")
    if (failure := failed_download(columns)) is not None:
        raise Unusable("failed download", failure)
    images: dict[str, Located | Path] = {
        name: Located(shard, group, row, name) for name in _images_of(columns)
    }
    held = {name.partition("[")[0] for name in images}
    columns = {name: value for name, value in columns.items() if name not in held}
    if not images and (beside := image_beside(columns, shard)) is not None:
        columns["image"] = str(beside.relative_to(shard.parent))
    where = place_of(shard, group, row)
    return Sample(where=where, columns=columns, images=images, folder=shard.parent)


def _images_of(columns: Mapping[str, Any]) -> dict[str, bytes]:
    """The encoded images of a row: those of a list as `images[0]`, Hugging Face's {bytes, path} or plain bytes."""
    found: dict[str, bytes] = {}
    for name, value in columns.items():
        if name.lower() in NAMES_OF_TEXT:
            continue
        cells = value if isinstance(value, list) else [value]
        inner = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
        images = [each for each in inner if isinstance(each, bytes)]
        if images and len(images) == len(cells):
            found |= {f"{name}[{k}]" if isinstance(value, list) else name: b for k, b in enumerate(images)}
    return found


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
    text = _utf8(raw)
    try:
        found = parse_json(text, "it", allow_nan=True)
    except ValueError as error:
        said = str(error) if b"\n" in raw.strip() else str(error).replace("line 1 column", "column")
        raise Unusable("broken JSON", said[:200]) from None
    if isinstance(found, list) and found and all(isinstance(each, dict) for each in found):
        return {"conversations": found}  # Energon's: the messages alone
    if not isinstance(found, dict):
        raise Unusable("broken JSON", f"a sample is a {type(found).__name__}; expected an object.")
    return found


def _utf8(raw: bytes) -> str:
    try:
        return utf8(raw, "it")
    except ValueError as error:
        raise Unusable("broken UTF-8", str(error)) from None
