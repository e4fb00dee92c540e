"""What can be said and asked about a scene of drawings, in English and Chinese, as records (Box B.1 and ChatML).

Only what the scene answers clearly is asked; whatever a question names is named so that it fits one thing, or says how
many there are. Colours are asked of icons of one ink, which were painted in them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qwenvl.data.drawings.scenes import INKS, Props, Scene, Sign, Thing
from qwenvl.data.drawings.splits import Noun, noun
from qwenvl.data.records import (
    Caption,
    Dialogue,
    GroundedCaption,
    Language,
    OcrPage,
    Question,
    Record,
    Referring,
)
from qwenvl.data.toy.worlds import Dice
from qwenvl.markup import Box, Image, Quad, Ref, Segment, Text, Turn

WHAT: Mapping[Language, str] = {"en": "What is this?", "zh": "这是什么？"}
"""The question about an image of one thing."""

HOW_MANY, IS_THERE, WHERE = "How many {} are there?", "Is there {} in the picture?", "Where is the {}?"
"""Questions that are asked of an image, and of what stands in its place in words (`words.lookups`)."""

NUMBERS = ("no", "one", "two", "three", "four", "five")
NUMBERS_ZH = ("零", "一", "两", "三", "四", "五")

PLURALS = {
    "man": "men", "woman": "women", "child": "children", "mouse": "mice", "computer mouse": "computer mice",
    "foot": "feet", "tooth": "teeth", "fish": "fish", "sheep": "sheep", "deer": "deer", "scissors": "scissors",
    "glasses": "glasses", "sunglasses": "sunglasses", "knife": "knives", "leaf": "leaves", "wolf": "wolves",
    "snowman": "snowmen", "jeans": "jeans", "loaf": "loaves", "tomato": "tomatoes", "potato": "potatoes",
    "squid": "squid", "shrimp": "shrimp", "dice": "dice", "goose": "geese",
}  # fmt: skip

CLEARANCE = 0.06
"""Sides of the canvas by which a place must be clear of the middle, or of another thing."""


# === Names ===


def plural(name: str) -> str:
    """Several of it."""
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh", "z")):
        return f"{name}es"
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def article(phrase: str) -> str:
    """The phrase with `a` or `an` before it."""
    vowel = phrase[0] in "aeiouAEIOU" and not phrase.startswith(("uni", "use", "eu", "one"))
    return f"{'an' if vowel else 'a'} {phrase}"


def said(name: str) -> str:
    """A name as a dialogue says it: `a cat`, `some scissors`.

    A name that begins an answer has other tokens than behind a space, where all stages before have learned it: without
    an article one of a hundred is right (docs/EXPERIMENTS.md, 2026-11-29).
    """
    return f"some {name}" if name.endswith("s") and not name.endswith(("ss", "us")) else article(name)


def called(things: Sequence[Thing], language: Language) -> str:
    """One thing, or several of one kind: `a red key`, `two cats`; `红色的钥匙`, `两个猫`."""
    shown, many = things[0].shown, len(things)
    inks = {thing.ink for thing in things}
    ink = things[0].ink if len(inks) == 1 else ""
    if language == "zh":
        name = f"{INKS[ink][0]}的{shown.zh[0]}" if ink else shown.zh[0]
        return name if many == 1 else f"{NUMBERS_ZH[many]}个{name}"
    if many == 1:
        return article(f"{ink} {shown.noun}" if ink else shown.noun)
    name = plural(shown.noun)
    return f"{NUMBERS[many]} {ink} {name}" if ink else f"{NUMBERS[many]} {name}"


def references(scene: Scene, thing: Thing, language: Language) -> list[str]:
    """Phrases that fit this thing and no other, shortest first; of several of a kind the ones at the edges."""
    same = scene.by_noun[thing.shown.id]
    name = thing.shown.zh[0] if language == "zh" else thing.shown.noun
    found = []
    if len(same) == 1:
        found.append(name)
    if thing.ink and sum(other.ink == thing.ink for other in same) == 1:
        found.append(f"{INKS[thing.ink][0]}的{name}" if language == "zh" else f"{thing.ink} {name}")
    for place, place_zh, edge in (("on the left", "左边", 0), ("on the right", "右边", -1)):
        if len(same) > 1 and same[edge] is thing and _apart(same, edge):
            found.append(f"{place_zh}的{name}" if language == "zh" else f"{name} {place}")
    return found if language == "zh" else [f"the {phrase}" for phrase in found]


def _apart(same: Sequence[Thing], edge: int) -> bool:
    """Whether the first or last of several stands clearly apart from the next."""
    one, other = (same[0], same[1]) if edge == 0 else (same[-1], same[-2])
    return abs(_middle(one)[0] - _middle(other)[0]) > 8


def _middle(thing: Thing | Sign) -> tuple[float, float]:
    left, top, right, bottom = thing.box
    return (left + right) / 2, (top + bottom) / 2


def box(thing: Thing | Sign, side: int) -> Box:
    """Where it is, on the model's grid."""
    return Box.from_pixels(*thing.box, side, side)


def quad(sign: Sign, side: int) -> Quad:
    """The four corners of a plate, labelled with its text."""
    left, top, right, bottom = sign.box
    return Quad.from_pixels(
        ((left, top), (right, top), (right, bottom), (left, bottom)), side, side, label=sign.text
    )


def groups(scene: Scene) -> Sequence[Sequence[Thing]]:
    """The things of each kind, kinds from left to right."""
    return [*scene.by_noun.values()]


# === Records ===

Ask = Callable[[Scene, Props, Image, Language, Dice], Record | None]


def caption(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """Everything that is there."""
    text = "".join(part.text for part in _told(scene, language) if isinstance(part, Text | Ref))
    return Caption(image=image, text=text.strip(), language=language, source="scenes")


def grounded_caption(
    scene: Scene, held: Props, image: Image, language: Language, dice: Dice
) -> Record | None:
    """The same with boxes."""
    return GroundedCaption(image=image, caption=_told(scene, language), language=language, source="scenes")


def _told(scene: Scene, language: Language) -> tuple[Segment, ...]:
    side = len(scene.pixels)
    phrases: list[tuple[str, list[Box]]] = [
        (called(things, language), [box(thing, side) for thing in things]) for things in groups(scene)
    ]
    if scene.sign is not None:
        said = f"写着{scene.sign.text}的牌子" if language == "zh" else f"a sign that says {scene.sign.text}"
        phrases.append((said, [box(scene.sign, side)]))
    parts: list[Segment] = []
    for number, (phrase, boxes) in enumerate(phrases):
        last = number == len(phrases) - 1
        if language == "zh":
            parts += [Text("和" if last else "、")] * (number > 0) + [Ref(phrase)]
        else:
            parts += [Text(" and" if last else ",")] * (number > 0) + [Ref(f" {phrase}")]
        parts += [replace(each, label=phrase) for each in boxes]
    return tuple(parts)


def refer(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """A thing by a phrase that fits it alone; of several of a kind now and then all of them."""
    side = len(scene.pixels)
    things = dice.pick(groups(scene))
    if len(things) > 1 and dice.chance(0.4):
        name = things[0].shown.zh[0] if language == "zh" else f"the {plural(things[0].shown.noun)}"
        return Referring(
            image=image, phrase=name, boxes=tuple(box(each, side) for each in things), source="scenes"
        )
    thing = dice.pick(things)
    phrases = references(scene, thing, language)
    if not phrases:
        return None
    return Referring(image=image, phrase=dice.pick(phrases[:2]), boxes=(box(thing, side),), source="scenes")


def count(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """How many of a kind, now and then of one that is not there."""
    absent = dice.chance(0.15)
    shown = not_there(scene, held, dice) if absent else dice.pick(groups(scene))[0].shown
    if language == "zh" and not shown.zh:
        return None
    many = len(scene.by_noun.get(shown.id, ()))
    asked = f"有几个{shown.zh[0]}？" if language == "zh" else HOW_MANY.format(plural(shown.noun))
    return Question(image=image, question=asked, answer=str(many), source="scenes")


def exists(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """Whether a kind is there."""
    absent = dice.chance(0.5)
    shown = not_there(scene, held, dice) if absent else dice.pick(groups(scene))[0].shown
    if language == "zh":
        if not shown.zh:
            return None
        answer = "没有" if absent else "有"
        return Question(image=image, question=f"图中有{shown.zh[0]}吗？", answer=answer, source="scenes")
    asked = IS_THERE.format(article(shown.noun))
    return Question(image=image, question=asked, answer="no" if absent else "yes", source="scenes")


def not_there(scene: Scene, held: Props, dice: Dice) -> Noun:
    """A noun that names nothing in the scene, by no synonym either."""
    there = {name for thing in scene.things for name in thing.shown.names("en")}
    for _ in range(20):
        shown = noun(dice.pick(held.order))
        if there.isdisjoint(shown.names("en")):
            return shown
    return next(noun(each) for each in held.order if each not in scene.by_noun)


def color(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """The colour of the only one of its kind."""
    inked = [things[0] for things in groups(scene) if len(things) == 1 and things[0].ink]
    if not inked:
        return None
    thing = dice.pick(inked)
    if language == "zh":
        asked, answer = f"{thing.shown.zh[0]}是什么颜色？", INKS[thing.ink][0]
    else:
        asked, answer = f"What color is the {thing.shown.noun}?", thing.ink
    return Question(image=image, question=asked, answer=answer, source="scenes")


PLACES = (("on the left", "左边", 0, 1), ("on the right", "右边", 0, -1), ("at the top", "上面", 1, 1),
          ("at the bottom", "下面", 1, -1))  # fmt: skip
"""English, Chinese, axis, and 1 where the smallest of the axis is meant."""


def what_is(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """What stands at an edge, or alone."""
    if len(scene.things) == 1:
        thing, asked = scene.things[0], WHAT[language]
    else:
        place, place_zh, axis, sign = dice.pick(PLACES)
        order = sorted(scene.things, key=lambda thing: sign * _middle(thing)[axis])
        thing, other = order[0], order[1]
        if abs(_middle(thing)[axis] - _middle(other)[axis]) < CLEARANCE * len(scene.pixels):
            return None
        asked = f"{place_zh}是什么？" if language == "zh" else f"What is {place}?"
    answer = thing.shown.zh[0] if language == "zh" else thing.shown.noun
    return Question(image=image, question=asked, answer=answer, source="scenes")


def where(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """In which part of the canvas the only one of its kind stands."""
    alone = [things[0] for things in groups(scene) if len(things) == 1]
    if not alone:
        return None
    thing, side = dice.pick(alone), len(scene.pixels)
    across, down = (value / side - 0.5 for value in _middle(thing))
    if min(abs(across), abs(down)) < CLEARANCE:
        return None
    if language == "zh":
        asked = f"{thing.shown.zh[0]}在哪里？"
        answer = ("左" if across < 0 else "右") + ("上" if down < 0 else "下")
    else:
        asked, answer = WHERE.format(thing.shown.noun), quarter(thing, side)
    return Question(image=image, question=asked, answer=answer, source="scenes")


def quarter(thing: Thing, side: int) -> str:
    """The quarter of the canvas that its middle is in: `top left`."""
    across, down = _middle(thing)
    return f"{'top' if down < side / 2 else 'bottom'} {'left' if across < side / 2 else 'right'}"


def read(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """What the sign says."""
    if scene.sign is None:
        return None
    asked = "牌子上写着什么？" if language == "zh" else "What does the sign say?"
    return Question(image=image, question=asked, answer=scene.sign.text, source="scenes")


def ocr(scene: Scene, held: Props, image: Image, language: Language, dice: Dice) -> Record | None:
    """The sign with its corners."""
    if scene.sign is None:
        return None
    return OcrPage(image=image, lines=(quad(scene.sign, len(scene.pixels)),), source="scenes")


ASK: Mapping[str, Ask] = {
    "caption": caption, "grounded_caption": grounded_caption, "refer": refer, "count": count, "exists": exists,
    "color": color, "what": what_is, "where": where, "read": read, "ocr": ocr,
}  # fmt: skip
"""Kinds of records about one scene."""


def records(
    scene: Scene, held: Props, image: Image, seed: int, *, kinds: Sequence[str], limit: int
) -> list[Record]:
    """Up to `limit` records of these kinds in random order, no question twice; half Chinese where all names are.

    The same arguments give the same records. A scene on which nothing found a place has none.
    """
    dice = Dice("telling", seed, scene.name)
    order = list(kinds)
    dice.shuffle(order)
    found: dict[object, Record] = {}
    for kind in order if scene.things else ():
        if len(found) >= limit:
            break
        language: Language = "zh" if scene.in_chinese and dice.chance(0.45) else "en"
        made = ASK[kind](scene, held, image, language, dice)
        if made is not None:
            asked = getattr(made, "question", None) or getattr(made, "phrase", None)
            found.setdefault(asked or (kind, language), made)
    return list(found.values())


def which_image(scenes: Sequence[Scene], held: Props, images: Sequence[Image], seed: int) -> Dialogue | None:
    """A dialogue about two scenes, of which one shows what is asked for; None where they show the same."""
    dice = Dice("which", seed, *(each.name for each in scenes))
    turns: list[Turn] = []
    shown: tuple[Segment, ...] = tuple(images)
    for _ in range(4):
        number = dice.below(2)
        others = {name for thing in scenes[1 - number].things for name in thing.shown.names("en")}
        only = [thing.shown for thing in scenes[number].things if others.isdisjoint(thing.shown.names("en"))]
        if not only:
            continue
        named = dice.pick(only)
        if named.zh and dice.chance(0.45):
            asked, answer = f"哪张图片里有{named.zh[0]}？", f"Picture {number + 1}里有{named.zh[0]}。"
        else:
            asked = f"Which picture shows {article(named.noun)}?"
            answer = f"Picture {number + 1} shows {article(named.noun)}."
        if any(Text(asked) in turn.content for turn in turns):
            continue
        turns += [Turn("user", (*shown, Text(asked))), Turn("assistant", (Text(answer),))]
        shown = ()
    return Dialogue(turns=tuple(turns), source="scenes") if turns else None


CHATTED = ("count", "exists", "color", "what", "where", "read", "caption", "refer") * 2
"""Kinds that a dialogue about one scene asks for."""

FIND = {"en": "Where is {}? Show it with a box.", "zh": "用框标出{}。"}
DESCRIBE = {"en": "What is in this picture?", "zh": "图片里有什么？"}


def dialogue(scene: Scene, held: Props, image: Image, seed: int, *, exchanges: int = 5) -> Dialogue:
    """A dialogue about one scene, of what `records` tells of it; of a bare one that nothing is there."""
    turns: list[Turn] = []
    shown: tuple[Segment, ...] = (image,)
    for record in records(scene, held, image, seed, kinds=CHATTED, limit=exchanges):
        asked, answer = _exchange(record)
        turns += [Turn("user", (*shown, Text(asked))), Turn("assistant", answer)]
        shown = ()
    if not turns:
        turns = [Turn("user", (*shown, Text(DESCRIBE["en"]))), Turn("assistant", (Text("Nothing."),))]
    return Dialogue(turns=tuple(turns), source="scenes")


def _exchange(record: Record) -> tuple[str, tuple[Segment, ...]]:
    """A record as a question and an answer of a dialogue."""
    match record:
        case Question():
            named = record.question.startswith("What is ")
            return record.question, (Text(said(record.answer) if named else record.answer),)
        case Caption():
            return DESCRIBE[record.language], (Text(record.text),)
        case Referring():
            language = "en" if record.phrase.isascii() else "zh"
            return FIND[language].format(record.phrase), (Ref(record.phrase), *record.boxes)
    raise AssertionError(record)
