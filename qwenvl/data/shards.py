"""Shards on disk: which files are some, by one table for cleaning and training, and lines of JSON written whole or not.

tar       `tars`: key.jpg and key.json side by side         .tar .tar.gz .tgz
parquet   `parquet`: a row for each sample                  .parquet
lines     a JSON object a line                              .jsonl .ndjson .jsonl.gz .ndjson.gz
list      the official fine-tuning JSON; by its name only   .json
folder    a tar unpacked: key.jpg and key.json in it        a folder without shards
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from qwenvl.data.columns import IMAGES, TEXTS
from qwenvl.files import atomic

LARGEST = 1 << 26
"""Bytes at most of a file in a tar, a cell of parquet, a line: 64 MiB. What is larger is counted and not read."""

Kind: TypeAlias = Literal["tar", "parquet", "lines", "list", "folder"]

SUFFIXES: Mapping[str, Kind] = MappingProxyType(
    {
        ".tar": "tar", ".tar.gz": "tar", ".tgz": "tar",
        ".parquet": "parquet",
        ".jsonl": "lines", ".ndjson": "lines", ".jsonl.gz": "lines", ".ndjson.gz": "lines",
        ".json": "list",
    }
)  # fmt: skip
"""End of a file's name -> how the file is read."""

UNREAD = frozenset({".zst", ".bz2", ".xz", ".lz4"})
"""Ends of packed shards that are not read: told, not passed over."""


# === Which files are shards ===


def suffix_of(path: Path) -> str | None:
    """The end of the name that makes the file a shard, None where it is none."""
    return _suffix_of(path.name)


@lru_cache(maxsize=1024)
def _suffix_of(name: str) -> str | None:
    name = name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default=None)


def kind_of(path: Path) -> Kind:
    """How the shard is read. Raises ValueError for a file that is none."""
    suffix = suffix_of(path)
    if suffix is None and path.is_dir():
        return "folder"
    if suffix is None:
        raise ValueError(f"{path} is no shard; expected a file that ends in {', '.join(SUFFIXES)}.")
    return SUFFIXES[suffix]


def is_packed(path: Path) -> bool:
    """Whether a shard is gzipped, by its first bytes: to be unpacked before a sample in its middle can be read."""
    if kind_of(path) not in ("tar", "lines"):
        return False
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def find_shards(source: str | Path, *, deep: bool = False) -> list[Path]:
    """One shard, those in a folder (`deep`: and in the folders below it), or what a pattern with * finds.

    Sorted by path, so that the order of samples is the same on every machine. Fine-tuning JSON counts by its name
    alone; what stands beside a shard and belongs to it (`without_sidecars`) does not count, nor does what `qwenvl data
    clean` put aside and what `qwenvl data fetch` keeps beside its shards. A folder of loose samples is a shard itself,
    unless `deep`. Raises ValueError where there is none.
    """
    path = Path(source)
    if path.is_file():
        kind_of(path)
        return [path]
    if path.is_dir():
        found = [each for each in (path.rglob("*") if deep else path.iterdir()) if suffix_of(each) != ".json"]
    elif not any(letter in str(path) for letter in "*?["):
        wrong = f"{path} is neither a file nor a folder" if path.exists() else f"there is no {path}"
        raise ValueError(f"{wrong}; give a shard, a folder of shards or a pattern of their names.")
    else:
        found = _matching(path)
    for each in found:
        inner = each.with_suffix("")
        if each.suffix.lower() in UNREAD and suffix_of(inner) and inner not in found:
            raise ValueError(
                f"{each} is packed in a way that is not read (.gz is, of tars and lines); unpack it."
            )
    shards = [each for each in found if suffix_of(each) and each.is_file() and not _is_put_aside(each, path)]
    if not shards and not deep and path.is_dir() and keys_in(path):
        return [Path(os.path.abspath(path))]
    if not shards:
        raise ValueError(f"no shard in {path}; expected files that end in {', '.join(SUFFIXES)}.")
    return without_sidecars(sorted(shards))


def keys_in(folder: Path) -> list[str]:
    """Keys of the samples whose files lie loose in a folder, as `qwenvl data synth pages --format folder` leaves them.

    Such a key has an image; one of them at least has a text or columns too, or it is just a folder of images.
    """
    files: dict[str, set[str]] = {}
    for path in folder.iterdir():
        stem, _, suffix = path.name.partition(".")
        if stem:
            files.setdefault(stem, set()).add(suffix.lower())
    keys = sorted(key for key, suffixes in files.items() if suffixes & {*IMAGES})
    return keys if any(files[key] & {"json", *TEXTS} for key in keys) else []


def _matching(pattern: Path) -> list[Path]:
    parts = pattern.parts
    fixed = next(k for k, part in enumerate(parts) if any(letter in part for letter in "*?["))
    return list(Path(*parts[:fixed]).glob("/".join(parts[fixed:])))


def _is_put_aside(path: Path, source: Path) -> bool:
    """Whether a file is hidden, or one of those that cleaning and fetching keep beside their output."""
    below = path.relative_to(source).parts if path.is_relative_to(source) else (path.name,)
    return (
        any(part.startswith(".") for part in below)
        or any(
            folder.name in ("aside", "survey", "done") and (folder.parent / "cleaning.json").exists()
            for folder in path.parents
            if folder != source and folder.is_relative_to(source)
        )
        or _is_index_or_package(path)
    )


def _is_index_or_package(path: Path) -> bool:
    """Whether a file is an index of fetched shards, or a package that they were made of."""
    lists = SUFFIXES.get(suffix_of(path) or "") == "lines" and path.parent
    packed = path.parent.name == "packages" and path.parent.parent
    return any(
        folder and (folder / "index.jsonl").exists() and (folder / "ATTRIBUTION.md").exists()
        for folder in (lists, packed)
    )


def without_sidecars(shards: Iterable[Path]) -> list[Path]:
    """The shards but those that belong to another of the same name, as img2dataset writes them.

    Beside `00000.tar` stand `00000.parquet` (its columns once more, and those of failed downloads) and
    `00000_stats.json`; beside `a.tar.gz` may stand `a.tar`, unpacked.
    """
    shards = list(shards)
    names = {(each.parent, each.name.lower()) for each in shards}

    def belongs(shard: Path) -> bool:
        suffix = suffix_of(shard) or ""
        stem = shard.name.lower().removesuffix(suffix)
        owners = {".json": (*_TARS, ".parquet"), ".parquet": _TARS, ".tgz": (".tar",)}.get(suffix, ())
        if suffix.endswith(".gz"):
            owners = (suffix.removesuffix(".gz"),)
        stems = {stem, stem.removesuffix("_stats")} if suffix == ".json" else {stem}
        return any((shard.parent, each + owner) in names for each in stems for owner in owners)

    return [shard for shard in shards if not belongs(shard)]


_TARS = (".tar", ".tar.gz", ".tgz")


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
