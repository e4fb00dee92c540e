"""Which lines of a page are seen: those that leave ink (paper A.4 wants text with its place; what has no ink has none).

A page is drawn with its text and without. Where both are equal there is no text to read, however it comes about: white
on white, covered, transparent, in a mode that leaves no ink.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops

from qwenvl.data.synth.pages.page import Line

FAINT = 24
"""Levels of 255 by which the colour of ink differs from what is below it at least."""

LEAST = 0.004
"""Share of the middle of a line's box that ink covers at least; a row of dots covers 0.02."""

CLEAR, PLENTY = 64, 0.02
"""The same for a word that stands alone on its ground: more than what a JPEG smears over from what is beside it."""

GRID = 16
"""Pixels of a side of a JPEG's blocks, where colours are stored at half the resolution."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in whole pixels."""


def seen_lines(
    lines: Sequence[Line], image: Image.Image, blank: Image.Image | None, hidden: Sequence[bool] = ()
) -> tuple[Line, ...]:
    """The lines whose ink is seen: in their box `image` differs from `blank`, the same page without its text.

    Both are RGB; None is a page that is white in the boxes of all lines. A line that is `hidden` on purpose (what a
    scanner has read, laid over its image) is seen where the image itself has ink in the box.
    """
    hidden = hidden or [False] * len(lines)
    boxes = [_middle(line, image.size) for line in lines]
    return tuple(
        line
        for line, secret, box in zip(lines, hidden, boxes, strict=True)
        if _differs(image, blank, box) or (secret and _has_contrast(np.asarray(image.crop(box))))
    )


def around(lines: Sequence[Line], size: tuple[int, int], longest: float = math.inf) -> Box:
    """What holds all upright lines, or of each the first `longest` pixels: a few letters tell that it is seen.

    In whole blocks of a JPEG: outside of letters two photographs of it are then equal.
    """
    left, top, right, bottom = np.array([(*line.quad[0], *line.quad[2]) for line in lines]).T / GRID
    right = np.minimum(right, left + longest / GRID)
    first = (int(left.min()) * GRID, int(top.min()) * GRID)
    last = (math.ceil(right.max()) * GRID, math.ceil(bottom.max()) * GRID)
    return *first, min(size[0], last[0]), min(size[1], last[1])


def has_letters(image: Image.Image, word: Sequence[float]) -> bool:
    """Whether the beginning of a word's box has two colours: where the ground has one, the other is that of letters."""
    left, top, right, bottom = word
    part = image.crop(_inner(left, top, min(right, left + 4 * (bottom - top)), bottom, image.size))
    if 0 in part.size:
        return False
    least = max(2.0, PLENTY * part.width * part.height)
    for colour in part.split():
        levels = colour.histogram()
        lightest = max(level for level, count in enumerate(levels) if count)
        if sum(levels[: max(0, lightest - CLEAR)]) >= least:
            return True
    return False


def _differs(image: Image.Image, blank: Image.Image | None, box: Box) -> bool:
    left, top, right, bottom = box
    beginning = (left, top, min(right, left + 8 * (bottom - top)), bottom)
    size = (right - left) * (bottom - top)
    return any(_enough(_changed(image, blank, part), size) for part in (beginning, box))


def _changed(image: Image.Image, blank: Image.Image | None, box: Box) -> int:
    """Pixels of a box in which one of the colours is another."""
    part = image.crop(box)
    change = ImageChops.invert(part) if blank is None else ImageChops.difference(part, blank.crop(box))
    red, green, blue = change.split()
    levels = ImageChops.lighter(ImageChops.lighter(red, green), blue).histogram()
    return sum(levels[FAINT + 1 :])


def _has_contrast(part: UInt8[np.ndarray, "h w 3"]) -> bool:
    if not part.size:
        return False
    ink = (part.astype(np.int16).max((0, 1)) - part).max(-1) > FAINT
    return _enough(np.count_nonzero(ink), ink.size)


def _enough(ink: int | np.integer, size: int) -> bool:
    return bool(ink >= max(1.0, LEAST * size))


def _middle(line: Line, size: tuple[int, int]) -> Box:
    """The pixels of a line's box, without a rim into which the letters of its neighbours may reach."""
    x, y = [point[0] for point in line.quad], [point[1] for point in line.quad]
    return _inner(min(x), min(y), max(x), max(y), size)


def _inner(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Box:
    rim = 0.12 * min(bottom - top, right - left)
    left, top = max(0, int(left + rim)), max(0, int(top + rim))
    right, bottom = min(size[0], math.ceil(right - rim)), min(size[1], math.ceil(bottom - rim))
    return left, top, max(left, right), max(top, bottom)
