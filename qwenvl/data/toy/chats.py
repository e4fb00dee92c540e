"""Dialogues about the toy world in ChatML (paper 2.3 and 3.3): one image, two images, or none.

Images stand bare in the first user turn: `markup.number_images` puts "Picture 1: " before them, which the questions
about two images refer to.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import count

from qwenvl.data.toy.paint import render
from qwenvl.data.toy.questions import ASK, article, refer
from qwenvl.data.toy.tasks import (
    CAPTION,
    GROUNDED_CAPTION,
    OCR,
    box,
    caption,
    grounded_caption,
    ocr,
    scene_text,
)
from qwenvl.data.toy.worlds import SHAPES, Dice, Scene, words
from qwenvl.markup import Image, Ref, Segment, Text, Turn

Exchange = tuple[tuple[Segment, ...], tuple[Segment, ...]]
"""What the user says and what the assistant answers."""

IN_ONE = (*ASK, "count", "exist", "relation", "arithmetic")
"""Kinds of questions about one image; what is hard to learn stands twice."""
IN_A_DIALOGUE = (
    *("question",) * 12,
    *("find", "find", "absent", "caption", "caption", "grounded caption", "texts", "texts"),
)
AT_THE_BEGINNING = (
    *("question",) * 13,
    *("find", "find", "absent", "caption", "caption", "caption", "texts"),
)
"""Forms of the exchanges about one image, each as often as it is drawn."""
IN_ONE_OF_TWO = ("color", "count", "size", "exist", "read", "arithmetic")
"""Kinds of questions that can be asked "in Picture 2"."""
OPPOSITES = {"left": "right", "above": "below", "top": "bottom", "small": "large", "yes": "no"}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SMALL_TALK = {
    "Hello!": "Hello! Ask me about a picture.",
    "Who are you?": "I am a small model that looks at pictures.",
    "What can you do?": "I can find things in a picture and read signs.",
    "Thank you!": "You are welcome.",
}


def chat(
    scenes: Sequence[Scene], seed: int, *, kinds: Sequence[str] = IN_ONE, size: int = 112
) -> tuple[Turn, ...]:
    """A dialogue of two to seven exchanges about no, one or two scenes; images are `size` pixels on a side.

    `kinds` are the questions about one image, as often as they stand in it. Raises ValueError for more than two
    scenes.
    """
    if len(scenes) > 2:
        raise ValueError(f"{len(scenes)} scenes for one toy chat; expected none, one or two.")
    return _dialogue(tuple(Image(render(scene, size)) for scene in scenes), scenes, seed, kinds)


def exchanges(scene: Scene, seed: int, *, kinds: Sequence[str], limit: int) -> list[Exchange]:
    """Up to `limit` different exchanges about one image, each to begin a dialogue of its own; mostly questions.

    The same arguments give the same exchanges.
    """
    dice = Dice(scene.name, "exchanges", seed)
    drawn = (_about_one([scene], dice, kinds, AT_THE_BEGINNING) for _ in range(3 * limit))
    return _different(drawn, limit)


def described_chat(scene: Scene, seed: int) -> tuple[Turn, ...]:
    """The dialogue about a scene, with the scene in words where the image would stand."""
    return _dialogue((Text(f"Picture 1: {scene_text(scene, seed)}\n"),), [scene], seed, IN_ONE)


def _dialogue(
    shown: tuple[Segment, ...], scenes: Sequence[Scene], seed: int, kinds: Sequence[str]
) -> tuple[Turn, ...]:
    """Questions and answers in turn; what is shown stands before the first question."""
    dice = Dice(*(scene.name for scene in scenes), "chat", seed)
    ask = (_about_nothing, partial(_about_one, kinds=kinds, forms=IN_A_DIALOGUE), _about_two)[len(scenes)]
    wanted = 2 + dice.below(6)
    turns: list[Turn] = []
    for question, answer in _different((ask(scenes, dice) for _ in count()), wanted):
        turns += [Turn("user", shown + question), Turn("assistant", answer)]
        shown = ()
    return tuple(turns)


def _different(drawn: Iterable[Exchange | None], wanted: int) -> list[Exchange]:
    """The first so many that ask different things; fewer where no more are drawn."""
    found: dict[tuple[Segment, ...], Exchange] = {}
    for exchange in drawn:
        if exchange:
            found.setdefault(exchange[0], exchange)
        if len(found) == wanted:
            break
    return list(found.values())


def _said(question: str, answer: str) -> Exchange:
    return (Text(question),), (Text(answer),)


# === One image ===


def _about_one(
    scenes: Sequence[Scene], dice: Dice, kinds: Sequence[str], forms: Sequence[str]
) -> Exchange | None:
    (scene,) = scenes
    match dice.pick(forms):
        case "question":
            return _question(scene, dice, kinds, "")
        case "find":
            return _find(scene, dice, "")
        case "absent":
            return _absent(scene, dice)
        case "caption":
            return _said(CAPTION, caption(scene))
        case "grounded caption":
            return (Text(GROUNDED_CAPTION),), grounded_caption(scene)
    return (Text(OCR),), ocr(scene)


def _question(scene: Scene, dice: Dice, kinds: Sequence[str], where: str) -> Exchange | None:
    """A question of the VQA format, answered in a sentence; `where` is "" or " in Picture k"."""
    question = ASK[dice.pick(kinds)](scene, dice)
    if question is None:
        return None
    text = question.text.removesuffix("?") + where + "?"
    if question.kind == "place":  # "Where is ...?" asks for a box in a chat
        text = text.replace("Where is", "In which part of the picture is")
    return _said(text, question.sentence)


def _find(scene: Scene, dice: Dice, where: str) -> Exchange:
    item = dice.pick(scene.items)
    name = refer(scene, item, dice)
    request = dice.pick((f"Point to {name}{where}.", f"Find {name}{where}.", f"Where is {name}{where}?"))
    return (Text(request),), (Ref(name), box(item))


def _absent(scene: Scene, dice: Dice) -> Exchange:
    """A question about something that is not there."""
    shapes = {thing.shape for thing in scene.things}
    shape = dice.pick([shape for shape in SHAPES if shape not in shapes])
    question = dice.pick(
        (f"What color is the {shape}?", f"Find the {shape}.", f"Is the {shape} small or large?")
    )
    return _said(question, f"There is no {shape}.")


# === Two images ===


def _about_two(scenes: Sequence[Scene], dice: Dice) -> Exchange | None:
    roll = dice.below(10)
    if roll < 4:
        return _which(scenes, dice)
    if roll < 5:
        number = sum(len(scene.things) for scene in scenes)
        there = "There is 1 object." if number == 1 else f"There are {number} objects."
        return _said("How many objects are there in the two pictures?", there)
    k = dice.below(2)
    where = f" in Picture {k + 1}"
    return _find(scenes[k], dice, where) if roll < 7 else _question(scenes[k], dice, IN_ONE_OF_TWO, where)


def _which(scenes: Sequence[Scene], dice: Dice) -> Exchange | None:
    """Something that only one of the two images has."""
    first, second = (_features(scene) for scene in scenes)
    options = sorted(first ^ second)
    if not options:
        return None
    feature = dice.pick(options)
    return _said(f"Which picture has {feature}?", f"Picture {1 if feature in first else 2}.")


def _features(scene: Scene) -> set[str]:
    features = {
        article(name) for thing in scene.things for name in (thing.shape, f"{thing.color} {thing.shape}")
    }
    for sign in scene.signs:
        kind = "number" if sign.is_number else "word"
        features |= {article(kind), f"the {kind} {sign.text}"}
    return features


# === No image ===


def _about_nothing(scenes: Sequence[Scene], dice: Dice) -> Exchange:
    return dice.pick(TEXT_ONLY)(dice)


def _sum(dice: Dice) -> Exchange:
    one, other = dice.below(10), dice.below(10)
    return _said(f"What is {one} plus {other}?", f"{one} plus {other} is {one + other}.")


def _digit(dice: Dice) -> Exchange:
    digit = dice.below(10)
    return _said(f"Write the number {NUMBER_WORDS[digit]} as a digit.", f"It is {digit}.")


def _spell(dice: Dice) -> Exchange:
    word = dice.pick(words(held_out=False))
    return _said(f"Spell the word {word}.", " " + " ".join(word))


def _unspell(dice: Dice) -> Exchange:
    word = dice.pick(words(held_out=False))
    return _said(f"Which word is spelled {' '.join(word)}?", f"It says {word}.")


def _letters(dice: Dice) -> Exchange:
    word = dice.pick(words(held_out=False))
    return _said(f"How many letters are in the word {word}?", f"There are {len(word)} letters.")


def _opposite(dice: Dice) -> Exchange:
    pair = list(dice.pick(tuple(OPPOSITES.items())))
    dice.shuffle(pair)
    return _said(f"What is the opposite of {pair[0]}?", f"The opposite of {pair[0]} is {pair[1]}.")


def _small_talk(dice: Dice) -> Exchange:
    return _said(*dice.pick(tuple(SMALL_TALK.items())))


TEXT_ONLY: tuple[Callable[[Dice], Exchange], ...] = (
    _sum,
    _digit,
    _spell,
    _unspell,
    _letters,
    _opposite,
    _small_talk,
)
"""Kinds of exchanges without an image."""
