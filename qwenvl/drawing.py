"""Boxes drawn back on the image they were found in (paper 2.2), each with its label and score beside it."""

import functools
import math
import re
import unicodedata
import zlib
from collections.abc import Iterable
from typing import TypeAlias

from PIL import Image as pillow
from PIL import ImageColor, ImageDraw, ImageFont

from qwenvl.images import Source, open_image
from qwenvl.markup import Box, Quad

PALETTE = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4",
    "#f032e6", "#bfef45", "#911eb4", "#fabed4", "#469990", "#dcbeff",
)  # fmt: skip
"""Colours of boxes: far from each other, and told from most images by the dark rim around them."""

_FONTS = (
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc", "uming.ttc",
    "DejaVuSans.ttf", "arial.ttf", "Arial Unicode.ttf",
)  # fmt: skip

Rectangle: TypeAlias = tuple[int, int, int, int]


def draw_boxes(image: Source, boxes: Iterable[Box | Quad]) -> pillow.Image:
    """A copy of the image with every box and quadrilateral outlined, and its label and score beside it.

    Coordinates are the model's, [0, 1000) of each side. Boxes of one label share a colour, which follows from the
    label itself, so it stays from image to image unless two labels of one image would share it. Lines and
    letters grow with the image; letters the built-in font lacks come from a font of the system, else become "?".
    """
    canvas = open_image(image).copy()
    boxes = list(boxes)
    colours = _colours(box.label for box in boxes)
    width = max(2, round(math.sqrt(canvas.width * canvas.height) / 300))
    corners = [_corners(box, canvas) for box in boxes]
    for box, points in zip(boxes, corners, strict=True):
        _outline(canvas, points, width, colours[box.label])
    taken: list[Rectangle] = []
    for box, points in zip(boxes, corners, strict=True):
        if text := _caption(box):
            taken.append(_tag(canvas, text, points, width, colours[box.label], taken))
    return canvas


def _colours(labels: Iterable[str | None]) -> dict[str | None, str]:
    """A colour for each label: the one its spelling points at, or the next that is still free on this image."""
    colours: dict[str | None, str] = {}
    for label in dict.fromkeys(labels):
        start = zlib.crc32((label or "").strip().lower().encode()) % len(PALETTE)
        order = PALETTE[start:] + PALETTE[:start]
        colours[label] = next((colour for colour in order if colour not in colours.values()), order[0])
    return colours


def _corners(box: Box | Quad, canvas: pillow.Image) -> list[tuple[float, float]]:
    if isinstance(box, Quad):
        return list(box.to_pixels(*canvas.size))
    left, top, right, bottom = box.to_pixels(*canvas.size)
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _outline(canvas: pillow.Image, points: list[tuple[float, float]], width: int, colour: str) -> None:
    """A closed line through the points over a thin dark rim, smoothed by drawing it larger than it will be."""
    xs, ys = zip(*points, strict=True)
    margin = 2 * width
    left, top = int(min(xs)) - margin, int(min(ys)) - margin
    across, down = int(max(xs)) + margin - left, int(max(ys)) + margin - top
    scale = 3 if across * down <= 4_000_000 else 1
    path = [((x - left) * scale, (y - top) * scale) for x, y in points]
    for ink, pen, opacity in (("black", width + 2, 150), (colour, width, 255)):
        mask = pillow.new("L", (across * scale, down * scale))
        ImageDraw.Draw(mask).line([*path, *path[:2]], fill=opacity, width=pen * scale, joint="curve")
        canvas.paste(ink, (left, top), mask.reduce(scale))


def _caption(box: Box | Quad) -> str:
    """The label on one line, cut where no image has room, with the score (a probability) when there is one."""
    words = _cut(" ".join((box.label or "").split()), limit=80).split()
    return " ".join([*words, f"{box.score:.2f}"] if box.score is not None else words)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _tag(
    canvas: pillow.Image,
    text: str,
    points: list[tuple[float, float]],
    width: int,
    colour: str,
    taken: list[Rectangle],
) -> Rectangle:
    """Write the text on a plate that touches the outline, wholly inside the image, off the plates before it."""
    text, font = _fitted(text, canvas, width)
    ascent, descent = font.getmetrics()
    pad = max(2, width)
    across, down = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent + pad
    left, top = min(x for x, _ in points) - width / 2, min(y for _, y in points) - width / 2
    right, bottom = max(x for x, _ in points) + width / 2, max(y for _, y in points) + width / 2
    places = [(x, y) for y in (top - down, bottom, top, bottom - down) for x in (left, right - across)]
    plates = []
    for x, y in places:
        x = round(min(max(x, 0), canvas.width - across))
        y = round(min(max(y, 0), canvas.height - down))
        plates.append((x, y, x + across, y + down))
    plate = next((p for p in plates if not any(_overlap(p, other) for other in taken)), plates[0])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((plate[0] + pad, plate[1] + pad / 2), text, fill=ink, font=font)
    return plate


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fitted(text: str, canvas: pillow.Image, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font in which it fits the image: first smaller letters, then fewer."""
    available = canvas.width - 2 * max(2, width)
    size = max(12, round(math.sqrt(canvas.width * canvas.height) / 36))
    text, font = _readable(text, size)
    if (length := font.getlength(text)) > available:
        text, font = _readable(text, max(10, int(size * available / length)))
    short = text
    while len(text) > 1 and font.getlength(short) > available:
        text = text[:-1]
        short = text.rstrip() + "..."
    return short, font


def _readable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A font that has every letter of the text; where none has, the text with "?" for what cannot be drawn."""
    builtin = _font(None, size)
    assert builtin is not None
    if text.isascii():
        return text, builtin
    for name in _FONTS:
        font = _font(name, size)
        if font is not None and all(map(functools.partial(_has, font), text)):
            return text, font
    plain = unicodedata.normalize("NFKD", text)  # an accent is lost before its letter is
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return re.sub(r"[^\x20-\x7e]+", "?", plain), builtin


@functools.lru_cache(maxsize=32)
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system by its file name, None where it is not installed; the name None is Pillow's own."""
    if name is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws the letter as anything but its sign for a missing one."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
