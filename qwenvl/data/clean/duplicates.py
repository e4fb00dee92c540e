"""Rules that look at all pairs at once: the longest text of an image (A.1), and duplicates, which the paper leaves in.

Two passes. The survey of a shard writes one fixed-size signature per pair that the other rules keep; `losers` reads
all signatures and says who loses to whom; cleaning then drops those. Ties go to the pair that comes first, in the
order of the shards, so that the outcome does not depend on who worked on what.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwenvl.data.clean.images import difference_hash
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.records import Pair

PERMUTATIONS = 64
"""Hash functions of a MinHash: its estimate of the Jaccard similarity is good to about 0.06."""

SHINGLE = 5
"""Characters in a shingle of the text."""


def signature_type(thresholds: Thresholds) -> np.dtype:
    """Fields of a signature: only what the rules that are on need."""
    fields: list[tuple[str, object]] = [
        ("ordinal", "<u4"), ("image", "<u8"), ("text", "<u8"), ("words", "<u8"), ("length", "<u4")
    ]  # fmt: skip
    if thresholds.near_images is not None:
        fields.append(("look", "<u8"))
    if thresholds.near_texts is not None:
        fields.append(("minhash", "<u4", (PERMUTATIONS,)))  # type: ignore[arg-type]
    return np.dtype(fields)


def wanted(thresholds: Thresholds) -> bool:
    """Whether any rule needs the survey."""
    t = thresholds
    return any((t.longest_text, t.exact_duplicates, t.duplicate_text)) or not (
        t.near_images is None and t.near_texts is None
    )


def signature(pair: Pair, ordinal: int, thresholds: Thresholds) -> tuple[object, ...]:
    """The signature of a pair, the `ordinal`-th sample of its shard."""
    identity = pair.image if pair.image is not None else (pair.url or pair.key).encode()
    values: list[object] = [
        ordinal, _hash(identity), _hash(pair.text.encode()), _hash(normalised(pair.text).encode()), len(pair.text)
    ]  # fmt: skip
    if thresholds.near_images is not None:
        values.append(difference_hash(pair.image) if pair.image is not None else _hash(identity))
    if thresholds.near_texts is not None:
        values.append(minhash(normalised(pair.text)))
    return tuple(values)


_SIGNS = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """A text without case, signs and spaces around them: what "the same text" means."""
    return _SIGNS.sub(" ", text.casefold()).strip()


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# Multiply-shift hashing: the high half of the product with a random odd number, all modulo 2 ** 64.
_MULTIPLIERS = np.random.default_rng(20230824).integers(0, 1 << 63, PERMUTATIONS, np.uint64) * np.uint64(
    2
) + np.uint64(1)
_POWERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, SHINGLE + 1, dtype=np.uint64)


def minhash(text: str) -> NDArray[np.uint32]:
    """The smallest of each of `PERMUTATIONS` hashes over the shingles of a text; equal places estimate similarity."""
    points = np.frombuffer(f" {text} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(points) < SHINGLE:
        points = np.pad(points, (0, SHINGLE - len(points)))
    windows = np.lib.stride_tricks.sliding_window_view(points, SHINGLE)
    shingles = (windows * _POWERS).sum(axis=1, dtype=np.uint64)
    shingles ^= shingles >> np.uint64(29)
    return ((shingles[:, None] * _MULTIPLIERS) >> np.uint64(32)).min(axis=0).astype(np.uint32)


class Loser(NamedTuple):
    """A pair that a global rule drops."""

    shard: int
    ordinal: int
    rule: str
    reason: str


def losers(signatures: Sequence[np.ndarray], thresholds: Thresholds) -> Iterator[Loser]:
    """Who is dropped by the global rules, each by the first of them, in the order of `pipeline.GLOBAL_RULES`."""
    if not any(len(each) for each in signatures):
        return
    every = np.concatenate(signatures)
    shard = np.repeat(np.arange(len(signatures)), [len(each) for each in signatures])
    alive = np.ones(len(every), dtype=bool)
    rounds = (
        (
            thresholds.exact_duplicates,
            "exact duplicates",
            "the same image and text came before",
            _not_first_pair,
        ),
        (thresholds.longest_text, "longest text", "a longer text of this image is kept", _not_longest),
        (thresholds.duplicate_text, "duplicate text", "the same text came before", _not_first_text),
        (thresholds.near_texts is not None, "near texts", "almost the same text came before", _near_texts),
        (
            thresholds.near_images is not None,
            "near images",
            "almost the same image came before",
            _near_images,
        ),
    )
    for on, rule, reason, find in rounds:
        if not on:
            continue
        places = np.flatnonzero(alive)
        lost = places[find(every[places], thresholds)]
        alive[lost] = False
        for place in lost:
            yield Loser(int(shard[place]), int(every["ordinal"][place]), rule, reason)


def _not_longest(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.bool_]:
    order = np.lexsort((np.arange(len(found)), -found["length"].astype(np.int64), found["image"]))
    return _not_first_of(found["image"][order], order)


def _not_first_pair(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.bool_]:
    both = found["image"] ^ (found["text"] * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(both, kind="stable")
    return _not_first_of(both[order], order)


def _not_first_text(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.bool_]:
    order = np.argsort(found["words"], kind="stable")
    return _not_first_of(found["words"][order], order)


def _not_first_of(keys: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    lost = np.zeros(len(order), dtype=bool)
    lost[order[1:]] = keys[1:] == keys[:-1]
    return lost


def _near_images(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Two hashes that differ in at most `most` bits agree in one of `most + 1` bands: only those are compared."""
    most = thresholds.near_images
    assert most is not None
    bands = [(64 * k // (most + 1), 64 * (k + 1) // (most + 1)) for k in range(most + 1)]
    looks = [int(look) for look in found["look"]]

    def keys(place: int) -> list[tuple[int, int]]:
        return [(k, looks[place] >> low & ((1 << (high - low)) - 1)) for k, (low, high) in enumerate(bands)]

    return _first_of_each_kind(
        len(found), keys, lambda one, other: (looks[one] ^ looks[other]).bit_count() <= most
    )


def _near_texts(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.bool_]:
    """MinHash in 16 bands of 4: texts with a similarity of 0.8 share a band with a probability of 0.9998."""
    least = thresholds.near_texts
    assert least is not None
    hashes = found["minhash"]
    bands = hashes.reshape(len(found), 16, 4)

    def keys(place: int) -> list[tuple[int, int]]:
        return [(k, hash(band.tobytes())) for k, band in enumerate(bands[place])]

    return _first_of_each_kind(
        len(found), keys, lambda one, other: float((hashes[one] == hashes[other]).mean()) >= least
    )


def _first_of_each_kind(count: int, keys, alike) -> NDArray[np.bool_]:  # type: ignore[no-untyped-def]
    """True for those that are alike to an earlier one that stays; candidates are those that share a key."""
    kept: dict[tuple[int, int], list[int]] = {}
    lost = np.zeros(count, dtype=bool)
    for place in range(count):
        mine = keys(place)
        candidates = {other for key in mine for other in kept.get(key, ())}
        lost[place] = any(alike(place, other) for other in candidates)
        if not lost[place]:
            for key in mine:
                kept.setdefault(key, []).append(place)
    return lost
