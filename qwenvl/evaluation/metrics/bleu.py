"""BLEU-1 to BLEU-4 of captions (paper 4.1 reports CIDEr; BLEU is shown beside it), as pycocoevalcap 1.2 computes it.

Reference length: the one closest to the caption's. The tiny constants that keep 0/0 away are the reference's own, so
a caption without any hit scores about 1e-15 rather than 0.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

ORDERS = 4
_TINY, _SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class Overlap:
    """Counts of one caption; add them for the corpus score, which is not the mean of the captions' scores."""

    length: int = 0
    reference_length: int = 0
    guessed: tuple[int, ...] = (0,) * ORDERS
    """Number of n-grams in the caption, n = 1 .. 4."""
    matched: tuple[int, ...] = (0,) * ORDERS
    """How many of them a reference has, each at most as often as the reference that has it most often."""

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(
            self.length + other.length,
            self.reference_length + other.reference_length,
            tuple(a + b for a, b in zip(self.guessed, other.guessed, strict=True)),
            tuple(a + b for a, b in zip(self.matched, other.matched, strict=True)),
        )

    @property
    def scores(self) -> tuple[float, ...]:
        """BLEU-1 .. BLEU-4 in 0..1."""
        ratio = (self.length + _TINY) / (self.reference_length + _SMALL)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        precision, scores = 1.0, []
        for n, (matched, guessed) in enumerate(zip(self.matched, self.guessed, strict=True), start=1):
            precision *= (matched + _TINY) / (guessed + _SMALL)
            scores.append(precision ** (1 / n) * brevity)
        return tuple(scores)


def overlap(caption: str, references: Sequence[str]) -> Overlap:
    """Counts of one tokenised caption against its tokenised references."""
    if not references:
        raise ValueError("a caption has no references; expected at least one (five in COCO, Flickr30K).")
    words, others = caption.split(), [reference.split() for reference in references]
    most: Counter[tuple[str, ...]] = Counter()
    for other in others:
        most |= _ngrams(other)
    matched = [0] * ORDERS
    for ngram, times in _ngrams(words).items():
        matched[len(ngram) - 1] += min(times, most[ngram])
    return Overlap(
        length=len(words),
        reference_length=min((abs(len(other) - len(words)), len(other)) for other in others)[1],
        guessed=tuple(max(0, len(words) - n) for n in range(ORDERS)),
        matched=tuple(matched),
    )


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))
