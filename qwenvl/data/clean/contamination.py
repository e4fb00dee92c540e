"""Benchmarks kept out of the training data (not in the paper; a reviewer asked): by n-grams of words and by look."""

import re
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
from qwenvl.parsing import Damaged, json_lines, read_json

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
        ngrams: set[tuple[str, ...]] = set()
        wholes: set[tuple[str, ...]] = set()
        for text in texts:
            words = _words(text)
            if len(words) >= NGRAM:
                ngrams.update(_ngrams(words))
            elif len(words) >= LEAST:
                wholes.add(tuple(words))
        looks = np.array(sorted({difference_hash(image) for image in images}), dtype=np.uint64)
        return cls(frozenset(ngrams), frozenset(wholes), looks)

    @classmethod
    def read(cls, folder: Path) -> "Benchmarks":
        """Every string of the .txt, .json and .jsonl files under a folder, and every image."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if not files:
            raise ValueError(f"no file under {folder}; expected the texts and images of benchmarks.")
        images = (path.read_bytes() for path in files if path.suffix.lower().lstrip(".") in IMAGES)
        return cls.of((text for path in files for text in _texts(path)), images)


_SPACE = re.compile(r"\s+")


def _texts(path: Path) -> Iterator[str]:
    match path.suffix.lower():
        case ".txt":
            yield from path.read_text(encoding="utf-8-sig").split("\n")
        case ".json":
            yield from _strings(read_json(path))
        case ".jsonl":
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
