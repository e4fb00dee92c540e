"""Tasks over the toy world in the formats of the paper's Appendix B (Box B.1), and scenes as plain text.

A prompt has no image in it: put `Image(render(scene))` before it, or the text of `scene_text` to train a language
model before it has eyes. Prompts end without a space and answers begin with one, as in the official scripts; taking
the tags out of a grounded caption gives back the plain caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl.data.toy.questions import ASK, described, refer
from qwenvl.data.toy.worlds import Dice, Item, Scene, Sign
from qwenvl.markup import Box, Quad, Ref, Segment, Text

CAPTION = "Generate the caption in English:"
GROUNDED_CAPTION = "Generate the caption in English with grounding:"
OCR = "OCR with grounding:"

QUESTION_KINDS = tuple(ASK)
"""Kinds of format 2 (VQA)."""
KINDS = ("caption", "grounded_caption", "refer", "describe", "ocr", *QUESTION_KINDS)


@dataclass(frozen=True)
class Task:
    """One prompt (not learned, no image in it) and its answer (learned)."""

    kind: str
    prompt: tuple[Segment, ...]
    answer: tuple[Segment, ...]


def tasks(scene: Scene, seed: int, *, kinds: Sequence[str] = KINDS, limit: int | None = None) -> list[Task]:
    """Up to `limit` tasks of the given kinds in random order, each prompt once.

    One task per entry of `kinds`, which may name a kind twice; kinds that the scene does not support are left out.
    The same (scene, seed, kinds) gives the same tasks. Raises ValueError for an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(
            f"unknown kinds of toy tasks {sorted(unknown)}; expected some of {', '.join(KINDS)}."
        )
    dice = Dice(scene.name, "tasks", seed)
    order = list(kinds)
    dice.shuffle(order)
    chosen: dict[tuple[Segment, ...], Task] = {}
    for kind in order:
        if limit is not None and len(chosen) >= limit:
            break
        if task := _task(kind, scene, dice):
            chosen.setdefault(task.prompt, task)
    return list(chosen.values())


def _task(kind: str, scene: Scene, dice: Dice) -> Task | None:
    if kind in ASK:
        question = ASK[kind](scene, dice)
        if question is None:
            return None
        return Task(kind, (Text(f" {question.text} Answer:"),), (Text(f" {question.answer}"),))
    if kind == "caption":
        return Task(kind, (Text(CAPTION),), (Text(caption(scene)),))
    if kind == "grounded_caption":
        return Task(kind, (Text(GROUNDED_CAPTION),), grounded_caption(scene))
    if kind == "ocr":
        return Task(kind, (Text(OCR),), ocr(scene))
    item = dice.pick(scene.items)
    if kind == "refer":
        return Task(kind, (Ref(refer(scene, item, dice)),), (box(item),))
    return Task(kind, (Ref("This"), box(item), Text(" is")), (Text(f" {described(item)}"),))


def caption(scene: Scene) -> str:
    """All items from left to right: " a small red circle, a large blue star and the word LUMO"."""
    return "".join(joint + phrase for joint, phrase in _phrases(scene))


def grounded_caption(scene: Scene) -> tuple[Segment, ...]:
    """The caption with a box after each phrase; phrases carry their leading space (paper 2.1)."""
    segments: list[Segment] = []
    for (joint, phrase), item in zip(_phrases(scene), scene.items, strict=True):
        segments += [Text(joint)] * bool(joint) + [Ref(phrase), box(item)]
    return tuple(segments)


def _phrases(scene: Scene) -> list[tuple[str, str]]:
    """What joins each phrase to the one before, and the phrase."""
    phrases = [f" {described(item)}" for item in scene.items]
    joints = ["", *[","] * (len(phrases) - 2), *[" and"] * (len(phrases) > 1)]
    return list(zip(joints, phrases, strict=True))


def ocr(scene: Scene) -> tuple[Segment, ...]:
    """Each sign with its four corners, from left to right, or " no text"."""
    signs = [item for item in scene.items if isinstance(item, Sign)]
    segments = tuple(segment for sign in signs for segment in (Ref(f" {sign.text}"), Quad(sign.quad)))
    return segments or (Text(" no text"),)


def box(item: Item) -> Box:
    """The box of a thing or a sign as markup."""
    return Box(*item.box)


def scene_text(scene: Scene, seed: int) -> str:
    """The scene in words, in random order, to stand where the image would.

    "large blue star (120,340),(300,520); word L U M O (..." and a full stop; half of the signs are spelled out.
    """
    dice = Dice(scene.name, "text", seed)
    items = list(scene.items)
    dice.shuffle(items)
    return "; ".join(_noted(item, dice) for item in items) + "."


def things_text(scene: Scene) -> str:
    """What is in the scene, from left to right, and nothing of where: "large blue star; word LUMO."."""
    return "; ".join(map(_name, scene.items)) + "."


def _name(item: Item) -> str:
    """The description without its article: "large blue star", "word LUMO"."""
    return described(item).split(" ", 1)[1]


def _noted(item: Item, dice: Dice) -> str:
    x1, y1, x2, y2 = item.box
    name = _name(item)
    if isinstance(item, Sign) and dice.chance(0.5):
        name = name.replace(item.text, " ".join(item.text))
    return f"{name} ({x1},{y1}),({x2},{y2})"
