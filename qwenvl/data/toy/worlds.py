"""The toy world: images simple enough that a two-million-parameter model learns them to the end.

One to three coloured shapes and usually a sign with a word or a number, on a plain pale ground. It is the data of the
`tiny` preset: every format of the paper (Appendix B) can be asked about it, and every answer is known exactly.

Coordinates are the model's own, [0, 1000) from the top left, and every box edge is a multiple of 25:

    0            1000          a scene is a pure function of (seed, index, split)
    +--------------+           things never touch: at least 25 units of ground between any two
    |  O     LUMO  |           centres of any two differ by 60 units or more along x,
    |     *        |              so that "from left to right" has one meaning
    +--------------+           box of a sign = extent of its ink; the plate around it is ground

Letters stand in the cells of an 8 x 8 raster, the patches of a ViT at 112 pixels: no letter is cut between patches, so
that a small ViT reads within minutes. Shapes lie anywhere on the grid.

Held out by construction: 8 of the 84 (shape, colour, size) triples, a tenth of all words and 9 of the 90 numbers never
occur in the split "train"; every scene of the split "test" holds at least one of them.
"""

import itertools
import random
import zlib
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TypeVar

Corners = tuple[int, int, int, int]
"""Left, top, right, bottom in [0, 1000)."""
Point = tuple[int, int]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black")
SIZES = ("small", "large")
SIDES = {"small": (150, 175, 200), "large": (275, 300, 325, 350)}
"""Sides of the square boxes, in units."""
BACKGROUNDS = 5
"""Number of pale grounds; `paint` knows their colours."""
INKS = 3
"""Number of dark inks; `paint` knows their colours."""

GRID = 25
"""Every edge is a multiple of this many units."""
CELL = 125
"""Side of the cells that letters stand in, an eighth of the image; the next letter stands in the next cell."""
LETTER = 100
"""Width and height of a letter, in units."""
PLATE = 25
"""Units of white plate around the ink of a sign that has one."""

VOWELS = "AEIOU"
CONSONANTS = "BCDFGHJKLMNPRSTVWXYZ"
PATTERNS = ("CVC", "VCV", "CVCV", "VCVC")
UNFIT = (
    "SEX",
    "TIT",
    "CUM",
    "FAG",
    "NIG",
    "RAP",
    "NAZ",
    "FUK",
    "FUC",
    "COC",
    "KOK",
    "DIK",
    "PIS",
    "SUK",
    "HOR",
)
"""Syllables that nobody wants to meet on a sign."""

T = TypeVar("T")


class Dice:
    """Random choices that are a function of a name, the same in every version of Python.

    Only `Random.random()` is promised to be reproducible, so everything is built on it.
    """

    def __init__(self, *name: object) -> None:
        self._random = random.Random("/".join(map(str, name))).random

    def share(self) -> float:
        """A number in [0, 1)."""
        return self._random()

    def below(self, count: int) -> int:
        """A whole number from 0, below `count`."""
        return int(self._random() * count)

    def chance(self, probability: float) -> bool:
        """True as often as `probability` says."""
        return self._random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of them, all equally likely."""
        return options[int(self._random() * len(options))]

    def shuffle(self, things: MutableSequence[T]) -> None:
        """Put them in a random order, in place."""
        for last in range(len(things) - 1, 0, -1):
            other = self.below(last + 1)
            things[last], things[other] = things[other], things[last]


@dataclass(frozen=True)
class Thing:
    """A shape that touches its square box on all four sides."""

    shape: str
    color: str
    size: str
    box: Corners

    @property
    def triple(self) -> tuple[str, str, str]:
        return self.shape, self.color, self.size


@dataclass(frozen=True)
class Sign:
    """A word or a number, written on the ground or on a white plate."""

    text: str
    box: Corners
    ink: int
    bold: bool
    plate: bool

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()

    @property
    def quad(self) -> tuple[Point, Point, Point, Point]:
        """Top left, top right, bottom right, bottom left (the order of paper 2.2)."""
        left, top, right, bottom = self.box
        return (left, top), (right, top), (right, bottom), (left, bottom)


Item = Thing | Sign


@dataclass(frozen=True)
class Scene:
    """What is in an image; `name` identifies it, equal names mean equal scenes."""

    name: str
    background: int
    things: tuple[Thing, ...]
    signs: tuple[Sign, ...]

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """Things and signs from left to right, by the centre of their boxes."""
        return tuple(sorted((*self.things, *self.signs), key=lambda item: item.box[0] + item.box[2]))


def center(item: Item) -> tuple[int, int]:
    """Middle of the box, rounded down."""
    left, top, right, bottom = item.box
    return (left + right) // 2, (top + bottom) // 2


# === Held out by construction ===


def _rank(name: str) -> int:
    return zlib.crc32(name.encode())


@cache
def held_out_triples() -> frozenset[tuple[str, str, str]]:
    """The 8 triples that never occur in training: at most two per shape and two per colour."""
    chosen: list[tuple[str, str, str]] = []
    triples = itertools.product(SHAPES, COLORS, SIZES)
    for triple in sorted(triples, key=lambda triple: _rank("thing " + " ".join(triple))):
        if all(sum(triple[k] == other[k] for other in chosen) < limit for k, limit in enumerate((2, 2, 4))):
            chosen.append(triple)
    return frozenset(chosen[:8])


@cache
def words(held_out: bool) -> tuple[str, ...]:
    """All invented words of one side of the split, in alphabetical order within each pattern."""
    return tuple(word for word in _all_words() if is_held_out(word) == held_out)


def _all_words() -> Iterator[str]:
    letters = {"C": CONSONANTS, "V": VOWELS}
    for pattern in PATTERNS:
        for choice in itertools.product(*(letters[kind] for kind in pattern)):
            word = "".join(choice)
            if not any(part in word for part in UNFIT):
                yield word


@cache
def numbers(held_out: bool) -> tuple[str, ...]:
    """The numbers 10 to 99 of one side of the split."""
    ranked = sorted(map(str, range(10, 100)), key=lambda text: _rank("number " + text))
    return tuple(ranked[:9] if held_out else ranked[9:])


@cache
def is_held_out(text: str) -> bool:
    """Whether a word or number of a sign is kept out of training."""
    return text in numbers(True) if text.isdigit() else _rank("word " + text) % 10 == 0


def holds_held_out(scene: Scene) -> bool:
    """Whether anything in the scene is kept out of training."""
    return any(thing.triple in held_out_triples() for thing in scene.things) or any(
        is_held_out(sign.text) for sign in scene.signs
    )


# === Scenes ===


def scene(seed: int, index: int, split: str = "train", *, signs: float = 0.7) -> Scene:
    """Scene number `index` of a split; `signs` is the share of scenes with text in them.

    `split` is "train" or "test", else ValueError. A different `signs` gives different scenes.
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r} of the toy world; expected 'train' or 'test'.")
    dice = Dice(split, seed, index, signs)
    while True:
        things, texts = _draw_contents(dice, split, signs)
        boxes = _place(dice, [dice.pick(SIDES[size]) for _, _, size in things], [len(text) for text in texts])
        if boxes:
            return Scene(
                f"{split}/{seed}/{index}/{signs}",
                dice.below(BACKGROUNDS),
                tuple(Thing(*thing, box) for thing, box in zip(things, boxes, strict=False)),
                tuple(_sign(dice, text, box) for text, box in zip(texts, boxes[len(things) :], strict=True)),
            )


def _draw_contents(dice: Dice, split: str, signs: float) -> tuple[list[tuple[str, str, str]], list[str]]:
    num_signs = (1 + dice.chance(0.2)) if dice.chance(signs) else 0
    num_things = 0 if num_signs and dice.chance(0.12) else 1 + dice.below(3)
    fresh = dice.below(num_things + num_signs)  # the one that must be held out, in a test scene
    held_out = [
        False if split == "train" else True if k == fresh else None for k in range(num_things + num_signs)
    ]
    triples: list[tuple[str, str, str]] = []
    texts: list[str] = []
    for wish in held_out[:num_things]:
        triples.append(_draw_triple(dice, triples, wish))
    for wish in held_out[num_things:]:
        texts.append(_draw_text(dice, texts, dice.chance(0.1) if wish is None else wish))
    return triples, texts


def _draw_triple(
    dice: Dice, others: list[tuple[str, str, str]], held_out: bool | None
) -> tuple[str, str, str]:
    """A triple unlike the others, held out or not (None: either); often it shares a shape or a colour with one."""
    while True:
        triple = dice.pick(SHAPES), dice.pick(COLORS), dice.pick(SIZES)
        if others and dice.chance(0.35):
            like = dice.pick(others)
            triple = (like[0], *triple[1:]) if dice.chance(0.5) else (triple[0], like[1], triple[2])
        if triple not in others and held_out in (None, triple in held_out_triples()):
            return triple


def _draw_text(dice: Dice, others: list[str], held_out: bool) -> str:
    while True:
        is_number = dice.chance(0.3)
        text = dice.pick(numbers(held_out)) if is_number else _draw_word(dice, held_out)
        if text not in others and not (is_number and any(other.isdigit() for other in others)):
            return text


def _draw_word(dice: Dice, held_out: bool) -> str:
    """Three letters half of the time, although most words have four."""
    three = dice.chance(0.5)
    while True:
        word = dice.pick(words(held_out))
        if (len(word) == 3) == three or dice.chance(0.05):
            return word


def _sign(dice: Dice, text: str, box: Corners) -> Sign:
    return Sign(text, box, ink=dice.below(INKS), bold=dice.chance(0.5), plate=dice.chance(0.3))


def _place(dice: Dice, sides: Sequence[int], letters: Sequence[int]) -> list[Corners] | None:
    """Boxes of squares and then of signs, apart from each other and 25 units from the border, or None."""
    boxes: list[Corners] = []
    for draw in (
        *(partial(_square, dice, side) for side in sides),
        *(partial(_line, dice, n) for n in letters),
    ):
        for _ in range(30):
            box = draw()
            if all(_apart(box, other) for other in boxes):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def _square(dice: Dice, side: int) -> Corners:
    left, top = (GRID * (1 + dice.below((1000 - 2 * GRID - side) // GRID + 1)) for _ in "xy")
    return left, top, left + side, top + side


def _line(dice: Dice, letters: int) -> Corners:
    """Extent of so many letters, each at the near or the far end of its cell along both axes."""
    left, top = dice.pick(_starts(letters)), dice.pick(_starts(1))
    return left, top, left + (letters - 1) * CELL + LETTER, top + LETTER


@cache
def _starts(letters: int) -> tuple[int, ...]:
    """Where a line of so many letters may begin."""
    last = 1000 - GRID - (letters - 1) * CELL - LETTER
    return tuple(start for start in range(GRID, last + 1, GRID) if start % CELL in (0, GRID))


def _apart(one: Corners, other: Corners) -> bool:
    """At least 25 units between them even if both are signs on plates, and 60 between their centres along x."""
    gap = GRID + 2 * PLATE
    beside = one[2] + gap <= other[0] or other[2] + gap <= one[0]
    above = one[3] + gap <= other[1] or other[3] + gap <= one[1]
    return (beside or above) and abs(one[0] + one[2] - other[0] - other[2]) >= 2 * 60
