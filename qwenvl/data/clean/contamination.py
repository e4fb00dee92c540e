"""Benchmarks kept out of the training data (not in the paper; a reviewer asked): by n-grams of words and by look."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.clean.characters import UNIT
from qwenvl.data.clean.images import BadImage, difference_hash
from qwenvl.data.clean.rules import Rule
from qwenvl.data.columns import IMAGES
from qwenvl.data.records import Pair
from qwenvl.data.shards import suffix_of
from qwenvl.files import read_limited
from qwenvl.images import MAX_BYTES
from qwenvl.parsing import MAX_FILE, Damaged, json_lines, read_json, utf8

NGRAM = 8
"""Words (Chinese characters one by one) that two texts must share in a row; a shorter text must be equal as a whole."""

LEAST = 5
"""Benchmark texts with fewer words are answers like "a red bus", which prove nothing."""


@dataclass(frozen=True, eq=False)
class Benchmarks:
    """What the benchmarks say and show, as hashes."""

    ngrams: frozenset[tuple[str, ...]]
    wholes: frozenset[tuple[str, ...]]
    looks: NDArray[np.uint64]

    @classmethod
    def of(cls, texts: Iterable[str], images: Iterable[bytes] = ()) -> "Benchmarks":
        """From the texts and the images of benchmarks; unreadable images raise BadImage."""
        return cls._of(texts, map(difference_hash, images))

    @classmethod
    def _of(cls, texts: Iterable[str], looks: Iterable[int]) -> "Benchmarks":
        ngrams: set[tuple[str, ...]] = set()
        wholes: set[tuple[str, ...]] = set()
        for text in texts:
            words = _words(text)
            if len(words) >= NGRAM:
                ngrams.update(_ngrams(words))
            elif len(words) >= LEAST:
                wholes.add(tuple(words))
        return cls(frozenset(ngrams), frozenset(wholes), np.array(sorted({*looks}), dtype=np.uint64))

    @classmethod
    def read(cls, folder: Path) -> "Benchmarks":
        """Every string of the texts, tables and JSON files under a folder, and every image; no hidden file.

        Raises ValueError that names a file that cannot be read, or that is of another kind: what a benchmark says and
        nobody has read would be trained on.
        """
        files = [
            path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")
        ]
        if not files:
            raise ValueError(f"no file under {folder}; expected the texts and images of benchmarks.")
        ends = {path: suffix_of(path) or path.suffix.lower() for path in files}
        if foreign := [path for path in files if ends[path] not in (*_TEXTS, *_LINES, ".json", *_IMAGES)]:
            raise ValueError(
                f"{foreign[0]} is among the benchmarks, where {', '.join((*_TEXTS, *_LINES, '.json'))} and images are "
                f"read, and {len(foreign)} of {len(files)} files are something else; write them so, or take them out."
            )
        texts = (text for path in files for text in _texts(path, ends[path]))
        return cls._of(texts, (_look(path) for path in files if ends[path] in _IMAGES))


_IMAGES = tuple(f".{end}" for end in IMAGES)
_TEXTS = (".txt", ".md", ".csv", ".tsv")
_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")


def _look(path: Path) -> int:
    try:
        return difference_hash(read_limited(path, MAX_BYTES))
    except BadImage as error:
        raise ValueError(f"{path}: {error}; a benchmark's image must be whole to be recognised.") from None


def _texts(path: Path, end: str) -> Iterator[str]:
    if end in _TEXTS:
        yield from utf8(read_limited(path, MAX_FILE), str(path)).split("\n")
    elif end == ".json":
        yield from _strings(read_json(path))
    elif end in _LINES:
        for _, value in json_lines(path):
            if isinstance(value, Damaged):
                raise ValueError(value.reason)
            yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _words(text: str) -> list[str]:
    return UNIT.findall(text.lower())


def _ngrams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[k : k + NGRAM]) for k in range(len(words) - NGRAM + 1))


def not_in(benchmarks: Benchmarks, bits: int = 2) -> Rule:
    """Drop pairs that share an n-gram with a benchmark, or whose image differs in at most `bits` of 64."""

    def rule(pair: Pair) -> str | None:
        words = _words(pair.text)
        if tuple(words) in benchmarks.wholes:
            return f"in a benchmark: {pair.text[:60]!r}"
        shared = next((ngram for ngram in _ngrams(words) if ngram in benchmarks.ngrams), None)
        if shared is not None:
            return f"in a benchmark: {' '.join(shared)!r}"
        if pair.image is None or not len(benchmarks.looks):
            return None
        try:
            look = np.uint64(difference_hash(pair.image))
        except BadImage:
            return "damaged image"
        distance = int(np.bitwise_count(benchmarks.looks ^ look).min())
        return f"looks like a benchmark's image ({distance} bits)" if distance <= bits else None

    return rule
