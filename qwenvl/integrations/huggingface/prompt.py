"""A prompt as one string: spelled from turns, and read back into ids.

In a prompt the control symbols are themselves: `<|im_start|>`, `<ref>`, and `<img></img>` where an image stands, as in
every chat template. Text inside a turn is not: a message that spells `<|im_start|>` is written with a word joiner
(U+2060) behind the `<`, one more if there are some already, and read back without it. So the string can be stripped,
cut, joined and stored, and a user's text never becomes markup on the way.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenvl.markup import Box, Image, Quad, Ref, Text, Turn, segments_of, spell
from qwenvl.tokenizer import SPECIALS, Tokenizer

JOINER = "\u2060"
_SYMBOL = re.compile(f"<({JOINER}*)({'|'.join(re.escape(name[1:]) for name in SPECIALS)})")


@dataclass
class Prompt:
    """Ids of a prompt under way."""

    ids: list[int] = field(default_factory=list)
    answered: list[bool] = field(default_factory=list)
    """True for what the assistant says, and for the symbol that ends it."""
    images: list[Image] = field(default_factory=list)

    def add(self, ids: Sequence[int], answered: bool) -> None:
        """Put ids at the end."""
        self.ids += ids
        self.answered += [answered] * len(ids)


def spell_turns(turns: Sequence[Turn], *, opened: bool, unfinished: bool) -> str:
    """A dialogue in ChatML: `opened` for an answer, or with its last turn left `unfinished`."""
    text = "".join(f"<|im_start|>{turn.role}\n{spell_content(turn.content)}<|im_end|>\n" for turn in turns)
    if unfinished:
        return text.removesuffix("<|im_end|>\n")
    return text + "<|im_start|>assistant\n" * opened


def spell_content(content: Sequence[object]) -> str:
    """Text with its symbols guarded, markup objects with their tags."""
    spelled = []
    for segment in segments_of(content):  # type: ignore[arg-type]
        if isinstance(segment, Text):
            spelled.append(_guarded(segment.text))
        elif isinstance(segment, Ref):
            spelled.append(f"<ref>{_guarded(segment.text)}</ref>")
        else:
            assert isinstance(segment, Image | Box | Quad)
            spelled.append(spell([segment]))
    return "".join(spelled)


def read_prompt(text: str, images: Sequence[Image], tokenizer: Tokenizer, queries: int) -> Prompt:
    """Ids of a prompt with `images` in its places; before a prompt that has no place for them.

    Role, newline and content are encoded apart, as `markup.render_chat` does. Raises ValueError where places and
    images do not match in number, and for an image named by its path.
    """
    text = text.replace(
        "<img>" + "<imgpad>" * queries + "</img>", "<img></img>"
    )  # decoded ids are a prompt too
    places = [match.start() for match in re.finditer("<img></img>", text)]
    if images and not places and "<|im_start|>" not in text:
        return read_prompt("<img></img>" * len(images) + text, images, tokenizer, queries)
    if len(places) != len(images):
        raise ValueError(
            f"the text has {len(places)} places for images (<img></img>) but {len(images)} images are given; give "
            'as many, in their order: {"type": "image"} in a message makes a place.'
        )
    prompt, role, done = Prompt(images=list(images)), "", 0
    symbols = [match for match in _SYMBOL.finditer(text) if not match[1]]
    last = ""
    for match in [*symbols, None]:
        piece = text[done : match.start() if match else len(text)]
        role = _add_text(prompt, piece, last, role, tokenizer)
        if match is None:
            break
        last, done = "<" + match[2], match.end()
        if last == "<img>" and not text.startswith("</img>", done):
            raise ValueError(
                "a prompt has <img> with something in it; images are given as `images`, never by name."
            )
        prompt.add([tokenizer.specials[last]], role == "assistant")
        if last == "<img>":
            prompt.add([tokenizer.imgpad] * queries, role == "assistant")
        role = "" if last == "<|im_end|>" else role
    return prompt


def _add_text(prompt: Prompt, piece: str, last: str, role: str, tokenizer: Tokenizer) -> str:
    """Encode the text behind the symbol `last`; returns the role that speaks from here on."""
    piece = _SYMBOL.sub(lambda match: "<" + match[1][1:] + match[2], piece)
    if last == "<|im_start|>" and "\n" in piece:
        role, _, piece = piece.partition("\n")
        prompt.add([*tokenizer.encode(role), *tokenizer.encode("\n")], False)
    elif last == "<|im_end|>" and piece.startswith("\n"):
        piece = piece[1:]
        prompt.add(tokenizer.encode("\n"), False)
    prompt.add(tokenizer.encode(piece), role == "assistant")
    return role


def _guarded(text: str) -> str:
    return _SYMBOL.sub(lambda match: f"<{JOINER}{match[1]}{match[2]}", text)
