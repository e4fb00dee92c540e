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

from qwenvl.data.clean.images import THUMBNAIL, alike, look
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.records import Pair

PERMUTATIONS = 64
"""Hash functions of a MinHash: its estimate of the Jaccard similarity is good to about 0.06."""

SHINGLE = 5
"""Characters in a shingle of the text."""


def signature_type(thresholds: Thresholds) -> np.dtype:
    """Fields of a signature: only what the rules that are on need."""
    fields: list[tuple[str, object]] = [
        ("ordinal", "<u4"), ("image", "<u8"), ("text", "<u8"), ("words", "<u8"), ("length", "<u4"), ("title", "<u8"),
        ("key", f"S{KEY}"),
    ]  # fmt: skip
    if thresholds.near_images is not None:
        fields += [("look", "<u8"), ("thumbnail", "u1", (THUMBNAIL,))]  # type: ignore[list-item]
    if thresholds.near_texts is not None:
        fields.append(("minhash", "<u4", (PERMUTATIONS,)))  # type: ignore[arg-type]
    return np.dtype(fields)


def wanted(thresholds: Thresholds) -> bool:
    """Whether any rule needs the survey."""
    t = thresholds
    return any((t.longest_text, t.exact_duplicates, t.duplicate_text)) or not (
        t.near_images is None and t.near_texts is None and t.template_titles is None
    )


def signature(pair: Pair, ordinal: int, thresholds: Thresholds) -> tuple[object, ...]:
    """The signature of a pair, the `ordinal`-th sample of its shard."""
    identity = pair.image if pair.image is not None else (pair.url or pair.key).encode()
    values: list[object] = [
        ordinal, _hash(identity), _hash(pair.text.encode()), _hash(normalised(pair.text).encode()), len(pair.text),
        _hash(f"{pair.source}\0{title(pair.text)}".encode()), pair.key.encode()[:KEY],
    ]  # fmt: skip
    if thresholds.near_images is not None:
        nothing = np.zeros(THUMBNAIL, np.uint8)
        values += look(pair.image) if pair.image is not None else (_hash(identity), nothing)
    if thresholds.near_texts is not None:
        values.append(minhash(normalised(pair.text)))
    return tuple(values)


KEY = 64
"""Bytes of a key that a signature keeps, to say which sample came before."""

_FIGURES = re.compile(r"\d+")


def title(text: str) -> str:
    """What texts have in common that one template made: figures aside, and case and signs."""
    return _FIGURES.sub("0", normalised(text))


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
    before: tuple[int, str] | None = None
    """Shard and key of the one that came before, or is kept instead."""


def losers(signatures: Sequence[np.ndarray], thresholds: Thresholds) -> Iterator[Loser]:
    """Who is dropped by the global rules, each by the first of them, in the order of `pipeline.GLOBAL_RULES`."""
    if not any(len(each) for each in signatures):
        return
    every = np.concatenate(signatures)
    shard = np.repeat(np.arange(len(signatures)), [len(each) for each in signatures])
    alive = np.ones(len(every), dtype=bool)
    for name, rule, reason, find in ROUNDS:
        if getattr(thresholds, name) in (None, False):
            continue
        places = np.flatnonzero(alive)
        if not len(places):
            return
        instead = find(every[places], thresholds)
        lost = np.flatnonzero(instead != KEPT)
        alive[places[lost]] = False
        for place, winner in zip(places[lost], instead[lost], strict=True):
            before = None if winner == NOBODY else places[winner]
            kept = None if before is None else (int(shard[before]), _key(every["key"][before]))
            yield Loser(int(shard[place]), int(every["ordinal"][place]), rule, reason, kept)


KEPT, NOBODY = -1, -2
"""In the place of the pair that one loses to: it does not lose; it loses and nothing is kept instead."""


def _key(raw: bytes) -> str:
    return raw.decode("utf-8", "ignore")


def _templates(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.int64]:
    _, which, counts = np.unique(found["title"], return_inverse=True, return_counts=True)
    most = thresholds.template_titles
    assert most is not None
    return np.where(counts[which] >= most, NOBODY, KEPT)


def _not_longest(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.int64]:
    order = np.lexsort((np.arange(len(found)), -found["length"].astype(np.int64), found["image"]))
    return _not_first_of(found["image"][order], order)


def _not_first_pair(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.int64]:
    both = found["image"] ^ (found["text"] * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(both, kind="stable")
    return _not_first_of(both[order], order)


def _not_first_text(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.int64]:
    order = np.argsort(found["words"], kind="stable")
    return _not_first_of(found["words"][order], order)


def _not_first_of(keys: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of places in order, with equal keys side by side: the first of the same key, for all but that one."""
    first = np.concatenate([[True], keys[1:] != keys[:-1]])
    instead = np.full(len(order), KEPT)
    leader = order[np.flatnonzero(first)[np.cumsum(first) - 1]]
    instead[order[~first]] = leader[~first]
    return instead


def _near_images(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.int64]:
    """Two hashes that differ in at most `most` bits agree in one of `most + 1` bands: only those are compared.

    What hashes alike must look alike too: of line drawings on white most hashes are. Several texts of one image stand
    side by side, and stay or go together.
    """
    begins = np.concatenate([[True], found["image"][1:] != found["image"][:-1]])
    firsts = np.flatnonzero(begins)
    most = thresholds.near_images
    assert most is not None
    instead = _near_among(found[firsts], most)
    instead = np.where(instead == KEPT, KEPT, firsts[instead])
    return instead[np.cumsum(begins) - 1]


def _near_among(found: np.ndarray, most: int) -> NDArray[np.int64]:
    bands = [(64 * k // (most + 1), 64 * (k + 1) // (most + 1)) for k in range(most + 1)]
    looks, thumbnails = [int(each) for each in found["look"]], found["thumbnail"]

    def keys(place: int) -> list[tuple[int, int]]:
        return [(k, looks[place] >> low & ((1 << (high - low)) - 1)) for k, (low, high) in enumerate(bands)]

    def same(one: int, other: int) -> bool:
        return (looks[one] ^ looks[other]).bit_count() <= most and alike(thumbnails[one], thumbnails[other])

    return _first_of_each_kind(len(found), keys, same)


def _near_texts(found: np.ndarray, thresholds: Thresholds) -> NDArray[np.int64]:
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


def _first_of_each_kind(count: int, keys, same) -> NDArray[np.int64]:  # type: ignore[no-untyped-def]
    """For those that are the same as an earlier one that stays, that one; candidates are those that share a key."""
    kept: dict[tuple[int, int], list[int]] = {}
    instead = np.full(count, KEPT)
    for place in range(count):
        mine = keys(place)
        candidates = sorted({other for key in mine for other in kept.get(key, ())})
        instead[place] = next((other for other in candidates if same(place, other)), KEPT)
        if instead[place] == KEPT:
            for key in mine:
                kept.setdefault(key, []).append(place)
    return instead


ROUNDS = (
    ("template_titles", "template titles", "one source uses this title again and again", _templates),
    ("exact_duplicates", "exact duplicates", "the same image and text came before", _not_first_pair),
    ("longest_text", "longest text", "a longer text of this image is kept", _not_longest),
    ("duplicate_text", "duplicate text", "the same text came before", _not_first_text),
    ("near_texts", "near texts", "almost the same text came before", _near_texts),
    ("near_images", "near images", "almost the same image came before", _near_images),
)
"""Threshold, name of the rule, reason, and what finds the losers, in the order of `pipeline.GLOBAL_RULES`."""
