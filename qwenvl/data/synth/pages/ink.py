"""Which lines of a page are seen: those that leave ink (paper A.4 wants text with its place; what has no ink has none).

A page is drawn twice, with its text and without. Where both are equal there is no text to read, however it comes about:
white on white, covered, transparent, in a mode that leaves no ink.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageChops

from qwenvl.data.synth.pages.page import Line

FAINT = 24
"""Levels of 255 by which the colour of ink differs from what is below it at least."""

LEAST = 0.004
"""Share of the middle of a line's box that ink covers at least; a row of dots covers 0.02."""


def seen_lines(
    lines: Sequence[Line], image: Image.Image, blank: Image.Image, hidden: Sequence[bool] = ()
) -> tuple[Line, ...]:
    """The lines whose ink is seen: in their box `image` differs from `blank`, the same page without its text.

    Both are RGB. A line that is `hidden` on purpose (what a scanner has read, laid over its image) is seen where the
    image itself has ink in the box.
    """
    red, green, blue = ImageChops.difference(image, blank).split()
    changed = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)) > FAINT
    page = np.asarray(image)
    hidden = hidden or [False] * len(lines)
    return tuple(
        line
        for line, secret in zip(lines, hidden, strict=True)
        if _enough(_middle(line, changed)) or (secret and _has_contrast(_middle(line, page)))
    )


def _has_contrast(part: UInt8[np.ndarray, "h w 3"]) -> bool:
    return bool(part.size) and _enough((part.astype(np.int16).max((0, 1)) - part).max(-1) > FAINT)


def _enough(ink: Bool[np.ndarray, "h w"]) -> bool:
    return bool(np.count_nonzero(ink) >= max(1.0, LEAST * ink.size))


def _middle(line: Line, page: np.ndarray) -> np.ndarray:
    """The pixels of a line's box, without a rim into which the letters of its neighbours may reach."""
    x, y = [point[0] for point in line.quad], [point[1] for point in line.quad]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    rim = 0.12 * min(bottom - top, right - left)
    rows = slice(max(0, int(top + rim)), math.ceil(bottom - rim))
    columns = slice(max(0, int(left + rim)), math.ceil(right - rim))
    return page[rows, columns]
