"""What drawings are called: the names of emoji in English and Chinese (Unicode's CLDR), and names out of file names."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from qwenvl.data.drawings.archives import files_of
from qwenvl.parsing import parse_json

LANGUAGES = ("en", "zh")

_SELECTOR = "\ufe0f"
_STYLES = re.compile(
    r"-(?:fill|filled|outline|outlined|bold|thin|light|duotone|rounded|round|sharp|line|linear|twotone|broken|solid|alt|"
    r"variant|off|\d+|\d+px)$"
)


Archives: TypeAlias = Mapping[str, Path]
"""Package -> its archive; those that are missing are not in it."""


class Region(NamedTuple):
    """A part of a map and what it is called."""

    en: str
    zh: str
    """Empty where it has no Chinese name."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom on the grid of [0, 1000)."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A drawing with all that was said of it."""

    source: str
    """The set: `twemoji`."""
    key: str
    """Unique within its set, as its makers call it."""
    kind: str
    """emoji, icon, flag, clip art, stamp, map, 3d render."""
    licence: str
    author: str = ""
    en: str | None = None
    zh: str | None = None
    keywords: tuple[str, ...] = ()
    keywords_zh: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    """Of a map."""
    svg: str = field(default="", repr=False)
    """The drawing itself, where it is a vector drawing,"""
    file: bytes = field(default=b"", repr=False)
    """or an image file."""


@dataclass(frozen=True)
class Collection:
    """A set of drawings, and how it is read."""

    source: str
    needs: tuple[str, ...]
    """Packages without which there is none of it."""
    uses: tuple[str, ...]
    """Packages that say more about it, where they are at hand."""
    read: Callable[[Archives], Iterator[Named]]


@dataclass(frozen=True)
class Emoji:
    """The names of one emoji."""

    name: str
    keywords: tuple[str, ...]


class EmojiNames:
    """CLDR's names of emoji: found by the characters, or by the English name as sets spell it in file names."""

    def __init__(self, archive: Path) -> None:
        self._names: dict[str, Mapping[str, Emoji]] = {}
        for path, content in files_of(archive, r"package/annotations/(en|zh)/annotations\.json"):
            self._names[path.split("/")[2]] = dict(_emoji(parse_json(content, path)))
        self._by_slug = {slug(emoji.name): text for text, emoji in self._names.get("en", {}).items()}

    def find(self, codes: str | None, key: str) -> str | None:
        """The emoji of a drawing: by its code points (`1f1e6-1f1e8`), else by its name; None if Unicode has none."""
        if codes:
            text = "".join(chr(int(code, 16)) for code in codes.split("-")).replace(_SELECTOR, "")
            for spelled in (text, text + _SELECTOR):
                if spelled in self._names.get("en", {}):
                    return spelled
        return self._by_slug.get(key)

    def names(self, emoji: str, language: str) -> Emoji | None:
        """What it is called in `en` or `zh`."""
        return self._names.get(language, {}).get(emoji)


def _emoji(annotations: Any) -> Iterable[tuple[str, Emoji]]:
    for text, said in annotations["annotations"]["annotations"].items():
        if said.get("tts"):
            yield text, Emoji(said["tts"][0], tuple(said.get("default", ())))


def territories(archive: Path) -> dict[str, dict[str, str]]:
    """Language -> ISO code in small letters -> name of the country."""
    found = {}
    for path, content in files_of(archive, r"package/main/(en|zh)/territories\.json"):
        language = path.split("/")[2]
        said = parse_json(content, path)["main"][language]["localeDisplayNames"]["territories"]
        found[language] = {
            code.lower(): name for code, name in said.items() if re.fullmatch("[A-Z]{2}", code)
        }
    return found


def slug(text: str) -> str:
    """A name as file names spell it: `Man’s shoe` is `mans-shoe`."""
    plain = unicodedata.normalize("NFKD", text.lower()).replace("’", "").replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def without_style(key: str) -> str:
    """The name of an icon without what only tells its style: `bell-off-fill` stays a bell that is off."""
    while (shorter := _STYLES.sub("", key)) != key and shorter:
        key = shorter
    return key


def spoken(key: str) -> str:
    """A file's name as words: `electricGuitar_2` is `electric guitar`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)
    words = re.sub(r"[\W_]+", " ", words)
    return re.sub(r"\s*\d+$", "", words).strip().lower()
