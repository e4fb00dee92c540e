"""Dialogues about one drawing, in English and Chinese: what it is, whether it is this or that, which colour it has.

Stage 3 forgets names that it does not hear (docs/EXPERIMENTS.md, 2026-11-29), so most of its dialogues are these.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from qwenvl.data.drawings.scenes import INKS
from qwenvl.data.drawings.splits import Noun, nouns
from qwenvl.data.drawings.telling import WHAT, article, said
from qwenvl.data.records import Dialogue, Language
from qwenvl.data.toy.worlds import Dice
from qwenvl.markup import Image, Text, Turn

FIRST = 0.6
"""Share of the dialogues that begin with what it is: behind the name, all else is easy."""


class Exchange(NamedTuple):
    """A question and its answer."""

    asked: str
    answer: str


def talk(image: Image, names: Mapping[Language, str], shown: Noun | None, ink: str, dice: Dice) -> Dialogue:
    """What it is in each of its languages, and as many other questions at the most.

    `shown` is its noun, if it has one, `ink` the one colour of `INKS` that it is painted in, or empty.
    """
    named = [
        Exchange(WHAT[language], said(name) if language == "en" else name) for language, name in names.items()
    ]
    others = [*_others(shown, ink, dice)]
    dice.shuffle(named)
    dice.shuffle(others)
    exchanges = [*named, *others[: len(named)]]
    if not dice.chance(FIRST):
        dice.shuffle(exchanges)
    turns: list[Turn] = []
    for asked, answer in exchanges:
        seen = () if turns else (image,)
        turns += [Turn("user", (*seen, Text(asked))), Turn("assistant", (Text(answer),))]
    return Dialogue(turns=tuple(turns), source="drawings")


def _others(shown: Noun | None, ink: str, dice: Dice) -> Iterator[Exchange]:
    """Whether it is this, which of two it is, and its colour, each in a language that has the words."""
    if ink:
        zh = dice.chance(0.5)
        yield Exchange("它是什么颜色？", INKS[ink][0]) if zh else Exchange("What color is it?", ink)
    if shown is None:
        return
    other = _other(shown, dice)
    both = bool(shown.zh and other.zh)
    asked, right = (other, False) if dice.chance(0.5) else (shown, True)
    if both and dice.chance(0.5):
        yield Exchange(f"这是{asked.zh[0]}吗？", "是" if right else "不是")
    else:
        yield Exchange(f"Is this {article(asked.noun)}?", "yes" if right else "no")
    pair = [shown, other]
    dice.shuffle(pair)
    if both and dice.chance(0.5):
        yield Exchange(f"这是{pair[0].zh[0]}还是{pair[1].zh[0]}？", shown.zh[0])
    else:
        yield Exchange(f"Is this {article(pair[0].noun)} or {article(pair[1].noun)}?", said(shown.noun))


def _other(shown: Noun, dice: Dice) -> Noun:
    """A noun that no name of this one is a name of, in either language."""
    taken = {*shown.names("en"), *shown.zh}
    drawn = (dice.pick(nouns()) for _ in range(1000))
    return next(each for each in drawn if taken.isdisjoint((*each.names("en"), *each.zh)))
