"""The toy world's questions as a benchmark: what is asked about a scene, what is right, and what is held against it.

One picture is asked a handful of questions; the kinds take turns, so that all are asked equally often of many pictures.

| kind                    | asked as (raw / chatml)                     | right if                                |
|-------------------------|---------------------------------------------|-----------------------------------------|
| color ... arithmetic    | format 2 / a question and a sentence        | same text                               |
| caption                 | format 1                                    | same text                               |
| grounded_caption, boxes | format 4                                    | same text; per phrase: same phrase, IoU |
| refer                   | format 5 / "Where is the star?"             | IoU of the first box at least 0.5       |
| describe                | format 6 (raw in both)                      | same text                               |
| ocr, ocr_quads          | format 7                                    | per sign: same word; same word and IoU  |
| two_pictures            | chatml only                                 | same text, or IoU                       |
| multiple_choice         | likelihood of four answers                  | the right one is the likeliest          |
| few_shot                | two solved examples before it (raw in both) | same text                               |
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
from qwenvl.evaluation.metrics.grounding import THRESHOLD, iou
from qwenvl.markup import Box, Image, Quad, Ref, Segment, Text, parse, spell

SHOTS = 2
"""Solved examples before a question of the kind few_shot; they come from the split "train"."""

QUESTIONS = tuple(ASK)
VALUES: Mapping[str, Sequence[str]] = {"color": COLORS, "shape": SHAPES}
"""Kinds that multiple choice draws from, and their possible answers."""


@dataclass(frozen=True)
class Count:
    """So many of so many."""

    correct: int = 0
    n: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.correct + other.correct, self.n + other.n)

    @property
    def share(self) -> float | None:
        """In 0..1; None of nothing."""
        return self.correct / self.n if self.n else None


@dataclass(frozen=True)
class Item:
    """One question about one scene or two; its prompt holds no picture yet."""

    kind: str
    prompt_format: str
    scenes: tuple[Scene, ...]
    prompt: tuple[Segment, ...]
    answer: tuple[Segment, ...]
    options: tuple[str, ...] = ()
    """Texts to choose from by likelihood; one of them is the answer."""
    examples: tuple["Item", ...] = ()
    """Solved before it in the same prompt."""


# === What is asked ===


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
    return Item("two_pictures", "chatml", (scene, other), asked, answer.content)  # type: ignore[arg-type]


def _few_shot(scene: Scene, number: int, seed: int) -> Iterator[Item]:
    """A question of the VQA format after solved ones of the same kind about pictures of the training split."""
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


# === What is right ===


def score_items(item: Item, answer: Sequence[Segment]) -> dict[str, Count]:
    """Counts of one answer under the names of the table above; a raw reference's opening tag may be left out."""
    right = Count(int(same_text(answer, item.answer)), 1)
    wanted = [segment for segment in item.answer if isinstance(segment, Box | Quad)]
    if item.kind == "grounded_caption":
        hits = _found(answer, item.answer, need_overlap=True)
        plain = Count(int(_plain(answer) == _plain(item.answer)), 1)
        return {"grounded_caption": plain, "grounded_boxes": Count(hits, len(wanted))}
    if item.kind == "ocr":
        if not wanted:
            return {"ocr_no_text": right}
        words = _found(answer, item.answer, need_overlap=False)
        quads = _found(answer, item.answer, need_overlap=True)
        return {"ocr": Count(words, len(wanted)), "ocr_quads": Count(quads, len(wanted))}
    if wanted:  # refer, and "Find ..." about two pictures
        first = next((segment for segment in answer if isinstance(segment, Box)), None)
        return {item.kind: Count(int(first is not None and overlap(first, wanted[0]) >= THRESHOLD), 1)}
    return {item.kind: right}


def same_text(answer: Sequence[Segment], truth: Sequence[Segment]) -> bool:
    """Equal as spelled, up to white space."""
    return _squeezed(spell(answer)) == _squeezed(spell(truth))


def overlap(one: Box | Quad, other: Box | Quad) -> float:
    """Intersection over union, of a quad's upright extent; 0 if both are empty."""
    value = float(iou(_extent(one), _extent(other))[0])
    return value if value == value else 0.0


def _extent(shape: Box | Quad) -> np.ndarray:
    if isinstance(shape, Box):
        return np.asarray([[shape.x1, shape.y1, shape.x2, shape.y2]], np.float32)
    xs, ys = zip(*shape.points, strict=True)
    return np.asarray([[min(xs), min(ys), max(xs), max(ys)]], np.float32)


def _found(answer: Sequence[Segment], truth: Sequence[Segment], *, need_overlap: bool) -> int:
    """How many labelled shapes of the truth the answer has: same label and, if needed, IoU at least 0.5.

    Each shape of the answer counts once.
    """
    left = _labelled(answer)
    hits = 0
    for wanted in _labelled(truth):
        for said in left:
            same = said.label == wanted.label
            if same and (not need_overlap or overlap(said, wanted) >= THRESHOLD):
                left.remove(said)
                hits += 1
                break
    return hits


def _labelled(segments: Sequence[Segment]) -> list[Box | Quad]:
    """The shapes with the phrases before them, spelled and read again so that both sides are labelled alike."""
    return [segment for segment in parse(spell(segments)) if isinstance(segment, Box | Quad)]


def _plain(segments: Sequence[Segment]) -> str:
    return _squeezed("".join(segment.text for segment in segments if isinstance(segment, Text | Ref)))


def _squeezed(text: str) -> str:
    return " ".join(text.split())


# === Without looking ===


class Blind:
    """The baseline that sees no picture: the most frequent training answer to the same prompt, else to the kind."""

    def __init__(self, seed: int, prompt_format: str, scenes: int = 4000) -> None:
        """Learns from the questions about so many scenes of the split "train"."""
        by_prompt: dict[tuple[str, str], Counter[tuple[Segment, ...]]] = {}
        by_kind: dict[str, Counter[tuple[Segment, ...]]] = {}
        for number in range(scenes):
            for item in items(scene_of(seed, number), number, seed, prompt_format):
                by_prompt.setdefault((item.kind, spell(item.prompt)), Counter())[item.answer] += 1
                by_kind.setdefault(item.kind, Counter())[item.answer] += 1
        self._by_prompt = {key: answers.most_common(1)[0][0] for key, answers in by_prompt.items()}
        self._by_kind = {kind: answers.most_common(1)[0][0] for kind, answers in by_kind.items()}

    def answer(self, item: Item) -> tuple[Segment, ...]:
        """Its answer; of several options the first, if the answer is none of them."""
        said = self._by_prompt.get((item.kind, spell(item.prompt))) or self._by_kind.get(item.kind, ())
        if item.options and spell(said) not in item.options:
            return (Text(item.options[0]),)
        return said
