"""Fonts that draw Chinese, out of packages as the drawings are: signs are then the same on every machine.

OUT/fonts/NAME.ttf, NAME.txt    a font, and the licence (SIL OFL 1.1) that goes wherever it goes
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from qwenvl.data.drawings.archives import files_of
from qwenvl.data.synth.pages.fonts import Face, Fonts
from qwenvl.files import atomic

PACKAGES = ("@expo-google-fonts/zcool-qingke-huangyou", "@expo-google-fonts/zcool-xiaowei")
"""Each with one font of one weight."""

_FONT, _LICENCE = r"package/[^/]+/[\w-]+\.ttf", r"package/LICENSE_FONT"


def keep(archives: Mapping[str, Path], out: Path) -> int:
    """The fonts of those packages that are at hand, each written once; returns how many are there now.

    Raises ValueError for an archive without a font and its licence.
    """
    there = [name for name in PACKAGES if name in archives]
    for name in there:
        font = place(out, name)
        if font.exists():
            continue
        font.parent.mkdir(parents=True, exist_ok=True)
        found = dict(files_of(archives[name], f"{_FONT}|{_LICENCE}"))
        licence = [content for path, content in found.items() if path == _LICENCE]
        fonts = [content for path, content in found.items() if path != _LICENCE]
        if len(fonts) != 1 or not licence:
            raise ValueError(
                f"{archives[name]} holds {len(fonts)} fonts and {len(licence)} licences, expected one each."
            )
        for file, content in ((font.with_suffix(".txt"), licence[0]), (font, fonts[0])):
            with atomic(file) as written:
                written.write(content)
    return len(there)


def place(out: Path, package: str) -> Path:
    """Where the font of a package is kept; its licence is beside it."""
    return out / "fonts" / f"{package.rpartition('/')[2]}.ttf"


def owed(out: Path) -> Mapping[str, str]:
    """The packages whose fonts are there, each with its authors: the first line of its licence."""
    there = (name for name in PACKAGES if place(out, name).exists())
    licences = {name: place(out, name).with_suffix(".txt").read_text("utf-8", "replace") for name in there}
    return {name: next(iter(text.split("\n")), "").strip() for name, text in licences.items()}


def files(folder: Path) -> list[Path]:
    """The fonts of a fetched folder, always in the same order."""
    return sorted((folder / "fonts").glob("*.ttf"))


@cache
def faces(folder: Path) -> Mapping[str, tuple[Face, ...]]:
    """Up to four faces of each language: in Chinese those of the folder, else of the machine, which may have none."""
    machine = Fonts.find()
    chinese = (Fonts.find(folder / "fonts") if files(folder) else machine)["zh"]
    return {"en": (Face(""), *machine["en"][:3]), "zh": tuple(chinese[:4])}


def of_pages(folder: Path) -> Fonts:
    """The same faces for pages of text."""
    found = faces(folder)
    return Fonts(dict.fromkeys([*found["en"], *found["zh"]]))
