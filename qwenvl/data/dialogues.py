"""Dialogues for stage 3 (paper 3.3): by joining annotations, and by asking a language model to write them.

The paper names three sources and no numbers: self-instruction by an LLM (one image), and "strategy concatenation" for
what an LLM does not know, where things are and several images at once. Joining needs no model: every answer is an
annotation. Self-instruction talks to any OpenAI-compatible server; its dry run shows what would be sent, and no reply
is paid for twice. `qwenvl data dialogues` is all three.
"""

import hashlib
import json
import random
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from qwenvl.data.clean.characters import HAN
from qwenvl.data.columns import text_of
from qwenvl.data.records import (
    Caption,
    Dialogue,
    GroundedCaption,
    Question,
    Record,
    Referring,
    Skipped,
    images,
)
from qwenvl.data.shards import dump
from qwenvl.files import atomic
from qwenvl.markup import Image, Ref, Segment, Text, Turn, spell
from qwenvl.parsing import MAX_LINE, parse_json, read_json

# === Joining annotations ===

_WHERE = ("Where is {}?", "Please find {} in the picture.", "Frame the location of {}.")
_WHAT = ("What is in this region?", "Describe this region.")
_WHERE_ZH, _WHAT_ZH = ("{}在哪里？", "框出图中{}的位置"), ("这个区域里是什么？", "描述一下这个区域。")


def by_image(records: Iterable[Record]) -> Mapping[Image, list[Record]]:
    """Records of exactly one image, together by it, in the order of their first."""
    groups: dict[Image, list[Record]] = {}
    for record in records:
        if len(shown := images(record)) == 1:
            groups.setdefault(shown[0], []).append(record)
    return groups


def localisations(
    groups: Mapping[Image, Sequence[Record]], questions: int, seed: int = 0
) -> Iterator[Dialogue]:
    """A dialogue for every image with phrases, about `questions` of them at most, drawn by the seed."""
    for number, known in enumerate(groups.values()):
        phrases = [record for record in known if isinstance(record, Referring)]
        if phrases:
            rng = random.Random(f"localisations {seed} {number}")
            yield localisation(rng.sample(phrases, min(questions, len(phrases))), seed=seed + number)


def comparisons(
    groups: Mapping[Image, Sequence[Record]], together: int, questions: int, seed: int = 0
) -> Iterator[Dialogue]:
    """Dialogues about `together` images each, with one to `questions` questions for every image.

    Images without a caption or question are left out, and so are the last ones that do not fill a dialogue. Each
    image is in one dialogue. Raises ValueError for fewer than two images together.
    """
    if together < 2:
        raise ValueError(f"{together} images in a dialogue; expected 2 at least.")
    rng = random.Random(f"comparisons {seed}")
    found = [[r for r in known if isinstance(r, Caption | Question)] for known in groups.values()]
    usable = [known for known in found if known]
    rng.shuffle(usable)
    for number in range(len(usable) // together):
        chosen = usable[number * together : (number + 1) * together]
        asked = [r for known in chosen for r in rng.sample(known, min(questions, len(known)))]
        yield several_images(asked, seed=seed + number)


def localisation(phrases: Sequence[Referring], seed: int) -> Dialogue:
    """Turns that ask where things are and what is somewhere; raises ValueError unless all is about one image."""
    if not phrases or len({phrase.image for phrase in phrases}) > 1:
        raise ValueError("a localisation dialogue needs one or more phrases of one image.")
    rng = random.Random(f"localisation {seed}")
    turns: list[Turn] = []
    for number, found in enumerate(phrases):
        opening: tuple[Segment, ...] = () if number else (found.image,)
        boxes = tuple(replace(box, label=None) for box in found.boxes)
        where, what = (_WHERE_ZH, _WHAT_ZH) if HAN.search(found.phrase) else (_WHERE, _WHAT)
        if rng.random() < 0.5 or len(boxes) > 1:
            question = rng.choice(where).format(found.phrase)
            turns += [
                Turn("user", (*opening, Text(question))),
                Turn("assistant", (Ref(found.phrase), *boxes)),
            ]
        else:
            asked = (*opening, Text(rng.choice(what)), *boxes)
            turns += [Turn("user", asked), Turn("assistant", (Text(_sentence(found.phrase)),))]
    return Dialogue(turns=tuple(turns), source="localisation")


def several_images(records: Sequence[Caption | Question], seed: int) -> Dialogue:
    """Turns about two images or more that say which one is meant: "In Picture 2, ..."; raises ValueError for one."""
    shown = list(dict.fromkeys(record.image for record in records))
    if len(shown) < 2:
        raise ValueError("a dialogue about several images needs records of two images at least.")
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
            question, answer = f"第{number}张图片里有什么？", _sentence(record.text)
        else:
            question, answer = f"What does Picture {number} show?", _sentence(record.text)
        turns += [Turn("user", (*opening, Text(question))), Turn("assistant", (Text(answer),))]
    return Dialogue(turns=tuple(turns), source="several images")


def _sentence(text: str) -> str:
    if text.endswith((".", "!", "?", "。", "！", "？")):
        return text
    return f"{text}。" if HAN.search(text) else f"{text[:1].upper()}{text[1:]}."


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
    """The chat completion that asks for a dialogue about one image; raises ValueError if nothing is known of it."""
    facts = [fact for record in known for fact in _facts(record)]
    if not facts or len({image for record in known for image in images(record)}) != 1:
        raise ValueError("self-instruction needs captions, questions or phrases of exactly one image.")
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
                return parse_json(reply.read(MAX_LINE), "its reply")
        except (OSError, ValueError) as error:
            raise ValueError(f"the server at {url} did not answer ({error}).") from None

    return ask


def dialogue_of(response: dict[str, Any], image: Image, key: str) -> Dialogue | Skipped:
    """The dialogue in a response, or why there is none: what a model writes is never trusted to be in form.

    Its text is only ever text: a tag it writes does not become markup.
    """
    try:
        written = response["choices"][0]["message"]["content"]
        listed = parse_json(written[written.index("[") : written.rindex("]") + 1], "the reply")
        pairs = [
            ((text_of(q["question"]) or "").strip(), (text_of(q["answer"]) or "").strip()) for q in listed
        ]
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
    groups: Iterable[Sequence[Record]], ask: Ask | None, model: str, *, at_once: int = 1, **options: Any
) -> Iterator[Dialogue | Skipped | dict[str, Any]]:
    """For each image its dialogue or a reason, in order; without `ask` (the dry run) the request that would be sent.

    `at_once` requests are under way at a time. `options` are those of `request`.
    """

    def one(place: tuple[int, Sequence[Record]]) -> Dialogue | Skipped | dict[str, Any]:
        number, known = place
        try:
            body = request(known, model, seed=number, **options)
        except ValueError as error:
            return _skipped(number, "nothing known of the image", error)
        if ask is None:
            return body
        try:
            return dialogue_of(ask(body), images(known[0])[0], str(number))
        except ValueError as error:
            return _skipped(number, "no reply", error)

    waiting = enumerate(groups)
    with ThreadPoolExecutor(at_once) as threads:
        while batch := list(islice(waiting, 16 * at_once)):
            yield from threads.map(one, batch)


def _skipped(number: int, kind: str, error: ValueError) -> Skipped:
    return Skipped(key=str(number), kind=kind, detail=str(error)[:200], source="self-instruction")


def remembered(ask: Ask, folder: Path) -> Ask:
    """The same, but every reply is kept in `folder` under a digest of its request, and no request is made twice."""

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        path = folder / f"{hashlib.blake2b(dump(body), digest_size=16).hexdigest()}.json"
        if path.exists():
            return read_json(path)
        reply = ask(body)
        with atomic(path, durable=False) as file:
            file.write(dump(reply))
        return reply

    return answer
