"""The official fine-tuning JSON, read as it is: `conversations` of `from` and `value`, with tags inside `value`.

    [{"id": "0", "conversations": [
        {"from": "user",      "value": "Picture 1: <img>a.jpg</img>\\nWhere is the cat?"},
        {"from": "assistant", "value": "<ref>the cat</ref><box>(10,20),(300,400)</box>"}]}]

A list or JSON lines. Values become objects here and nowhere else: pictures, phrases and boxes by their tags, everything
else is text, `<|im_start|>` included (the official script lets data write control symbols). What is learned is what the
official script learns: control symbols, answers and the newline behind a turn; roles, questions and system are not.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwenvl.data.formats import Example, example
from qwenvl.data.records import Dialogue, spell_with_paths
from qwenvl.markup import Image, Segment, Turn, number_images, parse_trusted, render_chat
from qwenvl.tokenizer import Tokenizer

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""`from` of a message -> its role; `human` and `gpt` are LLaVA's names for the same."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One sample of the file."""

    where: str
    """`file:number` (from 0) and its id, for messages."""
    turns: tuple[Turn, ...]
    folder: Path
    """Where the file lies: relative paths of pictures start here."""

    @property
    def images(self) -> tuple[Image, ...]:
        """Its pictures in order."""
        return tuple(part for turn in self.turns for part in turn.content if isinstance(part, Image))


def samples(file: Path) -> Iterator[tuple[str, Any]]:
    """Where each sample stands, and the sample as JSON. Raises ValueError when the file is no list or JSON lines."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(
            f"{file} does not exist; give the official fine-tuning JSON or JSON lines."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}); convert it first.") from None
    try:
        if text.lstrip()[:1] == "[":
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is not valid JSON ({error}); expected a list of samples, or one a line."
        ) from None
    for number, sample in enumerate(found):
        name = sample.get("id") if isinstance(sample, dict) else None
        yield f"{file.name}:{number}" + (f" (id {name})" if name is not None else ""), sample


def messages_of(sample: Any) -> list[tuple[str, str]]:
    """Role and value of every message, a leading one that is not the user's dropped as the official script does.

    Raises ValueError for a sample of another form, an unknown role or two turns of one role in a row.
    """
    said = sample.get("conversations") if isinstance(sample, dict) else None
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise ValueError("has no list `conversations` of messages; each sample needs one.")
    messages = []
    for each in said:
        role, value = ROLES.get(str(each.get("from"))), each.get("value")
        if role is None or not isinstance(value, str):
            raise ValueError(
                f"has a message from {each.get('from')!r} with a value of type {type(value).__name__}; expected "
                "from 'user' or 'assistant' and a text."
            )
        messages.append((role, value))
    if messages and messages[0][0] != "user":
        del messages[0]
    for number, (role, _) in enumerate(messages):
        if role != ("user", "assistant")[number % 2]:
            raise ValueError(f"has message {number} from the {role}; user and assistant must take turns.")
    if not messages:
        raise ValueError("has no message of a user; a sample is a question and an answer at least.")
    return messages


def conversation_of(where: str, sample: Any, folder: Path) -> Conversation:
    """The sample as objects. Raises ValueError, without `where`, for another form or a broken tag."""
    turns = tuple(Turn(role, tuple(parse_trusted(value))) for role, value in messages_of(sample))
    return Conversation(where=where, turns=turns, folder=folder)


def read_conversations(file: Path) -> list[Conversation]:
    """Every sample of the file. Raises ValueError that names the first broken one."""
    found = []
    for where, sample in samples(file):
        try:
            found.append(conversation_of(where, sample, file.parent))
        except ValueError as error:
            raise ValueError(f"{where} {error} Run `qwenvl data check {file}` to see all of them.") from None
    if not found:
        raise ValueError(f"{file} holds no sample; expected a list of conversations.")
    return found


def example_of(conversation: Conversation, tokenizer: Tokenizer, queries: int) -> Example:
    """The sample ready to be packed, pictures as paths that can be opened from anywhere."""
    turns = [
        Turn(turn.role, tuple(_placed(part, conversation.folder) for part in turn.content))
        for turn in conversation.turns
    ]
    return example(render_chat(turns, tokenizer, queries, open_for_answer=False))


def image_path(image: Image, folder: Path) -> Path:
    """Where a picture's file is: a relative path starts at the JSON's folder, else at the working directory."""
    path = Path(str(image.source))
    beside = folder / path
    return path if path.is_absolute() or (not beside.exists() and path.exists()) else beside


def sample_of(dialogue: Dialogue, name: str) -> dict[str, Any]:
    """A dialogue as a sample of this JSON, pictures numbered: what `qwenvl finetune` and the official script read.

    Raises ValueError for a picture in memory, and for a text that spells a tag and would come back as markup.
    """
    turns = number_images(dialogue.turns)
    said = [{"from": turn.role, "value": spell_with_paths(turn.content)} for turn in turns]
    return {"id": name, "conversations": said}


def _placed(part: Segment | str, folder: Path) -> Segment | str:
    return replace(part, source=image_path(part, folder)) if isinstance(part, Image) else part
