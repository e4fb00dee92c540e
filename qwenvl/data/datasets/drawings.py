"""Held-out drawings as benchmarks: what is this, by free answer and among nouns; boxes, counts and signs in scenes.

`--data` is the folder of `qwenvl data fetch drawings`; the splits are those of `data.drawings.splits`, of which nothing
is trained on. Beside each naming stands what likeness alone would answer (`data.drawings.neighbours`). Scenes are
composed of nothing but held-out drawings.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

from PIL import Image as pillow

from qwenvl.data.datasets.sample import Sample, Source, checked, name_of_option
from qwenvl.data.drawings.collection import Drawing, opened
from qwenvl.data.drawings.neighbours import neighbours
from qwenvl.data.drawings.scenes import SIDE, props, scene
from qwenvl.data.drawings.splits import SPLITS, Noun, noun, nouns
from qwenvl.data.drawings.telling import ASK, WHAT
from qwenvl.data.records import Language, Question, Referring
from qwenvl.data.toy.worlds import Dice
from qwenvl.images import WHITE, over
from qwenvl.markup import Image

SCENES = 200
"""Questions about scenes of each split; `--limit` takes the first of them."""

SEED = 1
"""The same seed composes the same scenes for every model."""


def naming(language: Language) -> Callable[[Source], list[Sample]]:
    """A reader of free questions about every held-out drawing that has a name in this language."""

    def read(source: Source) -> list[Sample]:
        held = [(split, each, shown) for split, each, shown in _held_out(source) if shown.names(language)]
        beside = _beside(source, held, frozenset(each.id for each in nouns()))
        return checked(
            (
                Sample(
                    id=f"{split}/{drawing.name}", images=(_on_white(drawing),), text=WHAT[language],
                    answers=shown.names(language), group=split,
                    beside={name: noun(id).names(language)[:1] for name, id in said.items()},
                )
                for (split, drawing, shown), said in zip(held, beside, strict=True)
            ),
            source.data,
        )  # fmt: skip

    return read


def choosing(size: int) -> Callable[[Source], list[Sample]]:
    """A reader of the same questions with the first `size` nouns as options, about drawings of those nouns."""

    def read(source: Source) -> list[Sample]:
        among = nouns()[:size]
        numbers = {each.id: number for number, each in enumerate(among)}
        held = [(split, each, shown) for split, each, shown in _held_out(source, size) if shown.id in numbers]
        beside = _beside(source, held, frozenset(numbers))
        options = tuple(f" {each.noun}" for each in among)
        return checked(
            (
                Sample(
                    id=f"{split}/{drawing.name}", images=(_on_white(drawing),), text=WHAT["en"], options=options,
                    answers=tuple(name_of_option(numbers[each.id]) for each in _same(shown, among)), group=split,
                    beside={name: (name_of_option(numbers[id]),) for name, id in said.items()},
                )
                for (split, drawing, shown), said in zip(held, beside, strict=True)
            ),
            source.data,
        )  # fmt: skip

    return read


def _same(shown: Noun, among: Sequence[Noun]) -> Iterator[Noun]:
    """The noun itself, and others of the list by whose name it goes too: a bicycle is a bike."""
    return (each for each in among if each.id == shown.id or each.noun in shown.synonyms)


def _held_out(source: Source, size: int = 0) -> list[tuple[str, Drawing, Noun]]:
    """The drawings of all splits that are here; where few are wanted, as many of each, in turn."""
    among = {each.id for each in nouns()[: size or None]}
    parts = [
        [(split, drawing, noun(id)) for drawing, id in opened(source.data).held_out(split) if id in among]
        for split in SPLITS
    ]
    if not any(parts):
        raise ValueError(
            f"{source.data} holds no drawing that is held out; fetch twemoji (npm) or Debian's sets into it."
        )
    if source.limit is None:
        return [each for part in parts for each in part]
    longest = max(map(len, parts))
    turns = [part[k] for k in range(longest) for part in parts if k < len(part)]
    return turns[: source.limit]


def _beside(
    source: Source, held: Sequence[tuple[str, Drawing, Noun]], among: frozenset[str]
) -> Iterator[dict[str, str]]:
    """What likeness and who does not look would say of each drawing."""
    said = neighbours(source.data, among).named([drawing.image() for _, drawing, _ in held])
    return ({name: answers[number] for name, answers in said.items()} for number in range(len(held)))


def _on_white(drawing: Drawing) -> bytes:
    return _png(over(drawing.image(), WHITE))


def _png(image: pillow.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# === Scenes ===


def scenes(kind: str) -> Callable[[Source], list[Sample]]:
    """A reader of questions of one kind of `telling.ASK` about scenes, in both languages where they have the words."""

    def read(source: Source) -> list[Sample]:
        there = [split for split in SPLITS if len({id for _, id in opened(source.data).held_out(split)}) > 1]
        if not there:
            raise ValueError(
                f"{source.data} holds too few held-out drawings to compose scenes; fetch more sets."
            )
        each = SCENES if source.limit is None else -(-source.limit // len(there))
        return [sample for split in there for sample in islice(_asked(source, split, kind), each)]

    return read


def _asked(source: Source, split: str, kind: str) -> Iterator[Sample]:
    held = props(source.data, split=split)
    for number in count():
        shown = scene(held, SEED, number)
        language: Language = "zh" if number % 2 and shown.in_chinese else "en"
        dice, image = Dice("asked", split, number), Image("")
        record = ASK[kind](shown, held, image, language, dice) if shown.things else None
        if record is None or (isinstance(record, Referring) and len(record.boxes) > 1):
            continue
        stored = _png(pillow.fromarray(shown.pixels))
        name, size = f"{split}/{number}/{language}", (SIDE, SIDE)
        if isinstance(record, Referring):
            corners = record.boxes[0].to_pixels(*size)
            yield Sample(id=name, images=(stored,), text=record.phrase, box=corners, size=size, group=split)
        else:
            assert isinstance(record, Question)
            blind = {"blind": ("1",)} if kind == "count" else {}
            yield Sample(
                id=name, images=(stored,), text=record.question, answers=(record.answer,), group=split, beside=blind
            )  # fmt: skip
