"""The toy world's questions as a benchmark asks them: which kinds about which scene, in which words.

One image is asked a handful of questions; the kinds take turns, so that all are asked equally often of many images.

| kind                    | asked as (raw / chatml)                     | right if (`evaluation.metrics.toy`)     |
|-------------------------|---------------------------------------------|-----------------------------------------|
| color ... arithmetic    | format 2 / a question and a sentence        | same text                               |
| caption                 | format 1                                    | same text                               |
| grounded_caption, boxes | format 4                                    | same text; per phrase: same phrase, IoU |
| refer                   | format 5 / "Where is the star?"             | IoU of the first box at least 0.5       |
| describe                | format 6 (raw in both)                      | same text                               |
| ocr, ocr_quads          | format 7                                    | per sign: same word; same word and IoU  |
| two_images              | chatml only                                 | same text, or IoU                       |
| multiple_choice         | likelihood of four answers                  | the right one is the likeliest          |
| few_shot                | two solved examples before it (raw in both) | same text                               |
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qwenvl.data.toy.chats import chat
from qwenvl.data.toy.questions import ASK, refer
from qwenvl.data.toy.tasks import (
    CAPTION,
    GROUNDED_CAPTION,
    OCR,
    box,
    caption,
    grounded_caption,
    ocr,
    tasks,
)
from qwenvl.data.toy.worlds import COLORS, SHAPES, Dice, Scene
from qwenvl.data.toy.worlds import scene as scene_of
from qwenvl.markup import Image, Ref, Segment, Text

SHOTS = 2
"""Solved examples before a question of the kind few_shot; they come from the split "train"."""

QUESTIONS = tuple(ASK)
VALUES: Mapping[str, Sequence[str]] = {"color": COLORS, "shape": SHAPES}
"""Kinds that multiple choice draws from, and their possible answers."""


@dataclass(frozen=True)
class Item:
    """One question about one scene or two; its prompt holds no image yet."""

    kind: str
    prompt_format: str
    scenes: tuple[Scene, ...]
    prompt: tuple[Segment, ...]
    answer: tuple[Segment, ...]
    options: tuple[str, ...] = ()
    """Texts to choose from by likelihood; one of them is the answer."""
    examples: tuple["Item", ...] = ()
    """Solved before it in the same prompt."""


def items(scene: Scene, number: int, seed: int, prompt_format: str) -> list[Item]:
    """The questions about scene `number` of a run. The same arguments give the same questions."""
    dice = Dice(scene.name, "evaluation", seed)
    asked = [_caption(scene, prompt_format), _find(scene, prompt_format, dice)]
    asked += _questions(scene, number, prompt_format, dice)
    asked.append(_grounded(scene, prompt_format) if number % 2 else _ocr(scene, prompt_format))
    if number % 4 == 0:
        asked += _describe(scene, seed)
    elif number % 4 == 1:
        asked += _choice(scene, prompt_format, dice)
    elif number % 4 == 2 and prompt_format == "chatml":
        asked.append(_two_images(scene, number, seed))
    elif number % 4 == 3:
        asked += _few_shot(scene, number, seed)
    return asked


def _caption(scene: Scene, prompt_format: str) -> Item:
    return Item("caption", prompt_format, (scene,), (Text(CAPTION),), (Text(caption(scene)),))


def _grounded(scene: Scene, prompt_format: str) -> Item:
    return Item(
        "grounded_caption", prompt_format, (scene,), (Text(GROUNDED_CAPTION),), grounded_caption(scene)
    )


def _ocr(scene: Scene, prompt_format: str) -> Item:
    return Item("ocr", prompt_format, (scene,), (Text(OCR),), ocr(scene))


def _find(scene: Scene, prompt_format: str, dice: Dice) -> Item:
    thing = dice.pick(scene.items)
    name = refer(scene, thing, dice)
    if prompt_format == "raw":
        return Item("refer", prompt_format, (scene,), (Ref(name),), (box(thing),))
    request = dice.pick((f"Point to {name}.", f"Find {name}.", f"Where is {name}?"))
    return Item("refer", prompt_format, (scene,), (Text(request),), (Ref(name), box(thing)))


def _questions(scene: Scene, number: int, prompt_format: str, dice: Dice) -> Iterator[Item]:
    """Two of the kinds that take turns, and reading wherever there is a sign."""
    others = [kind for kind in QUESTIONS if kind != "read"]
    turn = 2 * number % len(others)
    for kind in (*others[turn : turn + 2], "read", "arithmetic"):
        if kind == "arithmetic" and kind in others[turn : turn + 2]:
            continue  # it has had its turn; otherwise it is asked wherever there is a number, which is rare
        question = ASK[kind](scene, dice)
        if question is None:
            continue
        if prompt_format == "raw":
            prompt, answer = f" {question.text} Answer:", f" {question.answer}"
        else:
            prompt, answer = question.text, question.sentence
            if kind == "place":  # "Where is ...?" asks for a box in a chat
                prompt = prompt.replace("Where is", "In which part of the picture is")
        yield Item(kind, prompt_format, (scene,), (Text(prompt),), (Text(answer),))


def _describe(scene: Scene, seed: int) -> Iterator[Item]:
    for task in tasks(scene, seed, kinds=("describe",)):
        yield Item("describe", "raw", (scene,), task.prompt, task.answer)


def _choice(scene: Scene, prompt_format: str, dice: Dice) -> Iterator[Item]:
    """A question of colour or shape with the right answer and three others in random order."""
    kind = dice.pick(tuple(VALUES))
    question = ASK[kind](scene, dice)
    if question is None:
        return
    others = [value for value in VALUES[kind] if value != question.answer]
    dice.shuffle(others)
    values = [question.answer, *others[:3]]
    dice.shuffle(values)
    if prompt_format == "raw":
        prompt, options = f" {question.text} Answer:", [f" {value}" for value in values]
    else:
        prompt = question.text
        options = [_in_place_of(question.answer, value, question.sentence) for value in values]
    answer = options[values.index(question.answer)]
    yield Item(
        "multiple_choice", prompt_format, (scene,), (Text(prompt),), (Text(answer),), options=tuple(options)
    )


def _in_place_of(answer: str, value: str, sentence: str) -> str:
    """The sentence, whose last word is the answer, with another value there."""
    return sentence.removesuffix(f"{answer}.") + f"{value}."


def _two_images(scene: Scene, number: int, seed: int) -> Item:
    other = scene_of(seed, 10**6 + number, "test")
    question, answer, *_ = chat([scene, other], seed)
    asked = tuple(segment for segment in question.content if not isinstance(segment, Image))
    return Item("two_images", "chatml", (scene, other), asked, answer.content)  # type: ignore[arg-type]


def _few_shot(scene: Scene, number: int, seed: int) -> Iterator[Item]:
    """A question of the VQA format after solved ones of the same kind about images of the training split."""
    kind = ("color", "shape", "size", "count")[number // 4 % 4]
    for task in tasks(scene, seed, kinds=(kind,)):
        examples: list[Item] = []
        index = SHOTS * number
        while len(examples) < SHOTS:
            shown = scene_of(seed, index)
            examples += [
                Item(kind, "raw", (shown,), t.prompt, t.answer) for t in tasks(shown, seed, kinds=(kind,))
            ]
            index += 1
        yield Item("few_shot", "raw", (scene,), task.prompt, task.answer, examples=tuple(examples))
