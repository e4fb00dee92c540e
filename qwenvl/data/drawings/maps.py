"""Maps whose regions have names: phrases with exact boxes that nobody had to draw (KGeography, out of Debian).

A map is an image in which each region has a colour of its own, and a file that names the colours. The box of a region
is the extent of its colour, on the grid of [0, 1000); regions too small to be seen are left out.
"""

import gettext
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Int64

from qwenvl.data.boxes import parse_xml
from qwenvl.data.drawings.archives import files_of
from qwenvl.data.drawings.collection import Drawing
from qwenvl.data.drawings.names import Archives, Collection, Named, Region
from qwenvl.data.records import Caption, Language, Record, Referring
from qwenvl.data.toy.worlds import Dice
from qwenvl.images import open_image
from qwenvl.markup import Box, Image

PACKAGE = "kgeography-data"

LEAST = 0.06
"""Share of a map's width and of its height that a region spans at least."""

CHINESE = 0.4
"""Share of the phrases that are Chinese, where a region has a name in both languages."""

_FILES = r"usr/share/kgeography/[^/]+\.(?:kgm|png)|usr/share/locale/zh_CN/LC_MESSAGES/kgeography\.mo"


def collections() -> Iterator[Collection]:
    """The one set of maps there is."""
    yield Collection("kgeography", (PACKAGE,), (), _kgeography)


def _kgeography(archives: Archives) -> Iterator[Named]:
    """Every map with its regions; one whose file or image cannot be read comes without them, and is refused."""
    files = {PurePosixPath(name).name: data for name, data in files_of(archives[PACKAGE], _FILES)}
    chinese = gettext.NullTranslations()
    if "kgeography.mo" in files:
        chinese = gettext.GNUTranslations(io.BytesIO(files["kgeography.mo"]))
    for name in sorted(files):
        if not name.endswith(".kgm"):
            continue
        try:
            root = parse_xml(files[name].decode("utf-8"))
            image = files.get(_text(root, "mapFile"), b"")
            regions = tuple(_regions(root, _codes(image), chinese, name))
        except ValueError:
            root, image, regions = ElementTree.Element("map"), b"no map", ()
        said = _text(root, "name") or name.removesuffix(".kgm")
        translated = _translated(chinese, name, said)
        yield Named(
            source="kgeography", key=name.removesuffix(".kgm"), kind="map", licence="GPL-2.0-or-later",
            author="Albert Astals Cid and KGeography's contributors", en=f"map of {said}",
            zh=f"{translated}地图" if translated else None, regions=regions, file=image or b"no map",
        )  # fmt: skip


def _codes(image: bytes) -> Int64[np.ndarray, "height width"]:
    """The colour of each pixel as one number."""
    levels = np.asarray(open_image(image)).astype(np.int64)
    return levels[..., 0] << 16 | levels[..., 1] << 8 | levels[..., 2]


def _regions(
    root: ElementTree.Element,
    codes: Int64[np.ndarray, "height width"],
    chinese: gettext.NullTranslations,
    name: str,
) -> Iterator[Region]:
    """Regions with a name and a colour that no other has; water, coasts and frontiers are none."""
    height, width = codes.shape
    divisions = root.findall("division")
    names = Counter(_text(each, "name") for each in divisions)
    colours = Counter(map(_colour, divisions))
    for division in divisions:
        said, colour = _text(division, "name"), _colour(division)
        if not said or _text(division, "ignore") or names[said] > 1 or colours[colour] > 1:
            continue
        down, across = np.nonzero(codes == colour)
        if not len(down):
            continue
        left, top, right, bottom = across.min(), down.min(), across.max() + 1, down.max() + 1
        if right - left < LEAST * width or bottom - top < LEAST * height:
            continue
        box = Box.from_pixels(float(left), float(top), float(right), float(bottom), width, height)
        yield Region(said, _translated(chinese, name, said), (box.x1, box.y1, box.x2, box.y2))


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _colour(division: ElementTree.Element) -> int:
    """Raises ValueError for what is no number."""
    red, green, blue = (int(_text(division, f"color/{level}")) for level in ("red", "green", "blue"))
    return red << 16 | green << 8 | blue


def _translated(chinese: gettext.NullTranslations, context: str, said: str) -> str:
    """The Chinese name; empty where there is none."""
    found = chinese.pgettext(context, said)
    return "" if found == said else found


# === Records ===


def records(drawing: Drawing, image: Image, dice: Dice, limit: int) -> list[Record]:
    """What a map shows, and up to `limit` of its regions as phrases with their boxes, each in one language."""
    regions = list(drawing.regions)
    dice.shuffle(regions)
    about: list[Record] = []
    names: Mapping[Language, str] = {"en": drawing.en, "zh": drawing.zh}
    language: Language = "zh" if drawing.zh and dice.chance(CHINESE) else "en"
    about.append(Caption(image=image, text=names[language], language=language, source=drawing.source))
    for region in regions[:limit]:
        phrase = region.zh if region.zh and dice.chance(CHINESE) else region.en
        about.append(Referring(image=image, phrase=phrase, boxes=(Box(*region.box),), source=drawing.source))
    return about
