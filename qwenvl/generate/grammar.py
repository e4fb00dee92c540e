"""A grammar under which markup cannot break (paper 2.2), and how sure the model was of a box.

```
text   any token | <ref> phrase </ref> | <box> corners </box> | <quad> corners </quad>
phrase one or more ordinary tokens
box    (x1,y1),(x2,y2)                     x1 <= x2, y1 <= y2
quad   (x1,y1),(x2,y2),(x3,y3),(x4,y4)     in any order
number 0 to 999, no leading zeros
```
It is an automaton over the *bytes* of tokens, so any vocabulary will do: a token such as `),(` is allowed where all of
its characters are. No stop token and no other control symbol can be written inside an open tag; ordinary text cannot
spell a tag letter by letter; and nothing is opened that could not be closed before the answer's last token.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from qwenvl.markup import Box, Quad, Segment, read_coordinates
from qwenvl.tokenizer import Tokenizer

SHAPES = {"box": "(#,#),(#,#)", "quad": "(#,#),(#,#),(#,#),(#,#)"}
"""What stands between the tags; # is a number of one to three digits."""

TAGS = (b"<ref>", b"</ref>", b"<box>", b"</box>", b"<quad>", b"</quad>")

DIGITS = 3
"""Most digits of a coordinate: they are below 1000."""


@dataclass(frozen=True)
class State:
    """Where an answer stands. `inside` is "text", "ref", "box" or "quad"."""

    inside: str = "text"
    tail: bytes = b""
    """In text and phrases: the end of what was written if it may become a spelled tag, such as `<bo`."""
    begun: bool = False
    """In a phrase: whether it has a token."""
    place: int = 0
    """In a box or quad: index into its shape."""
    numbers: tuple[int, ...] = ()
    """In a box or quad: the finished coordinates."""
    digits: str = ""
    """In a box or quad: the coordinate being written."""

    @property
    def is_open(self) -> bool:
        """Whether a tag is waiting for its end."""
        return self.inside != "text"


@dataclass(frozen=True)
class Choice:
    """The ids that may come next: `only` these, or, where that is None, all but `never`."""

    only: tuple[int, ...] | None
    never: tuple[int, ...] = ()


class Grammar:
    """The automaton over the ids of one vocabulary; `vocab_size` counts the rows of the model's head."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self._opens = {tokenizer.ref: "ref", tokenizer.box: "box", tokenizer.quad: "quad"}
        self._closes = {"ref": tokenizer.ref_end, "box": tokenizer.box_end, "quad": tokenizer.quad_end}
        self._never = (*self._closes.values(), tokenizer.img, tokenizer.img_end, tokenizer.imgpad,
                       *range(tokenizer.n_vocab, vocab_size))  # fmt: skip
        self._specials = (*sorted(tokenizer.special_ids), *range(tokenizer.n_vocab, vocab_size))
        self._ending: list[tuple[int, bytes]] = []
        """Ordinary tokens that hold `>`: only they can complete a spelled tag."""
        self._numeric: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        """Tokens that can stand in a box, by their first character."""
        for token in range(tokenizer.n_ranks):
            spelled = tokenizer.token_bytes(token)
            if b">" in spelled:
                self._ending.append((token, spelled))
            if all(byte in b"0123456789(,)" for byte in spelled):
                self._numeric[chr(spelled[0])].append((token, spelled.decode()))
        self._enough = 2 + max(len(shape.replace("#", "#" * DIGITS)) for shape in SHAPES.values())
        self._choices = lru_cache(maxsize=4096)(self._choice)

    def start(self, ids: Sequence[int]) -> State:
        """The state behind a prompt: inside a tag if it leaves one open, as the grounding prompts of Appendix D do."""
        opened = max((at for at, token in enumerate(ids) if token in self._opens), default=None)
        if opened is None or any(token in self._closes.values() for token in ids[opened:]):
            return State()
        state = State()
        for token in ids[opened:]:
            after = self._after(state, token)
            if after is None or (state.is_open and not after.is_open):
                return State()
            state = after
        return state

    def advance(self, state: State, token: int) -> State:
        """The state after an allowed token."""
        after = self._after(state, token)
        assert after is not None, f"token {token} is not allowed in {state}"
        return after

    def choice(self, state: State, max_remaining: int) -> Choice:
        """What may come next when `max_remaining` more tokens can be written, this one included."""
        return self._choices(
            state, min(max_remaining, self._enough)
        )  # more room than any tag needs is all alike

    def _choice(self, state: State, max_remaining: int) -> Choice:
        if state.inside in SHAPES:
            return Choice(self._coordinates(state, max_remaining))
        if state.inside == "ref":
            if state.begun and max_remaining <= 1:
                return Choice((self._closes["ref"],))
            closed = self._closes["ref"] if state.begun else None
            never = [token for token in self._specials if token != closed]
        else:
            never = [*self._never]
            never += [
                token
                for token, inside in self._opens.items()
                if fewest_tokens(State(inside)) > max_remaining - 1
            ]
        return Choice(None, (*never, *self._completing(state.tail)))

    def _coordinates(self, state: State, max_remaining: int) -> tuple[int, ...]:
        """Ids that carry the corners on, or the end tag behind the last; at the end of the room, the short ways."""
        if state.place == len(SHAPES[state.inside]):
            return (self._closes[state.inside],)
        possible = [
            (token, after)
            for first in self._numeric
            if _spell(state, first) is not None
            for token, text in self._numeric[first]
            if (after := _spell(state, text)) is not None
        ]
        fitting = tuple(token for token, after in possible if fewest_tokens(after) <= max_remaining - 1)
        return fitting or tuple(
            token for token, _ in possible
        )  # a prompt may leave a box open and too little room

    def _completing(self, tail: bytes) -> tuple[int, ...]:
        """Ordinary ids that would complete a tag spelled letter by letter."""
        return tuple(token for token, spelled in self._ending if any(tag in tail + spelled for tag in TAGS))

    def _after(self, state: State, token: int) -> State | None:
        if token in self._opens:
            return None if state.is_open else State(self._opens[token])
        if state.is_open and token == self._closes[state.inside]:
            complete = state.begun or state.place == len(SHAPES.get(state.inside, "#"))
            return State() if complete else None
        if token in self._never or (state.is_open and token >= self.tokenizer.n_ranks):
            return None
        if token >= self.tokenizer.n_ranks:
            return State()
        spelled = self.tokenizer.token_bytes(token)
        if state.inside in SHAPES:
            return _spell(state, spelled.decode(errors="replace"))
        if any(tag in state.tail + spelled for tag in TAGS):
            return None
        return replace(state, tail=_tail(state.tail + spelled), begun=state.inside == "ref")


def _tail(text: bytes) -> bytes:
    """The longest end of `text` that begins a tag."""
    longest = max(map(len, TAGS)) - 1
    ends = (text[-size:] for size in range(min(longest, len(text)), 0, -1))
    return next((end for end in ends if any(tag.startswith(end) for tag in TAGS)), b"")


# === Numbers between the tags ===


def _spell(state: State, text: str) -> State | None:
    """The state after these characters of a box or quad; None where they do not fit."""
    shape = SHAPES[state.inside]
    place, numbers, digits = state.place, state.numbers, state.digits
    for character in text:
        if place < len(shape) and shape[place] == "#":
            if "0" <= character <= "9":
                digits += character
                if _digits_missing(digits, _least(state.inside, numbers)) is None:
                    return None
                continue
            if not digits or _digits_missing(digits, _least(state.inside, numbers)) != 0:
                return None
            place, numbers, digits = place + 1, (*numbers, int(digits)), ""
        if place == len(shape) or shape[place] != character:
            return None
        place += 1
    return replace(state, place=place, numbers=numbers, digits=digits)


def _least(inside: str, numbers: tuple[int, ...]) -> int:
    """Smallest value of the next coordinate: the second corner of a box is not left of or above the first."""
    return numbers[len(numbers) - 2] if inside == "box" and len(numbers) >= 2 else 0


def _digits_missing(digits: str, least: int) -> int | None:
    """Fewest digits that make this a number of at least `least`; None if there is no way."""
    if digits.startswith("0"):
        return 0 if digits == "0" and least == 0 else None
    for more in range(0 if digits else 1, DIGITS - len(digits) + 1):
        if int(digits + "9" * more) >= least:
            return more
    return None


def fewest_tokens(state: State) -> int:
    """Tokens that surely suffice to close the open tag, one per character: every byte is a token."""
    if not state.is_open:
        return 0
    if state.inside == "ref":
        return 1 if state.begun else 2
    count, numbers, digits = 1, state.numbers, state.digits  # 1: the end tag
    for symbol in SHAPES[state.inside][state.place :]:
        if symbol != "#":
            count += 1
            continue
        least = _least(state.inside, numbers)
        missing = _digits_missing(digits, least)
        assert missing is not None
        count += missing
        numbers, digits = (*numbers, int(digits or 0)), ""  # the first corner: what it is, else 0
    return count


# === Confidence ===


def with_scores(
    segments: Iterable[Segment], ids: Sequence[int], logprobs: Sequence[float], tokenizer: Tokenizer
) -> list[Segment]:
    """The parsed answer with `score` on its boxes and quads.

    The score is the geometric mean of the model's probabilities of the tokens that hold its digits: in (0, 1], equal
    for long and short numbers, untouched by brackets and commas. A box that was spelled as plain text keeps None.
    """
    scored = list(_scored_spans(ids, logprobs, tokenizer))
    result: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Box | Quad):
            coordinates = _coordinates_of(segment)
            match = next((at for at, (spelled, _) in enumerate(scored) if spelled == coordinates), None)
            if match is not None:
                segment = replace(segment, score=scored[match][1])
                del scored[: match + 1]
        result.append(segment)
    return result


def _scored_spans(
    ids: Sequence[int], logprobs: Sequence[float], tokenizer: Tokenizer
) -> Iterable[tuple[list[int], float]]:
    """Coordinates and score of every closed box and quad, in order."""
    ends = {tokenizer.box: tokenizer.box_end, tokenizer.quad: tokenizer.quad_end}
    opened: int | None = None
    for at, token in enumerate(ids):
        if token in ends:
            opened = at
        elif opened is not None and token == ends[ids[opened]]:
            inner = range(opened + 1, at)
            coordinates = read_coordinates(tokenizer.decode([ids[i] for i in inner]))
            spelled = [(tokenizer.token_bytes(ids[i]), logprobs[i]) for i in inner]
            held = [p for token, p in spelled if any(byte in b"0123456789" for byte in token)]
            if coordinates is not None and held:
                mean = math.exp(sum(held) / len(held))
                yield (
                    [min(max(value, 0), 999) for value in coordinates],
                    min(max(mean, sys.float_info.min), 1.0),
                )
            opened = None


def _coordinates_of(shape: Box | Quad) -> list[int]:
    if isinstance(shape, Box):
        return [shape.x1, shape.y1, shape.x2, shape.y2]
    return [value for point in shape.points for value in point]
