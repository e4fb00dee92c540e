"""Questions about a toy scene, each with its short answer (paper's VQA format) and its answer as a sentence (chat).

A question is asked only where the scene gives it one clear answer; whatever it names is named unambiguously. Words of
an answer keep the spelling of the short answer (" red", " LUMO", " 2") inside sentences, so that a model meets the
same tokens in both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwenvl.data.toy.worlds import COLORS, SHAPES, Dice, Item, Scene, Sign, Thing, center


@dataclass(frozen=True)
class Question:
    """`answer` has no leading space; `sentence` is the same answer for a chat."""

    kind: str
    text: str
    answer: str
    sentence: str


MIN_OFFSET = 100
"""Left or right, above or below is asked of centres at least this many units apart."""
MIN_CLEARANCE = 30
"""A place is asked of centres at least this many units off the lines between the nine parts of the image."""
PLUS_OR_MINUS = {"plus one": 1, "minus one": -1, "plus ten": 10}


# === Naming things ===


def article(phrase: str) -> str:
    """The phrase with "a " or "an " before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def described(item: Item) -> str:
    """In full, as in a caption: "a small red circle", "the word LUMO", "the number 42"."""
    if isinstance(item, Sign):
        return f"the {'number' if item.is_number else 'word'} {item.text}"
    return f"a {item.size} {item.color} {item.shape}"


def references(scene: Scene, item: Item) -> list[str]:
    """Every way to name the item, starting with "the ", that fits no other item of the scene; shortest first."""
    return [name for name in _names(item) if sum(name in _names(other) for other in scene.items) == 1]


def refer(scene: Scene, item: Item, dice: Dice) -> str:
    """A short unambiguous name, sometimes a longer one."""
    names = references(scene, item)
    return names[0] if dice.chance(0.6) else dice.pick(names)


def _names(item: Item) -> tuple[str, ...]:
    if isinstance(item, Sign):
        word = "number" if item.is_number else "word"
        return "the sign", f"the {word}", f"the {word} {item.text}"
    return (
        f"the {item.shape}",
        f"the {item.color} {item.shape}",
        f"the {item.size} {item.shape}",
        f"the {item.size} {item.color} {item.shape}",
    )


def _sentence(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:]


def _unambiguous(scene: Scene, names: Callable[[Thing], tuple[str, ...]]) -> list[tuple[Thing, str]]:
    """Things with a name of the given forms that fits no other thing; the first such name."""
    chosen = []
    for thing in scene.things:
        for name in names(thing):
            if sum(name in names(other) for other in scene.things) == 1:
                chosen.append((thing, name))
                break
    return chosen


# === One function per kind: a question, or None where the scene does not give one ===


def _color(scene: Scene, dice: Dice) -> Question | None:
    options = _unambiguous(scene, lambda thing: (thing.shape, f"{thing.size} {thing.shape}"))
    if not options:
        return None
    thing, name = dice.pick(options)
    return Question("color", f"What color is the {name}?", thing.color, f"The {name} is {thing.color}.")


def _shape(scene: Scene, dice: Dice) -> Question | None:
    options = _unambiguous(
        scene, lambda thing: (f"{thing.color} object", f"{thing.size} {thing.color} object")
    )
    if not options:
        return None
    thing, name = dice.pick(options)
    sentence = f"The {name} is a {thing.shape}."
    return Question("shape", f"What shape is the {name}?", thing.shape, sentence)


def _size(scene: Scene, dice: Dice) -> Question | None:
    options = _unambiguous(scene, lambda thing: (thing.shape, f"{thing.color} {thing.shape}"))
    if not options:
        return None
    thing, name = dice.pick(options)
    return Question("size", f"Is the {name} small or large?", thing.size, f"The {name} is {thing.size}.")


def _count(scene: Scene, dice: Dice) -> Question | None:
    roll = dice.below(4)
    if roll == 0:
        name, number = "object", len(scene.things)
    elif roll == 1:
        color = dice.pick([thing.color for thing in scene.things] if _mostly(scene, dice) else COLORS)
        name, number = f"{color} object", sum(thing.color == color for thing in scene.things)
    else:
        shape = dice.pick([thing.shape for thing in scene.things] if _mostly(scene, dice) else SHAPES)
        name, number = shape, sum(thing.shape == shape for thing in scene.things)
    plural = name + ("es" if name == "cross" else "s")
    there = f"There is 1 {name}." if number == 1 else f"There are {number} {plural}."
    return Question("count", f"How many {plural} are there?", str(number), there)


def _mostly(scene: Scene, dice: Dice) -> bool:
    return bool(scene.things) and dice.chance(0.7)


def _exist(scene: Scene, dice: Dice) -> Question | None:
    """Yes and no equally often; most of the absent things share their shape or their colour with one in the image."""
    present = dice.chance(0.5)
    if not scene.things or dice.chance(0.15):
        names = {"number" if sign.is_number else "word" for sign in scene.signs}
        options = [name for name in ("word", "number") if (name in names) == present]
        name = dice.pick(options or ("word", "number"))
        there = name in names
    else:
        pairs = {(thing.color, thing.shape) for thing in scene.things}
        color, shape = dice.pick(sorted(pairs))
        while not present and (color, shape) in pairs:
            like = dice.pick(scene.things)
            roll = dice.below(5)
            color = like.color if roll in (0, 1) else dice.pick(COLORS)
            shape = like.shape if roll in (2, 3) else dice.pick(SHAPES)
        name, there = f"{color} {shape}", present
    sentence = f"Yes, there is {article(name)}." if there else f"No, there is no {name}."
    return Question("exist", f"Is there {article(name)}?", "yes" if there else "no", sentence)


def _relation(scene: Scene, dice: Dice) -> Question | None:
    """Left or right, above or below, of two items: the signs too."""
    axis = dice.below(2)
    pairs = [
        (one, other)
        for one in scene.items
        for other in scene.items
        if abs(center(one)[axis] - center(other)[axis]) >= MIN_OFFSET
    ]
    if not pairs:
        return None
    one, other = dice.pick(pairs)
    before, after = (("left", "right"), ("above", "below"))[axis]
    answer = before if center(one)[axis] < center(other)[axis] else after
    of = " of" if axis == 0 else ""
    name, other_name = refer(scene, one, dice), refer(scene, other, dice)
    question = f"Is {name} {before} or {after}{of} {other_name}?"
    return Question("relation", question, answer, f"{_sentence(name)} is {answer}{of} {other_name}.")


def _place(scene: Scene, dice: Dice) -> Question | None:
    options = [(item, place) for item in scene.items if (place := place_of(item))]
    if not options:
        return None
    item, place = dice.pick(options)
    name = refer(scene, item, dice)
    return Question("place", f"Where is {name}?", place, f"{_sentence(name)} is at the {place}.")


def place_of(item: Item) -> str | None:
    """Which ninth of the image holds the centre, or None within 30 units of a line between two of them."""
    x, y = center(item)
    if any(abs(value - line) < MIN_CLEARANCE for value in (x, y) for line in (1000 / 3, 2000 / 3)):
        return None
    row, column = ("top", "", "bottom")[y * 3 // 1000], ("left", "", "right")[x * 3 // 1000]
    return f"{row} {column}".strip() or "center"


def _read(scene: Scene, dice: Dice) -> Question | None:
    questions = []
    for sign in scene.signs:
        name = "number" if sign.is_number else "word"
        alike = [other for other in scene.signs if other.is_number == sign.is_number]
        if len(scene.signs) == 1:
            questions.append(("What does the sign say?", sign.text))
        if len(alike) == 1:
            questions.append((f"What is the {name}?", sign.text))
        else:
            side = "left" if center(sign)[0] == min(center(other)[0] for other in alike) else "right"
            questions.append((f"What is the {name} on the {side}?", sign.text))
    if not questions:
        return None
    question, answer = dice.pick(questions)
    return Question("read", question, answer, f"It says {answer}.")


def _arithmetic(scene: Scene, dice: Dice) -> Question | None:
    numbers = [int(sign.text) for sign in scene.signs if sign.is_number]
    if len(numbers) != 1:
        return None
    operation = dice.pick(tuple(PLUS_OR_MINUS))
    result = str(numbers[0] + PLUS_OR_MINUS[operation])
    return Question("arithmetic", f"What is the number {operation}?", result, f"It is {result}.")


ASK: Mapping[str, Callable[[Scene, Dice], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "size": _size,
    "count": _count,
    "exist": _exist,
    "relation": _relation,
    "place": _place,
    "read": _read,
    "arithmetic": _arithmetic,
}
"""The kinds of questions."""
