"""Messages of a chat request: roles and contents as clients spell them, to the turns of a dialogue.

    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}},
                                 {"type": "text", "text": "Where is the cat?"}]}

Text stays text, whatever it spells, with one exception: a well-formed `<ref>`, `<box>` or `<quad>` in a user's or an
assistant's message is the object that it spells, so that an answer can be sent back as history and a question can
point. Only a part of the request can be an image, and only of a user.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

from qwenvl import markup
from qwenvl.markup import Image, Segment, Turn
from qwenvl.serve.errors import invalid
from qwenvl.serve.fields import Fields, shown
from qwenvl.serve.limits import Limits

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""A role of the request -> the role of the turn."""

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a part that is text -> the key that holds it."""

PASSED_OVER = ("name", "qwenvl", "refusal", "annotations", "audio", "reasoning_content")
"""Keys of a message that change nothing: a client sends an answer back with all that came with it."""

IMAGES = ("image_url", "input_image")
"""Types of a part that is an image; both spellings of the API (chat completions, responses)."""


@dataclass(frozen=True)
class ImagePart:
    """An image of a message, still as its URL; `param` names the place in the request."""

    url: str
    param: str


Part: TypeAlias = str | ImagePart


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message, its role already one of the three of a dialogue."""

    role: str
    parts: tuple[Part, ...]


def read_messages(given: Fields, limits: Limits, *, continued: bool = False) -> tuple[Message, ...]:
    """The messages of a request; `continued`: the last is an answer to go on with. Raises ApiError."""
    value = given.items("messages", limits.messages, "messages")
    if not value:
        raise invalid("messages is missing or empty; give one message at least.", "messages")
    messages = [
        _message(Fields(each, f"messages[{index}]", within=given), limits) for index, each in enumerate(value)
    ]
    images = sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
    if images > limits.images:
        raise invalid(f"The request has {images} images; at most {limits.images} are taken.", "messages")
    length = sum(len(part) for message in messages for part in message.parts if isinstance(part, str))
    if length > limits.characters:
        raise invalid(
            f"The messages have {length:,} characters; at most {limits.characters:,} are taken.", "messages"
        )
    if all(message.role == "system" for message in messages):
        raise invalid("messages has no message of a user; give one.", "messages")
    last = next(message.role for message in reversed(messages) if message.role != "system")
    if last == "assistant" and not continued:
        raise invalid(
            "The last message is the assistant's; end with a user's, or set continue_final_message to go on with it.",
            "messages",
        )
    if last != "assistant" and continued:
        raise invalid(
            "continue_final_message goes on with an assistant's message, but the last one is a user's.",
            "continue_final_message",
        )
    return tuple(messages)


def _message(given: Fields, limits: Limits) -> Message:
    where, role = given.where, given.take("role")
    if role in ("tool", "function"):
        raise invalid(
            f"{where} has the role {role}; this model has no tools, only system, developer, user and assistant.",
            f"{where}.role",
        )
    if not isinstance(role, str) or role not in ROLES:
        raise given.refuse("role", role, "system, developer, user or assistant")
    if given.items("tool_calls", limits.parts, "calls") or given.inside("function_call"):
        raise invalid(f"{where} calls tools; this model has none.", f"{where}.tool_calls")
    content = given.take("content")
    given.pass_over(*PASSED_OVER)
    if content is None and role == "assistant":
        return Message(role=ROLES[role], parts=())
    if isinstance(content, str):
        return Message(role=ROLES[role], parts=(content,))
    if not isinstance(content, list) or not content:
        raise given.refuse("content", content, "a string or a list of one part or more")
    if len(content) > limits.parts:
        raise invalid(
            f"{where}.content has {len(content)} parts; at most {limits.parts} are taken.", f"{where}.content"
        )
    parts = [_part(each, f"{where}.content[{index}]", given) for index, each in enumerate(content)]
    image = next((part for part in parts if isinstance(part, ImagePart)), None)
    if image is not None and role != "user":
        raise invalid(f"An image stands in a message of the {role}; only a user shows images.", image.param)
    return Message(role=ROLES[role], parts=tuple(parts))


def _part(value: Any, where: str, within: Fields) -> Part:
    if isinstance(value, str):
        return value
    given = Fields(value, where, within=within)
    given.pass_over("detail", "annotations")
    kind = given.text("type")
    if kind in TEXTS:
        text = given.text(TEXTS[kind])
        if text is None:
            raise given.refuse(TEXTS[kind], None, "a string")
        return text
    if kind not in IMAGES:
        expected = "text or image_url"
        raise invalid(f"{where}.type is {shown(kind)}; this model reads {expected}.", f"{where}.type")
    url = given.take("image_url")
    if isinstance(url, dict):
        inner = Fields(url, f"{where}.image_url", within=given)
        inner.pass_over("detail")
        url = inner.text("url")
    if not isinstance(url, str):
        raise given.refuse("image_url", url, "a data URL, or an object that holds one as url")
    return ImagePart(url, f"{where}.image_url")


# === To turns ===


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What is rendered: the system message, turns of users and assistants by turns, and an answer begun."""

    system: str | None
    """None: the model's own."""
    turns: tuple[Turn, ...]
    begun: tuple[Segment, ...] | None = None
    """The beginning of the answer, to be gone on with; no part of `turns`."""

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in order."""
        return tuple(s for turn in self.turns for s in turn.content if isinstance(s, Image))


def dialogue(
    messages: Sequence[Message], image: Callable[[ImagePart], Image], *, continued: bool = False
) -> Dialogue:
    """Several system messages are joined, neighbours of one role become one turn; `image` opens each part."""
    system = ["".join(map(_text, m.parts)) for m in messages if m.role == "system"]
    turns = [
        Turn(role, _content([m.parts for m in group], image))
        for role, group in groupby((m for m in messages if m.role != "system"), key=lambda m: m.role)
    ]
    begun = turns.pop().content if continued else None
    return Dialogue(
        system="\n\n".join(system) if system else None,
        turns=tuple(turns),
        begun=None if begun is None else tuple(markup.segments_of(begun)),
    )


def _content(contents: Sequence[Sequence[Part]], image: Callable[[ImagePart], Image]) -> tuple[Segment, ...]:
    segments: list[Segment | str] = []
    for number, parts in enumerate(contents):
        if number and segments:
            segments.append("\n")
        for part in parts:
            segments += [image(part)] if isinstance(part, ImagePart) else markup.parse(part)
    return tuple(markup.segments_of(segments))


def _text(part: Part) -> str:
    assert isinstance(part, str)  # an image in a system message was refused
    return part
