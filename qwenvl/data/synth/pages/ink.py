"""Which lines of a page are seen: those that leave ink (paper A.4 wants text with its place; what has no ink has none).

A page is drawn twice, with its text and without. Where both are equal there is no text to read, however it comes about:
white on white, covered, transparent, in a mode that leaves no ink.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qwenvl.data.synth.pages.page import Line

FAINT = 24
"""Levels of 255 by which the colour of ink differs from what is below it at least."""

LEAST = 0.004
"""Share of the middle of a line's box that ink covers at least; a row of dots covers 0.02."""


def seen_lines(
    lines: Sequence[Line], image: Image.Image, blank: Image.Image, hidden: Sequence[bool] = ()
) -> tuple[Line, ...]:
    """The lines whose ink is seen: in their box `image` differs from `blank`, the same page without its text.

    A line that is `hidden` on purpose (what a scanner has read, laid over its image) is seen where the image itself has
    ink in the box.
    """
    page, without = np.asarray(image), np.asarray(blank)
    hidden = hidden or [False] * len(lines)
    return tuple(
        line
        for line, secret in zip(lines, hidden, strict=True)
        if _is_seen(line, page, without) or (secret and _has_contrast(line, page))
    )


def _is_seen(line: Line, page: UInt8[np.ndarray, "h w 3"], without: UInt8[np.ndarray, "h w 3"]) -> bool:
    a, b = _middle(line, page), _middle(line, without)
    return bool(a.size) and _enough(np.abs(a.astype(np.int16) - b).max(-1) > FAINT)


def _has_contrast(line: Line, page: UInt8[np.ndarray, "h w 3"]) -> bool:
    part = _middle(line, page)
    return bool(part.size) and _enough((part.astype(np.int16).max((0, 1)) - part).max(-1) > FAINT)


def _enough(ink: np.ndarray) -> bool:
    return bool(ink.any()) and bool(ink.mean() >= LEAST)


def _middle(line: Line, page: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """The pixels of a line's box, without a rim into which the letters of its neighbours may reach."""
    (left, top), (right, bottom) = np.min(line.quad, 0), np.max(line.quad, 0)
    rim = 0.12 * min(bottom - top, right - left)
    rows = slice(max(0, int(top + rim)), int(np.ceil(bottom - rim)))
    columns = slice(max(0, int(left + rim)), int(np.ceil(right - rim)))
    return page[rows, columns]
