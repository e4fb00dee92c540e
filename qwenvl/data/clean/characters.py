"""Which characters and words belong to English or Chinese, and which are images of faces (Appendix A.1, rules 4, 5).

Character classes are compiled once; texts of ASCII pass the character rules without being read (`str.isascii` is a
flag in CPython).
"""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

from qwenvl.data.records import Language

_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

# Letters of neither language: Latin beyond Latin-1, Greek to Greek Extended (Cyrillic, Hebrew, Arabic, the scripts of
# India, Thai, Hangul letters among them), Vietnamese, kana, Hangul, presentation forms, decorated alphabets.
_FOREIGN = (
    "\u0100-\u02af\u0370-\u1fff\u2c00-\u2dff\u3040-\u31ff\ua000-\ud7ff\ufb07-\ufdff\ufe70-\ufefe\uff66-\uffdc"
    "\U00010000-\U0001efff"
)

HAN = re.compile(f"[{_HAN}]")
"""A Chinese character."""

_FORBIDDEN: Mapping[frozenset[str], re.Pattern[str]] = MappingProxyType(
    {
        frozenset({"en"}): re.compile(f"[{_FOREIGN}{_HAN}]"),
        frozenset({"zh"}): re.compile(f"[{_FOREIGN}]"),
        frozenset({"en", "zh"}): re.compile(f"[{_FOREIGN}]"),
    }
)

EMOJI = re.compile(
    "[\u2600-\u26ff\u2700-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u231a\u231b\u23e9-\u23fa\ufe0f\u20e3"
    "\U0001f000-\U0001faff\U000e0020-\U000e007f]"
)
"""Emoji, dingbats, flags and their modifiers; not (c), (R), TM and arrows, which are ordinary typography."""

UNIT = re.compile(f"[{_HAN}]|[^\\W{_HAN}_](?:[^\\W{_HAN}_]|['’-](?=\\w))*")
"""What length is counted in: a Chinese character or a word of another script."""

_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "German": "der die das und ist nicht ein eine einen einem mit für auf dem den von zu im vom zum bei auch aus",
        "French": "le la les des et est une un dans pour avec sur du au aux pas que qui ce cette vous nous par sont",
        "Spanish": "el la los las de del y es una un con por para que en su al como más pero sus este esta muy sobre",
        "Italian": "il lo gli di della del dei che e una un con per nel nella sono non più alla questo anche dal",
        "Portuguese": "o os as de da do dos das e uma um com por para que em no na não mais seu sua ao pelo pela são",
        "Dutch": "de het een en van is niet met voor op aan zijn dat die te bij ook naar uit door werd wordt deze",
        "Scandinavian": "och att det som en ett är på av för med till den inte var jag og er ikke på av til som på han",
        "Indonesian": "yang dan di ini itu dengan untuk dari dalam tidak adalah pada ke akan juga saya oleh",
        "Turkish": "ve bir bu için ile da de çok olarak daha gibi ne kadar olan sonra",
        "Polish": "i w na z do nie się jest to że dla o od po przez jak oraz",
    }
)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ENGLISH = _set(
    "the a an and of in on at with for to is are was by from this that as it its his her their our your my i you we "
    "they he she or not be has have had no new up out over into about after before under near one two all"
)
_FOREIGN_WORDS = {name: _set(words) - _ENGLISH for name, words in _WORDS.items()}
_ANY_FOREIGN = frozenset().union(*_FOREIGN_WORDS.values())


def foreign_character(text: str, languages: frozenset[str]) -> str | None:
    """The first letter that belongs to none of the languages ("en", "zh"), None where there is none."""
    found = None if text.isascii() else _FORBIDDEN[languages].search(text)
    return found[0] if found else None


def foreign_language(text: str) -> str | None:
    """The language whose function words outnumber the English ones, two at least; None if it looks like English.

    Needs no data and no library. Words in the middle count only in small letters, as names ("Rio de Janeiro",
    "La La Land") are full of them.
    """
    first, *others = text.split() or [""]
    words = {first.lower(), *others}
    if len(words & _ANY_FOREIGN) < 2:
        return None
    english = len(words & _ENGLISH)
    best = max(_FOREIGN_WORDS, key=lambda name: len(words & _FOREIGN_WORDS[name]))
    count = len(words & _FOREIGN_WORDS[best])
    return best if count >= 2 and count > english else None


def detected_language(text: str, languages: Sequence[Language]) -> str | None:
    """The language that CLD2 names with confidence, None where it is one of `languages` or unknown.

    Raises ValueError where pycld2 is not installed.
    """
    reliable, _, guesses = _cld2().detect(text.encode("utf-8", "ignore"), bestEffort=False)
    name, code, *_ = guesses[0]
    return None if not reliable or code == "un" or code.split("-")[0] in languages else str(name).title()


def _cld2() -> Any:
    try:
        return import_module("pycld2")
    except ImportError:
        raise ValueError(
            "the language detector `cld2` needs the package pycld2, which is not installed; "
            "pip install 'qwenvl[data]' or use the detector `words`."
        ) from None


def units(text: str) -> int:
    """Length of a text: words, and Chinese characters one by one."""
    return len(text.split()) if text.isascii() else len(UNIT.findall(text))


def han_share(text: str) -> float:
    """Share of Chinese characters among the letters of a text, 0 to 1."""
    if text.isascii():
        return 0.0
    han = len(HAN.findall(text))
    return han / max(1, sum(map(str.isalpha, text)))
