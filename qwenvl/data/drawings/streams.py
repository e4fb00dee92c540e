"""Training documents made of fetched drawings: document number `index` is a pure function of (seed, index).

lookups         things in words, and questions that name them                    before any is looked up in an image
image_lookups   an image, and the same questions                                 the beginning of stage 2
drawn_text      a scene in words, and the records about it without an image      the language model's own pre-training
names           a drawing on some ground, and its name: caption or answer        stage 1, and the naming of nouns before
drawn_captions  a scene and its caption, some with boxes                         stage 1
lone_scenes     a scene of one thing, asked about in the same ways               the beginning of stage 2
few_scenes      a scene of two things at most: which of them is meant            then these
boxed_scenes    a scene of one to five things: where each is, and what is there  and these: boxes in number
busy_scenes     a scene in which there is more to count and to read              counting and reading
scenes          a scene and several of the formats of Box B.1, a branch each     stage 2
map_regions     a map, and its regions by name                                   stage 2
drawn_pages     a small page of text, each line with its corners                 stage 2
drawn_talks     a dialogue in ChatML about one drawing                           stage 3
drawn_chats     a dialogue in ChatML about one scene or two                      stage 3
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from jaxtyping import UInt8
from numpy import asarray, ndarray
from PIL import Image as pillow

from qwenvl.data.drawings import fonts, maps
from qwenvl.data.drawings.collection import Drawing, opened
from qwenvl.data.drawings.labels import noun_number
from qwenvl.data.drawings.poses import cut_out, is_of_one_ink, posed, repainted
from qwenvl.data.drawings.scenes import (
    INKS,
    MOST,
    PHOTOGRAPHS,
    SEVERAL,
    SIGNED,
    Corners,
    Props,
    Scene,
    props,
    scene,
)
from qwenvl.data.drawings.splits import nouns
from qwenvl.data.drawings.talking import talk
from qwenvl.data.drawings.telling import ASK, WHAT, dialogue, records, which_image
from qwenvl.data.drawings.words import in_words, lookups
from qwenvl.data.formats import Example, example, task
from qwenvl.data.records import Caption, Language, Question, Record
from qwenvl.data.stream.order import Order
from qwenvl.data.synth.pages.length import Ruler
from qwenvl.data.synth.pages.look import Look
from qwenvl.data.synth.pages.page import PageMaker
from qwenvl.data.tasks import example_of, formats_of, task_of
from qwenvl.data.toy.worlds import Dice
from qwenvl.images import WHITE, over
from qwenvl.markup import Image, Rendered, render
from qwenvl.tokenizer import Tokenizer

SIZE = 112
"""Pixels a side of a drawing alone."""

NAMED = 3
"""Drawings that show a noun, for each of the others: of 37,600 drawings of npm one in seven does."""

ASKED = 0.5
"""Share of the names that answer a question; the others are captions."""

CHINESE = 0.4
"""Share of the captions that are Chinese, where a drawing has a name in both languages."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which drawings, in which order."""

    folder: Path
    """What `qwenvl data fetch drawings` has filled."""
    licences: str
    """One of `collection.LICENCES`."""
    seed: int


@lru_cache(maxsize=4)
def _training(folder: Path, licences: str) -> Sequence[Drawing]:
    drawings = opened(folder).training(licences)
    if not drawings:
        raise ValueError(f"{folder} holds no drawing that may be trained on; fetch more sets into it.")
    return drawings


@lru_cache(maxsize=4)
def _kinds(folder: Path, licences: str) -> tuple[Sequence[Drawing], Sequence[Drawing]]:
    """The drawings of a noun, and all others; the one for the other where there is none."""
    drawings = _training(folder, licences)
    named = [each for each in drawings if noun_number(each) is not None]
    others = [each for each in drawings if noun_number(each) is None]
    return named or others, others or named


@lru_cache(maxsize=8)
def _order(size: int, kind: int, seed: int) -> Order:
    return Order(size, None, "drawings", kind, seed)


def training(place: Place) -> Sequence[Drawing]:
    """All drawings of a place. Raises ValueError where there is none."""
    return _training(place.folder, place.licences)


def drawing_at(place: Place, index: int) -> Drawing:
    """The drawing of a document: three times one of a noun, then any other, each once in an epoch of its kind."""
    turn, rest = divmod(index, NAMED + 1)
    kind, drawn = (0, NAMED * turn + rest) if rest < NAMED else (1, turn)
    drawings = _kinds(place.folder, place.licences)[kind]
    _, number = _order(len(drawings), kind, place.seed)(drawn)
    return drawings[number]


def image_of(place: Place, index: int, size: int = SIZE) -> UInt8[ndarray, "size size 3"]:
    """The drawing of a document as it stands there."""
    drawing = drawing_at(place, index)
    return posed(drawing.image(), Dice("pose", place.seed, index), size, name=drawing.en)[0]


@lru_cache(maxsize=16384)
def cut_out_of(drawing: Drawing, longest: int) -> pillow.Image:
    """The cut-out of a drawing, no larger than `longest` pixels a side; kept in memory for its next pose."""
    image = cut_out(drawing.image())
    ratio = longest / max(image.size)
    sides = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    return image.resize(sides, pillow.Resampling.BOX) if ratio < 1 else image


def names_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A drawing and what it is called, in one of its languages: its caption, or the answer (formats 1 and 2)."""
    drawing, dice = drawing_at(place, index), Dice("language", place.seed, index)
    names, image = _names(drawing), Image(image_of(place, index))
    language: Language = "zh" if "zh" in names and ("en" not in names or dice.chance(CHINESE)) else "en"
    record: Record = Caption(image=image, text=names[language], language=language, source=drawing.source)
    if dice.chance(ASKED):
        record = Question(image=image, question=WHAT[language], answer=names[language], source=drawing.source)
    return example_of(record, tokenizer, queries)


def _names(drawing: Drawing) -> Mapping[Language, str]:
    """What a drawing is called in the languages that it has a name in."""
    names: dict[Language, str] = {"en": drawing.en, "zh": drawing.zh}
    return {language: name for language, name in names.items() if name}


CAPTIONS = ("caption", "caption", "grounded_caption")
KINDS = (*ASK, *("refer", "count") * 2, "exists", "what", "color", "where")
"""Kinds of records that scenes are asked for; short answers stand twice, for a loss per token counts them little."""
TELLING_APART = (*("refer",) * 3, *("what", "exists", "count") * 2, "read", "where", "caption")
"""Kinds of which most can be answered only by finding what is asked for, and that take few tokens."""

COUNTING_AND_READING = (*("count", "read") * 3, *("refer",) * 2, "exists", "what")
"""Kinds that busy scenes are asked for."""

BUSY = (0.7, 0.7)
"""How often busy scenes have several of a kind and a sign: of all counts in other scenes seven in ten are 1."""

BOXED, BOXES = (*("refer",) * 16, *("grounded_caption",) * 2), 12
"""Kinds that scenes are asked for of which only boxes are wanted, and records told of one."""

RECORDS, DOCUMENT_TOKENS = 10, 260
"""Records told of one scene, and the tokens beyond which a document takes no more of them."""


@dataclass(frozen=True, eq=False)
class Composed(Image):
    """An image of which is known what stands where."""

    things: tuple[tuple[str, tuple[float, ...]], ...]
    """What each is called, as a text goes on with it, and left, top, right, bottom in sides of the image."""


def composed(shown: Scene) -> Composed:
    """The image of a scene."""
    side = len(shown.pixels)
    return Composed(
        shown.pixels,
        tuple((name, tuple(edge / side for edge in box)) for name, box in named_things(shown)),
    )


def named_things(shown: Scene) -> Sequence[tuple[str, Corners]]:
    """All that stands in a scene: what it is called, as a text goes on with it, and its box in pixels."""
    things = [(f" {each.shown.noun}", each.box) for each in shown.things]
    return things if shown.sign is None else [*things, (f" {shown.sign.text} sign", shown.sign.box)]


def scene_at(place: Place, index: int, *, most: int = MOST, busy: bool = False) -> tuple[Scene, Props]:
    """The scene of a document, and what it is composed of."""
    held, (several, signed) = props(place.folder, place.licences), BUSY if busy else (SEVERAL, SIGNED)
    return scene(held, place.seed, index, most=most, several=several, signed=signed), held


def captions_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene and what is in it."""
    return _scene_document(place, tokenizer, queries, index, CAPTIONS, 1)


def lone_scenes_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene of one thing and several records about it: where something is, before what is where."""
    return _scene_document(place, tokenizer, queries, index, KINDS, RECORDS, most=1)


def few_scenes_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene of two things at most: which of them is meant, before there are more to choose from."""
    return _scene_document(place, tokenizer, queries, index, TELLING_APART, RECORDS, most=2)


def boxed_scenes_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene of one thing, of two, up to five, and boxes, as many as fit: digits take tens of thousands to learn."""
    return _scene_document(place, tokenizer, queries, index, BOXED, BOXES, most=1 + index % MOST)


def busy_scenes_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene with several of a kind and a sign, each more often than not: how many, and what it says."""
    return _scene_document(place, tokenizer, queries, index, COUNTING_AND_READING, RECORDS, busy=True)


def scenes_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene as trunk and several records about it as branches."""
    return _scene_document(place, tokenizer, queries, index, KINDS, RECORDS)


def _scene_document(
    place: Place,
    tokenizer: Tokenizer,
    queries: int,
    index: int,
    kinds: Sequence[str],
    limit: int,
    *,
    most: int = MOST,
    busy: bool = False,
) -> Example:
    shown, held = scene_at(place, index, most=most, busy=busy)
    image = composed(shown)
    about = records(shown, held, image, place.seed, kinds=kinds, limit=limit)
    return _told(render(image, tokenizer, queries), about, tokenizer, queries)


def text_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A scene in words as trunk, records about it as branches; only answers are learned: scenes are drawn by chance."""
    shown, held = scene_at(place, index)
    trunk = render(in_words(shown, place.seed), tokenizer, queries)
    about = records(shown, held, Image(shown.pixels), place.seed, kinds=KINDS, limit=RECORDS)
    return _told(trunk, about, tokenizer, queries)


def lookups_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """The things of a scene in words as trunk, questions answered by finding one of them as branches."""
    shown, held = scene_at(place, index)
    words, about = lookups(shown, held, Image(shown.pixels), place.seed)
    return _told(render(words, tokenizer, queries), about, tokenizer, queries)


def image_lookups_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """The scene itself as trunk, and the same questions."""
    shown, held = scene_at(place, index)
    image = composed(shown)
    _, about = lookups(shown, held, image, place.seed)
    return _told(render(image, tokenizer, queries), about, tokenizer, queries)


def _told(trunk: Rendered, about: Iterable[Record], tokenizer: Tokenizer, queries: int) -> Example:
    """Records behind what shows what they are about, a branch for each way of telling one, as many as fit."""
    left = DOCUMENT_TOKENS - len(trunk)
    branches = []
    for record in about:
        for format in formats_of(record):
            message = task_of(record, format)
            branch = task(message.prompt[1:], message.answer, tokenizer, queries)  # the trunk shows it
            if len(branch) <= left:
                branches.append(branch)
                left -= len(branch)
    return example(trunk, branches)


# === Maps and pages ===

REGIONS = 6
"""Regions of a map that a document asks for."""

PAGE = Look(
    longest=168, aspect=(1, 1.3), fullscreen=1, text_scale=(0.09, 0.14), rows=4, columns=1, fill=(0.8, 1)
)
"""Pages of the size of a scene, which fill it: few lines, letters as large as those on its signs."""


@lru_cache(maxsize=4)
def _maps(folder: Path, licences: str) -> Sequence[Drawing]:
    found = [each for each in _training(folder, licences) if each.regions]
    if not found:
        raise ValueError(
            f"{folder} holds no map that may be trained on; maps are in Debian's kgeography-data, under GPL: fetch it, "
            'and give the row licences = "any".'
        )
    return found


def regions_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A map as trunk; what it shows and its regions, found and named, as branches."""
    drawings = _maps(place.folder, place.licences)
    _, number = _order(len(drawings), 2, place.seed)(index)
    image = Image(asarray(over(drawings[number].image(), WHITE)))
    about = maps.records(drawings[number], image, Dice("map", place.seed, index), REGIONS)
    return _told(render(image, tokenizer, queries), about, tokenizer, queries)


@lru_cache(maxsize=4)
def _pages(folder: Path, tokenizer: Tokenizer, queries: int) -> PageMaker:
    """The generator of pages in the letters of signs, whose pages fit a document."""
    ruler = Ruler(tokenizer=tokenizer, queries=queries)
    left = DOCUMENT_TOKENS - ruler.frame()
    return PageMaker(PAGE, fonts=fonts.of_pages(folder), tokens=left, cost=ruler.line)


def pages_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A page of made-up text, read with the corners of its lines (Box B.1, OCR)."""
    page = _pages(place.folder, tokenizer, queries).page(place.seed, index)
    record = replace(page.record(b""), image=Image(asarray(page.image)))
    return example_of(record, tokenizer, queries)


# === Dialogues ===

PAINTED = 0.5
"""Share of the icons of one ink that are painted in a colour which may be asked for."""


def talks_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A dialogue about one drawing: what it is, what it is not, which colour it has."""
    drawing, dice = drawing_at(place, index), Dice("talk", place.seed, index)
    cut = cut_out_of(drawing, SIZE)
    ink = dice.pick(tuple(INKS)) if is_of_one_ink(cut) and dice.chance(PAINTED) else ""
    shown = repainted(cut, INKS[ink][1]) if ink else cut
    pixels, _ = posed(shown, Dice("pose", place.seed, index), SIZE, name=drawing.en, painted=bool(ink))
    number = noun_number(drawing)
    noun = None if number is None else nouns()[number]
    return example_of(talk(Image(pixels), _names(drawing), noun, ink, dice), tokenizer, queries)


def chats_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A dialogue: one scene and questions about it, or two and which of them shows what."""
    dice = Dice("chat", place.seed, index)
    first, held = scene_at(place, 2 * index)
    if dice.chance(0.3):
        second, _ = scene_at(place, 2 * index + 1)
        images = (Image(first.pixels), Image(second.pixels))
        if (two := which_image((first, second), held, images, place.seed)) is not None:
            return example_of(two, tokenizer, queries)
    record = dialogue(first, held, Image(first.pixels), place.seed)
    return example_of(record, tokenizer, queries)


SOURCES: Mapping[str, Callable[[Place, Tokenizer, int, int], Example]] = {
    "lookups": lookups_document,
    "image_lookups": image_lookups_document,
    "drawn_text": text_document,
    "names": names_document,
    "drawn_captions": captions_document,
    "lone_scenes": lone_scenes_document,
    "few_scenes": few_scenes_document,
    "boxed_scenes": boxed_scenes_document,
    "busy_scenes": busy_scenes_document,
    "scenes": scenes_document,
    "map_regions": regions_document,
    "drawn_pages": pages_document,
    "drawn_talks": talks_document,
    "drawn_chats": chats_document,
}
"""Sources by name: functions of (place, tokenizer, queries, number)."""


def require(place: Place, made: str) -> None:
    """Raises ValueError where a source of `SOURCES` has nothing in its folder that it could be made of."""
    training(place)
    if made == "map_regions":
        _maps(place.folder, place.licences)


def shards(place: Place) -> Mapping[str, tuple[int, int]]:
    """What must stay for a run to go on: the index, its bytes and how many are trained on, fonts and photographs."""
    drawings, index = training(place), place.folder / "index.jsonl"
    photographs = sorted(each for each in (place.folder / PHOTOGRAPHS).rglob("*") if each.is_file())
    others = {str(file): (file.stat().st_size, 1) for file in (*fonts.files(place.folder), *photographs)}
    return {str(index): (index.stat().st_size, len(drawings)), **others}
