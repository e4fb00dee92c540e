"""What the data engine carries: raw image-text pairs, and the records that become training formats (paper 3, A).

    Pair               an image and its alt-text as crawled: what cleaning reads and writes
    Skipped            a sample that could not be read, with its reason: counted and kept aside, never lost
    Record             what a sample teaches; its kind decides the training format (Box B.1)
        Caption        1 image captioning
        Question       2 visual question answering, 3 OCR-VQA
        GroundedCaption 4 caption with grounding
        Referring      5 referring grounding and 6 grounded captioning: the paper's dual tasks
        OcrPage        7 OCR with quads
        PlainText      pure-text autoregression
        Dialogue       ChatML (stage 3)

Boxes are on the model's grid, [0, 1000). One line of JSON per record: `to_json`, `from_json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from qwenvl.markup import Box, Image, Quad, Segment, Text, Turn, parse_trusted, segments_of, spell
from qwenvl.parsing import parse_json

Language: TypeAlias = Literal["en", "zh"]

NOTHING: Mapping[str, Any] = MappingProxyType({})


# === Raw pairs ===


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One image and one text as crawled."""

    key: str
    """Unique within its shard."""
    text: str
    source: str = ""
    """Data set it came from: the funnel is told per source."""
    image: bytes | None = None
    """The encoded file; None where only a URL is known."""
    width: int | None = None
    """Pixels: of the file where there is one, else what the source says."""
    height: int | None = None
    clip_score: int | float | None = None
    """Cosine of the CLIP embeddings of image and text, about 0.1 to 0.5; None if nobody computed it."""
    url: str | None = None
    extra: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Other columns of the source (`punsafe`, `pwatermark`, several captions): kept, and written back."""


def with_text(pair: Pair, text: str) -> Pair:
    """The pair with another text."""
    return replace(pair, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A sample that could not be read: `kind` is counted, `detail` is for the person who looks."""

    key: str
    kind: str
    """A few words, the same for every sample with this defect: "truncated image"."""
    detail: str = ""
    source: str = ""
    raw: bytes = b""
    """What there was of it."""


# === Records ===


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Format 1: what an image shows, in words."""

    image: Image
    text: str
    language: Language = "en"
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Formats 2 and 3: a question about an image and its short answer."""

    image: Image
    question: str
    answer: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class GroundedCaption:
    """Format 4: a caption whose phrases have boxes; without its tags it is the plain caption."""

    image: Image
    caption: tuple[Segment, ...]
    """Text, Ref and Box; a Ref carries its leading space (paper 2.1)."""
    language: Language = "en"
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Referring:
    """Formats 5 and 6: a phrase and where it is; read one way or the other (paper 3.2: dual tasks)."""

    image: Image
    phrase: str
    boxes: tuple[Box, ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class OcrPage:
    """Format 7: lines of text in reading order, each a Quad whose label is the text."""

    image: Image
    lines: tuple[Quad, ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class PlainText:
    """Text without an image: everything is learned."""

    text: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Turns of user and assistant, with any number of images in the user's."""

    turns: tuple[Turn, ...]
    source: str = ""
    system: str = ""
    """What the system says; empty: what it says to the released model (`markup.SYSTEM`)."""


Record: TypeAlias = Caption | Question | GroundedCaption | Referring | OcrPage | PlainText | Dialogue

KINDS: Mapping[str, type[Record]] = MappingProxyType(
    {
        "caption": Caption,
        "question": Question,
        "grounded_caption": GroundedCaption,
        "referring": Referring,
        "ocr": OcrPage,
        "text": PlainText,
        "dialogue": Dialogue,
    }
)
"""Name of a kind in JSON -> its class."""

_NAMES = {cls: name for name, cls in KINDS.items()}


def kind_of(record: Record) -> str:
    """The name of a record's kind: "caption", "question" and so on."""
    return _NAMES[type(record)]


# === JSON ===


def to_json(record: Record) -> str:
    """One line of JSON; the same record always gives the same line. Raises ValueError as `to_values`."""
    return json.dumps(to_values(record), ensure_ascii=False, separators=(",", ":"))


def to_values(record: Record) -> dict[str, Any]:
    """The object of JSON that `from_values` reads.

    Raises ValueError for an image in memory: only paths can be written down.
    """
    line: dict[str, Any] = {"kind": kind_of(record)}
    line.update({f.name: _plain(getattr(record, f.name)) for f in fields(record)})
    if not line.get("system", True):
        del line["system"]
    return line


def from_json(line: str) -> Record:
    """The record of one line; raises ValueError that says which field is wrong."""
    return from_values(parse_json(line, "the line"))


def from_values(values: Any) -> Record:
    """The record of a line that is read already; raises ValueError that says which field is wrong."""
    name = values.get("kind") if isinstance(values, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f"a line of kind {str(values)[:60]!r}; expected an object with a kind of {', '.join(KINDS)}."
        )
    known = {f.name: f.name in _REQUIRED[kind] for f in fields(kind)}
    given = {name: value for name, value in values.items() if name != "kind"}
    if wrong := sorted({*given} - {*known}) or sorted(
        n for n, needed in known.items() if needed - (n in given) > 0
    ):
        raise ValueError(
            f"the field {wrong[0]!r} of a {values['kind']} is unknown or missing; it has {', '.join(known)}."
        )
    try:
        return kind(**{name: _typed(name, value) for name, value in given.items()})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"a {values['kind']} with a field of the wrong type ({error}): {str(values)[:80]!r}."
        ) from None


_REQUIRED = {
    kind: {f.name for f in fields(kind)} - {"source", "language", "system"} for kind in KINDS.values()
}


def _plain(value: Any) -> Any:
    if isinstance(value, Image):
        return _path(value)
    if isinstance(value, Quad):
        return {"text": value.label or "", "quad": [list(point) for point in value.points]}
    if isinstance(value, Box):
        return [value.x1, value.y1, value.x2, value.y2]
    if isinstance(value, Turn):
        said: dict[str, Any] = {"role": value.role, "content": spell_with_paths(value.content)}
        return said if value.loss else {**said, "loss": False}
    if (
        isinstance(value, tuple)
        and value
        and isinstance(value[0], get_args(Segment))
        and not _all_boxes(value)
    ):
        return spell_with_paths(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _all_boxes(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, Box) for value in values) or all(isinstance(value, Quad) for value in values)


def _typed(name: str, value: Any) -> Any:
    match name:
        case "image":
            return Image(_string(name, value))
        case "boxes":
            return tuple(Box(*corners) for corners in value)
        case "lines":
            return tuple(
                Quad(tuple(map(tuple, line["quad"])), label=_string("text", line["text"]))  # type: ignore[arg-type]
                for line in value
            )
        case "caption":
            return tuple(parse_trusted(_string(name, value)))
        case "turns":
            return tuple(map(_turn, value))
        case "language":
            if value not in get_args(Language):
                raise ValueError(f"language is {value!r}; expected one of {', '.join(get_args(Language))}.")
            return value
    return _string(name, value)


def _turn(values: Any) -> Turn:
    role, content, loss = values["role"], values["content"], values.get("loss", True)
    if (
        role not in ("user", "assistant")
        or not isinstance(loss, bool)
        or {*values} - {"role", "content", "loss"}
    ):
        raise ValueError(
            f"a turn {str(values)[:80]!r}; expected a role of 'user' or 'assistant', a content, and `loss` false where "
            "nothing of it is learned."
        )
    return Turn(role, tuple(parse_trusted(_string("content", content))), loss)


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the field {name!r} is {value!r}; expected a string.")
    return value


def _path(image: Image) -> str:
    if not isinstance(image.source, str):
        raise ValueError(
            f"an image in memory ({type(image.source).__name__}) cannot be written as JSON; save it and use its path."
        )
    return image.source


def spell_with_paths(segments: Sequence[Segment | str]) -> str:
    """Segments as the text that `parse_trusted` reads back, images as `<img>path</img>` (official JSON).

    Raises ValueError for a text that spells a tag: it would come back as markup.
    """
    parts = [f"<img>{_path(s)}</img>" if isinstance(s, Image) else spell(s) for s in segments_of(segments)]
    text = "".join(parts)
    if any(isinstance(s, Text) for s in segments) and any(
        tag in text for tag in ("<ref", "<box", "<quad", "<img")
    ):
        bare = tuple(s if isinstance(s, Image) else _unlabelled(s) for s in segments_of(segments))
        if tuple(_unlabelled(s) for s in parse_trusted(text)) != bare:
            raise ValueError(
                f"the text {text[:80]!r} spells a tag and would be read back as markup; remove the tag."
            )
    return text


def _unlabelled(segment: Segment) -> Segment:
    return replace(segment, label=None, score=None) if isinstance(segment, Box | Quad) else segment


def images(record: Record) -> tuple[Image, ...]:
    """The images of a record, in order."""
    if isinstance(record, Dialogue):
        return tuple(s for turn in record.turns for s in turn.content if isinstance(s, Image))
    return () if isinstance(record, PlainText) else (record.image,)
