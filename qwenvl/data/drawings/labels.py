"""What drawings have in common: the nouns that they show, and the words that people gave to several of them.

The tiny counterpart of the texts that OpenCLIP learned from. A noun goes by any of its names, in the plural too. Of the
words, half of what a drawing is called is its name, the other half its keywords and the words of its name, shared
evenly; a word counts where several sets use it.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

from qwenvl.data.drawings.collection import Drawing
from qwenvl.data.drawings.splits import nouns

LEAST, SETS = 6, 2
"""Drawings that a label is given to at least, in at least so many sets."""

_LITTLE = frozenset(
    ("a", "an", "and", "at", "by", "down", "for", "from", "in", "of", "off", "on", "or", "out", "the", "to", "up",
     "with", "without")
)  # fmt: skip


def noun_number(drawing: Drawing) -> int | None:
    """The place among `splits.nouns` of what it is called and nothing else: `Cats.` are a cat, a cat face is not."""
    name = drawing.en.lower().rstrip(". ").removeprefix("a ").removeprefix("an ")
    known = _numbers()
    endings = (("", ""), ("ies", "y"), ("es", ""), ("s", ""))
    names = (name.removesuffix(plural) + one for plural, one in endings if name.endswith(plural))
    return next((known[each] for each in names if each in known), None)


@cache
def _numbers() -> Mapping[str, int]:
    """Names of nouns -> their places; a name of several is that of the noun which is usually called so."""
    known: dict[str, int] = {}
    for number, each in enumerate(nouns()):
        known.setdefault(each.noun.lower(), number)
    for number, each in enumerate(nouns()):
        for name in each.synonyms:
            known.setdefault(name.lower(), number)
    return known


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
