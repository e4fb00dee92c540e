"""Emoji, icons and flags out of npm: Iconify's sets, with the names and tags that other packages have for them."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.drawings.archives import LARGEST, files_of
from qwenvl.data.drawings.names import (
    Archives,
    Collection,
    EmojiNames,
    Named,
    spoken,
    territories,
    without_style,
)
from qwenvl.parsing import parse_json

EMOJI = ("openmoji", "twemoji", "noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat", "emojione", "emojione-v1",
         "fxemoji", "streamline-emojis")  # fmt: skip

FLAGS = ("circle-flags", "flagpack", "cif")

ICONS = ("icon-park", "flat-color-icons", "streamline-ultimate-color", "streamline-freehand-color", "meteocons",
         "medical-icon", "healthicons", "game-icons", "lucide", "tabler", "mdi", "fa7-solid", "ph", "solar", "iconoir",
         "pixelarticons")  # fmt: skip

ONE_STYLE = {"ph": "-duotone", "solar": "-bold-duotone"}
"""Sets that draw everything in several styles -> the end of the names of the one that is taken."""

SKIN = re.compile(r"skin-tone|-(?:dark|light|medium|medium-dark|medium-light)(?:-|$)")
"""Emoji in another colour of skin: the same image once more."""

INK = "#222222"
"""Colour of drawings that leave it to the page."""

ANNOTATIONS, TERRITORIES = "cldr-annotations-full", "cldr-localenames-full"


@dataclass(frozen=True)
class Icon:
    """One drawing of a set as its package holds it."""

    key: str
    svg: str
    codes: str | None


@dataclass(frozen=True)
class Set:
    """A set of drawings."""

    licence: str
    author: str
    icons: tuple[Icon, ...]


@dataclass(frozen=True)
class Tags:
    """What another package says of an icon."""

    words: tuple[str, ...] = ()
    title_zh: str | None = None
    words_zh: tuple[str, ...] = ()


def collections() -> Iterator[Collection]:
    """Every set, with the packages that it is made of."""
    for source in EMOJI:
        yield Collection(source, (f"@iconify-json/{source}", ANNOTATIONS), (), partial(_emoji, source))
    for source in ICONS:
        tagged = (TAGS[source][0],) if source in TAGS else ()
        yield Collection(source, (f"@iconify-json/{source}",), tagged, partial(_icons, source))
    for source in FLAGS:
        yield Collection(source, (f"@iconify-json/{source}", TERRITORIES), (), partial(_flags, source))


def read_set(archive: Path) -> Set:
    """A set out of its package. Raises ValueError where the package is none of Iconify's."""
    files = {
        path: parse_json(data, path, limit=LARGEST)
        for path, data in files_of(archive, r"package/(info|icons|chars)\.json")
    }
    info, icons = files.get("package/info.json"), files.get("package/icons.json")
    if not info or not icons:
        raise ValueError(f"{archive} holds no set of Iconify (info.json and icons.json); fetch it again.")
    codes = {key: code for code, key in files.get("package/chars.json", {}).items()}
    found = tuple(
        Icon(key, _svg(icon, icons), codes.get(key))
        for key, icon in icons["icons"].items()
        if not icon.get("hidden")
    )
    return Set(info["license"].get("spdx", info["license"]["title"]), info["author"]["name"], found)


def _svg(icon: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """A whole SVG of a body; sizes that it leaves out are those of its set."""
    width, height = (icon.get(side, default.get(side, 16)) for side in ("width", "height"))
    left, top = (icon.get(side, default.get(side, 0)) for side in ("left", "top"))
    body = icon["body"].replace("currentColor", INK)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def _set(source: str, archives: Archives) -> Set:
    return read_set(archives[f"@iconify-json/{source}"])


def _emoji(source: str, archives: Archives) -> Iterator[Named]:
    found, names = _set(source, archives), EmojiNames(archives[ANNOTATIONS])
    for icon in found.icons:
        if SKIN.search(icon.key):
            continue
        emoji = names.find(icon.codes, icon.key)
        english = names.names(emoji, "en") if emoji else None
        chinese = names.names(emoji, "zh") if emoji else None
        yield Named(
            source=source, key=icon.key, kind="emoji", licence=found.licence, author=found.author, svg=icon.svg,
            en=english.name if english else spoken(icon.key), keywords=english.keywords if english else (),
            zh=chinese.name if chinese else None, keywords_zh=chinese.keywords if chinese else (),
        )  # fmt: skip


def _icons(source: str, archives: Archives) -> Iterator[Named]:
    """One drawing of each thing: an icon that differs from an earlier one only in its style is left out."""
    found, tags, seen = _set(source, archives), _tags(source, archives), set()
    for icon in found.icons:
        style = ONE_STYLE.get(source, "")
        if not icon.key.endswith(style):
            continue
        thing = icon.key.removesuffix(style) if style else without_style(icon.key)
        if thing in seen:
            continue
        seen.add(thing)
        said = tags.get(icon.key) or tags.get(thing) or Tags()
        yield Named(
            source=source, key=icon.key, kind="icon", licence=found.licence, author=found.author, svg=icon.svg,
            en=spoken(thing), keywords=said.words, zh=said.title_zh, keywords_zh=said.words_zh,
        )  # fmt: skip


def _flags(source: str, archives: Archives) -> Iterator[Named]:
    found, countries = _set(source, archives), territories(archives[TERRITORIES])
    for icon in found.icons:
        code = icon.key.removesuffix("-4x3").removesuffix("-1x1")
        if code not in countries["en"] or (source == "circle-flags" and code != icon.key):
            continue
        chinese = countries["zh"].get(code)
        yield Named(
            source=source, key=icon.key, kind="flag", licence=found.licence, author=found.author, svg=icon.svg,
            en=f"flag of {countries['en'][code]}", zh=f"{chinese}国旗" if chinese else None,
        )  # fmt: skip


# === Tags that other packages have ===


def _lucide(data: Any) -> dict[str, Tags]:
    return {key: Tags(tuple(map(str, words))) for key, words in data.items()}


def _tabler(data: Any) -> dict[str, Tags]:
    return {key: Tags(tuple(map(str, icon.get("tags", ())))) for key, icon in data.items()}


def _mdi(data: Any) -> dict[str, Tags]:
    return {icon["name"]: Tags((*icon["aliases"], *icon["tags"])) for icon in data}


def _awesome(data: Any) -> dict[str, Tags]:
    return {key: Tags(tuple(map(str, icon.get("search", {}).get("terms", ())))) for key, icon in data.items()}


def _park(data: Any) -> dict[str, Tags]:
    return {icon["name"]: Tags(title_zh=icon["title"], words_zh=tuple(icon["tag"])) for icon in data}


TAGS: Mapping[str, tuple[str, str, Callable[[Any], dict[str, Tags]]]] = {
    "lucide": ("lucide-static", "package/tags.json", _lucide),
    "tabler": ("@tabler/icons", "package/icons.json", _tabler),
    "mdi": ("@mdi/svg", "package/meta.json", _mdi),
    "fa7-solid": ("@fortawesome/fontawesome-free", "package/metadata/icon-families.json", _awesome),
    "icon-park": ("@icon-park/svg", "package/icons.json", _park),
}
"""Set -> the package that has tags for it, the file in it, and how that is read."""


def _tags(source: str, archives: Archives) -> Mapping[str, Tags]:
    package, path, read = TAGS.get(source, ("", "", None))
    if read is None or package not in archives:
        return {}
    found = dict(files_of(archives[package], re.escape(path)))
    return read(parse_json(found[path], path)) if path in found else {}
