"""Which pages of PDF files and of the web are kept (paper A.4): rules with explicit thresholds, a reason per drop.

The paper names the rules and no threshold; these are ours. A rule is tried on the finished page, in the paper's order:

    PDF     3 too small   4 too many or too few characters   5 Latin Extended-A and -B   6 Private Use Area
    HTML    3 too small   4 too many or too few characters                               5 Private Use Area

(Steps 1 and 2 of both lists, text with boxes and the image, make the page.) One rule is not the paper's: a page with
characters whose Unicode is unknown is dropped, since its text is not what its image shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwenvl.data.synth.pages.page import Page

Rule = Callable[[Page], str | None]
"""The reason to drop a page, None to keep it; the same few words for every page with this fault."""

LATIN_EXTENDED = (0x0100, 0x024F)
"""Latin Extended-A and Latin Extended-B."""

PRIVATE_USE = (0xE000, 0xF8FF)
"""The Private Use Area of the basic plane: each font means something of its own by it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Thresholds of the rules; the values are ours, the paper gives none."""

    smallest_side: int = 224
    """Pixels along the shorter side: what stage 1 of the training sees."""
    fewest_characters: int = 20
    """White space not counted."""
    most_characters: int = 6000
    """White space not counted; a dense A4 page has about 4,000."""
    most_latin_extended: int | None = 0
    """Characters of Latin Extended-A and -B that a page may have; None switches the rule off."""
    most_private_use: int | None = 0
    most_unknown: int | None = 0
    """Characters without a Unicode value that a page may have."""

    def __post_init__(self) -> None:
        if self.smallest_side < 1:
            raise ValueError(
                f"a page is to have {self.smallest_side} pixels on a side at least; give 1 or more."
            )
        if not 0 <= self.fewest_characters <= self.most_characters:
            raise ValueError(
                f"a page is to have {self.fewest_characters} to {self.most_characters} characters; "
                "give the lower number first."
            )


def pdf_rules(limits: Limits) -> Sequence[Rule]:
    """Rules 3 to 6 of the paper's list for PDF."""
    return [
        too_small(limits.smallest_side),
        too_few(limits.fewest_characters),
        too_many(limits.most_characters),
        block("characters of Latin Extended", *LATIN_EXTENDED, limits.most_latin_extended),
        block("characters of the Private Use Area", *PRIVATE_USE, limits.most_private_use),
        unknown(limits.most_unknown),
    ]


def html_rules(limits: Limits) -> Sequence[Rule]:
    """Rules 3 to 5 of the paper's list for HTML: no word there of Latin Extended."""
    return [
        too_small(limits.smallest_side),
        too_few(limits.fewest_characters),
        too_many(limits.most_characters),
        block("characters of the Private Use Area", *PRIVATE_USE, limits.most_private_use),
        unknown(limits.most_unknown),
    ]


def first_reason(page: Page, rules: Sequence[Rule]) -> str | None:
    """The reason of the first rule that drops the page, None if all keep it."""
    return next((reason for rule in rules if (reason := rule(page)) is not None), None)


def characters(page: Page) -> str:
    """The text of all lines without white space."""
    return "".join("".join(line.text.split()) for line in page.lines)


def too_small(limit: int) -> Rule:
    """Too small an image."""
    return lambda page: f"a side below {limit} px" if min(page.image.size) < limit else None


def too_few(limit: int) -> Rule:
    """Too few characters: a photo, a cover, a scan without text."""
    return lambda page: f"fewer than {limit} characters" if len(characters(page)) < limit else None


def too_many(limit: int) -> Rule:
    """Too many characters to be read at the size of the image, or to fit the answer."""
    return lambda page: f"more than {limit} characters" if len(characters(page)) > limit else None


def block(what: str, first: int, last: int, limit: int | None) -> Rule:
    """More than `limit` characters of a Unicode block."""

    def rule(page: Page) -> str | None:
        if limit is None:
            return None
        return what if sum(first <= ord(c) <= last for c in characters(page)) > limit else None

    return rule


def unknown(limit: int | None) -> Rule:
    """More than `limit` characters without a Unicode value (U+FFFD, U+FFFE, U+FFFF, NUL); a rule of ours."""

    def rule(page: Page) -> str | None:
        if limit is None:
            return None
        count = sum(c in "\ufffd\ufffe\uffff\0" for c in characters(page))
        return "characters without Unicode" if count > limit else None

    return rule
