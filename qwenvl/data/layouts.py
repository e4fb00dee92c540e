"""What a sample of a shard teaches, in whichever layout it stands: the one reader of check, inspect, mix and training.

    {"kind": ...}                a record, as `qwenvl data read` and `qwenvl data synth` write it
    {"format": ..., "record": }  a line of a mixture, as `qwenvl data mix` writes it
    a dialogue                   `data.messages`: the official fine-tuning JSON, LLaVA's, TRL's and others
    image, question, answer      a question about an image
    anything else                a pair: an image and a text under their usual names; of several texts one an epoch

Its images are those of its own tar or parquet row, else files (`data.lookup`). A sample that offers an image which its
text does not use, or holds what nothing here reads (`UNREAD`), is unusable and says so.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from qwenvl.data.clean.characters import HAN
from qwenvl.data.clean.pairs import Source, pairs_of
from qwenvl.data.columns import (
    IMAGE_COLUMNS,
    IMAGES_COLUMNS,
    MAGIC,
    TEXT_COLUMNS,
    TEXTS_COLUMNS,
    is_empty,
    text_of,
)
from qwenvl.data.faults import Unusable, foreign_marks
from qwenvl.data.formats import IGNORE, Example, example
from qwenvl.data.lookup import BASE64_IMAGE, Lookup, names_in
from qwenvl.data.messages import ASKED, MESSAGES, dialogue_of
from qwenvl.data.records import (
    KINDS,
    Caption,
    Dialogue,
    Language,
    Pair,
    PlainText,
    Question,
    Record,
    from_values,
    images,
)
from qwenvl.data.stream.samples import Located, Sample
from qwenvl.data.tasks import Format, formats_of
from qwenvl.data.tasks import example_of as example_of_record
from qwenvl.markup import SYSTEM, Image, Text, Turn, number_images, render_chat, segments_of, spell
from qwenvl.tokenizer import Tokenizer

UNREAD: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("video", "videos", "audio", "audios"), "only images are read"),
        **dict.fromkeys(
            ("tools", "functions", "tool_calls", "function_call"), "tools have no place in a dialogue"
        ),
        **dict.fromkeys(("chosen", "rejected", "rejected_response"), "preferences are not learned"),
        **dict.fromkeys(("choices", "options", "hint"), "write them into the question"),
        **dict.fromkeys(("history",), "write it as turns"),
        **dict.fromkeys(("loss", "weight"), "it is read on turns, where it is 0 or 1"),
        "objects": "boxes.from_objects makes tags of them",
        **dict.fromkeys(("noun_chunks", "ref_exps"), "`qwenvl data read grit-captions` makes boxes of them"),
        "system": "it is read beside a dialogue",
        **dict.fromkeys(("system_prompt", "system_message"), "name it `system`"),
        **dict.fromkeys(MESSAGES, "a sample is one dialogue"),
    }
)
"""Keys that mean something for training and that nothing reads -> why, or what to do."""

QUIET = frozenset(
    (
        "id",
        "key",
        "uid",
        "hash",
        "sha256",
        "source",
        "data_source",
        "dataset",
        "split",
        "url",
        "width",
        "height",
    )
)
"""Keys that nobody needs to be told about: where a sample comes from."""

_SOURCES = ("source", "data_source", "dataset")
_QUESTION, _ANSWERS = "question", ("answer", "answers", "multiple_choice_answer")
_SAID = frozenset((*MESSAGES, *ASKED, *ASKED.values(), _QUESTION, *_ANSWERS))


@dataclass(frozen=True, kw_only=True)
class TrainingSample:
    """A sample that was read."""

    where: str
    """File and number or key, for messages."""
    format: Format
    """In which format of Box B.1 it is told; "dialogue" is ChatML."""
    record: Record
    """What it teaches; of a dialogue the turns as they are rendered, images numbered."""
    not_read: tuple[str, ...] = ()
    """Keys that stand beside it and are not read."""

    @property
    def images(self) -> tuple[Image, ...]:
        """Its images in order: paths, or places in a tar or parquet file."""
        return images(self.record)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Its turns; none where it is no dialogue."""
        return self.record.turns if isinstance(self.record, Dialogue) else ()

    def example(self, tokenizer: Tokenizer, queries: int) -> Example:
        """The sample as ids and labels. Raises Unusable where nothing of it is learned."""
        if isinstance(self.record, Dialogue):
            if not any(_teaches(turn) for turn in self.record.turns):
                raise Unusable("nothing learned", "has no answer with text in it.")
            system = self.record.system or SYSTEM
            turns = self.record.turns
            made = example(render_chat(turns, tokenizer, queries, system=system, open_for_answer=False))
        else:
            try:
                made = example_of_record(self.record, tokenizer, queries, self.format)
            except ValueError as error:
                raise Unusable("broken record", str(error)) from None
        if all(label == IGNORE for label in made.labels):
            raise Unusable("nothing learned", "no text of it would be learned")
        return made


def _teaches(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.loss and bool(spell(turn.content).strip())


def read(sample: Sample, *, format: str = "", epoch: int = 0, strict: bool = True) -> TrainingSample:
    """The sample as what it teaches; `format` tells a record in this format of its kind instead of the first.

    Without `strict` the files of its images need not be there. Raises Unusable.
    """
    columns = {name: value for name, value in sample.columns.items() if not is_empty(value)}
    try:
        record, named_format, offered = _record(columns, sample, epoch)
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable("broken record", str(error)) from None
    named_format = named_format or format or formats_of(record)[0]
    if named_format not in get_args(Format):
        raise Unusable(
            "broken record", f"the format is {named_format!r}; expected one of {', '.join(get_args(Format))}."
        )
    named = [str(image.source) for image in images(record)]
    names = dict.fromkeys([*named, *offered])
    lookup = Lookup(sample, dict.fromkeys([*offered, *named]), strict=strict)
    placed = {name: lookup(name) for name in names}
    _require_used(sample, {placed[name] for name in named}, [placed[name] for name in offered])
    _require_read(columns, named)
    return TrainingSample(
        where=sample.where,
        format=cast(Format, named_format),
        record=with_images(record, lambda image: Image(placed[str(image.source)])),
        not_read=tuple(name for name in columns if name not in QUIET and not isinstance(record, Caption)),
    )


def accepted_answers(sample: Sample, found: TrainingSample) -> tuple[str, ...]:
    """All captions of an image, or all answers of people to a question, of which training takes one at a time.

    Empty where the layout has one answer only. Raises nothing: the sample was read.
    """
    columns = {name: value for name, value in sample.columns.items() if not is_empty(value)}
    if columns.keys() & {"record", "kind"}:
        return ()
    if isinstance(found.record, Question):
        listed = next((columns[name] for name in reversed(_ANSWERS) if name in columns), None)
        return tuple(_said(listed if isinstance(listed, list) else []))
    if isinstance(found.record, Caption):
        names_in(columns)
        pairs = pairs_of(sample.where, columns, None, Source(sample.folder, ""))
        return tuple(each.text.strip() for each in pairs if isinstance(each, Pair))
    return ()


def _said(answers: list[Any]) -> list[str]:
    """What people answered: texts, numbers as their digits; what is neither is no answer."""
    given = (each.get("answer") if isinstance(each, dict) else each for each in answers)
    return [text for each in given if (text := text_of(each))]


def _record(columns: dict[str, Any], sample: Sample, epoch: int) -> tuple[Record, str, list[str]]:
    """The record, the format that the sample itself names, and the images it offers; what is read leaves `columns`."""
    if "record" in columns:
        named_format = str(columns.pop("format", ""))
        return _numbered(from_values(columns.pop("record"))), named_format, []
    if _is_record(columns, sample) and not columns.keys() & {*MESSAGES, _QUESTION}:
        record = from_values(sample.columns)
        columns.clear()
        return _numbered(record), "", []
    offered = names_in(columns) or [*sample.images]
    if (dialogue := dialogue_of(columns, offered)) is not None:
        return dialogue, "", offered
    if _QUESTION in columns and columns.keys() & {*_ANSWERS}:
        return _question(columns, offered), "", offered
    return _caption(columns, sample, offered, epoch), "", offered


def _is_record(columns: Mapping[str, Any], sample: Sample) -> bool:
    """Whether `kind` says which record it is, and not which kind of image lies beside the columns in its shard."""
    named = [*KINDS].count(columns.get("kind", ""))  # whatever its type is
    return "kind" in columns and bool(named or "image" in columns or not sample.images)


_NUMBERED = re.compile(r"Picture\s*\d+\s*:\s*$")


def _numbered(record: Record) -> Record:
    """Records do not number the images of their dialogues; raises ValueError for one that does."""
    if not isinstance(record, Dialogue):
        return record
    for turn in record.turns:
        segments = segments_of(turn.content)
        for before, image in pairwise(segments):
            if (
                isinstance(before, Text)
                and isinstance(image, Image)
                and (own := _NUMBERED.search(before.text))
            ):
                raise ValueError(
                    f"a turn says {own[0].strip()!r} before an image, and images are numbered when records are read; "
                    "leave the numbers out."
                )
    return dataclasses.replace(record, turns=tuple(number_images(record.turns)))


def _question(columns: dict[str, Any], offered: list[str]) -> Question | Dialogue:
    """About one image a short answer, else a dialogue."""
    asked, answer = columns.pop(_QUESTION), None
    for name in _ANSWERS:
        answer = columns.pop(name, answer)
    if isinstance(answer, list):  # as people gave it: the most frequent (Appendix A.2)
        answer = next((said for said, _ in Counter(_said(answer)).most_common(1)), None)
    answer = text_of(answer)
    if not isinstance(asked, str) or answer is None:
        raise Unusable("form", "the question or the answer is no text.")
    if fault := foreign_marks(asked, "user"):
        raise fault
    asked = (
        re.sub(r"[ \t]*<image>[ \t]*\n?", "", asked) if asked.count("<image>") == len(offered) == 1 else asked
    )
    if "<image>" in asked:
        raise Unusable("image count", f"{asked.count('<image>')} marks for {len(offered)} images.")
    if len(offered) == 1:
        source = next((each for name in _SOURCES if isinstance(each := columns.get(name), str)), "")
        return Question(image=Image(offered[0]), question=asked, answer=answer, source=source)
    turns = [Turn("user", (*map(Image, offered), Text(asked))), Turn("assistant", (Text(answer),))]
    return Dialogue(turns=tuple(number_images(turns)))


def _caption(columns: dict[str, Any], sample: Sample, offered: list[str], epoch: int) -> Caption:
    """Chinese where a character of the text is (as `qwenvl data read clean` has it)."""
    found = list(pairs_of(sample.where, columns, None, Source(sample.folder, "")))
    pairs = [each for each in found if isinstance(each, Pair)]
    if (
        not pairs
        and len(offered) > 1
        and not {*map(str.lower, sample.columns)} & {*TEXT_COLUMNS, *TEXTS_COLUMNS}
    ):
        raise Unusable("image count", f"{len(offered)} images and no text that says what to do with them.")
    if not pairs and (empty := [name for name in sample.columns if name in _SAID and name not in columns]):
        raise Unusable("nothing learned", f"`{empty[0]}` is empty.")
    if not pairs and not offered:
        keys = ", ".join(sorted(sample.columns)[:8]) or "nothing"
        raise Unusable("form", f"no layout that is read has these keys: {keys}.")
    if not pairs:
        raise Unusable(next((each.kind for each in found if not isinstance(each, Pair)), "empty caption"))
    if not offered:
        raise Unusable("no image", "the sample has neither an image nor the name of one")
    for name in columns.keys() & UNREAD.keys() - {"objects", "noun_chunks", "ref_exps"}:
        del columns[name]  # a pair's columns mean what its collector meant by them
    pair = pairs[epoch % len(pairs)]
    language: Language = "zh" if HAN.search(pair.text) else "en"
    return Caption(image=Image(offered[0]), text=pair.text, language=language, source=pair.source)


def _require_used(sample: Sample, used: set[Located | Path], offered: list[Located | Path]) -> None:
    """Raises Unusable for an image that is there and not shown."""
    there = [*offered, *sample.images.values()]
    if unused := [each for each in there if each not in used]:
        raise Unusable(
            "image count", f"shows {len(used)} of {len({*there})} images; {unused[0]} is not used."
        )


def _require_read(columns: Mapping[str, Any], shown: Collection[str]) -> None:
    """Raises Unusable for a key that means something and that nothing read; `shown` are the images that are used."""
    for name, value in columns.items():
        own = name.rpartition("[].")[2].lower()
        if own in IMAGE_COLUMNS + IMAGES_COLUMNS and not isinstance(value, str | list):
            raise Unusable(
                "image count", f"`{name}` is a {type(value).__name__}, no image and no name of one."
            )
        if own in UNREAD and not (own in ("loss", "weight") and value == 1):
            raise Unusable("unused content", f"has `{name}`: {UNREAD[own]}.")
        if _holds_image(own, value, {Path(each).name for each in shown}):
            raise Unusable("image count", f"`{name}` holds an image, and no layout reads it there.")


_IMAGE_NAME = re.compile(r"(?i)[^\n]+\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?)")
_MEANT = re.compile(r"image|img|picture|photo")
_MEANT_IF_BLIND = re.compile(r"image|img|picture|photo|file|path|media|visual|figure")


def _holds_image(name: str, value: Any, shown: Collection[str]) -> bool:
    """Whether a column that nothing read holds or names an image other than those shown.

    Where none is shown, a file or a path that is an image's counts too.
    """
    if isinstance(value, list):
        return any(_holds_image(name, each, shown) for each in value)
    if isinstance(value, Mapping):
        return {*value} == {"bytes", "path"} or any(
            _holds_image(f"{name}.{key}".lower(), each, shown) for key, each in value.items()
        )
    if isinstance(value, bytes):
        return value.startswith(MAGIC)
    if not isinstance(value, str) or "://" in value or re.search(r"url|id$", name):
        return False
    meant = (_MEANT if shown else _MEANT_IF_BLIND).search(name) is not None
    named = meant and _IMAGE_NAME.fullmatch(value) is not None and Path(value).name not in shown
    return named or BASE64_IMAGE.match(value) is not None


def with_images(record: Record, placed: Callable[[Image], Image]) -> Record:
    """The record with each of its images replaced."""
    match record:
        case PlainText():
            return record
        case Dialogue():
            turns = [
                dataclasses.replace(
                    turn,
                    content=tuple(placed(part) if isinstance(part, Image) else part for part in turn.content),
                )
                for turn in record.turns
            ]
            return dataclasses.replace(record, turns=tuple(turns))
    return dataclasses.replace(record, image=placed(record.image))
