"""Dialogues as other people's files have them, read as objects: the official fine-tuning JSON and its relatives.

    conversations  from, value      <img>path</img> in the value (official), or <image> and images beside it (LLaVA)
    messages       role, content    a text, or parts of type text and image (OpenAI, TRL)
    prompt, completion              the same in two lists, of which the second is learned (TRL), or two texts
    texts          user, assistant  about the images beside it (the Cauldron)
    query, response                 with `history`, pairs of what was said before (ms-swift); `instruction`, `input`,
                                    `output` likewise (LLaMA-Factory)

Values become objects here and nowhere else: images, phrases and boxes by their tags, everything else is text,
`<|im_start|>` included (the official script lets data write control symbols). What is learned is what the official
script learns: control symbols, answers and the newline behind a turn; roles, questions and system are not, nor is a
turn that says `"loss": false` or `"weight": 0`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from qwenvl.data.columns import is_empty
from qwenvl.data.faults import Unusable, box_fault, foreign_marks
from qwenvl.data.records import Dialogue
from qwenvl.markup import Image, Segment, Text, Turn, number_images, parse_trusted
from qwenvl.parsing import parse_json

ROLES: Mapping[str, str] = MappingProxyType(
    {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
)
"""Who speaks, in small letters -> the role; `human` and `gpt` are LLaVA's names."""

MESSAGES = ("conversations", "messages", "conversation")
"""Columns that hold a list of messages."""

ASKED: Mapping[str, str] = MappingProxyType(
    {"query": "response", "instruction": "output", "prompt": "completion"}
)
"""Column of a question -> column of its answer."""

MARK = "<image>"
"""Where an image stands that is given beside the text."""

NUMBERED = re.compile(r"Picture\s*(\d{1,9})\s*:\s*$", re.IGNORECASE)
"""The number of an image, at the end of the text before it."""

_SPEAKER, _SAID = ("from", "role"), ("value", "content", "text")
_LOSS = ("loss", "weight", "train")
_AROUND_MARK = re.compile(rf"{MARK}[ \t]*(?:\r?\n)?")


@dataclass(frozen=True)
class _Mark:
    """An image to be numbered: named in its message, or one of those beside the text."""

    source: str | None = None


@dataclass(frozen=True)
class _Message:
    role: str
    parts: tuple[Segment | _Mark, ...]
    loss: bool = True


class _Layout(NamedTuple):
    messages: list[_Message]
    in_front: bool
    """Images beside a text without marks stand before the first question."""


def dialogue_of(columns: dict[str, Any], offered: Sequence[str]) -> Dialogue | None:
    """The dialogue in the columns of a sample, as it is rendered: images numbered unless its text does that by tags.

    `offered` names the images beside the text. Columns that are read leave `columns`; None where there is no dialogue.
    Raises Unusable for one of another form.
    """
    found = _messages(columns)
    if found is None:
        return None
    messages = found.messages
    system = columns.pop("system", None)
    if system is not None and not isinstance(system, str):
        raise Unusable("form", f"the system message is a {type(system).__name__}; expected a text.")
    if messages and messages[0].role == "system":
        first = messages.pop(0)
        said = "".join(part.text for part in first.parts if isinstance(part, Text))
        if [*first.parts] not in ([Text(said)], []) or system not in (None, said):
            raise Unusable("form", "the system message holds more than a text, or there are two.")
        system = said
    _require_turns(messages)
    return Dialogue(turns=_with_images(messages, offered, found.in_front), system=system or "")


# === Messages out of columns ===


def _messages(columns: dict[str, Any]) -> _Layout | None:
    """The messages of whatever layout the columns have, which lose them; None where there are none."""
    if (name := next((name for name in MESSAGES if name in columns), None)) is not None:
        said = columns.pop(name)
        if isinstance(said, str):  # a list that the hub keeps as text
            said = _list_in(said, name)
        if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
            raise Unusable("form", f"`{name}` is no list of messages.")
        columns.update({f"{name}[].{key}": each[key] for each in said for key in {*each} - _READ_IN_TURN})
        return _Layout([_message(each) for each in said], in_front=name == "messages")
    texts = columns.get("texts")
    if isinstance(texts, list) and texts and all(isinstance(each, dict) for each in texts):
        del columns["texts"]
        pairs = [(each.get("user"), each.get("assistant")) for each in texts]
        return _Layout([turn for pair in pairs for turn in _pair(*pair)], in_front=True)
    for question, answer in ASKED.items():
        if question in columns and answer in columns:
            asked, answered, more = columns.pop(question), columns.pop(answer), columns.pop("input", None)
            if _are_messages(asked) and _are_messages(answered):  # TRL: what is learned is the completion
                given = [replace(_message(each), loss=False) for each in asked]
                return _Layout([*given, *map(_message, answered)], in_front=True)
            if more is not None and not (isinstance(asked, str) and isinstance(more, str)):
                raise Unusable("form", f"`input` is a {type(more).__name__}; expected a text beside a text.")
            asked = asked if more is None else f"{asked}\n{more}"
            before = columns.pop("history", [])
            if not isinstance(before, list) or not all(isinstance(b, list) and len(b) == 2 for b in before):
                raise Unusable("form", "`history` is no list of pairs of a question and an answer.")
            pairs = [*before, (asked, answered)]
            return _Layout([turn for pair in pairs for turn in _pair(*pair)], in_front=True)
    return None


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _list_in(text: str, name: str) -> Any:
    try:
        return parse_json(text, f"`{name}`")
    except ValueError as error:
        raise Unusable("form", str(error)) from None


def _pair(question: Any, answer: Any) -> Iterator[_Message]:
    yield _message({"role": "user", "content": question})
    yield _message({"role": "assistant", "content": answer})


def _message(values: Mapping[str, Any]) -> _Message:
    speaker, said = _only(values, _SPEAKER), _only(values, _SAID)
    role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        if isinstance(speaker, str) and speaker.lower() in (
            "tool",
            "function",
            "function_call",
            "observation",
        ):
            raise Unusable(
                "unused content", f"a message is from {speaker!r}; tools have no place in a dialogue."
            )
        raise Unusable("form", f"a message is from {speaker!r}; expected 'user' or 'assistant'.")
    if isinstance(said, list):
        parts = [part for each in said for part in _part(each, role)]
    elif isinstance(said, str):
        parts = _parts(said, role)
    else:
        raise Unusable("form", f"a message of the {role} is a {type(said).__name__}; expected a text.")
    return _Message(role, tuple(parts), _loss(values))


_READ_IN_TURN = {*_SPEAKER, *_SAID, *_LOSS}


def _only(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    """What stands under one of the names. Raises Unusable where it is told twice, and otherwise."""
    given = {name: values[name] for name in names if not is_empty(values.get(name))}
    first = next(iter(given.values()), None)
    if any(each != first for each in given.values()):
        raise Unusable("form", f"a message has {' and '.join(f'`{name}`' for name in given)}, which differ.")
    return (
        next((values[name] for name in names if values.get(name) is not None), None)
        if first is None
        else first
    )


def _loss(values: Mapping[str, Any]) -> bool:
    """Whether a turn is learned. Raises Unusable for a weight between."""
    given = [values[name] for name in _LOSS if values.get(name) is not None]
    if odd := [each for each in given if each not in (0, 1)]:
        raise Unusable("unused content", f"a message weighs {odd[0]!r}; a turn is learned (1) or not (0).")
    return all(given)


def _parts(text: str, role: str) -> list[Segment | _Mark]:
    """A text by its tags and marks. Raises Unusable for broken or foreign ones."""
    if fault := foreign_marks(text, role):
        raise fault
    parts: list[Segment | _Mark] = []
    for number, piece in enumerate(_AROUND_MARK.split(text)):
        parts += [_Mark()] if number else []
        if fault := box_fault(piece):
            raise fault
        try:
            parts += parse_trusted(piece)
        except ValueError as error:
            raise Unusable("broken markup", str(error)) from None
    return parts


def _part(value: Any, role: str) -> list[Segment | _Mark]:
    """One part of a message's content: a text or an image, named here or given beside."""
    if isinstance(value, str):
        return _parts(value, role)
    held = {name for name, each in value.items() if not is_empty(each)} if isinstance(value, dict) else set()
    kind = value.get("type") if isinstance(value, dict) else None
    kind = kind or ("text" if "text" in held else "image" if held & {*_SOURCES} else None)
    if kind in ("text", "image", "image_url") and "text" in held and held & {*_SOURCES}:
        raise Unusable(
            "unused content", "a part of a message holds a text and an image; give each its own part."
        )
    if kind == "text" and isinstance(value.get("text"), str):
        return _parts(value["text"], role)
    if kind not in ("image", "image_url"):
        what = f"of type {kind!r}" if isinstance(kind, str) else f"that is a {type(value).__name__}"
        raise Unusable("unused content", f"a message holds a part {what}; text and images are read.")
    return [_Mark(_source(value, held))]


_SOURCES = ("image", "path", "url", "image_url")
_ABOUT_IMAGE = {"type", "detail", "index", "min_pixels", "max_pixels", "resized_height", "resized_width"}


def _source(part: Mapping[str, Any], held: set[str]) -> str | None:
    """The name of a part's image; None where it stands beside the text. Raises Unusable for one given otherwise."""
    source = next((part[name] for name in _SOURCES if name in held), None)
    if source is None and (other := sorted(held - _ABOUT_IMAGE)):
        raise Unusable(
            "image count",
            f"an image is given by `{other[0]}`, which is not read; name its file by `image`.",
        )
    if isinstance(source, Mapping):
        source = next((source[name] for name in _SOURCES if source.get(name)), source)
    if source is not None and not isinstance(source, str):
        what = (
            "its bytes"
            if isinstance(source, Mapping) and source.get("bytes")
            else f"a {type(source).__name__}"
        )
        raise Unusable(
            "form", f"an image is given as {what} in a message; name its file, or put it in `images`."
        )
    return source


# === Turns out of messages ===


def _require_turns(messages: Sequence[_Message]) -> None:
    if not messages:
        raise Unusable("form", "there is no message; a sample is a question and an answer at least.")
    if messages[0].role == "assistant":
        raise Unusable("leading answer", "the first message is the assistant's.")
    for number, message in enumerate(messages):
        if message.role != ("user", "assistant")[number % 2]:
            raise Unusable(
                "form", f"message {number} is from the {message.role}; user and assistant take turns."
            )


def _with_images(messages: Sequence[_Message], offered: Sequence[str], in_front: bool) -> tuple[Turn, ...]:
    """The turns with an image for every mark, numbered; images that tags name stay as they are written."""
    marks = [part for message in messages for part in message.parts if isinstance(part, _Mark)]
    tags = sum(isinstance(part, Image) for message in messages for part in message.parts)
    if offered and in_front and not marks and not tags:
        first = replace(messages[0], parts=(*map(_Mark, offered), *messages[0].parts))
        messages, marks = [first, *messages[1:]], [*map(_Mark, offered)]
    open_marks = sum(mark.source is None for mark in marks)
    if open_marks != len(offered) and (open_marks or not (marks or tags)):
        raise Unusable("image count", f"{_count(open_marks, 'mark')} for {_count(len(offered), 'image')}.")
    if marks and tags:
        raise Unusable("image count", "some images are named by tags and others stand beside the text.")
    coming = iter(offered)
    turns = []
    for message in messages:
        content = [
            Image(next(coming) if part.source is None else part.source) if isinstance(part, _Mark) else part
            for part in message.parts
        ]
        turns.append(Turn(message.role, tuple(content), message.loss))
    return tuple(number_images(_unnumbered(turns))) if marks else tuple(turns)


def _unnumbered(turns: Sequence[Turn]) -> list[Turn]:
    """The turns without the numbers that their texts give to images already. Raises Unusable for a wrong one."""
    bare: list[Turn] = []
    shown = 0
    for turn in turns:
        content: list[Segment | str] = []
        for part in turn.content:
            shown += isinstance(part, Image)
            before = content[-1] if content and isinstance(part, Image) else None
            if isinstance(before, Text) and (written := NUMBERED.search(before.text)):
                if int(written[1]) != shown:
                    raise Unusable("image numbers", f"calls image {shown} {written[0]!r}.")
                content[-1] = Text(before.text[: written.start()])
            content.append(part)
        bare.append(replace(turn, content=tuple(content)))
    return bare


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
