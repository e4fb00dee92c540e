"""Scenes composed of drawings: cut-outs and signs over plain grounds, made-up surfaces or photographs, boxes exact.

A scene is a function of (seed, index) and of what was fetched. Things never touch; the box of a thing is the extent of
what is opaque in it, that of a sign the extent of its plate, in whole pixels of the canvas. Photographs of a person's
own stand behind scenes where the fetched folder has a folder `photographs`. Signs are in the fonts of the machine, in
Chinese in those of the fetched folder (`fonts`).
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow
from PIL import ImageDraw

from qwenvl.data.drawings import fonts
from qwenvl.data.drawings.collection import Drawing, opened
from qwenvl.data.drawings.poses import cut_out, is_of_one_ink, repainted
from qwenvl.data.drawings.splits import Noun, noun, nouns
from qwenvl.data.synth.pages.fonts import Face
from qwenvl.data.synth.pages.scenery import Backgrounds
from qwenvl.data.toy.worlds import Dice
from qwenvl.images import RGB
from qwenvl.terminal import printable

SIDE = 168
"""Pixels of a canvas, as stage 2 of recipes/drawings reads it."""

CUT = 64
"""Pixels of the longest side at which cut-outs are kept between scenes."""

MOST = 5
"""Things on a canvas, at most."""

SIDES = (32, 40, 48, 56, 64)
"""Longest sides of things on the canvas."""

GAP = 4
"""Pixels between any two things, at the least."""

SEVERAL, SIGNED = 0.3, 0.35
"""How often a noun may be drawn up to three times, and how often there is a sign."""

VISIBLE = 64
"""Alpha from which on a pixel counts as part of a thing."""

INKS: Mapping[str, tuple[str, RGB]] = {
    "red": ("红色", (205, 30, 40)), "green": ("绿色", (30, 140, 60)), "blue": ("蓝色", (35, 80, 215)),
    "yellow": ("黄色", (240, 200, 10)), "purple": ("紫色", (135, 45, 170)), "orange": ("橙色", (245, 125, 10)),
    "black": ("黑色", (20, 20, 20)), "white": ("白色", (250, 250, 250)),
}  # fmt: skip
"""Colours that icons of one ink are painted in: English name -> Chinese name, levels."""

WORDS = ("OPEN", "SALE", "STOP", "EXIT", "CAFE", "BANK", "HOTEL", "TAXI", "BOOKS", "MENU", "PARK", "FREE", "ZOO", "BUS",
         "MUSIC", "FOOD", "HELLO", "PULL", "PUSH", "LOVE", "NEWS", "SHOP", "TEA", "FISH", "GAME", "BEST", "COLD",
         "LUCK", "WASH", "YES")  # fmt: skip
WORDS_ZH = ("出口", "入口", "欢迎", "停车", "商店", "银行", "茶馆", "书店", "医院", "学校", "公园", "音乐",
            "快乐", "小心", "电影", "你好", "新年", "咖啡", "地铁", "北京")  # fmt: skip
"""Words on signs; a third of the English ones are figures or letters drawn by chance instead."""

Corners = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A cut-out on the canvas."""

    drawing: Drawing
    shown: Noun
    ink: str
    """A key of `INKS` where it was painted in one colour; else empty."""
    box: Corners
    """Left, top, right, bottom in pixels of the canvas."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A word on a plate."""

    text: str
    chinese: bool
    box: Corners
    """Of the plate."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What stands on a canvas."""

    name: str
    things: tuple[Thing, ...]
    """From left to right."""
    sign: Sign | None
    pixels: UInt8[np.ndarray, "side side 3"]

    @cached_property
    def by_noun(self) -> Mapping[str, Sequence[Thing]]:
        """Noun -> all things that it names, in order."""
        found: defaultdict[str, list[Thing]] = defaultdict(list)
        for thing in self.things:
            found[thing.shown.id].append(thing)
        return found

    @property
    def in_chinese(self) -> bool:
        """Whether everything in it has a Chinese name."""
        return all(thing.shown.zh for thing in self.things)


@dataclass(frozen=True, kw_only=True)
class Props:
    """What scenes are composed of."""

    folder: Path
    drawn: Mapping[str, Sequence[Drawing]]
    """Noun -> the drawings of it; nothing here is drawn that has no noun."""
    order: tuple[str, ...]
    """The nouns that have a drawing."""


@lru_cache(maxsize=8)
def props(folder: Path, licences: str = "permissive", split: str = "") -> Props:
    """The drawings that show one noun: those of training, or of a split that is held out.

    Raises ValueError where there are fewer than two nouns: a question needs something to tell apart.
    """
    found: defaultdict[str, list[Drawing]] = defaultdict(list)
    if split:
        for drawing, shown in opened(folder).held_out(split):
            found[shown].append(drawing)
    else:
        for drawing in opened(folder).training(licences):
            if (named := noun_of(drawing)) is not None:
                found[named.id].append(drawing)
        found = defaultdict(list, {shown: drawn for shown, drawn in found.items() if _is_a_thing(drawn)})
    if len(found) < 2:
        raise ValueError(
            f"{folder} has drawings of {len(found)} nouns{' in ' + split if split else ''}, and scenes need two; fetch "
            "more sets."
        )
    return Props(folder=folder, drawn=found, order=tuple(sorted(found)))


def _is_a_thing(drawn: Sequence[Drawing]) -> bool:
    """Whether an emoji or clip art shows it, or many sets do: icons alone may mean what one does (flip, crop)."""
    return any(each.kind != "icon" for each in drawn) or len({each.source for each in drawn}) >= SETS


SETS = 6
"""Sets of icons that make a thing of what no emoji shows."""


def noun_of(drawing: Drawing) -> Noun | None:
    """The noun that a drawing is called by, if it is called by nothing else: `A cat.` is a cat, `cat face` is not."""
    name = drawing.en.lower()
    if name.endswith("."):
        name = name.rstrip(". ").removeprefix("a ").removeprefix("an ")
    return _by_name().get(name)


@cache
def _by_name() -> Mapping[str, Noun]:
    return {each.noun: each for each in nouns()}


def scene(
    held: Props,
    seed: int,
    index: int,
    *,
    side: int = SIDE,
    most: int = MOST,
    several: float = SEVERAL,
    signed: float = SIGNED,
) -> Scene:
    """Scene number `index`, of no more than `most` things; `several` and `signed` are chances (`SEVERAL`, `SIGNED`)."""
    dice = Dice("scene", seed, index)
    canvas, brightness = _ground(held.folder, dice, side)
    wanted = _wanted(held, dice, several)[:most]
    taken: list[Corners] = []
    sign = None
    if dice.chance(signed):
        sign = _sign(held.folder, canvas, dice, taken)
    things = []
    scale = side / SIDE
    for drawing, shown in wanted:
        longest = round(dice.pick(SIDES) * scale)
        ink = _ink(drawing, dice, brightness)
        cut = _cut(drawing, longest, ink)
        place = _place(cut.size, side, taken, dice)
        if place is None:
            continue
        box = (*place, place[0] + cut.width, place[1] + cut.height)
        canvas.paste(cut, place, cut)
        taken.append(box)
        things.append(Thing(drawing=drawing, shown=shown, ink=ink, box=box))
    return Scene(
        name=f"{seed}/{index}",
        things=tuple(sorted(things, key=lambda thing: thing.box[0] + thing.box[2])),
        sign=sign,
        pixels=np.asarray(canvas),
    )


def _wanted(held: Props, dice: Dice, often: float) -> list[tuple[Drawing, Noun]]:
    """One to five things, now and then several of a kind."""
    count = dice.pick((1, 2, 2, 3, 3, 3, 4, 4, 5))
    chosen: list[str] = []
    while len(chosen) < count:
        named = dice.pick(held.order)
        several = 1 + dice.below(3) if dice.chance(often) else 1
        if named not in chosen:
            chosen += [named] * min(several, count - len(chosen))
        elif len(held.order) <= count:
            break
    dice.shuffle(chosen)
    return [(dice.pick(held.drawn[named]), noun(named)) for named in chosen]


# === What stands on it ===


@lru_cache(maxsize=32768)
def _kept(drawing: Drawing) -> tuple[pillow.Image, bool]:
    """The cut-out of a drawing, small, and whether it is of one ink."""
    image = cut_out(drawing.image())
    ratio = CUT / max(image.size)
    small = image.resize(
        (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))), pillow.Resampling.BOX
    )
    return small, is_of_one_ink(image)


@lru_cache(maxsize=8192)
def _cut(drawing: Drawing, longest: int, ink: str) -> pillow.Image:
    """The cut-out at its size on the canvas, cropped to what is visible."""
    small, _ = _kept(drawing)
    ratio = longest / max(small.size)
    sides = max(6, round(small.width * ratio)), max(6, round(small.height * ratio))
    image = small.resize(sides, pillow.Resampling.BILINEAR)
    if ink:
        image = repainted(image, INKS[ink][1])
    visible = image.getchannel("A").point(lambda level: 255 if level >= VISIBLE else 0).getbbox()
    return image if visible is None else image.crop(visible)


def _ink(drawing: Drawing, dice: Dice, brightness: float) -> str:
    """The colour of an icon of one ink, one that is seen on the ground; empty for what has colours of its own."""
    chosen = dice.share()
    if not _kept(drawing)[1]:
        return ""
    seen = [ink for ink, (_, levels) in INKS.items() if abs(sum(levels) / 3 - brightness) > 60]
    return seen[int(chosen * len(seen))]


def _place(size: tuple[int, int], side: int, taken: Sequence[Corners], dice: Dice) -> tuple[int, int] | None:
    """Where something of this size touches nothing that is there; None where no place was found."""
    width, height = size
    if width > side - 2 or height > side - 2:
        return None
    for _ in range(40):
        left, top = 1 + dice.below(side - 1 - width), 1 + dice.below(side - 1 - height)
        if all(
            left >= right + GAP or left + width + GAP <= x or top >= bottom + GAP or top + height + GAP <= y
            for x, y, right, bottom in taken
        ):
            return left, top
    return None


# === Signs ===


def _sign(folder: Path, canvas: pillow.Image, dice: Dice, taken: list[Corners]) -> Sign | None:
    """A word on a plate, painted; None where no place was found."""
    faces = _faces(folder)
    chinese = bool(faces["zh"]) and dice.chance(0.4)
    text = dice.pick(WORDS_ZH) if chinese else _english(dice)
    face = dice.pick(faces["zh" if chinese else "en"])
    height = round((15 + dice.below(10)) * canvas.width / SIDE)
    plate = _plate(face, text, height, dice.below(len(PLATES)))
    place = _place(plate.size, canvas.width, taken, dice)
    if place is None:
        return None
    canvas.paste(plate, place)
    box = (*place, place[0] + plate.width, place[1] + plate.height)
    taken.append(box)
    return Sign(text=text, chinese=chinese, box=box)


PLATES: Sequence[tuple[RGB, RGB]] = (
    ((255, 255, 255), (15, 15, 15)), ((20, 60, 140), (255, 255, 255)), ((245, 205, 30), (20, 20, 20)),
    ((170, 25, 30), (255, 255, 255)), ((25, 25, 25), (240, 240, 240)),
)  # fmt: skip
"""Colours of a plate and of what is written on it."""


def _english(dice: Dice) -> str:
    if dice.chance(2 / 3):
        return dice.pick(WORDS)
    if dice.chance(0.5):
        return str(dice.below(1000))
    return "".join(dice.pick("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(3))


@lru_cache(maxsize=4096)
def _plate(face: Face, text: str, height: int, colours: int) -> pillow.Image:
    ground, ink = PLATES[colours]
    font = face.sized(height)
    left, top, right, bottom = font.getbbox(text)
    rim = max(2, height // 5)
    plate = pillow.new("RGB", (round(right - left) + 2 * rim, round(bottom - top) + 2 * rim), ground)
    ImageDraw.Draw(plate).text((rim - left, rim - top), text, fill=ink, font=font)
    return plate


@cache
def _faces(folder: Path) -> Mapping[str, Sequence[Face]]:
    """The faces of each language; none for Chinese where no font draws it."""
    found = fonts.faces(folder)
    return {**found, "zh": [face for face in found["zh"] if face.covers("".join(WORDS_ZH))]}


# === Grounds ===

SURFACES = 96
"""How many made-up surfaces, or parts of photographs, there are; a scene takes a part of one."""

PHOTOGRAPHS = "photographs"
"""Folder beside the drawings for images of one's own."""


def _ground(folder: Path, dice: Dice, side: int) -> tuple[pillow.Image, float]:
    """A canvas and its mean brightness: white, a plain colour, or a part of a surface or photograph."""
    kind = dice.below(10)
    if kind < 2:
        return pillow.new("RGB", (side, side), (255, 255, 255)), 255.0
    if kind < 5:
        low = 150 if dice.chance(0.6) else 0
        levels = [low + dice.below(256 - low) for _ in range(3)]
        return pillow.new("RGB", (side, side), (levels[0], levels[1], levels[2])), sum(levels) / 3
    surface, brightness = _surface(folder, dice.below(SURFACES), 2 * side)
    left, top = dice.below(side + 1), dice.below(side + 1)
    return surface.crop((left, top, left + side, top + side)), brightness


@lru_cache(maxsize=2 * SURFACES)
def _surface(folder: Path, number: int, side: int) -> tuple[pillow.Image, float]:
    own, size = folder / PHOTOGRAPHS, (side, side)
    try:
        image = Backgrounds(own if own.is_dir() else None)(np.random.default_rng([7, number]), size, 2.0)
    except ValueError as error:
        print(
            printable(f"in the place of a photograph behind scenes stands a made-up surface: {error}"),
            file=sys.stderr,
        )
        image = Backgrounds()(np.random.default_rng([7, number]), size, 2.0)
    return image, float(np.asarray(image.convert("L")).mean())
