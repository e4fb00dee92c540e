"""Phrases with boxes that a pair carries (GRIT's columns), kept in step with its text when cleaning edits it."""

from collections.abc import Mapping
from typing import Any

COLUMNS = ("noun_chunks", "ref_exps")
"""Lists of `[start, end, x1, y1, x2, y2, score]`: characters of the caption, then shares of the sides."""

LOST = "phrases lost"
"""Name under which pairs are counted of which an edit took a phrase away."""


def moved(extra: Mapping[str, Any], before: str, after: str) -> tuple[Mapping[str, Any], bool]:
    """The columns with every phrase where it now stands, and whether one is gone: it was edited itself.

    Of a phrase that comes several times each keeps its turn; where there are now fewer or more, all are gone.
    """
    if isinstance(extra.get("caption"), str) or not any(
        isinstance(extra.get(name), list) for name in COLUMNS
    ):
        return extra, False  # none, or of a caption that is another text
    changed, lost = dict(extra), False
    for name in COLUMNS:
        if isinstance(rows := extra.get(name), list):
            found = [_moved(row, before, after) for row in rows]
            changed[name] = [row for row in found if row is not _GONE]
            lost = lost or len(changed[name]) < len(rows)
    return changed, lost


_GONE = object()


def _moved(row: Any, before: str, after: str) -> Any:
    """The row with its phrase's new place, or `_GONE`; what is no row stays as it is, for the reader to count."""
    if (
        not isinstance(row, list)
        or len(row) < 2
        or not all(isinstance(each, int | float) for each in row[:2])
    ):
        return row
    if not all(0 <= each <= len(before) for each in row[:2]) or row[0] >= row[1]:
        return row
    start, end = int(row[0]), int(row[1])
    phrase = before[start:end]
    old, new = _starts(phrase, before), _starts(phrase, after)
    if len(old) != len(new) or start not in old:
        return _GONE
    begin = new[old.index(start)]
    return [type(row[0])(begin), type(row[1])(begin + len(phrase)), *row[2:]]


def _starts(phrase: str, text: str) -> list[int]:
    found, at = [], text.find(phrase)
    while at >= 0:
        found.append(at)
        at = text.find(phrase, at + 1)
    return found
