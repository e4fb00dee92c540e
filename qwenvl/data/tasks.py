"""Records to training formats and back (Box B.1, ChatML): prompt without loss, answer with loss.

    caption            <img>..</img>Generate the caption in English:| a dog on a beach<eos>
    question           <img>..</img> What is this? Answer:| a dog<eos>
    grounded_caption   <img>..</img>Generate the caption in English with grounding:|<ref> a dog</ref><box>..<eos>
    refer              <img>..</img><ref>a dog</ref>|<box>..</box><eos>
    describe           <img>..</img><ref>This</ref><box>..</box> is| a dog<eos>
    ocr                <img>..</img>OCR with grounding:|<ref> line</ref><quad>..</quad>..<eos>
    text               |anything<eos>
    dialogue           ChatML

A prompt ends without a space and an English answer begins with one, as in the official scripts; Chinese has no such
space. `refer` and `describe` are made from the same record: the paper's dual tasks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, groupby
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

from qwenvl.data.formats import Example, example, task
from qwenvl.data.records import (
    Caption,
    Dialogue,
    GroundedCaption,
    Language,
    OcrPage,
    PlainText,
    Question,
    Record,
    Referring,
)
from qwenvl.markup import (
    SYSTEM,
    Box,
    Image,
    Quad,
    Ref,
    Segment,
    Text,
    Turn,
    control,
    number_images,
    parse,
    render,
    render_chat,
    segments_of,
)
from qwenvl.tokenizer import Tokenizer

Format: TypeAlias = Literal[
    "caption", "question", "grounded_caption", "refer", "describe", "ocr", "text", "dialogue"
]

PROMPTS: Mapping[str, Mapping[Language, str]] = MappingProxyType(
    {
        "caption": {"en": "Generate the caption in English:", "zh": "Generate the caption in Chinese:"},
        "grounded_caption": {
            "en": "Generate the caption in English with grounding:",
            "zh": "Generate the caption in Chinese with grounding:",
        },
        "ocr": {"en": "OCR with grounding:", "zh": "OCR with grounding:"},
    }
)
"""Prompts by the language of the caption. English ones are the paper's; it prints none for Chinese captions."""

PROMPTS_IN_CHINESE: Mapping[str, Mapping[Language, str]] = MappingProxyType(
    {
        "caption": {"en": "用英文描述这张图片：", "zh": "用中文描述这张图片："},
        "grounded_caption": {"en": "用英文描述这张图片并框出物体：", "zh": "用中文描述这张图片并框出物体："},
        "ocr": {"en": "识别并定位图中的文字：", "zh": "识别并定位图中的文字："},
    }
)
"""The same prompts asked in Chinese: ours, for users who want a model that is asked in Chinese."""

Kind = TypeVar("Kind")

_FORMATS: Mapping[type[Record], tuple[Format, ...]] = MappingProxyType(
    {
        Caption: ("caption",),
        Question: ("question",),
        GroundedCaption: ("grounded_caption",),
        Referring: ("refer", "describe"),
        OcrPage: ("ocr",),
        PlainText: ("text",),
        Dialogue: ("dialogue",),
    }
)


@dataclass(frozen=True)
class Task:
    """One training sample as objects: `prompt` (its image included) is not learned, `answer` is."""

    format: Format
    prompt: tuple[Segment, ...]
    answer: tuple[Segment, ...]


def formats_of(record: Record) -> tuple[Format, ...]:
    """The formats a record can be told in: one, or two for the dual tasks."""
    return _FORMATS[type(record)]


def task_of(
    record: Record, format: Format | None = None, prompts: Mapping[str, Mapping[Language, str]] = PROMPTS
) -> Task:
    """A record as prompt and answer; raises ValueError for a format that its kind does not have, and for dialogues."""
    format = format or formats_of(record)[0]
    if format not in formats_of(record) or isinstance(record, Dialogue):
        raise ValueError(
            f"a {type(record).__name__} cannot be told as {format!r}; it has {', '.join(formats_of(record))}."
        )
    match record:
        case Caption():
            prompt = (record.image, Text(prompts["caption"][record.language]))
            return Task(format, prompt, (_spaced(record.text, record.language),))
        case Question():
            return Task(
                format, (record.image, Text(f" {record.question} Answer:")), (Text(f" {record.answer}"),)
            )
        case GroundedCaption():
            return Task(format, (record.image, Text(prompts[format][record.language])), record.caption)
        case Referring() if format == "refer":
            return Task(format, (record.image, Ref(record.phrase)), record.boxes)
        case Referring():
            return Task(
                format, (record.image, Ref("This"), *record.boxes, Text(" is")), (Text(f" {record.phrase}"),)
            )
        case OcrPage():
            lines = [part for line in record.lines for part in (Ref(f" {line.label or ''}"), line)]
            return Task(format, (record.image, Text(prompts["ocr"]["en"])), tuple(lines))
        case PlainText():
            return Task(format, (), (Text(record.text),))
    raise AssertionError(record)


def _spaced(text: str, language: Language) -> Text:
    return Text(text if language == "zh" else f" {text}")


def example_of(
    record: Record,
    tokenizer: Tokenizer,
    queries: int,
    format: Format | None = None,
    prompts: Mapping[str, Mapping[Language, str]] = PROMPTS,
) -> Example:
    """A record as ids and labels, ready to be packed."""
    if isinstance(record, Dialogue):
        turns, system = number_images(record.turns), record.system or SYSTEM
        return example(render_chat(turns, tokenizer, queries, system=system, open_for_answer=False))
    message = task_of(record, format, prompts)
    if not message.prompt:
        end = control("<|endoftext|>", tokenizer=tokenizer, supervised=True)
        return example(render(message.answer, tokenizer, queries, supervised=True) + end)
    return example(task(message.prompt, message.answer, tokenizer, queries))


# === And back ===


def record_of(format: Format, prompt: str, answer: str, image: Image | None, source: str = "") -> Record:
    """The record that a sample was made from, out of its decoded text (without the image and the final `<eos>`).

    Raises ValueError where the text is not of that format: what trains the model must be what the annotator meant.
    """
    if format == "text":
        return PlainText(text=answer, source=source)
    if image is None:
        raise ValueError(f"a sample of the format {format!r} needs its image.")
    segments = parse(answer)
    match format:
        case "caption":
            language = _language(prompt, "caption")
            return Caption(image=image, text=answer.removeprefix(" "), language=language, source=source)
        case "question":
            question = prompt.removeprefix(" ").removesuffix(" Answer:")
            return Question(image=image, question=question, answer=answer.removeprefix(" "), source=source)
        case "grounded_caption":
            language = _language(prompt, format)
            return GroundedCaption(image=image, caption=tuple(segments), language=language, source=source)
        case "refer":
            (phrase,) = _only(parse(prompt), Ref, "one phrase")
            boxes = tuple(replace(box, label=None) for box in _only(segments, Box, "boxes"))
            return Referring(image=image, phrase=phrase.text, boxes=boxes, source=source)
        case "describe":
            shown = [part for part in parse(prompt) if isinstance(part, Box)]
            boxes = tuple(replace(box, label=None) for box in shown)
            return Referring(image=image, phrase=answer.removeprefix(" "), boxes=boxes, source=source)
        case "ocr":
            return OcrPage(image=image, lines=tuple(_lines(segments)), source=source)
    raise ValueError(f"no record can be read from the format {format!r}.")


def dialogue_of(
    ids: Sequence[int], images: Sequence[Image], tokenizer: Tokenizer, source: str = ""
) -> Dialogue:
    """The dialogue that ids of ChatML were made from, its images given in order; the system's turn is left out.

    Raises ValueError for ids that are no ChatML. A text that spells `<box>` comes back as a box: its ids are other
    ones, but its letters are the same.
    """
    openings: dict[Literal["system", "user", "assistant"], list[int]] = {
        role: [tokenizer.im_start, *tokenizer.encode(role), *tokenizer.encode("\n")]
        for role in ("system", "user", "assistant")
    }
    closing = [tokenizer.im_end, *tokenizer.encode("\n")]
    turns: list[Turn] = []
    waiting, numbers = iter(images), count(1)
    place, ids = 0, list(ids)
    while place < len(ids):
        role = next((role for role, o in openings.items() if ids[place : place + len(o)] == o), None)
        if role is None or tokenizer.im_end not in ids[place:]:
            raise ValueError(
                f"no turn begins at token {place}; expected ChatML: <|im_start|>, a role, a newline."
            )
        stop = ids.index(tokenizer.im_end, place)
        said = ids[place + len(openings[role]) : stop]
        if role != "system":
            turns.append(Turn(role, tuple(_said(said, waiting, numbers, tokenizer))))
        place = stop + len(closing)
    return Dialogue(turns=tuple(turns), source=source)


def _said(
    ids: Sequence[int], images: Iterator[Image], numbers: Iterator[int], tokenizer: Tokenizer
) -> list[Segment]:
    """The content of a turn; an image loses its number and the newline behind it."""
    parts: list[Segment | str] = []
    text, behind = "", ""
    for kind, run in groupby(
        ids, lambda token: token in (tokenizer.img, tokenizer.imgpad, tokenizer.img_end)
    ):
        if not kind:
            text = tokenizer.decode(run).removeprefix(behind)
            continue
        for _ in range(list(run).count(tokenizer.img)):
            parts += [*parse(text.removesuffix(f"Picture {next(numbers)}: ")), next(images)]
            text, behind = "", "\n"
    return segments_of([*parts, *parse(text)])


def _language(prompt: str, name: str) -> Language:
    for prompts in (PROMPTS, PROMPTS_IN_CHINESE):
        for language, text in prompts[name].items():
            if prompt == text:
                return language
    raise ValueError(f"the prompt {prompt!r} is none of the format {name!r}.")


def _only(segments: Sequence[Segment], kind: type[Kind], what: str) -> list[Kind]:
    found: list[Kind] = [segment for segment in segments if isinstance(segment, kind)]
    if len(found) != len(segments) or not found:
        raise ValueError(f"expected {what}, got {segments!r}.")
    return found


def _lines(segments: Sequence[Segment]) -> list[Quad]:
    if len(segments) % 2 or not all(
        isinstance(part, Quad if place % 2 else Ref) for place, part in enumerate(segments)
    ):
        raise ValueError("expected a text and a quad in turn.")
    texts = [part.text.removeprefix(" ") for part in segments[::2] if isinstance(part, Ref)]
    quads = [part for part in segments[1::2] if isinstance(part, Quad)]
    return [replace(quad, label=text) for quad, text in zip(quads, texts, strict=True)]
