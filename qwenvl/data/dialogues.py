"""Dialogues for stage 3 (paper 3.3): by joining annotations, and by asking a language model to write them.

The paper names three sources and no numbers: self-instruction by an LLM (one picture), and "strategy concatenation" for
what an LLM does not know, where things are and several pictures at once. Joining needs no model: every answer is an
annotation. Self-instruction talks to any OpenAI-compatible server; its dry run shows what would be sent.
"""

import json
import random
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from qwenvl.data.records import (
    Caption,
    Dialogue,
    GroundedCaption,
    Question,
    Record,
    Referring,
    Skipped,
    pictures,
)
from qwenvl.markup import Image, Ref, Segment, Text, Turn, spell

# === Joining annotations ===

_WHERE = ("Where is {}?", "Please find {} in the picture.", "Frame the location of {}.", "框出图中{}的位置")
_WHAT = ("What is in this region?", "Describe this region.", "这个区域里是什么？")


def localisation(phrases: Sequence[Referring], seed: int) -> Dialogue:
    """Turns that ask where things are and what is somewhere; raises ValueError unless all is about one picture."""
    if not phrases or len({phrase.image for phrase in phrases}) > 1:
        raise ValueError("a localisation dialogue needs one or more phrases of one picture.")
    rng = random.Random(f"localisation {seed}")
    turns: list[Turn] = []
    for number, found in enumerate(phrases):
        opening: tuple[Segment, ...] = () if number else (found.image,)
        boxes = tuple(replace(box, label=None) for box in found.boxes)
        if rng.random() < 0.5 or len(boxes) > 1:
            question = rng.choice(_WHERE).format(found.phrase)
            turns += [
                Turn("user", (*opening, Text(question))),
                Turn("assistant", (Ref(found.phrase), *boxes)),
            ]
        else:
            asked = (*opening, Text(rng.choice(_WHAT)), *boxes)
            turns += [Turn("user", asked), Turn("assistant", (Text(_sentence(found.phrase)),))]
    return Dialogue(turns=tuple(turns), source="localisation")


def several_pictures(records: Sequence[Caption | Question], seed: int) -> Dialogue:
    """Turns about two pictures or more that say which one is meant: "In Picture 2, ..."; raises ValueError for one."""
    shown = list(dict.fromkeys(record.image for record in records))
    if len(shown) < 2:
        raise ValueError("a dialogue about several pictures needs records of two pictures at least.")
    rng = random.Random(f"several pictures {seed}")
    asked = list(records)
    rng.shuffle(asked)
    turns: list[Turn] = []
    for record in asked:
        number = shown.index(record.image) + 1
        opening: tuple[Segment, ...] = () if turns else tuple(shown)
        if isinstance(record, Question):
            question = f"In Picture {number}, {record.question[:1].lower()}{record.question[1:]}"
            answer = _sentence(record.answer)
        elif record.language == "zh":
            question, answer = f"第{number}张图片里有什么？", record.text
        else:
            question, answer = f"What does Picture {number} show?", _sentence(record.text)
        turns += [Turn("user", (*opening, Text(question))), Turn("assistant", (Text(answer),))]
    return Dialogue(turns=tuple(turns), source="several pictures")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "。")) else f"{text[:1].upper()}{text[1:]}."


# === Self-instruction ===

INSTRUCTION = """You write training dialogues about a picture that you cannot see. What is known of it stands below:
captions, and things with their boxes (left, top, right, bottom in thousandths of the sides). Write {turns} questions
that a person who sees the picture might ask, with answers that follow from what is known and from nothing else. Write
in {language}. Reply with a JSON list of objects {{"question": ..., "answer": ...}} and nothing else."""

Ask: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""A chat completion request to its response, in OpenAI's form."""


def request(
    known: Sequence[Record], model: str, *, turns: int = 3, language: str = "English", seed: int = 0
) -> dict[str, Any]:
    """The chat completion that asks for a dialogue about one picture; raises ValueError if nothing is known of it."""
    facts = [fact for record in known for fact in _facts(record)]
    if not facts or len({image for record in known for image in pictures(record)}) != 1:
        raise ValueError("self-instruction needs captions, questions or phrases of exactly one picture.")
    messages = [
        {"role": "system", "content": INSTRUCTION.format(turns=turns, language=language)},
        {"role": "user", "content": "\n".join(facts)},
    ]
    return {"model": model, "messages": messages, "temperature": 0.7, "seed": seed}


def _facts(record: Record) -> Iterator[str]:
    match record:
        case Caption():
            yield f"caption: {record.text}"
        case Question():
            yield f"question: {record.question} answer: {record.answer}"
        case GroundedCaption():
            yield f"caption with boxes: {spell(record.caption)}"
        case Referring():
            corners = "; ".join(f"{b.x1},{b.y1},{b.x2},{b.y2}" for b in record.boxes)
            yield f"thing: {record.phrase} at {corners}"


def server(url: str, key: str | None = None, timeout: int | float = 120) -> Ask:
    """Any OpenAI-compatible server; `url` is that of its API, such as http://localhost:8000/v1. Raises ValueError."""

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        call = urllib.request.Request(
            f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(call, timeout=timeout) as reply:
                return json.loads(reply.read())
        except (OSError, ValueError) as error:
            raise ValueError(f"the server at {url} did not answer ({error}).") from None

    return ask


def dialogue_of(response: dict[str, Any], image: Image, key: str) -> Dialogue | Skipped:
    """The dialogue in a response, or why there is none: what a model writes is never trusted to be in form.

    Its text is only ever text: a tag it writes does not become markup.
    """
    try:
        written = response["choices"][0]["message"]["content"]
        listed = json.loads(written[written.index("[") : written.rindex("]") + 1])
        pairs = [(str(each["question"]).strip(), str(each["answer"]).strip()) for each in listed]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return Skipped(key=key, kind="reply not in form", detail=str(error)[:200], source="self-instruction")
    if not pairs or not all(question and answer for question, answer in pairs):
        return Skipped(key=key, kind="empty reply", source="self-instruction")
    if any(tag in text for pair in pairs for text in pair for tag in ("<ref", "<box", "<quad", "<img", "<|")):
        return Skipped(key=key, kind="reply spells a tag", source="self-instruction")
    turns: list[Turn] = []
    for number, (question, answer) in enumerate(pairs):
        opening: tuple[Segment, ...] = () if number else (image,)
        turns += [Turn("user", (*opening, Text(question))), Turn("assistant", (Text(answer),))]
    return Dialogue(turns=tuple(turns), source="self-instruction")


def self_instruct(
    groups: Iterable[Sequence[Record]], ask: Ask | None, model: str, **options: Any
) -> Iterator[Dialogue | Skipped | dict[str, Any]]:
    """For each picture its dialogue or a reason; without `ask` (the dry run) the request that would be sent."""
    for number, known in enumerate(groups):
        try:
            body = request(known, model, seed=number, **options)
        except ValueError as error:
            yield Skipped(
                key=str(number),
                kind="nothing known of the picture",
                detail=str(error),
                source="self-instruction",
            )
            continue
        if ask is None:
            yield body
            continue
        try:
            yield dialogue_of(ask(body), pictures(known[0])[0], str(number))
        except ValueError as error:
            yield Skipped(
                key=str(number), kind="no reply", detail=str(error)[:200], source="self-instruction"
            )
