"""What may stand in a prompt or an answer, and its one spelling in ids (paper 2.2 and 2.3, Appendix B).

```
Image   <img> imgpad x queries </img>               an image; the model overwrites the placeholders
Ref     <ref>the phrase</ref>                       what the boxes after it show
Box     <box>(x1,y1),(x2,y2)</box>                  top left, bottom right, integers in [0, 1000)
Quad    <quad>(x1,y1),(x2,y2),(x3,y3),(x4,y4)</quad>
Turn    <|im_start|>role \\n content <|im_end|> \\n   one turn of a ChatML dialogue
```
Only these become special ids: a text that spells `<img>` stays text. `parse` reads what a model wrote and never yields
an `Image`; `parse_trusted` reads annotations that we trust, with images.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, chain, count
from typing import TypeAlias

from qwenvl.tokenizer import Tokenizer

GRID = 1000
"""Boxes are stored in thousandths of a side: integers in [0, GRID)."""

SYSTEM = "You are a helpful assistant."
"""The system message of the released chat model."""


# === What may stand in a turn ===


@dataclass(frozen=True)
class Text:
    """Ordinary text, whatever it spells."""

    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """An image: path, encoded bytes, `PIL.Image` or uint8 array (height, width[, 3]); `images` opens it."""

    source: object

    def _identity(self) -> object:
        return self.source if isinstance(self.source, str | bytes | os.PathLike) else id(self.source)

    def __eq__(self, other: object) -> bool:
        """Equal names or bytes; images in memory are equal only to themselves."""
        return isinstance(other, Image) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())


@dataclass(frozen=True)
class Ref:
    """The phrase that the boxes directly after it show."""

    text: str


@dataclass(frozen=True)
class Box:
    """A rectangle as the model writes it: integers in [0, 1000), thousandths of each side from the top left.

    `label` is the phrase of the `Ref` before it and is not rendered; `score` is the model's probability, if known.
    Raises ValueError for coordinates outside [0, 1000).
    """

    x1: int
    y1: int
    x2: int
    y2: int
    label: str | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        _check_on_grid((self.x1, self.y1, self.x2, self.y2), "Box")

    def to_pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Corners in pixels of a `width` x `height` image: left, top, right, bottom."""
        x1, x2, y1, y2 = self.x1 * width, self.x2 * width, self.y1 * height, self.y2 * height
        return x1 / GRID, y1 / GRID, x2 / GRID, y2 / GRID

    @classmethod
    def from_pixels(
        cls, x1: float, y1: float, x2: float, y2: float, width: int, height: int, label: str | None = None
    ) -> "Box":
        """The box nearest to corners in pixels, to half a grid cell; corners outside go to the border."""
        return cls(*_from_pixels(x1, y1, width, height), *_from_pixels(x2, y2, width, height), label=label)


@dataclass(frozen=True)
class Quad:
    """Four corners, from the top left clockwise (OCR, Appendix B): integers in [0, 1000) as in `Box`."""

    points: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
    label: str | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        if len(self.points) != 4 or any(len(point) != 2 for point in self.points):
            raise ValueError(f"Quad points are {self.points!r}; expected four (x, y) pairs.")
        _check_on_grid([value for point in self.points for value in point], "Quad")

    def to_pixels(self, width: int, height: int) -> tuple[tuple[float, float], ...]:
        """The four corners in pixels of a `width` x `height` image."""
        return tuple((x * width / GRID, y * height / GRID) for x, y in self.points)

    @classmethod
    def from_pixels(
        cls, points: Sequence[tuple[float, float]], width: int, height: int, label: str | None = None
    ) -> "Quad":
        """The quad nearest to four corners in pixels; corners outside the image go to its border."""
        return cls(tuple(_from_pixels(x, y, width, height) for x, y in points), label=label)  # type: ignore[arg-type]


Segment: TypeAlias = Text | Image | Ref | Box | Quad

Content: TypeAlias = str | Segment | Iterable[Segment | str]
"""What a turn may be made of; a plain str is `Text`."""

_TAGS = {Image: "img", Ref: "ref", Box: "box", Quad: "quad"}


@dataclass(frozen=True)
class Turn:
    """One turn of a dialogue by "user", "assistant" or "system"; without `loss` training learns nothing of it."""

    role: str
    content: tuple[Segment | str, ...]
    loss: bool = True

    def __post_init__(self) -> None:
        if self.role not in ("user", "assistant", "system"):
            raise ValueError(f"a turn has the role {self.role!r}; expected one of user, assistant, system.")


def segments_of(content: Content) -> list[Segment]:
    """`content` as objects: a plain str becomes `Text`, neighbouring texts become one, empty ones go."""
    parts: Iterable[Segment | str] = [content] if isinstance(content, str | Segment) else content
    merged: list[Segment] = []
    for part in parts:
        segment = Text(part) if isinstance(part, str) else part
        if not isinstance(segment, Segment):
            raise ValueError(f"{segment!r} cannot stand in a turn; expected text or an object of markup.")
        if isinstance(segment, Text) and merged and isinstance(merged[-1], Text):
            merged[-1] = Text(merged[-1].text + segment.text)
        elif segment != Text(""):
            merged.append(segment)
    return merged


def _check_on_grid(values: Sequence[int], kind: str) -> None:
    if wrong := [value for value in values if type(value) is not int or _onto_grid(value) != value]:
        wanted = f"an int in [0, {GRID}); use {kind}.from_pixels."
        raise ValueError(f"{kind} coordinate {wrong[0]!r} is not {wanted}")


def _from_pixels(x: float, y: float, width: int, height: int) -> tuple[int, int]:
    if width <= 0 or height <= 0:
        raise ValueError(f"the image is {width} x {height} pixels; expected at least 1 x 1.")
    return _onto_grid(round(x * GRID / width)), _onto_grid(round(y * GRID / height))


def _onto_grid(value: int) -> int:
    return min(max(value, 0), GRID - 1)


# === Objects to ids ===


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """Ids ready for the model. Pieces concatenate with `+`."""

    ids: tuple[int, ...] = ()
    loss_mask: tuple[bool, ...] = ()
    """True where the model is trained to produce this token: the blue text of Appendix B."""
    images: tuple[Image, ...] = ()
    """The images, in the order of their placeholders."""
    image_starts: tuple[int, ...] = ()
    """Index of the first placeholder of each image."""

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.loss_mask) and len(self.images) == len(self.image_starts)

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: "Rendered") -> "Rendered":
        return join([self, other])


def join(pieces: Iterable[Rendered]) -> Rendered:
    """The pieces one after another."""
    pieces = list(pieces)
    offsets = accumulate((len(piece) for piece in pieces), initial=0)
    starts = [first + k for first, piece in zip(offsets, pieces, strict=False) for k in piece.image_starts]
    return Rendered(
        ids=tuple(chain.from_iterable(piece.ids for piece in pieces)),
        loss_mask=tuple(chain.from_iterable(piece.loss_mask for piece in pieces)),
        images=tuple(chain.from_iterable(piece.images for piece in pieces)),
        image_starts=tuple(starts),
    )


def render(segments: Content, tokenizer: Tokenizer, queries: int, *, supervised: bool = False) -> Rendered:
    """Ids of objects; an image takes `queries` placeholders inside `<img>` `</img>` and is never learned.

    The label and score of a `Box` are not rendered: put a `Ref` before it.
    """
    if queries < 1:
        raise ValueError(f"queries is {queries}; expected the visual tokens per image, 256 in the paper.")
    return join(_render_one(segment, tokenizer, queries, supervised) for segment in segments_of(segments))


def _render_one(segment: Segment, tokenizer: Tokenizer, queries: int, supervised: bool) -> Rendered:
    if isinstance(segment, Image):
        ids = (tokenizer.img, *[tokenizer.imgpad] * queries, tokenizer.img_end)
        return Rendered(ids=ids, loss_mask=(False,) * len(ids), images=(segment,), image_starts=(1,))
    ids = tuple(tokenizer.encode(_inner_text(segment)))
    if tag := _TAGS.get(type(segment)):
        ids = (tokenizer.specials[f"<{tag}>"], *ids, tokenizer.specials[f"</{tag}>"])
    return Rendered(ids=ids, loss_mask=(supervised,) * len(ids))


def control(*names: str, tokenizer: Tokenizer, supervised: bool) -> Rendered:
    """The control symbols of these names, such as "<|im_end|>", or an open "<box>" to be completed."""
    if unknown := [name for name in names if name not in tokenizer.specials]:
        raise ValueError(f"{unknown[0]!r} is no control symbol; expected one of qwenvl.tokenizer.SPECIALS.")
    ids = tuple(tokenizer.specials[name] for name in names)
    return Rendered(ids=ids, loss_mask=(supervised,) * len(ids))


def render_turn(turn: Turn, tokenizer: Tokenizer, queries: int) -> Rendered:
    """In ChatML, where symbols, the answer and the last newline are learned (paper 2.3), unless `loss` is False."""
    before, behind = _around(turn.role, tokenizer, turn.loss)
    supervised = turn.loss and turn.role == "assistant"
    return join([before, render(turn.content, tokenizer, queries, supervised=supervised), behind])


@lru_cache(maxsize=32)
def _around(role: str, tokenizer: Tokenizer, loss: bool = True) -> tuple[Rendered, Rendered]:
    start, end = (control(s, tokenizer=tokenizer, supervised=loss) for s in ("<|im_start|>", "<|im_end|>"))
    before = start + render(role, tokenizer, 1) + render("\n", tokenizer, 1)
    return before, end + render("\n", tokenizer, 1, supervised=loss)


def render_chat(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    queries: int,
    *,
    system: str = SYSTEM,
    open_for_answer: bool = True,
) -> Rendered:
    """A dialogue in ChatML, ids and label mask; with `open_for_answer` an assistant turn is begun at the end.

    Role, newline and content are encoded apart, so that a text cannot merge into the frame around it.
    """
    pieces = [render_turn(turn, tokenizer, queries) for turn in (Turn("system", (system,)), *turns)]
    return join([*pieces, *_around("assistant", tokenizer)[:open_for_answer]])


def fit_window(
    turns: Sequence[Turn], tokenizer: Tokenizer, queries: int, system: str = SYSTEM, max_window: int = 6144
) -> list[Turn]:
    """The newest turns that fit: whole exchanges are dropped from the front, never a part of an image.

    An exchange is a user turn with the turns up to the next one. As in the official chat, the system turn and the
    kept exchanges stay below `max_window` ids, and the last exchange (the open question) is kept and not counted.
    """
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if turn.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    system_turn = render_turn(Turn("system", (system,)), tokenizer, queries)
    max_remaining = max_window - (len(system_turn) - 1)  # its newline is not counted
    kept = exchanges[-1:]
    for exchange in exchanges[-2::-1]:
        max_remaining -= sum(len(render_turn(turn, tokenizer, queries)) for turn in exchange)
        if max_remaining <= 0:
            break
        kept.insert(0, exchange)
    return [turn for exchange in kept for turn in exchange]


def number_images(turns: Iterable[Turn]) -> list[Turn]:
    """Puts `Picture k: ` before and a newline after each image of the users, k from 1 through the dialogue."""
    numbers = count(1)
    numbered: list[Turn] = []
    for turn in turns:
        content: list[Segment | str] = []
        for segment in segments_of(turn.content):
            image = turn.role == "user" and isinstance(segment, Image)
            content += [f"Picture {next(numbers)}: ", segment, "\n"] if image else [segment]
        numbered.append(replace(turn, content=tuple(segments_of(content))))
    return numbered


# === Text to objects ===

_TAG = re.compile("</?(?:ref|box|quad|img)>")
_LONGEST_BOX = 200
"""Characters between `<box>` and `</box>` beyond which nobody needs to look for numbers."""


def spell(segments: Content) -> str:
    """The text that `parse` reads back: tags around phrases and coordinates; an image is `<img></img>`."""
    parts = [(_TAGS.get(type(segment)), _inner_text(segment)) for segment in segments_of(segments)]
    return "".join(f"<{tag}>{inner}</{tag}>" if tag else inner for tag, inner in parts)


def _inner_text(segment: Segment) -> str:
    if isinstance(segment, Text | Ref):
        return segment.text
    corners = ((segment.x1, segment.y1), (segment.x2, segment.y2)) if isinstance(segment, Box) else ()
    return ",".join(f"({x},{y})" for x, y in (segment.points if isinstance(segment, Quad) else corners))


def parse(text: str) -> list[Segment]:
    """Reads decoded model output with `<ref>`, `<box>` and `<quad>` tags; never raises.

    Malformed or unclosed markup stays `Text`, as do `<img>` and control symbols: only a caller attaches images.
    Coordinates past the border are moved to it. A label is the phrase just before the box, also for a second box of the
    same phrase; a space may stand before a `Quad` (Appendix B).
    """
    return _read(text, strict=False)


def parse_trusted(text: str) -> list[Segment]:
    """Reads an annotation that we trust, such as a `value` of the official fine-tuning JSON.

    Here `<img>path</img>` becomes `Image(path)`. Raises ValueError where `parse` would leave markup as text: an
    annotation with a broken tag would teach the model to spell tags.
    """
    return _read(text, strict=True)


def _read(text: str, strict: bool) -> list[Segment]:
    """One pass: a span ends at the first end tag of its kind; reading goes on inside a broken box, not in a quad."""
    opening = re.compile("<(ref|box|quad|img)>")
    unclosed: set[str] = set()
    found: list[Segment] = []
    label: str | None = None
    done = position = 0
    while match := opening.search(text, position):
        tag, start, position = match[1], match.start(), match.end()
        limit = position + _LONGEST_BOX if tag == "box" else len(text)
        end = -1 if tag in unclosed else text.find(f"</{tag}>", position, limit)
        segment = None if end < 0 else _object(tag, text[position:end], strict)
        if segment is not None:
            between = text[done:start]
            done = position = end + len(f"</{tag}>")
            if isinstance(segment, Ref):
                label = segment.text.strip()
            elif isinstance(segment, Text) or between.strip() or (between and tag == "box"):
                label = None
            labelled = replace(segment, label=label) if isinstance(segment, Box | Quad) else segment
            found.extend([Text(between), labelled])
        elif strict:
            break  # the tag stays in the text, which is refused below
        elif end < 0 and limit == len(text):
            unclosed.add(tag)
    segments = segments_of([*found, Text(text[done:])])
    words = [each.text for each in segments if strict and isinstance(each, Text | Ref)]
    if left := next(filter(None, map(_TAG.search, words)), None):
        rest = left.string[left.start() :]
        raise ValueError(
            f"the annotation has a broken {left[0]} at character {text.index(rest)}: {rest[:60]!r}; expected "
            "<ref>phrase</ref>, <box>(x1,y1),(x2,y2)</box>, a <quad> of four points or <img>path</img>."
        )
    return segments


def read_coordinates(inner: str) -> list[int] | None:
    """The integers between the tags, parentheses and spaces aside; None if something else stands there."""
    try:
        return [int(number) for number in inner.replace("(", "").replace(")", "").split(",")]
    except ValueError:
        return None


def _object(tag: str, inner: str, strict: bool) -> Segment | None:
    if tag == "ref":
        return Ref(inner)
    if tag == "img":
        return (Image(inner) if inner else None) if strict else Text(f"<img>{inner}</img>")
    values = read_coordinates(inner) or []
    on_grid = [_onto_grid(value) for value in values]
    if len(values) != (4 if tag == "box" else 8) or (strict and on_grid != values):
        return None if strict or tag == "box" else Text(f"<quad>{inner}</quad>")
    corners = tuple(zip(on_grid[::2], on_grid[1::2], strict=True))
    return Box(*corners[0], *corners[1]) if tag == "box" else Quad(corners)  # type: ignore[arg-type]
