"""Tars of samples: `key.jpg` and `key.json` side by side, the convention of WebDataset, img2dataset and Energon.

The reader is our own because a damaged tar must give all that is still in it, and the writer because the same samples
must give the same bytes on every machine: no times, no owners. What a tar says about itself is not believed: a size is
plain octal and no larger than the file, a file of a sample has at most `LARGEST` bytes.
"""

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

from qwenvl.data.shards import LARGEST
from qwenvl.files import atomic

BLOCK = 512

SKIMMED = 65_536
"""Bytes up to which a file of a tar is read when the tar is skimmed: records and texts, and small images."""

_ZEROS = bytes(BLOCK)
_PIECE = 1 << 20
_NAMES = 1 << 20  # bytes at most of the blocks that hold a long name
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")


@runtime_checkable
class Writable(Protocol):
    """An open binary file."""

    def write(self, data: bytes, /) -> int:
        """Write at the end; returns the number of bytes written."""
        ...


class Member(NamedTuple):
    """One file of a tar; `damage` says why `data` is not all of it."""

    name: str
    data: bytes
    damage: str | None = None
    start: int = 0
    """First byte of its header in the tar."""
    first: int = 0
    """First byte of its data."""
    size: int = 0
    """Bytes of its data, read or not."""
    stop: int = 0
    """The byte behind it and its padding."""


class Group(NamedTuple):
    """The files of one sample."""

    key: str
    """What their names share; empty for a damaged stretch without a name."""
    files: Mapping[str, Member]
    """By their suffixes, in their order."""
    damaged: Member | None = None
    """The first of them that is not whole."""

    @property
    def damage(self) -> str | None:
        """Why the sample is not whole."""
        return None if self.damaged is None else self.damaged.damage


# === Samples ===


def name_and_suffix(name: str) -> tuple[str, str]:
    """`a/001.pixels.json` -> `a/001` and `pixels.json`: files of a tar that share the first are one sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def is_hidden(name: str) -> bool:
    """Whether a file is none of a sample: macOS keeps its own beside each, `._001.jpg` and the folder `__MACOSX`."""
    return name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/")


def grouped(members: Iterable[Member]) -> Iterator[Group]:
    """Files that stand side by side and share a key; a suffix that comes again begins the next sample."""
    key, files, damaged = "", dict[str, Member](), None
    for member in members:
        if member.name and is_hidden(member.name):
            continue
        own, suffix = name_and_suffix(member.name)
        if files and (own != key or not own or suffix in files):
            yield Group(key, files, damaged)
            files, damaged = {}, None
        key = own
        files[suffix] = member
        if damaged is None and member.damage is not None:
            damaged = member
    if files:
        yield Group(key, files, damaged)


# === Reading ===


def read_tar(path: Path, largest: int = LARGEST) -> Iterator[Member]:
    """The files of a tar (or tar.gz) in order; a damaged one gives what is whole, and then members with `damage`.

    Holds one member in memory; of a file above `largest` bytes there is a member with damage. Folders and links are
    passed over.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        tape = _Zipped(raw) if zipped else _Tape(raw, 0, os.fstat(raw.fileno()).st_size)
        try:
            yield from _members(tape, largest, f"file too large (more than {largest:,} bytes)")
        except (OSError, EOFError, zlib.error) as error:  # checksum, cut stream, damage inside
            yield Member("", b"", f"damaged archive ({error})")


def skim_tar(path: Path, first: int = 0, last: int | None = None) -> Iterator[Member]:
    """Files of a tar that lie between two bytes of it; those above `SKIMMED` bytes come without data.

    Raises OSError.
    """
    with path.open("rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        yield from _members(_Tape(raw, first, size if last is None else min(last, size)), SKIMMED, None)


class _Tape:
    """A stretch of an open file, read forwards."""

    def __init__(self, file: IO[bytes], first: int, last: int) -> None:
        self._file, self.position, self._last = file, first, last
        file.seek(first)

    @property
    def left(self) -> int | None:
        """Bytes to the end, None where that cannot be known."""
        return self._last - self.position

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        data = self._file.read(min(size, self._last - self.position))
        self.position += len(data)
        return data

    def skip(self, size: int) -> bool:
        """Pass over so many bytes; False where they are not there."""
        if size < BLOCK:
            return len(self.read(size)) == size
        there = min(size, self._last - self.position)
        self.position += there
        self._file.seek(self.position)
        return there == size

    def back_to(self, position: int) -> None:
        """Go on reading from there."""
        self.position = position
        self._file.seek(position)


class _Zipped(_Tape):
    """The same of what a gzip file unpacks to: its end is not known, and there is no way back."""

    def __init__(self, file: IO[bytes]) -> None:
        self._unpacked = gzip.GzipFile(fileobj=file)
        self.position = 0

    @property
    def left(self) -> int | None:
        return None

    def read(self, size: int) -> bytes:
        data = self._unpacked.read(size)
        self.position += len(data)
        return data

    def skip(self, size: int) -> bool:
        while size > 0 and (piece := self.read(min(size, _PIECE))):
            size -= len(piece)
        return size == 0


def _members(tape: _Tape, most: int, too_large: str | None) -> Iterator[Member]:
    """Every file; one above `most` bytes comes without its data, and with the damage `too_large`."""
    start, name, said = tape.position, "", -1  # what blocks before a header say: a long name, a size
    found = b""
    while header := found or tape.read(BLOCK):
        found = b""
        if header == _ZEROS:
            header = tape.read(BLOCK)
            if not header.strip(b"\0"):
                return  # two blocks of zeros: the end
        kind, size = header[156:157], _size(header) if _is_header(header) else None
        if size is not None and kind in b"Lx" and size <= _NAMES:
            name, said = _of_names(kind, tape.read(size), name, said)
            tape.skip(-size % BLOCK)
            continue
        size = said if size is not None and said >= 0 else size
        if size is None or kind in b"Lx" or (tape.left is not None and size > tape.left):
            lost, found = _lost(tape, header, size, name or _name(header), start, most)
            yield lost
            if not found:
                return
            start, name, said = tape.position - BLOCK, "", -1
            continue
        first = tape.position
        data = tape.read(size) if size <= most else b""
        whole = len(data) == size or (size > most and tape.skip(size))
        tape.skip(-size % BLOCK)
        name = name or _name(header)
        if kind in b"0\x007" and not name.endswith("/"):
            damage = "cut tar" if not whole else too_large if size > most else None
            yield Member(name.removeprefix("./"), data, damage, start, first, size, tape.position)
        if not whole:
            return
        start, name, said = tape.position, "", -1
    yield Member("", b"", "cut tar")  # it ended without the two blocks of zeros


def _lost(
    tape: _Tape, header: bytes, size: int | None, name: str, start: int, most: int
) -> tuple[Member, bytes]:
    """What there is at a header that does not hold, and the next header that does; empty where there is none.

    A size beyond the end is a lie if whole files follow, and a cut tar if not.
    """
    behind, following = tape.position, b""
    while block := tape.read(BLOCK):
        if _is_header(block) and _size(block) is not None:
            following = block
            break
    name = name.removeprefix("./") if _is_header(header) else ""
    if size is None or following or tape.left is None:
        kind = "cut tar" if len(header) < BLOCK else "damaged tar header"
        return Member(name, header, kind, start, behind, 0, behind), following
    tape.back_to(behind)
    data = tape.read(min(size, most))
    return Member(name, data, "cut tar", start, behind, len(data), tape.position), b""


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a block holds; zeros are no header."""
    return len(block) == BLOCK and block != _ZEROS and _octal(block[148:156]) == _checksum(block)


def _checksum(header: bytes) -> int:
    """The sum of its bytes, those of the checksum itself taken for spaces.

    The lower half of an Adler-32 is 1 + the sum modulo 65,521, which 256 bytes do not reach: three of them take a
    third of the time of `sum`.
    """
    parts = (header[:148], header[156:384], header[384:])
    return 8 * ord(" ") + sum(zlib.adler32(part) & 0xFFFF for part in parts) - len(parts)


def _octal(field: bytes) -> int | None:
    found = _OCTAL.fullmatch(field)
    return None if found is None else int(found[1] or b"0", 8)


def _size(header: bytes) -> int | None:
    """The size that a header says, None where it says none that can be."""
    field = header[124:136]
    if field[:1] >= b"\x80":  # binary: negative ones begin with FF
        size = int.from_bytes(field[1:], "big")
        return size if field[0] == 0x80 and size < 1 << 60 else None
    return _octal(field)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _of_names(kind: bytes, data: bytes, name: str, said: int) -> tuple[str, int]:
    """The name and the size that GNU's long names (L) and the records of POSIX (x) give to the next file."""
    if kind == b"L":
        return data.rstrip(b"\0").decode("utf-8", "replace"), said
    while found := re.match(rb"(\d{1,7}) ([^=]{1,60})=", data):
        length = int(found[1])
        value = data[found.end() : length].removesuffix(b"\n")
        if found[2] == b"path":
            name = value.decode("utf-8", "replace")
        elif found[2] == b"size" and re.fullmatch(rb"\d{1,18}", value):
            said = int(value)
        data = data[max(length, found.end()) :]
    return name, said


# === Writing ===


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
            header = b"%s%06o\0 %s" % (header[:148], _checksum(header), header[156:])
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
