"""The rules of Appendix A.1: each a function from a pair to the reason to drop it, or None to keep it.

The paper names the rules and no number; every threshold is an argument here and a field of `presets.Thresholds`.
"""

import math
import re
from collections.abc import Callable, Collection
from typing import Literal, TypeAlias

from qwenvl.data.clean.characters import (
    EMOJI,
    detected_language,
    foreign_character,
    foreign_language,
    han_share,
    units,
)
from qwenvl.data.records import Pair

Rule: TypeAlias = Callable[[Pair], str | None]
"""The reason to drop a pair, or None to keep it."""

Detector: TypeAlias = Literal["scripts", "words", "cld2"]


def aspect_ratio_at_most(limit: int | float) -> Rule:
    """Rule 1: an image too elongated shows nothing once it is squashed to a square."""

    def rule(pair: Pair) -> str | None:
        if not pair.width or not pair.height:
            return "size unknown"
        ratio = max(pair.width, pair.height) / min(pair.width, pair.height)
        return f"aspect ratio {ratio:.1f} > {limit:g}" if ratio > limit else None

    return rule


def short_side_at_least(pixels: int) -> Rule:
    """Rule 2: an image too small has no detail to learn from."""

    def rule(pair: Pair) -> str | None:
        if not pair.width or not pair.height:
            return "size unknown"
        side = min(pair.width, pair.height)
        return f"short side {side} < {pixels} px" if side < pixels else None

    return rule


def has_clip_score() -> Rule:
    """Rule 3 where nobody has computed a score: told apart from a low one, because the cure is another."""
    return lambda pair: "no clip score" if pair.clip_score is None else None


def clip_score_between(low: int | float, high: int | float = 1.0) -> Rule:
    """Rule 3: image and text must belong together, by a cosine that each data set has its own threshold for.

    `high` is for pairs whose image shows the caption itself as text: they score suspiciously well.
    """

    def rule(pair: Pair) -> str | None:
        score = pair.clip_score
        if score is None:
            return "no clip score"
        if math.isnan(score):
            return "clip score is not a number"
        if score < low:
            return f"clip score {score:.3f} < {low:g}"
        return f"clip score {score:.3f} > {high:g}" if score > high else None

    return rule


def written_in(
    languages: Collection[str], detector: Detector = "words", min_han_share: int | float = 0.0
) -> Rule:
    """Rule 4: only characters of these languages ("en", "zh"), and for Latin text only the language English.

    Scripts decide first, then `detector` looks at texts without Chinese: "words" counts function words, "cld2" asks
    pycld2 (unknown is kept: brand names), "scripts" keeps every Latin text. `min_han_share` is asked of every text.
    """
    allowed = frozenset(languages)
    if not allowed or allowed - {"en", "zh"}:
        raise ValueError(f"languages are {sorted(languages)}; expected some of en, zh.")
    codes = tuple(sorted(allowed))

    def rule(pair: Pair) -> str | None:
        text = pair.text
        if letter := foreign_character(text, allowed):
            return f"foreign letter {letter!r}"
        share = han_share(text)
        if share < min_han_share:
            return f"Chinese characters {share:.0%} < {min_han_share:.0%}"
        if share or detector == "scripts":
            return None
        found = foreign_language(text) if detector == "words" else detected_language(text, codes)  # type: ignore[arg-type]
        return f"looks like {found}" if found else None

    return rule


def no_emoji() -> Rule:
    """Rule 5: no emoji, dingbats or flags."""

    def rule(pair: Pair) -> str | None:
        found = None if pair.text.isascii() else EMOJI.search(pair.text)
        return f"emoji U+{ord(found[0]):04X}" if found else None

    return rule


def length_between(least: int, most: int, *, most_characters: int = 1000) -> Rule:
    """Rule 6: words (Chinese characters count one each) between `least` and `most`, and not too many characters."""

    def rule(pair: Pair) -> str | None:
        text = pair.text
        if len(text) > most_characters:
            return f"{len(text)} characters > {most_characters}"
        count = units(text)
        if count < least:
            return f"{count} words < {least}"
        return f"{count} words > {most}" if count > most else None

    return rule


_IDENTIFIER = re.compile(r"(?<![\w-])(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[A-Za-z0-9_-]{24,}(?![\w-])")
_DIGIT = re.compile(r"\d")
_SUSPECT = re.compile("[\ufffd\ue000-\uf8ffÂÃâÐÑ]")  # what every mojibake begins with
_MOJIBAKE = re.compile("\ufffd|[\ue000-\uf8ff]|[ÃÂ][\u0080-\u00bf]|â€|(?:[ÐÑ][\u0080-\u00bf]){2}")
_LETTERS = bytes([*range(65, 91), *range(97, 123)])
_SEPARATORS = re.compile(r"[,|;/，、；·]")


def regular(*, least_letters: int | float = 0.5, most_tags: int = 8) -> Rule:
    """Rule 8, where cutting out does not help: identifiers, tables of numbers, tag soup.

    `least_letters`: share of letters among the visible characters. `most_tags`: a list of that many short items or more
    (two words each on average) is a heap of tags and no caption.
    """

    def rule(pair: Pair) -> str | None:
        text = pair.text
        ascii_only = text.isascii()
        if len(text) >= 24 and _DIGIT.search(text) and _IDENTIFIER.search(text):
            return "identifier"
        visible = len(text) - text.count(" ")
        letters = visible - _others(text) if ascii_only else sum(map(str.isalpha, text))
        if letters < least_letters * visible:
            return "mostly digits and signs"
        if text.count(",") + text.count("|") >= most_tags - 1 or not ascii_only:
            tags = _SEPARATORS.split(text)
            if len(tags) >= most_tags and units(text) <= 2.5 * len(tags):
                return "tag soup"
        return None

    return rule


def no_mojibake() -> Rule:
    """Rule 8 for texts that were decoded wrongly ("CafÃ©"), which the language rule would take for foreign ones."""

    def rule(pair: Pair) -> str | None:
        start = None if pair.text.isascii() else _SUSPECT.search(pair.text)
        found = start and _MOJIBAKE.search(pair.text, start.start())
        return f"mojibake {found[0]!r}" if found else None

    return rule


def _others(text: str) -> int:
    return len(text.encode("ascii").translate(None, _LETTERS + b" "))


def no_special_tags(pattern: str = r"<[A-Z_]{2,}>") -> Rule:
    """Academic caption sets: texts in which CC12M and SBU replaced a name by a tag, such as `<PERSON>`."""
    tag = re.compile(pattern)

    def rule(pair: Pair) -> str | None:
        found = tag.search(pair.text) if "<" in pair.text or "[" in pair.text else None
        return f"special tag {found[0]}" if found else None

    return rule


def column_at_most(column: str, limit: int | float) -> Rule:
    """Not in the paper: a score of the source must not exceed `limit`, as LAION's `punsafe` and `pwatermark`.

    A pair without the column is kept, one whose value is no number is dropped.
    """

    def rule(pair: Pair) -> str | None:
        value = pair.extra.get(column)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            return f"{column} is {str(value)[:20]!r}"
        return f"{column} {number:.2f} > {limit:g}" if not number <= limit else None

    return rule
