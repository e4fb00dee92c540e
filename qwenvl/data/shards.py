"""Shards on disk: WebDataset tars, JSON lines and parquet; read as streams, written whole or not at all.

A tar holds `key.jpg` and `key.json` side by side, the convention of img2dataset, OpenCLIP and Energon. The reader is
our own because a damaged tar must give all that is still in it, and the writer because the same samples must give
the same bytes on every machine: no times, no owners.
"""

import gzip
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

from qwenvl.files import atomic

BLOCK = 512

SKIMMED = 65_536
"""Bytes up to which a file of a tar is read when the tar is skimmed: records and texts, and small pictures."""


@runtime_checkable
class Readable(Protocol):
    """An open binary file, or what unpacks one."""

    def read(self, size: int = -1, /) -> bytes: ...


@runtime_checkable
class Writable(Protocol):
    """An open binary file."""

    def write(self, data: bytes, /) -> int: ...


# === Tars ===


class Member(NamedTuple):
    """One file of a tar; `damage` says why `data` is not all of it."""

    name: str
    data: bytes
    damage: str | None = None


def read_tar(path: Path) -> Iterator[Member]:
    """The files of a tar (or tar.gz) in order; a damaged one gives what is whole, and then members with `damage`.

    Holds one member in memory. Folders and links are passed over.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Readable = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            yield from _members(file)
        except (OSError, EOFError) as error:  # gzip: checksum, cut stream
            yield Member("", b"", f"damaged archive ({error})")


def name_and_suffix(name: str) -> tuple[str, str]:
    """`a/001.pixels.json` -> `a/001` and `pixels.json`: files of a tar that share the first are one sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def skim_tar(path: Path, first: int = 0, last: int | None = None) -> Iterator[tuple[Member, int, int]]:
    """Files of a tar that lie between two bytes of it, each with its own first byte and the byte behind it.

    Pictures are not read: the data of a file above `SKIMMED` bytes is as many zeros. Raises OSError.
    """
    with path.open("rb") as raw:
        file = _Skimmed(raw, first, last)
        start, damaged = first, False
        for member in _members(file):
            if damaged:  # what could not be read before this file is no part of it
                start = file.position - BLOCK - len(member.data) - -len(member.data) % BLOCK
            yield member, start, file.position
            start, damaged = file.position, member.damage is not None


class _Skimmed:
    """An open file between two bytes of it, of which long stretches are passed over and given as zeros."""

    def __init__(self, file: IO[bytes], first: int, last: int | None) -> None:
        self._file, self.position = file, first
        self._last = os.fstat(file.fileno()).st_size if last is None else last
        file.seek(first)

    def read(self, size: int = -1, /) -> bytes:
        size = min(size, self._last - self.position)
        if size <= SKIMMED:
            data = self._file.read(size)
        else:
            data = bytes(size)
            self._file.seek(size, os.SEEK_CUR)
        self.position += len(data)
        return data


def _members(file: Readable) -> Iterator[Member]:
    long_name: str | None = None
    while header := file.read(BLOCK):
        if not header.strip(b"\0") and len(header) == BLOCK:
            if not file.read(BLOCK).strip(b"\0"):
                return  # two blocks of zeros: the end
            header = b"damaged"
        if not _valid(header):
            yield Member("", header, "cut tar" if len(header) < BLOCK else "damaged tar header")
            header = _next_valid(file)
            if not header:
                return
        size = _size(header)
        data = file.read(size)
        whole = len(data) == size and len(file.read(-size % BLOCK)) == -size % BLOCK
        kind = header[156:157]
        if kind == b"L":
            long_name = data.rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":
            long_name = _pax_path(data) or long_name
        elif kind in b"0\0" or not whole:
            name, long_name = long_name or _name(header), None
            if len(data) < size:
                yield Member(name, data, "cut tar")
                return
            yield Member(name, data)
        else:
            long_name = None
    yield Member("", b"", "cut tar")  # it ended without the two blocks of zeros


def _valid(header: bytes) -> bool:
    if len(header) < BLOCK:
        return False
    try:
        said = int(header[148:156].rstrip(b" \0") or b"0", 8)
        _size(header)
    except ValueError:
        return False
    return said == sum(header) - sum(header[148:156]) + 8 * 32


def _next_valid(file: Readable) -> bytes:
    while header := file.read(BLOCK):
        if header.strip(b"\0") and _valid(header):
            return header
    return b""


def _size(header: bytes) -> int:
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.rstrip(b" \0") or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax_path(data: bytes) -> str | None:
    for line in data.split(b"\n"):
        key, found, value = line.partition(b" ")[2].partition(b"=")
        if found and key == b"path":
            return value.decode("utf-8", "replace")
    return None


class TarWriter:
    """Appends files to a tar on an open binary file; equal calls give equal bytes."""

    def __init__(self, file: Writable) -> None:
        self._file = file

    def add(self, name: str, data: bytes) -> None:
        """One file; names may be any Unicode."""
        raw = name.encode()
        if len(raw) <= 100 and len(data) < 8**11:
            fields = (
                raw.ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % len(data),
                b"00000000000\0", b"        ", b"0", bytes(100), b"ustar\x0000", bytes(64), bytes(183),
            )  # fmt: skip
            header = b"".join(fields)
            header = b"%s%06o\0 %s" % (header[:148], sum(header), header[156:])
        else:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            header = info.tobuf(tarfile.PAX_FORMAT)
        self._file.write(header)
        self._file.write(data)
        self._file.write(bytes(-len(data) % BLOCK))

    def close(self) -> None:
        """The two blocks of zeros that end a tar; the file itself stays open."""
        self._file.write(bytes(2 * BLOCK))


@contextmanager
def write_tar(path: Path) -> Iterator[TarWriter]:
    """A tar that appears only when it is complete."""
    with atomic(path) as file:
        writer = TarWriter(file)
        yield writer
        writer.close()


# === JSON lines ===


def dump(value: Any) -> bytes:
    """Compact JSON in UTF-8; the same value gives the same bytes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


@contextmanager
def write_json_lines(path: Path) -> Iterator[Callable[[Any], None]]:
    """A file of lines that appears only when it is complete; yields the function that writes a value as a line."""
    with atomic(path) as file:

        def write(value: Any) -> None:
            file.write(dump(value) + b"\n")

        yield write


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file (.gz too), line ends removed, empty ones passed over."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
        for number, line in enumerate(file):
            if line := line.rstrip(b"\r\n"):
                yield number, line


# === Parquet ===


def parquet() -> Any:
    """The module `pyarrow.parquet`; raises ValueError where pyarrow is not installed."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(
            "parquet files need the package pyarrow, which is not installed; pip install 'qwenvl[data]'."
        ) from None


def read_parquet(path: Path, batch: int = 512) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, in order, a few hundred in memory; raises ValueError for a damaged file."""
    library = parquet()
    try:
        with library.ParquetFile(path) as table:
            for rows in table.iter_batches(batch):
                yield from rows.to_pylist()
    except (OSError, import_module("pyarrow").ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); get a fresh copy of it.") from None


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a parquet file that appears only when it is complete."""
    table = import_module("pyarrow").Table.from_pylist(rows) if parquet() else None
    with atomic(path) as file:
        parquet().write_table(table, file)
