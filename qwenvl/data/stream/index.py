"""Where the samples of a shard lie, so that any one is read without the others.

    .tar                first byte and length of the files `key.*` that stand side by side
    .jsonl, .ndjson     first byte and length of the line
    .json               the same of an element of the list: the official fine-tuning JSON
    .parquet            row group, and row in it

The table is made once and kept beside the shard as `.NAME.index.npy` (in the user's cache where the folder cannot be
written). Its first row is the size and the time of the shard that it was made from: a shard that changed is read anew.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.shards import name_and_suffix, parquet, skim_tar

KINDS = {".tar": "tar", ".jsonl": "lines", ".ndjson": "lines", ".json": "list", ".parquet": "parquet"}
"""Suffix -> how the shard is read."""


def kind_of(shard: Path) -> str:
    """`tar`, `lines`, `list` or `parquet`. Raises ValueError for a file that cannot be read at any place."""
    kind = KINDS.get(shard.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{shard} cannot be read sample by sample; expected {', '.join(KINDS)} (unpack what is compressed)."
        )
    return kind


def find_shards(pattern: str) -> list[Path]:
    """One shard, the shards directly in a folder (fine-tuning JSON by its name only), or what a pattern with * finds.

    Sorted by path, so that the order of samples is the same on every machine. Raises ValueError where there is none.
    """
    path = Path(pattern)
    if path.is_file():
        kind_of(path)
        return [path]
    if path.is_dir():
        found = [each for each in path.iterdir() if each.suffix.lower() in KINDS.keys() - {".json"}]
    else:
        parts = path.parts
        fixed = next((k for k, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
        rest = "/".join(parts[fixed:])
        found = list(Path(*parts[:fixed]).glob(rest)) if rest else []
    shards = sorted(each for each in found if each.is_file() and not each.name.startswith("."))
    if not shards:
        raise ValueError(
            f"no shard at {pattern}; give a file, a folder or a pattern of {', '.join(KINDS)} files."
        )
    for shard in shards:
        kind_of(shard)
    return shards


def sample_index(shard: Path) -> NDArray[np.int64]:
    """Two numbers per sample in the order of the shard, mapped from the table's file. Raises ValueError, OSError."""
    facts = shard.stat()
    stamp = [facts.st_size, facts.st_mtime_ns]
    tables = _tables(shard)
    for file in tables:
        if file.exists():
            kept = np.load(file, mmap_mode="r")
            if kept[0].tolist() == stamp:
                return kept[1:]
    found = chain(stamp, chain.from_iterable(_FINDERS[kind_of(shard)](shard)))
    table = np.fromiter(found, dtype=np.int64).reshape(-1, 2)
    for file in tables:
        try:
            _write(file, table)
        except OSError:
            continue
        return np.load(file, mmap_mode="r")[1:]
    return table[1:]


def _tables(shard: Path) -> tuple[Path, Path]:
    name = hashlib.blake2b(str(shard.resolve()).encode(), digest_size=12).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return shard.with_name(f".{shard.name}.index.npy"), cache / "qwenvl" / "index" / f"{name}.npy"


def _write(file: Path, table: NDArray[np.int64]) -> None:
    """Whole or not at all; ranks that write the same table at once do not meet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.", delete=False) as unfinished:
        np.save(unfinished, table)
    Path(unfinished.name).replace(file)


def _in_tar(shard: Path) -> Iterator[tuple[int, int]]:
    key, first, last = None, 0, 0
    for member, start, stop in skim_tar(shard):
        own = name_and_suffix(member.name)[0] if member.name else None  # without a name: a damaged stretch
        if own != key:
            if key is not None:
                yield first, last - first
            key, first = own, start
        last = stop
    if key is not None:
        yield first, last - first


def _in_lines(shard: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with shard.open("rb") as file:
        for line in file:
            if line.strip():
                yield start, len(line)
            start += len(line)


def _in_list(shard: Path) -> Iterator[tuple[int, int]]:
    raw = shard.read_bytes()
    start = 3 if raw.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = raw[start:].decode("utf-8")
        if text.lstrip()[:1] != "[":  # a line for each sample under the other name
            yield from _in_lines(shard)
            return
        decoder, at = json.JSONDecoder(), text.index("[") + 1
        behind = 0  # characters whose bytes are in `start`
        while (at := _past(text, at)) < len(text) and text[at] != "]":
            _, stop = decoder.raw_decode(text, at)
            start += len(text[behind:at].encode())
            length = len(text[at:stop].encode())
            yield start, length
            start, behind, at = start + length, stop, stop
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{shard} is not valid JSON ({error}); expected a list of samples.") from None


def _past(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _in_parquet(shard: Path) -> Iterator[tuple[int, int]]:
    try:
        metadata = parquet().ParquetFile(shard).metadata
    except (OSError, import_module("pyarrow").ArrowException) as error:
        raise ValueError(f"{shard} cannot be read as parquet ({error}); get a fresh copy of it.") from None
    for group in range(metadata.num_row_groups):
        for row in range(metadata.row_group(group).num_rows):
            yield group, row


_FINDERS = {"tar": _in_tar, "lines": _in_lines, "list": _in_list, "parquet": _in_parquet}
