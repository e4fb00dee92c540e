"""Where the samples of a shard lie, so that any one is read without the others.

    tar                 first byte and length of the files `key.*` that stand side by side
    lines               first byte and length of the line
    list                the same of an element of the list: the official fine-tuning JSON
    parquet             row group, and row in it
    folder              number of the key in their order, and 0

The table is made once and kept beside the shard as `.NAME.index.npy` (in the user's cache, or a temporary folder of the
user's, where that cannot be written). Its first row is the size and the time of the shard that it was made from: a
shard that changed is read anew. What is packed (.tar.gz, .jsonl.gz) is unpacked once, to `.NAME.unpacked` in the same
place, and read from there.
"""

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qwenvl.data import parquet
from qwenvl.data.shards import is_packed, keys_in, kind_of
from qwenvl.data.tars import grouped, skim_tar
from qwenvl.files import atomic, clear_dead, read_limited
from qwenvl.parsing import MAX_FILE, too_deep, utf8

PIECE = 1 << 20
"""Bytes that are read at once."""

RULES = 1
"""Raised whenever samples are found otherwise, so that tables of before are made anew."""

MOST = 1 << 30
"""Bytes to which any packed shard may unpack."""

DENSITY = 100
"""Bytes that one byte of a packed shard may come to beyond that: lines of JSON come to 20, a bomb to 1,000."""


def sample_index(shard: Path) -> NDArray[np.int64]:
    """Two numbers per sample in the order of the shard, mapped from the table's file. Raises ValueError, OSError."""
    stamp = _stamp(shard)
    for file in _kept(shard, "index.npy"):
        table = _read(file)
        if table is not None and table[0].tolist() == stamp:
            return table[1:]
    found = chain(stamp, chain.from_iterable(_FINDERS[kind_of(shard)](plain(shard))))
    table = np.fromiter(found, dtype=np.int64).reshape(-1, 2)
    for file in _kept(shard, "index.npy"):
        try:
            _write(file, table)
        except OSError:
            continue
        return np.load(file, mmap_mode="r")[1:]
    return table[1:]


def plain(shard: Path) -> Path:
    """The file that the index points into: the shard, or what it unpacks to. Raises ValueError, OSError."""
    return _plain(shard, tuple(_stamp(shard)))


@lru_cache(maxsize=1024)
def _plain(shard: Path, stamp: tuple[int, ...]) -> Path:
    if not is_packed(shard):
        return shard
    refused: OSError | None = None
    for file in _kept(shard, "unpacked"):
        table = _read(file.with_name(f"{file.name}.npy"))
        if (
            table is not None
            and tuple(table[0]) == stamp
            and file.is_file()
            and file.stat().st_size == table[1, 0]
        ):
            return file
    for file in _kept(shard, "unpacked"):
        try:
            size = _unpack(shard, file)
            _write(file.with_name(f"{file.name}.npy"), np.array([stamp, [size, 0]], dtype=np.int64))
        except OSError as error:
            refused = error
            continue
        return file
    assert refused is not None
    raise refused


def _stamp(shard: Path) -> list[int]:
    facts = shard.stat()
    return [facts.st_size, facts.st_mtime_ns ^ RULES]


def _kept(shard: Path, what: str) -> tuple[Path, ...]:
    """Where something about a shard is kept: beside it, or in a cache; the first that can be written."""
    name = hashlib.blake2b(str(shard.resolve()).encode(), digest_size=12).hexdigest()
    caches = (cache / "qwenvl" / "index" / f"{name}.{what}" for cache in _caches())
    return shard.with_name(f".{shard.name}.{what}"), *caches


def _caches() -> list[Path]:
    """The user's cache, and a folder for temporary files: services and containers have no home, or one in name only."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return [Path(named)]
    home, spare = os.path.expanduser("~"), Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    known = [Path(home, ".cache")] if home != "~" else []
    foreign = os.path.lexists(spare) and spare.lstat().st_uid != os.getuid()
    return known if foreign else [*known, spare]


def _read(file: Path) -> NDArray[np.int64] | None:
    """A table, None where there is none or where it is damaged."""
    try:
        table = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return table if table.ndim == 2 and table.shape[1:] == (2,) and len(table) else None


def _unpack(shard: Path, file: Path) -> int:
    """Unpack whole or not at all; how many bytes came out. Raises ValueError for a damaged shard, or a bomb."""
    most = max(MOST, DENSITY * shard.stat().st_size)
    size = 0
    clear_dead(file)  # as large as the shard, and nobody owns the folder
    with atomic(file) as out, gzip.open(shard) as packed:
        try:
            while piece := packed.read(PIECE):
                size += out.write(piece)
                if size > most:
                    raise ValueError(
                        f"{shard} unpacks to more than {size:,} bytes; unpack it yourself if it must be."
                    )
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{shard} cannot be unpacked ({error}); get a fresh copy of it.") from None
    return size


def _write(file: Path, table: NDArray[np.int64]) -> None:
    """Whole or not at all; ranks that write the same table at once do not meet."""
    clear_dead(file)
    with atomic(file, durable=False) as out:
        np.save(out, table)


def _in_tar(shard: Path) -> Iterator[tuple[int, int]]:
    seen: set[str] = set()
    apart = ""
    damage, torn = None, 0
    for key, files, damaged in grouped(skim_tar(shard)):
        if not key:
            damage = damage or (damaged and damaged.damage)
            continue  # a damaged stretch
        if key in seen and len(files) == 1:
            torn, apart = torn + 1, key
        seen.add(key)
        members = [*files.values()]
        yield members[0].start, members[-1].stop - members[0].start
    if damage and not seen:
        raise ValueError(
            f"{shard} has nothing whole in it ({damage}); expected a tar archive: get a fresh copy of it."
        )
    if torn > len(seen) / 2:
        raise ValueError(
            f"{shard}: the files of a sample do not stand side by side (those of {apart!r}, and {torn - 1:,} more); "
            "pack it again, sorted: tar --sort=name -cf SHARD.tar -C FOLDER ."
        )


def _in_lines(shard: Path) -> Iterator[tuple[int, int]]:
    with shard.open("rb") as file:
        yield from _lines(file)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """First byte and length of every line that is not empty, however long it is."""
    start, at, blank = 0, 0, True
    while piece := file.read(PIECE):
        begin = 0
        while (end := piece.find(b"\n", begin)) >= 0:
            if not blank or piece[begin:end].strip():
                yield start, at + end + 1 - start
            start, begin, blank = at + end + 1, end + 1, True
        blank = blank and not piece[begin:].strip()
        at += len(piece)
    if not blank:
        yield start, at - start


def in_list(shard: Path) -> Iterator[tuple[int, int]]:
    """First byte and length of every element of a JSON list. Raises ValueError where it breaks off."""
    raw = read_limited(shard, MAX_FILE)
    start = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    text = utf8(raw, str(shard))
    try:
        if text.lstrip()[:1] != "[":  # one sample, or a line for each under the other name
            yield from [(start, len(raw) - start)] if _is_one_object(text) else _in_lines(shard)
            return
        decoder, at = json.JSONDecoder(), text.index("[") + 1
        behind = 0  # characters whose bytes are in `start`
        while (at := _past(text, at)) < len(text) and text[at] != "]":
            _, stop = decoder.raw_decode(text, at)
            start += len(text[behind:at].encode())
            length = len(text[at:stop].encode())
            yield start, length
            start, behind, at = start + length, stop, stop
        if text[at:].strip() != "]":
            raise ValueError(f"after {len(text[:at]):,} characters its list ends otherwise than with a ]")
    except RecursionError:
        raise ValueError(too_deep(str(shard))) from None
    except ValueError as error:
        raise ValueError(f"{shard} is not valid JSON ({error}); expected a list of samples.") from None


def _is_one_object(text: str) -> bool:
    """Whether a text of several lines is one object, written to be read by people."""
    try:
        json.loads(text.lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        try:
            return isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            return False
    return False


def _past(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _in_parquet(shard: Path) -> Iterator[tuple[int, int]]:
    with parquet.opened(shard) as file:
        for group in range(file.metadata.num_row_groups):
            for row in range(file.metadata.row_group(group).num_rows):
                yield group, row


def _in_folder(shard: Path) -> Iterator[tuple[int, int]]:
    yield from ((number, 0) for number in range(len(keys_in(shard))))


_FINDERS = {
    "tar": _in_tar,
    "lines": _in_lines,
    "list": in_list,
    "parquet": _in_parquet,
    "folder": _in_folder,
}
