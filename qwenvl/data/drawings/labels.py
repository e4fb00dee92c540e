"""What drawings have in common: the words that people gave to several of them, for the naming of nouns.

The tiny counterpart of the texts that OpenCLIP learned from: half of what a drawing is called is its name, the other
half its keywords and the words of its name, shared evenly. A word counts where several sets use it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from qwenvl.data.drawings.collection import Drawing

LEAST, SETS = 6, 2
"""Drawings that a label is given to at least, in at least so many sets."""

_LITTLE = frozenset(
    ("a", "an", "and", "at", "by", "down", "for", "from", "in", "of", "off", "on", "or", "out", "the", "to", "up",
     "with", "without")
)  # fmt: skip


def labels_of(drawing: Drawing) -> Mapping[str, float]:
    """Every label of a drawing with its share; English, in small letters."""
    name = drawing.en.lower().rstrip(". ")
    words = [*(word for word in re.findall(r"[a-z]{3,}", name) if word not in _LITTLE)]
    others = dict.fromkeys(each.lower() for each in (*drawing.keywords, *words) if each.lower() != name)
    shares = {other: 0.5 / len(others) for other in others}
    return {**shares, name: 0.5 if others else 1.0} if name else shares


def common_labels(
    drawings: Sequence[Drawing], *, least: int | None = None, sets: int | None = None
) -> Sequence[str]:
    """The labels that enough drawings of enough sets share, in alphabetical order; by default `LEAST` and `SETS`."""
    least, sets = least or LEAST, sets or SETS
    drawn: Counter[str] = Counter()
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for drawing in drawings:
        for label in labels_of(drawing):
            drawn[label] += 1
            seen[label].add(drawing.source)
    return sorted(label for label in drawn if drawn[label] >= least and len(seen[label]) >= sets)
