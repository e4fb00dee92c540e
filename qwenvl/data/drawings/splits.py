"""Which drawings are never trained on, and the nouns by which they are judged.

    test-style     twemoji: one more style of emoji; what every set draws alike makes it easy
    test-medium    tuxpaint, pysiogame, gcompris, sweethome3d: stamps, photographs, renders; the honest one
    test-clipart   some of openclipart

Five sets stay out of training altogether, their drawings without a noun too: half a style would give the style away.
The nouns are senses of WordNet 3.0 (Princeton University, its licence), those that most training drawings show first.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

HELD_OUT_SETS = frozenset({"twemoji", "tuxpaint", "pysiogame", "gcompris", "sweethome3d"})
"""Sets of which nothing is trained on."""

COPIES = frozenset({("emojione", "egg")})
"""Drawings of other sets that are held-out ones once more: near by hash and thumbnail (`data.clean.images`)."""

SPLITS = ("test-style", "test-medium", "test-clipart")

VOCABULARIES = (200, 747)
"""Sizes of the lists of nouns among which a drawing is named; the shorter begins the longer."""


@dataclass(frozen=True, kw_only=True)
class Noun:
    """One sense of a noun."""

    id: str
    """Its place in WordNet 3.0: n and the offset."""
    noun: str
    """What it is called here."""
    synonyms: tuple[str, ...]
    """Other words for it, which are right too."""
    zh: tuple[str, ...]
    """Chinese names, the most usual first; none where no set has one."""

    def names(self, language: str) -> tuple[str, ...]:
        """Every right answer, the usual one first."""
        return self.zh if language == "zh" else (self.noun, *self.synonyms)


@cache
def nouns() -> tuple[Noun, ...]:
    """All nouns, in the order of the vocabularies."""
    return tuple(
        Noun(id=each["id"], noun=each["noun"], synonyms=tuple(each["synonyms"]), zh=tuple(each["zh"]))
        for each in _read("nouns.json")
    )


@cache
def noun(id: str) -> Noun:
    """The noun of this id. Raises KeyError."""
    return {each.id: each for each in nouns()}[id]


@cache
def split(name: str) -> Mapping[tuple[str, str], str]:
    """(set, key) of every drawing of a split -> the id of what it shows."""
    return {
        (source, key): shown
        for source, drawings in _read("splits.json")[name].items()
        for key, shown in drawings.items()
    }


def is_held_out(source: str, key: str) -> bool:
    """Whether a drawing is never trained on."""
    return source in HELD_OUT_SETS or (source, key) in COPIES or (source, key) in split("test-clipart")


def _read(name: str) -> Any:
    return json.loads(files("qwenvl.data.drawings").joinpath(name).read_text("utf-8"))
