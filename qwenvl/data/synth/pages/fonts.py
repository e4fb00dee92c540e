"""Fonts of this machine, and which characters each can draw (paper A.4: 41 English and 11 Chinese fonts).

Whatever is installed is used; Pillow's built-in font is the last resort, so that English works everywhere. A
character counts as covered when the font draws ink for it that is not its sign for a missing character, which
also tells the empty glyphs that a font's own table promises. Scripts whose letters join or run from right to left
(Arabic, Hebrew, Devanagari, Thai) count as covered by none: letters are set one by one here. Chinese on Debian:
`apt-get install fonts-wqy-microhei fonts-arphic-ukai fonts-noto-cjk`.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

SAMPLES = {
    "en": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?()-%$@/+",
    "zh": "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会",
}
"""A font serves a language when it draws all of these."""

CJK = frozenset({*range(0x2E80, 0x10000), *range(0x20000, 0x33480)})
"""Characters of scripts without spaces between words: one of them can be left out alone."""

MISSING = "\U0010ffff"
"""No font has this character: it is drawn as the sign for a missing one."""


@dataclass(frozen=True, order=True)
class Face:
    """One typeface: a file and its number within a collection (.ttc); the path "" is Pillow's built-in font."""

    path: str
    index: int = 0

    def sized(self, size: int) -> ImageFont.FreeTypeFont:
        """The face at a size in pixels per em; raises OSError for a file that is no font."""
        return _sized(self.path, self.index, size)

    def covers(self, text: Iterable[str]) -> bool:
        """Whether every character of the text is drawn as itself; white space always is."""
        known = _known(self)
        return all(known[c] if c in known else self._look_up(c, known) for c in text)

    def covered(self, text: str) -> str:
        """The text without what the face cannot draw: of words the whole word, of Chinese the character."""
        letters = set(text)
        if self.covers(letters):
            return text
        missing = {character for character in letters if not self.covers(character)}
        kept = []
        for word in text.split(" "):
            if not missing.intersection(word):
                kept.append(word)
            elif any(ord(c) in CJK for c in word):
                kept.append("".join(c for c in word if c not in missing))
        return " ".join(filter(None, kept))

    def _look_up(self, character: str, known: dict[str, bool]) -> bool:
        if character.isspace():
            known[character] = True
        elif not character.isprintable() or _needs_shaping(character):
            known[character] = False
        else:
            ink = self.sized(20).getmask(character)
            known[character] = ink.getbbox() is not None and bytes(ink) != _sign_for_missing(self)
        return known[character]


def _needs_shaping(character: str) -> bool:
    """Letters that run from right to left or join their neighbours, and marks: set one by one they would be wrong."""
    return unicodedata.bidirectional(character) in ("R", "AL") or unicodedata.category(character)[0] == "M"


@cache
def _known(face: Face) -> dict[str, bool]:
    return {}


@cache
def _sign_for_missing(face: Face) -> bytes:
    return bytes(face.sized(20).getmask(MISSING))


@lru_cache(maxsize=256)
def _sized(path: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    if not path:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    return ImageFont.truetype(path, size, index, layout_engine=ImageFont.Layout.BASIC)


class Fonts:
    """The faces that serve each language: `fonts["en"]`, `fonts["zh"]`."""

    def __init__(self, faces: Iterable[Face]) -> None:
        self._faces = {language: tuple(f for f in faces if f.covers(s)) for language, s in SAMPLES.items()}
        if not self._faces["en"]:
            self._faces["en"] = (Face(""),)

    @classmethod
    def find(cls, *folders: Path) -> "Fonts":
        """The fonts in these folders, by default in the system's and the user's own; always in the same order.

        Raises ValueError where a folder that was named has no font.
        """
        faces = list(_faces(folders or _system_folders()))
        if folders and not faces:
            raise ValueError(
                f"no font in {', '.join(map(str, folders))}; give a folder of .ttf, .otf or .ttc files."
            )
        return cls(faces)

    def __getitem__(self, language: str) -> Sequence[Face]:
        return self._faces[language]

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that at least one face serves; English always is one."""
        return tuple(language for language, faces in self._faces.items() if faces)


def _faces(folders: Iterable[Path]) -> Iterable[Face]:
    """Every face of every font file, in the order of file names; files that are no fonts are passed over."""
    paths = {
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in (".ttf", ".otf", ".ttc", ".otc") and path.is_file()
    }
    for path in sorted(paths, key=lambda path: (path.name, str(path))):
        for index in range(16 if path.suffix.lower() in (".ttc", ".otc") else 1):
            face = Face(str(path), index)
            try:
                face.sized(32).getmask("A")
            except OSError:
                break
            yield face


def _system_folders() -> list[Path]:
    home = Path(os.path.expanduser("~"))  # stays "~" for a user without a home: a folder that is not there
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    return [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".local/share/fonts",
        home / ".fonts",
    ]
