"""What stands where on a flat page: blocks of one to three columns, lines of text that flow through them (paper A.4).

+--------------------------+      A page is a stack of blocks; a block has its own size of letters, colour,
| block   line    line     |      alignment and columns. Text runs down a column, then down the next: the
|         line    line     |      order of the lines is the order in which a person reads them.
| block   line             |
+--------------------------+
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from PIL import ImageFont

from qwenvl.data.synth.pages.fonts import Face, Fonts
from qwenvl.data.synth.pages.look import Look
from qwenvl.data.synth.pages.text import TextSource, is_chinese

Colour = tuple[int, int, int]

SMALLEST = 13
"""Pixels per em below which no letter survives the lens; smaller text is written at this size."""

GROWTHS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2)
"""By how much letters grow, one after the other, until a page is short enough."""

LARGEST = 0.3
"""Height of a line at most, share of the shorter side of the page, however much it grows."""

WIDE = 0x2E7F
"""Characters above this (Han, full-width signs) may be separated from their neighbours."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One line of text on the flat page."""

    text: str
    face: Face
    size: int
    """Pixels per em."""
    origin: tuple[int, int]
    """Start of the baseline, pixels of the page."""
    ink: tuple[int, int, int, int]
    """Left, top, right, bottom of what the letters cover, pixels of the page."""
    colour: Colour


@dataclass(frozen=True)
class _Block:
    """A box of the page with its style."""

    left: float
    top: float
    width: float
    columns: tuple[tuple[float, float], ...]
    """Left edge and width of each."""
    rows: int
    line: float
    """Pixels from baseline to baseline."""
    align: str
    paragraph: bool
    """Lines as full as words allow, as in a book; else each of its own length, as on a form."""


def written_on(
    size: tuple[int, int], look: Look, fonts: Fonts, source: TextSource, rng: np.random.Generator
) -> list[Written]:
    """The lines of one page of `size` pixels, in reading order; raises NoText where the texts have none to draw."""
    lines: list[Written] = []
    text = _Flow(source, fonts, rng)
    for block in _blocks(size, look, rng):
        if rng.random() < 0.2:  # a heading or a box in another hand
            text.change_face()
        lines += _fill(block, text, look, _ink(look, rng), rng)
    return lines


def written_within(
    tokens: int,
    cost: Callable[[str], int],
    size: tuple[int, int],
    look: Look,
    fonts: Fonts,
    source: TextSource,
    rng: np.random.Generator,
) -> list[Written]:
    """As `written_on`, a page whose lines cost no more than `tokens`: its letters grow until the text fits.

    Lines that even the largest letters leave too many of are left out from the end.
    """
    state = rng.bit_generator.state
    written: list[Written] = []
    for growth in GROWTHS:
        rng.bit_generator.state = state
        low, high = (min(side * growth, LARGEST) for side in look.text_scale)
        written = written_on(size, replace(look, text_scale=(low, high)), fonts, source, rng)
        spent = list(accumulate(cost(line.text) for line in written))
        if not spent or spent[-1] <= tokens:
            return written
    return written[: bisect_right(spent, tokens)]


def _ink(look: Look, rng: np.random.Generator) -> Colour:
    """Dark grey, or a dark colour whose channels differ."""
    if rng.random() < look.coloured:
        dark = rng.integers(look.ink[0], look.ink[1] + 1, 3)
        dark[rng.integers(3)] += int(rng.integers(0, 110))
        return int(dark[0]), int(dark[1]), int(dark[2])
    grey = int(rng.integers(look.ink[0], look.ink[1] + 1))
    return grey, grey, grey


def _blocks(size: tuple[int, int], look: Look, rng: np.random.Generator) -> Iterator[_Block]:
    """Blocks from the top of the page down, until no line fits."""
    short = min(size)
    margin = rng.uniform(*look.margin) * short
    width, bottom = size[0] - 2 * margin, size[1] - margin
    top = margin
    while True:
        line = max(rng.uniform(*look.text_scale) * short, SMALLEST / 0.74)
        if top + line > bottom:
            return
        rows = min(int(rng.integers(1, look.rows + 1)), int((bottom - top) / line))
        wanted = int(rng.integers(1, look.columns + 1))
        columns = max(1, min(wanted, int(width / (6 * line))))  # at least six letters of Chinese in a column
        share = 1.0 if rng.random() < look.full else rng.uniform(*look.fill)
        if columns > 1:
            share = min(max(share, 0.8), 0.96)
        used = width * share
        gap = (width - used) / (columns - 1) if columns > 1 else 0.0
        widths = used * rng.dirichlet(np.full(columns, 30.0))
        align = ("left", "center", "right")[int(rng.choice(3, p=(0.6, 0.25, 0.15)))]
        left = margin + (0 if columns > 1 else {"left": 0, "center": 0.5, "right": 1}[align] * (width - used))
        starts = left + np.concatenate([[0], np.cumsum(widths[:-1] + gap)])
        cells = tuple(zip(starts.tolist(), widths.tolist(), strict=True))
        paragraph = bool(rows > 2 and rng.random() < 0.5)
        yield _Block(left, top, used, cells, rows, line, "left" if paragraph else align, paragraph)
        top += rows * line + look.spacing * short


def _fill(
    block: _Block, text: "_Flow", look: Look, colour: Colour, rng: np.random.Generator
) -> Iterator[Written]:
    size = max(SMALLEST, round(block.line * 0.74))
    face, font = text.face, text.face.sized(size)
    shares = rng.uniform(*look.line_fill, (len(block.columns), block.rows))
    for (left, width), row_shares in zip(block.columns, shares, strict=True):
        for row, share in enumerate(row_shares):
            available = width * (1.0 if block.paragraph and row < block.rows - 1 else share)
            words = text.take(font, available) or text.take(font, width)
            if not words or not face.covers(words):
                continue  # no word fits, or the text went on in a language of another face
            spare = width - font.getlength(words) if block.align != "left" else 0.0
            x = round(left + (spare / 2 if block.align == "center" else spare))
            y = round(block.top + (row + 0.76) * block.line)
            box = font.getbbox(words, anchor="ls")
            ink = (x + int(box[0]), y + int(box[1]), x + int(box[2]), y + int(box[3]))
            yield Written(text=words, face=face, size=size, origin=(x, y), ink=ink, colour=colour)


class _Flow:
    """An endless text that is taken from piece by piece, and the face it is written in."""

    def __init__(self, source: TextSource, fonts: Fonts, rng: np.random.Generator) -> None:
        self._source, self._fonts, self._rng = source, fonts, rng
        self._language: str | None = None
        self._text = ""
        self._advance = 0.5
        self._go_on()

    def change_face(self) -> None:
        """Another face of the same language from here on."""
        faces = self._fonts[self._language or "en"]
        self.face = faces[int(self._rng.integers(len(faces)))]
        self._text = self.face.covered(self._text)

    def _go_on(self) -> None:
        more = self._source.passage(self._rng, 400, self._language, self._drawn)
        self._text = f"{self._text} {more}".strip()

    def _drawn(self, text: str) -> str:
        """What can be drawn of a passage; its language and letters choose the face from here on."""
        language = "zh" if is_chinese(text) and self._fonts["zh"] else "en"
        if language != self._language:
            self._language = language
            self.change_face()
        drawn = self.face.covered(text)
        if len(drawn) < len(text) / 2:
            better = next((face for face in self._fonts[language] if face.covers(text)), self.face)
            if better != self.face:
                self.face, self._text = better, better.covered(self._text)
                return text
        return drawn

    def take(self, font: ImageFont.FreeTypeFont, available: float) -> str:
        """The longest beginning that fits `available` pixels and ends with a word; "" where not one word fits."""
        if len(self._text) < 250:
            self._go_on()
        text = self._text
        if not text:
            return ""
        size = min(len(text), max(1, round(available / (self._advance * font.size))))
        longest = font.getlength(text[:size])
        self._advance = longest / (
            size * font.size
        )  # what letters of this text and face take: a better guess next
        while longest <= available and size < len(text):
            size = min(
                len(text), size + max(1, round(1.1 * (available - longest) / (self._advance * font.size)))
            )
            longest = font.getlength(text[:size])
        while size and longest > available:
            size = max(0, size - max(1, int(0.9 * (longest - available) / (self._advance * font.size))))
            longest = font.getlength(text[:size])
        size = _word_end(text, size)
        self._text = text[size:].lstrip()
        return text[:size].rstrip()


def _word_end(text: str, size: int) -> int:
    """The last place up to `size` where a line may end: at a space or beside a Chinese character; 0 if nowhere."""
    if size >= len(text):
        return len(text)
    while size and not (
        (text[size] == " " or ord(text[size - 1]) > WIDE or ord(text[size]) > WIDE)
        and text[size] not in "，。、；：！？）"  # no line begins with such a sign
    ):
        size -= 1
    return size
